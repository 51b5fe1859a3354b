//! What one node holds of a run: frozen layers, the side network beside them, its optimiser; and the passes over them.
//!
//! In the fill phase a node holds a stage: [`StageRuntime::forward`] and [`StageRuntime::backward`] pass rows and side
//! gradients between stages. In the train phase it holds the whole side network and of the backbone only final norm and
//! head: [`StageRuntime::train_cached`] reads taps from the cache. No gradient ever enters the backbone.

use crate::EngineError;
use crate::backbone::Backbone;
use crate::backend::BackendKind;
use crate::cache_entry::CacheDtype;
use crate::loss::cross_entropy;
use crate::optim::{AdamW, AdamWConfig};
use crate::packed::{DeviceBatch, MicroBatch};
use crate::side::{Side, SideConfig, SideLayout, flat_from_named, initial_values, named_from_flat};
use crate::tape::{Tape, Var, YieldHook};
use crate::tensor::{Device, Tensor};
use barycenter_model::names::Parts;
use barycenter_model::{ModelConfig, RawTensor, TensorSource};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::rc::Rc;

/// Seconds on a clock that never goes back.
pub type Clock = Rc<dyn Fn() -> f64>;

/// Rows that enter a stage.
pub struct StageInput {
    /// Residual stream `[tokens, width]`.
    pub b: Vec<f32>,
    /// Side stream `[tokens, side width]`; absent where the pass is forward-only.
    pub a: Option<Vec<f32>>,
}

/// What a forward pass gives.
pub struct StageOutput {
    /// Residual stream behind the last layer held, `[tokens, width]`; empty on the last stage.
    pub b: Vec<f32>,
    /// Side stream, `[tokens, side width]`; empty on the last stage and where forward-only.
    pub a: Vec<f32>,
    /// Cache entries: per sequence, the encoded taps this stage produces, in order.
    pub entries: Vec<Vec<Vec<u8>>>,
    /// Σ loss over labelled positions, on the last stage, unless forward-only.
    pub loss_sum: Option<f64>,
    /// Time spent in frozen layers.
    pub backbone_seconds: f64,
    /// Time spent in the side network.
    pub side_seconds: f64,
}

/// A pass to make.
pub struct ForwardPass<'a> {
    /// Sequences laid end to end.
    pub batch: &'a MicroBatch,
    /// From the stage before; `None` on the first.
    pub input: Option<StageInput>,
    /// No side network, nothing kept.
    pub forward_only: bool,
    /// Whether `entries` are wanted.
    pub cache: bool,
    /// Multiplies the loss gradient: 1 / labelled tokens of the whole mini-batch.
    pub loss_factor: f32,
}

/// Adapter and optimiser state in flat order.
#[derive(Clone, Debug, PartialEq)]
pub struct SideState {
    /// Parameters.
    pub values: Vec<f32>,
    /// First moments.
    pub m: Vec<f32>,
    /// Second moments.
    pub v: Vec<f32>,
}

/// Kept between forward and backward.
struct Pending {
    tape: Tape,
    input: Option<Var>,
    output: Option<Var>,
}

/// See the module.
pub struct StageRuntime {
    device: Device,
    config: ModelConfig,
    layers: Range<usize>,
    backbone: Option<Backbone>,
    side: Option<(Side, AdamW)>,
    cache_dtype: CacheDtype,
    cached_taps: Option<Vec<usize>>,
    pending: HashMap<u64, Pending>,
    hook: YieldHook,
    clock: Clock,
}

impl StageRuntime {
    /// A node that holds nothing yet.
    pub fn new(device: &Device, config: ModelConfig, layers: Range<usize>, hook: YieldHook, clock: Clock) -> Self {
        Self { device: device.clone(), config, layers, backbone: None, side: None, cache_dtype: CacheDtype::default(), cached_taps: None, pending: HashMap::new(), hook, clock }
    }

