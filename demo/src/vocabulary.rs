//! Trains the demo's tokenizer: byte-level pairs, in which every word of the grammar becomes one token.

use anyhow::anyhow;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer, TokenizerBuilder};

/// The token that ends every text: id 0.
pub const END: &str = "<|end|>";

/// Most tokens there may be.
pub const MAX_VOCABULARY: usize = 2048;

/// Trains on the texts and returns the `tokenizer.json`.
pub fn train_tokenizer(texts: &[String]) -> anyhow::Result<String> {
    let mut trainer = BpeTrainer::builder()
        .show_progress(false)
        .vocab_size(MAX_VOCABULARY)
        .min_frequency(2)
        .special_tokens(vec![AddedToken::from(END.to_string(), true)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let bytes = ByteLevel::new(false, true, true);
    let mut tokenizer = TokenizerBuilder::new()
        .with_model(BPE::default())
        .with_normalizer(None::<tokenizers::NormalizerWrapper>)
        .with_pre_tokenizer(Some(bytes))
        .with_post_processor(Some(bytes))
        .with_decoder(Some(bytes))
        .build()
        .map_err(|error| anyhow!("{error}"))?;
    tokenizer.train(&mut trainer, texts.iter()).map_err(|error| anyhow!("{error}"))?;
    let tokenizer: Tokenizer = tokenizer.into();
    tokenizer.to_string(false).map_err(|error| anyhow!("{error}"))
}
