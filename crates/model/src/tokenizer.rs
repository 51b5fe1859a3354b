//! Text to token ids and back, by the model's own `tokenizer.json`.

use crate::{ModelConfig, ModelError};
use std::collections::HashSet;
use std::ops::Range;
use tokenizers::{TruncationParams, TruncationStrategy};

/// A Hugging Face tokenizer with the end token of its model.
#[derive(Clone)]
pub struct TextTokenizer {
    inner: tokenizers::Tokenizer,
    eos: Vec<u32>,
    special: HashSet<u32>,
}

/// Tokens with where they stand in their text.
pub type PlacedTokens = Vec<(u32, Range<usize>)>;

/// What stands between a prompt and its response.
pub const SEPARATOR: &str = "\n";

impl TextTokenizer {
    /// Reads the text of a `tokenizer.json`, checking that its ids fit the model's embedding.
    pub fn parse(json: &[u8], config: &ModelConfig) -> Result<Self, ModelError> {
        let inner = tokenizers::Tokenizer::from_bytes(json)
            .map_err(|error| ModelError::BadTokenizer { reason: one_line(&error.to_string()) })?;
        let largest = inner.get_vocab(true).values().copied().max().unwrap_or(0);
        if largest as usize >= config.vocab {
            return Err(ModelError::VocabularyTooLarge { largest, rows: config.vocab });
        }
        let added = inner.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(&id, _)| id).collect();
        let mut tokenizer = Self { inner, eos: config.eos.clone(), special };
        // Padding and truncation belong to the batch, never to the text.
        tokenizer.inner.with_padding(None);
        let _ = tokenizer.inner.with_truncation(None);
        Ok(tokenizer)
    }

    /// Reads `tokenizer.json` of a folder.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn from_folder(folder: &std::path::Path, config: &ModelConfig) -> Result<Self, ModelError> {
        Self::parse(crate::folder::read_text(folder, "tokenizer.json")?.as_bytes(), config)
    }

    /// The ids of a text; with `special`, what the tokenizer puts at the start of a text (a BOS token) comes too.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>, ModelError> {
        self.inner
            .encode_fast(text, special)
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| ModelError::BadTokenizer { reason: one_line(&error.to_string()) })
    }

    /// The ids of a text that already has its special tokens (a rendered chat), each with its byte range.
    pub fn encode_placed(&self, text: &str) -> Result<PlacedTokens, ModelError> {
        let encoding = self.inner.encode(text, false).map_err(|error| ModelError::BadTokenizer { reason: one_line(&error.to_string()) })?;
        Ok(encoding.get_ids().iter().copied().zip(encoding.get_offsets().iter().map(|&(start, end)| start..end)).collect())
    }

    /// The ids of one sentence or of two, with the special tokens around them, and the type (0 or 1) of each.
    pub fn encode_sentences(&self, first: &str, second: Option<&str>) -> Result<(Vec<u32>, Vec<u32>), ModelError> {
        let encoding = match second {
            Some(second) => self.inner.encode((first, second), true),
            None => self.inner.encode(first, true),
        };
        let encoding = encoding.map_err(|error| ModelError::BadTokenizer { reason: one_line(&error.to_string()) })?;
        Ok((encoding.get_ids().to_vec(), encoding.get_type_ids().to_vec()))
    }

    /// The same tokenizer, cutting what exceeds `max_tokens`: the end of the longer sentence first.
    pub fn cutting(&self, max_tokens: usize) -> Result<Self, ModelError> {
        let mut cutting = self.clone();
        let truncation = TruncationParams { max_length: max_tokens, strategy: TruncationStrategy::LongestFirst, ..TruncationParams::default() };
        let set = cutting.inner.with_truncation(Some(truncation)).map(|_| ());
        set.map_err(|error| ModelError::BadTokenizer { reason: one_line(&error.to_string()) })?;
        Ok(cutting)
    }

    /// Whether an id is a special token: it never comes from ordinary text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The text of ids, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        self.inner.decode(ids, true).map_err(|error| ModelError::BadTokenizer { reason: one_line(&error.to_string()) })
    }

    /// The ids at which generation stops; empty if the model has no end token.
    pub fn eos(&self) -> &[u32] {
        &self.eos
    }

    /// Largest id + 1.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The ids of a prompt, ready for its response: `[start] prompt "\n"`.
    ///
    /// Training and generation both come through here, so that a tuned model sees the same tokens in both. An empty
    /// prompt has only the tokenizer's start token, if any.
    pub fn encode_prompt(&self, prompt: &str) -> Result<Vec<u32>, ModelError> {
        let text = if prompt.is_empty() { String::new() } else { format!("{prompt}{SEPARATOR}") };
        let mut ids = self.encode(&text, true)?;
        // A tokenizer that also ends texts would end the prompt.
        while ids.last().is_some_and(|last| self.eos.contains(last)) && ids.len() > 1 {
            ids.pop();
        }
        Ok(ids)
    }

    /// The ids of what follows a prompt: `response [end]`.
    pub fn encode_response(&self, response: &str) -> Result<Vec<u32>, ModelError> {
        let mut ids = self.encode(response, false)?;
        ids.extend(self.eos.first());
        Ok(ids)
    }

    /// The text of a generated answer: up to the first end token, trimmed.
    pub fn decode_response(&self, ids: &[u32]) -> Result<String, ModelError> {
        let end = ids.iter().position(|id| self.eos.contains(id)).unwrap_or(ids.len());
        Ok(self.decode(&ids[..end])?.trim().to_string())
    }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
