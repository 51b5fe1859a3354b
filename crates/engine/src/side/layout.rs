//! Which parameters a side network has, and how they lie in the flat vector.
//!
//! Order: `down.0`, then for each step i `down.i`, its gate, its layer, then `norm` and `up`. So the flat vector of
//! the whole network is that of the stages, one after the other.

use crate::EngineError;
use crate::params::{ParameterInfo, flat_layout};
use barycenter_model::{Family, ModelConfig, Positions, RawTensor, names};
use std::collections::BTreeMap;
use std::ops::Range;

/// What a side network looks like.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SideConfig {
    /// k: widths are those of the backbone divided by it.
    pub reduction: usize,
    /// How a tap joins the chain.
    pub fusion: Fusion,
    /// Backbone outputs that are read, ascending, the first being 0 (the embedding); layer i's output is tap i.
    pub taps: Vec<usize>,
}

/// How the projected tap `p_i = D_i tap_i` joins what the chain carries.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fusion {
    /// `s_i = μ_i a_{i−1} + (1 − μ_i) p_i`, `μ_i = sigmoid(g_i / temperature)`, `g_i` trained and 0 at the start.
    Gate {
        /// Divides the gates before the sigmoid.
        temperature: f32,
    },
    /// `s_i = a_{i−1} + p_i`, as in the paper.
    Sum,
}

impl Default for Fusion {
    /// The gate of docs/METHOD.md.
    fn default() -> Self {
        Self::Gate { temperature: 0.1 }
    }
}

impl Fusion {
    /// From an `adapter_config.json`: `"fusion": "sum"`, or the `gate_temperature` of a gate ([`Fusion::default`]'s if there is none).
    pub fn of_config(json: &serde_json::Value) -> Self {
        match (json["fusion"].as_str(), json["gate_temperature"].as_f64()) {
            (Some("sum"), _) => Self::Sum,
            (_, Some(temperature)) => Self::Gate { temperature: temperature as f32 },
            _ => Self::default(),
        }
    }

    /// Into an `adapter_config.json`.
    pub fn describe(self, json: &mut serde_json::Value) {
        match self {
            Self::Gate { temperature } => json["gate_temperature"] = temperature.into(),
            Self::Sum => json["fusion"] = "sum".into(),
        }
    }
}

impl SideConfig {
    /// Every layer tapped, joined by the usual gate.
    pub fn new(reduction: usize, layers: usize) -> Self {
        Self { reduction, fusion: Fusion::default(), taps: (0..=layers).collect() }
    }

    /// Every `every`-th of the taps `0 ..= layers`, counted back from the last, and the first. Twin of `tapped` in
    /// `crates/protocol/src/control/spec.rs`, which a run's devices go by.
    pub fn thinned_taps(layers: usize, every: usize) -> Vec<usize> {
        (0..=layers).filter(|tap| *tap == 0 || (layers - tap).is_multiple_of(every.max(1))).collect()
    }
}

/// The sizes of a side layer: width, head width and feed-forward width divided, everything else kept. What no other size
/// depends on is rounded down: the feed-forward width, and the head width where heads need not fill the width.
pub fn side_model_config(model: &ModelConfig, reduction: usize) -> Result<ModelConfig, EngineError> {
    let divide = |what, size: usize, exactly: bool| match size.checked_div(reduction) {
        Some(divided @ 1..) if !exactly || size.is_multiple_of(reduction) => Ok(divided),
        _ => Err(EngineError::BadReduction { what, size, reduction }),
    };
    let heads_fill_width = matches!(model.family, Family::Gpt2 | Family::Bert | Family::Bart);
    let side = ModelConfig {
        width: divide("width", model.width, true)?,
        head_dim: divide("head width", model.head_dim, heads_fill_width)?,
        ffn_width: divide("feed-forward width", model.ffn_width, false)?,
        ..model.clone()
    };
    if side.head_dim % 2 == 1 && matches!(side.positions, Positions::Rotary { .. }) {
        return Err(EngineError::BadReduction { what: "half head width", size: model.head_dim / 2, reduction });
    }
    Ok(side)
}

