//! What a model computes: sizes and switches of its stacks, read from a Hugging Face `config.json`.
//!
//! One [`ModelConfig`] describes one stack of layers. Which names the parameters have, and how `config.json` becomes
//! this description, is said once per family in [`crate::families`]; the engine has one transformer that obeys it.

mod reader;
mod rope;

pub(crate) use reader::{Reader, invalid};
pub(crate) use rope::yarn_attention_factor;
pub use rope::{RopeConfig, RopeScaling};

use crate::families::{FamilyTable, StackNames};
use crate::{ModelError, families};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The families; each has a table in [`crate::families`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama 1 to 3, TinyLlama, SmolLM and the like.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen 2 and 2.5: biases on query, key and value.
    Qwen2,
    /// Qwen 3: an RMSNorm on each query and key head.
    Qwen3,
    /// Gemma 3, text only: norms on both sides of a sub-layer, local and global layers.
    Gemma3,
    /// GPT-2: LayerNorm, learned positions, one projection for query, key and value.
    Gpt2,
    /// BERT: an encoder, normed behind each residual sum.
    Bert,
    /// BART: encoder and decoder, normed behind each residual sum.
    Bart,
    /// T5 v1.0, v1.1 and FLAN: encoder and decoder, positions as a bias on the scores.
    T5,
}

impl Family {
    /// The name `config.json` uses (`model_type`).
    pub fn model_type(self) -> &'static str {
        self.table().model_type
    }

    /// Names of its parameters, and how its configs are read.
    pub fn table(self) -> &'static FamilyTable {
        families::table(self)
    }
}

/// How rows are normed; the weight w and bias b have one element per column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// `x / sqrt(mean x² + ε) · w`.
    #[default]
    Rms,
    /// `x / sqrt(mean x² + ε) · (1 + w)` (Gemma).
    RmsOnePlus,
    /// `(x − mean x) / sqrt(var x + ε) · w + b`.
    Layer,
}

/// What the feed-forward block applies between its two products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x · sigmoid(x)`.
    #[default]
    Silu,
    /// `x · Φ(x)`, Φ the normal distribution function.
    Gelu,
    /// `x / 2 · (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
    GeluTanh,
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
    /// `max(x, 0)`.
    Relu,
    /// `tanh x` (BERT's pooler).
    Tanh,
}

impl Activation {
    /// By its name in `transformers` (`ACT2FN`).
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Activation::Silu,
            "gelu" | "gelu_python" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" | "gelu_python_tanh" => Activation::GeluTanh,
            "quick_gelu" => Activation::QuickGelu,
            "relu" => Activation::Relu,
            "tanh" => Activation::Tanh,
            _ => return None,
        })
    }
}

/// How a stack knows where a token stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum Positions {
    /// Queries and keys are rotated.
    Rotary {
        /// The rotation, in layers without a window where `local` is given.
        rope: RopeConfig,
        /// That of the layers with a sliding window, where it is another (Gemma 3).
        local: Option<RopeConfig>,
    },
    /// A table of `max_positions` rows is added to the embedding.
    Learned {
        /// Rows of the table before the one of position 0 (BART: 2).
        offset: usize,
    },
    /// A bias on the scores by the distance of key and query, the same in all layers (T5).
    Relative {
        /// Rows of the bias table.
        buckets: usize,
        /// From this distance on all share the last bucket.
        max_distance: usize,
    },
    /// It does not.
    #[default]
    None,
}

/// What stands on the last layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum HeadKind {
    /// A linear layer to the vocabulary.
    #[default]
    Language,
    /// BERT's: linear layer, activation and norm before the one to the vocabulary; a token predicts itself.
    Masked,
    /// BERT's: pooled first token, then a linear layer to the labels.
    Classifier {
        /// Number of labels (1: regression).
        labels: usize,
        /// Whether the first token goes through the pooler (a linear layer and tanh) before.
        pooled: bool,
    },
    /// None: the model gives hidden states.
    None,
}

