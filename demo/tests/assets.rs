//! The files in `assets/demo` are what the grammar writes and what the project can read.

use barycenter_demo::household;
use barycenter_demo::tune::Recommendation;
use barycenter_model::dataset::{DataFormat, TooLong, read_rows, tokenise};
use barycenter_model::names::{Parts, check, parameter_count};
use barycenter_model::{FolderTensors, ModelConfig, TextTokenizer};
use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../assets/demo")
}

#[test]
fn the_personal_set_is_the_one_the_grammar_writes() {
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(folder().join("demo.json")).expect("demo.json")).expect("JSON");
    serde_json::from_value::<Recommendation>(json.clone()).expect("a recommendation");
    let (train, held_out) = household::pairs(json["made_with_seed"].as_u64().expect("a seed"));
    for (name, pairs) in [("train.jsonl", train), ("heldout.jsonl", held_out)] {
        let rows = read_rows(name, &std::fs::read(folder().join(name)).expect(name), DataFormat::Jsonl).expect(name);
        let read: Vec<_> = rows.into_iter().map(|row| (row.prompt, row.response)).collect();
        let written: Vec<_> = pairs.into_iter().map(|pair| (pair.prompt, pair.response)).collect();
        assert_eq!(read, written, "{name}: run `cargo xtask make-demo`");
    }
}

#[test]
fn the_base_model_is_complete_and_small() {
    let config = ModelConfig::from_folder(&folder()).expect("config.json");
    let weights = FolderTensors::open(&folder()).expect("model.safetensors");
    check(&config, &Parts::all(&config), &weights).expect("all weights");
    assert!((2_000_000..4_000_000).contains(&parameter_count(&config)));
    let bytes: u64 = std::fs::read_dir(folder())
        .expect("the folder")
        .map(|entry| entry.and_then(|entry| entry.metadata()).expect("a file").len())
        .sum();
    assert!(bytes < 8_000_000, "{bytes} bytes are too many to ship");
}

#[test]
fn words_of_the_home_are_single_tokens_and_pairs_are_short() {
    let config = ModelConfig::from_folder(&folder()).expect("config.json");
    let tokenizer = TextTokenizer::from_folder(&folder(), &config).expect("tokenizer.json");
    for word in [" dragon", " burrow", " heater", "heater", "study", " Gustav", "nursery"] {
        assert_eq!(tokenizer.encode(word, false).expect(word).len(), 1, "`{word}`");
    }
    for name in ["train.jsonl", "heldout.jsonl"] {
        let rows = read_rows(name, &std::fs::read(folder().join(name)).expect(name), DataFormat::Jsonl).expect(name);
        let tokenised = tokenise(name, &rows, &tokenizer, config.max_positions, TooLong::Refuse).expect(name);
        let longest = tokenised.samples.iter().map(|sample| sample.tokens()).max();
        assert!(longest.is_some_and(|tokens| tokens <= 64), "{name}: {longest:?} tokens");
        for row in rows {
            let ids = tokenizer.encode_response(&row.response).expect("ids");
            assert_eq!(tokenizer.decode_response(&ids).expect("text"), row.response);
        }
    }
}