    /// What cache entries hold: the taps of that side network in this number format. If never said, all taps in half precision.
    pub fn cache_as(&mut self, dtype: CacheDtype, side: &SideConfig) {
        self.cache_dtype = dtype;
        self.cached_taps = Some(side.taps.clone());
    }

    /// Loads frozen weights: a stage's, or final norm and head only.
    pub fn load_backbone(&mut self, source: &mut dyn TensorSource, parts: &Parts) -> Result<(), EngineError> {
        Backbone::check_decoder(&self.config)?;
        self.backbone = None;
        self.backbone = Some(Backbone::load(&self.device, &self.config, source, parts)?);
        Ok(())
    }

    /// Frees frozen weights and whatever waits for a backward pass.
    pub fn drop_backbone(&mut self) {
        self.backbone = None;
        self.pending.clear();
    }

    /// Starts the side network of some layers (the stage's, or all for the train phase) from the seed.
    pub fn start_side(&mut self, config: &SideConfig, layers: Range<usize>, optimiser: AdamWConfig, seed: u64) -> Result<(), EngineError> {
        let layout = SideLayout::new(&self.config, config, layers)?;
        let values = initial_values(&layout, seed);
        let zeros = vec![0.0; values.len()];
        self.set_side(layout, optimiser, &SideState { m: zeros.clone(), v: zeros, values })
    }

    /// Starts the side network from a checkpoint: `find` looks up `side.*`, `m.side.*`, `v.side.*`.
    pub fn restore_side(&mut self, config: &SideConfig, layers: Range<usize>, optimiser: AdamWConfig, mut find: impl FnMut(&str) -> Option<RawTensor>) -> Result<(), EngineError> {
        let layout = SideLayout::new(&self.config, config, layers)?;
        let values = flat_from_named(&layout, &mut find)?;
        let m = flat_from_named(&layout, |name| find(&format!("m.{name}")))?;
        let v = flat_from_named(&layout, |name| find(&format!("v.{name}")))?;
        self.set_side(layout, optimiser, &SideState { values, m, v })
    }

    fn set_side(&mut self, layout: SideLayout, optimiser: AdamWConfig, state: &SideState) -> Result<(), EngineError> {
        self.side = None;
        let side = Side::new(&self.device, layout, &state.values)?;
        side.parameters.zero_grads();
        let adam_w = AdamW::new(&self.device, &side.parameters, optimiser);
        adam_w.write_moments(&state.m, &state.v);
        self.side = Some((side, adam_w));
        Ok(())
    }

    fn side(&self) -> Result<&(Side, AdamW), EngineError> {
        self.side.as_ref().ok_or_else(|| EngineError::BadStage("it holds no side network".into()))
    }

    fn backbone(&self) -> Result<&Backbone, EngineError> {
        self.backbone.as_ref().ok_or_else(|| EngineError::BadStage("it holds no frozen weights".into()))
    }

    /// Width of the residual stream.
    pub fn width(&self) -> usize {
        self.config.width
    }

    /// Width of the side stream; 0 without a side network.
    pub fn side_width(&self) -> usize {
        self.side.as_ref().map_or(0, |(side, _)| side.model().width)
    }

    /// Where the time goes on a device that works behind our back: waits until it has done what was recorded.
    async fn settle(&self, probe: &Tensor) -> Result<(), EngineError> {
        if self.device.info().kind == BackendKind::Webgpu && !probe.is_empty() {
            self.device.read(probe.buffer(), 0, 1).await?;
        }
        Ok(())
    }

