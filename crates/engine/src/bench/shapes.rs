//! The sizes of models that people have, for benchmarks without their weights.

use barycenter_model::{ModelConfig, ModelError};

/// A model whose sizes are measured.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// What `--shape` says.
    pub name: &'static str,
    /// Query and value projections by the end of their names: where LoRA goes in.
    pub lora_targets: [&'static str; 2],
    /// The sizes, as the model's own `config.json` says them.
    config_json: &'static str,
}

/// All of them.
pub const SHAPES: [Shape; 5] = [
    Shape {
        name: "smollm2-135m",
        lora_targets: ["q_proj", "v_proj"],
        config_json: r#"{"model_type": "llama", "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 8192,
            "rope_theta": 100000, "rms_norm_eps": 1e-5, "tie_word_embeddings": true}"#,
    },
    Shape {
        name: "qwen3-0.6b",
        lora_targets: ["q_proj", "v_proj"],
        config_json: r#"{"model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
            "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151936,
            "max_position_embeddings": 40960, "rope_theta": 1000000, "rms_norm_eps": 1e-6, "tie_word_embeddings": true}"#,
    },
    Shape {
        name: "t5-base",
        lora_targets: ["q", "v"],
        config_json: r#"{"model_type": "t5", "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12, "num_heads": 12,
            "vocab_size": 32128, "feed_forward_proj": "relu", "n_positions": 512}"#,
    },
    Shape {
        name: "t5-large",
        lora_targets: ["q", "v"],
        config_json: r#"{"model_type": "t5", "d_model": 1024, "d_kv": 64, "d_ff": 4096, "num_layers": 24, "num_heads": 16,
            "vocab_size": 32128, "feed_forward_proj": "relu", "n_positions": 512}"#,
    },
    Shape {
        name: "bart-large",
        lora_targets: ["q_proj", "v_proj"],
        config_json: r#"{"model_type": "bart", "d_model": 1024, "encoder_layers": 12, "decoder_layers": 12,
            "encoder_attention_heads": 16, "decoder_attention_heads": 16, "encoder_ffn_dim": 4096, "decoder_ffn_dim": 4096,
            "vocab_size": 50265, "max_position_embeddings": 1024, "activation_function": "gelu"}"#,
    },
];

impl Shape {
    /// By its name.
    pub fn named(name: &str) -> Option<Self> {
        SHAPES.into_iter().find(|shape| shape.name == name)
    }

    /// The sizes.
    pub fn config(&self) -> Result<ModelConfig, ModelError> {
        ModelConfig::parse(self.config_json)
    }
}

/// Small models of one stack and of two, for tests of the benchmarks themselves.
#[cfg(test)]
pub(super) const TINY: [Shape; 2] = [
    Shape {
        name: "tiny-llama",
        lora_targets: ["q_proj", "v_proj"],
        config_json: r#"{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
            "intermediate_size": 128, "vocab_size": 320, "tie_word_embeddings": true}"#,
    },
    Shape {
        name: "tiny-t5",
        lora_targets: ["q", "v"],
        config_json: r#"{"model_type": "t5", "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4, "vocab_size": 320}"#,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use barycenter_model::names::parameter_count;

    #[test]
    fn shapes_have_as_many_parameters_as_the_models_they_are_named_after() {
        // The numbers that `transformers` counts for the published checkpoints.
        let published = [
            ("smollm2-135m", 134_515_008),
            ("qwen3-0.6b", 596_049_920),
            ("t5-base", 222_903_552),
            ("t5-large", 737_668_096),
            ("bart-large", 406_291_456),
        ];
        for (name, expected) in published {
            let config = Shape::named(name).expect("it is in the table").config().expect("its config is read");
            // BART's bias of the logits is a buffer in transformers, not a parameter.
            let bias = if config.head_bias { config.vocab } else { 0 };
            assert_eq!(parameter_count(&config) - bias, expected, "{name}");
        }
    }
}