/// Which stack's taps a side network reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Chain {
    /// Those of a model's only stack: `side.…`.
    #[default]
    Only,
    /// Those of the encoder: `side.encoder.…`. It has no Up: the side decoder attends to its normed end.
    Encoder,
    /// Those of the decoder: `side.decoder.…`.
    Decoder,
}

impl Chain {
    /// What its parameters' names begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Only => "side",
            Self::Encoder => "side.encoder",
            Self::Decoder => "side.decoder",
        }
    }
}

/// The part of a side network that belongs to some backbone layers.
#[derive(Clone, Debug)]
pub struct SideLayout {
    chain: Chain,
    shares_bias: bool,
    config: SideConfig,
    model: ModelConfig,
    side: ModelConfig,
    layers: Range<usize>,
}

impl SideLayout {
    /// The part for backbone layers `layers` (from 0).
    pub fn new(model: &ModelConfig, config: &SideConfig, layers: Range<usize>) -> Result<Self, EngineError> {
        let side = side_model_config(model, config.reduction)?;
        let ascending = config.taps.windows(2).all(|pair| pair[0] < pair[1]);
        if config.taps.first() != Some(&0) || !ascending || config.taps.last().is_some_and(|&tap| tap > model.layers) {
            let text = format!("taps {:?} do not ascend from 0 to at most {}", config.taps, model.layers);
            return Err(EngineError::BadStage(text));
        }
        Ok(Self { chain: Chain::Only, shares_bias: false, config: config.clone(), model: model.clone(), side, layers })
    }

    /// The whole side network.
    pub fn whole(model: &ModelConfig, config: &SideConfig) -> Result<Self, EngineError> {
        Self::new(model, config, 0..model.layers)
    }

    /// The same as one of the two chains of an encoder-decoder model.
    pub fn of_chain(self, chain: Chain) -> Self {
        Self { chain, ..self }
    }

    /// The same without a table of the bias by distance of its own: it is given the model's ([`super::Side::share_bias`]).
    pub fn sharing_bias(self) -> Self {
        Self { shares_bias: true, ..self }
    }

    /// Which stack's taps it reads.
    pub fn chain(&self) -> Chain {
        self.chain
    }

    /// The full name of one of its parameters or modules.
    pub fn name(&self, name: &str) -> String {
        format!("{}.{name}", self.chain.prefix())
    }

    /// The configuration.
    pub fn config(&self) -> &SideConfig {
        &self.config
    }

    /// The sizes of the side layers.
    pub fn side_model(&self) -> &ModelConfig {
        &self.side
    }

    /// The sizes of the backbone.
    pub fn model(&self) -> &ModelConfig {
        &self.model
    }

    /// Whether it has the first layer, and `down.0`.
    pub fn is_first(&self) -> bool {
        self.layers.start == 0
    }

    /// Whether it has the last layer, and norm and up.
    pub fn is_last(&self) -> bool {
        self.layers.end == self.model.layers
    }

    /// The steps of the chain, from 1, whose taps these layers produce.
    pub fn steps(&self) -> Range<usize> {
        let before = |layer: usize| self.config.taps.iter().filter(|&&tap| tap <= layer).count();
        before(self.layers.start)..before(self.layers.end)
    }

    /// The step that reads the output of backbone layer `layer` (from 0), if it is tapped.
    pub fn step_after_layer(&self, layer: usize) -> Option<usize> {
        self.config.taps.iter().position(|&tap| tap == layer + 1)
    }

    /// The backbone layer (from 0) whose output step `i` taps, and whose window and rotation it has.
    pub fn layer(&self, i: usize) -> usize {
        self.config.taps[i] - 1
    }

