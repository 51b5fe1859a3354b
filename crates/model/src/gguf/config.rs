//! From a GGUF file's metadata to the `config.json` of the same model.

use super::header::{GgufHeader, Value as Entry};
use crate::{ModelError, RopeScaling, SUPPORTED_MODEL_TYPES};
use serde_json::{Value, json};

/// Wave lengths at which Llama 3's rule changes are the same for `(original, low, high)` and any multiple of them; all
/// published models have 1 as the lower factor.
const LLAMA3_LOW_FREQ_FACTOR: f64 = 1.0;
/// Factors are stored as f32.
const FACTOR_TOLERANCE: f64 = 1e-4;

/// The architectures of GGUF that can be read, and what `config.json` calls them.
const ARCHITECTURES: &[(&str, &str)] = &[("llama", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3"), ("gemma3", "gemma3_text")];
/// Every sixth layer of Gemma 3 sees everything.
const GEMMA3_PATTERN: usize = 6;

/// The text of a `config.json`; `bytes` is the whole file.
pub(super) fn config_json(header: &GgufHeader, bytes: &[u8]) -> Result<String, ModelError> {
    let metadata = Metadata { header, architecture: architecture(header)?.0 };
    let config = metadata.config(bytes)?;
    Ok(serde_json::to_string_pretty(&config).expect("a JSON value serialises"))
}

/// (name in GGUF, name in `config.json`).
pub(super) fn architecture(header: &GgufHeader) -> Result<(&'static str, &'static str), ModelError> {
    let said = header.text("general.architecture").ok_or_else(|| header.bad("it does not say its general.architecture"))?;
    ARCHITECTURES.iter().find(|(name, _)| *name == said).copied().ok_or_else(|| ModelError::UnknownFamily {
        model_type: said.to_string(),
        supported: SUPPORTED_MODEL_TYPES.join(", "),
    })
}

/// Looks up `<architecture>.<key>`.
struct Metadata<'a> {
    header: &'a GgufHeader,
    architecture: &'static str,
}

impl Metadata<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn natural(&self, key: &str) -> Result<u64, ModelError> {
        let key = self.key(key);
        self.header.natural(&key).ok_or_else(|| self.header.bad(format!("it does not say its {key}")))
    }

    /// A number that may be given once or once per layer (all the same, else the model is not one of ours).
    fn natural_of_layers(&self, key: &str) -> Result<Option<u64>, ModelError> {
        let full = self.key(key);
        match self.header.metadata.get(&full) {
            None => Ok(None),
            Some(Entry::Numbers(numbers)) => match numbers.split_first() {
                Some((first, rest)) if rest.iter().all(|other| other == first) => Ok(Some(*first as u64)),
                _ => Err(self.header.bad(format!("its {full} differs between layers"))),
            },
            Some(_) => self.natural(key).map(Some),
        }
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.header.number(&self.key(key))
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.header.tensors.contains_key(name)
    }

    fn config(&self, bytes: &[u8]) -> Result<Value, ModelError> {
        let (_, model_type) = architecture(self.header)?;
        let gemma = model_type == "gemma3_text";
        if self.header.natural(&self.key("expert_count")).is_some_and(|experts| experts > 0) {
            return Err(self.header.bad("it is a mixture of experts, and only dense models can be computed"));
        }
        if let Some(parts) = self.header.natural("split.count").filter(|parts| *parts > 1) {
            return Err(self.header.bad(format!("it is one of {parts} parts: join them with `llama-gguf-split --merge`")));
        }
        let (width, layers) = (self.natural("embedding_length")?, self.natural("block_count")?);
        let heads = self.natural_of_layers("attention.head_count")?.ok_or_else(|| self.header.bad("it does not say its number of heads"))?;
        let head_dim = match self.header.natural(&self.key("attention.key_length")) {
            Some(head_dim) => head_dim,
            None => width.checked_div(heads).ok_or_else(|| self.header.bad("it has no heads"))?,
        };
        if let Some(value_length) = self.header.natural(&self.key("attention.value_length"))
            && value_length != head_dim
        {
            return Err(self.header.bad(format!("its keys have {head_dim} and its values {value_length} elements a head")));
        }
        let rotated = self.header.natural(&self.key("rope.dimension_count")).unwrap_or(head_dim);
        if rotated != head_dim {
            return Err(self.header.bad(format!("it rotates {rotated} of {head_dim} elements a head, and only whole heads are rotated here")));
        }
        let embedding = self.header.tensors.get("token_embd.weight").ok_or_else(|| ModelError::MissingTensor { name: "token_embd.weight".into() })?;
        let mut config = json!({
            "model_type": model_type,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": self.natural_of_layers("attention.head_count_kv")?.unwrap_or(heads),
            "head_dim": head_dim,
            "intermediate_size": self.natural_of_layers("feed_forward_length")?,
            "vocab_size": embedding.shape.first(),
            "rms_norm_eps": self.epsilon()?,
            "max_position_embeddings": self.natural("context_length")?,
            "tie_word_embeddings": !self.has_tensor("output.weight"),
            "bos_token_id": self.header.natural("tokenizer.ggml.bos_token_id"),
            "eos_token_id": self.end_tokens(),
        });
        if gemma {
            self.gemma(&mut config, layers, head_dim, width, heads)?;
        } else {
            config["hidden_act"] = "silu".into();
            config["rope_parameters"] = self.rope(bytes, head_dim)?;
            if model_type != "qwen2" {
                config["attention_bias"] = self.has_tensor("blk.0.attn_q.bias").into();
                config["mlp_bias"] = self.has_tensor("blk.0.ffn_gate.bias").into();
            }
        }
        Ok(config)
    }

    /// f32 in the file, and a short decimal in `config.json`: 1e-5 must not become 9.99999974738e-6.
    fn epsilon(&self) -> Result<f64, ModelError> {
        let key = "attention.layer_norm_rms_epsilon";
        let stored = self.number(key).ok_or_else(|| self.header.bad(format!("it does not say its {}", self.key(key))))?;
        Ok(shortest(stored))
    }

    /// Where an answer ends: the end of text, and the end of a turn where the file has one.
    fn end_tokens(&self) -> Vec<u64> {
        let mut ids: Vec<u64> = ["eos", "eot", "eom"].iter().filter_map(|kind| self.header.natural(&format!("tokenizer.ggml.{kind}_token_id"))).collect();
        let mut seen = Vec::new();
        ids.retain(|id| !seen.contains(id) && { seen.push(*id); true });
        ids
    }

    fn gemma(&self, config: &mut Value, layers: u64, head_dim: u64, width: u64, heads: u64) -> Result<(), ModelError> {
        config["hidden_activation"] = "gelu_pytorch_tanh".into();
        config["attention_bias"] = false.into();
        config["sliding_window"] = self.natural("attention.sliding_window")?.into();
        let kind = |layer: u64| if (layer + 1).is_multiple_of(GEMMA3_PATTERN as u64) { "full_attention" } else { "sliding_attention" };
        if layers > self.header.tensors.len() as u64 {
            return Err(self.header.bad(format!("it promises {layers} layers and has {} tensors", self.header.tensors.len())));
        }
        config["layer_types"] = (0..layers).map(kind).collect::<Vec<_>>().into();
        // The 27B model alone scales by its width per head.
        config["query_pre_attn_scalar"] = if layers == 62 { width / heads.max(1) } else { head_dim }.into();
        let theta = shortest(self.number("rope.freq_base").unwrap_or(1e6));
        let mut full = json!({ "rope_type": "default", "rope_theta": theta });
        if let Some(factor) = self.linear_factor()? {
            full["rope_type"] = "linear".into();
            full["factor"] = factor.into();
        }
        let local = shortest(self.number("rope.freq_base_swa").unwrap_or(1e4));
        config["rope_parameters"] = json!({ "full_attention": full, "sliding_attention": { "rope_type": "default", "rope_theta": local } });
        Ok(())
    }

    fn rope(&self, bytes: &[u8], head_dim: u64) -> Result<Value, ModelError> {
        let theta = shortest(self.number("rope.freq_base").unwrap_or(1e4));
        let mut rope = json!({ "rope_type": "default", "rope_theta": theta });
        if self.header.text(&self.key("rope.scaling.type")) == Some("yarn") {
            self.yarn(&mut rope)?;
        } else if let Some(factor) = self.linear_factor()? {
            rope["rope_type"] = "linear".into();
            rope["factor"] = factor.into();
        }
        if let Some(tensor) = self.header.tensors.get("rope_freqs.weight") {
            let factors = super::tensors::values(tensor, bytes);
            let scaling = self.llama3(&factors, theta, head_dim)?;
            let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } = scaling else {
                return Ok(rope);
            };
            rope["rope_type"] = "llama3".into();
            rope["factor"] = factor.into();
            rope["low_freq_factor"] = low_freq_factor.into();
            rope["high_freq_factor"] = high_freq_factor.into();
            rope["original_max_position_embeddings"] = original_max_positions.into();
        }
        Ok(rope)
    }

    /// llama.cpp multiplies rotated queries and keys by `attn_factor` · (0.1 ln(factor) + 1).
    fn yarn(&self, rope: &mut Value) -> Result<(), ModelError> {
        let number = |key: &str| self.number(&format!("rope.scaling.{key}")).map(shortest);
        let factor = number("factor").ok_or_else(|| self.header.bad("its rope scaling is `yarn` without a factor"))?;
        rope["rope_type"] = "yarn".into();
        rope["factor"] = factor.into();
        for (key, theirs) in [("original_max_position_embeddings", "original_context_length"), ("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")] {
            if let Some(value) = number(theirs) {
                rope[key] = value.into();
            }
        }
        if let Some(weight) = number("attn_factor").filter(|&weight| weight != 1.0) {
            rope["attention_factor"] = (weight * crate::config::yarn_attention_factor(factor, 1.0)).into();
        }
        Ok(())
    }

    fn linear_factor(&self) -> Result<Option<f64>, ModelError> {
        let factor = self.number("rope.scaling.factor").filter(|factor| *factor != 1.0).map(shortest);
        match self.header.text(&self.key("rope.scaling.type")) {
            None | Some("none" | "") => Ok(None),
            Some("linear") => Ok(factor),
            Some(other) => Err(self.header.bad(format!("its rope scaling is `{other}`, and only linear, Llama 3's and YaRN can be computed"))),
        }
    }

    /// The numbers of Llama 3's rule from the divisors of the frequencies, which is all the file keeps.
    ///
    /// Divisors are 1 where a wave is short, `factor` where it is long, and between them `1 / ((1 − s)/factor + s)` with
    /// `s = (original/wavelength − low) / (high − low)`: two such divisors give the line, with `low` = 1.
    fn llama3(&self, divisors: &[f32], theta: f64, head_dim: u64) -> Result<RopeScaling, ModelError> {
        let unknown = || self.header.bad("its rope_freqs.weight does not follow Llama 3's rule");
        if divisors.len() as u64 != head_dim / 2 || divisors.is_empty() {
            return Err(unknown());
        }
        let factor = shortest(divisors.iter().copied().fold(1.0f32, f32::max).into());
        if factor == 1.0 {
            return Ok(RopeScaling::Default);
        }
        let frequency = |i: usize| theta.powf(-((2 * i) as f64) / head_dim as f64);
        let turns = |i: usize| frequency(i) / std::f64::consts::TAU;
        // (turns per position, s) where the rule interpolates.
        let between: Vec<(f64, f64)> = divisors
            .iter()
            .enumerate()
            .map(|(i, &divisor)| (turns(i), (1.0 / f64::from(divisor) - 1.0 / factor) / (1.0 - 1.0 / factor)))
            .filter(|(_, s)| (1e-3..=1.0 - 1e-3).contains(s))
            .collect();
        let mut candidates = Vec::new();
        if let ([first, ..], [.., last]) = (between.as_slice(), between.as_slice())
            && first.0 != last.0
        {
            // s = slope · turns − offset, slope = original / (high − low), offset = low / (high − low).
            let slope = (first.1 - last.1) / (first.0 - last.0);
            let offset = slope * first.0 - first.1;
            let original = LLAMA3_LOW_FREQ_FACTOR * slope / offset;
            candidates.push((near_integer(original), near_integer(LLAMA3_LOW_FREQ_FACTOR * (1.0 + 1.0 / offset))));
        }
        // Fewer points leave the line open: then the published numbers, and what the file says of its context.
        let context = self.header.natural(&self.key("context_length")).unwrap_or(0) as f64;
        let said = self.number("rope.scaling.original_context_length");
        let lengths = said.into_iter().chain([8192.0, context / factor, context]).chain((3..20).map(|power| f64::from(1 << power)));
        candidates.extend(lengths.map(|original| (original, 4.0)));
        candidates
            .into_iter()
            .map(|(original_max_positions, high_freq_factor)| RopeScaling::Llama3 { factor, low_freq_factor: LLAMA3_LOW_FREQ_FACTOR, high_freq_factor, original_max_positions })
            .find(|scaling| {
                let config = crate::RopeConfig { theta, scaling: *scaling };
                let computed = config.inv_freq(head_dim as usize);
                let close = |(i, divisor): (usize, &f32)| {
                    let wanted = frequency(i) / f64::from(*divisor);
                    (f64::from(computed[i]) - wanted).abs() <= FACTOR_TOLERANCE * wanted
                };
                divisors.iter().enumerate().all(close)
            })
            .ok_or_else(unknown)
    }
}

