//! Parallel adapters beside all stacks of a model on one device: a chain of side layers for each stack (docs/METHOD.md).
//!
//! A model of one stack has one chain, `side.…`. An encoder-decoder model has two: `side.encoder.…` reads the encoder's
//! taps; the layers of `side.decoder.…` attend to its normed end as the decoder's attend to the encoder's. Only the decoder's
//! chain has an Up, so that what the backbone computes stays what it is, and both stacks' taps can be cached.

use crate::EngineError;
use crate::backbone::{Backbone, Memory};
use crate::packed::{DeviceBatch, cross_attention};
use crate::params::ParameterSet;
use crate::side::{Chain, Fusion, Side, SideConfig, SideLayout, flat_from_named, initial_values, named_from_flat};
use crate::tape::{Tape, Var, YieldHook};
use crate::tensor::{Device, Tensor};
use barycenter_model::{ModelConfig, RawTensor, TensorSource, names};
use std::collections::BTreeMap;

/// What the side networks of a model's stacks look like.
#[derive(Clone, Debug, PartialEq)]
pub struct ChainsConfig {
    /// k: widths are those of the backbone divided by it.
    pub reduction: usize,
    /// How taps join the chains.
    pub fusion: Fusion,
    /// Taps of the only stack, or of the decoder ([`SideConfig::taps`]); all where not given.
    pub taps: Option<Vec<usize>>,
    /// Taps of the encoder beside a decoder.
    pub encoder_taps: Option<Vec<usize>>,
}

impl ChainsConfig {
    /// Version 1: gates of temperature 0.1, every layer tapped.
    pub fn new(reduction: usize) -> Self {
        Self { reduction, fusion: Fusion::default(), taps: None, encoder_taps: None }
    }

    /// A layout for each stack of a model, the encoder's first.
    ///
    /// # Errors
    /// If the model's sizes cannot be divided.
    pub fn layouts(&self, model: &ModelConfig) -> Result<Vec<SideLayout>, EngineError> {
        let layout = |(stack, _): (&ModelConfig, _)| {
            let chain = match (&model.encoder, stack.causal) {
                (None, _) => Chain::Only,
                (Some(_), false) => Chain::Encoder,
                (Some(_), true) => Chain::Decoder,
            };
            let mut config = SideConfig { fusion: self.fusion, ..SideConfig::new(self.reduction, stack.layers) };
            if let Some(taps) = if chain == Chain::Encoder { &self.encoder_taps } else { &self.taps } {
                config.taps.clone_from(taps);
            }
            Ok(SideLayout::whole(stack, &config)?.of_chain(chain))
        };
        names::stacks(model).map(layout).collect()
    }
}

/// The side networks of a model's stacks, on a device; the encoder's first.
pub struct Chains {
    chains: Vec<Side>,
}

/// What the chains read of a batch, and what their output is added to.
pub struct Taps {
    /// For each chain its scaled taps, `[tokens, width]` each.
    pub stacks: Vec<Vec<Tensor>>,
    /// b_L at the labelled rows, `[labelled, width]`.
    pub base: Tensor,
    /// Its root mean square, `[labelled]`.
    pub rho: Tensor,
}

impl Chains {
    /// Chains that change nothing yet: random by the seed, Up at 0; a table of the bias by distance starts as the model's.
    pub fn fresh(device: &Device, model: &ModelConfig, config: &ChainsConfig, source: &mut dyn TensorSource, seed: u64) -> Result<Self, EngineError> {
        let mut start: BTreeMap<String, RawTensor> = BTreeMap::new();
        for (layout, (stack, _)) in config.layouts(model)?.iter().zip(names::stacks(model)) {
            start.extend(named_from_flat(layout, &initial_values(layout, seed))?);
            if let (Some((name, shape)), Some(table)) = (layout.relative_bias(), names::relative_bias(stack)) {
                start.insert(name, RawTensor::from_f32(&shape, &source.load_weight(&table.name, &shape)?.to_f32()));
            }
        }
        Self::load(device, model, config, |name| start.get(name).cloned())
    }

