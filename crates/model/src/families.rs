//! The families, one table each: names of parameters, and how a `config.json` becomes a [`ModelConfig`].
//!
//! `docs/ADDING_A_FAMILY.md` walks through one.

pub mod bart;
pub mod bert;
pub mod gemma3;
pub mod gpt2;
pub mod llama;
pub mod t5;

use crate::config::Reader;
use crate::{Family, ModelConfig, ModelError};

/// The model types this project runs, as `config.json` names them.
pub const SUPPORTED_MODEL_TYPES: &[&str] = &["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gpt2", "bert", "bart", "t5"];

/// What one family says.
pub struct FamilyTable {
    /// The family.
    pub family: Family,
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// (other name, key): keys of `config.json` that transformers also takes under a name all families have (`attribute_map`).
    pub other_names: &'static [(&'static str, &'static str)],
    /// Makes the description from `config.json`; sizes that are left out get transformers' defaults.
    pub(crate) read: fn(Family, &Reader<'_>) -> Result<ModelConfig, ModelError>,
    /// Names of a stack's parameters; the encoder and the decoder of one model differ.
    pub stack: fn(&ModelConfig) -> &'static StackNames,
    /// Names of the head's parameters.
    pub head: HeadNames,
    /// Whether linear weights are stored `[in, out]` (GPT-2's `Conv1D`) instead of `[out, in]`.
    pub transposed: bool,
    /// Whether the file alone decides if the head is the embedding, whatever `tie_word_embeddings` says (T5).
    pub file_ties_head: bool,
}

/// Names of a stack's parameters, without `.weight` and `.bias`; `None` where the family has no such thing.
///
/// Whether a bias, a gate or a norm on heads is there is said by [`ModelConfig`].
pub struct StackNames {
    /// The table of token embeddings.
    pub embedding: &'static str,
    /// The stack's own table of token embeddings, where the file has one ([`ModelConfig::own_embedding`]).
    pub own_embedding: Option<&'static str>,
    /// The table of learned positions.
    pub positions: Option<&'static str>,
    /// The table of token types.
    pub token_types: Option<&'static str>,
    /// The norm of the embedding's output.
    pub embedding_norm: Option<&'static str>,
    /// The table of the relative position bias, `[buckets, heads]`.
    pub relative_bias: Option<&'static str>,
    /// What layer names begin with; the layer's number follows.
    pub layers: &'static str,
    /// Attention of the tokens to each other.
    pub attention: AttentionNames,
    /// Attention to the encoder's output.
    pub cross: Option<AttentionNames>,
    /// The feed-forward block.
    pub feed_forward: FeedForwardNames,
    /// The norm behind the last layer.
    pub final_norm: Option<&'static str>,
}

/// Where a sub-layer f is normed: `x → after(x + output(f(before(x))))`.
#[derive(Clone, Copy)]
pub struct SubLayerNorms {
    /// On what enters f (pre-norm).
    pub before: Option<&'static str>,
    /// On what f gives (with `before`: sandwich).
    pub output: Option<&'static str>,
    /// On the sum (post-norm).
    pub after: Option<&'static str>,
}

impl SubLayerNorms {
    /// `x + f(norm(x))`.
    pub const fn pre(before: &'static str) -> Self {
        Self { before: Some(before), output: None, after: None }
    }

    /// `norm(x + f(x))`.
    pub const fn post(after: &'static str) -> Self {
        Self { before: None, output: None, after: Some(after) }
    }

    /// `x + norm₂(f(norm₁(x)))`.
    pub const fn sandwich(before: &'static str, output: &'static str) -> Self {
        Self { before: Some(before), output: Some(output), after: None }
    }
}

/// Where query, key and value come from.
#[derive(Clone, Copy)]
pub enum ProjectionNames {
    /// A linear layer each.
    Split {
        /// Query.
        q: &'static str,
        /// Key.
        k: &'static str,
        /// Value.
        v: &'static str,
    },
    /// One linear layer whose output is query, key and value side by side.
    Fused(&'static str),
}

/// Names within an attention.
#[derive(Clone, Copy)]
pub struct AttentionNames {
    /// Its norms.
    pub norms: SubLayerNorms,
    /// Query, key and value.
    pub projections: ProjectionNames,
    /// Norms of query and key heads, where [`ModelConfig::qk_norm`] is set.
    pub head_norms: [&'static str; 2],
    /// The output projection.
    pub output: &'static str,
}

/// Names within a feed-forward block `down(act(gate(x)) · up(x))`, or `down(act(up(x)))`.
#[derive(Clone, Copy)]
pub struct FeedForwardNames {
    /// Its norms.
    pub norms: SubLayerNorms,
    /// What the activation is applied to, where [`ModelConfig::gated`] is set.
    pub gate: &'static str,
    /// The projection to the inner width.
    pub up: &'static str,
    /// The projection back.
    pub down: &'static str,
}

/// Names of the head's parameters; which of them a model has is said by [`ModelConfig::head`].
pub struct HeadNames {
    /// The matrix to the vocabulary, unless it is the embedding.
    pub weight: &'static str,
    /// The whole name of the bias on the logits ([`ModelConfig::head_bias`]), and its shape's leading ones (BART: `[1, vocab]`).
    pub bias: Option<(&'static str, usize)>,
    /// Whether that bias is a buffer of `transformers`, which no method trains.
    pub bias_is_buffer: bool,
    /// BERT's linear layer and norm before the matrix.
    pub transform: Option<[&'static str; 2]>,
    /// The pooler and the classifier.
    pub classifier: Option<[&'static str; 2]>,
}

impl HeadNames {
    /// `lm_head.weight`, no bias.
    pub const PLAIN: Self = Self { weight: "lm_head", bias: None, bias_is_buffer: false, transform: None, classifier: None };
}

/// The table of a family.
pub fn table(family: Family) -> &'static FamilyTable {
    match family {
        Family::Llama => &llama::LLAMA,
        Family::Mistral => &llama::MISTRAL,
        Family::Qwen2 => &llama::QWEN2,
        Family::Qwen3 => &llama::QWEN3,
        Family::Gemma3 => &gemma3::TABLE,
        Family::Gpt2 => &gpt2::TABLE,
        Family::Bert => &bert::TABLE,
        Family::Bart => &bart::TABLE,
        Family::T5 => &t5::TABLE,
    }
}

/// The table of a `model_type`.
pub(crate) fn by_model_type(model_type: &str) -> Option<&'static FamilyTable> {
    use Family::*;
    [Llama, Mistral, Qwen2, Qwen3, Gemma3, Gpt2, Bert, Bart, T5].map(table).into_iter().find(|table| table.model_type == model_type)
}
