//! Parallel adapters, version 1 (docs/METHOD.md): a side network of width d/k that reads the frozen backbone's outputs.
//!
//! With taps `t_0 = 0 < t_1 < … < t_n`, scaled to unit root mean square, ρ being their root mean square:
//!
//! ```text
//! a_0 = D_0 tap_0        s_i = μ_i a_{i−1} + (1 − μ_i) D_i tap_i        a_i = SideLayer_i(s_i)
//! out = b_L + ρ(b_L) · U norm(a_n)
//! ```

mod init;
mod layout;

pub use init::{SideInit, initial_values};
pub(crate) use init::{named_rng, norm_start, uniform};
pub use layout::{Chain, Fusion, SideConfig, SideLayout, flat_from_named, named_from_flat, side_model_config};

use crate::EngineError;
use crate::backbone::{Keys, LayerInput, LayerWeights, Linear, Memory, Norm, OwnKeys, Rotary, layer_forward, self_attention};
use crate::packed::DeviceBatch;
use crate::params::ParameterSet;
use crate::tape::{Tape, Var};
use crate::tensor::{Device, Tensor};
use barycenter_model::ModelConfig;

/// The part of a side network that belongs to some backbone layers, with its parameters on a device.
pub struct Side {
    /// Which part, and how its parameters lie.
    pub layout: SideLayout,
    /// The parameters, all trained.
    pub parameters: ParameterSet,
    model: ModelConfig,
    first_down: Option<Linear>,
    steps: Vec<Step>,
    end: Option<End>,
    rotary: Rotary,
    /// `[buckets, heads]`.
    relative_bias: Option<Var>,
}

/// One step of the chain.
struct Step {
    down: Linear,
    /// Where taps join through gates.
    gate: Option<Var>,
    layer: LayerWeights,
}

/// What comes after the last step.
struct End {
    norm: Norm,
    /// Not in the chain of an encoder.
    up: Option<Linear>,
}

impl Side {
    /// A side network whose parameters are `values` in the layout's flat order.
    pub fn new(device: &Device, layout: SideLayout, values: &[f32]) -> Result<Self, EngineError> {
        let parameters = ParameterSet::new(device, layout.parameters());
        if values.len() != parameters.flat_len() {
            let (expected, got) = (parameters.flat_len(), values.len());
            return Err(EngineError::WrongLength { what: "the side network's state", expected, got });
        }
        parameters.write_values(values);
        let var = |name: &str| {
            let missing = || EngineError::BadAdapter { name: name.to_string(), expected: Vec::new() };
            parameters.var(name).ok_or_else(missing)
        };
        let linear = |name: String| -> Result<Linear, EngineError> {
            Ok(Linear::plain(var(&format!("{name}.weight"))?, var(&format!("{name}.bias"))?))
        };
        let model = layout.side_model().clone();
        let first_down = if layout.is_first() { Some(linear(layout.name("down.0"))?) } else { None };
        let step = |i: usize| -> Result<Step, EngineError> {
            let layer = LayerWeights::gather(&model, |name| var(&layout.name(&format!("layers.{}.{name}", i - 1))))?;
            let gate = if layout.has_gates() { Some(var(&layout.gate_name(i))?) } else { None };
            Ok(Step { down: linear(layout.name(&format!("down.{i}")))?, gate, layer })
        };
        let steps = layout.steps().map(step).collect::<Result<_, _>>()?;
        let end = if layout.is_last() {
            let up = if layout.has_up() { Some(linear(layout.name("up"))?) } else { None };
            Some(End { norm: Norm::gather(&model, &layout.name("norm"), var)?, up })
        } else {
            None
        };
        let rotary = Rotary::new(device, &model);
        let relative_bias = layout.relative_bias().and_then(|(name, _)| parameters.var(&name));
        Ok(Self { parameters, model, first_down, steps, end, rotary, relative_bias, layout })
    }

    /// Gives a chain without a table of the bias by distance the model's, frozen; another keeps its own.
    pub fn share_bias(&mut self, table: Option<&Var>) {
        if self.relative_bias.is_none() {
            self.relative_bias = table.map(|table| Var::constant(table.value.clone()));
        }
    }

    /// The sizes of the side layers.
    pub fn model(&self) -> &ModelConfig {
        &self.model
    }

    /// `a_0` from the scaled embedding output; only on the part that has the first layer.
    pub fn start(&self, tape: &Tape, tap: &Tensor) -> Result<Var, EngineError> {
        let down = self.first_down.as_ref().ok_or_else(|| EngineError::BadStage("it does not hold the first layer".into()))?;
        Ok(down.apply(tape, &Var::constant(tap.clone())))
    }

    /// `a_i` from `a_{i−1}` and the scaled `i`-th tap; `i` is one of the layout's steps.
    pub fn step(&self, tape: &Tape, i: usize, a: &Var, tap: &Tensor, batch: &DeviceBatch) -> Result<Var, EngineError> {
        self.step_across(tape, i, a, tap, batch, None)
    }

    /// [`Side::step`] of a side decoder, which attends to the end of a side encoder.
    pub fn step_across(&self, tape: &Tape, i: usize, a: &Var, tap: &Tensor, batch: &DeviceBatch, memory: Option<&Memory>) -> Result<Var, EngineError> {
        let context = self_attention(tape, &self.model, self.relative_bias.as_ref(), batch, self.layout.layer(i));
        self.step_with(tape, i, a, tap, &batch.positions, &mut OwnKeys(context), memory)
    }

    /// The table of the bias by distance, `[buckets, heads]`: the chain's own or the model's, where there is one.
    pub fn relative_bias(&self) -> Option<&Var> {
        self.relative_bias.as_ref()
    }

    /// [`Side::step_across`] with keys that may come from a cache.
    #[expect(clippy::too_many_arguments, reason = "what a layer needs and where it stands in the chain")]
    pub fn step_with(
        &self,
        tape: &Tape,
        i: usize,
        a: &Var,
        tap: &Tensor,
        positions: &Tensor,
        keys: &mut dyn Keys,
        memory: Option<&Memory>,
    ) -> Result<Var, EngineError> {
        let step = &self.steps[i - self.layout.steps().start];
        let p = step.down.apply(tape, &Var::constant(tap.clone()));
        let s = match (&step.gate, self.layout.config().fusion) {
            (Some(gate), Fusion::Gate { temperature }) => tape.gate_mix(a, &p, gate, temperature),
            _ => tape.add(a, &p),
        };
        drop(p);
        let inv_freq = self.rotary.of(&self.model, self.layout.layer(i));
        layer_forward(tape, &self.model, &step.layer, &s, LayerInput { positions, inv_freq, keys, memory })
    }

    /// `out` from the last `a`, with `base = b_L` and `rho = ρ(b_L)` of the same rows.
    pub fn finish(&self, tape: &Tape, a: &Var, base: &Tensor, rho: &Tensor) -> Result<Var, EngineError> {
        let end = self.end.as_ref().ok_or_else(|| EngineError::BadStage("it does not hold the last layer".into()))?;
        let up = end.up.as_ref().ok_or_else(|| EngineError::BadStage("it is the chain of an encoder, which has no output".into()))?;
        let normed = end.norm.apply(tape, a);
        Ok(tape.scaled_add(base, rho, &up.apply(tape, &normed)))
    }

    /// The normed end of an encoder's chain: what the side decoder attends to.
    pub fn normed(&self, tape: &Tape, a: &Var) -> Result<Var, EngineError> {
        let end = self.end.as_ref().ok_or_else(|| EngineError::BadStage("it does not hold the last layer".into()))?;
        Ok(end.norm.apply(tape, a))
    }
}
