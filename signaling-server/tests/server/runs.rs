//! Runs, driven by one device that computes nothing: plan, steps, checkpoints, exact match, restart.

use super::support::{Client, Device, House, refusal, tiny_config, tiny_data};
use barycenter_core::order::SampleOrder;
use barycenter_core::schedule::steps_per_epoch;
use barycenter_model::names;
use barycenter_model::{MemoryTensors, ModelConfig, RawTensor, write_safetensors};
use barycenter_protocol::SampleId;
use barycenter_protocol::api::{AskReply, AskRequest, PlanPreview, RunInfo, RunRequest, RunState, RunView};
use barycenter_protocol::control::{Assignment, FromNode, Holding, Phase, PhaseKind, StepReport, ToNode, WeightFormat};
use reqwest::{Method, StatusCode};
use std::collections::BTreeMap;
use std::ops::Range;

const REDUCTION: u32 = 4;

fn request() -> RunRequest {
    serde_json::from_value(serde_json::json!({"model": "tiny", "dataset": "home", "reduction": REDUCTION, "tap_every": 1, "epochs": 3, "batch": 4, "seed": 3})).unwrap()
}

/// The whole adapter and its moments, or the part of some layers.
fn checkpoint_part(layers: Range<usize>, value: f32) -> Vec<u8> {
    let config = ModelConfig::parse(&tiny_config().to_string()).unwrap();
    let mut tensors = BTreeMap::new();
    for parameter in barycenter_server::side::adapter_parameters(&config, REDUCTION, 1).unwrap() {
        let number = |prefix: &str| parameter.name.strip_prefix(prefix).and_then(|rest| rest.split('.').next()).and_then(|n| n.parse::<usize>().ok());
        let mut shape = parameter.shape.clone();
        let own = match (number("side.down."), number("side.layers.")) {
            (Some(0), _) => layers.start == 0,
            (Some(tap), _) => layers.contains(&(tap - 1)),
            (_, Some(layer)) => layers.contains(&layer),
            _ if parameter.name == "side.gate" => {
                shape = vec![layers.len()];
                true
            }
            _ => layers.end == config.layers,
        };
        if own {
            for kind in ["", "m.", "v."] {
                tensors.insert(format!("{kind}{}", parameter.name), RawTensor::from_f32(&shape, &vec![value; shape.iter().product()]));
            }
        }
    }
    write_safetensors(tensors.iter().map(|(n, t)| (n.as_str(), t)), &BTreeMap::new())
}

/// A device that says it did what it was told.
struct Pretender {
    device: Device,
    assignment: Option<Box<Assignment>>,
    /// Vanishes before this (epoch, step).
    until: Option<(u32, u32)>,
}

impl Pretender {
    fn new(device: Device) -> Self {
        Self { device, assignment: None, until: None }
    }

    fn holdings(&self, is_full: bool) -> Vec<Holding> {
        let Some(assignment) = self.assignment.as_ref().filter(|_| is_full) else { return Vec::new() };
        let samples = assignment.spec.train_samples + assignment.spec.held_out_samples;
        vec![Holding { samples: std::iter::once(0..samples).collect(), taps: 0..assignment.spec.tap_count() }]
    }

    async fn say(&self, message: FromNode) {
        let response = self.device.say(&[message]).await;
        assert!(response.status().is_success(), "{:?}", response.text().await);
    }

    /// Plays along until the stream ends; false: it vanished on purpose.
    async fn play(mut self) -> bool {
        let mut is_full = false;
        while let Some(message) = self.device.hear().await {
            match message {
                ToNode::Prepare(assignment) => {
                    let generation = assignment.generation;
                    self.assignment = Some(assignment);
                    self.say(FromNode::Prepared { generation, holdings: self.holdings(is_full) }).await;
                }
                ToNode::Begin { phase, .. } => {
                    let kind = match phase {
                        Phase::Fill { from_step } => {
                            is_full = true;
                            if !self.steps(0, from_step).await {
                                return false;
                            }
                            PhaseKind::Fill
                        }
                        Phase::Train { epoch, from_step, .. } => {
                            if !self.steps(epoch, from_step).await {
                                return false;
                            }
                            let generation = self.generation();
                            self.say(FromNode::HeldOutLoss { generation, epoch, loss_sum: 6.0, tokens: 4 }).await;
                            PhaseKind::Train
                        }
                        Phase::Refill { .. } => {
                            is_full = true;
                            PhaseKind::Refill
                        }
                        Phase::Redistribute { .. } => PhaseKind::Redistribute,
                    };
                    self.say(FromNode::PhaseDone { generation: self.generation(), phase: kind, holdings: self.holdings(is_full) }).await;
                }
                ToNode::Generate(request) => {
                    // The base knows nothing; the tuned model always says "kitchen lamp on".
                    let answers = |ids: Vec<u32>| request.prompts.iter().map(|_| ids.clone()).collect::<Vec<_>>();
                    let base = request.base.then(|| answers(vec![2, 1]));
                    let tuned = request.tuned.then(|| answers(vec![12, 7, 4, 1]));
                    self.say(FromNode::Generated { request: request.request, base, tuned }).await;
                }
                _ => {}
            }
        }
        true
    }

