//! The tensors of a GGUF file under the names, and in the order of rows, that `transformers` uses.

use super::config::architecture;
use super::header::{GgmlType, GgufHeader, GgufTensor};
use super::kquants::{dequantise_q4_k, dequantise_q6_k};
use crate::{ModelConfig, ModelError, RawTensor, TensorDtype, TensorEntry, TensorSource};
use memmap2::Mmap;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Names outside the layers.
const GLOBAL_NAMES: &[(&str, &str)] =
    &[("token_embd.weight", "model.embed_tokens.weight"), ("output_norm.weight", "model.norm.weight"), ("output.weight", "lm_head.weight")];

/// Names within a layer, without `.weight` or `.bias`.
const LAYER_NAMES: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// The norms that Llama and Qwen, and those that Gemma 3 has besides `attn_norm`.
const NORM_NAMES: &[(&str, &str)] = &[("ffn_norm", "post_attention_layernorm")];
const GEMMA_NORM_NAMES: &[(&str, &str)] = &[
    ("post_attention_norm", "post_attention_layernorm"),
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

/// What llama.cpp's converter did to a tensor, to be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    None,
    /// Llama's query and key rows are interleaved for a rotary embedding of neighbours: within a head, row `2i + s` of the
    /// file is row `i + s · head_dim/2`, `s` being 0 or 1.
    Interleaved { head_dim: usize },
    /// Gemma's norms multiply by 1 + weight; the file has the sum.
    PlusOne,
}

#[derive(Clone, Debug)]
struct Place {
    tensor: GgufTensor,
    change: Change,
}

/// See the module. F32, F16, BF16, Q8_0 and Q4_0 come as they are; Q4_K and Q6_K as f16.
#[derive(Clone, Debug)]
pub struct GgufTensors {
    map: Arc<Mmap>,
    places: BTreeMap<String, Place>,
}

impl GgufTensors {
    pub(super) fn new(header: Arc<GgufHeader>, map: Arc<Mmap>) -> Result<Self, ModelError> {
        let architecture = architecture(&header)?.0;
        let head_dim = match architecture {
            "llama" => {
                let config = ModelConfig::parse(&super::config::config_json(&header, &map)?)?;
                Some(config.head_dim)
            }
            _ => None,
        };
        let mut places = BTreeMap::new();
        for (name, tensor) in &header.tensors {
            let Some(ours) = transformers_name(architecture, name) else { continue };
            let change = match head_dim {
                Some(head_dim) if ours.contains(".q_proj.") || ours.contains(".k_proj.") => {
                    if !tensor.shape.first().is_some_and(|rows| rows.is_multiple_of(head_dim)) {
                        return Err(header.bad(format!("its tensor `{name}` of shape {:?} is not made of heads of {head_dim}", tensor.shape)));
                    }
                    Change::Interleaved { head_dim }
                }
                _ if architecture == "gemma3" && ours.ends_with("norm.weight") => Change::PlusOne,
                _ => Change::None,
            };
            places.insert(ours, Place { tensor: tensor.clone(), change });
        }
        Ok(Self { map, places })
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    fn find(&self, name: &str) -> Result<&Place, ModelError> {
        self.places.get(name).ok_or_else(|| ModelError::MissingTensor { name: name.to_string() })
    }
}

impl TensorSource for GgufTensors {
    fn load(&mut self, name: &str) -> Result<RawTensor, ModelError> {
        let Place { tensor, change } = self.find(name)?;
        let bytes = &self.map[tensor.start..tensor.end];
        Ok(match *change {
            Change::None => raw(tensor.ggml_type, tensor.shape.clone(), bytes.to_vec()),
            Change::Interleaved { head_dim } => raw(tensor.ggml_type, tensor.shape.clone(), disentangled(bytes, tensor.shape[0], head_dim)),
            Change::PlusOne => {
                let values: Vec<f32> = values(tensor, &self.map).into_iter().map(|x| x - 1.0).collect();
                RawTensor::from_f32(&tensor.shape, &values)
            }
        })
    }

    fn entry(&self, name: &str) -> Option<TensorEntry> {
        let Place { tensor, change } = self.places.get(name)?;
        let dtype = if *change == Change::PlusOne { TensorDtype::F32 } else { dtype(tensor.ggml_type) };
        let end = dtype.len_bytes(tensor.shape.iter().product())? as u64;
        Some(TensorEntry { dtype, shape: tensor.shape.clone(), start: 0, end })
    }

