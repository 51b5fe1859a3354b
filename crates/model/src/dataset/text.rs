//! Plain text as windows: all paragraphs end to end, cut into samples of equal length.

use super::{DataError, Row, Tokenised};
use crate::batch::TokenSample;
use crate::tokenizer::TextTokenizer;

/// Lays the paragraphs of a text end to end, an end token behind each, and cuts windows of `window` tokens.
///
/// Where the tokenizer starts a text with special tokens, so does every window. Otherwise a window begins with the last
/// token of the one before. Either way each token but the very first is learnt exactly once. The last window may be
/// shorter. `rows` of the result holds the row that each window begins in.
///
/// # Errors
/// If the text gives no token to learn, or `window` has no room for any.
pub fn pack_windows(file: &str, rows: &[Row], tokenizer: &TextTokenizer, window: usize) -> Result<Tokenised, DataError> {
    let start = tokenizer.encode_prompt("")?;
    let mut stream: Vec<(u32, usize)> = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        stream.extend(tokenizer.encode_response(&row.response)?.into_iter().map(|id| (id, index)));
    }
    let overlap = usize::from(start.is_empty());
    let nothing = || DataError::NoLabels { file: file.to_string(), line: rows.first().map_or(1, |row| row.line) };
    let step = window.checked_sub(start.len() + overlap).filter(|&step| step > 0).ok_or_else(nothing)?;
    let mut tokenised = Tokenised::default();
    let mut at = 0;
    while at + overlap < stream.len() {
        let piece = &stream[at..(at + step + overlap).min(stream.len())];
        let ids: Vec<u32> = start.iter().copied().chain(piece.iter().map(|&(id, _)| id)).collect();
        tokenised.samples.push(TokenSample::after_prompt(ids, start.len()));
        tokenised.rows.push(piece[0].1);
        at += step;
    }
    if tokenised.samples.is_empty() { Err(nothing()) } else { Ok(tokenised) }
}
