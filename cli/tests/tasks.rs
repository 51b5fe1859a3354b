//! `barycenter train` on an encoder and on encoder-decoder models, every method: it learns, writes what can be used, and
//! refuses what does not fit. The models are those of `tests/golden/tasks`, with a tokenizer of single letters.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const METHODS: [&str; 4] = ["parallel_adapter", "lora", "adapters", "full"];

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_barycenter")).args(arguments).output().expect("the program starts")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// A golden model's folder with a tokenizer: [CLS] 0, [SEP] 1 (the end token of T5), a 2 … z 27.
fn model(folder: &Path, case: &str) -> PathBuf {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tasks").join(case);
    let to = folder.join(case);
    std::fs::create_dir_all(&to).expect("made");
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(from.join(name), to.join(name)).expect("the golden model is there");
    }
    let mut vocabulary = serde_json::Map::from_iter([("[CLS]".to_string(), 0.into()), ("[SEP]".to_string(), 1.into())]);
    vocabulary.extend(('a'..='z').enumerate().map(|(at, letter)| (letter.to_string(), (at + 2).into())));
    let special = |id: u32, content: &str| json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let token = |id: &str, kind: u32| json!({"SpecialToken": {"id": id, "type_id": kind}});
    let sequence = |id: &str, kind: u32| json!({"Sequence": {"id": id, "type_id": kind}});
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [special(0, "[CLS]"), special(1, "[SEP]")],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a-z]"}, "behavior": "Removed", "invert": true},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [token("[CLS]", 0), sequence("A", 0), token("[SEP]", 0)],
            "pair": [token("[CLS]", 0), sequence("A", 0), token("[SEP]", 0), sequence("B", 1), token("[SEP]", 1)],
            "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [0], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [1], "tokens": ["[SEP]"]}}
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "z"}
    });
    std::fs::write(to.join("tokenizer.json"), tokenizer.to_string()).expect("written");
    to
}

/// Four letters each: in turn of the first eight of the alphabet and of eight behind its middle.
fn words(count: u32) -> impl Iterator<Item = String> {
    let mut state = 12_345u64;
    let mut below_eight = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8 % 8
    };
    (0..count).map(move |i| {
        let first = if i % 2 == 0 { b'a' } else { b'm' };
        (0..4).map(|_| char::from(first + below_eight()).to_string()).collect::<Vec<_>>().join(" ")
    })
}

fn is_low(word: &str) -> bool {
    word.starts_with(|letter| letter < 'm')
}

/// Trains on a file; gives what `--json` says.
fn train(model: &Path, data: &Path, arguments: &[&str]) -> Value {
    let json = model.join("report.json");
    let usual = ["train", "--device", "cpu", "--model", text(model), "--data", text(data), "--json", text(&json), "--batch", "8", "--warmup-steps", "1"];
    let epochs: &[&str] = if arguments.contains(&"--epochs") { &[] } else { &["--epochs", "4"] };
    let output = program(&[&usual, epochs, arguments].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&std::fs::read_to_string(json).expect("a report")).expect("JSON")
}

fn of_epochs(report: &Value, key: &str) -> Vec<f64> {
    report["epochs"].as_array().expect("epochs").iter().map(|epoch| epoch[key].as_f64().unwrap_or_else(|| panic!("no {key}: {epoch}"))).collect()
}

fn tensor_names(file: &Path) -> Vec<String> {
    let bytes = std::fs::read(file).expect("written");
    barycenter_model::SafetensorsHeader::parse(&bytes).expect("a safetensors file").tensors.into_keys().collect()
}

/// Runs scripts/check_tasks.py by `$BARYCENTER_PYTHON` (default: python3), which says so where `peft` is not installed.
fn means_the_same_in_python(model: &Path, rows: &Path, held_out: &Path) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/check_tasks.py");
    let python = std::env::var("BARYCENTER_PYTHON").unwrap_or_else(|_| "python3".into());
    match Command::new(&python).args([text(&script), env!("CARGO_BIN_EXE_barycenter"), text(model), text(rows), text(held_out)]).output() {
        Ok(output) => {
            print!("{}", String::from_utf8_lossy(&output.stdout));
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        }
        Err(error) => println!("NOT CHECKED against peft: {python} does not start ({error})"),
    }
}

