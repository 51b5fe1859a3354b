//! Rows for classification and regression: one sentence or a pair, and a label.

use super::DataError;
use super::records::{DataFormat, Record, Records, broken, read_records};
use crate::tokenizer::TextTokenizer;
use serde_json::Value;
use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Names of a pair's columns: the first pair of which both are there counts.
const PAIR_NAMES: [[&str; 2]; 6] = [
    ["sentence1", "sentence2"],
    ["premise", "hypothesis"],
    ["question1", "question2"],
    ["text_a", "text_b"],
    ["#1 String", "#2 String"],
    ["question", "sentence"],
];
/// Names of a single sentence's column.
const TEXT_NAMES: [&str; 5] = ["text", "sentence", "content", "review", "sentence1"];
/// Names of the label's column.
const LABEL_NAMES: [&str; 7] = ["label", "labels", "class", "category", "target", "score", "quality"];
/// What a row looks like.
const EXPECTED: &str = "{\"text\": …, \"label\": …} or {\"sentence1\": …, \"sentence2\": …, \"label\": …}";
/// More different labels than this are numbers to be predicted, or ids.
const MAX_CLASSES: usize = 1_000;
/// A sentence that is cut keeps so many tokens: two special ones, and one of its own.
const SHORTEST_CUT: usize = 3;
/// Class names shown in a message.
const SHOWN_CLASSES: usize = 8;

/// Which columns hold what; what is not given is found by the usual names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// The sentence.
    pub text: Option<String>,
    /// The second sentence of a pair.
    pub pair: Option<String>,
    /// The label.
    pub label: Option<String>,
    /// Whether a table's first line names the columns; if not, they are called 1, 2, 3 …
    pub header: bool,
}

impl Default for Columns {
    fn default() -> Self {
        Self { text: None, pair: None, label: None, header: true }
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentenceRow {
    /// The sentence.
    pub first: String,
    /// The second one of a pair.
    pub second: Option<String>,
    /// As it is written.
    pub label: String,
    /// Where it stands in its file, from 1.
    pub line: usize,
}

/// The names of the classes, in the order of their numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClassNames(pub Vec<String>);

/// What is learnt of a label.
#[derive(Clone, Debug, PartialEq)]
pub enum Goal {
    /// One of these classes.
    Classes(ClassNames),
    /// A number.
    Number,
}

/// A label as the head learns it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// The number of a class.
    Class(u32),
    /// A value.
    Number(f32),
}

/// Which token's hidden state the head reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelledAt {
    /// The first: encoders, which see the whole text from anywhere.
    First,
    /// The last: decoders, which see only what came before.
    Last,
}

/// A sample in tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct SentenceSample {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// 0 for the first sentence's tokens, 1 for the second's.
    pub types: Vec<u32>,
    /// Where a second sentence begins that has special tokens of its own ([`tokenise_apart`]).
    pub starts: Vec<u32>,
    /// The token whose hidden state the head reads.
    pub position: u32,
    /// What it learns.
    pub target: Target,
}

/// A data set in tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sentences {
    /// A sample for every row.
    pub samples: Vec<SentenceSample>,
    /// How many were cut to fit.
    pub cut: usize,
}

/// Reads rows of one sentence or two with a label.
///
/// # Errors
/// If a column is missing, or a row lacks a sentence or its label.
pub fn read_sentences(file: &str, bytes: &[u8], format: DataFormat, columns: &Columns) -> Result<Vec<SentenceRow>, DataError> {
    let records = read_records(file, bytes, format, columns.header, EXPECTED)?;
    let names = Names::of(&records, columns)?;
    records.rows.iter().map(|record| names.row(file, record)).collect()
}

/// The columns of a file.
struct Names {
    first: Vec<String>,
    second: Option<String>,
    label: Vec<String>,
}