    /// Names and shapes in flat order; the gates are single elements `side.gate.{i−1}`. Where positions are a bias by
    /// distance (T5) its table, the chain's own, comes first.
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let (wide, narrow) = (self.model.width, self.side.width);
        let mut list = Vec::new();
        let linear = |list: &mut Vec<_>, name: String, shape: [usize; 2]| {
            list.push((format!("{name}.weight"), shape.to_vec()));
            list.push((format!("{name}.bias"), vec![shape[0]]));
        };
        if self.is_first() {
            list.extend(self.relative_bias());
            linear(&mut list, self.name("down.0"), [narrow, wide]);
        }
        for i in self.steps() {
            linear(&mut list, self.name(&format!("down.{i}")), [narrow, wide]);
            if self.has_gates() {
                list.push((self.gate_name(i), vec![1]));
            }
            let layer = names::layer_shapes(&self.side).into_iter();
            list.extend(layer.map(|(name, shape)| (self.name(&format!("layers.{}.{name}", i - 1)), shape)));
        }
        if self.is_last() {
            list.extend(names::norm_shapes(&self.side, Some(&self.name("norm")), narrow));
            if self.has_up() {
                linear(&mut list, self.name("up"), [wide, narrow]);
            }
        }
        list
    }

    /// Whether it ends in an up-projection.
    pub fn has_up(&self) -> bool {
        self.chain != Chain::Encoder
    }

    /// Name and shape of the table of the bias by distance, `[buckets, heads]`: the first layer's by its family's name.
    pub fn relative_bias(&self) -> Option<(String, Vec<usize>)> {
        if self.shares_bias {
            return None;
        }
        let (name, shape) = names::relative_bias_in_layer(&self.side)?;
        Some((self.name(&format!("layers.0.{name}")), shape))
    }

    /// Whether taps join through trained gates.
    pub fn has_gates(&self) -> bool {
        self.config.fusion != Fusion::Sum
    }

    pub(super) fn gate_name(&self, i: usize) -> String {
        format!("{}.{}", self.gates_name(), i - 1)
    }

    /// All gates together, as an adapter file has them.
    fn gates_name(&self) -> String {
        self.name("gate")
    }

    /// Names, shapes and places in the flat vector.
    pub fn infos(&self) -> Vec<ParameterInfo> {
        flat_layout(self.parameters())
    }

    /// Length of the flat vector.
    pub fn flat_len(&self) -> usize {
        crate::params::flat_len(&self.infos())
    }
}

/// A flat vector as the tensors of an adapter file (`side.gate` in one piece).
pub fn named_from_flat(layout: &SideLayout, flat: &[f32]) -> Result<BTreeMap<String, RawTensor>, EngineError> {
    let infos = layout.infos();
    let expected = crate::params::flat_len(&infos);
    if flat.len() != expected {
        return Err(EngineError::WrongLength { what: "the side network's state", expected, got: flat.len() });
    }
    let (gate, mut gates) = (format!("{}.", layout.gates_name()), Vec::new());
    let mut named = BTreeMap::new();
    for info in infos {
        let values = &flat[info.offset..info.offset + info.elements()];
        if info.name.starts_with(&gate) {
            gates.extend(values);
        } else {
            named.insert(info.name, RawTensor::from_f32(&info.shape, values));
        }
    }
    if !gates.is_empty() {
        named.insert(layout.gates_name(), RawTensor::from_f32(&[gates.len()], &gates));
    }
    Ok(named)
}

