//! Text to token ids and back, by the model's own `tokenizer.json`.

use crate::{ModelConfig, ModelError};

/// A Hugging Face tokenizer with the end token of its model.
#[derive(Clone)]
pub struct TextTokenizer {
    inner: tokenizers::Tokenizer,
    eos: Vec<u32>,
}

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
        let mut tokenizer = Self { inner, eos: config.eos.clone() };
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