/// Everything about a stack of layers that its tensors do not say, with what surrounds it.
///
/// A model of one stack is one of these. Of an encoder-decoder model it is the decoder, and `encoder` describes the
/// other stack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Whose names and rules.
    pub family: Family,
    /// Width of the residual stream (`hidden_size`).
    pub width: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even where heads are rotated. `heads · head_dim` need not equal `width`.
    pub head_dim: usize,
    /// Inner width of the feed-forward block (`intermediate_size`).
    pub ffn_width: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// How rows are normed.
    pub norm: NormKind,
    /// Epsilon of every norm.
    pub norm_eps: f64,
    /// The feed-forward block's activation.
    pub activation: Activation,
    /// Whether the activation multiplies a second projection (SwiGLU, GeGLU).
    pub gated: bool,
    /// How it knows positions.
    pub positions: Positions,
    /// Whether a token sees only those before it.
    pub causal: bool,
    /// Multiplies q·k; 1/√head_dim if not given.
    pub attention_scale: Option<f64>,
    /// Whether layer i (from 0) divides its scores by i + 1 besides (GPT-2).
    pub scale_by_layer: bool,
    /// Multiplies the embedding (rounded to f32).
    pub embedding_scale: f64,
    /// Multiplies what enters the head (T5).
    pub head_scale: f64,
    /// Bounds the logits: z becomes `cap · tanh(z / cap)` (Gemma's `final_logit_softcapping`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_cap: Option<f64>,
    /// Rows of the table of token types; 0 = none (BERT).
    pub token_types: usize,
    /// What stands on the last layer.
    pub head: HeadKind,
    /// Whether the head is the embedding (no matrix of its own).
    pub tied_head: bool,
    /// Whether the logits get a bias.
    pub head_bias: bool,
    /// Whether the stack has an embedding of its own, where the model's stacks otherwise share one (BART, untied).
    pub own_embedding: bool,
    /// Whether query, key and value projections have a bias.
    pub attention_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward projections have a bias.
    pub mlp_bias: bool,
    /// Whether query and key heads are normed (Qwen 3, Gemma 3).
    pub qk_norm: bool,
    /// Sliding window per layer: a token sees the last so many tokens, itself included; 0 = all. Use
    /// [`ModelConfig::window`].
    pub windows: Vec<usize>,
    /// The longest context the model was made for.
    pub max_positions: usize,
    /// Token that starts a text, where the model has one.
    pub bos: Option<u32>,
    /// Tokens that end a text; may be empty.
    pub eos: Vec<u32>,
    /// Token the decoder starts from, where the model has an encoder.
    pub decoder_start: Option<u32>,
    /// Token that every answer begins with, whatever the decoder says (BART's `forced_bos_token_id`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced_first: Option<u32>,
    /// Token that an answer as long as it may get ends with (BART's `forced_eos_token_id`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forced_last: Option<u32>,
    /// The encoder, of an encoder-decoder model.
    pub encoder: Option<Box<ModelConfig>>,
}

impl ModelConfig {
    /// A Llama of no size, to be completed with `..`: RMSNorm, SiLU gate, causal, no biases, untied head.
    pub fn blank(family: Family) -> Self {
        Self {
            family,
            width: 0,
            layers: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 0,
            ffn_width: 0,
            vocab: 0,
            norm: NormKind::Rms,
            norm_eps: 1e-6,
            activation: Activation::Silu,
            gated: true,
            positions: Positions::None,
            causal: true,
            attention_scale: None,
            scale_by_layer: false,
            embedding_scale: 1.0,
            head_scale: 1.0,
            logit_cap: None,
            token_types: 0,
            head: HeadKind::Language,
            tied_head: false,
            head_bias: false,
            own_embedding: false,
            attention_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: false,
            windows: Vec::new(),
            max_positions: 0,
            bos: None,
            eos: Vec::new(),
            decoder_start: None,
            forced_first: None,
            forced_last: None,
            encoder: None,
        }
    }

