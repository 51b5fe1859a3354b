//! The frozen (or wholly trained) model: embedding, layers, final norm and head, of any family.

mod ends;
mod layer;
mod positions;
mod source;
mod weights;

pub use ends::{Embeddings, Head, Shards};
pub use layer::{Keys, LayerInput, LayerWeights, Linear, Memory, Norm, OwnKeys, layer_forward};
pub use positions::Rotary;
pub use weights::{SHARD_BYTES, upload, upload_f32};

use crate::EngineError;
use crate::backend::BackendKind;
use crate::gpu::MAX_HEAD_DIM;
use crate::packed::{DeviceBatch, cross_attention};
use crate::params::ParameterSet;
use crate::tape::{AttentionContext, Tape, Var, YieldHook};
use crate::tensor::{Device, Tensor};
use barycenter_model::names::{self, Parts};
use barycenter_model::{ModelConfig, TensorSource};
pub(crate) use positions::bias_by_distance;
use source::{Frozen, ParameterSource, PartlyTrained};
use std::ops::Range;

/// Contiguous layers of a stack, with the embedding on the first stage and norm and head on the last. Of an
/// encoder-decoder model it is the decoder; the encoder stands before the embedding.
pub struct Backbone {
    /// The stack's sizes.
    pub config: ModelConfig,
    /// Which layers, from 0.
    pub range: Range<usize>,
    /// On the first stage.
    pub embeddings: Option<Embeddings>,
    /// The layers of `range`.
    pub layers: Vec<LayerWeights>,
    /// On the last stage.
    pub head: Option<Head>,
    /// On the first stage of a decoder that has one.
    pub encoder: Option<Box<Backbone>>,
    device: Device,
    rotary: Rotary,
    /// `[buckets, heads]`.
    relative_bias: Option<Var>,
}

impl Backbone {
    /// Loads frozen weights, one tensor at a time; f16 and bf16 stay packed.
    ///
    /// # Errors
    /// If a tensor is missing, has another shape than the config says or holds what is not a number; if the config says
    /// that the head is the embedding and the file holds another; if heads are wider than the device's kernels hold.
    pub fn load(device: &Device, config: &ModelConfig, source: &mut dyn TensorSource, parts: &Parts) -> Result<Self, EngineError> {
        names::check(config, parts, source)?;
        if parts.head && parts.embedding {
            names::check_tied_head(config, source)?;
        }
        Self::build(device, config, &mut Frozen { device, source }, parts)
    }

    /// [`Backbone::load`] with the parameters that `trained` names as its trained leaves.
    pub fn load_with(
        device: &Device,
        config: &ModelConfig,
        source: &mut dyn TensorSource,
        parts: &Parts,
        trained: &ParameterSet,
    ) -> Result<Self, EngineError> {
        names::check(config, parts, source)?;
        Self::build(device, config, &mut PartlyTrained { trained, frozen: Frozen { device, source } }, parts)
    }

    /// [`Backbone::load_with`] where something is trained, else [`Backbone::load`].
    pub fn load_partly(
        device: &Device,
        config: &ModelConfig,
        source: &mut dyn TensorSource,
        parts: &Parts,
        trained: Option<&ParameterSet>,
    ) -> Result<Self, EngineError> {
        match trained {
            Some(trained) => Self::load_with(device, config, source, parts, trained),
            None => Self::load(device, config, source, parts),
        }
    }

    /// The whole model with every weight a trained leaf of `parameters` (named as in the weight file).
    pub fn trained(device: &Device, config: &ModelConfig, parameters: &ParameterSet) -> Result<Self, EngineError> {
        Self::build(device, config, &mut &*parameters, &Parts::all(config))
    }

    fn build(device: &Device, config: &ModelConfig, source: &mut dyn ParameterSource, parts: &Parts) -> Result<Self, EngineError> {
        let words = if parts.embedding { Some(source.table(&names::embedding(config), 0)?) } else { None };
        Self::build_on(device, config, source, parts, words)
    }

