//! In which number format frozen weights are held, chosen when they are loaded.

use crate::blocks::{self, BLOCK};
use crate::{ModelError, RawTensor, TensorDtype, TensorEntry, TensorSource};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// Number format of the frozen matrices; vectors (norms, biases) are never changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightType {
    /// As the file has them.
    #[default]
    Keep,
    /// Half precision.
    F16,
    /// 8-bit integers in blocks of 32 along a row.
    Int8,
    /// 4-bit integers in blocks of 32 along a row; the tables (embedding, head) as int8, because every token passes
    /// through them with nothing behind that would even out their error.
    Int4,
}

impl WeightType {
    /// What a tensor that a file holds as `dtype` becomes.
    ///
    /// A row that is not whole blocks becomes f16 where integers were asked for. What is already smaller than what is
    /// asked for stays as it is, and so do position tables, which are small and added as they are.
    pub fn dtype_of(self, name: &str, shape: &[usize], dtype: TensorDtype) -> TensorDtype {
        let (&[_, cols], true) = (shape, dtype.is_weight()) else { return dtype };
        if self == WeightType::Keep || is_position_table(name) {
            return dtype;
        }
        let wanted = match self {
            WeightType::Keep => dtype,
            WeightType::F16 => TensorDtype::F16,
            _ if !cols.is_multiple_of(BLOCK) => TensorDtype::F16,
            WeightType::Int4 if !is_table(name) => TensorDtype::Q4,
            WeightType::Int8 | WeightType::Int4 => TensorDtype::Q8,
        };
        if bits(wanted) < bits(dtype) || (dtype == TensorDtype::Bf16 && wanted == TensorDtype::F16) { wanted } else { dtype }
    }
}

/// Bits of 32 elements.
fn bits(dtype: TensorDtype) -> usize {
    8 * dtype.len_bytes(BLOCK).expect("a block is whole in every format")
}

/// An embedding or a head: one row per token of the vocabulary.
fn is_table(name: &str) -> bool {
    ["embed_tokens.weight", "word_embeddings.weight", "wte.weight", "shared.weight", "lm_head.weight"].iter().any(|end| name.ends_with(end))
}

fn is_position_table(name: &str) -> bool {
    ["position", "wpe.", "token_type", "relative_attention_bias"].iter().any(|part| name.contains(part))
}

/// Tensors of another source as a [`WeightType`] has them; every tensor is checked for what is not a number.
pub struct Weights<S> {
    source: S,
    weight_type: WeightType,
}

impl<S: TensorSource> Weights<S> {
    /// Converts whatever is loaded from `source`.
    pub fn new(source: S, weight_type: WeightType) -> Self {
        Self { source, weight_type }
    }

    fn convert(&self, name: &str, tensor: RawTensor) -> Result<RawTensor, ModelError> {
        check_finite(name, tensor.dtype, &tensor.bytes)?;
        let dtype = self.weight_type.dtype_of(name, &tensor.shape, tensor.dtype);
        if dtype == tensor.dtype {
            return Ok(tensor);
        }
        let converted = tensor.converted(dtype);
        check_finite(name, dtype, &converted.bytes)?;
        Ok(converted)
    }
}

impl<S: TensorSource> TensorSource for Weights<S> {
    fn load(&mut self, name: &str) -> Result<RawTensor, ModelError> {
        let tensor = self.source.load(name)?;
        self.convert(name, tensor)
    }

    fn load_rows(&mut self, name: &str, rows: Range<usize>) -> Result<RawTensor, ModelError> {
        let tensor = self.source.load_rows(name, rows)?;
        self.convert(name, tensor)
    }

    fn entry(&self, name: &str) -> Option<TensorEntry> {
        let entry = self.source.entry(name)?;
        let dtype = self.weight_type.dtype_of(name, &entry.shape, entry.dtype);
        if dtype == entry.dtype {
            return Some(entry);
        }
        let end = dtype.len_bytes(entry.shape.iter().product())? as u64;
        Some(TensorEntry { dtype, shape: entry.shape, start: 0, end })
    }
}

impl<S: TensorSource + ?Sized> TensorSource for Box<S> {
    fn load(&mut self, name: &str) -> Result<RawTensor, ModelError> {
        (**self).load(name)
    }

    fn load_rows(&mut self, name: &str, rows: Range<usize>) -> Result<RawTensor, ModelError> {
        (**self).load_rows(name, rows)
    }

    fn entry(&self, name: &str) -> Option<TensorEntry> {
        (**self).entry(name)
    }
}

impl<S: TensorSource + ?Sized> TensorSource for &mut S {
    fn load(&mut self, name: &str) -> Result<RawTensor, ModelError> {
        (**self).load(name)
    }

    fn load_rows(&mut self, name: &str, rows: Range<usize>) -> Result<RawTensor, ModelError> {
        (**self).load_rows(name, rows)
    }

    fn entry(&self, name: &str) -> Option<TensorEntry> {
        (**self).entry(name)
    }
}

impl RawTensor {
    /// The same rounded to another format that weights have; rows must be whole blocks of it.
    pub fn converted(&self, dtype: TensorDtype) -> RawTensor {
        let values = self.to_f32();
        let mut bytes = Vec::new();
        match dtype {
            TensorDtype::F16 => return RawTensor::f16_from_f32(&self.shape, &values),
            TensorDtype::Q8 => blocks::quantise_q8(&values, &mut bytes),
            TensorDtype::Q4 => blocks::quantise_q4(&values, &mut bytes),
            _ => return RawTensor::from_f32(&self.shape, &values),
        }
        RawTensor { dtype, shape: self.shape.clone(), bytes }
    }
}