    /// Frozen layers, and side layers unless forward-only. Keeps under `key` what the backward pass needs.
    pub async fn forward(&mut self, key: u64, pass: ForwardPass<'_>) -> Result<StageOutput, EngineError> {
        let started = (self.clock)();
        pass.batch.check(&self.config)?;
        let backbone = self.backbone()?;
        let (is_first, is_last) = (self.layers.start == 0, self.layers.end == self.config.layers);
        let batch = DeviceBatch::new(&self.device, pass.batch);
        let tokens = batch.tokens();
        let computing = Tape::computing(&self.device);
        let (input_b, input_a) = match pass.input {
            Some(StageInput { b, a }) => (Some(b), a),
            None => (None, None),
        };
        let mut x = match input_b {
            Some(b) => Var::constant(self.rows(&b, tokens, self.config.width, "the residual stream")?),
            None => backbone.embed(&computing, &batch).ok_or_else(|| EngineError::BadStage("it got no rows and is not the first stage".into()))?,
        };
        // Taps by their number: 0 on the first stage, then one behind every layer held.
        let mut taps: Vec<(usize, Tensor, Tensor)> = Vec::new();
        if is_first {
            let (tap, rho) = computing.tap_scale(&x.value);
            taps.push((0, tap, rho));
        }
        for index in 0..self.layers.len() {
            x = backbone.layer(&computing, index, &x, &batch)?;
            let (tap, rho) = computing.tap_scale(&x.value);
            taps.push((self.layers.start + index + 1, tap, rho));
            self.device.submit();
            (self.hook)().await;
        }
        self.settle(&x.value).await?;
        let entries = if pass.cache { self.encode_taps(pass.batch, &taps).await? } else { Vec::new() };
        let b = if is_last { Vec::new() } else { x.value.read().await? };
        let backbone_done = (self.clock)();
        let mut output = StageOutput { b, a: Vec::new(), entries, loss_sum: None, backbone_seconds: backbone_done - started, side_seconds: 0.0 };
        if pass.forward_only {
            return Ok(output);
        }

        let (side, _) = self.side()?;
        let tape = Tape::recording(&self.device);
        let side_input = match input_a {
            Some(a) => Some(Var::input(self.rows(&a, tokens, side.model().width, "the side stream")?)),
            None => None,
        };
        let (_, base_tap, base_rho) = taps.last().ok_or_else(|| EngineError::BadStage("it holds no layer".into()))?.clone();
        let mut a = match &side_input {
            Some(a) => a.clone(),
            None => side.start(&tape, &taps[0].1)?,
        };
        for (number, tap, _) in taps.iter().filter(|(number, ..)| *number > 0) {
            if let Some(step) = side.layout.step_after_layer(number - 1) {
                a = side.step(&tape, step, &a, tap, &batch)?;
            }
            self.device.submit();
            (self.hook)().await;
        }
        drop(base_tap);
        drop(taps);
        let kept = if is_last {
            let labelled = Labelled::new(&self.device, pass.batch);
            let base = computing.gather_rows(&x, &labelled.rows).value;
            let rho = computing.gather_rows(&Var::constant(base_rho.reshaped(&[tokens, 1])), &labelled.rows).value;
            output.loss_sum = Some(self.finish(&tape, side, &a, &labelled, &base, &rho, pass.loss_factor).await?);
            None
        } else {
            output.a = a.value.read().await?;
            Some(a)
        };
        self.pending.insert(key, Pending { tape, input: side_input, output: kept });
        output.side_seconds = (self.clock)() - backbone_done;
        Ok(output)
    }

    /// Side gradients from behind the last layer held (absent on the last stage) to before the first one (absent on the
    /// first stage); adds to the parameters' gradients. Also gives the seconds it took.
    pub async fn backward(&mut self, key: u64, gradient: Option<Vec<f32>>) -> Result<(Option<Vec<f32>>, f64), EngineError> {
        let started = (self.clock)();
        let Pending { tape, input, output } = self.pending.remove(&key).ok_or_else(|| EngineError::BadStage("a backward pass was asked for that had no forward pass".into()))?;
        if let Some(output) = output {
            let gradient = gradient.ok_or_else(|| EngineError::BadStage("a stage before the last got no gradient".into()))?;
            output.add_gradient(self.rows(&gradient, output.value.rows(), output.value.cols(), "the side gradient")?);
        }
        tape.backward_yielding(&self.hook).await;
        let back = match input {
            Some(input) => match input.take_gradient() {
                Some(gradient) => Some(gradient.read().await?),
                None => Some(vec![0.0; input.value.len()]),
            },
            None => {
                self.settle(&self.side()?.0.parameters.first_values()).await?;
                None
            }
        };
        Ok((back, (self.clock)() - started))
    }