/// The flat vector of the whole network from the tensors of an adapter file; `find` looks a name up.
pub fn flat_from_named(layout: &SideLayout, mut find: impl FnMut(&str) -> Option<RawTensor>) -> Result<Vec<f32>, EngineError> {
    let infos = layout.infos();
    let mut flat = vec![0f32; crate::params::flat_len(&infos)];
    let mut get = |name: &str, shape: &[usize]| {
        let bad = || EngineError::BadAdapter { name: name.to_string(), expected: shape.to_vec() };
        find(name).filter(|tensor| tensor.shape == shape).map(|tensor| tensor.to_f32()).ok_or_else(bad)
    };
    let steps = layout.config.taps.len() - 1;
    let gates = if steps > 0 && layout.has_gates() { get(&layout.gates_name(), &[steps])? } else { Vec::new() };
    for info in infos {
        let target = &mut flat[info.offset..info.offset + info.elements()];
        match info.name.strip_prefix(&format!("{}.", layout.gates_name())).and_then(|index| index.parse::<usize>().ok()) {
            Some(index) => target[0] = gates[index],
            None => target.copy_from_slice(&get(&info.name, &info.shape)?),
        }
    }
    Ok(flat)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> ModelConfig {
        let json = serde_json::json!({
            "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 48, "vocab_size": 100
        });
        ModelConfig::parse(&json.to_string()).unwrap()
    }

    #[test]
    fn stages_lie_behind_one_another_in_the_whole() {
        let model = model();
        for taps in [vec![0, 1, 2, 3, 4, 5], vec![0, 2, 5], vec![0, 3]] {
            let config = SideConfig { taps, ..SideConfig::new(4, 5) };
            let whole = SideLayout::whole(&model, &config).unwrap();
            for cuts in [[0, 2, 5], [0, 1, 5], [0, 4, 5]] {
                let parts: Vec<_> = cuts.windows(2).map(|cut| SideLayout::new(&model, &config, cut[0]..cut[1]).unwrap()).collect();
                let names: Vec<_> = parts.iter().flat_map(SideLayout::parameters).collect();
                assert_eq!(names, whole.parameters());
                assert_eq!(parts.iter().map(SideLayout::flat_len).sum::<usize>(), whole.flat_len());
            }
        }
    }

    #[test]
    fn the_chains_of_two_stacks_have_names_of_their_own() {
        let json = serde_json::json!({"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4});
        let model = ModelConfig::parse(&json.to_string()).unwrap();
        let chain = |stack: &ModelConfig, chain| SideLayout::whole(stack, &SideConfig::new(4, 2)).unwrap().of_chain(chain);
        let (encoder, decoder) = (chain(model.encoder.as_ref().unwrap(), Chain::Encoder), chain(&model, Chain::Decoder));
        let has = |layout: &SideLayout, name: &str| layout.parameters().iter().any(|(known, _)| known == name);
        assert!(has(&encoder, "side.encoder.down.2.weight") && has(&encoder, "side.encoder.norm.weight") && !has(&encoder, "side.encoder.up.weight"));
        assert!(has(&decoder, "side.decoder.up.bias") && has(&decoder, "side.decoder.layers.1.layer.1.EncDecAttention.k.weight"));
        let table = "side.decoder.layers.0.layer.0.SelfAttention.relative_attention_bias.weight";
        assert_eq!(decoder.relative_bias(), Some((table.to_string(), vec![32, 4])));
        let flat = super::super::initial_values(&encoder, 7);
        let named = named_from_flat(&encoder, &flat).unwrap();
        assert_eq!(named["side.encoder.gate"].to_f32(), [0.0; 2]);
        assert_eq!(flat_from_named(&encoder, |name| named.get(name).cloned()).unwrap(), flat);
    }

    #[test]
    fn flat_and_named_are_inverse() {
        let layout = SideLayout::whole(&model(), &SideConfig::new(2, 5)).unwrap();
        let flat = super::super::initial_values(&layout, 7);
        let named = named_from_flat(&layout, &flat).unwrap();
        assert_eq!(named["side.gate"].shape, [5]);
        assert_eq!(flat_from_named(&layout, |name| named.get(name).cloned()).unwrap(), flat);
        assert!(flat_from_named(&layout, |_| None).is_err());
    }
}
