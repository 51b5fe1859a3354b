//! Model folders, good and bad, as they come from outside.

#![allow(clippy::unwrap_used)]

use barycenter_model::names::{self, Parts};
use barycenter_model::{FolderTensors, Manifest, ModelConfig, ModelError, ModelFiles, RawTensor, TensorSource, write_safetensors};
use std::collections::BTreeMap;
use std::path::Path;

fn config() -> ModelConfig {
    let json = serde_json::json!({
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 12, "vocab_size": 16, "tie_word_embeddings": true,
        "eos_token_id": 0
    });
    ModelConfig::parse(&json.to_string()).unwrap()
}

fn weights(config: &ModelConfig) -> BTreeMap<String, RawTensor> {
    Parts::all(config)
        .parameters(config)
        .into_iter()
        .enumerate()
        .map(|(index, parameter)| {
            let values: Vec<f32> = (0..parameter.elements()).map(|i| (i + index) as f32 / 16.0).collect();
            let tensor = RawTensor::f16_from_f32(&parameter.shape, &values);
            (parameter.name, tensor)
        })
        .collect()
}

fn write(folder: &Path, name: &str, tensors: &BTreeMap<String, RawTensor>) {
    let bytes = write_safetensors(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)), &BTreeMap::new());
    std::fs::write(folder.join(name), bytes).unwrap();
}

/// A complete folder with one weight file.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("config.json"), config().to_config_json("float16")).unwrap();
    write(folder.path(), "model.safetensors", &weights(&config()));
    folder
}

/// The same in two files with an index.
fn sharded() -> tempfile::TempDir {
    let folder = folder();
    std::fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let (mut first, mut second) = (weights(&config()), BTreeMap::new());
    for name in first.keys().cloned().collect::<Vec<_>>().into_iter().step_by(2) {
        let tensor = first.remove(&name).unwrap();
        second.insert(name, tensor);
    }
    write(folder.path(), "model-00001-of-00002.safetensors", &first);
    write(folder.path(), "model-00002-of-00002.safetensors", &second);
    let map: BTreeMap<_, _> = first
        .keys()
        .map(|name| (name, "model-00001-of-00002.safetensors"))
        .chain(second.keys().map(|name| (name, "model-00002-of-00002.safetensors")))
        .collect();
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
    folder
}

#[test]
fn one_file_and_several_hold_the_same_model() {
    let (one, two) = (folder(), sharded());
    let config = ModelConfig::from_folder(one.path()).unwrap();
    let (mut a, mut b) = (FolderTensors::open(one.path()).unwrap(), FolderTensors::open(two.path()).unwrap());
    names::check(&config, &Parts::all(&config), &a).unwrap();
    for parameter in Parts::all(&config).parameters(&config) {
        let tensor = a.load_weight(&parameter.name, &parameter.shape).unwrap();
        assert_eq!(tensor, b.load_weight(&parameter.name, &parameter.shape).unwrap());
        let rows = 1..parameter.shape[0].min(4);
        assert_eq!(a.load_rows(&parameter.name, rows.clone()).unwrap(), b.load_rows(&parameter.name, rows).unwrap());
    }
    let (a, b) = (Manifest::from_folder(one.path()).unwrap(), Manifest::from_folder(two.path()).unwrap());
    assert_eq!(a.model_hash, b.model_hash, "the hash does not depend on how the weights are cut into files");
    assert_eq!((a.files.len(), b.files.len()), (1, 2));
}

#[test]
fn a_manifest_fetches_only_its_parts_and_checks_them() {
    for folder in [folder(), sharded()] {
        let manifest: Manifest =
            serde_json::from_str(&serde_json::to_string(&Manifest::from_folder(folder.path()).unwrap()).unwrap()).unwrap();
        let config = manifest.parse_config().unwrap();
        let mut source = FolderTensors::open(folder.path()).unwrap();
        for parts in [Parts::stage(&config, 1..2), Parts::all(&config), Parts::head_only()] {
            let names: Vec<String> = manifest.entries(&config, &parts).unwrap().into_iter().map(|(name, _)| name).collect();
            let ranges = manifest.ranges(names.iter().map(String::as_str), 256).unwrap();
            let fetched: u64 = ranges.iter().map(|range| range.end - range.start).sum();
            assert_eq!(fetched, manifest.bytes_of(&config, &parts).unwrap());
            let mut got = Vec::new();
            for range in &ranges {
                let file = std::fs::read(folder.path().join(&manifest.files[range.file as usize].name)).unwrap();
                let bytes = &file[range.start as usize..range.end as usize];
                for (name, tensor) in manifest.split_range(range, bytes).unwrap() {
                    assert_eq!(tensor, source.load(&name).unwrap());
                    got.push(name);
                }
                let mut damaged = bytes.to_vec();
                damaged[0] ^= 1;
                assert!(matches!(manifest.split_range(range, &damaged), Err(ModelError::WrongContent { .. })));
                assert!(matches!(manifest.split_range(range, &bytes[1..]), Err(ModelError::WrongLength { .. })));
            }
            got.sort_unstable();
            let mut names = names;
            names.sort_unstable();
            assert_eq!(got, names);
        }
        let mut beyond = manifest.clone();
        beyond.tensors.values_mut().for_each(|tensor| tensor.offset = u64::MAX - 1);
        assert!(matches!(beyond.entries(&config, &Parts::all(&config)), Err(ModelError::WrongContent { .. })), "a place beyond any file");
    }
}

fn message(folder: &Path) -> String {
    let text = Manifest::from_folder(folder).unwrap_err().to_string();
    assert!(!text.contains('\n'), "one sentence: {text}");
    text
}

