//! A LoRA adapter as the GGUF file that llama.cpp loads (`--lora`).
//!
//! Keys: `general.type` = adapter, `adapter.type` = lora, `adapter.lora.alpha`; tensors `blk.N.attn_q.weight.lora_a`
//! (`[rank, in]` row-major) and `.lora_b` (`[out, rank]`). llama.cpp scales by alpha / rank, with one alpha for all and the rank of
//! each tensor: what a module's scale differs from that is multiplied into its B.

use super::peft::find_stored;
use super::{LoraConfig, lora_modules, peft_name};
use crate::EngineError;
use barycenter_model::{Family, ModelConfig, RawTensor};

/// What a GGUF file starts with, and the version of the format.
const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
/// Tensor data start at multiples of this (the format's default `general.alignment`).
const ALIGNMENT: usize = 32;
/// The format's numbers for a string and an f32 as values of keys, and for tensors of f32.
const STRING: u32 = 8;
const FLOAT32: u32 = 6;
const TENSOR_F32: u32 = 0;

/// Names of linear layers within a layer: ours (Llama's relatives), llama.cpp's.
const NAMES: [(&str, &str); 7] = [
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The bytes of the file; `find` gives tensors by PEFT's names.
///
/// # Errors
/// If the family has no such form, or a tensor is missing or of another shape.
pub fn to_gguf(model: &ModelConfig, config: &LoraConfig, mut find: impl FnMut(&str) -> Option<RawTensor>) -> Result<Vec<u8>, EngineError> {
    let architecture = match model.family {
        // llama.cpp runs Mistral as a Llama.
        Family::Llama | Family::Mistral => "llama",
        Family::Qwen2 => "qwen2",
        Family::Qwen3 => "qwen3",
        Family::Gemma3 => "gemma3",
        other => return Err(EngineError::NotForGguf(format!("the family {} is not written, only Llama, Mistral, Qwen 2, Qwen 3 and Gemma 3", other.model_type()))),
    };
    let modules = lora_modules(model, config)?;
    let alphas = modules.iter().map(|module| module.scale * module.rank as f64);
    let alpha = alphas.into_iter().find(|&alpha| alpha != 0.0).unwrap_or(1.0);
    let mut tensors = Vec::new();
    for module in &modules {
        let name = NAMES.iter().find(|(ours, _)| *ours == module.name).map(|(_, theirs)| *theirs);
        let name = name.ok_or_else(|| EngineError::NotForGguf(format!("the linear layer {} has no name there", module.full_name)))?;
        for (part, shape) in [('A', [module.rank, module.inputs]), ('B', [module.outputs, module.rank])] {
            let full_name = peft_name(&module.full_name, part);
            let bad = || EngineError::BadAdapter { name: full_name.clone(), expected: shape.to_vec() };
            let tensor = find_stored(&full_name, &mut find).filter(|tensor| tensor.shape == shape).ok_or_else(bad)?;
            let mut values = tensor.to_f32();
            let heads = match name {
                "attn_q" => model.heads,
                _ => model.kv_heads,
            };
            if architecture == "llama" && part == 'B' && matches!(name, "attn_q" | "attn_k") {
                values = interleave_halves(&values, heads, module.rank);
            }
            let scale = module.scale * module.rank as f64 / alpha;
            if part == 'B' && scale != 1.0 {
                values.iter_mut().for_each(|value| *value *= scale as f32);
            }
            tensors.push((format!("blk.{}.{name}.weight.lora_{}", module.layer, part.to_ascii_lowercase()), shape, values));
        }
    }
    Ok(write(architecture, alpha as f32, &tensors))
}

/// llama.cpp turns neighbouring rows of a Llama's query and key heads into each other, `transformers` the first half and
/// the second: row i of a head's first half goes to 2i, of its second to 2i + 1.
fn interleave_halves(rows: &[f32], heads: usize, cols: usize) -> Vec<f32> {
    let head_rows = rows.len() / (heads * cols).max(1);
    let mut result = Vec::with_capacity(rows.len());
    for head in rows.chunks(head_rows * cols) {
        for i in 0..head_rows / 2 {
            for row in [i, i + head_rows / 2] {
                result.extend_from_slice(&head[row * cols..(row + 1) * cols]);
            }
        }
    }
    result
}

fn write(architecture: &str, alpha: f32, tensors: &[(String, [usize; 2], Vec<f32>)]) -> Vec<u8> {
    fn string(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    let texts = [("general.architecture", architecture), ("general.type", "adapter"), ("adapter.type", "lora")];
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((texts.len() as u64 + 1).to_le_bytes());
    for (key, text) in texts {
        string(&mut bytes, key);
        bytes.extend(STRING.to_le_bytes());
        string(&mut bytes, text);
    }
    string(&mut bytes, "adapter.lora.alpha");
    bytes.extend(FLOAT32.to_le_bytes());
    bytes.extend(alpha.to_le_bytes());
    let mut offset = 0;
    for (name, [rows, cols], values) in tensors {
        string(&mut bytes, name);
        bytes.extend(2u32.to_le_bytes());
        // Innermost size first.
        [*cols, *rows].iter().for_each(|&size| bytes.extend((size as u64).to_le_bytes()));
        bytes.extend(TENSOR_F32.to_le_bytes());
        bytes.extend((offset as u64).to_le_bytes());
        offset += (4 * values.len()).next_multiple_of(ALIGNMENT);
    }
    for (_, _, values) in tensors {
        bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        values.iter().for_each(|value| bytes.extend(value.to_le_bytes()));
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    bytes
}
