//! Data sets: rows of JSONL, CSV, TSV or plain text for every task, and the token samples they become.

mod chats;
mod read;
mod records;
mod sentences;
mod seq2seq;
mod text;

pub use crate::metrics::exact_match;
pub use chats::{Chat, read_chats, tokenise_chats};
pub use read::read_rows;
pub use records::{DataFormat, Record, Records, read_records};
pub use sentences::{
    ClassNames, Columns, Goal, LabelledAt, SentenceRow, SentenceSample, Sentences, Target, read_sentences, tokenise_apart, tokenise_sentences,
};
pub use seq2seq::{Seq2SeqSample, read_seq2seq, tokenise_seq2seq};
pub use text::pack_windows;

use crate::batch::TokenSample;
use crate::tokenizer::TextTokenizer;
use rand::RngExt;
use std::collections::BTreeMap;

/// Why a data file could not be used; each message is one sentence that names the place.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// No rows.
    #[error("{file} holds no rows: expected at least one line with a prompt and a response")]
    Empty {
        /// The file.
        file: String,
    },
    /// A row that cannot be read.
    #[error("line {line} of {file} {reason}")]
    BrokenLine {
        /// The file.
        file: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// A format nobody here reads.
    #[error("{file} is of a kind that is not read: expected .jsonl, .json, .csv, .tsv or .txt")]
    UnknownFormat {
        /// The file.
        file: String,
    },
    /// A row longer than the model's context.
    #[error("line {line} of {file} is {tokens} tokens long, the model's context is {context}: shorten it, or leave too long rows out")]
    TooLong {
        /// The file.
        file: String,
        /// Counted from 1.
        line: usize,
        /// Its length.
        tokens: usize,
        /// The longest there may be.
        context: usize,
    },
    /// Only rows longer than the context.
    #[error("all {rows} rows of {file} are longer than the model's context of {context} tokens: shorten them or choose a model with a longer context")]
    AllTooLong {
        /// The file.
        file: String,
        /// How many.
        rows: usize,
        /// The longest there may be.
        context: usize,
    },
    /// A row of which nothing can be learnt.
    #[error("line {line} of {file} has nothing to learn: its response gives no token after the first")]
    NoLabels {
        /// The file.
        file: String,
        /// Counted from 1.
        line: usize,
    },
    /// A label that names no class.
    #[error("line {line} of {file} has the label `{label}`, which is none of the classes {classes}: correct it, or train on rows that have it")]
    UnknownLabel {
        /// The file.
        file: String,
        /// Counted from 1.
        line: usize,
        /// What it says.
        label: String,
        /// The classes there are.
        classes: String,
    },
    /// Labels that cannot be told apart.
    #[error("{file} has {count} class{} ({classes}): expected 2 to {most}; for numbers to be predicted choose regression", if *count == 1 { "" } else { "es" })]
    WrongClassCount {
        /// The file.
        file: String,
        /// How many different labels.
        count: usize,
        /// The first of them.
        classes: String,
        /// The most there may be.
        most: usize,
    },
    /// The tokenizer refused.
    #[error(transparent)]
    Model(#[from] crate::ModelError),
}

/// One row of a data set. Plain text has an empty prompt.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    /// What is asked.
    pub prompt: String,
    /// What is learnt.
    pub response: String,
    /// Where it stands in its file, from 1.
    pub line: usize,
}

/// What to do with rows longer than the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TooLong {
    /// Fail, naming the first.
    Refuse,
    /// Go on without them; their lines are reported.
    LeaveOut,
}

/// A data set in tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokenised {
    /// The samples.
    pub samples: Vec<TokenSample>,
    /// For each sample, the index of its row.
    pub rows: Vec<usize>,
    /// Lines of rows that were left out because they exceed the context.
    pub left_out_lines: Vec<usize>,
}

/// Turns rows into samples: `prompt "\n" response [end]`, learnt on response and end; plain text is learnt throughout.
pub fn tokenise(
    file: &str,
    rows: &[Row],
    tokenizer: &TextTokenizer,
    context: usize,
    too_long: TooLong,
) -> Result<Tokenised, DataError> {
    if rows.is_empty() {
        return Err(DataError::Empty { file: file.to_string() });
    }
    let mut result = Tokenised::default();
    for (index, row) in rows.iter().enumerate() {
        let mut ids = tokenizer.encode_prompt(&row.prompt)?;
        let prompt_tokens = ids.len();
        ids.extend(tokenizer.encode_response(&row.response)?);
        let tokens = ids.len();
        if tokens > context {
            if too_long == TooLong::Refuse {
                return Err(DataError::TooLong { file: file.to_string(), line: row.line, tokens, context });
            }
            result.left_out_lines.push(row.line);
            continue;
        }
        let sample = TokenSample::after_prompt(ids, prompt_tokens);
        if sample.labels.is_empty() {
            return Err(DataError::NoLabels { file: file.to_string(), line: row.line });
        }
        result.samples.push(sample);
        result.rows.push(index);
    }
    if result.samples.is_empty() {
        return Err(DataError::AllTooLong { file: file.to_string(), rows: rows.len(), context });
    }
    Ok(result)
}