/// Refuses a weight with an element that is not a number or is infinite.
pub fn check_finite(name: &str, dtype: TensorDtype, bytes: &[u8]) -> Result<(), ModelError> {
    let half = |mask: u16| bytes.chunks_exact(2).position(|b| u16::from_le_bytes([b[0], b[1]]) & mask == mask);
    let scale = |len: usize| bytes.chunks_exact(len).position(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7c00 == 0x7c00).map(|block| block * BLOCK);
    let found = match dtype {
        TensorDtype::F32 => bytes.chunks_exact(4).position(|b| u16::from_le_bytes([b[2], b[3]]) & 0x7f80 == 0x7f80),
        TensorDtype::F16 => half(0x7c00),
        TensorDtype::Bf16 => half(0x7f80),
        TensorDtype::Q8 => scale(blocks::Q8_BYTES),
        TensorDtype::Q4 => scale(blocks::Q4_BYTES),
        _ => None,
    };
    found.map_or(Ok(()), |element| Err(ModelError::NotFinite { name: name.to_string(), element }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryTensors;
    use std::collections::BTreeMap;

    fn source(shape: &[usize]) -> MemoryTensors {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01).collect();
        let names = ["model.layers.0.mlp.up_proj.weight", "lm_head.weight", "wpe.weight"];
        MemoryTensors { tensors: names.map(|name| (name.to_string(), RawTensor::from_f32(shape, &values))).into_iter().collect() }
    }

    #[test]
    fn matrices_take_the_type_and_tables_of_int4_are_int8() {
        for (weight_type, matrix, table) in [
            (WeightType::Keep, TensorDtype::F32, TensorDtype::F32),
            (WeightType::F16, TensorDtype::F16, TensorDtype::F16),
            (WeightType::Int8, TensorDtype::Q8, TensorDtype::Q8),
            (WeightType::Int4, TensorDtype::Q4, TensorDtype::Q8),
        ] {
            let mut weights = Weights::new(source(&[4, 96]), weight_type);
            for (name, dtype) in [("model.layers.0.mlp.up_proj.weight", matrix), ("lm_head.weight", table), ("wpe.weight", TensorDtype::F32)] {
                let (entry, tensor) = (weights.entry(name).unwrap(), weights.load(name).unwrap());
                assert_eq!((entry.dtype, tensor.dtype), (dtype, dtype), "{weight_type:?} {name}");
                assert_eq!(entry.len_bytes() as usize, tensor.bytes.len());
                let rows = weights.load_rows(name, 1..3).unwrap();
                assert_eq!(rows.to_f32(), tensor.to_f32()[96..3 * 96], "rows are those of the whole");
            }
        }
    }

    #[test]
    fn rows_that_are_not_whole_blocks_become_f16() {
        let weights = Weights::new(source(&[4, 40]), WeightType::Int4);
        assert_eq!(weights.entry("model.layers.0.mlp.up_proj.weight").unwrap().dtype, TensorDtype::F16);
    }

    #[test]
    fn what_is_smaller_already_stays() {
        let is = |weight_type: WeightType, dtype| weight_type.dtype_of("a.weight", &[2, 32], dtype);
        assert_eq!(is(WeightType::F16, TensorDtype::Q8), TensorDtype::Q8);
        assert_eq!(is(WeightType::Int8, TensorDtype::Q4), TensorDtype::Q4);
        assert_eq!(is(WeightType::Int4, TensorDtype::Q8), TensorDtype::Q4);
        assert_eq!(is(WeightType::F16, TensorDtype::Bf16), TensorDtype::F16);
    }

    #[test]
    fn what_is_not_a_number_is_refused_with_its_name() {
        for (dtype, at) in [(TensorDtype::F32, 37), (TensorDtype::F16, 37), (TensorDtype::Bf16, 37), (TensorDtype::Q8, 32)] {
            let mut values = vec![0.5f32; 64];
            values[37] = if dtype == TensorDtype::Q8 { f32::INFINITY } else { f32::NAN };
            let mut tensor = RawTensor::from_f32(&[2, 32], &values);
            match dtype {
                TensorDtype::F32 => {}
                TensorDtype::Bf16 => {
                    tensor.bytes = tensor.bytes.chunks(4).flat_map(|b| [b[2], b[3]]).collect();
                    tensor.dtype = dtype;
                }
                dtype => tensor = tensor.converted(dtype),
            }
            let mut weights = Weights::new(MemoryTensors { tensors: BTreeMap::from([("w".to_string(), tensor)]) }, WeightType::Keep);
            let said = weights.load("w").unwrap_err().to_string();
            assert!(said.contains("`w`") && said.contains(&format!("element {at}")), "{dtype:?}: {said}");
        }
        let large = RawTensor::from_f32(&[1, 2], &[1e6, 0.0]);
        let mut weights = Weights::new(MemoryTensors { tensors: BTreeMap::from([("w".to_string(), large)]) }, WeightType::F16);
        assert!(weights.load("w").unwrap_err().to_string().contains("`w`"), "what overflows f16 is not loaded");
    }
}