#[test]
fn an_encoder_learns_classes_by_every_method() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = model(folder.path(), "bert-classify");
    let data = folder.path().join("rows.tsv");
    let rows: Vec<String> = words(96).map(|word| format!("{}\t{word}", if is_low(&word) { "low" } else { "high" })).collect();
    std::fs::write(&data, format!("label\tsentence\n{}\n", rows.join("\n"))).expect("written");
    for method in METHODS {
        let out = folder.path().join(method);
        // All weights together move the outputs further.
        let rate = if method == "full" { "5e-3" } else { "1e-2" };
        let version: &[&str] = if method == "parallel_adapter" { &["--adapter-version", "1"] } else { &[] };
        let report = train(&model, &data, &[&["--task", "classify", "--method", method, "--learning-rate", rate, "--reduction", "4", "--out", text(&out)], version].concat());
        let (losses, accuracy) = (of_epochs(&report, "loss"), of_epochs(&report, "accuracy"));
        assert!(losses[3] < losses[0], "{method}: {losses:?}");
        // Narrow blocks in a random model of width 24 need more than four epochs.
        assert!(accuracy[3] >= 0.9 || method == "adapters", "{method}: {accuracy:?}");
        assert!(accuracy.iter().chain(&of_epochs(&report, "f1")).all(|value| (0.0..=1.0).contains(value)), "{method}: {accuracy:?}");
        let cached = report["cache_bytes"].as_u64().expect("bytes");
        assert_eq!(cached > 0, method == "parallel_adapter", "{method}: {cached} bytes");
        if method == "full" {
            let config = std::fs::read_to_string(out.join("config.json")).expect("written");
            assert!(config.contains("BertForSequenceClassification") && config.contains("\"0\": \"high\""), "{config}");
            assert!(tensor_names(&out.join("model.safetensors")).contains(&"classifier.weight".into()));
            // What was written is a model of the same labels: it goes on where it was.
            let again = of_epochs(&train(&out, &data, &["--method", "full", "--learning-rate", "1e-4"]), "loss");
            assert!(again[0] < losses[0], "{again:?} {losses:?}");
            continue;
        }
        let labels: Value = serde_json::from_str(&std::fs::read_to_string(out.join("labels.json")).expect("written")).expect("JSON");
        assert_eq!(labels, json!({"task": "classify", "labels": ["high", "low"]}));
        let names = tensor_names(&out.join("adapter_model.safetensors"));
        let head = if method == "lora" { "base_model.model.bert.pooler.dense.weight" } else { "bert.pooler.dense.weight" };
        assert!(names.contains(&head.into()), "{method}: {names:?}");
        let config: Value = serde_json::from_str(&std::fs::read_to_string(out.join("adapter_config.json")).expect("written")).expect("JSON");
        if method == "lora" {
            assert_eq!((&config["task_type"], &config["modules_to_save"]), (&json!("SEQ_CLS"), &json!(["pooler", "classifier"])));
            assert!(config["target_modules"].as_array().expect("names").iter().all(|name| name != "dense"), "`dense` would be the pooler's too: {config}");
        } else {
            assert_eq!((&config["weights"], &config["activations"]), (&json!("keep"), &json!("f32")), "{method}: {config}");
        }
    }
    let held_out = folder.path().join("held_out.tsv");
    std::fs::write(&held_out, format!("label\tsentence\n{}\n", rows[..20].join("\n"))).expect("written");
    means_the_same_in_python(&model, &data, &held_out);
    let version_1 = ["--reduction", "4", "--adapter-version", "1"];
    let uncached = of_epochs(&train(&model, &data, &[&version_1[..], &["--cache", "none"]].concat()), "loss");
    let cached = of_epochs(&train(&model, &data, &version_1), "loss");
    assert!(uncached.iter().zip(&cached).all(|(a, b)| (a - b).abs() < 2e-3 * a), "{uncached:?} {cached:?}");
    let last = ["--method", "lora", "--last-layers", "1"];
    let (whole, boundary) = (of_epochs(&train(&model, &data, &last), "loss"), of_epochs(&train(&model, &data, &[&last[..], &["--cache", "f16"]].concat()), "loss"));
    assert!(whole.iter().zip(&boundary).all(|(a, b)| (a - b).abs() < 2e-3 * a), "{whole:?} {boundary:?}");
}