    /// Chains whose values `find` gives by name. One without a table of the bias by distance shares the model's
    /// ([`Chains::share_bias`]): version 1 asks for the same positions, not for whose table.
    ///
    /// # Errors
    /// If one is missing or of another shape, or the model's sizes cannot be divided.
    pub fn load(device: &Device, model: &ModelConfig, config: &ChainsConfig, mut find: impl FnMut(&str) -> Option<RawTensor>) -> Result<Self, EngineError> {
        let side = |mut layout: SideLayout| {
            if layout.relative_bias().is_some_and(|(name, _)| find(&name).is_none()) {
                layout = layout.sharing_bias();
            }
            let flat = flat_from_named(&layout, &mut find)?;
            Side::new(device, layout, &flat)
        };
        Ok(Self { chains: config.layouts(model)?.into_iter().map(side).collect::<Result<_, _>>()? })
    }

    /// Gives chains without tables of the bias by distance those of the model's stacks.
    pub fn share_bias(&mut self, model: &Backbone) {
        let stacks = model.encoder.as_deref().into_iter().chain([model]);
        self.chains.iter_mut().zip(stacks).for_each(|(side, stack)| side.share_bias(stack.relative_bias()));
    }

    /// What they look like.
    pub fn layouts(&self) -> impl Iterator<Item = &SideLayout> {
        self.chains.iter().map(|side| &side.layout)
    }

    /// What is trained, a set for each chain.
    pub fn parameters(&self) -> impl Iterator<Item = &ParameterSet> {
        self.chains.iter().map(|side| &side.parameters)
    }

    /// Flat vectors in the order of [`Chains::parameters`], values or gradients, as tensors by name.
    pub fn named(&self, flats: &[Vec<f32>]) -> Result<BTreeMap<String, RawTensor>, EngineError> {
        let mut named = BTreeMap::new();
        for (side, flat) in self.chains.iter().zip(flats) {
            named.extend(named_from_flat(&side.layout, flat)?);
        }
        Ok(named)
    }

    /// The chain whose output is added: that of the only stack, or of the decoder.
    ///
    /// # Errors
    /// If there is none.
    pub fn last(&self) -> Result<&Side, EngineError> {
        self.chains.last().ok_or_else(no_chain)
    }

    /// `out` (docs/METHOD.md) at the labelled rows of a batch, `[labelled, width]`.
    pub async fn output(&self, tape: &Tape, taps: &Taps, batch: &DeviceBatch, hook: &YieldHook) -> Result<Var, EngineError> {
        let (side, encoder) = self.chains.split_last().ok_or_else(no_chain)?;
        let (side_taps, encoder_taps) = taps.stacks.split_last().ok_or_else(no_chain)?;
        let memory = match (encoder.first(), encoder_taps.first(), &batch.encoder) {
            (Some(encoder), Some(taps), Some(source)) => {
                let a = ascend(encoder, tape, taps, source, None, hook).await?;
                Some(Memory { hidden: encoder.normed(tape, &a)?, context: cross_attention(side.model(), batch, source) })
            }
            _ => None,
        };
        let a = ascend(side, tape, side_taps, batch, memory.as_ref(), hook).await?;
        side.finish(tape, &tape.gather_rows(&a, &batch.labelled_rows), &taps.base, &taps.rho)
    }
}

