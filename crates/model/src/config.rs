//! Reads a Hugging Face `config.json` of the Llama family into one checked description.

use crate::ModelError;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The model types this project runs, as `config.json` names them.
pub const SUPPORTED_MODEL_TYPES: &[&str] = &["llama", "mistral", "qwen2", "qwen3"];

/// Which relative of Llama a model is: the arithmetic is the same, biases, norms and defaults differ.
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
}

impl Family {
    /// The name `config.json` uses (`model_type`).
    pub fn model_type(self) -> &'static str {
        match self {
            Family::Llama => "llama",
            Family::Mistral => "mistral",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
        }
    }
}

/// How rotary frequencies are stretched for long contexts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "type")]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3.1's rule: low frequencies divided, high ones kept, those between interpolated.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context of the model before it was stretched.
        original_max_positions: f64,
    },
}

/// Rotary embedding: base and scaling.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Stretching.
    pub scaling: RopeScaling,
}

impl RopeConfig {
    /// The angles per position, `head_dim / 2` values: pair (i, i + head_dim/2) turns by `position · inv_freq[i]`.
    pub fn inv_freq(&self, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let freq = self.theta.powf(-((2 * i) as f64) / head_dim as f64);
                self.scaling.stretch(freq) as f32
            })
            .collect()
    }
}

impl RopeScaling {
    fn stretch(&self, freq: f64) -> f64 {
        match *self {
            RopeScaling::Default => freq,
            RopeScaling::Linear { factor } => freq / factor,
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let wavelength = 2.0 * std::f64::consts::PI / freq;
                if wavelength > original_max_positions / low_freq_factor {
                    freq / factor
                } else if wavelength < original_max_positions / high_freq_factor {
                    freq
                } else {
                    let smooth = (original_max_positions / wavelength - low_freq_factor)
                        / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * freq / factor + smooth * freq
                }
            }
        }
    }
}

/// Everything about a Llama-family model that its tensors do not say.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Which relative of Llama.
    pub family: Family,
    /// Width of the residual stream (`hidden_size`).
    pub width: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head; even. `heads · head_dim` need not equal `width`.
    pub head_dim: usize,
    /// Inner width of the feed-forward block (`intermediate_size`).
    pub ffn_width: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Epsilon of every RMSNorm.
    pub norm_eps: f64,
    /// Rotary embedding.
    pub rope: RopeConfig,
    /// Whether the head is the embedding (no `lm_head.weight`).
    pub tied_head: bool,
    /// Whether query, key and value projections have a bias.
    pub attention_bias: bool,
    /// Whether the attention's output projection has a bias.
    pub output_bias: bool,
    /// Whether the three feed-forward projections have a bias.
    pub mlp_bias: bool,
    /// Whether query and key heads are normed (Qwen 3).
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
}

impl ModelConfig {
    /// Reads the text of a `config.json`, old style (`rope_theta`, `rope_scaling`) or new (`rope_parameters`).
    ///
    /// Keys that are left out get the defaults of their family in `transformers`.
    pub fn parse(text: &str) -> Result<Self, ModelError> {
        let json: Value = serde_json::from_str(text).map_err(|error| ModelError::ConfigNotJson(error.to_string()))?;
        Reader { json: &json }.config()
    }