    /// With the embedding's matrix already there: the stacks of a model may share it.
    fn build_on(
        device: &Device,
        config: &ModelConfig,
        source: &mut dyn ParameterSource,
        parts: &Parts,
        words: Option<Shards>,
    ) -> Result<Self, EngineError> {
        check_heads(device.info().kind, config)?;
        let encoder = match (&config.encoder, &words) {
            (Some(encoder), Some(words)) => {
                let own = names::embedding(encoder);
                let words = if own == names::embedding(config) { words.clone() } else { source.table(&own, 0)? };
                let encoder = Self::build_on(device, encoder, source, &Parts::all(encoder), Some(words))?;
                Some(Box::new(encoder))
            }
            _ => None,
        };
        let embeddings = words.clone().map(|words| Embeddings::gather(config, words, source)).transpose()?;
        let relative_bias = names::relative_bias(config).filter(|_| !parts.layers.is_empty());
        let relative_bias = relative_bias.map(|table| source.get(&table.name)).transpose()?;
        let mut layer = |index| LayerWeights::gather(config, |name| source.get(&names::layer_parameter(config, index, name)));
        let layers = parts.layers.clone().map(&mut layer).collect::<Result<_, _>>()?;
        let head = if parts.head { Some(Head::gather(config, words.as_ref(), source)?) } else { None };
        let rotary = Rotary::new(device, config);
        let (config, device) = (config.clone(), device.clone());
        Ok(Self { config, range: parts.layers.clone(), embeddings, layers, head, encoder, device, rotary, relative_bias })
    }

    /// Where it computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The embedding output `b_0: [tokens, width]`; `None` where the stage does not hold the embedding.
    pub fn embed(&self, tape: &Tape, batch: &DeviceBatch) -> Option<Var> {
        Some(self.embeddings.as_ref()?.apply(tape, &batch.ids, &batch.positions, batch.token_types.as_ref()))
    }

    /// Applies the stage's `index`-th layer.
    ///
    /// # Errors
    /// If the layer attends to an encoder: see [`Backbone::layer_across`].
    pub fn layer(&self, tape: &Tape, index: usize, x: &Var, batch: &DeviceBatch) -> Result<Var, EngineError> {
        self.layer_across(tape, index, x, batch, None)
    }

    /// Applies the stage's `index`-th layer, which may attend to an encoder's output.
    pub fn layer_across(&self, tape: &Tape, index: usize, x: &Var, batch: &DeviceBatch, memory: Option<&Memory>) -> Result<Var, EngineError> {
        let context = self_attention(tape, &self.config, self.relative_bias.as_ref(), batch, self.range.start + index);
        self.layer_with(tape, index, x, &batch.positions, &mut OwnKeys(context), memory)
    }

    /// Applies the stage's `index`-th layer with keys that may come from a cache; it may attend to an encoder's output.
    pub fn layer_with(
        &self,
        tape: &Tape,
        index: usize,
        x: &Var,
        positions: &Tensor,
        keys: &mut dyn Keys,
        memory: Option<&Memory>,
    ) -> Result<Var, EngineError> {
        let inv_freq = self.rotary.of(&self.config, self.range.start + index);
        layer_forward(tape, &self.config, &self.layers[index], x, LayerInput { positions, inv_freq, keys, memory })
    }

    /// Runs the encoder over its own batch; the memory of `batch`'s sequences, in the same order.
    pub fn encode(&self, tape: &Tape, encoder_batch: &DeviceBatch, batch: &DeviceBatch) -> Result<Memory, EngineError> {
        let missing = || EngineError::BadStage("it holds no encoder".into());
        let encoder = self.encoder.as_ref().ok_or_else(missing)?;
        let mut x = encoder.embed(tape, encoder_batch).ok_or_else(missing)?;
        for index in 0..encoder.layers.len() {
            x = encoder.layer(tape, index, &x, encoder_batch)?;
        }
        self.remember(tape, &x, encoder_batch, batch)
    }

    /// The memory made of what leaves the encoder's last layer.
    pub(crate) fn remember(&self, tape: &Tape, encoded: &Var, encoder_batch: &DeviceBatch, batch: &DeviceBatch) -> Result<Memory, EngineError> {
        let head = self.encoder.as_ref().and_then(|encoder| encoder.head.as_ref());
        let head = head.ok_or_else(|| EngineError::BadStage("it holds no encoder".into()))?;
        Ok(Memory { hidden: head.normed(tape, encoded), context: cross_attention(&self.config, batch, encoder_batch) })
    }

