//! Models and data sets: ranges, samples, and what bad input gets.

use super::support::{House, MODEL, refusal, tiny_data, tiny_model};
use barycenter_model::{Manifest, TokenSample};
use barycenter_protocol::api::{DatasetInfo, DatasetPreview, ModelInfo};
use reqwest::{Method, StatusCode, header};
use std::path::Path;

#[tokio::test(flavor = "multi_thread")]
async fn weights_come_by_ranges() {
    let house = House::open().await;
    let manifest: Manifest = house.client.get_json("/api/models/tiny/manifest").await;
    let config = manifest.parse_config().unwrap();
    let file = std::fs::read(house.folder.path().join("models/tiny/model.safetensors")).unwrap();
    let parts = barycenter_model::names::Parts::stage(&config, 1..2);
    let names: Vec<String> = manifest.entries(&config, &parts).unwrap().into_iter().map(|(name, _)| name).collect();
    for range in manifest.ranges(names.iter().map(String::as_str), 1 << 20).unwrap() {
        let value = format!("bytes={}-{}", range.start, range.end - 1);
        let response = house.client.request(Method::GET, "/api/models/tiny/files/0").header(header::RANGE, value).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::PARTIAL_CONTENT);
        assert_eq!(response.headers()[header::CONTENT_RANGE], format!("bytes {}-{}/{}", range.start, range.end - 1, file.len()));
        let bytes = response.bytes().await.unwrap();
        assert_eq!(bytes, file[range.start as usize..range.end as usize]);
        manifest.split_range(&range, &bytes).unwrap();
    }
    let whole = house.client.get("/api/models/tiny/files/0").await;
    assert_eq!(whole.status(), StatusCode::OK);
    assert!(whole.headers()[header::CACHE_CONTROL].to_str().unwrap().contains("immutable"));
    assert_eq!(whole.bytes().await.unwrap(), file);
    let beyond = house.client.request(Method::GET, "/api/models/tiny/files/0").header(header::RANGE, "bytes=99999999-").send().await.unwrap();
    assert_eq!(beyond.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    for path in ["/api/models/none/manifest", "/api/models/tiny/files/1", "/api/models/tiny/files/x", "/api/models/..%2f..%2fdata/manifest"] {
        assert_eq!(refusal(house.client.get(path).await).await.0, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn broken_model_folders_say_what_is_wrong() {
    let house = House::open().await;
    let models = house.folder.path().join("models");
    tiny_model(&models.join("cut off"));
    let weights = models.join("cut off/model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    tiny_model(&models.join("no-tokenizer"));
    std::fs::remove_file(models.join("no-tokenizer/tokenizer.json")).unwrap();
    tiny_model(&models.join("other"));
    std::fs::write(models.join("other/config.json"), r#"{"model_type": "mamba"}"#).unwrap();
    tiny_model(&models.join("no-config"));
    std::fs::remove_file(models.join("no-config/config.json")).unwrap();
    let bert = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/tasks/bert-classify");
    std::fs::create_dir(models.join("encoder")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(bert.join(name), models.join("encoder").join(name)).unwrap();
    }
    std::fs::write(models.join("encoder/tokenizer.json"), "{}").unwrap();
    let list: Vec<ModelInfo> = house.client.get_json("/api/models").await;
    let problem = |id: &str| list.iter().find(|m| m.id == id).unwrap_or_else(|| panic!("{id}: {list:?}")).problem.clone().unwrap_or_default();
    assert_eq!(problem(MODEL), "");
    assert!(problem("cut-off").contains("cut off or damaged"), "{}", problem("cut-off"));
    assert!(problem("no-tokenizer").contains("tokenizer.json"));
    assert!(problem("other").contains("mamba"));
    assert!(problem("no-config").contains("config.json"), "a folder that looks like a model is not passed over");
    assert!(problem("encoder").contains("trained on one computer"), "{}", problem("encoder"));
    let (status, sentence) = refusal(house.client.get("/api/models/cut-off/manifest").await).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(sentence.contains("model.safetensors"));
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_are_previewed_and_handed_out_as_tokens() {
    let house = House::open().await;
    let response = house.client.upload("Our home.jsonl", tiny_data()).await;
    assert_eq!(response.status(), StatusCode::OK);
    let info: DatasetInfo = response.json().await.unwrap();
    assert_eq!((info.id.as_str(), info.name.as_str(), info.train_rows + info.held_out_rows), ("our-home", "Our home.jsonl", 40));
    assert!(info.held_out_rows > 0);
    let preview: DatasetPreview = house.client.get_json("/api/datasets/our-home/preview?model=tiny").await;
    assert!(preview.rows.iter().any(|row| row.held_out) && preview.total_tokens > preview.labelled_tokens && preview.labelled_tokens > 0);
    let samples: Vec<TokenSample> = house.client.get_json("/api/datasets/our-home/samples?model=tiny").await;
    assert_eq!(samples.len(), 40);
    let part: Vec<TokenSample> = house.client.get_json("/api/datasets/our-home/samples?model=tiny&range=3..7").await;
    assert_eq!(part, samples[3..7]);
    for range in ["5..99", "7..3", "x", "-1..2"] {
        let (status, sentence) = refusal(house.client.get(&format!("/api/datasets/our-home/samples?model=tiny&range={range}")).await).await;
        assert_eq!(status, StatusCode::BAD_REQUEST);
        assert!(sentence.contains("a..b"), "{sentence}");
    }
    let house = house.restart().await;
    let again: Vec<TokenSample> = house.client.get_json("/api/datasets/our-home/samples?model=tiny").await;
    assert_eq!(again, samples, "the split is the same after a restart");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_uploads_get_a_sentence_and_leave_nothing() {
    let house = House::open().await;
    let good = tiny_data();
    let mut lines: Vec<&str> = good.lines().collect();
    lines[6] = "{\"prompt\": ";
    let bad = lines.join("\n");
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("broken.jsonl", bad.into_bytes(), "line 7 of broken.jsonl"),
        ("empty.csv", Vec::new(), "empty.csv holds no rows"),
        ("image.png", vec![1, 2, 3], "image.png is of a kind that is not read"),
        ("latin.txt", b"a\nb \xff".to_vec(), "line 2 of latin.txt"),
        ("one.jsonl", good.lines().next().unwrap().into(), "one.jsonl holds one row"),
        ("", good.clone().into_bytes(), "no name"),
    ];
    for (name, bytes, wanted) in cases {
        let (status, sentence) = refusal(house.client.upload(name, bytes).await).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{name}");
        assert!(sentence.contains(wanted), "{name}: {sentence}");
    }
    let list: Vec<DatasetInfo> = house.client.get_json("/api/datasets").await;
    assert!(list.iter().all(|dataset| dataset.id == "demo-home"), "{list:?}");
    assert_eq!(std::fs::read_dir(house.folder.path().join("data/datasets")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn uploaded_names_never_become_paths() {
    let house = House::open().await;
    for name in ["../../../escaped.jsonl", "/tmp/escaped.jsonl", "..\\..\\escaped.jsonl", "a/../../escaped.jsonl"] {
        let info: DatasetInfo = house.client.upload(name, tiny_data()).await.json().await.unwrap();
        assert!(info.id.starts_with("escaped"), "{info:?}");
        assert_eq!(info.name, "escaped.jsonl");
    }
    let mut files: Vec<_> = std::fs::read_dir(house.folder.path().join("data/datasets")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    files.sort();
    assert_eq!(files, ["escaped-2.jsonl", "escaped-3.jsonl", "escaped-4.jsonl", "escaped.jsonl"]);
    let (status, _) = refusal(house.client.get("/api/datasets/..%2f..%2fsecret/samples?model=tiny").await).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_beyond_the_context_are_named_or_refused() {
    let house = House::open().await;
    let long = "lamp ".repeat(60);
    let row = |prompt: &str| format!("{{\"prompt\": \"{prompt}\", \"response\": \"done\"}}\n");
    house.client.upload("mixed.jsonl", tiny_data() + &row(&long)).await;
    let preview: DatasetPreview = house.client.get_json("/api/datasets/mixed/preview?model=tiny").await;
    assert!(preview.warnings.iter().any(|w| w.contains("left out")), "{:?}", preview.warnings);
    house.client.upload("long.jsonl", row(&long) + &row(&(long.clone() + "fan"))).await;
    let (status, sentence) = refusal(house.client.get("/api/datasets/long/preview?model=tiny").await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(sentence.contains("48 tokens"), "{sentence}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_is_built_in() {
    let house = House::open().await;
    let models: Vec<ModelInfo> = house.client.get_json("/api/models").await;
    let Some(demo) = models.iter().find(|model| model.id == "demo") else {
        println!("the demo's assets are not there: make them with `cargo xtask make-demo`");
        return;
    };
    assert_eq!(demo.problem, None);
    let list: Vec<DatasetInfo> = house.client.get_json("/api/datasets").await;
    let home = list.iter().find(|dataset| dataset.id == "demo-home").unwrap();
    assert_eq!((home.train_rows, home.held_out_rows), (400, 100));
    let preview: DatasetPreview = house.client.get_json("/api/datasets/demo-home/preview?model=demo").await;
    assert!(!preview.rows.is_empty() && preview.rows.iter().any(|row| row.held_out));
    let samples: Vec<TokenSample> = house.client.get_json("/api/datasets/demo-home/samples?model=demo&range=0..500").await;
    assert_eq!(samples.len(), 500);
}
