//! Micro-batches without padding: sequences laid end to end.

use crate::EngineError;
use crate::op::AttentionShape;
use crate::tape::AttentionContext;
use crate::tensor::{Device, Tensor};
use barycenter_model::{HeadKind, ModelConfig};
use std::ops::Range;

/// A sequence: its tokens, and where there is a loss.
pub use barycenter_model::TokenSample as Sequence;

/// A micro-batch in ordinary memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroBatch {
    /// Token ids of all sequences, `[tokens]`.
    pub ids: Vec<u32>,
    /// Position of each token within its sequence.
    pub positions: Vec<u32>,
    /// Type of each token (BERT's sentence A or B); empty = all 0.
    pub token_types: Vec<u32>,
    /// Tokens of each sequence.
    pub segments: Vec<Range<usize>>,
    /// Rows (over all tokens) whose hidden state predicts something.
    pub labelled_rows: Vec<u32>,
    /// What they predict; of a regression all 0.
    pub classes: Vec<u32>,
    /// What a regression predicts at the labelled rows; empty otherwise.
    pub values: Vec<f32>,
    /// Labelled rows of each sequence, as ranges into `labelled_rows`.
    pub labelled_ranges: Vec<Range<usize>>,
    /// What the encoder of an encoder-decoder model reads, in the same order.
    pub encoder: Option<Box<MicroBatch>>,
}

impl MicroBatch {
    /// Lays sequences end to end.
    pub fn pack<'a>(sequences: impl IntoIterator<Item = &'a Sequence>) -> Self {
        let mut batch = Self::default();
        for sequence in sequences {
            let start = batch.ids.len();
            batch.ids.extend(&sequence.ids);
            batch.positions.extend(0..sequence.ids.len() as u32);
            batch.segments.push(start..batch.ids.len());
            let first = batch.labelled_rows.len();
            batch.labelled_rows.extend(sequence.labels.iter().map(|(t, _)| start as u32 + t));
            batch.classes.extend(sequence.labels.iter().map(|(_, class)| class));
            batch.labelled_ranges.push(first..batch.labelled_rows.len());
        }
        batch
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Refuses what would read outside a table of the model.
    pub fn check(&self, config: &ModelConfig) -> Result<(), EngineError> {
        let vocab = config.vocab;
        let bad = |text: String| Err(EngineError::BadBatch(text));
        if self.segments.iter().any(Range::is_empty) || self.segments.is_empty() {
            return bad("a sequence has no tokens".into());
        }
        if let Some(id) = self.ids.iter().find(|&&id| id as usize >= vocab) {
            return bad(format!("token {id} is outside the vocabulary of {vocab}"));
        }
        if let Some(class) = self.classes.iter().find(|&&class| class as usize >= config.classes()) {
            return bad(format!("label {class} is outside the {} classes of the head", config.classes()));
        }
        if let Some(limit) = config.position_limit()
            && let Some(segment) = self.segments.iter().find(|segment| segment.len() > limit)
        {
            return bad(format!("a sequence of {} tokens exceeds the model's {limit} positions", segment.len()));
        }
        if !self.token_types.is_empty() && self.token_types.len() != self.ids.len() {
            return bad(format!("{} token types were given for {} tokens", self.token_types.len(), self.ids.len()));
        }
        if let Some(kind) = self.token_types.iter().find(|&&kind| kind as usize >= config.token_types.max(1)) {
            return bad(format!("token type {kind} is outside the model's {}", config.token_types));
        }
        if !self.values.is_empty() && (self.values.len() != self.labelled_rows.len() || config.classes() != 1) {
            return bad(format!("{} values are to be predicted at {} places by {} outputs", self.values.len(), self.labelled_rows.len(), config.classes()));
        }
        if self.values.is_empty() && !self.labelled_rows.is_empty() && matches!(config.head, HeadKind::Classifier { labels: 1, .. }) {
            return bad("the model predicts a number, and the batch has classes".into());
        }
        if let (Some(stack), Some(encoder)) = (&config.encoder, &self.encoder) {
            encoder.check(stack)?;
            if encoder.segments.len() != self.segments.len() {
                return bad(format!("{} sources come with {} targets", encoder.segments.len(), self.segments.len()));
            }
        }
        for (segment, labelled) in self.segments.iter().zip(&self.labelled_ranges) {
            if self.labelled_rows[labelled.clone()].iter().any(|&row| !segment.contains(&(row as usize))) {
                return bad("a label lies outside its sequence".into());
            }
        }
        Ok(())
    }
}