/// Version 2, which classification takes where nothing is said: one sentence, and pairs.
#[test]
fn an_encoder_learns_classes_from_components() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = model(folder.path(), "bert-classify");
    let single: Vec<String> = words(96).map(|word| format!("{}\t{word}", if is_low(&word) { "low" } else { "high" })).collect();
    let list: Vec<String> = words(100).collect();
    let pairs: Vec<String> = (0..96).map(|i| (&list[i], &list[i + 3 + i % 4 / 2])).map(|(a, b)| format!("{}\t{a}\t{b}", if is_low(a) == is_low(b) { "same" } else { "other" })).collect();
    let cases = [("label\tsentence", &single, 1u64, json!(["high", "low"])), ("label\tsentence1\tsentence2", &pairs, 2, json!(["other", "same"]))];
    for (header, rows, sentences, labels) in cases {
        let (data, out) = (folder.path().join(format!("{sentences}.tsv")), folder.path().join(format!("out{sentences}")));
        std::fs::write(&data, format!("{header}\n{}\n", rows.join("\n"))).expect("written");
        let report = train(&model, &data, &["--learning-rate", "1e-2", "--reduction", "4", "--out", text(&out)]);
        let losses = of_epochs(&report, "loss");
        assert!(losses[3] < losses[0], "{sentences}: {losses:?}");
        assert!(of_epochs(&report, "accuracy").iter().chain(&of_epochs(&report, "f1")).all(|value| (0.0..=1.0).contains(value)));
        let config: Value = serde_json::from_str(&std::fs::read_to_string(out.join("adapter_config.json")).expect("written")).expect("JSON");
        let described = [&config["version"], &config["taps"], &config["components"], &config["sentences"], &config["encode_sentences"]].map(Value::clone);
        assert_eq!(described, [json!(2), json!([0, 2]), json!(6), json!(sentences), json!("separate")]);
        assert_eq!((&config["weights"], config["base_model"].as_str()), (&json!("keep"), Some(text(&model))));
        assert_eq!(serde_json::from_str::<Value>(&std::fs::read_to_string(out.join("labels.json")).expect("written")).expect("JSON")["labels"], labels);
        let names = tensor_names(&out.join("adapter_model.safetensors"));
        let expected = ["head.weight", "side.mix", "cache.components.1", if sentences == 2 { "side.align.weight" } else { "side.layers.0.qkv.weight" }];
        assert!(expected.iter().all(|name| names.contains(&name.to_string())), "{names:?}");
        // Two taps of six bytes and a scale a token, and 24 halves a sentence.
        let letters: usize = rows.iter().map(|row| row.split('\t').skip(1).map(|text| text.split(' ').count()).sum::<usize>()).sum();
        let tokens = letters as u64 + 2 * sentences * rows.len() as u64;
        assert_eq!(report["cache_bytes"].as_u64(), Some(2 * (tokens * 8 + rows.len() as u64 * sentences * 48)), "{sentences}");
        let uncached = of_epochs(&train(&model, &data, &["--learning-rate", "1e-2", "--reduction", "4", "--cache", "none"]), "loss");
        assert!(uncached.iter().zip(&losses).all(|(a, b)| (a - b).abs() < 1e-4 * a), "{uncached:?} {losses:?}");
    }
}

