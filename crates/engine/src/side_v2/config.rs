//! What a side network of version 2 looks like: its sizes, its parameters by name, where they start.

use crate::EngineError;
use crate::params::ParameterInfo;
use crate::side::uniform;
use barycenter_model::ModelConfig;
use serde_json::{Value, json};

/// Width of an attention head of the side layers.
const HEAD_WIDTH: usize = 16;
/// Share of values that training leaves out behind each block.
const DROPOUT: f64 = 0.1;

/// The choices of version 2, as `adapter_config.json` has them.
#[derive(Clone, Debug, PartialEq)]
pub struct SideV2Config {
    /// k: the side network's width is the backbone's divided by it.
    pub reduction: usize,
    /// Layers whose output is read, ascending, the last one among them; 0 is the embedding.
    pub taps: Vec<usize>,
    /// p: principal components kept of a tap.
    pub components: usize,
    /// Sentences of a sample: 1, or 2 that are compared.
    pub sentences: usize,
    /// Share of values that training leaves out.
    pub dropout: f64,
}

impl SideV2Config {
    /// Every second tap counted from the last, as many components as the side network is wide.
    ///
    /// # Errors
    /// If the model is no encoder, its width cannot be divided, or the sentences are neither one nor two.
    pub fn new(model: &ModelConfig, reduction: usize, sentences: usize) -> Result<Self, EngineError> {
        let taps = (0..=model.layers).filter(|tap| (model.layers - tap).is_multiple_of(2)).collect();
        let mut config = Self { reduction, taps, components: 0, sentences, dropout: DROPOUT };
        config.components = config.width(model)?;
        config.check(model)?;
        Ok(config)
    }

    /// r, the width of the side network.
    ///
    /// # Errors
    /// If the reduction does not divide the model's width.
    pub fn width(&self, model: &ModelConfig) -> Result<usize, EngineError> {
        if self.reduction == 0 || !model.width.is_multiple_of(self.reduction) {
            return Err(EngineError::BadReduction { what: "width", size: model.width, reduction: self.reduction });
        }
        Ok(model.width / self.reduction)
    }

    /// Attention heads of the side layers; they divide the width.
    pub(super) fn heads(width: usize) -> usize {
        (1..=width / HEAD_WIDTH).rev().find(|heads| width.is_multiple_of(*heads)).unwrap_or(1)
    }

    /// Refuses what no side network can be made of.
    pub fn check(&self, model: &ModelConfig) -> Result<(), EngineError> {
        let bad = |text: String| Err(EngineError::BadSideNetwork(text));
        self.width(model)?;
        if model.encoder.is_some() || model.causal {
            return bad(format!("version 2 stands beside encoders such as bert, and this is a {}: choose version 1", model.family.model_type()));
        }
        if !(1..=2).contains(&self.sentences) {
            return bad(format!("a sample has {} sentences, and version 2 reads one or compares two", self.sentences));
        }
        let ascending = self.taps.windows(2).all(|pair| pair[0] < pair[1]);
        if self.taps.len() < 2 || !ascending || self.taps.last() != Some(&model.layers) {
            return bad(format!("taps {:?} must be two or more, ascending, the last of them {}", self.taps, model.layers));
        }
        if self.components == 0 || self.components > model.width {
            return bad(format!("{} components of a tap must be 1 to {}, the model's width", self.components, model.width));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad(format!("a dropout of {} must be at least 0 and below 1", self.dropout));
        }
        Ok(())
    }

    /// Width of what the head reads.
    pub fn features(&self, model: &ModelConfig) -> Result<usize, EngineError> {
        Ok(self.sentences * model.width + 2 * self.width(model)?)
    }

    /// Names and shapes of what is trained, in order; `outputs` classes, or 1 of a regression.
    pub fn parameters(&self, model: &ModelConfig, outputs: usize) -> Result<Vec<(String, Vec<usize>)>, EngineError> {
        let (r, d, taps) = (self.width(model)?, model.width, self.taps.len());
        let mut list = Vec::new();
        let mut add = |name: String, shape: &[usize]| list.push((name, shape.to_vec()));
        let mut linear = |name: String, outer: usize, inner: usize| {
            add(format!("{name}.weight"), &[outer, inner]);
            add(format!("{name}.bias"), &[outer]);
        };
        (0..taps).for_each(|i| linear(format!("side.down.{i}"), r, self.components));
        if self.sentences == 2 {
            linear("side.align".into(), r, taps);
        }
        for i in 0..taps - 1 {
            let layer = |name: &str| format!("side.layers.{i}.{name}");
            if self.sentences == 1 {
                linear(layer("qkv"), 3 * r, r);
                linear(layer("output"), r, r);
            }
            linear(layer("up"), 4 * r, r);
            linear(layer("down"), r, 4 * r);
        }
        linear("side.up".into(), d, r);
        linear("head".into(), outputs, self.features(model)?);
        let mut norm = |name: String| {
            add(format!("{name}.weight"), &[r]);
            add(format!("{name}.bias"), &[r]);
        };
        for i in 0..taps - 1 {
            if self.sentences == 1 {
                norm(format!("side.layers.{i}.attention_norm"));
            }
            norm(format!("side.layers.{i}.norm"));
        }
        norm("side.norm".into());
        add("side.mix".into(), &[taps]);
        Ok(list)
    }

    /// Writes where a parameter starts: every one has its own stream of random numbers, made from the seed and its name.
    pub(super) fn start(&self, info: &ParameterInfo, inner: usize, seed: u64, target: &mut [f32]) {
        let name = info.name.as_str();
        if name.starts_with("side.down.") {
            if name.ends_with(".weight") {
                target.chunks_exact_mut(inner).enumerate().filter(|(row, _)| *row < inner).for_each(|(row, values)| values[row] = 1.0);
            }
        } else if name.ends_with("norm.weight") {
            target.fill(1.0);
        } else if !(name.ends_with("norm.bias") || name.starts_with("side.up.") || name == "side.mix") {
            uniform(name, seed, inner, target);
        }
    }

    /// What `adapter_config.json` says of it.
    pub fn to_json(&self) -> Value {
        json!({
            "method": "parallel_adapter", "version": 2, "reduction": self.reduction, "taps": self.taps, "components": self.components,
            "cache_dtype": "int8", "encode_sentences": "separate", "sentences": self.sentences, "dropout": self.dropout
        })
    }

    /// Reads what [`SideV2Config::to_json`] wrote.
    ///
    /// # Errors
    /// If something is missing or of another version.
    pub fn from_json(json: &Value) -> Result<Self, EngineError> {
        let bad = |key: &str| EngineError::BadSideNetwork(format!("adapter_config.json has no usable `{key}`"));
        let number = |key: &str| json[key].as_u64().map(|number| number as usize).ok_or_else(|| bad(key));
        let expect = |key: &str, value: Value| if json[key] == value { Ok(()) } else { Err(bad(key)) };
        expect("version", json!(2))?;
        expect("cache_dtype", json!("int8"))?;
        expect("encode_sentences", json!("separate"))?;
        let taps = json["taps"].as_array().ok_or_else(|| bad("taps"))?;
        Ok(Self {
            reduction: number("reduction")?,
            taps: taps.iter().map(|tap| tap.as_u64().map(|tap| tap as usize)).collect::<Option<_>>().ok_or_else(|| bad("taps"))?,
            components: number("components")?,
            sentences: number("sentences")?,
            dropout: json["dropout"].as_f64().ok_or_else(|| bad("dropout"))?,
        })
    }
}