    fn generation(&self) -> barycenter_protocol::Generation {
        self.assignment.as_ref().unwrap().generation
    }

    async fn steps(&self, epoch: u32, from_step: u32) -> bool {
        let spec = &self.assignment.as_ref().unwrap().spec;
        let order = SampleOrder::of(spec).epoch(epoch);
        for step in from_step..order.steps() {
            if self.until.is_some_and(|until| (epoch, step) >= until) {
                return false;
            }
            let samples: Vec<SampleId> = order.mini_batch(step).iter().map(|slotted| slotted.sample).collect();
            let tokens = samples.iter().map(|s| u64::from(spec.sample_sizes[s.0 as usize].labels)).sum();
            let report = StepReport {
                generation: self.generation(),
                epoch,
                step,
                loss_sum: tokens as f64 * (3.0 - f64::from(epoch)),
                tokens,
                samples,
                backbone_seconds: 0.1,
                side_seconds: 0.1,
                wait_seconds: 0.0,
                gradient_norm: 1.0,
            };
            self.say(FromNode::StepDone(report)).await;
            let next = if step + 1 == steps_per_epoch(spec) { (epoch + 1, 0) } else { (epoch, step + 1) };
            if next.1 == 0 || (step + 1) % spec.checkpoint_steps == 0 {
                for (part, layers) in [(0, 0..1), (1, 1..2)] {
                    let response = upload_part(&self.device.client, self.generation().0, next, part, checkpoint_part(layers, epoch as f32)).await;
                    assert_eq!(response.status(), StatusCode::NO_CONTENT);
                }
            }
        }
        true
    }
}

async fn upload_part(client: &Client, generation: u32, (epoch, step): (u32, u32), part: u32, bytes: Vec<u8>) -> reqwest::Response {
    client.request(Method::PUT, &format!("/api/runs/1/checkpoint/{generation}/{epoch}/{step}/{part}")).body(bytes).send().await.unwrap()
}

