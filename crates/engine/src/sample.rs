//! What is learnt from one row of any task, and micro-batches of such samples.

use crate::packed::{MicroBatch, Sequence};
use std::borrow::Cow;

/// A sequence with its labels, and what some models need beside it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Of the decoder, or of the only stack.
    pub sequence: Sequence,
    /// Where in the sequence sentences begin that the model reads by themselves, positions from 0; empty = none but the first.
    pub sentence_starts: Vec<u32>,
    /// BERT's type of each token; empty = all 0.
    pub token_types: Vec<u32>,
    /// What the encoder of an encoder-decoder model reads.
    pub source: Option<Vec<u32>>,
    /// What a regression learns at the sequence's one label, whose class is then 0.
    pub value: Option<f32>,
}

impl From<Sequence> for Sample {
    fn from(sequence: Sequence) -> Self {
        Self { sequence, ..Self::default() }
    }
}

impl Sample {
    /// What the model reads by itself: the sequence, or its parts, the first with the sequence's labels.
    fn sentences(&self) -> Vec<Cow<'_, Sequence>> {
        if self.sentence_starts.is_empty() {
            return vec![Cow::Borrowed(&self.sequence)];
        }
        let ids = &self.sequence.ids;
        let starts = std::iter::once(0).chain(self.sentence_starts.iter().map(|start| (*start as usize).min(ids.len())));
        let ends = starts.clone().skip(1).chain([ids.len()]);
        let part = |(at, (start, end)): (usize, (usize, usize))| {
            let labels = if at == 0 { self.sequence.labels.clone() } else { Vec::new() };
            Cow::Owned(Sequence { ids: ids[start.min(end)..end].to_vec(), labels })
        };
        starts.zip(ends).enumerate().map(part).collect()
    }
}

impl MicroBatch {
    /// Lays samples end to end; all are of the same task.
    pub fn of<'a>(samples: impl IntoIterator<Item = &'a Sample>) -> Self {
        let samples: Vec<&Sample> = samples.into_iter().collect();
        let sentences: Vec<Cow<'_, Sequence>> = samples.iter().flat_map(|sample| sample.sentences()).collect();
        let mut batch = Self::pack(sentences.iter().map(|sentence| &**sentence));
        if samples.iter().any(|sample| !sample.token_types.is_empty()) {
            let types = samples.iter().flat_map(|sample| {
                let missing = sample.sequence.ids.len() - sample.token_types.len().min(sample.sequence.ids.len());
                sample.token_types.iter().copied().chain(std::iter::repeat_n(0, missing))
            });
            batch.token_types = types.collect();
        }
        batch.values = samples.iter().filter_map(|sample| sample.value).collect();
        let sources: Option<Vec<Sequence>> = samples.iter().map(|sample| Some(Sequence { ids: sample.source.clone()?, labels: Vec::new() })).collect();
        batch.encoder = sources.filter(|sources| !sources.is_empty()).map(|sources| Box::new(Self::pack(&sources)));
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_every_task_are_laid_end_to_end() {
        let sequence = |ids: &[u32]| Sequence { ids: ids.to_vec(), labels: vec![(0, 0)] };
        let pair = Sample { token_types: vec![0, 1], value: Some(0.5), ..sequence(&[3, 4]).into() };
        let single = Sample { value: Some(-1.0), ..sequence(&[5]).into() };
        let batch = MicroBatch::of([&pair, &single]);
        assert_eq!((batch.token_types.as_slice(), batch.values.as_slice()), ([0, 1, 0].as_slice(), [0.5, -1.0].as_slice()));
        assert_eq!((batch.labelled_rows.as_slice(), batch.encoder.is_none()), ([0, 2].as_slice(), true));
        let translation = Sample { source: Some(vec![7, 8, 9]), ..sequence(&[1]).into() };
        let batch = MicroBatch::of([&translation, &translation]);
        assert_eq!(batch.encoder.expect("each sample has a source").segments, [0..3, 3..6]);
        assert!(batch.values.is_empty() && batch.token_types.is_empty());
    }

    #[test]
    fn sentences_that_are_read_by_themselves_become_segments() {
        let sequence = Sequence { ids: vec![3, 4, 5, 6, 7], labels: vec![(0, 1)] };
        let pair = Sample { sentence_starts: vec![2], ..sequence.into() };
        let batch = MicroBatch::of([&pair, &pair]);
        assert_eq!((batch.segments.as_slice(), batch.positions.as_slice()), ([0..2, 2..5, 5..7, 7..10].as_slice(), [0, 1, 0, 1, 2, 0, 1, 0, 1, 2].as_slice()));
        assert_eq!((batch.labelled_rows.as_slice(), batch.classes.as_slice()), ([0, 5].as_slice(), [1, 1].as_slice()));
        assert_eq!(batch.labelled_ranges, [0..1, 1..1, 1..2, 2..2]);
    }
}