    /// Forward and backward of the whole side network from cached taps; adds to the gradients. `entries`: per sequence its
    /// encoded taps. Gives Σ loss over labelled positions. With `train` false only the loss is computed.
    pub async fn train_cached<E: AsRef<[Vec<u8>]>>(&mut self, batch: &MicroBatch, entries: &[E], loss_factor: f32, train: bool) -> Result<f64, EngineError> {
        batch.check(&self.config)?;
        let (side, _) = self.side()?;
        let on_device = DeviceBatch::new(&self.device, batch);
        let tape = if train { Tape::recording(&self.device) } else { Tape::computing(&self.device) };
        let mut a = None;
        let taps = side.layout.config().taps.len();
        let mut last = None;
        for tap in 0..taps {
            let (rows, rho) = self.decode_tap(batch, entries, tap, tap + 1 == taps)?;
            a = Some(match a {
                None => side.start(&tape, &rows)?,
                Some(a) => side.step(&tape, tap, &a, &rows, &on_device)?,
            });
            if tap + 1 == taps {
                last = Some((rows, rho));
            }
            self.device.submit();
            (self.hook)().await;
        }
        let (Some(a), Some((rows, rho))) = (a, last) else { return Err(EngineError::BadStage("the side network has no taps".into())) };
        let labelled = Labelled::new(&self.device, batch);
        let count = labelled.classes.len();
        let rho = Tensor::from_f32(&self.device, &[count], &rho);
        let computing = Tape::computing(&self.device);
        let base = computing.tap_unscale(&computing.gather_rows(&Var::constant(rows), &labelled.rows).value, &rho);
        let loss = self.finish(&tape, side, &a, &labelled, &base, &rho, loss_factor).await?;
        if train {
            tape.backward_yielding(&self.hook).await;
        }
        Ok(loss)
    }

    /// Output, head and loss at the labelled rows; on a recording tape also the start of the backward pass.
    #[expect(clippy::too_many_arguments, reason = "one call's worth of tensors, named where it is called")]
    async fn finish(&self, tape: &Tape, side: &Side, a: &Var, labelled: &Labelled, base: &Tensor, rho: &Tensor, factor: f32) -> Result<f64, EngineError> {
        let head = self.backbone()?.head.as_ref().ok_or_else(|| EngineError::BadStage("it does not hold the head".into()))?;
        let a = tape.gather_rows(a, &labelled.rows);
        let out = side.finish(tape, &a, base, &rho.reshaped(&[labelled.classes.len()]))?;
        let losses = cross_entropy(tape, head, &out, &labelled.classes, factor);
        drop((a, out));
        Ok(losses.sum().await?)
    }

    /// The gradients so far, in flat order.
    pub async fn gradients(&self) -> Result<Vec<f32>, EngineError> {
        Ok(self.side()?.0.parameters.read_grads().await?)
    }

    /// Overwrites the gradients.
    pub fn set_gradients(&self, gradients: &[f32]) -> Result<(), EngineError> {
        let parameters = &self.side()?.0.parameters;
        if gradients.len() != parameters.flat_len() {
            return Err(EngineError::WrongLength { what: "the reduced gradient", expected: parameters.flat_len(), got: gradients.len() });
        }
        parameters.write_grads(gradients);
        Ok(())
    }

    /// Σ g² of the gradients so far.
    pub async fn gradient_squared_norm(&self) -> Result<f64, EngineError> {
        Ok(self.gradients().await?.iter().map(|&g| f64::from(g) * f64::from(g)).sum())
    }