/// The whole number that a computed one stands for, where it is one.
fn near_integer(x: f64) -> f64 {
    if (x - x.round()).abs() < 1e-3 * x.abs() { x.round() } else { x }
}

/// The number whose shortest decimal gives the same f32: what a person wrote before it was stored.
fn shortest(stored: f64) -> f64 {
    format!("{}", stored as f32).parse().unwrap_or(stored)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgmlType, GgufTensor};
    use crate::{ModelConfig, RopeConfig};
    use std::collections::BTreeMap;

    fn header(architecture: &str, entries: &[(&str, Entry)], tensors: &[(&str, &[usize], usize)]) -> GgufHeader {
        let mut metadata = BTreeMap::from([("general.architecture".to_string(), Entry::Text(architecture.into()))]);
        let sizes = [("embedding_length", 64), ("block_count", 2), ("attention.head_count", 8), ("feed_forward_length", 160), ("context_length", 128)];
        metadata.extend(sizes.map(|(key, value)| (format!("{architecture}.{key}"), Entry::Integer(value))));
        metadata.insert(format!("{architecture}.attention.layer_norm_rms_epsilon"), Entry::Float(f64::from(1e-5f32)));
        metadata.extend(entries.iter().map(|(key, value)| (format!("{architecture}.{key}"), value.clone())));
        let tensor = |shape: &[usize], start| GgufTensor { ggml_type: GgmlType::F32, shape: shape.to_vec(), start, end: start + 4 * shape.iter().product::<usize>() };
        let tensors = tensors.iter().map(|(name, shape, start)| (name.to_string(), tensor(shape, *start)));
        GgufHeader { file: "x.gguf".into(), metadata, tensors: tensors.chain([("token_embd.weight".to_string(), tensor(&[320, 64], 0))]).collect() }
    }

    fn config(header: &GgufHeader) -> ModelConfig {
        ModelConfig::parse(&config_json(header, &[]).unwrap()).unwrap()
    }

    #[test]
    fn metadata_gives_the_config_of_the_folder() {
        let header = header("llama", &[("attention.head_count_kv", Entry::Integer(2))], &[("output.weight", &[320, 64], 0)]);
        let folder = serde_json::json!({
            "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 2,
            "intermediate_size": 160, "vocab_size": 320, "rms_norm_eps": 1e-5, "max_position_embeddings": 128
        });
        assert_eq!(config(&header), ModelConfig::parse(&folder.to_string()).unwrap());
    }

    #[test]
    fn llama3_scaling_is_found_again_from_its_divisors() {
        for (head_dim, theta, factor, high, original) in
            [(64, 500_000.0, 8.0, 4.0, 8192.0), (128, 500_000.0, 32.0, 4.0, 8192.0), (16, 500_000.0, 8.0, 4.0, 32.0), (128, 1e6, 4.0, 6.0, 2048.0)]
        {
            let scaling = RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: high, original_max_positions: original };
            let plain = RopeConfig { theta, scaling: RopeScaling::Default }.inv_freq(head_dim);
            let scaled = RopeConfig { theta, scaling }.inv_freq(head_dim);
            let divisors: Vec<f32> = plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect();
            let header = header("llama", &[("context_length", Entry::Integer(131_072))], &[]);
            let found = Metadata { header: &header, architecture: "llama" }.llama3(&divisors, theta, head_dim as u64).unwrap();
            let again = RopeConfig { theta, scaling: found }.inv_freq(head_dim);
            assert!(again.iter().zip(&scaled).all(|(a, b)| (a - b).abs() <= 1e-5 * b), "{found:?}");
            if head_dim >= 64 {
                assert_eq!(found, scaling);
            }
        }
        let header = header("llama", &[], &[]);
        let strange = Metadata { header: &header, architecture: "llama" }.llama3(&[1.0, 9.0, 2.0, 3.0], 1e4, 8);
        assert!(strange.unwrap_err().to_string().contains("rope_freqs"));
    }

    #[test]
    fn yarn_says_what_its_config_json_says() {
        let entries = [
            ("rope.scaling.type", Entry::Text("yarn".into())),
            ("rope.scaling.factor", Entry::Float(4.0)),
            ("rope.scaling.original_context_length", Entry::Integer(32)),
        ];
        let scaling = *config(&header("llama", &entries, &[])).rope(0).unwrap();
        let attention_factor = 0.1 * 4f64.ln() + 1.0;
        let expected = RopeScaling::Yarn { factor: 4.0, beta_fast: 32.0, beta_slow: 1.0, truncate: true, original_max_positions: 32.0, attention_factor };
        assert_eq!(scaling, RopeConfig { theta: 1e4, scaling: expected });
    }

    #[test]
    fn gemma3_says_what_its_config_json_says() {
        let entries = [
            ("block_count", Entry::Integer(6)),
            ("attention.head_count", Entry::Integer(4)),
            ("attention.head_count_kv", Entry::Integer(1)),
            ("attention.key_length", Entry::Integer(24)),
            ("attention.value_length", Entry::Integer(24)),
            ("attention.sliding_window", Entry::Integer(8)),
            ("rope.freq_base", Entry::Float(1e6)),
        ];
        let header = header("gemma3", &entries, &[("a", &[1], 0), ("b", &[1], 0), ("c", &[1], 0), ("d", &[1], 0), ("e", &[1], 0)]);
        let got: Value = serde_json::from_str(&config_json(&header, &[]).unwrap()).unwrap();
        let sliding = "sliding_attention";
        let expected = json!({
            "model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4, "num_key_value_heads": 1,
            "head_dim": 24, "intermediate_size": 160, "vocab_size": 320, "sliding_window": 8, "query_pre_attn_scalar": 24,
            "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": true, "max_position_embeddings": 128,
            "layer_types": [sliding, sliding, sliding, sliding, sliding, "full_attention"],
            "rope_parameters": { "full_attention": { "rope_theta": 1e6, "rope_type": "default" }, "sliding_attention": { "rope_theta": 1e4, "rope_type": "default" } },
        });
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&got[key], value, "{key}");
        }
    }

    #[test]
    fn what_cannot_be_computed_is_said() {
        let said = |header: &GgufHeader| config_json(header, &[]).unwrap_err().to_string();
        assert!(said(&header("mamba", &[], &[])).contains("`mamba`"));
        assert!(said(&header("llama", &[("rope.scaling.type", Entry::Text("longrope".into()))], &[])).contains("longrope"));
        assert!(said(&header("llama", &[("rope.scaling.type", Entry::Text("yarn".into()))], &[])).contains("factor"));
        assert!(said(&header("llama", &[("rope.dimension_count", Entry::Integer(4))], &[])).contains("4 of 8"));
        assert!(said(&header("llama", &[("attention.head_count_kv", Entry::Numbers(vec![2.0, 4.0]))], &[])).contains("differs"));
        assert!(said(&header("llama", &[("expert_count", Entry::Integer(8))], &[])).contains("experts"));
        let mut part = header("llama", &[], &[]);
        part.metadata.insert("split.count".into(), Entry::Integer(3));
        assert!(said(&part).contains("one of 3 parts"));
        let mut without = header("llama", &[], &[]);
        without.metadata.remove("llama.block_count");
        assert!(said(&without).contains("llama.block_count"));
    }
}