    /// The head.
    ///
    /// # Errors
    /// If it is not held, or the model has none.
    pub fn whole_head(&self) -> Result<&Head, EngineError> {
        let head = self.head.as_ref().filter(|head| !head.shards.is_empty());
        head.ok_or_else(|| EngineError::BadStage("it holds no head".into()))
    }

    /// The table of the bias by distance, `[buckets, heads]`, where the stack has one.
    pub fn relative_bias(&self) -> Option<&Var> {
        self.relative_bias.as_ref()
    }

    /// What the decoder's layers attend to, of a batch that comes with what its encoder reads; `None` of a single stack.
    ///
    /// # Errors
    /// If the model has an encoder and the batch nothing for it.
    pub fn memory(&self, tape: &Tape, batch: &DeviceBatch) -> Result<Option<Memory>, EngineError> {
        if self.encoder.is_none() {
            return Ok(None);
        }
        let source = batch.encoder.as_ref().ok_or_else(|| EngineError::BadBatch("it has nothing for the model's encoder to read".into()))?;
        self.encode(tape, source, batch).map(Some)
    }

    /// Hidden states `[tokens, width]` behind the last layer held, from token ids or from where another pass ended. Others get
    /// a turn after each layer.
    ///
    /// # Errors
    /// If there is no start and the embedding is not held; those of [`Backbone::memory`].
    pub async fn run(&self, tape: &Tape, batch: &DeviceBatch, start: Option<Start>, hook: &YieldHook) -> Result<Var, EngineError> {
        let missing = || EngineError::BadStage("its frozen prefix was dropped: batches must come with their cached boundary".into());
        let Start { rows: mut x, layer, memory } = match start {
            Some(start) => start,
            None => {
                let memory = self.memory(tape, batch)?;
                Start { rows: self.embed(tape, batch).ok_or_else(missing)?, layer: 0, memory }
            }
        };
        for index in layer..self.layers.len() {
            x = self.layer_across(tape, index, &x, batch, memory.as_ref())?;
            self.device.submit();
            hook().await;
        }
        Ok(x)
    }

    /// Refuses a model that does not decode token by token here.
    ///
    /// # Errors
    /// If the model has an encoder, or is one.
    pub fn check_decoder(config: &ModelConfig) -> Result<(), EngineError> {
        if !config.is_decoder_only() {
            return Err(EngineError::NotADecoder { model_type: config.family.model_type() });
        }
        Ok(())
    }
}

/// Refuses a model whose heads no kernel of the back end holds.
fn check_heads(kind: BackendKind, config: &ModelConfig) -> Result<(), EngineError> {
    let (head_dim, limit) = (config.head_dim, MAX_HEAD_DIM as usize);
    if kind == BackendKind::Webgpu && head_dim > limit { Err(EngineError::HeadTooWide { head_dim, limit }) } else { Ok(()) }
}

/// Where a pass goes on that has been through the layers before.
pub struct Start {
    /// What enters the layer, `[tokens, width]`.
    pub rows: Var,
    /// The layer's index among those held.
    pub layer: usize,
    /// What the decoder of an encoder-decoder model attends to.
    pub memory: Option<Memory>,
}

/// Attention of each sequence to itself in a layer (from 0), with the bias by distance of a `table` `[buckets, heads]`.
pub(crate) fn self_attention(tape: &Tape, config: &ModelConfig, table: Option<&Var>, batch: &DeviceBatch, layer: usize) -> AttentionContext {
    let mut context = batch.attention(config, layer);
    if let Some((bias, zero)) = table.and_then(|table| bias_by_distance(tape, config, table, batch.longest)) {
        context.shape.bias_zero = zero;
        context.bias = Some(bias);
    }
    context
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_wider_than_the_kernels_are_refused_where_there_are_kernels() {
        let config = |head_dim: usize| ModelConfig::parse(&serde_json::json!({ "model_type": "llama", "head_dim": head_dim }).to_string()).expect("it is read");
        assert!(check_heads(BackendKind::Webgpu, &config(256)).is_ok() && check_heads(BackendKind::Cpu, &config(512)).is_ok());
        let said = check_heads(BackendKind::Webgpu, &config(512)).expect_err("too wide").to_string();
        assert!(said.contains("512") && said.contains("256"), "{said}");
    }
}