#[test]
fn an_encoder_learns_numbers_from_rows_without_a_header() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let model = model(folder.path(), "bert-classify");
    let data = folder.path().join("rows.tsv");
    let rows: Vec<String> = words(96).map(|word| format!("{word}\t{}", if is_low(&word) { -1.5 } else { 2.0 })).collect();
    std::fs::write(&data, rows.join("\n")).expect("written");
    for method in ["lora", "parallel_adapter"] {
        let report = train(&model, &data, &["--task", "regress", "--no-header", "--max-tokens", "5", "--method", method, "--learning-rate", "1e-2", "--reduction", "4"]);
        let losses = of_epochs(&report, "loss");
        assert!(losses[3] < losses[0], "{method}: {losses:?}");
        let (pearson, spearman) = (of_epochs(&report, "pearson"), of_epochs(&report, "spearman"));
        assert!(pearson[3] > 0.9 && spearman[3] > 0.5 && pearson[3] <= 1.0, "{method}: {pearson:?} {spearman:?}");
    }
}

#[test]
fn encoder_decoder_models_learn_targets_by_every_method() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("rows.jsonl");
    let rows: Vec<String> = words(32).map(|word| json!({"input": word, "target": word.chars().rev().collect::<String>()}).to_string()).collect();
    std::fs::write(&data, rows.join("\n")).expect("written");
    let held_out = folder.path().join("held_out.jsonl");
    std::fs::write(&held_out, rows[..10].join("\n")).expect("written");
    for case in ["t5-seq2seq", "bart-seq2seq"] {
        let model = model(folder.path(), case);
        means_the_same_in_python(&model, &data, &held_out);
        let last = ["--method", "lora", "--last-layers", "1", "--learning-rate", "1e-2"];
        let whole = train(&model, &data, &last);
        let [boundary, halves] = ["f32", "f16"].map(|cache| train(&model, &data, &[&last[..], &["--cache", cache]].concat()));
        assert_eq!([&boundary["losses"], &boundary["epochs"][3]["held_out_loss"], &boundary["eval"]], [&whole["losses"], &whole["epochs"][3]["held_out_loss"], &whole["eval"]], "{case}");
        assert!(of_epochs(&halves, "loss").iter().zip(of_epochs(&whole, "loss")).all(|(a, b)| (a - b).abs() < 2e-3 * b), "{case}");
        let pieces = train(&model, &data, &[&last[..], &["--cache", "f32", "--micro-batch", "3"]].concat());
        assert!(of_epochs(&pieces, "loss").iter().zip(of_epochs(&whole, "loss")).all(|(a, b)| (a - b).abs() <= 1e-4 * b), "{case}");
        assert!(whole["cache_bytes"] == 0 && halves["cache_bytes"].as_u64() < boundary["cache_bytes"].as_u64(), "{case}");
        for method in METHODS {
            let out = folder.path().join(format!("{case}-{method}"));
            let report = train(&model, &data, &["--method", method, "--learning-rate", "1e-2", "--reduction", "4", "--out", text(&out)]);
            let losses = of_epochs(&report, "loss");
            assert!(losses[3] < losses[0], "{case} {method}: {losses:?}");
            assert!(of_epochs(&report, "perplexity").iter().all(|value| *value > 1.0));
            let (file, expected) = match method {
                "parallel_adapter" => ("adapter_model.safetensors", "side.encoder.down.0.weight"),
                "adapters" => ("adapter_model.safetensors", "decoder.layers.0.feed_forward.up.weight"),
                "full" if case == "bart-seq2seq" => ("model.safetensors", "final_logits_bias"),
                "full" => ("model.safetensors", "shared.weight"),
                _ => ("adapter_config.json", "SEQ_2_SEQ_LM"),
            };
            // The base model's answer and the tuned one's, or that of the model that was written.
            let ask: &[&str] = if method == "full" { &["--model", text(&out)] } else { &["--model", text(&model), "--adapter", text(&out)] };
            let answered = program(&[&["generate", "--device", "cpu", "--max-new-tokens", "6", "a b c d"], ask].concat());
            assert!(answered.status.success(), "{case} {method}: {}", String::from_utf8_lossy(&answered.stderr));
            assert_eq!(String::from_utf8_lossy(&answered.stdout).contains("tuned  "), method != "full", "{case} {method}");
            match file {
                "adapter_config.json" => assert!(std::fs::read_to_string(out.join(file)).expect("written").contains(expected)),
                _ => assert!(tensor_names(&out.join(file)).contains(&expected.into()), "{case} {method}"),
            }
        }
    }
}

