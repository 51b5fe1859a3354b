//! Padded inputs of a reference, as packed micro-batches.

use crate::EngineError;
use crate::packed::{MicroBatch, Sequence};
use barycenter_model::{FolderTensors, RawTensor, TensorSource};

/// Right-padded token ids of a reference, and which of them are real.
pub(super) struct Inputs {
    ids: Vec<i64>,
    mask: Vec<bool>,
    token_types: Vec<i64>,
    padded_len: usize,
}

impl Inputs {
    /// `{prefix}input_ids`, `{prefix}attention_mask` and, where there, `{prefix}token_type_ids`.
    pub(super) fn load(file: &mut FolderTensors, prefix: &str) -> Result<Self, EngineError> {
        let ids = file.load(&format!("{prefix}input_ids"))?;
        let mut optional = |name: &str| -> Result<Option<Vec<i64>>, EngineError> {
            let name = format!("{prefix}{name}");
            Ok(if file.has(&name) { Some(file.load(&name)?.to_i64()) } else { None })
        };
        let mask = optional("attention_mask")?;
        let mask = mask.map_or_else(|| vec![true; ids.elements()], |mask| mask.into_iter().map(|real| real != 0).collect());
        let token_types = optional("token_type_ids")?.unwrap_or_default();
        if mask.len() != ids.elements() || !(token_types.is_empty() || token_types.len() == ids.elements()) {
            return Err(EngineError::BadBatch(format!("the mask or token types of `{prefix}input_ids` have another shape")));
        }
        Ok(Self { padded_len: ids.shape.last().copied().unwrap_or(1).max(1), ids: ids.to_i64(), mask, token_types })
    }

    /// The real tokens of each row as a sequence; `labels` as transformers has them (−100 = no loss), or none. The hidden
    /// state at position t predicts the label at t + `shift`.
    pub(super) fn micro_batch(&self, labels: &[i64], shift: usize) -> Result<MicroBatch, EngineError> {
        let bad = |id: i64| EngineError::BadBatch(format!("token {id} is negative"));
        let mut token_types = Vec::new();
        let sequences = self.ids.chunks(self.padded_len).enumerate().map(|(row, ids)| {
            let at = |t: usize| row * self.padded_len + t;
            let real: Vec<usize> = (0..ids.len()).filter(|&t| self.mask[at(t)]).collect();
            let label = |t: usize| labels.get(at(t)).copied().filter(|&label| label >= 0);
            let labels = real.iter().enumerate().skip(shift).filter_map(|(index, &t)| Some(((index - shift) as u32, label(t)? as u32)));
            let labels = labels.collect();
            if !self.token_types.is_empty() {
                token_types.extend(real.iter().map(|&t| self.token_types[at(t)] as u32));
            }
            let ids = real.iter().map(|&t| u32::try_from(ids[t]).map_err(|_| bad(ids[t]))).collect::<Result<_, _>>()?;
            Ok(Sequence { ids, labels })
        });
        let sequences = sequences.collect::<Result<Vec<_>, EngineError>>()?;
        Ok(MicroBatch { token_types, ..MicroBatch::pack(&sequences) })
    }

    /// A classifier's batch: the first token of each row learns its label, a class or, of one output, a value.
    pub(super) fn labelled_rows(&self, labels: &RawTensor, outputs: usize) -> Result<MicroBatch, EngineError> {
        let first_only = |values: &[i64]| -> Vec<i64> {
            let padded = values.iter().flat_map(|&label| std::iter::once(label).chain(std::iter::repeat_n(-100, self.padded_len - 1)));
            padded.collect()
        };
        match outputs {
            1 => Ok(MicroBatch { values: labels.to_f32(), ..self.micro_batch(&first_only(&vec![0; labels.elements()]), 0)? }),
            _ => self.micro_batch(&first_only(&labels.to_i64()), 0),
        }
    }

    /// The same with a label of class 0 at every real token: where logits of all are wanted.
    pub(super) fn every_token(&self) -> Result<MicroBatch, EngineError> {
        self.micro_batch(&vec![0; self.ids.len()], 0)
    }

    /// The rows of `[batch, padded_len, …]` that belong to real tokens.
    pub(super) fn unmasked(&self, values: &[f32]) -> Vec<f32> {
        let width = values.len() / self.mask.len().max(1);
        let rows = values.chunks(width.max(1)).zip(&self.mask);
        rows.filter(|(_, real)| **real).flat_map(|(row, _)| row.iter().copied()).collect()
    }
}
