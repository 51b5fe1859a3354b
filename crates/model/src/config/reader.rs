//! Looks keys of a `config.json` up.

use super::{Activation, Positions, RopeConfig, RopeScaling, yarn_attention_factor};
use crate::ModelError;
use serde_json::Value;

/// A `config.json`; "absent" and "null" are told apart only where transformers does.
pub(crate) struct Reader<'a> {
    json: &'a Value,
    /// (a key's other name, the key): see [`crate::families::FamilyTable::other_names`].
    other_names: &'static [(&'static str, &'static str)],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(json: &'a Value) -> Self {
        Self { json, other_names: &[] }
    }

    /// The same with keys that may stand under another name, which then wins, as in transformers.
    pub(crate) fn with_other_names(self, other_names: &'static [(&'static str, &'static str)]) -> Self {
        Self { other_names, ..self }
    }

    /// The value of a key, `None` if it is absent.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        let other = self.other_names.iter().find(|(_, named)| *named == key).and_then(|(other, _)| self.json.get(other));
        other.or_else(|| self.json.get(key))
    }

    /// A text, `None` if the key is absent or no text.
    pub(crate) fn text(&self, key: &str) -> Option<&'a str> {
        self.get(key).and_then(Value::as_str)
    }

    /// The first of `architectures`, or nothing.
    pub(crate) fn architecture(&self) -> &'a str {
        self.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str).unwrap_or("")
    }

    /// Weights that need another kernel than f32, f16 and bf16.
    pub(crate) fn refuse_quantised(&self) -> Result<(), ModelError> {
        if self.get("quantization_config").is_some_and(|value| !value.is_null()) {
            return Err(invalid(
                "quantization_config",
                "present".into(),
                "absent: take the f32, f16 or bf16 version of the model".into(),
            ));
        }
        Ok(())
    }

    /// A switch that this project only runs in one position.
    pub(crate) fn only(&self, key: &'static str, expected: bool) -> Result<(), ModelError> {
        match self.flag(key, expected)? == expected {
            true => Ok(()),
            false => Err(invalid(key, (!expected).to_string(), format!("{expected}, the only kind that runs here"))),
        }
    }

    /// A number that must not be given: what it asks for is not computed here.
    pub(crate) fn only_absent(&self, key: &'static str) -> Result<(), ModelError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) => Err(invalid(key, value.to_string(), "absent: it is not computed here".into())),
        }
    }

    /// An activation by its name in transformers.
    pub(crate) fn activation(&self, key: &'static str, default: Activation) -> Result<Activation, ModelError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_str().and_then(Activation::from_name).ok_or_else(|| {
                let name = value.as_str().map_or_else(|| value.to_string(), |name| format!("`{name}`"));
                invalid(key, name, "silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu or relu".into())
            }),
        }
    }

    /// The rotation of all layers.
    pub(crate) fn rotary(&self, max_positions: usize) -> Result<Positions, ModelError> {
        let is_said = |value: &&Value| value.as_object().is_some_and(|object| !object.is_empty());
        // transformers takes the old key where both are there, and the length beside the object before the one in it.
        let nested = ["rope_scaling", "rope_parameters"].iter().filter_map(|key| self.get(key)).find(is_said).unwrap_or(&Value::Null);
        if let Some(kind) = ["full_attention", "sliding_attention"].iter().find(|kind| nested.get(kind).is_some()) {
            return Err(invalid("rope_parameters", format!("given for each kind of layer (`{kind}`)"), "one rotation for all layers in this family".into()));
        }
        let original = self.number("original_max_position_embeddings")?;
        let rope = self.rope(nested, "rope_theta", 10_000.0, original, max_positions)?;
        Ok(Positions::Rotary { rope, local: None })
    }

    /// A rotation from its object (or null), with the key that holds the base beside the object in the old style, and the
    /// length before stretching where it stands beside the object.
    pub(crate) fn rope(
        &self,
        nested: &Value,
        theta_key: &'static str,
        theta: f64,
        original: Option<f64>,
        max_positions: usize,
    ) -> Result<RopeConfig, ModelError> {
        let rope = Reader::new(nested);
        let theta = match rope.number("rope_theta")? {
            Some(theta) => theta,
            None => self.number(theta_key)?.unwrap_or(theta),
        };
        for reader in [&rope, self] {
            if let Some(partial) = reader.number("partial_rotary_factor")?
                && partial != 1.0
            {
                return Err(invalid("partial_rotary_factor", partial.to_string(), "1 (the whole head is rotated)".into()));
            }
        }
        let kind = rope.get("rope_type").or_else(|| rope.get("type")).and_then(Value::as_str).unwrap_or("default");
        let needed = |key: &'static str| -> Result<f64, ModelError> {
            let value = rope.number(key)?.ok_or(ModelError::MissingKey { key })?;
            if value > 0.0 { Ok(value) } else { Err(invalid(key, value.to_string(), "a positive number".into())) }
        };
        let positive = |key: &'static str, default: f64| match rope.number(key)? {
            Some(value) if value > 0.0 => Ok(value),
            None => Ok(default),
            Some(value) => Err(invalid(key, value.to_string(), "a positive number".into())),
        };
        let original_max_positions = || match original {
            Some(original) => Ok::<f64, ModelError>(original),
            None => Ok(rope.number("original_max_position_embeddings")?.unwrap_or(max_positions as f64)),
        };
        let scaling = match kind {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: needed("factor")? },
            "dynamic" => {
                needed("factor")?;
                RopeScaling::Dynamic
            }
            "llama3" => RopeScaling::Llama3 {
                factor: needed("factor")?,
                low_freq_factor: needed("low_freq_factor")?,
                high_freq_factor: needed("high_freq_factor")?,
                original_max_positions: original_max_positions()?,
            },
            "yarn" => {
                // Null means the ratio of the lengths.
                let factor = match rope.get("factor") {
                    Some(Value::Null) => max_positions as f64 / original_max_positions()?,
                    _ => needed("factor")?,
                };
                let weights = (rope.number("mscale")?.filter(|&weight| weight != 0.0), rope.number("mscale_all_dim")?.filter(|&weight| weight != 0.0));
                let usual = match weights {
                    (Some(weight), Some(all)) => yarn_attention_factor(factor, weight) / yarn_attention_factor(factor, all),
                    _ => yarn_attention_factor(factor, 1.0),
                };
                RopeScaling::Yarn {
                    factor,
                    // To transformers 0 means the default.
                    beta_fast: if rope.number("beta_fast")? == Some(0.0) { 32.0 } else { positive("beta_fast", 32.0)? },
                    beta_slow: if rope.number("beta_slow")? == Some(0.0) { 1.0 } else { positive("beta_slow", 1.0)? },
                    truncate: rope.flag("truncate", true)?,
                    original_max_positions: original_max_positions()?,
                    attention_factor: positive("attention_factor", usual)?,
                }
            }
            other => {
                return Err(invalid("rope_type", format!("`{other}`"), "`default`, `linear`, `dynamic`, `llama3` or `yarn`".into()));
            }
        };
        Ok(RopeConfig { theta, scaling })
    }

    /// `layer_types` as windows, where the key is given.
    pub(crate) fn layer_types(&self, layers: usize, window: usize) -> Result<Option<Vec<usize>>, ModelError> {
        let Some(Value::Array(types)) = self.get("layer_types") else { return Ok(None) };
        if types.len() != layers {
            return Err(invalid("layer_types", format!("{} entries", types.len()), format!("{layers}, one per layer")));
        }
        let windows = types.iter().map(|kind| match kind.as_str() {
            Some("sliding_attention") => Ok(window),
            // The shorter name is of older files.
            Some("full_attention" | "attention") => Ok(0),
            _ => Err(invalid("layer_types", kind.to_string(), "`full_attention` or `sliding_attention`".into())),
        });
        windows.collect::<Result<_, _>>().map(Some)
    }

    /// A positive whole number; `default` where the key is absent. Null is not a size.
    pub(crate) fn size(&self, key: &'static str, default: usize) -> Result<usize, ModelError> {
        if self.get(key).is_none() { Ok(default) } else { self.required(key) }
    }

    pub(crate) fn required(&self, key: &'static str) -> Result<usize, ModelError> {
        self.optional(key)?.ok_or(ModelError::MissingKey { key })
    }

    /// A positive whole number, at most 2³¹ (shapes are multiplied later; nothing sensible is larger).
    pub(crate) fn optional(&self, key: &'static str) -> Result<Option<usize>, ModelError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_u64() {
                Some(number) if (1..=1 << 31).contains(&number) => Ok(Some(number as usize)),
                _ => Err(invalid(key, value.to_string(), "a positive whole number".into())),
            },
        }
    }

    pub(crate) fn number(&self, key: &'static str) -> Result<Option<f64>, ModelError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) if number.is_finite() => Ok(Some(number)),
                _ => Err(invalid(key, value.to_string(), "a number".into())),
            },
        }
    }

    pub(crate) fn flag(&self, key: &'static str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(invalid(key, other.to_string(), "true or false".into())),
        }
    }

    pub(crate) fn ids(&self, key: &'static str) -> Result<Vec<u32>, ModelError> {
        let id = |value: &Value| {
            value
                .as_u64()
                .and_then(|id| u32::try_from(id).ok())
                .ok_or_else(|| invalid(key, value.to_string(), "a token id or a list of them".into()))
        };
        match self.get(key) {
            None | Some(Value::Null) => Ok(Vec::new()),
            Some(Value::Array(ids)) => ids.iter().map(id).collect(),
            // Some conversions write -1 for "none".
            Some(value) if value.as_i64().is_some_and(|id| id < 0) => Ok(Vec::new()),
            Some(value) => Ok(vec![id(value)?]),
        }
    }
}


pub(crate) fn invalid(key: &'static str, got: String, expected: String) -> ModelError {
    ModelError::InvalidKey { key, got, expected }
}