impl Names {
    fn of(records: &Records, columns: &Columns) -> Result<Self, DataError> {
        let is_there = |name: &str| match &records.header {
            Some(header) => header.iter().any(|column| column.eq_ignore_ascii_case(name)),
            None => records.rows.first().is_some_and(|row| row.get(name).is_some()),
        };
        let named = |name: &Option<String>, usual: &[&str]| match name {
            Some(name) => vec![name.clone()],
            None => usual.iter().map(|name| name.to_string()).collect(),
        };
        let names = match (&columns.text, &columns.pair) {
            (None, None) => match PAIR_NAMES.iter().find(|pair| pair.iter().all(|name| is_there(name))) {
                Some([first, second]) => Self { first: vec![first.to_string()], second: Some(second.to_string()), label: named(&columns.label, &LABEL_NAMES) },
                None => Self { first: named(&None, &TEXT_NAMES), second: None, label: named(&columns.label, &LABEL_NAMES) },
            },
            (text, pair) => Self { first: named(text, &TEXT_NAMES), second: pair.clone(), label: named(&columns.label, &LABEL_NAMES) },
        };
        for (wanted, given) in [(&names.first, &columns.text), (&names.label, &columns.label)] {
            let expected = given.as_ref().map_or("a text and a label column, or say which columns they are".to_string(), |name| format!("a column `{name}`"));
            records.require_column(wanted, &expected)?;
        }
        if let Some(second) = &names.second {
            records.require_column(std::slice::from_ref(second), &format!("a column `{second}`"))?;
        }
        Ok(names)
    }

    fn row(&self, file: &str, record: &Record) -> Result<SentenceRow, DataError> {
        let missing = |name: &str| broken(file, record.line, format!("has no `{name}`: expected {EXPECTED}"));
        let sentence = |names: &[String]| -> Result<String, DataError> {
            let (place, value) = record.find(names).ok_or_else(|| missing(&names[0]))?;
            let text = value.as_str().ok_or_else(|| broken(file, record.line, format!("has a `{}` that is not a text: expected {EXPECTED}", names[place])))?;
            match text.trim() {
                "" => Err(broken(file, record.line, format!("has an empty `{}`: write the sentence", names[place]))),
                text => Ok(text.to_string()),
            }
        };
        let (_, label) = record.find(&self.label).ok_or_else(|| missing(&self.label[0]))?;
        let label = match label {
            Value::String(text) => text.trim().to_string(),
            Value::Number(_) | Value::Bool(_) => label.to_string(),
            _ => return Err(broken(file, record.line, format!("has a label that is neither text nor number: expected {EXPECTED}"))),
        };
        if label.is_empty() {
            return Err(broken(file, record.line, "has an empty label, so there is nothing to learn from it".into()));
        }
        let second = self.second.as_ref().map(|name| sentence(std::slice::from_ref(name))).transpose()?;
        Ok(SentenceRow { first: sentence(&self.first)?, second, label, line: record.line })
    }
}

impl ClassNames {
    /// The different labels of rows: by value if all are whole numbers, else by the alphabet.
    ///
    /// # Errors
    /// If there are fewer than two, or so many that they cannot be classes.
    pub fn of(file: &str, rows: &[SentenceRow]) -> Result<Self, DataError> {
        let distinct: std::collections::BTreeSet<&str> = rows.iter().map(|row| row.label.as_str()).collect();
        let mut names: Vec<String> = distinct.into_iter().map(str::to_string).collect();
        let number = |name: &String| name.parse::<i64>().ok();
        if names.iter().all(|name| number(name).is_some()) {
            names.sort_by_key(number);
        }
        let classes = Self(names);
        if !(2..=MAX_CLASSES).contains(&classes.0.len()) {
            return Err(DataError::WrongClassCount { file: file.to_string(), count: classes.0.len(), classes: classes.shown(), most: MAX_CLASSES });
        }
        Ok(classes)
    }

    /// The number of a label's class.
    pub fn number(&self, label: &str) -> Option<u32> {
        self.0.iter().position(|name| name == label).map(|at| at as u32)
    }

    fn shown(&self) -> String {
        let more = if self.0.len() > SHOWN_CLASSES { ", …" } else { "" };
        format!("{}{more}", self.0[..self.0.len().min(SHOWN_CLASSES)].join(", "))
    }
}

