//! Bad input on the program itself: one sentence that names the thing, exit code above 0, never a panic.

use std::path::{Path, PathBuf};
use std::process::Command;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/demo")
}

/// Runs the program; it must fail by itself and say each of `parts` on its standard error.
fn refused(arguments: &[&str], parts: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_barycenter")).args(arguments).output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code().is_some_and(|code| code > 0), "{arguments:?} ended with {:?}: {said}", output.status);
    assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    for part in parts {
        assert!(said.contains(part), "{arguments:?} does not say {part:?}: {said}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// A copy of the demo model's folder.
fn model_copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(demo().join(name), folder.path().join(name)).expect("the demo model is there");
    }
    // Its content is read after the model's.
    std::fs::copy(demo().join("model.safetensors"), folder.path().join("golden.safetensors")).expect("copied");
    folder
}

#[test]
fn damaged_model_folders_are_named() {
    refused(&["verify", "/no/such/folder"], &["/no/such/folder", "does not exist"]);
    for name in ["config.json", "model.safetensors"] {
        let folder = model_copy();
        std::fs::remove_file(folder.path().join(name)).expect("removed");
        refused(&["verify", text(folder.path())], &[name, "copy it there"]);
    }
    for length in [0, 5, 20_000] {
        let folder = model_copy();
        std::fs::OpenOptions::new().write(true).open(folder.path().join("model.safetensors")).and_then(|file| file.set_len(length)).expect("cut");
        refused(&["verify", text(folder.path())], &["model.safetensors", "copy it again"]);
    }
    for (from, to, said) in [("\"llama\"", "\"mamba\"", "mamba"), ("\"hidden_size\": 192", "\"hidden_size\": 256", "config.json")] {
        let folder = model_copy();
        let config = std::fs::read_to_string(folder.path().join("config.json")).expect("read");
        assert!(config.contains(from), "the demo's config.json holds {from}: {config}");
        std::fs::write(folder.path().join("config.json"), config.replace(from, to)).expect("written");
        refused(&["verify", text(folder.path())], &[said]);
    }
}

#[test]
fn damaged_data_files_are_named_with_their_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let good = "{\"prompt\":\"lamp on\",\"response\":\"ok\"}\n";
    let long = format!("{{\"prompt\":\"{}\",\"response\":\"ok\"}}\n", "hello kitchen ".repeat(2_000));
    let cases = [
        ("broken.jsonl", format!("{good}{{\"prompt\":\n{good}"), vec!["line 2 of broken.jsonl"]),
        ("empty.jsonl", String::new(), vec!["empty.jsonl", "no rows"]),
        ("fields.jsonl", "{\"x\":1}\n".into(), vec!["line 1 of fields.jsonl", "prompt"]),
        ("rows.xyz", good.into(), vec!["rows.xyz", ".jsonl"]),
        ("long.jsonl", long.repeat(3), vec!["long.jsonl", "128 tokens"]),
    ];
    let model = demo();
    for (name, content, parts) in cases {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        refused(&["train", "--device", "cpu", "--model", text(&model), "--data", text(&path)], &parts);
    }
    refused(&["train", "--device", "cpu", "--model", text(&model), "--data", text(&folder.path().join("none.jsonl"))], &["none.jsonl", "cannot be read"]);
    let data = model.join("train.jsonl");
    for (option, value) in [("--epochs", "0"), ("--batch", "0"), ("--reduction", "0"), ("--reduction", "7"), ("--learning-rate", "0")] {
        refused(&["train", "--device", "cpu", "--model", text(&model), "--data", text(&data), option, value], &[option.trim_start_matches('-')]);
    }
}

#[test]
fn addresses_that_lead_nowhere_end_a_node() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let secret = "0".repeat(32);
    let hash = "ab".repeat(32);
    let node = |url: &str, parts: &[&str]| refused(&["node", "--device", "cpu", "--data", text(folder.path()), "--join", url], parts);
    node("hello", &["#k="]);
    node(&format!("http://127.0.0.1:1/join#k={secret}&c={hash}"), &["https://"]);
    node("https://127.0.0.1:1/join#k=abc", &["secret", "32 hexadecimal"]);
    node(&format!("https://127.0.0.1:1/join#k={secret}&c=zz"), &["certificate", "64 hexadecimal"]);
    node(&format!("https://127.0.0.1:1/join#k={secret}&c={hash}"), &["not reached"]);
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = text(folder.path());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound").to_string();
    refused(&["serve", "--no-open", "--data", data, "--listen", &address], &[&address, "--listen"]);
    let certificate = folder.path().join("bad.pem");
    std::fs::write(&certificate, "x").expect("written");
    refused(&["serve", "--no-open", "--data", data, "--listen", "127.0.0.1:0", "--cert", text(&certificate), "--key", text(&certificate)], &["certificate", "--cert"]);
    refused(&["serve", "--no-open", "--data", text(&certificate), "--listen", "127.0.0.1:0"], &["data folder", "--data"]);
}

