//! Brings weights to the device in the form they are stored in.

use crate::op::Dtype;
use crate::tensor::{Device, Tensor};
use barycenter_model::{RawTensor, TensorDtype};
use std::ops::Range;

/// A shard of the embedding or the head stays below half of WebGPU's default binding limit of 128 MiB.
pub const SHARD_BYTES: usize = 64 << 20;

/// A matrix keeps its number format (f32, f16, bf16); anything else, and every vector, becomes f32.
pub fn upload(device: &Device, tensor: &RawTensor) -> Tensor {
    let dtype = match tensor.dtype {
        TensorDtype::F16 if tensor.shape.len() == 2 => Dtype::F16,
        TensorDtype::Bf16 if tensor.shape.len() == 2 => Dtype::Bf16,
        TensorDtype::F32 => Dtype::F32,
        _ => return upload_f32(device, tensor),
    };
    let words: Vec<u32> = tensor.bytes.chunks(4).map(little_endian_word).collect();
    Tensor::from_words(device, &tensor.shape, dtype, &words)
}

/// As f32, whatever it is stored as.
pub fn upload_f32(device: &Device, tensor: &RawTensor) -> Tensor {
    Tensor::from_f32(device, &tensor.shape, &tensor.to_f32())
}

/// The rows of each shard.
pub(super) fn shard_rows(rows: usize, row_bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let per_shard = (SHARD_BYTES / row_bytes.max(1)).max(1);
    (0..rows).step_by(per_shard).map(move |first| first..(first + per_shard).min(rows))
}

fn little_endian_word(bytes: &[u8]) -> u32 {
    let mut word = [0; 4];
    word[..bytes.len()].copy_from_slice(bytes);
    u32::from_le_bytes(word)
}