    /// Reads the text of a `config.json`, old style (`rope_theta`, `rope_scaling`) or new (`rope_parameters`).
    ///
    /// Keys that are left out get the defaults of their family in `transformers`.
    pub fn parse(text: &str) -> Result<Self, ModelError> {
        let json: Value = serde_json::from_str(text).map_err(|error| ModelError::ConfigNotJson(error.to_string()))?;
        let model_type = json.get("model_type").and_then(Value::as_str).ok_or(ModelError::MissingKey { key: "model_type" })?;
        let table = families::by_model_type(model_type).ok_or_else(|| ModelError::UnknownFamily {
            model_type: model_type.to_string(),
            supported: families::SUPPORTED_MODEL_TYPES.join(", "),
        })?;
        let reader = Reader::new(&json).with_other_names(table.other_names);
        reader.refuse_quantised()?;
        reader.only_absent("per_layer_config")?;
        let mut config = (table.read)(table.family, &reader)?;
        config.check()?;
        config.check_class(reader.architecture())?;
        Ok(config)
    }

    /// With what a `generation_config.json` says of an encoder-decoder model's answers: the forced tokens, which stand
    /// there alone once a folder has that file, as in `transformers`. Other models stay as they are.
    ///
    /// # Errors
    /// If the text is not JSON, or a token is none.
    pub fn with_generation_config(self, text: &str) -> Result<Self, ModelError> {
        if self.encoder.is_none() {
            return Ok(self);
        }
        let json: Value = serde_json::from_str(text).map_err(|error| ModelError::GenerationConfigNotJson(error.to_string()))?;
        let id = |key| Ok::<_, ModelError>(Reader::new(&json).ids(key)?.first().copied());
        Ok(Self { forced_first: id("forced_bos_token_id")?, forced_last: id("forced_eos_token_id")?, ..self })
    }

    /// Whether it is one causal stack: what the swarm trains and what answers prompts (the others are trained on one computer).
    pub fn is_decoder_only(&self) -> bool {
        self.encoder.is_none() && self.causal
    }