#[test]
fn damaged_gguf_files_are_named() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/model/tests/fixtures/gguf");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let generate = |path: &Path, parts: &[&str]| refused(&["generate", "--device", "cpu", "--model", text(path), "hello"], parts);
    let whole = std::fs::read(fixtures.join("llama.gguf")).expect("the fixture is there");
    let broken = folder.path().join("broken.gguf");
    for (bytes, said) in [(&whole[..whole.len() - 1], "cut off"), (&whole[..100], "broken.gguf"), (b"PK\x03\x04", "does not start with GGUF"), (b"", "broken.gguf")] {
        std::fs::write(&broken, bytes).expect("written");
        generate(&broken, &["broken.gguf", said]);
    }
    // A type that is not read: F16, the type of this tensor, becomes Q5_K.
    let name = b"blk.0.ffn_up.weight";
    let at = whole.windows(name.len()).position(|window| window == name).expect("the fixture has this tensor") + name.len() + 4 + 16;
    let mut unknown = whole.clone();
    assert_eq!(unknown[at..at + 4], 1u32.to_le_bytes());
    unknown[at..at + 4].copy_from_slice(&13u32.to_le_bytes());
    std::fs::write(&broken, unknown).expect("written");
    generate(&broken, &["`blk.0.ffn_up.weight`", "Q5_K"]);
    // Weights and header of another kind of model: it says neither sizes nor tokens.
    generate(&fixtures.join("types.gguf"), &["types.gguf", "qwen2.embedding_length"]);
}

#[test]
fn a_weight_that_is_not_a_number_is_named() {
    let folder = model_copy();
    let path = folder.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("read");
    let last = bytes.len() - 2;
    bytes[last..].copy_from_slice(&0x7e00u16.to_le_bytes());
    std::fs::write(&path, bytes).expect("written");
    refused(&["generate", "--device", "cpu", "--model", text(folder.path()), "hello"], &["model.", "not a finite number"]);
}

#[test]
fn prompts_that_cannot_be_answered_are_refused() {
    let (model, long) = (demo(), "kitchen lamp ".repeat(200));
    let ask = |prompt: &str, parts: &[&str]| refused(&["generate", "--device", "cpu", "--model", text(&model), prompt], parts);
    ask("", &["the prompt is empty"]);
    ask(&long, &["tokens, more than the 128 that the model reads"]);
    let data = model.join("train.jsonl");
    refused(&["train", "--device", "cpu", "--model", text(&model), "--data", text(&data), "--epochs", "4294967295"], &["4294967295 epochs of", "too many"]);
}

#[test]
fn a_simulation_of_two_things_is_refused() {
    refused(&["simulate", "--paper", "--chaos", "2"], &["cannot be used with"]);
    refused(&["simulate", "--growth", "home.json"], &["cannot be used with"]);
    refused(&["simulate", "/no/such/home.json"], &["/no/such/home.json", "assets/households"]);
}

#[test]
fn households_that_cannot_be_planned_for_say_where_and_what_is_missing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("home.json");
    let model = demo();
    let with = |file: &str, more: &[&str], parts: &[&str]| {
        std::fs::write(&path, file).expect("written");
        refused(&[&["plan", text(&path), "--model", text(&model)][..], more].concat(), &[&["home.json"][..], parts].concat());
    };
    with("{\"devices\": [", &[], &["line 1, column 13"]);
    with(r#"{"devices": [{"name": "a", "kind": "phone", "gflops": 5}]}"#, &[], &["devices[0].memory_mb", "missing"]);
    let phone = r#"{"devices": [{"name": "a", "kind": "phone", "gflops": 5, "memory_mb": 900}], "links": [{"between": ["a", "b"], "mbit_per_s": 9}]}"#;
    with(phone, &[], &["links[0].between[1]", "no device \"b\""]);
    with(&phone.replace("\"b\"", "\"a\""), &[], &["links[0].between", "two devices"]);
    let small = r#"{"devices": [{"name": "watch", "kind": "phone", "gflops": 1, "memory_mb": 2}]}"#;
    with(small, &["--without", "clock"], &["clock", "watch"]);
    std::fs::write(&path, small).expect("written");
    refused(&["plan", text(&path), "--model", text(&model)], &["missing", "watch would do if it offered", "further device"]);
    refused(&["plan", text(&path), "--model", text(&model), "--without", "watch"], &["left out"]);
    refused(&["plan", text(&path), "--model", text(&model), "--batch", "0"], &["mini-batch"]);
}

#[test]
fn benchmarks_of_nothing_are_refused() {
    refused(&["bench", "--device", "cpu", "--shape", "gpt-7"], &["gpt-7", "smollm2-135m", "bart-large"]);
    refused(&["bench", "--device", "cpu", "--part", "methods", "--shape", "smollm2-135m", "--labels", "0"], &["0 labels", "1 or more"]);
    refused(&["bench", "--device", "cpu", "--memory", "nan"], &["--memory"]);
    refused(&["bench", "--json", "/tmp/x", "full", "--model", "m", "--data", "d"], &["cannot be used with"]);
}
