//! Which parameters a model has: names and shapes, layer by layer.

use crate::{ModelConfig, ModelError, TensorSource};
use std::ops::Range;

/// Name of the embedding; also the head where it is tied.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// Name of the norm behind the last layer.
pub const FINAL_NORM: &str = "model.norm.weight";
/// Name of an untied head.
pub const HEAD: &str = "lm_head.weight";

/// A parameter's full name and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// As in the weight file.
    pub name: String,
    /// Sizes, outermost first; a linear layer is `[out, in]`.
    pub shape: Vec<usize>,
}

impl Parameter {
    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The full name of a layer's parameter, from its name within the layer.
pub fn layer_parameter(layer: usize, name: &str) -> String {
    format!("model.layers.{layer}.{name}")
}

/// Names within a layer, and shapes, in the order they are computed with.
///
/// With the sizes of a side network in place of the backbone's, these are the names of its layers too.
pub fn layer_shapes(config: &ModelConfig) -> Vec<(&'static str, Vec<usize>)> {
    let (width, query, kv, ffn) = (config.width, config.query_width(), config.kv_width(), config.ffn_width);
    let mut table = vec![("input_layernorm.weight", vec![width])];
    table.push(("self_attn.q_proj.weight", vec![query, width]));
    table.push(("self_attn.k_proj.weight", vec![kv, width]));
    table.push(("self_attn.v_proj.weight", vec![kv, width]));
    if config.attention_bias {
        table.push(("self_attn.q_proj.bias", vec![query]));
        table.push(("self_attn.k_proj.bias", vec![kv]));
        table.push(("self_attn.v_proj.bias", vec![kv]));
    }
    if config.qk_norm {
        table.push(("self_attn.q_norm.weight", vec![config.head_dim]));
        table.push(("self_attn.k_norm.weight", vec![config.head_dim]));
    }
    table.push(("self_attn.o_proj.weight", vec![width, query]));
    if config.output_bias {
        table.push(("self_attn.o_proj.bias", vec![width]));
    }
    table.push(("post_attention_layernorm.weight", vec![width]));
    table.push(("mlp.gate_proj.weight", vec![ffn, width]));
    table.push(("mlp.up_proj.weight", vec![ffn, width]));
    table.push(("mlp.down_proj.weight", vec![width, ffn]));
    if config.mlp_bias {
        table.push(("mlp.gate_proj.bias", vec![ffn]));
        table.push(("mlp.up_proj.bias", vec![ffn]));
        table.push(("mlp.down_proj.bias", vec![width]));
    }
    table
}

/// The parameters of layer `layer` (from 0).
pub fn layer(config: &ModelConfig, layer: usize) -> Vec<Parameter> {
    let full = |(name, shape)| Parameter { name: layer_parameter(layer, name), shape };
    layer_shapes(config).into_iter().map(full).collect()
}

/// The embedding: `[vocab, width]`.
pub fn embedding(config: &ModelConfig) -> Parameter {
    Parameter { name: EMBEDDING.to_string(), shape: vec![config.vocab, config.width] }
}

/// The norm behind the last layer: `[width]`.
pub fn final_norm(config: &ModelConfig) -> Parameter {
    Parameter { name: FINAL_NORM.to_string(), shape: vec![config.width] }
}

/// The head: `[vocab, width]`; a tied head is the embedding.
pub fn head(config: &ModelConfig) -> Parameter {
    let name = if config.tied_head { EMBEDDING } else { HEAD };
    Parameter { name: name.to_string(), shape: vec![config.vocab, config.width] }
}

/// Which parts of a model somebody holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Layers, from 0.
    pub layers: Range<usize>,
    /// Whether the embedding is among them.
    pub embedding: bool,
    /// Whether the final norm and the head are among them.
    pub head: bool,
}

impl Parts {
    /// The whole model.
    pub fn all(config: &ModelConfig) -> Self {
        Self { layers: 0..config.layers, embedding: true, head: true }
    }

    /// What a pipeline stage of these layers needs: the first has the embedding, the last norm and head.
    pub fn stage(config: &ModelConfig, layers: Range<usize>) -> Self {
        Self { embedding: layers.start == 0, head: layers.end == config.layers, layers }
    }

    /// What the train phase needs of the backbone: final norm and head only.
    pub fn head_only() -> Self {
        Self { layers: 0..0, embedding: false, head: true }
    }

    /// The parameters, in the order they are computed with; a tied embedding is named once.
    pub fn parameters(&self, config: &ModelConfig) -> Vec<Parameter> {
        let mut list = Vec::new();
        if self.embedding {
            list.push(embedding(config));
        }
        for index in self.layers.clone() {
            list.extend(layer(config, index));
        }
        if self.head {
            list.push(final_norm(config));
            if !(config.tied_head && self.embedding) {
                list.push(head(config));
            }
        }
        list
    }
}

/// Number of values of the whole model.
pub fn parameter_count(config: &ModelConfig) -> usize {
    Parts::all(config).parameters(config).iter().map(Parameter::elements).sum()
}

/// Checks that every parameter of these parts is there, with its shape and a number format that can be computed with.
pub fn check(config: &ModelConfig, parts: &Parts, source: &dyn TensorSource) -> Result<(), ModelError> {
    for Parameter { name, shape } in parts.parameters(config) {
        match source.entry(&name) {
            None => return Err(ModelError::MissingTensor { name }),
            Some(entry) => entry.check_weight(&name, &shape)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(model_type: &str) -> ModelConfig {
        let json = serde_json::json!({
            "model_type": model_type, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 96, "vocab_size": 320
        });
        ModelConfig::parse(&json.to_string()).unwrap()
    }

    #[test]
    fn families_differ_in_biases_and_head_norms() {
        let names = |model_type| layer(&config(model_type), 1).into_iter().map(|p| p.name).collect::<Vec<_>>();
        assert_eq!(names("llama").len(), 9);
        assert_eq!(names("llama"), names("mistral"));
        assert!(names("qwen2").contains(&"model.layers.1.self_attn.k_proj.bias".to_string()));
        assert!(!names("qwen2").contains(&"model.layers.1.self_attn.o_proj.bias".to_string()));
        assert!(names("qwen3").contains(&"model.layers.1.self_attn.q_norm.weight".to_string()));
    }

    #[test]
    fn stages_cover_the_model_once() {
        let config = config("llama");
        let mut staged = Parts::stage(&config, 0..1).parameters(&config);
        staged.extend(Parts::stage(&config, 1..2).parameters(&config));
        assert_eq!(staged, Parts::all(&config).parameters(&config));
        assert_eq!(staged.last().unwrap().name, HEAD);
    }

    #[test]
    fn a_tied_head_is_the_embedding() {
        let mut config = config("llama");
        config.tied_head = true;
        assert_eq!(head(&config).name, EMBEDDING);
        let all = Parts::all(&config).parameters(&config);
        assert_eq!(all.iter().filter(|p| p.name == EMBEDDING).count(), 1);
        assert_eq!(Parts::head_only().parameters(&config).len(), 2);
    }
}
