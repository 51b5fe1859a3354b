//! Which sentences of a micro-batch make a sample, and the tables that sum over them.

use crate::EngineError;
use crate::packed::MicroBatch;
use crate::tensor::{Device, Tensor};
use std::ops::Range;

/// The samples of a micro-batch whose segments are sentences: a sentence without a label belongs to the sample before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentences {
    /// Rows of each sentence.
    pub segments: Vec<Range<usize>>,
    /// Sentences of each sample.
    pub samples: Vec<Range<usize>>,
}

impl Sentences {
    /// Groups the segments of a batch.
    ///
    /// # Errors
    /// If a sample has not `each` sentences and one label.
    pub fn of(batch: &MicroBatch, each: usize) -> Result<Self, EngineError> {
        let mut samples: Vec<Range<usize>> = Vec::new();
        for (at, labelled) in batch.labelled_ranges.iter().enumerate() {
            match (labelled.len(), samples.last_mut()) {
                (0, Some(sample)) => sample.end = at + 1,
                (0, None) => return Err(EngineError::BadBatch("its first sentence has no label".into())),
                (1, _) => samples.push(at..at + 1),
                (labels, _) => return Err(EngineError::BadBatch(format!("a sentence has {labels} labels, and a sample has one"))),
            }
        }
        if let Some(sample) = samples.iter().find(|sample| sample.len() != each) {
            let expected = if each == 1 { "one".to_string() } else { "two that it compares".to_string() };
            return Err(EngineError::BadBatch(format!("a sample has {} sentences, and this side network reads {expected}", sample.len())));
        }
        Ok(Self { segments: batch.segments.clone(), samples })
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.segments.last().map_or(0, |segment| segment.end)
    }

    /// Rows of a sample.
    pub fn rows(&self, sample: &Range<usize>) -> Range<usize> {
        self.segments[sample.start].start..self.segments[sample.end - 1].end
    }

    /// Rows of each sample.
    pub fn sample_rows(&self) -> impl Iterator<Item = Range<usize>> {
        self.samples.iter().map(|sample| self.rows(sample))
    }

    /// The number of the `j`-th sentence of each sample, u32.
    pub fn numbers(&self, device: &Device, j: usize) -> Tensor {
        Tensor::from_u32(device, &self.samples.iter().map(|sample| (sample.start + j) as u32).collect::<Vec<_>>())
    }

    /// What gives means of rows when it is multiplied by them: `[ranges, tokens]`.
    pub fn mean_of(&self, device: &Device, ranges: impl ExactSizeIterator<Item = Range<usize>>) -> Tensor {
        let (count, tokens) = (ranges.len(), self.tokens());
        let mut values = vec![0f32; count * tokens];
        for (row, range) in values.chunks_exact_mut(tokens.max(1)).zip(ranges) {
            let share = 1.0 / range.len() as f32;
            row[range].fill(share);
        }
        Tensor::from_f32(device, &[count, tokens], &values)
    }

    /// First and end row of each sample, u32.
    pub fn ranges(&self, device: &Device) -> Tensor {
        Tensor::from_u32(device, &self.sample_rows().flat_map(|rows| [rows.start as u32, rows.end as u32]).collect::<Vec<_>>())
    }
}