/// Turns rows into samples; sentences that exceed `max_tokens` are cut, the longer one of a pair first.
///
/// # Errors
/// If a label is none of the classes, or not a number where one is learnt.
pub fn tokenise_sentences(
    file: &str,
    rows: &[SentenceRow],
    goal: &Goal,
    tokenizer: &TextTokenizer,
    labelled_at: LabelledAt,
    max_tokens: usize,
) -> Result<Sentences, DataError> {
    let cutting = tokenizer.cutting(max_tokens)?;
    let mut result = Sentences::default();
    for row in rows {
        let target = goal.target(file, row)?;
        let (mut ids, mut types) = tokenizer.encode_sentences(&row.first, row.second.as_deref())?;
        if ids.len() > max_tokens {
            (ids, types) = cutting.encode_sentences(&row.first, row.second.as_deref())?;
            result.cut += 1;
        }
        let last = ids.len().checked_sub(1).ok_or_else(|| broken(file, row.line, "gives no token: write a sentence".into()))?;
        let position = if labelled_at == LabelledAt::First { 0 } else { last as u32 };
        result.samples.push(SentenceSample { ids, types, starts: Vec::new(), position, target });
    }
    Ok(result)
}

/// Turns rows into samples whose sentences have special tokens of their own, for models that read each by itself; the longer
/// one of a pair is cut first. The first token is the sample's position.
///
/// # Errors
/// As [`tokenise_sentences`]; if some rows have one sentence and others two.
pub fn tokenise_apart(file: &str, rows: &[SentenceRow], goal: &Goal, tokenizer: &TextTokenizer, max_tokens: usize) -> Result<Sentences, DataError> {
    let mut result = Sentences::default();
    let mut cutting: HashMap<usize, TextTokenizer> = HashMap::new();
    let pairs = rows.first().is_some_and(|row| row.second.is_some());
    for row in rows {
        let target = goal.target(file, row)?;
        if row.second.is_some() != pairs {
            let (has, others) = if pairs { ("one sentence", "two") } else { ("two sentences", "one") };
            return Err(broken(file, row.line, format!("has {has} where the rows before have {others}: give every row as many")));
        }
        let texts: Vec<&str> = std::iter::once(row.first.as_str()).chain(row.second.as_deref()).collect();
        let mut parts = texts.iter().map(|text| Ok(tokenizer.encode_sentences(text, None)?.0)).collect::<Result<Vec<_>, DataError>>()?;
        let mut lengths: Vec<usize> = parts.iter().map(Vec::len).collect();
        if lengths.iter().sum::<usize>() > max_tokens {
            while lengths.iter().sum::<usize>() > max_tokens {
                let longest = usize::from(lengths.get(1).is_some_and(|second| *second > lengths[0]));
                lengths[longest] -= 1;
                if lengths[longest] < SHORTEST_CUT {
                    return Err(broken(file, row.line, format!("does not fit into {max_tokens} tokens: allow more")));
                }
            }
            for ((part, text), length) in parts.iter_mut().zip(&texts).zip(&lengths).filter(|((part, _), length)| part.len() > **length) {
                let cutting = match cutting.entry(*length) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(place) => place.insert(tokenizer.cutting(*length)?),
                };
                *part = cutting.encode_sentences(text, None)?.0;
            }
            result.cut += 1;
        }
        if parts.iter().any(Vec::is_empty) {
            return Err(broken(file, row.line, "gives no token: write a sentence".into()));
        }
        let starts = parts[1..].iter().map(|_| parts[0].len() as u32).collect();
        result.samples.push(SentenceSample { ids: parts.concat(), types: Vec::new(), starts, position: 0, target });
    }
    Ok(result)
}

impl Goal {
    fn target(&self, file: &str, row: &SentenceRow) -> Result<Target, DataError> {
        match self {
            Self::Classes(classes) => {
                let unknown = || DataError::UnknownLabel { file: file.to_string(), line: row.line, label: row.label.clone(), classes: classes.shown() };
                Ok(Target::Class(classes.number(&row.label).ok_or_else(unknown)?))
            }
            Self::Number => {
                let number = row.label.parse::<f32>().ok().filter(|number| number.is_finite());
                let bad = || broken(file, row.line, format!("has the label `{}`, which is not a number: for classes choose classification", row.label));
                Ok(Target::Number(number.ok_or_else(bad)?))
            }
        }
    }
}