    fn load_rows(&mut self, name: &str, rows: Range<usize>) -> Result<RawTensor, ModelError> {
        let Place { tensor, change } = self.find(name)?.clone();
        let there = tensor.shape[0];
        if rows.start > rows.end || rows.end > there {
            return Err(ModelError::NoSuchRows { name: name.to_string(), start: rows.start, end: rows.end, rows: there });
        }
        if change != Change::None {
            let whole = self.load(name)?;
            let range = crate::tensors::row_bytes(name, &whole.shape, whole.dtype, &rows)?;
            let shape = [&[rows.len()], &whole.shape[1..]].concat();
            return Ok(RawTensor { dtype: whole.dtype, shape, bytes: whole.bytes[range].to_vec() });
        }
        let row = (tensor.end - tensor.start) / there.max(1);
        let bytes = &self.map[tensor.start + rows.start * row..tensor.start + rows.end * row];
        let shape = [&[rows.len()], &tensor.shape[1..]].concat();
        Ok(raw(tensor.ggml_type, shape, bytes.to_vec()))
    }
}

/// In which form the rest of the program gets a type.
fn dtype(ggml_type: GgmlType) -> TensorDtype {
    match ggml_type {
        GgmlType::F32 => TensorDtype::F32,
        GgmlType::F16 | GgmlType::Q4K | GgmlType::Q6K => TensorDtype::F16,
        GgmlType::Bf16 => TensorDtype::Bf16,
        GgmlType::Q4_0 => TensorDtype::Q4,
        GgmlType::Q8_0 => TensorDtype::Q8,
    }
}

fn raw(ggml_type: GgmlType, shape: Vec<usize>, bytes: Vec<u8>) -> RawTensor {
    match ggml_type {
        GgmlType::Q4K => RawTensor::f16_from_f32(&shape, &dequantise_q4_k(&bytes)),
        GgmlType::Q6K => RawTensor::f16_from_f32(&shape, &dequantise_q6_k(&bytes)),
        _ => RawTensor { dtype: dtype(ggml_type), shape, bytes },
    }
}

/// The values of a tensor as the file has them.
pub(super) fn values(tensor: &GgufTensor, map: &[u8]) -> Vec<f32> {
    let bytes = map[tensor.start..tensor.end].to_vec();
    match tensor.ggml_type {
        GgmlType::Q4K => dequantise_q4_k(&bytes),
        GgmlType::Q6K => dequantise_q6_k(&bytes),
        ggml_type => raw(ggml_type, tensor.shape.clone(), bytes).to_f32(),
    }
}

/// Rows (or the elements of a bias) in the order of halves again; a row is whole blocks, so its bytes move as they are.
fn disentangled(bytes: &[u8], rows: usize, head_dim: usize) -> Vec<u8> {
    let row_bytes = bytes.len() / rows.max(1);
    let half = head_dim / 2;
    (0..rows)
        .flat_map(|row| {
            let (head, within) = (row / head_dim, row % head_dim);
            let from = head * head_dim + 2 * (within % half) + within / half;
            &bytes[from * row_bytes..][..row_bytes]
        })
        .copied()
        .collect()
}

/// The name `transformers` gives a tensor; `None` for what it does not have (`rope_freqs.weight`).
fn transformers_name(architecture: &str, name: &str) -> Option<String> {
    if let Some((_, ours)) = GLOBAL_NAMES.iter().find(|(theirs, _)| *theirs == name) {
        return Some(ours.to_string());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (stem, kind) = rest.rsplit_once('.')?;
    let norms = if architecture == "gemma3" { GEMMA_NORM_NAMES } else { NORM_NAMES };
    let (_, ours) = LAYER_NAMES.iter().chain(norms).find(|(theirs, _)| *theirs == stem)?;
    let layer: usize = layer.parse().ok()?;
    Some(format!("model.layers.{layer}.{ours}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_transformers() {
        let name = |architecture, name| transformers_name(architecture, name).unwrap();
        assert_eq!(name("llama", "blk.12.attn_k.weight"), "model.layers.12.self_attn.k_proj.weight");
        assert_eq!(name("qwen2", "blk.0.attn_q.bias"), "model.layers.0.self_attn.q_proj.bias");
        assert_eq!(name("llama", "blk.0.ffn_norm.weight"), "model.layers.0.post_attention_layernorm.weight");
        assert_eq!(name("gemma3", "blk.0.ffn_norm.weight"), "model.layers.0.pre_feedforward_layernorm.weight");
        assert_eq!(name("gemma3", "blk.0.post_ffw_norm.weight"), "model.layers.0.post_feedforward_layernorm.weight");
        assert_eq!(transformers_name("llama", "rope_freqs.weight"), None);
    }

    #[test]
    fn interleaved_rows_are_put_into_halves() {
        // Two heads of 4, one byte a row: file rows are (0,0) (0,1) (1,0) (1,1) as (i, s).
        let file = [0, 2, 1, 3, 4, 6, 5, 7];
        assert_eq!(disentangled(&file, 8, 4), [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
