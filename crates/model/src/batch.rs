//! Samples in tokens.

use serde::{Deserialize, Serialize};

/// A sample in tokens: what the server hands out as JSON, and what the engine packs into micro-batches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TokenSample {
    /// Token ids, at least one.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_shifted_by_one() {
        assert_eq!(TokenSample::plain(vec![5, 6, 7]).labels, [(0, 6), (1, 7)]);
        assert_eq!(TokenSample::after_prompt(vec![5, 6, 7, 8], 2).labels, [(1, 7), (2, 8)]);
        assert_eq!(TokenSample::after_prompt(vec![5, 6], 0).labels, [(0, 6)]);
        assert!(TokenSample::after_prompt(vec![5, 6], 2).labels.is_empty());
    }
}