    /// The sliding window of a layer; 0 = none.
    pub fn window(&self, layer: usize) -> usize {
        self.windows.get(layer).copied().unwrap_or(0)
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Writes a `config.json` that `transformers` and [`ModelConfig::parse`] read (new style).
    pub fn to_config_json(&self, dtype: &str) -> String {
        let mut rope = serde_json::json!({ "rope_theta": self.rope.theta, "rope_type": "default" });
        match self.rope.scaling {
            RopeScaling::Default => {}
            RopeScaling::Linear { factor } => {
                rope["rope_type"] = "linear".into();
                rope["factor"] = factor.into();
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                rope["rope_type"] = "llama3".into();
                rope["factor"] = factor.into();
                rope["low_freq_factor"] = low_freq_factor.into();
                rope["high_freq_factor"] = high_freq_factor.into();
                rope["original_max_position_embeddings"] = (original_max_positions as u64).into();
            }
        }
        let (model_type, class) = match self.family {
            Family::Llama => ("llama", "LlamaForCausalLM"),
            Family::Mistral => ("mistral", "MistralForCausalLM"),
            Family::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
            Family::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
        };
        let eos = match self.eos.as_slice() {
            [] => Value::Null,
            [one] => (*one).into(),
            many => many.to_vec().into(),
        };
        let mut config = serde_json::json!({
            "architectures": [class],
            "model_type": model_type,
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn_width,
            "vocab_size": self.vocab,
            "rms_norm_eps": self.norm_eps,
            "hidden_act": "silu",
            "rope_parameters": rope,
            "tie_word_embeddings": self.tied_head,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "max_position_embeddings": self.max_positions,
            "bos_token_id": self.bos,
            "eos_token_id": eos,
            "dtype": dtype,
        });
        if let Some(&window) = self.windows.iter().find(|&&window| window > 0) {
            config["sliding_window"] = window.into();
            config["use_sliding_window"] = true.into();
            config["layer_types"] = self
                .windows
                .iter()
                .map(|&window| if window > 0 { "sliding_attention" } else { "full_attention" })
                .collect::<Vec<_>>()
                .into();
        } else if self.family == Family::Mistral {
            config["sliding_window"] = Value::Null;
        }
        serde_json::to_string_pretty(&config).expect("a JSON value serialises")
    }
}

/// Looks keys up; "absent" and "null" are told apart only where transformers does.
struct Reader<'a> {
    json: &'a Value,
}