#[test]
fn a_folder_without_a_file_is_refused() {
    let empty = tempfile::tempdir().unwrap();
    assert!(message(empty.path()).contains("has no config.json"));
    let no_weights = folder();
    std::fs::remove_file(no_weights.path().join("model.safetensors")).unwrap();
    assert!(message(no_weights.path()).contains("has no model.safetensors"));
    let no_part = sharded();
    std::fs::remove_file(no_part.path().join("model-00002-of-00002.safetensors")).unwrap();
    assert!(message(no_part.path()).contains("has no model-00002-of-00002.safetensors"));
}

#[test]
fn a_cut_or_garbled_weight_file_is_refused() {
    let folder = folder();
    let path = folder.path().join("model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for length in [bytes.len() - 1, bytes.len() / 2, 20, 3, 0] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let text = message(folder.path());
        assert!(text.contains("model.safetensors") || text.contains("could not be read"), "{length}: {text}");
    }
    std::fs::write(&path, [bytes.clone(), vec![0]].concat()).unwrap();
    assert!(message(folder.path()).contains("its header promises"));
    let mut garbled = bytes;
    garbled[8] = b'!';
    std::fs::write(&path, garbled).unwrap();
    assert!(message(folder.path()).contains("model.safetensors is not a safetensors file"));
}

#[test]
fn a_cut_part_is_named() {
    let folder = sharded();
    let path = folder.path().join("model-00002-of-00002.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    for length in [bytes.len() - 1, 20, 0] {
        std::fs::write(&path, &bytes[..length]).unwrap();
        assert!(message(folder.path()).contains("model-00002-of-00002.safetensors"), "{length}");
    }
}

#[test]
fn a_tensor_in_two_parts_must_be_the_same_in_both() {
    let folder = sharded();
    let name = "model-00001-of-00002.safetensors";
    let mut first: BTreeMap<String, RawTensor> = {
        let mut part = FolderTensors::open_file(&folder.path().join(name)).unwrap();
        let names: Vec<String> = part.names().map(str::to_string).collect();
        names.into_iter().map(|name| (name.clone(), part.load(&name).unwrap())).collect()
    };
    let copied = weights(&config()).into_iter().find(|(name, _)| !first.contains_key(name)).unwrap();
    first.insert(copied.0.clone(), copied.1.clone());
    write(folder.path(), name, &first);
    Manifest::from_folder(folder.path()).unwrap();
    let mut other = copied.1;
    other.bytes[0] ^= 1;
    first.insert(copied.0.clone(), other);
    write(folder.path(), name, &first);
    let text = message(folder.path());
    assert!(text.contains(&format!("`{}`", copied.0)) && text.contains(name), "{text}");
}

#[test]
fn a_weight_that_is_not_a_number_is_named() {
    let folder = folder();
    let mut broken = weights(&config());
    broken.insert("model.norm.weight".into(), RawTensor::from_f32(&[8], &[1.0, 1.0, f32::NAN, 1.0, 1.0, 1.0, 1.0, 1.0]));
    write(folder.path(), "model.safetensors", &broken);
    let text = message(folder.path());
    assert!(text.contains("`model.norm.weight`") && text.contains("element 2"), "{text}");
}

#[test]
fn a_tied_head_must_be_the_embedding() {
    let folder = folder();
    let open = || ModelFiles::open(folder.path()).unwrap().weights(&config());
    let mut tensors = weights(&config());
    tensors.insert("lm_head.weight".into(), tensors[&names::embedding(&config()).name].clone());
    write(folder.path(), "model.safetensors", &tensors);
    assert!(open().is_ok(), "a copy of the embedding does no harm");
    tensors.get_mut("lm_head.weight").unwrap().bytes[0] ^= 1;
    write(folder.path(), "model.safetensors", &tensors);
    let text = open().err().unwrap().to_string();
    assert!(text.contains("tie_word_embeddings") && text.contains("lm_head.weight"), "{text}");
}

#[test]
fn weights_of_another_model_are_refused() {
    let folder = folder();
    let mut wrong = weights(&config());
    wrong.remove("model.layers.1.self_attn.k_proj.weight");
    write(folder.path(), "model.safetensors", &wrong);
    assert!(message(folder.path()).contains("lack the tensor `model.layers.1.self_attn.k_proj.weight`"));

    let mut wrong = weights(&config());
    wrong.insert("model.norm.weight".into(), RawTensor::from_f32(&[9], &[0.0; 9]));
    write(folder.path(), "model.safetensors", &wrong);
    assert!(message(folder.path()).contains("`model.norm.weight` has shape [9] where config.json calls for [8]"));
}

#[test]
fn an_index_never_leads_out_of_the_folder() {
    for (index, expected) in [
        (r#"{"weight_map":{"a":"../secret.safetensors"}}"#, "not in the folder"),
        (r#"{"weight_map":{"a":"/etc/passwd"}}"#, "not in the folder"),
        (r#"{"weight_map":{"a":".."}}"#, "not in the folder"),
        (r#"{"weights":{}}"#, "weight_map"),
        ("{", "weight_map"),
        (r#"{"weight_map":{"a":"model-00001-of-00002.safetensors"}}"#, "does not hold it"),
    ] {
        let folder = sharded();
        std::fs::write(folder.path().join("model.safetensors.index.json"), index).unwrap();
        let text = message(folder.path());
        assert!(text.contains(expected), "{index}: {text}");
    }
}

#[test]
fn an_unknown_family_is_named_with_what_is_supported() {
    let folder = folder();
    std::fs::write(folder.path().join("config.json"), r#"{"model_type":"mamba"}"#).unwrap();
    let text = message(folder.path());
    assert!(text.contains("`mamba`") && text.contains("llama, mistral, qwen2, qwen3"), "{text}");
}