#[test]
fn encoder_decoder_models_answer_before_and_after() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("rows.jsonl");
    let rows: Vec<String> = words(96).map(|word| json!({"input": word, "target": if is_low(&word) { "l" } else { "h" }}).to_string()).collect();
    std::fs::write(&data, rows.join("\n")).expect("written");
    let t5 = model(folder.path(), "t5-seq2seq");
    // As T5's tokenizers do, nothing before a text: twice the start token would look the same to the decoder.
    let tokenizer = t5.join("tokenizer.json");
    let mut parts: Value = serde_json::from_str(&std::fs::read_to_string(&tokenizer).expect("written")).expect("JSON");
    parts["post_processor"]["single"].as_array_mut().expect("parts").remove(0);
    std::fs::write(&tokenizer, parts.to_string()).expect("written");
    let whole = of_epochs(&train(&t5, &data, &["--method", "lora", "--learning-rate", "1e-2"]), "loss");
    let pieces = of_epochs(&train(&t5, &data, &["--method", "lora", "--learning-rate", "1e-2", "--micro-batch", "3"]), "loss");
    assert!(whole.iter().zip(&pieces).all(|(a, b)| (a - b).abs() <= 1e-4 * a), "{whole:?} {pieces:?}");
    for method in METHODS {
        let out = folder.path().join(method);
        let report = train(&t5, &data, &["--method", method, "--epochs", "24", "--learning-rate", "1e-2", "--reduction", "4", "--out", text(&out)]);
        let eval = &report["eval"];
        assert_eq!(eval["before"], json!(0.0), "{method}: {eval}");
        assert!(eval["after"].as_f64().is_some_and(|after| after >= 0.9), "{method}: {eval}");
        let asked = ["generate", "--device", "cpu", "--max-new-tokens", "8", "abcd"];
        let arguments = if method == "full" { vec!["--model", text(&out)] } else { vec!["--model", text(&t5), "--adapter", text(&out)] };
        let output = program(&[&asked[..], &arguments].concat());
        let answer = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{method}: {}", String::from_utf8_lossy(&output.stderr));
        let line = answer.lines().last().unwrap_or_default().trim_start_matches("tuned").trim().to_string();
        assert_eq!(line, "l", "{method}: {answer:?}");
    }
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/demo");
    let chains = folder.path().join("parallel_adapter");
    let output = program(&["generate", "--device", "cpu", "--model", text(&demo), "--adapter", text(&chains), "abcd"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("beside a model of an encoder and a decoder"), "{}", String::from_utf8_lossy(&output.stderr));
}

/// In a folder given for it the cache is a file while the run lasts; losses are the same, and nothing stays.
#[test]
fn a_cache_in_a_folder_gives_the_same_losses_and_goes() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let data = folder.path().join("rows.tsv");
    let rows: Vec<String> = words(48).map(|word| format!("{}\t{word}", if is_low(&word) { "low" } else { "high" })).collect();
    std::fs::write(&data, format!("label\tsentence\n{}\n", rows.join("\n"))).expect("written");
    let bert = model(folder.path(), "bert-classify");
    let place = folder.path().join("cache");
    let side = |version| ["--adapter-version", version, "--reduction", "4"];
    for method in [&side("1")[..], &side("2"), &["--method", "lora", "--last-layers", "1", "--cache", "f32"]] {
        let memory = train(&bert, &data, method);
        let file = train(&bert, &data, &[method, &["--cache-dir", text(&place)]].concat());
        assert_eq!((of_epochs(&memory, "loss"), &memory["cache_bytes"]), (of_epochs(&file, "loss"), &file["cache_bytes"]), "{method:?}");
        assert_eq!(std::fs::read_dir(&place).expect("made").count(), 0, "{method:?}");
    }
    for version in ["1", "2"] {
        let micro = of_epochs(&train(&bert, &data, &[&side(version)[..], &["--micro-batch", "3"]].concat()), "loss");
        let whole = of_epochs(&train(&bert, &data, &side(version)), "loss");
        assert!(whole.iter().zip(&micro).all(|(a, b)| (a - b).abs() <= 1e-4 * a), "{version}: {whole:?} {micro:?}");
    }
}