/// What the layers need of a micro-batch, on the device.
pub struct DeviceBatch {
    /// u32 `[tokens]`.
    pub ids: Tensor,
    /// u32 `[tokens]`.
    pub positions: Tensor,
    /// The segment table, 4 words a segment.
    pub table: Tensor,
    /// u32 `[tokens]`, where the batch has token types.
    pub token_types: Option<Tensor>,
    /// First row of each segment, u32 `[segments]`.
    pub first_rows: Tensor,
    /// Number of segments.
    pub segments: usize,
    /// Tokens of the longest segment.
    pub longest: usize,
    /// Rows whose hidden state predicts something, u32.
    pub labelled_rows: Tensor,
    /// The encoder's batch, of an encoder-decoder model.
    pub encoder: Option<Box<DeviceBatch>>,
    ranges: Vec<Range<usize>>,
}

impl DeviceBatch {
    /// Copies ids, positions and segments to the device.
    pub fn new(device: &Device, batch: &MicroBatch) -> Self {
        let row = |range: &Range<usize>| [range.start, range.end, range.start, range.end].map(|x| x as u32);
        let table: Vec<u32> = batch.segments.iter().flat_map(row).collect();
        Self {
            ids: Tensor::from_u32(device, &batch.ids),
            positions: Tensor::from_u32(device, &batch.positions),
            table: Tensor::from_u32(device, &table),
            token_types: (!batch.token_types.is_empty()).then(|| Tensor::from_u32(device, &batch.token_types)),
            first_rows: Tensor::from_u32(device, &batch.segments.iter().map(|segment| segment.start as u32).collect::<Vec<_>>()),
            segments: batch.segments.len(),
            longest: batch.segments.iter().map(Range::len).max().unwrap_or(0),
            labelled_rows: Tensor::from_u32(device, &batch.labelled_rows),
            encoder: batch.encoder.as_ref().map(|encoder| Box::new(Self::new(device, encoder))),
            ranges: batch.segments.clone(),
        }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Attention of each sequence to itself in a layer (from 0) of the model: its window, its scale.
    pub fn attention(&self, config: &ModelConfig, layer: usize) -> AttentionContext {
        let tokens = self.tokens() as u32;
        let shape = attention_shape(config, layer, self.segments, tokens, tokens);
        AttentionContext { table: self.table.clone(), bias: None, shape }
    }
}

/// The sizes of a layer's attention of a stack to itself.
pub fn attention_shape(config: &ModelConfig, layer: usize, segments: usize, queries: u32, keys: u32) -> AttentionShape {
    AttentionShape {
        heads: config.heads as u32,
        kv_heads: config.kv_heads as u32,
        head_dim: config.head_dim as u32,
        scale: config.score_scale(layer) as f32,
        bias_zero: 0,
        causal: config.causal,
        window: config.window(layer) as u32,
        segments: segments as u32,
        queries,
        keys,
    }
}

/// Attention of a decoder's sequences to an encoder's, in the same order.
pub fn cross_attention(config: &ModelConfig, queries: &DeviceBatch, keys: &DeviceBatch) -> AttentionContext {
    let rows = queries.ranges.iter().zip(&keys.ranges).flat_map(|(q, k)| [q.start, q.end, k.start, k.end]);
    let table: Vec<u32> = rows.map(|x| x as u32).collect();
    let shape = attention_shape(config, 0, queries.segments, queries.tokens() as u32, keys.tokens() as u32);
    let shape = AttentionShape { causal: false, window: 0, ..shape };
    AttentionContext { table: Tensor::from_u32(queries.ids.device(), &table), bias: None, shape }
}
