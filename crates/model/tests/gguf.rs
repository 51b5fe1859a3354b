//! GGUF files made by an independent package (`fixtures/gguf/make_gguf.py`), read as what they were made from.
#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use barycenter_model::gguf::{GgufFile, GgufHeader, Value};
use barycenter_model::names::{self, Parts};
use barycenter_model::{FolderTensors, ModelConfig, ModelFiles, RawTensor, TensorDtype, TensorSource, TextTokenizer};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf").join(name)
}

#[test]
fn every_number_format_has_the_values_that_the_package_reads() {
    let file = GgufFile::open(&fixture("types.gguf")).unwrap();
    let mut expected = FolderTensors::open_file(&fixture("types.safetensors")).unwrap();
    let mut tensors = file.tensors().unwrap();
    let formats = [
        ("F32", TensorDtype::F32),
        ("F16", TensorDtype::F16),
        ("BF16", TensorDtype::Bf16),
        ("Q4_0", TensorDtype::Q4),
        ("Q8_0", TensorDtype::Q8),
        ("Q4_K", TensorDtype::F16),
        ("Q6_K", TensorDtype::F16),
    ];
    for (layer, (format, dtype)) in formats.into_iter().enumerate() {
        let name = format!("model.layers.{layer}.mlp.up_proj.weight");
        let tensor = tensors.load(&name).unwrap();
        let entry = tensors.entry(&name).unwrap();
        assert_eq!((tensor.dtype, entry.dtype, tensor.shape.as_slice()), (dtype, dtype, [2, 512].as_slice()), "{format}");
        assert_eq!(entry.len_bytes() as usize, tensor.bytes.len());
        let mut values = expected.load(format).unwrap().to_f32();
        if format.ends_with("_K") {
            // Super-blocks are held as f16.
            values = RawTensor::f16_from_f32(&[2, 512], &values).to_f32();
        }
        assert_eq!(tensor.to_f32(), values, "{format}");
        let rows = tensors.load_rows(&name, 1..2).unwrap();
        assert_eq!(rows.to_f32(), values[512..], "{format}: rows");
        assert!(tensors.load_rows(&name, 1..3).is_err());
    }
    let header = file.header();
    assert_eq!((header.natural("test.u32"), header.number("test.i8"), header.number("test.f64")), (Some(7), Some(-7.0), Some(0.1)));
    assert_eq!((header.flag("test.bool"), header.numbers("test.numbers")), (Some(true), Some([1.0, -2.0, 3.0].as_slice())));
    assert_eq!(header.texts("test.texts"), Some(["a".to_string(), "ß".into(), String::new()].as_slice()));
}

#[test]
fn a_model_is_the_same_as_its_folder() {
    let (file, folder) = (ModelFiles::open(&fixture("llama.gguf")).unwrap(), ModelFiles::open(&fixture("llama")).unwrap());
    let config = folder.config().unwrap();
    assert_eq!(file.config().unwrap(), config);
    let (mut ours, mut theirs) = (file.weights(&config).unwrap(), folder.weights(&config).unwrap());
    names::check(&config, &Parts::all(&config), &*ours).unwrap();
    for parameter in Parts::all(&config).parameters(&config) {
        let (ours, theirs) = (ours.load(&parameter.name).unwrap(), theirs.load(&parameter.name).unwrap());
        assert_eq!(ours, theirs, "{}", parameter.name);
    }
}

#[test]
fn a_sentencepiece_vocabulary_makes_its_tokens() {
    let file = ModelFiles::open(&fixture("llama.gguf")).unwrap();
    let tokenizer = file.tokenizer(&file.config().unwrap()).unwrap();
    // `▁hello` is built by merges; `he` has a better score than `▁h`; `X` and `Z` have only their bytes.
    for (text, ids) in [("hello", vec![1, 13]), ("hell", vec![1, 3, 9, 10]), ("XZ", vec![1, 3, 15 + 0x18, 15 + 0x1a]), ("<|eot|>", vec![1, 5])] {
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{text}");
    }
    assert_eq!(tokenizer.decode(&[13, 3, 6, 15 + 0x18]).unwrap(), "hello hX");
    assert_eq!(tokenizer.eos(), [2, 5]);
}

