//! Micro-batches without padding: sequences laid end to end.

use crate::EngineError;
use crate::op::AttentionShape;
use crate::tape::AttentionContext;
use crate::tensor::{Device, Tensor};
use barycenter_model::ModelConfig;
use std::ops::Range;

/// A sequence: its tokens, and where there is a loss.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Sequence {
    /// Token ids, at least one.
    pub ids: Vec<u32>,
    /// (t, class): the hidden state at t predicts the class (already shifted), t ascending.
    pub labels: Vec<(u32, u32)>,
}

/// A micro-batch in ordinary memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MicroBatch {
    /// Token ids of all sequences, `[tokens]`.
    pub ids: Vec<u32>,
    /// Position of each token within its sequence.
    pub positions: Vec<u32>,
    /// Tokens of each sequence.
    pub segments: Vec<Range<usize>>,
    /// Rows (over all tokens) whose hidden state predicts something.
    pub labelled_rows: Vec<u32>,
    /// What they predict.
    pub classes: Vec<u32>,
    /// Labelled rows of each sequence, as ranges into `labelled_rows`.
    pub labelled_ranges: Vec<Range<usize>>,
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

    /// Refuses what would read outside a table.
    pub fn check(&self, vocab: usize) -> Result<(), EngineError> {
        let bad = |text: String| Err(EngineError::BadBatch(text));
        if self.segments.iter().any(Range::is_empty) || self.segments.is_empty() {
            return bad("a sequence has no tokens".into());
        }
        if let Some(id) = self.ids.iter().chain(&self.classes).find(|&&id| id as usize >= vocab) {
            return bad(format!("token {id} is outside the vocabulary of {vocab}"));
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
    /// Number of segments.
    pub segments: usize,
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
            segments: batch.segments.len(),
        }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Causal attention of each sequence to itself, in a layer with the given sliding window (0 = none).
    pub fn attention(&self, config: &ModelConfig, window: usize) -> AttentionContext {
        let tokens = self.tokens() as u32;
        let shape = attention_shape(config, window, self.segments, tokens, tokens);
        AttentionContext { table: self.table.clone(), shape }
    }
}

/// The sizes of causal attention in a model.
pub fn attention_shape(config: &ModelConfig, window: usize, segments: usize, queries: u32, keys: u32) -> AttentionShape {
    AttentionShape {
        heads: config.heads as u32,
        kv_heads: config.kv_heads as u32,
        head_dim: config.head_dim as u32,
        scale: 1.0 / (config.head_dim as f32).sqrt(),
        causal: true,
        window: window as u32,
        segments: segments as u32,
        queries,
        keys,
    }
}