    /// One AdamW step (counted from 1) with the gradients held times `grad_factor`; then they are zero.
    pub fn apply(&self, step: u32, lr: f32, grad_factor: f32) -> Result<(), EngineError> {
        let (side, adam_w) = self.side()?;
        adam_w.step(&side.parameters, step, lr, grad_factor);
        side.parameters.zero_grads();
        self.device.submit();
        Ok(())
    }

    /// Parameters and moments by name, as a checkpoint holds them: `side.*`, `m.side.*`, `v.side.*`.
    pub async fn checkpoint(&self) -> Result<BTreeMap<String, RawTensor>, EngineError> {
        let (side, adam_w) = self.side()?;
        let values = side.parameters.read_values().await?;
        let (m, v) = adam_w.read_moments().await?;
        let mut tensors = named_from_flat(&side.layout, &values)?;
        for (prefix, flat) in [("m.", m), ("v.", v)] {
            tensors.extend(named_from_flat(&side.layout, &flat)?.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)));
        }
        Ok(tensors)
    }

    fn rows(&self, values: &[f32], rows: usize, cols: usize, what: &'static str) -> Result<Tensor, EngineError> {
        if values.len() != rows * cols {
            return Err(EngineError::WrongLength { what, expected: rows * cols, got: values.len() });
        }
        Ok(Tensor::from_f32(&self.device, &[rows, cols], values))
    }

    async fn encode_taps(&self, batch: &MicroBatch, taps: &[(usize, Tensor, Tensor)]) -> Result<Vec<Vec<Vec<u8>>>, EngineError> {
        let mut entries = vec![Vec::with_capacity(taps.len()); batch.segments.len()];
        let width = self.config.width;
        let tapped = self.cached_taps.as_deref();
        if tapped.is_some_and(|tapped| tapped.last() != Some(&self.config.layers)) {
            return Err(EngineError::BadStage("its last layer is not tapped, so a cache of taps would lack what the head needs".into()));
        }
        for (number, tap, rho) in taps.iter().filter(|(number, ..)| tapped.is_none_or(|tapped| tapped.contains(number))) {
            let values = tap.read().await?;
            let rho = if *number == self.config.layers { rho.read().await? } else { Vec::new() };
            for ((segment, labelled), list) in batch.segments.iter().zip(&batch.labelled_ranges).zip(&mut entries) {
                let at_labels: Vec<f32> = match rho.is_empty() {
                    true => Vec::new(),
                    false => batch.labelled_rows[labelled.clone()].iter().map(|&row| rho[row as usize]).collect(),
                };
                list.push(self.cache_dtype.encode(&values[segment.start * width..segment.end * width], width, &at_labels));
            }
        }
        Ok(entries)
    }

    /// A tap of all sequences `[tokens, width]`, widened on the device, and for the last one ρ of the labelled rows.
    fn decode_tap<E: AsRef<[Vec<u8>]>>(&self, batch: &MicroBatch, entries: &[E], tap: usize, is_last: bool) -> Result<(Tensor, Vec<f32>), EngineError> {
        let of_sequence = |(at, (segment, labelled)): (usize, (&Range<usize>, &Range<usize>))| {
            let bytes = entries.get(at).and_then(|list| list.as_ref().get(tap)).map(Vec::as_slice);
            (bytes, segment.clone(), if is_last { labelled.len() } else { 0 })
        };
        let of_sequences = batch.segments.iter().zip(&batch.labelled_ranges).enumerate().map(of_sequence);
        let damaged = || EngineError::BadBatch(format!("cache entry {tap} of a sample is missing or damaged: clear this device's cache"));
        self.cache_dtype.restore(&self.device, (batch.tokens(), self.config.width), of_sequences).ok_or_else(damaged)
    }
}

/// The labelled rows of a micro-batch, on the device.
struct Labelled {
    rows: Tensor,
    classes: Tensor,
}

impl Labelled {
    fn new(device: &Device, batch: &MicroBatch) -> Self {
        Self { rows: Tensor::from_u32(device, &batch.labelled_rows), classes: Tensor::from_u32(device, &batch.classes) }
    }
}
