//! A GGUF file on the program itself: answered with, and tuned, as a folder is.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

fn run(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_barycenter")).args(arguments).output().expect("the program starts");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("it prints UTF-8")
}

#[test]
fn a_gguf_file_is_answered_with_and_tuned() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures/gguf/llama.gguf");
    let model = file.to_str().expect("paths of the sources are UTF-8");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("rows.jsonl");
    std::fs::write(&data, "{\"prompt\":\"hello\",\"response\":\"hell\"}\n".repeat(20)).expect("written");
    let data = data.to_str().expect("UTF-8");
    for weights in ["keep", "int8", "int4"] {
        let out = folder.path().join(weights);
        let out = out.to_str().expect("UTF-8");
        let said = run(&["train", "--device", "cpu", "--model", model, "--data", data, "--weights", weights, "--reduction", "2", "--epochs", "3", "--exact-match-rows", "2", "--out", out]);
        assert!(said.contains("weights ") && said.contains("adapter written"), "{said}");
        let answers = run(&["generate", "--device", "cpu", "--model", model, "--weights", weights, "--adapter", out, "--max-new-tokens", "4", "hello"]);
        assert!(answers.contains("base") && answers.contains("tuned"), "{answers}");
    }
}

/// Plans count its weights as `serve` hands them to devices: integers as f16.
#[test]
fn a_gguf_file_is_planned_for() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures/gguf");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let home = folder.path().join("home.json");
    std::fs::write(&home, r#"{"devices": [{"name": "laptop", "kind": "laptop", "gflops": 50, "memory_mb": 900}]}"#).expect("written");
    let (model, home) = (fixtures.join("llama.gguf"), home.to_str().expect("UTF-8"));
    let model = model.to_str().expect("UTF-8");
    let stored = run(&["plan", home, "--model", model, "--reduction", "2"]);
    assert!(stored.starts_with("llama.gguf on household"), "{stored}");
    assert_eq!(stored, run(&["plan", home, "--model", model, "--reduction", "2", "--weights", "f16"]));
    assert!(run(&["simulate", home, "--model", model, "--reduction", "2", "--epochs", "2", "--samples", "16"]).contains("The run is done"));
}

/// GGUF files in a folder of models are easily taken for offered, and an empty folder for one with models.
#[test]
fn a_server_says_what_its_models_folders_lack() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures/gguf");
    let (data, empty) = (tempfile::tempdir().expect("a temporary folder"), tempfile::tempdir().expect("a temporary folder"));
    let folders = [fixtures.as_path(), empty.path()].map(|folder| folder.to_str().expect("UTF-8"));
    let arguments = ["serve", "--no-open", "--listen", "127.0.0.1:0", "--data", data.path().to_str().expect("UTF-8"), "--models", folders[0], "--models", folders[1]];
    let mut server = Command::new(env!("CARGO_BIN_EXE_barycenter")).args(arguments).stdout(Stdio::piped()).spawn().expect("the program starts");
    let lines = BufReader::new(server.stdout.take().expect("piped")).lines();
    let said: Vec<String> = lines.map(|line| line.expect("text")).take_while(|line| !line.contains("Ctrl-C")).collect();
    server.kill().expect("it runs");
    server.wait().expect("it ends");
    assert!(said.iter().any(|line| line.contains("are not offered: name each by itself")), "{said:#?}");
    assert!(said.iter().any(|line| line.contains(folders[1]) && line.contains("holds no model")), "{said:#?}");
}