/// What decoding attends to of sources on the device: the encoder's normed end `[source tokens, width]` and, with chains,
/// that of the side encoder.
///
/// # Errors
/// If there is no encoder, or no chain for it.
pub(crate) async fn encode(
    model: &Backbone,
    chains: Option<&Chains>,
    source: &DeviceBatch,
    hook: &YieldHook,
) -> Result<(Var, Option<Var>), EngineError> {
    let tape = Tape::computing(model.device());
    let encoder = model.encoder.as_deref().ok_or_else(|| EngineError::BadStage("it holds no encoder".into()))?;
    let head = encoder.head.as_ref().ok_or_else(|| EngineError::BadStage("its encoder has no end".into()))?;
    let side = chains.map(|chains| chains.chains.first().filter(|_| chains.chains.len() == 2).ok_or_else(no_chain)).transpose()?;
    let wanted = side.map(|side| side.layout.config().taps.as_slice()).unwrap_or_default();
    let (taps, hidden, _) = climb(encoder, wanted, &tape, source, None, hook).await?;
    let beside = match side {
        Some(side) => Some(side.normed(&tape, &ascend(side, &tape, &taps, source, None, hook).await?)?),
        None => None,
    };
    Ok((head.normed(&tape, &hidden), beside))
}

fn no_chain() -> EngineError {
    EngineError::BadStage("there is no side network for each of the model's stacks".into())
}

/// The last `a` of a chain.
async fn ascend(side: &Side, tape: &Tape, taps: &[Tensor], batch: &DeviceBatch, memory: Option<&Memory>, hook: &YieldHook) -> Result<Var, EngineError> {
    let first = taps.first().ok_or_else(|| EngineError::BadStage("the side network has no taps".into()))?;
    let mut a = side.start(tape, first)?;
    for (i, tap) in taps.iter().enumerate().skip(1) {
        a = side.step_across(tape, i, &a, tap, batch, memory)?;
        tape.device().submit();
        hook().await;
    }
    Ok(a)
}

impl Taps {
    /// Runs the frozen stacks over a batch.
    pub async fn compute(model: &Backbone, chains: &Chains, batch: &DeviceBatch, hook: &YieldHook) -> Result<Self, EngineError> {
        let tape = Tape::computing(model.device());
        let mut layouts = chains.layouts();
        let mut wanted = || layouts.next().map(|layout| layout.config().taps.as_slice()).unwrap_or_default();
        let mut stacks = Vec::new();
        let mut memory = None;
        if let Some(encoder) = &model.encoder {
            let source = batch.encoder.as_ref().ok_or_else(|| EngineError::BadBatch("it has nothing for the model's encoder to read".into()))?;
            let (taps, hidden, _) = climb(encoder, wanted(), &tape, source, None, hook).await?;
            stacks.push(taps);
            memory = Some(model.remember(&tape, &hidden, source, batch)?);
        }
        let (taps, hidden, rho) = climb(model, wanted(), &tape, batch, memory.as_ref(), hook).await?;
        stacks.push(taps);
        let rows = &batch.labelled_rows;
        let rho = tape.gather_rows(&Var::constant(rho.reshaped(&[rho.len(), 1])), rows).value;
        Ok(Self { stacks, base: tape.gather_rows(&hidden, rows).value, rho: rho.reshaped(&[rows.len()]) })
    }
}

/// The scaled taps of a stack with these numbers, what leaves its last layer, and the root mean square of that.
async fn climb(
    stack: &Backbone,
    wanted: &[usize],
    tape: &Tape,
    batch: &DeviceBatch,
    memory: Option<&Memory>,
    hook: &YieldHook,
) -> Result<(Vec<Tensor>, Var, Tensor), EngineError> {
    let dropped = || EngineError::BadStage("its frozen layers were dropped: batches must come with their cached taps".into());
    let mut x = stack.embed(tape, batch).ok_or_else(dropped)?;
    let (tap, mut rho) = tape.tap_scale(&x.value);
    let mut taps = vec![tap];
    for index in 0..stack.layers.len() {
        x = stack.layer_across(tape, index, &x, batch, memory)?;
        let tap;
        (tap, rho) = tape.tap_scale(&x.value);
        if wanted.contains(&(index + 1)) {
            taps.push(tap);
        }
        stack.device().submit();
        hook().await;
    }
    Ok((taps, x, rho))
}