    /// The names of this stack's parameters.
    pub fn names(&self) -> &'static StackNames {
        (self.family.table().stack)(self)
    }

    /// The sliding window of a layer; 0 = none.
    pub fn window(&self, layer: usize) -> usize {
        self.windows.get(layer).copied().unwrap_or(0)
    }

    /// What multiplies q·k in a layer (from 0).
    pub fn score_scale(&self, layer: usize) -> f64 {
        // What multiplies rotated queries and keys multiplies their product twice.
        let turned = self.rope(layer).map_or(1.0, |rope| rope.attention_factor().powi(2));
        let scale = self.attention_scale.unwrap_or_else(|| 1.0 / (self.head_dim as f64).sqrt()) * turned;
        if self.scale_by_layer { scale / (layer + 1) as f64 } else { scale }
    }

    /// The rotation of a layer's queries and keys, where the stack has one.
    pub fn rope(&self, layer: usize) -> Option<&RopeConfig> {
        match &self.positions {
            Positions::Rotary { local: Some(local), .. } if self.window(layer) > 0 => Some(local),
            Positions::Rotary { rope, .. } => Some(rope),
            _ => None,
        }
    }

    /// The most tokens a sequence may have, where a table says so (learned positions) or a rotation that is stretched by the
    /// sequence's own length beyond it.
    pub fn position_limit(&self) -> Option<usize> {
        let is_limited = match &self.positions {
            Positions::Learned { .. } => true,
            Positions::Rotary { rope, local } => [Some(rope), local.as_ref()].into_iter().flatten().any(|rope| rope.scaling == RopeScaling::Dynamic),
            Positions::Relative { .. } | Positions::None => false,
        };
        is_limited.then_some(self.max_positions)
    }

    /// Number of classes the head tells apart.
    pub fn classes(&self) -> usize {
        match self.head {
            HeadKind::Classifier { labels, .. } => labels,
            _ => self.vocab,
        }
    }

    /// The same model with a classifier (or, of one label, a regression) in place of its head; `has` says whether the file
    /// holds a tensor: with the family's pooler where it does, on the first token as it is where not.
    ///
    /// # Errors
    /// If the family has no such head.
    pub fn with_classifier(self, labels: usize, has: impl Fn(&str) -> bool) -> Result<Self, ModelError> {
        let Some([pooler, _]) = self.family.table().head.classifier else {
            return Err(ModelError::NoClassifier { model_type: self.family.model_type() });
        };
        let pooled = has(&format!("{pooler}.weight"));
        Ok(Self { head: HeadKind::Classifier { labels, pooled }, ..self })
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Refuses a class of `transformers` whose head is none that stands here; a base class has no head, unless it is the embedding.
    fn check_class(&mut self, class: &str) -> Result<(), ModelError> {
        if self.head != HeadKind::Language || class.is_empty() {
            return Ok(());
        }
        let heads: &[&str] = if self.encoder.is_some() { &["ForConditionalGeneration", "WithLMHeadModel"] } else { &["ForCausalLM", "LMHeadModel", "DoubleHeadsModel"] };
        if heads.iter().any(|end| class.ends_with(end)) {
            return Ok(());
        }
        let is_base = class.ends_with("Model") && !class.ends_with("EncoderModel");
        if !is_base {
            let expected = format!("a class whose name ends in {} or in Model: other heads, and parts of a model, are not computed in this family", heads[0]);
            return Err(invalid("architectures", format!("`{class}`"), expected));
        }
        if !self.tied_head {
            self.head = HeadKind::None;
        }
        Ok(())
    }

    /// What no stack can be computed with.
    fn check(&self) -> Result<(), ModelError> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of num_attention_heads ({})", self.heads);
            return Err(invalid("num_key_value_heads", self.kv_heads.to_string(), expected));
        }
        if matches!(self.positions, Positions::Rotary { .. }) && !self.head_dim.is_multiple_of(2) {
            return Err(invalid("head_dim", self.head_dim.to_string(), "an even number".into()));
        }
        self.encoder.as_deref().map_or(Ok(()), Self::check)
    }

    /// Writes a `config.json` that `transformers` and [`ModelConfig::parse`] read (new style).
    ///
    /// # Panics
    /// For a family that is not one of Llama's relatives: no weights of those are made here.
    pub fn to_config_json(&self, dtype: &str) -> String {
        families::llama::to_config_json(self, dtype)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Value {
        serde_json::json!({
            "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8,
            "intermediate_size": 160, "vocab_size": 320
        })
    }

    fn with(changes: Value) -> Result<ModelConfig, ModelError> {
        let mut json = base();
        for (key, value) in changes.as_object().unwrap() {
            json[key] = value.clone();
        }
        ModelConfig::parse(&json.to_string())
    }

    #[test]
    fn missing_keys_get_the_defaults_of_their_family() {
        let llama = with(serde_json::json!({})).unwrap();
        assert_eq!((llama.kv_heads, llama.head_dim, llama.max_positions), (8, 8, 2048));
        assert_eq!((llama.norm_eps, llama.rope(0).unwrap().theta, llama.tied_head), (1e-6, 10_000.0, false));
        assert!(!llama.attention_bias && llama.eos.is_empty() && llama.bos.is_none());

        let qwen2 = with(serde_json::json!({"model_type": "qwen2", "sliding_window": 4})).unwrap();
        assert!(qwen2.attention_bias && !qwen2.output_bias && !qwen2.qk_norm);
        assert_eq!(qwen2.windows, vec![0, 0], "use_sliding_window is off by default");

        let qwen3 = with(serde_json::json!({"model_type": "qwen3"})).unwrap();
        assert!(qwen3.qk_norm);
        assert_eq!(qwen3.head_dim, 128);

        let mistral = with(serde_json::json!({"model_type": "mistral"})).unwrap();
        assert_eq!(mistral.windows, vec![4096, 4096]);
    }

    #[test]
    fn old_and_new_style_rope_say_the_same() {
        let scaling = serde_json::json!({
            "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32
        });
        let old = with(serde_json::json!({"rope_theta": 500000.0, "rope_scaling": scaling, "torch_dtype": "float16"})).unwrap();
        let mut new_rope = scaling.clone();
        new_rope["rope_type"] = "llama3".into();
        new_rope["rope_theta"] = 500000.0.into();
        let new = with(serde_json::json!({"rope_parameters": new_rope, "dtype": "float16"})).unwrap();
        assert_eq!(old, new);
        assert_eq!(with(serde_json::json!({"rope_scaling": null})).unwrap().rope(0).unwrap().scaling, RopeScaling::Default);
    }

    #[test]
    fn llama3_scaling_keeps_high_and_divides_low_frequencies() {
        let rope = RopeConfig {
            theta: 500_000.0,
            scaling: RopeScaling::Llama3 {
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_positions: 32.0,
            },
        };
        let plain = RopeConfig { theta: 500_000.0, scaling: RopeScaling::Default }.inv_freq(16);
        let scaled = rope.inv_freq(16);
        assert_eq!(scaled[0], plain[0]);
        assert!((scaled[7] - plain[7] / 8.0).abs() < 1e-12);
    }

    #[test]
    fn end_tokens_may_be_a_number_a_list_or_nothing() {
        assert_eq!(with(serde_json::json!({"eos_token_id": 2})).unwrap().eos, vec![2]);
        assert_eq!(with(serde_json::json!({"eos_token_id": [2, 7], "bos_token_id": 1})).unwrap().eos, vec![2, 7]);
        assert!(with(serde_json::json!({"eos_token_id": null})).unwrap().eos.is_empty());
    }

    #[test]
    fn qwen_windows_start_at_max_window_layers() {
        let config = with(serde_json::json!({
            "model_type": "qwen2", "use_sliding_window": true, "sliding_window": 16, "max_window_layers": 1
        }))
        .unwrap();
        assert_eq!(config.windows, vec![0, 16]);
    }

    #[test]
    fn a_written_config_reads_back_the_same() {
        for changes in [
            serde_json::json!({"tie_word_embeddings": true, "eos_token_id": 0, "bos_token_id": 0}),
            serde_json::json!({"model_type": "mistral", "sliding_window": 12, "eos_token_id": [1, 2]}),
            serde_json::json!({"model_type": "mistral", "sliding_window": null}),
            serde_json::json!({"model_type": "qwen3", "head_dim": 16, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}}),
            serde_json::json!({"model_type": "qwen2", "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 16.0}}),
            serde_json::json!({"rope_scaling": {"rope_type": "yarn", "factor": 8.0, "mscale": 0.7, "mscale_all_dim": 1.5, "truncate": false}}),
        ] {
            let config = with(changes).unwrap();
            assert_eq!(ModelConfig::parse(&config.to_config_json("float16")).unwrap(), config);
        }
    }

    #[test]
    fn what_cannot_be_run_is_refused_in_one_sentence() {
        let message = |changes| with(changes).unwrap_err().to_string();
        let unknown = message(serde_json::json!({"model_type": "mamba"}));
        assert_eq!(
            unknown,
            "the model family `mamba` is not supported: choose a model whose config.json says model_type llama, mistral, qwen2, qwen3, \
             gemma3_text, gpt2, bert, bart, t5"
        );
        assert!(message(serde_json::json!({"model_type": null})).contains("model_type"));
        assert!(message(serde_json::json!({"hidden_act": "softplus"})).contains("`softplus`"));
        assert!(message(serde_json::json!({"rope_scaling": {"type": "longrope", "factor": 4.0}})).contains("`longrope`"));
        assert!(message(serde_json::json!({"rope_scaling": {"type": "yarn"}})).contains("`factor`"));
        assert!(message(serde_json::json!({"num_key_value_heads": 3})).contains("divisor"));
        assert!(message(serde_json::json!({"hidden_size": -1})).contains("hidden_size"));
        assert!(message(serde_json::json!({"hidden_size": null})).contains("hidden_size"));
        assert!(message(serde_json::json!({"head_dim": 7})).contains("even"));
        assert!(message(serde_json::json!({"partial_rotary_factor": 0.5})).contains("partial_rotary_factor"));
        assert!(message(serde_json::json!({"quantization_config": {"bits": 4}})).contains("quantization_config"));
        assert!(ModelConfig::parse("{").unwrap_err().to_string().contains("not valid JSON"));
        assert!(ModelConfig::parse("[]").unwrap_err().to_string().contains("model_type"));
    }
}
