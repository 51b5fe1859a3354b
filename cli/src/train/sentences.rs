//! Rows of sentences with labels, as samples of a classifier or a regression.

use super::Options;
use super::data::{Data, DataFile, Task, split_rows};
use anyhow::{Result, ensure};
use barycenter_engine::Sample;
use barycenter_engine::packed::Sequence;
use barycenter_model::TextTokenizer;
use barycenter_model::dataset::{ClassNames, Columns, Goal, LabelledAt, Row, SentenceRow, SentenceSample, Target, read_sentences, tokenise_apart, tokenise_sentences};

/// Where a table's columns are, and how much of a row is read.
#[derive(clap::Args)]
pub(crate) struct SentenceOptions {
    /// Classification and regression: the sentence's column (default: found by its usual names; 1 with --no-header).
    #[arg(long)]
    text_column: Option<String>,
    /// Classification and regression: the column of a pair's second sentence.
    #[arg(long)]
    pair_column: Option<String>,
    /// Classification and regression: the label's column (default: found by its usual names; 2 with --no-header).
    #[arg(long)]
    label_column: Option<String>,
    /// The table has no first line of names: its columns are called 1, 2, 3 ...
    #[arg(long)]
    no_header: bool,
    /// Classification and regression: cut longer rows to so many tokens (default: the model's context).
    #[arg(long)]
    max_tokens: Option<usize>,
}

impl SentenceOptions {
    /// Which of them were given, by their names.
    pub(super) fn given(&self) -> [(bool, &'static str); 5] {
        [
            (self.text_column.is_some(), "--text-column"),
            (self.pair_column.is_some(), "--pair-column"),
            (self.label_column.is_some(), "--label-column"),
            (self.no_header, "--no-header"),
            (self.max_tokens.is_some(), "--max-tokens"),
        ]
    }

    fn columns(&self) -> Columns {
        let usual = |name: &Option<String>, number: &str| name.clone().or_else(|| self.no_header.then(|| number.to_string()));
        Columns { text: usual(&self.text_column, "1"), pair: self.pair_column.clone(), label: usual(&self.label_column, "2"), header: !self.no_header }
    }
}

/// Reads and tokenises the rows of both files; classes are those of the training rows.
pub(super) fn read(options: &Options, file: &DataFile, held_out: Option<&DataFile>, tokenizer: &TextTokenizer, task: Task, context: usize) -> Result<Data> {
    let columns = options.sentences.columns();
    let max_tokens = options.sentences.max_tokens.unwrap_or(context);
    ensure!((1..=context).contains(&max_tokens), "--max-tokens {max_tokens} must be 1 to {context}, the model's context");
    let rows = |file: &DataFile| read_sentences(&file.name, &file.bytes, file.format, &columns);
    let as_row = |row: &SentenceRow| Row { prompt: [Some(row.first.as_str()), row.second.as_deref()].map(Option::unwrap_or_default).join("\n"), response: row.label.clone(), line: row.line };
    let all = rows(file)?;
    let goal = if task == Task::Regress { Goal::Number } else { Goal::Classes(ClassNames::of(&file.name, &all)?) };
    let (train, dev) = split_rows(all, held_out.map(rows).transpose()?, options.seed.unwrap_or(1), as_row);
    let apart = options.is_version_2(task);
    let tokenise = |file: &DataFile, rows: &[SentenceRow]| match apart {
        true => tokenise_apart(&file.name, rows, &goal, tokenizer, max_tokens),
        false => tokenise_sentences(&file.name, rows, &goal, tokenizer, LabelledAt::First, max_tokens),
    };
    let (mut sentences, dev) = (tokenise(file, &train)?, tokenise(held_out.unwrap_or(file), &dev)?);
    if sentences.cut + dev.cut > 0 {
        println!("{} of {} rows were cut to {max_tokens} tokens", sentences.cut + dev.cut, sentences.samples.len() + dev.samples.len());
    }
    let train = sentences.samples.len();
    sentences.samples.extend(dev.samples);
    Ok(Data { samples: sentences.samples.into_iter().map(sample).collect(), train, questions: Vec::new(), goal: Some(goal) })
}

fn sample(sentence: SentenceSample) -> Sample {
    let (class, value) = match sentence.target {
        Target::Class(class) => (class, None),
        Target::Number(value) => (0, Some(value)),
    };
    let sequence = Sequence { ids: sentence.ids, labels: vec![(sentence.position, class)] };
    Sample { token_types: sentence.types, sentence_starts: sentence.starts, value, ..sequence.into() }
}