#[test]
fn what_does_not_fit_is_refused_in_one_sentence() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (bert, t5) = (model(folder.path(), "bert-classify"), model(folder.path(), "t5-seq2seq"));
    let file = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).expect("written");
        path
    };
    let classes = file("classes.tsv", "text\tlabel\na b\tyes\nc d\tno\ne f\tyes\n");
    let other = file("other.tsv", "text\tlabel\na b\tmaybe\n");
    let pairs = file("pairs.jsonl", "{\"input\":\"a b\",\"target\":\"b a\"}\n{\"input\":\"c\",\"target\":\"c\"}\n");
    let one = file("one.tsv", "text\tlabel\na b\tyes\nc d\tyes\n");
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../assets/demo");
    let cases: [(&Path, &Path, &[&str], &str); 17] = [
        (&bert, &classes, &["--task", "prompt"], "--task prompt is not for an encoder such as this bert: choose --task classify or regress"),
        (&t5, &pairs, &["--task", "classify"], "choose --task seq2seq"),
        (&demo, &classes, &["--task", "classify"], "a decoder such as this llama"),
        (&bert, &classes, &["--task", "regress"], "line 2 of classes.tsv has the label `yes`, which is not a number"),
        (&bert, &classes, &["--held-out", text(&other)], "line 2 of other.tsv has the label `maybe`, which is none of the classes no, yes"),
        (&bert, &one, &[], "one.tsv has 1 class"),
        (&bert, &pairs, &[], "line 1 of pairs.jsonl"),
        (&bert, &classes, &["--max-tokens", "99"], "--max-tokens 99 must be 1 to 24"),
        (&bert, &classes, &["--gate-temperature", "0", "--adapter-version", "1"], "--gate-temperature must be a number above 0"),
        (&bert, &classes, &["--method", "lora", "--last-layers", "1", "--cache", "int8"], "--cache int8 is for parallel adapters"),
        (&bert, &classes, &["--cache", "f16"], "version 2, which keep int8"),
        (&bert, &classes, &["--adapter-version", "2", "--method", "lora"], "use it with --method parallel_adapter"),
        (&t5, &pairs, &["--adapter-version", "2"], "is for encoders that classify or regress"),
        (&bert, &classes, &["--method", "full", "--cache", "f16"], "leave it out"),
        (&t5, &pairs, &["--method", "adapters", "--last-layers", "1"], "are for LoRA on models of an encoder and a decoder such as this t5"),
        (&t5, &pairs, &["--method", "lora", "--cache", "f16"], "--cache needs --last-layers"),
        (&t5, &pairs, &["--method", "lora", "--last-layers", "9"], "--last-layers 9 must be 1 to"),
    ];
    for (model, data, arguments, said) in cases {
        let output = program(&[&["train", "--device", "cpu", "--model", text(model), "--data", text(data), "--epochs", "1", "--reduction", "4"], arguments].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code().is_some_and(|code| code > 0) && !error.contains("panicked"), "{arguments:?}: {error}");
        assert!(error.contains(said), "{arguments:?} does not say {said:?}: {error}");
    }
    let reduction = program(&["train", "--device", "cpu", "--model", text(&bert), "--data", text(&classes), "--reduction", "5"]);
    assert!(String::from_utf8_lossy(&reduction.stderr).contains("cannot be divided by the reduction 5"));
}
