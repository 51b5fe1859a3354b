//! Bottleneck adapters (Houlsby et al. 2019) within a frozen backbone's layers.
//!
//! ```text
//! y ← y + U relu(D y + d) + u      D: [width / reduction, width], U: [width, width / reduction], U and u start at 0
//! ```
//!
//! One stands behind the attention's output projection, one behind the feed-forward block's, each before the residual
//! sum (and before a norm of the sub-layer's output, where the family has one).

use crate::EngineError;
use crate::backbone::{Backbone, Linear};
use crate::params::ParameterSet;
use crate::side::uniform;
use crate::tape::{Tape, Var};
use crate::tensor::Device;
use barycenter_model::{Activation, ModelConfig, RawTensor, names};
use std::collections::BTreeMap;
use std::ops::Range;

/// Where the two adapters of a layer stand, as their names say it.
const PLACES: [&str; 2] = ["attention", "feed_forward"];

/// One adapter.
#[derive(Clone)]
pub struct Bottleneck {
    down: Linear,
    up: Linear,
}

impl Bottleneck {
    /// `y + U relu(D y)`.
    pub fn apply(&self, tape: &Tape, y: &Var) -> Var {
        let inner = tape.activate(Activation::Relu, &self.down.apply(tape, y), None);
        tape.add(y, &self.up.apply(tape, &inner))
    }
}

/// How large adapters are, and in which layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BottleneckConfig {
    /// The inner width is the model's width divided by this.
    pub reduction: usize,
    /// Layers, from 0; of an encoder-decoder model those of each stack, as far as it has them.
    pub layers: Range<usize>,
}

impl BottleneckConfig {
    /// What `adapter_config.json` says of it.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({ "method": "adapters", "version": 1, "reduction": self.reduction, "layers": self.layers.clone().collect::<Vec<_>>() })
    }

    /// Names and shapes of all parameters: `layers.{i}.{attention|feed_forward}.{down|up}.{weight|bias}`, behind `encoder.`
    /// and `decoder.` where the model has two stacks.
    ///
    /// # Errors
    /// If the width cannot be divided so, or the model has no such layers.
    pub fn parameters(&self, model: &ModelConfig) -> Result<Vec<(String, Vec<usize>)>, EngineError> {
        let bad = |text: String| Err(EngineError::BadBottleneck(text));
        if self.reduction == 0 || self.reduction > model.width {
            return bad(format!("a reduction of {} was asked for, choose 1 to {}", self.reduction, model.width));
        }
        let most = names::stacks(model).map(|(stack, _)| stack.layers).max().unwrap_or(0);
        if self.layers.is_empty() || self.layers.end > most {
            return bad(format!("layers {:?} were asked for, the model has {most}", self.layers));
        }
        let (wide, narrow) = (model.width, model.width / self.reduction);
        let mut list = Vec::new();
        for (stack, _) in names::stacks(model) {
            let layers = self.layers.start..self.layers.end.min(stack.layers);
            for (layer, place) in layers.flat_map(|layer| PLACES.map(|place| (layer, place))) {
                let prefix = format!("{}.{place}", layer_name(model, stack.causal, layer));
                let mut add = |name: &str, shape: &[usize]| list.push((format!("{prefix}.{name}"), shape.to_vec()));
                add("down.weight", &[narrow, wide]);
                add("down.bias", &[narrow]);
                add("up.weight", &[wide, narrow]);
                add("up.bias", &[wide]);
            }
        }
        Ok(list)
    }
}

/// The adapters of a model, on a device.
pub struct Bottlenecks {
    /// What they are.
    pub config: BottleneckConfig,
    /// Their values.
    pub parameters: ParameterSet,
}

impl Bottlenecks {
    /// Adapters that change nothing yet: down-projections as torch starts a linear layer, up-projections at 0.
    pub fn fresh(device: &Device, model: &ModelConfig, config: &BottleneckConfig, seed: u64) -> Result<Self, EngineError> {
        Self::start(device, model, config, |name, shape, target| {
            if name.contains(".down.") {
                // A bias is drawn from the range of its weight.
                let fan_in = if shape.len() == 2 { shape[1] } else { model.width };
                uniform(name, seed, fan_in, target);
            }
            Ok(())
        })
    }

    /// Adapters whose values `find` gives by name.
    ///
    /// # Errors
    /// If one is missing or of another shape.
    pub fn load(
        device: &Device,
        model: &ModelConfig,
        config: &BottleneckConfig,
        mut find: impl FnMut(&str) -> Option<RawTensor>,
    ) -> Result<Self, EngineError> {
        Self::start(device, model, config, |name, shape, target| {
            let bad = || EngineError::BadAdapter { name: name.to_string(), expected: shape.to_vec() };
            let tensor = find(name).filter(|tensor| tensor.shape == shape).ok_or_else(bad)?;
            target.copy_from_slice(&tensor.to_f32());
            Ok(())
        })
    }

    fn start(
        device: &Device,
        model: &ModelConfig,
        config: &BottleneckConfig,
        mut fill: impl FnMut(&str, &[usize], &mut [f32]) -> Result<(), EngineError>,
    ) -> Result<Self, EngineError> {
        let parameters = ParameterSet::new(device, config.parameters(model)?);
        let mut values = vec![0f32; parameters.flat_len()];
        for info in parameters.layout() {
            fill(&info.name, &info.shape, &mut values[info.offset..info.offset + info.elements()])?;
        }
        parameters.write_values(&values);
        Ok(Self { config: config.clone(), parameters })
    }

    /// Puts the adapters into the layers of `backbone` that they belong to.
    pub fn attach(&self, backbone: &mut Backbone) {
        let model = backbone.config.clone();
        if let Some(encoder) = &mut backbone.encoder {
            self.attach_to(&model, encoder);
        }
        self.attach_to(&model, backbone);
    }

    fn attach_to(&self, model: &ModelConfig, stack: &mut Backbone) {
        let (first, causal) = (stack.range.start, stack.config.causal);
        for (at, layer) in stack.layers.iter_mut().enumerate() {
            let linear = |place: &str, name: &str| {
                let part = |part: &str| self.parameters.var(&format!("{}.{place}.{name}.{part}", layer_name(model, causal, first + at)));
                Some(Linear::plain(part("weight")?, part("bias")?))
            };
            let adapter = |place: &str| Some(Bottleneck { down: linear(place, "down")?, up: linear(place, "up")? });
            if let [Some(attention), Some(feed_forward)] = PLACES.map(adapter) {
                layer.set_adapters(attention, feed_forward);
            }
        }
    }

    /// The values by name.
    pub async fn tensors(&self) -> Result<BTreeMap<String, RawTensor>, EngineError> {
        self.parameters.tensors().await
    }
}

/// What names of a layer's adapters begin with.
fn layer_name(model: &ModelConfig, causal: bool, layer: usize) -> String {
    match (&model.encoder, causal) {
        (None, _) => format!("layers.{layer}"),
        (Some(_), false) => format!("encoder.layers.{layer}"),
        (Some(_), true) => format!("decoder.layers.{layer}"),
    }
}