impl Reader<'_> {
    fn config(&self) -> Result<ModelConfig, ModelError> {
        let family = self.family()?;
        self.refuse_what_would_compute_wrongly()?;
        let width = self.required("hidden_size")?;
        let layers = self.required("num_hidden_layers")?;
        let heads = self.required("num_attention_heads")?;
        // transformers' defaults for an absent key; null means "as many as there are query heads".
        let absent_kv_heads = match family {
            Family::Llama => heads,
            Family::Mistral => 8,
            Family::Qwen2 | Family::Qwen3 => 32,
        };
        let kv_heads = match self.json.get("num_key_value_heads") {
            None if absent_kv_heads <= heads && heads.is_multiple_of(absent_kv_heads) => absent_kv_heads,
            None | Some(Value::Null) => heads,
            Some(_) => self.required("num_key_value_heads")?,
        };
        let head_dim = match self.optional("head_dim")? {
            Some(head_dim) => head_dim,
            None if family == Family::Qwen3 && self.json.get("head_dim").is_none() => 128,
            None if !width.is_multiple_of(heads) => {
                return Err(invalid("hidden_size", format!("{width}"), format!("a multiple of num_attention_heads ({heads})")));
            }
            None => width / heads,
        };
        if !heads.is_multiple_of(kv_heads) {
            return Err(invalid("num_key_value_heads", kv_heads.to_string(), format!("a divisor of num_attention_heads ({heads})")));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(invalid("head_dim", head_dim.to_string(), "an even number".into()));
        }
        let attention_bias = match family {
            Family::Qwen2 => true,
            Family::Mistral => false,
            Family::Llama | Family::Qwen3 => self.flag("attention_bias", false)?,
        };
        let max_positions = self.optional("max_position_embeddings")?.unwrap_or(match family {
            Family::Llama => 2048,
            Family::Mistral => 131_072,
            Family::Qwen2 | Family::Qwen3 => 32_768,
        });
        Ok(ModelConfig {
            family,
            width,
            layers,
            heads,
            kv_heads,
            head_dim,
            ffn_width: self.required("intermediate_size")?,
            vocab: self.required("vocab_size")?,
            norm_eps: self.number("rms_norm_eps")?.unwrap_or(1e-6),
            rope: self.rope(max_positions)?,
            tied_head: self.flag("tie_word_embeddings", false)?,
            attention_bias,
            output_bias: attention_bias && family != Family::Qwen2,
            mlp_bias: family == Family::Llama && self.flag("mlp_bias", false)?,
            qk_norm: family == Family::Qwen3,
            windows: self.windows(family, layers)?,
            max_positions,
            bos: self.ids("bos_token_id")?.first().copied(),
            eos: self.ids("eos_token_id")?,
        })
    }

    fn family(&self) -> Result<Family, ModelError> {
        match self.json.get("model_type").and_then(Value::as_str) {
            Some("llama") => Ok(Family::Llama),
            Some("mistral") => Ok(Family::Mistral),
            Some("qwen2") => Ok(Family::Qwen2),
            Some("qwen3") => Ok(Family::Qwen3),
            Some(other) => Err(ModelError::UnknownFamily {
                model_type: other.to_string(),
                supported: SUPPORTED_MODEL_TYPES.join(", "),
            }),
            None => Err(ModelError::MissingKey { key: "model_type" }),
        }
    }

    fn refuse_what_would_compute_wrongly(&self) -> Result<(), ModelError> {
        for key in ["hidden_act", "hidden_activation"] {
            if let Some(act) = self.json.get(key).and_then(Value::as_str)
                && !matches!(act, "silu" | "swish")
            {
                return Err(invalid(key, format!("`{act}`"), "`silu`, the only activation this family runs with here".into()));
            }
        }
        if self.json.get("quantization_config").is_some_and(|value| !value.is_null()) {
            return Err(invalid(
                "quantization_config",
                "present".into(),
                "absent: take the f32, f16 or bf16 version of the model".into(),
            ));
        }
        Ok(())
    }

    fn rope(&self, max_positions: usize) -> Result<RopeConfig, ModelError> {
        let empty = Value::Null;
        let nested = ["rope_parameters", "rope_scaling"]
            .iter()
            .filter_map(|key| self.json.get(key))
            .find(|value| value.is_object())
            .unwrap_or(&empty);
        let rope = Reader { json: nested };
        let theta = match rope.number("rope_theta")? {
            Some(theta) => theta,
            None => self.number("rope_theta")?.unwrap_or(10_000.0),
        };
        for reader in [&rope, self] {
            if let Some(partial) = reader.number("partial_rotary_factor")?
                && partial != 1.0
            {
                return Err(invalid("partial_rotary_factor", partial.to_string(), "1 (the whole head is rotated)".into()));
            }
        }
        let kind = nested.get("rope_type").or_else(|| nested.get("type")).and_then(Value::as_str).unwrap_or("default");
        let needed = |key: &'static str| -> Result<f64, ModelError> {
            let value = rope.number(key)?.ok_or(ModelError::MissingKey { key })?;
            if value > 0.0 { Ok(value) } else { Err(invalid(key, value.to_string(), "a positive number".into())) }
        };
        let scaling = match kind {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: needed("factor")? },
            "llama3" => RopeScaling::Llama3 {
                factor: needed("factor")?,
                low_freq_factor: needed("low_freq_factor")?,
                high_freq_factor: needed("high_freq_factor")?,
                original_max_positions: match rope.number("original_max_position_embeddings")? {
                    Some(original) => original,
                    None => self.number("original_max_position_embeddings")?.unwrap_or(max_positions as f64),
                },
            },
            other => {
                return Err(invalid("rope_type", format!("`{other}`"), "`default`, `linear` or `llama3`".into()));
            }
        };
        Ok(RopeConfig { theta, scaling })
    }

    /// transformers' rules: Mistral slides everywhere (4096 when the key is absent), Qwen only when told to and only
    /// from `max_window_layers` on, and `layer_types` overrides.
    fn windows(&self, family: Family, layers: usize) -> Result<Vec<usize>, ModelError> {
        let window = match (family, self.json.get("sliding_window")) {
            (Family::Llama, _) | (_, Some(Value::Null)) => 0,
            (Family::Mistral, None) => 4096,
            (Family::Mistral, Some(_)) => self.required("sliding_window")?,
            (Family::Qwen2 | Family::Qwen3, window) => {
                if !self.flag("use_sliding_window", false)? {
                    0
                } else if window.is_none() {
                    4096
                } else {
                    self.required("sliding_window")?
                }
            }
        };
        if window == 0 {
            return Ok(vec![0; layers]);
        }
        if let Some(Value::Array(types)) = self.json.get("layer_types") {
            if types.len() != layers {
                return Err(invalid("layer_types", format!("{} entries", types.len()), format!("{layers}, one per layer")));
            }
            return types
                .iter()
                .map(|kind| match kind.as_str() {
                    Some("sliding_attention") => Ok(window),
                    Some("full_attention") => Ok(0),
                    _ => Err(invalid("layer_types", kind.to_string(), "`full_attention` or `sliding_attention`".into())),
                })
                .collect();
        }
        let first_sliding = match family {
            Family::Qwen2 | Family::Qwen3 => self.number("max_window_layers")?.unwrap_or(28.0) as usize,
            Family::Llama | Family::Mistral => 0,
        };
        Ok((0..layers).map(|layer| if layer >= first_sliding { window } else { 0 }).collect())
    }

    fn required(&self, key: &'static str) -> Result<usize, ModelError> {
        self.optional(key)?.ok_or(ModelError::MissingKey { key })
    }

    /// A positive whole number, at most 2³¹ (shapes are multiplied later; nothing sensible is larger).
    fn optional(&self, key: &'static str) -> Result<Option<usize>, ModelError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) if (1..=1 << 31).contains(&number) => Ok(Some(number as usize)),
                _ => Err(invalid(key, value.to_string(), "a positive whole number".into())),
            },
        }
    }

    fn number(&self, key: &'static str) -> Result<Option<f64>, ModelError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(Some(number)),
                _ => Err(invalid(key, value.to_string(), "a number".into())),
            },
        }
    }

    fn flag(&self, key: &'static str, default: bool) -> Result<bool, ModelError> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(invalid(key, other.to_string(), "true or false".into())),
        }
    }

    fn ids(&self, key: &'static str) -> Result<Vec<u32>, ModelError> {
        let id = |value: &Value| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| invalid(key, value.to_string(), "a token id or a list of them".into()))
        };
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            // Some conversions write -1 for "none".
            Some(value) if value.as_i64().is_some_and(|id| id < 0) => Ok(Vec::new()),
            Some(value) => Ok(vec![id(value)?]),
        }
    }
}

fn invalid(key: &'static str, got: String, expected: String) -> ModelError {
    ModelError::InvalidKey { key, got, expected }
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
        assert_eq!((llama.norm_eps, llama.rope.theta, llama.tied_head), (1e-6, 10_000.0, false));
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
        assert_eq!(with(serde_json::json!({"rope_scaling": null})).unwrap().rope.scaling, RopeScaling::Default);
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
        ] {
            let config = with(changes).unwrap();
            assert_eq!(ModelConfig::parse(&config.to_config_json("float16")).unwrap(), config);
        }
    }

    #[test]
    fn what_cannot_be_run_is_refused_in_one_sentence() {
        let message = |changes| with(changes).unwrap_err().to_string();
        let unknown = message(serde_json::json!({"model_type": "gpt2"}));
        assert_eq!(
            unknown,
            "the model family `gpt2` is not supported: choose a model whose config.json says model_type llama, mistral, qwen2, qwen3"
        );
        assert!(message(serde_json::json!({"model_type": null})).contains("model_type"));
        assert!(message(serde_json::json!({"hidden_act": "gelu"})).contains("`gelu`"));
        assert!(message(serde_json::json!({"rope_scaling": {"type": "yarn", "factor": 4.0}})).contains("`yarn`"));
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