/// A file's metadata that holds the demo model's vocabulary.
fn demo_vocabulary(pre: &str) -> (GgufHeader, TextTokenizer) {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
    let text = std::fs::read_to_string(demo.join("tokenizer.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut tokens = vec![String::new(); 1280];
    let mut kinds = vec![5.0; 1280];
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        let id = id.as_u64().unwrap() as usize;
        (tokens[id], kinds[id]) = (token.clone(), 1.0);
    }
    for added in json["added_tokens"].as_array().unwrap() {
        let id = added["id"].as_u64().unwrap() as usize;
        (tokens[id], kinds[id]) = (added["content"].as_str().unwrap().into(), 3.0);
    }
    let merge = |pair: &serde_json::Value| format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
    let merges = json["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    let entries = [
        ("tokenizer.ggml.model", Value::Text("gpt2".into())),
        ("tokenizer.ggml.pre", Value::Text(pre.into())),
        ("tokenizer.ggml.tokens", Value::Texts(tokens)),
        ("tokenizer.ggml.token_type", Value::Numbers(kinds)),
        ("tokenizer.ggml.merges", Value::Texts(merges)),
    ];
    let metadata = entries.map(|(key, value)| (key.to_string(), value)).into_iter().collect();
    let header = GgufHeader { file: "demo.gguf".into(), metadata, tensors: Default::default() };
    (header, TextTokenizer::from_folder(&demo, &ModelConfig::from_folder(&demo).unwrap()).unwrap())
}

#[test]
fn a_byte_level_vocabulary_makes_the_tokens_of_its_tokenizer_json() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
    let config = ModelConfig::from_folder(&demo).unwrap();
    let (header, expected) = demo_vocabulary("gpt-2");
    let tokenizer = TextTokenizer::parse(header.tokenizer_json().unwrap().as_bytes(), &config).unwrap();
    let rows = std::fs::read_to_string(demo.join("heldout.jsonl")).unwrap();
    for text in rows.lines().chain(["", " two  spaces\n\n\tand 1234 Zürich’s 漢字 🙂", "a<|end|>b"]) {
        let ids = expected.encode(text, true).unwrap();
        assert_eq!(tokenizer.encode(text, true).unwrap(), ids, "{text}");
        assert_eq!(tokenizer.decode(&ids).unwrap(), expected.decode(&ids).unwrap());
    }
}

#[test]
fn ways_to_cut_words_differ_where_they_should() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
    let config = ModelConfig::from_folder(&demo).unwrap();
    for pre in ["default", "smollm", "llama-bpe", "qwen2"] {
        let (header, _) = demo_vocabulary(pre);
        let tokenizer = TextTokenizer::parse(header.tokenizer_json().unwrap().as_bytes(), &config).unwrap();
        let text = "I'll dim  the 12345 lamps,\r\n\n  don't wait";
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(&ids).unwrap(), text, "{pre}");
    }
    let (header, _) = demo_vocabulary("falcon");
    assert!(header.tokenizer_json().unwrap_err().to_string().contains("`falcon`"));
}

#[test]
fn a_converted_folder_holds_the_same_model() {
    let (temporary, file) = (tempfile::tempdir().unwrap(), GgufFile::open(&fixture("llama.gguf")).unwrap());
    let target = temporary.path().join("a.b-1");
    file.write_folder(&target).unwrap();
    file.write_folder(&target).unwrap();
    let folder = ModelFiles::open(&target).unwrap();
    let config = file.config().unwrap();
    assert_eq!(folder.config().unwrap(), config);
    let (mut ours, mut theirs) = (folder.weights(&config).unwrap(), file.tensors().unwrap());
    for parameter in Parts::all(&config).parameters(&config) {
        assert_eq!(ours.load(&parameter.name).unwrap(), theirs.load(&parameter.name).unwrap(), "{}", parameter.name);
    }
    assert_eq!(folder.tokenizer(&config).unwrap().encode("hello", true).unwrap(), [1, 13]);
    assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 1, "nothing half-written is left");
}

#[test]
fn gemmas_norms_lose_the_one_that_the_format_adds() {
    let text = |text: &str| [(text.len() as u64).to_le_bytes().as_slice(), text.as_bytes()].concat();
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3u32.to_le_bytes());
    bytes.extend([2u64.to_le_bytes(), 1u64.to_le_bytes()].concat());
    bytes.extend([text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("gemma3")].concat());
    for (name, offset) in [("output_norm.weight", 0u64), ("blk.0.attn_q_norm.weight", 32)] {
        bytes.extend([text(name), 1u32.to_le_bytes().to_vec(), 4u64.to_le_bytes().to_vec(), 0u32.to_le_bytes().to_vec(), offset.to_le_bytes().to_vec()].concat());
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    for value in [1.0f32, 1.5, 0.5, -1.0, 0.0, 0.0, 0.0, 0.0, 2.0, 1.0, 1.0, 1.0] {
        bytes.extend(value.to_le_bytes());
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("gemma.gguf");
    std::fs::write(&path, bytes).unwrap();
    let mut tensors = GgufFile::open(&path).unwrap().tensors().unwrap();
    assert_eq!(tensors.load("model.norm.weight").unwrap().to_f32(), [0.0, 0.5, -0.5, -2.0]);
    assert_eq!(tensors.load_rows("model.norm.weight", 1..3).unwrap().to_f32(), [0.5, -0.5]);
    assert_eq!(tensors.load("model.layers.0.self_attn.q_norm.weight").unwrap().to_f32(), [1.0, 0.0, 0.0, 0.0]);
}
