//! Token samples, packed into micro-batches without padding.

use serde::{Deserialize, Serialize};

/// A sample as the engine sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenSample {
    /// Token ids.
    pub ids: Vec<u32>,
    /// What is learnt: the hidden state at `position` (first of the pair) predicts `class` (second). Already shifted by
    /// one: the class at position t is `ids[t + 1]`. Positions ascend.
    pub labels: Vec<(u32, u32)>,
}

impl TokenSample {
    /// A sample that learns every token but the first: plain text.
    pub fn plain(ids: Vec<u32>) -> Self {
        let labels = ids.iter().skip(1).enumerate().map(|(t, &class)| (t as u32, class)).collect();
        Self { ids, labels }
    }

    /// A sample that learns only what comes after the first `prompt_tokens` (at least 1) tokens.
    pub fn after_prompt(ids: Vec<u32>, prompt_tokens: usize) -> Self {
        let first = prompt_tokens.max(1);
        let labels = (first..ids.len()).map(|t| (t as u32 - 1, ids[t])).collect();
        Self { ids, labels }
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}

/// Sequences laid end to end: T tokens in all, no padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MicroBatch {
    /// Token ids, `[T]`.
    pub ids: Vec<u32>,
    /// Position of each token in its own sequence, `[T]`.
    pub positions: Vec<u32>,
    /// Rows of each sequence: `(start, end)`, in order, adjoining.
    pub segments: Vec<(u32, u32)>,
    /// Rows whose hidden state is labelled, ascending.
    pub label_rows: Vec<u32>,
    /// Class of each labelled row.
    pub label_classes: Vec<u32>,
    /// Which labels belong to each sequence: `(start, end)` into `label_rows`.
    pub label_segments: Vec<(u32, u32)>,
}

impl MicroBatch {
    /// Lays samples end to end.
    pub fn pack<'a>(samples: impl IntoIterator<Item = &'a TokenSample>) -> Self {
        let mut batch = Self::default();
        for sample in samples {
            let (start, first_label) = (batch.ids.len() as u32, batch.label_rows.len() as u32);
            batch.ids.extend_from_slice(&sample.ids);
            batch.positions.extend(0..sample.ids.len() as u32);
            batch.segments.push((start, batch.ids.len() as u32));
            batch.label_rows.extend(sample.labels.iter().map(|(position, _)| start + position));
            batch.label_classes.extend(sample.labels.iter().map(|(_, class)| class));
            batch.label_segments.push((first_label, batch.label_rows.len() as u32));
        }
        batch
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of sequences.
    pub fn sequences(&self) -> usize {
        self.segments.len()
    }

    /// Number of labelled rows.
    pub fn labels(&self) -> usize {
        self.label_rows.len()
    }

    /// The table that attention takes: `(q_start, q_end, k_start, k_end)` per sequence, flat.
    pub fn attention_table(&self) -> Vec<u32> {
        self.segments.iter().flat_map(|&(start, end)| [start, end, start, end]).collect()
    }
}

/// Cuts a list of samples (by their token counts) into consecutive runs of at most `max_tokens`; a longer sample
/// stands alone. Returns `start..end` indices.
pub fn split_by_tokens(token_counts: &[usize], max_tokens: usize) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
    let mut held = 0;
    for (index, &tokens) in token_counts.iter().enumerate() {
        match runs.last_mut() {
            Some(run) if held + tokens <= max_tokens => {
                run.end = index + 1;
                held += tokens;
            }
            _ => {
                runs.push(index..index + 1);
                held = tokens;
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_what_follows_the_prompt_is_learnt() {
        let sample = TokenSample::after_prompt(vec![5, 6, 7, 8], 2);
        assert_eq!(sample.labels, vec![(1, 7), (2, 8)]);
        assert_eq!(TokenSample::plain(vec![5, 6, 7]).labels, vec![(0, 6), (1, 7)]);
        assert_eq!(TokenSample::after_prompt(vec![5, 6], 0).labels, vec![(0, 6)]);
    }

    fn sample() -> impl Strategy<Value = TokenSample> {
        (proptest::collection::vec(0u32..100, 1..20), 0usize..20).prop_map(|(ids, prompt)| TokenSample::after_prompt(ids, prompt))
    }

    proptest! {
        #[test]
        fn packing_keeps_every_token_and_label(samples in proptest::collection::vec(sample(), 0..12)) {
            let batch = MicroBatch::pack(&samples);
            prop_assert_eq!(batch.sequences(), samples.len());
            prop_assert_eq!(batch.positions.len(), batch.tokens());
            let mut row = 0;
            for (index, sample) in samples.iter().enumerate() {
                let (start, end) = batch.segments[index];
                prop_assert_eq!(start, row);
                prop_assert_eq!(&batch.ids[start as usize..end as usize], &sample.ids[..]);
                prop_assert_eq!(batch.positions[start as usize], 0);
                row = end;
                let (first, last) = batch.label_segments[index];
                let back: Vec<_> = (first as usize..last as usize)
                    .map(|label| (batch.label_rows[label] - start, batch.label_classes[label]))
                    .collect();
                prop_assert_eq!(&back, &sample.labels);
                for (position, class) in back {
                    prop_assert_eq!(batch.ids[(start + position + 1) as usize], class);
                }
            }
            prop_assert_eq!(row as usize, batch.tokens());
        }

        #[test]
        fn runs_cover_the_list_and_keep_the_limit(counts in proptest::collection::vec(1usize..50, 0..30), max in 1usize..100) {
            let runs = split_by_tokens(&counts, max);
            let mut at = 0;
            for run in runs {
                prop_assert_eq!(run.start, at);
                let held: usize = counts[run.clone()].iter().sum();
                prop_assert!(held <= max || run.len() == 1);
                at = run.end;
            }
            prop_assert_eq!(at, counts.len());
        }
    }
}
