//! The golden folders as llama.cpp's converter would write them, read back as the folders themselves.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use barycenter_model::gguf::GgufFile;
use barycenter_model::names::Parts;
use barycenter_model::{FolderTensors, ModelConfig, TensorSource};
use serde_json::Value;
use std::path::Path;

/// (folder, architecture).
const FOLDERS: [(&str, &str); 5] = [("llama-gqa", "llama"), ("llama3-rope-scaled", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3"), ("gemma3", "gemma3")];

/// A GGUF file in the making: f32 tensors only.
#[derive(Default)]
struct Writer {
    metadata: Vec<Vec<u8>>,
    infos: Vec<Vec<u8>>,
    data: Vec<u8>,
}

fn text(text: &str) -> Vec<u8> {
    [(text.len() as u64).to_le_bytes().as_slice(), text.as_bytes()].concat()
}

impl Writer {
    fn entry(&mut self, key: &str, kind: u32, value: &[u8]) {
        self.metadata.push([text(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat());
    }

    fn tensor(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let mut info = text(name);
        info.extend((shape.len() as u32).to_le_bytes());
        info.extend(shape.iter().rev().flat_map(|&size| (size as u64).to_le_bytes()));
        info.extend(0u32.to_le_bytes());
        info.extend((self.data.len() as u64).to_le_bytes());
        self.infos.push(info);
        self.data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.data.resize(self.data.len().next_multiple_of(32), 0);
    }

    fn bytes(self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend((self.infos.len() as u64).to_le_bytes());
        bytes.extend((self.metadata.len() as u64).to_le_bytes());
        bytes.extend(self.metadata.concat());
        bytes.extend(self.infos.concat());
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        [bytes, self.data].concat()
    }
}

/// The name of a tensor in the file.
fn gguf_name(architecture: &str, name: &str) -> String {
    let globals = [("model.embed_tokens.weight", "token_embd.weight"), ("model.norm.weight", "output_norm.weight"), ("lm_head.weight", "output.weight")];
    if let Some((_, theirs)) = globals.iter().find(|(ours, _)| *ours == name) {
        return theirs.to_string();
    }
    let (layer, rest) = name.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
    let (stem, kind) = rest.rsplit_once('.').unwrap();
    let stem = match (architecture, stem.rsplit('.').next().unwrap()) {
        (_, "input_layernorm") => "attn_norm",
        ("gemma3", "post_attention_layernorm") => "post_attention_norm",
        ("gemma3", "post_feedforward_layernorm") => "post_ffw_norm",
        (_, "post_attention_layernorm" | "pre_feedforward_layernorm") => "ffn_norm",
        (_, "q_proj") => "attn_q",
        (_, "k_proj") => "attn_k",
        (_, "v_proj") => "attn_v",
        (_, "o_proj") => "attn_output",
        (_, "q_norm") => "attn_q_norm",
        (_, "k_norm") => "attn_k_norm",
        (_, "gate_proj") => "ffn_gate",
        (_, "up_proj") => "ffn_up",
        (_, "down_proj") => "ffn_down",
        (_, other) => panic!("{other} has no name in a GGUF file"),
    };
    format!("blk.{layer}.{stem}.{kind}")
}

/// Rows (i, s) of a head from rows (s, i): what the converter does to Llama's queries and keys.
fn interleaved(values: &[f32], rows: usize, head_dim: usize) -> Vec<f32> {
    let width = values.len() / rows;
    let from = |row: usize| row / head_dim * head_dim + (row % 2) * (head_dim / 2) + row % head_dim / 2;
    (0..rows).flat_map(|row| values[from(row) * width..][..width].to_vec()).collect()
}

fn write(folder: &Path, architecture: &str) -> Vec<u8> {
    let json: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("config.json")).unwrap()).unwrap();
    let mut tensors = FolderTensors::open(folder).unwrap();
    let mut writer = Writer::default();
    writer.entry("general.architecture", 8, &text(architecture));
    let head_dim = json["head_dim"].as_u64().unwrap_or_else(|| json["hidden_size"].as_u64().unwrap() / json["num_attention_heads"].as_u64().unwrap());
    let sizes = [
        ("context_length", json["max_position_embeddings"].as_u64()),
        ("embedding_length", json["hidden_size"].as_u64()),
        ("block_count", json["num_hidden_layers"].as_u64()),
        ("feed_forward_length", json["intermediate_size"].as_u64()),
        ("attention.head_count", json["num_attention_heads"].as_u64()),
        ("attention.head_count_kv", json["num_key_value_heads"].as_u64()),
        ("attention.key_length", Some(head_dim)),
        ("attention.value_length", Some(head_dim)),
        ("attention.sliding_window", json["sliding_window"].as_u64()),
    ];
    for (key, value) in sizes.into_iter().filter_map(|(key, value)| Some((key, value?))) {
        writer.entry(&format!("{architecture}.{key}"), 4, &(value as u32).to_le_bytes());
    }
    let rope = &json["rope_parameters"];
    let rope = if rope["full_attention"].is_object() { &rope["full_attention"] } else { rope };
    let numbers = [("attention.layer_norm_rms_epsilon", &json["rms_norm_eps"]), ("rope.freq_base", &rope["rope_theta"])];
    for (key, value) in numbers {
        writer.entry(&format!("{architecture}.{key}"), 6, &(value.as_f64().unwrap() as f32).to_le_bytes());
    }
    for kind in ["bos", "eos"] {
        if let Some(id) = json[format!("{kind}_token_id")].as_u64() {
            writer.entry(&format!("tokenizer.ggml.{kind}_token_id"), 4, &(id as u32).to_le_bytes());
        }
    }
    if rope["rope_type"] == "llama3" {
        let divisors = llama3_divisors(rope, head_dim as usize);
        writer.tensor("rope_freqs.weight", &[divisors.len()], &divisors);
    }
    let names: Vec<String> = tensors.names().map(str::to_string).collect();
    for name in names {
        let tensor = tensors.load(&name).unwrap();
        let mut values = tensor.to_f32();
        if architecture == "llama" && (name.contains(".q_proj.") || name.contains(".k_proj.")) {
            values = interleaved(&values, tensor.shape[0], head_dim as usize);
        }
        if architecture == "gemma3" && name.ends_with("norm.weight") {
            values.iter_mut().for_each(|value| *value += 1.0);
        }
        writer.tensor(&gguf_name(architecture, &name), &tensor.shape, &values);
    }
    writer.bytes()
}

/// As the converter computes them.
fn llama3_divisors(rope: &Value, head_dim: usize) -> Vec<f32> {
    let get = |key: &str| rope[key].as_f64().unwrap();
    let (factor, low, high, original) = (get("factor"), get("low_freq_factor"), get("high_freq_factor"), get("original_max_position_embeddings"));
    let divisor = |i: usize| {
        let wavelength = std::f64::consts::TAU * get("rope_theta").powf(2.0 * i as f64 / head_dim as f64);
        if wavelength < original / high {
            1.0
        } else if wavelength > original / low {
            factor
        } else {
            let smooth = (original / wavelength - low) / (high - low);
            1.0 / ((1.0 - smooth) / factor + smooth)
        }
    };
    (0..head_dim / 2).map(|i| divisor(i) as f32).collect()
}

#[test]
fn a_golden_folder_comes_back_from_its_gguf_file() {
    let temporary = tempfile::tempdir().unwrap();
    for (name, architecture) in FOLDERS {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
        let path = temporary.path().join(format!("{name}.gguf"));
        std::fs::write(&path, write(&folder, architecture)).unwrap();
        let file = GgufFile::open(&path).unwrap();
        let config = ModelConfig::from_folder(&folder).unwrap();
        assert_eq!(file.config().unwrap(), config, "{name}");
        let (mut ours, mut theirs) = (file.tensors().unwrap(), FolderTensors::open(&folder).unwrap());
        for parameter in Parts::all(&config).parameters(&config) {
            let (ours, theirs) = (ours.load(&parameter.name).unwrap(), theirs.load(&parameter.name).unwrap());
            assert_eq!(ours.shape, theirs.shape, "{name}: {}", parameter.name);
            // Gemma's 1 + w rounds w.
            let close = |(a, b): (&f32, &f32)| if architecture == "gemma3" { (a - b).abs() <= 1.2e-7 } else { a == b };
            assert!(ours.to_f32().iter().zip(&theirs.to_f32()).all(close), "{name}: {}", parameter.name);
        }
    }
}
