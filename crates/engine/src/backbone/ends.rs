//! The two ends of a stack: what makes rows of token ids, and what makes logits of rows.

use super::layer::{Linear, Norm};
use super::source::ParameterSource;
use crate::EngineError;
use crate::packed::DeviceBatch;
use crate::tape::{Tape, Var};
use crate::tensor::Tensor;
use barycenter_model::names::{self, Parameter};
use barycenter_model::{Activation, HeadKind, ModelConfig, Positions};

/// A table sharded by rows: (rows, first row).
pub type Shards = Vec<(Var, usize)>;

/// Token embedding, and what some families add to it.
pub struct Embeddings {
    /// Row shards of `[vocab, width]`.
    pub words: Shards,
    /// Row shards of the learned positions, from position 0 on.
    positions: Option<Shards>,
    token_types: Option<Shards>,
    norm: Option<Norm>,
    scale: f32,
}

impl Embeddings {
    pub(super) fn gather(config: &ModelConfig, words: Shards, source: &mut dyn ParameterSource) -> Result<Self, EngineError> {
        let offset = if let Positions::Learned { offset } = config.positions { offset } else { 0 };
        let positions = names::position_table(config).map(|table| source.table(&table, offset)).transpose()?;
        let token_types = names::token_type_table(config).map(|table| source.table(&table, 0)).transpose()?;
        let norm = config.names().embedding_norm.map(|name| Norm::gather(config, name, |name| source.get(name))).transpose()?;
        Ok(Self { words, positions, token_types, norm, scale: config.embedding_scale as f32 })
    }

    /// Rows `[tokens, width]`; `token_types` are all 0 where not given.
    pub fn apply(&self, tape: &Tape, ids: &Tensor, positions: &Tensor, token_types: Option<&Tensor>) -> Var {
        let mut x = tape.embed(&self.words, ids);
        if self.scale != 1.0 {
            x = tape.scale(&x, self.scale);
        }
        if let Some(table) = &self.token_types {
            let zeros;
            let types = match token_types {
                Some(types) => types,
                None => {
                    zeros = Tensor::from_u32(tape.device(), &vec![0; ids.len()]);
                    &zeros
                }
            };
            x = tape.add(&x, &tape.embed(table, types));
        }
        if let Some(table) = &self.positions {
            x = tape.add(&x, &tape.embed(table, positions));
        }
        self.norm.as_ref().map_or_else(|| x.clone(), |norm| norm.apply(tape, &x))
    }
}

/// What stands on the last layer: final norm, what some families put behind it, and the matrix to the classes.
pub struct Head {
    final_norm: Option<Norm>,
    transform: Transform,
    scale: f32,
    /// Whether it reads the first token of each sequence only.
    first_token: bool,
    /// Row shards of `[classes, width]`; empty where the model has no head.
    pub shards: Shards,
    /// `[classes]`.
    pub bias: Option<Var>,
    /// What bounds the logits ([`ModelConfig::logit_cap`]).
    pub cap: Option<f32>,
}

/// Between final norm and matrix.
enum Transform {
    None,
    /// BERT's masked head.
    Masked { dense: Linear, activation: Activation, norm: Norm },
    /// BERT's pooler; its rows are the sequences' first tokens.
    Pooler(Linear),
}

impl Head {
    pub(super) fn gather(config: &ModelConfig, words: Option<&Shards>, source: &mut dyn ParameterSource) -> Result<Self, EngineError> {
        let final_norm = config.names().final_norm.map(|name| Norm::gather(config, name, |name| source.get(name))).transpose()?;
        let mut dense = |index: usize| -> Result<Linear, EngineError> {
            let list = names::head_transform(config);
            Ok(Linear::plain(source.get(&list[index].name)?, source.get(&list[index + 1].name)?))
        };
        let transform = match config.head {
            HeadKind::Classifier { pooled: true, .. } => Transform::Pooler(dense(0)?),
            HeadKind::Masked => {
                let dense = dense(0)?;
                let name = config.family.table().head.transform.map_or("", |[_, norm]| norm);
                let norm = Norm::gather(config, name, |name| source.get(name))?;
                Transform::Masked { dense, activation: config.activation, norm }
            }
            HeadKind::Classifier { pooled: false, .. } | HeadKind::Language | HeadKind::None => Transform::None,
        };
        let is_embedding = |head: &Parameter| *head == names::embedding(config);
        let shards = match (names::head(config), words) {
            (None, _) => Vec::new(),
            (Some(head), Some(words)) if is_embedding(&head) => words.clone(),
            (Some(head), _) => source.table(&head, 0)?,
        };
        let bias = names::head_bias(config).map(|bias| source.get(&bias.name)).transpose()?;
        let first_token = matches!(config.head, HeadKind::Classifier { .. });
        Ok(Self { final_norm, transform, scale: config.head_scale as f32, first_token, shards, bias, cap: config.logit_cap.map(|cap| cap as f32) })
    }

    /// A linear layer alone, `weight: [classes, width]`, on rows of any width.
    pub fn linear(weight: Var, bias: Var) -> Self {
        Self { final_norm: None, transform: Transform::None, scale: 1.0, first_token: false, shards: vec![(weight, 0)], bias: Some(bias), cap: None }
    }

    /// The final norm alone: what transformers calls the last hidden state.
    pub fn normed(&self, tape: &Tape, hidden: &Var) -> Var {
        self.final_norm.as_ref().map_or_else(|| hidden.clone(), |norm| norm.apply(tape, hidden))
    }

    /// What the matrix is applied to, of `hidden: [rows, width]` behind the last layer.
    pub fn input(&self, tape: &Tape, hidden: &Var) -> Var {
        let mut x = self.normed(tape, hidden);
        x = match &self.transform {
            Transform::None => x,
            Transform::Masked { dense, activation, norm } => norm.apply(tape, &tape.activate(*activation, &dense.apply(tape, &x), None)),
            Transform::Pooler(dense) => tape.activate(Activation::Tanh, &dense.apply(tape, &x), None),
        };
        if self.scale != 1.0 {
            x = tape.scale(&x, self.scale);
        }
        x
    }

    /// The rows of `hidden` that have logits: all, or each sequence's first token where the head is a classifier.
    pub fn rows(&self, tape: &Tape, hidden: &Var, batch: &DeviceBatch) -> Var {
        if self.first_token { tape.gather_rows(hidden, &batch.first_rows) } else { hidden.clone() }
    }
}