async fn house_with_data() -> House {
    let house = House::open().await;
    assert!(house.client.upload("home.jsonl", tiny_data()).await.status().is_success());
    house
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_from_plan_to_exact_match_and_download() {
    let house = house_with_data().await;
    let client = &house.client;
    let (status, sentence) = refusal(client.post("/api/plan", &request()).await).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert!(sentence.contains("no device"), "{sentence}");
    let player = tokio::spawn(Pretender::new(Device::join(client, "desktop").await).play());
    let preview: PlanPreview = client.post("/api/plan", &request()).await.json().await.unwrap();
    assert_eq!((preview.epochs, preview.plan.stages.len()), (3, 1));
    assert!(preview.cache_bytes > 0 && preview.seconds > 0.0);
    let without = RunRequest { without: vec![preview.plan.train[0].node], ..request() };
    let (status, sentence) = refusal(client.post("/api/plan", &without).await).await;
    assert!(status == StatusCode::CONFLICT && sentence.contains("left out"), "{sentence}");

    let started: RunInfo = client.post("/api/runs", &request()).await.json().await.unwrap();
    let (status, sentence) = refusal(client.post("/api/runs", &request()).await).await;
    assert_eq!(status, StatusCode::CONFLICT, "{sentence}");
    let done = client.until("the run is done", |s| s.run.as_ref().is_some_and(|r| r.info.state == RunState::Done)).await;
    let view = done.run.unwrap();
    assert_eq!(view.info.run, started.run);
    assert_eq!(view.losses.len() as u32, 3 * view.info.steps_per_epoch);
    assert_eq!((view.losses[0].loss, view.info.loss), (3.0, Some(1.0)));
    assert_eq!(view.epochs.iter().map(|e| e.phase).collect::<Vec<_>>(), [PhaseKind::Fill, PhaseKind::Train, PhaseKind::Train]);
    assert_eq!(view.info.held_out_loss, Some(1.5));
    assert_eq!(view.info.exact_match_before, Some(0.0));
    assert!(view.info.exact_match_after.is_some());
    let example = view.example.clone().unwrap();
    assert_eq!(example.tuned.as_deref(), Some("kitchen lamp on"), "{example:?}");

    let checkpoint = client.get("/api/runs/1/checkpoint").await.bytes().await.unwrap();
    let tensors = MemoryTensors::from_safetensors("x", &checkpoint).unwrap().tensors;
    assert!(tensors.contains_key("m.side.gate") && tensors["side.gate"].to_f32() == [2.0, 2.0]);
    let adapter = client.get("/api/runs/1/adapter/adapter_model.safetensors").await.bytes().await.unwrap();
    let adapter = MemoryTensors::from_safetensors("x", &adapter).unwrap().tensors;
    assert_eq!(adapter.len() * 3, tensors.len());
    let config: serde_json::Value = client.get_json("/api/runs/1/adapter/adapter_config.json").await;
    assert_eq!((config["method"].as_str(), config["reduction"].as_u64(), config["taps"].as_array().map(Vec::len)), (Some("parallel_adapter"), Some(4), Some(3)));
    assert_eq!((config["weights"].as_str(), config["activations"].as_str()), (Some("keep"), Some("f32")));

    let answer: AskReply = client.post("/api/ask", &AskRequest { prompt: "turn on the lamp".into(), run: None, max_new_tokens: Some(8) }).await.json().await.unwrap();
    assert_eq!((answer.tuned.as_str(), answer.answered_by.as_str()), ("kitchen lamp on", "desktop"));
    let (status, sentence) = refusal(client.post("/api/ask", &AskRequest { prompt: "lamp ".repeat(60), run: None, max_new_tokens: None }).await).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(sentence.contains("context is 48"), "{sentence}");

    let house = house.restart().await;
    assert!(player.await.unwrap(), "the stream ended with the server");
    let kept: RunView = house.client.get_json("/api/runs/1/view").await;
    assert_eq!((kept.losses, kept.epochs, kept.held_out, kept.example), (view.losses, view.epochs, view.held_out, view.example));
    assert_eq!(kept.info, view.info);
    let (status, sentence) = refusal(house.client.post("/api/ask", &AskRequest { prompt: "lamp".into(), run: None, max_new_tokens: None }).await).await;
    assert_eq!(status, StatusCode::CONFLICT, "nobody is there to answer: {sentence}");
    assert!(sentence.contains("no device has joined"), "{sentence}");
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_in_another_format_are_planned_for_and_asked_of_the_devices() {
    let house = house_with_data().await;
    let client = &house.client;
    let mut desktop = Device::join(client, "desktop").await;
    let mut fill_bytes = Vec::new();
    for weights in [WeightFormat::Keep, WeightFormat::F16, WeightFormat::Int8] {
        let preview: PlanPreview = client.post("/api/plan", &RunRequest { weights, ..request() }).await.json().await.unwrap();
        fill_bytes.push(preview.plan.reasons[0].fill_memory_bytes);
    }
    // The file has f32, and every matrix has rows of whole blocks of 32 values, which take 34 bytes.
    let values = names::parameter_count(&ModelConfig::parse(&tiny_config().to_string()).unwrap()) as u64;
    let [keep, f16, int8] = fill_bytes[..] else { panic!("three plans") };
    let vectors = 5 * 32 * 4; // the norms stay as they are
    assert!(keep - f16 <= 2 * values && keep - f16 >= 2 * values - vectors, "{fill_bytes:?}, {values} values");
    let in_blocks = 4 * values - values * 34 / 32;
    assert!(keep - int8 <= in_blocks && keep - int8 >= in_blocks - vectors, "{fill_bytes:?}, {values} values");

    let (status, sentence) = refusal(client.post("/api/plan", &serde_json::json!({"model": "tiny", "dataset": "home", "weights": "int3"})).await).await;
    assert!(status == StatusCode::BAD_REQUEST && sentence.contains("int3") && sentence.contains("int8"), "{status} {sentence}");

    assert!(client.post("/api/runs", &RunRequest { weights: WeightFormat::Int8, ..request() }).await.status().is_success());
    while let Some(message) = desktop.hear().await {
        if let ToNode::Prepare(assignment) = message {
            assert_eq!(assignment.spec.weights, WeightFormat::Int8);
            return;
        }
    }
    panic!("the device was never told to get ready");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_resumes_from_its_checkpoint_after_a_restart_of_the_server() {
    let house = house_with_data().await;
    let mut pretender = Pretender::new(Device::join(&house.client, "desktop").await);
    pretender.until = Some((1, 3));
    let player = tokio::spawn(pretender.play());
    assert!(house.client.post("/api/runs", &request()).await.status().is_success());
    assert!(!player.await.unwrap(), "it vanished in the middle of epoch 1");
    house.client.until("waiting", |s| s.run.as_ref().is_some_and(|r| r.info.state == RunState::Waiting)).await;

    let house = house.restart().await;
    let snapshot = house.client.snapshot().await;
    assert_eq!(snapshot.run.unwrap().info.state, RunState::Waiting);
    tokio::spawn(Pretender::new(Device::join(&house.client, "desktop").await).play());
    let done = house.client.until("the run is done", |s| s.run.as_ref().is_some_and(|r| r.info.state == RunState::Done)).await;
    let view = done.run.unwrap();
    assert_eq!(view.losses.len() as u32, 3 * view.info.steps_per_epoch);
    assert!(view.info.exact_match_after.is_some());
    assert_eq!(view.epochs.len(), 3);
}

/// Whether a device was told to get ready before its stream ended.
async fn was_wanted(mut device: Device) -> bool {
    while let Some(message) = device.hear().await {
        if matches!(message, ToNode::Prepare(_)) {
            return true;
        }
    }
    false
}

/// Two devices say that they are linked: nobody waits for their link.
async fn link(a: &Device, b: &Device) {
    for (from, to) in [(a, b), (b, a)] {
        assert!(from.say(&[FromNode::LinkUp { peer: to.node, round_trip_millis: 1.0, bytes_per_second: 1e7, relayed: false }]).await.status().is_success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_a_run_was_started_without_stays_out_when_it_comes_again() {
    let house = house_with_data().await;
    let phone = Device::join(&house.client, "phone").await;
    let mut desktop = Pretender::new(Device::join(&house.client, "desktop").await);
    link(&phone, &desktop.device).await;
    desktop.until = Some((1, 3));
    let player = tokio::spawn(desktop.play());
    // no exact match: the phone here answers nothing
    let without = RunRequest { without: vec![phone.node], exact_match_rows: Some(0), ..request() };
    assert!(house.client.post("/api/runs", &without).await.status().is_success());
    assert!(!player.await.unwrap(), "the desktop vanished in the middle of epoch 1");
    // alone now, and under another id
    let again = Device::join(&house.client, "phone").await;
    assert_ne!(phone.node, again.node);
    let stays = [tokio::spawn(was_wanted(phone)), tokio::spawn(was_wanted(again))];
    house.client.until("waiting", |s| s.run.as_ref().is_some_and(|r| r.info.state == RunState::Waiting)).await;

    let house = house.restart().await;
    let (phone, desktop) = (Device::join(&house.client, "phone").await, Device::join(&house.client, "desktop").await);
    link(&phone, &desktop).await;
    let after_restart = tokio::spawn(was_wanted(phone));
    tokio::spawn(Pretender::new(desktop).play());
    house.client.until("the run is done", |s| s.run.as_ref().is_some_and(|r| r.info.state == RunState::Done)).await;
    let _house = house.restart().await;
    for stay in stays.into_iter().chain([after_restart]) {
        assert!(!stay.await.unwrap(), "the phone was given work");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn checkpoints_are_checked_and_never_half() {
    let house = house_with_data().await;
    let client = &house.client;
    let mut pretender = Pretender::new(Device::join(client, "desktop").await);
    assert!(client.post("/api/runs", &request()).await.status().is_success());
    // Plays until it is in the fill phase, then holds still with its stream open.
    let generation = loop {
        match pretender.device.hear().await.unwrap() {
            ToNode::Prepare(assignment) => {
                let generation = assignment.generation;
                pretender.say(FromNode::Prepared { generation, holdings: Vec::new() }).await;
            }
            ToNode::Begin { generation, .. } => break generation.0,
            _ => {}
        }
    };
    let put = |generation, at, part, bytes| upload_part(client, generation, at, part, bytes);
    assert_eq!(put(generation, (0, 5), 0, checkpoint_part(0..1, 1.0)).await.status(), StatusCode::NO_CONTENT);
    let (status, sentence) = refusal(client.get("/api/runs/1/checkpoint").await).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "half a checkpoint is none: {sentence}");
    assert_eq!(put(generation + 7, (0, 5), 1, checkpoint_part(1..2, 9.0)).await.status(), StatusCode::CONFLICT, "of another generation");
    assert_eq!(put(generation, (0, 5), 1, b"nonsense".to_vec()).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(put(generation, (0, 5), 1, vec![0; 1 << 20]).await.status(), StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(put(generation, (77, 5), 1, Vec::new()).await.status(), StatusCode::BAD_REQUEST);
    assert_eq!(put(generation, (0, 5), 1, checkpoint_part(1..2, 2.0)).await.status(), StatusCode::NO_CONTENT);
    let read = || async {
        loop {
            let response = client.get("/api/runs/1/checkpoint").await;
            if response.status().is_success() {
                return MemoryTensors::from_safetensors("x", &response.bytes().await.unwrap()).unwrap().tensors;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let tensors = tokio::time::timeout(super::support::PATIENCE, read()).await.unwrap();
    assert_eq!(tensors["side.gate"].to_f32(), [1.0, 2.0]);
    let folder = house.folder.path().join("data/runs/1");
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(files, ["checkpoint.safetensors"], "nothing half-written lies about");

    assert_eq!(client.post("/api/runs/1/pause", &()).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(pretender.device.hear().await, Some(ToNode::Pause));
    assert_eq!(client.post("/api/runs/1/stop", &()).await.status(), StatusCode::NO_CONTENT);
    client.until("stopped", |s| s.run.as_ref().is_some_and(|r| r.info.state == RunState::Stopped)).await;
    let (status, _) = refusal(client.post("/api/runs/1/resume", &()).await).await;
    assert_eq!(status, StatusCode::CONFLICT);
    assert_eq!(refusal(client.post("/api/runs/99/stop", &()).await).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_arrives_also_where_the_body_was_not_read() {
    let house = house_with_data().await;
    let _device = Device::join(&house.client, "desktop").await;
    assert!(house.client.post("/api/runs", &request()).await.status().is_success());
    let large = || vec![0; 8 << 20];
    for _ in 0..20 {
        // too large, of an epoch that there is not, and of a run that there is not
        let (status, sentence) = refusal(upload_part(&house.client, 1, (0, 5), 1, large()).await).await;
        assert!(status == StatusCode::PAYLOAD_TOO_LARGE && sentence.contains("larger than"), "{status} {sentence}");
        let (status, sentence) = refusal(upload_part(&house.client, 1, (77, 5), 1, large()).await).await;
        assert!(status == StatusCode::BAD_REQUEST && sentence.contains("no epoch 77"), "{status} {sentence}");
        let response = house.client.request(Method::PUT, "/api/runs/99/checkpoint/1/0/5/1").body(large()).send().await;
        assert_eq!(refusal(response.expect("an answer")).await.0, StatusCode::NOT_FOUND);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_run_is_refused_before_anything_starts() {
    let house = house_with_data().await;
    let _device = Device::join(&house.client, "desktop").await;
    let refuse = async |change: serde_json::Value| {
        let mut body = serde_json::to_value(request()).unwrap();
        for (key, value) in change.as_object().unwrap() {
            body[key] = value.clone();
        }
        refusal(house.client.post("/api/runs", &body).await).await
    };
    for (change, status, wanted) in [
        (serde_json::json!({"reduction": 5}), 400, "choose one of"),
        (serde_json::json!({"epochs": 0}), 400, "number of epochs"),
        (serde_json::json!({"learning_rate": 7.0}), 400, "learning rate"),
        (serde_json::json!({"model": "none"}), 404, "no model `none`"),
        (serde_json::json!({"dataset": "../secret"}), 404, "no data set `../secret`"),
    ] {
        let (got, sentence) = refuse(change).await;
        assert_eq!(got.as_u16(), status, "{sentence}");
        assert!(sentence.contains(wanted), "{sentence}");
    }
    let runs: Vec<RunInfo> = house.client.get_json("/api/runs").await;
    assert!(runs.is_empty());
}
