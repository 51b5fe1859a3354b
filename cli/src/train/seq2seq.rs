//! Rows of source and target, as samples of an encoder-decoder model.

use super::data::{Data, DataFile, Question, split_rows};
use anyhow::{Context, Result};
use barycenter_engine::Sample;
use barycenter_model::dataset::{Row, Seq2SeqSample, TooLong, read_seq2seq, tokenise_seq2seq};
use barycenter_model::{ModelConfig, TextTokenizer};

/// Reads and tokenises the rows of both files; those longer than the context are left out.
pub(super) fn read(file: &DataFile, held_out: Option<&DataFile>, tokenizer: &TextTokenizer, config: &ModelConfig, context: usize, seed: u64) -> Result<Data> {
    let start = config.decoder_start.context("config.json has no `decoder_start_token_id`, so the decoder has nothing to begin with: add it")?;
    let rows = |file: &DataFile| read_seq2seq(&file.name, &file.bytes, file.format);
    let (train, dev) = split_rows(rows(file)?, held_out.map(rows).transpose()?, seed, Row::clone);
    let tokenise = |file: &DataFile, rows: &[Row]| -> Result<(Vec<Sample>, Vec<usize>)> {
        if rows.is_empty() {
            return Ok(Default::default());
        }
        let (samples, kept) = tokenise_seq2seq(&file.name, rows, tokenizer, start, context, TooLong::LeaveOut)?;
        if samples.len() < rows.len() {
            println!("{} of {} rows of {} are longer than {context} tokens and left out", rows.len() - samples.len(), rows.len(), file.name);
        }
        Ok((samples.into_iter().map(sample).collect(), kept))
    };
    let (mut samples, _) = tokenise(file, &train)?;
    let train = samples.len();
    let (held_out, rows) = tokenise(held_out.unwrap_or(file), &dev)?;
    let question = |(sample, &row): (&Sample, &usize)| {
        let Row { prompt, response, .. } = &dev[row];
        Question { text: prompt.clone(), prompt: sample.source.clone().unwrap_or_default(), answer: response.clone() }
    };
    let questions = held_out.iter().zip(&rows).map(question).collect();
    samples.extend(held_out);
    Ok(Data { samples, train, questions, goal: None })
}

fn sample(row: Seq2SeqSample) -> Sample {
    Sample { source: Some(row.source), ..row.target.into() }
}