/// Cuts the rows of a plain text so that each fits `window` tokens: at words, never inside one that fits.
///
/// Rows with a prompt are left as they are.
pub fn cut_plain_text(rows: Vec<Row>, tokenizer: &TextTokenizer, window: usize) -> Result<Vec<Row>, DataError> {
    let mut cut = Vec::new();
    for row in rows {
        if !row.prompt.is_empty() || tokenizer.encode_response(&row.response)?.len() < window {
            cut.push(row);
            continue;
        }
        let mut piece = String::new();
        let mut piece_tokens = 0;
        for word in row.response.split_inclusive(char::is_whitespace) {
            let tokens = tokenizer.encode(word, false)?.len();
            // 2: a start and an end token.
            if piece_tokens + tokens + 2 > window && !piece.is_empty() {
                cut.push(Row { prompt: String::new(), response: piece.trim().to_string(), line: row.line });
                piece = String::new();
                piece_tokens = 0;
            }
            piece.push_str(word);
            piece_tokens += tokens;
        }
        if !piece.trim().is_empty() {
            cut.push(Row { prompt: String::new(), response: piece.trim().to_string(), line: row.line });
        }
    }
    Ok(cut)
}

/// What a person should know about a data set before training on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Rows that will be used.
    pub rows: usize,
    /// Tokens in all.
    pub total_tokens: u64,
    /// Tokens that are learnt.
    pub labelled_tokens: u64,
    /// Shortest row.
    pub min_tokens: u32,
    /// Median row (the lower one of two).
    pub median_tokens: u32,
    /// Longest row.
    pub max_tokens: u32,
    /// Rows that repeat an earlier row exactly.
    pub duplicates: usize,
    /// Rows left out because they exceed the context.
    pub left_out: usize,
}

impl Statistics {
    /// Counts.
    pub fn of(tokenised: &Tokenised) -> Self {
        let mut lengths: Vec<u32> = tokenised.samples.iter().map(|sample| sample.tokens() as u32).collect();
        lengths.sort_unstable();
        let mut seen = std::collections::HashSet::new();
        Self {
            rows: lengths.len(),
            total_tokens: lengths.iter().map(|&tokens| u64::from(tokens)).sum(),
            labelled_tokens: tokenised.samples.iter().map(|sample| sample.labels.len() as u64).sum(),
            min_tokens: lengths.first().copied().unwrap_or(0),
            median_tokens: lengths.get(lengths.len().saturating_sub(1) / 2).copied().unwrap_or(0),
            max_tokens: lengths.last().copied().unwrap_or(0),
            duplicates: tokenised.samples.iter().filter(|sample| !seen.insert(*sample)).count(),
            left_out: tokenised.left_out_lines.len(),
        }
    }

    /// Sentences worth showing beside the preview.
    pub fn warnings(&self) -> Vec<String> {
        let rows = |count: usize| if count == 1 { "1 row".to_string() } else { format!("{count} rows") };
        let mut warnings = Vec::new();
        if self.left_out > 0 {
            warnings.push(format!("{} longer than the model's context will be left out.", rows(self.left_out)));
        }
        if self.duplicates > 0 {
            warnings.push(format!("{} repeat an earlier row exactly.", rows(self.duplicates)));
        }
        if self.rows < 20 {
            warnings.push(format!("Only {}: a model learns names and habits from some hundred.", rows(self.rows)));
        }
        warnings
    }
}

/// Splits rows into (train, held out) indices, about `fraction` of them held out, the same for the same seed.
///
/// Rows with the same prompt stay on one side, so that nothing held out was trained on. At least one row is trained on.
pub fn split_held_out(rows: &[Row], fraction: f64, seed: u64) -> (Vec<usize>, Vec<usize>) {
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        let key = if row.prompt.is_empty() { row.response.as_str() } else { row.prompt.as_str() };
        groups.entry(key).or_default().push(index);
    }
    let mut groups: Vec<_> = groups.into_values().collect();
    groups.sort_unstable();
    let mut random = rand_pcg::Pcg64Mcg::new(u128::from(seed) << 1 | 1);
    for i in (1..groups.len()).rev() {
        groups.swap(i, random.random_range(0..=i));
    }
    let wanted = (rows.len() as f64 * fraction.clamp(0.0, 1.0)).round() as usize;
    let (mut train, mut held_out) = (Vec::new(), Vec::new());
    let last = groups.len().saturating_sub(1);
    for (place, group) in groups.into_iter().enumerate() {
        let side = if held_out.len() + group.len() <= wanted && !(place == last && train.is_empty()) {
            &mut held_out
        } else {
            &mut train
        };
        side.extend(group);
    }
    train.sort_unstable();
    held_out.sort_unstable();
    (train, held_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(prompt: &str, response: &str, line: usize) -> Row {
        Row { prompt: prompt.into(), response: response.into(), line }
    }

    #[test]
    fn equal_prompts_stay_on_one_side_and_the_split_is_repeatable() {
        let rows: Vec<_> = (0..100).map(|i| row(&format!("p{}", i / 2), &format!("r{i}"), i + 1)).collect();
        let (train, held_out) = split_held_out(&rows, 0.2, 7);
        assert_eq!((train.len(), held_out.len()), (80, 20));
        for index in &held_out {
            assert!(held_out.contains(&(index ^ 1)));
        }
        assert_eq!(split_held_out(&rows, 0.2, 7), (train.clone(), held_out));
        assert_ne!(split_held_out(&rows, 0.2, 8).0, train);
        assert_eq!(split_held_out(&rows[..1], 1.0, 1).0, vec![0], "something is always trained on");
    }
}
