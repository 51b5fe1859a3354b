//! Rows of source and target for encoder-decoder models.

use super::read::text_field;
use super::records::{broken, read_records};
use super::{DataError, DataFormat, Row, TooLong};
use crate::batch::TokenSample;
use crate::tokenizer::TextTokenizer;

/// Names of the column that the encoder reads.
const SOURCE_NAMES: [&str; 7] = ["source", "input", "prompt", "document", "article", "text", "question"];
/// Names of the column that the decoder learns.
const TARGET_NAMES: [&str; 7] = ["target", "output", "response", "summary", "highlights", "answer", "completion"];
/// What a row looks like.
const EXPECTED: &str = "{\"source\": …, \"target\": …}";

/// A sample of an encoder-decoder model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Seq2SeqSample {
    /// What the encoder reads, special tokens included.
    pub source: Vec<u32>,
    /// What the decoder reads (the start token, then the target but its last token) and learns at every position.
    pub target: TokenSample,
}

/// Reads rows of source (as `prompt`) and target (as `response`).
///
/// # Errors
/// If a row lacks either, or one is empty.
pub fn read_seq2seq(file: &str, bytes: &[u8], format: DataFormat) -> Result<Vec<Row>, DataError> {
    let records = read_records(file, bytes, format, true, EXPECTED)?;
    records.require_column(&SOURCE_NAMES, "source and target")?;
    records.require_column(&TARGET_NAMES, "source and target")?;
    let row = |record| -> Result<Row, DataError> {
        let (_, source) = text_field(file, record, &SOURCE_NAMES, EXPECTED)?;
        let (_, target) = text_field(file, record, &TARGET_NAMES, EXPECTED)?;
        for (text, name) in [(&source, "source"), (&target, "target")] {
            if text.trim().is_empty() {
                return Err(broken(file, record.line, format!("has an empty {name}: expected {EXPECTED}")));
            }
        }
        Ok(Row { prompt: source.trim().to_string(), response: target.trim().to_string(), line: record.line })
    };
    records.rows.iter().map(row).collect()
}

/// Turns rows into samples, and gives for each the index of its row; the decoder begins with `start`
/// (`decoder_start_token_id`). Rows longer than `context` on either side are refused or left out.
pub fn tokenise_seq2seq(
    file: &str,
    rows: &[Row],
    tokenizer: &TextTokenizer,
    start: u32,
    context: usize,
    too_long: TooLong,
) -> Result<(Vec<Seq2SeqSample>, Vec<usize>), DataError> {
    let (mut samples, mut kept) = (Vec::new(), Vec::new());
    for (index, row) in rows.iter().enumerate() {
        let source = tokenizer.encode(&row.prompt, true)?;
        let mut learnt = tokenizer.encode(&row.response, true)?;
        // A tokenizer that puts no end behind a text: the decoder must learn to stop all the same.
        if learnt.last().is_none_or(|last| !tokenizer.eos().contains(last)) {
            learnt.extend(tokenizer.eos().first());
        }
        let tokens = source.len().max(learnt.len());
        if tokens > context {
            if too_long == TooLong::Refuse {
                return Err(DataError::TooLong { file: file.to_string(), line: row.line, tokens, context });
            }
            continue;
        }
        if source.is_empty() || learnt.is_empty() {
            return Err(DataError::NoLabels { file: file.to_string(), line: row.line });
        }
        let ids = std::iter::once(start).chain(learnt[..learnt.len() - 1].iter().copied()).collect();
        let labels = learnt.iter().enumerate().map(|(t, &class)| (t as u32, class)).collect();
        samples.push(Seq2SeqSample { source, target: TokenSample { ids, labels } });
        kept.push(index);
    }
    if samples.is_empty() {
        return Err(DataError::AllTooLong { file: file.to_string(), rows: rows.len(), context });
    }
    Ok((samples, kept))
}
