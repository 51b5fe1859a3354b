//! A server with a tiny model, a client that knows the secret, and a device made of calls.

use barycenter_model::names::{Parameter, Parts};
use barycenter_model::{ModelConfig, RawTensor, write_safetensors};
use barycenter_protocol::api::{ApiError, Snapshot};
use barycenter_protocol::control::{BackendReport, Counters, FromNode, JoinReply, JoinRequest, NodeKind, ToNode};
use barycenter_protocol::{NodeId, PROTOCOL_VERSION};
use barycenter_server::{RunningServer, ServerConfig, serve};
use futures::StreamExt;
use reqwest::{Method, Response, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;
use tempfile::TempDir;

/// No answer takes longer.
pub const PATIENCE: Duration = Duration::from_secs(30);
pub const MODEL: &str = "tiny";

pub struct House {
    pub folder: TempDir,
    pub server: RunningServer,
    pub client: Client,
}

impl House {
    pub async fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        tiny_model(&folder.path().join("models").join(MODEL));
        std::fs::create_dir_all(folder.path().join("web/assets")).unwrap();
        std::fs::write(folder.path().join("web/index.html"), "<!doctype html><title>dashboard</title>").unwrap();
        std::fs::write(folder.path().join("web/assets/app.js"), "1").unwrap();
        Self::start(folder).await
    }

    async fn start(folder: TempDir) -> Self {
        let mut config = ServerConfig::new(folder.path().join("data"));
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.model_dirs = vec![folder.path().join("models")];
        config.web_dir = Some(folder.path().join("web"));
        let server = serve(config).await.unwrap();
        let client = Client::new(&server);
        Self { folder, server, client }
    }

    pub async fn restart(self) -> Self {
        self.server.shutdown().await;
        Self::start(self.folder).await
    }
}

#[derive(Clone)]
pub struct Client {
    pub http: reqwest::Client,
    pub base: String,
    pub token: String,
}

impl Client {
    pub fn new(server: &RunningServer) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().danger_accept_invalid_certs(true).build().unwrap();
        Self { http, base: format!("https://127.0.0.1:{}", server.address().port()), token: server.secret().server_token() }
    }

    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    pub async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> T {
        let response = self.get(path).await;
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}: {text}"))
    }

    pub async fn post(&self, path: &str, body: &impl Serialize) -> Response {
        self.request(Method::POST, path).json(body).send().await.unwrap()
    }

    pub async fn upload(&self, name: &str, bytes: impl Into<Vec<u8>>) -> Response {
        let query: String = name.bytes().map(|b| format!("%{b:02x}")).collect();
        self.request(Method::POST, &format!("/api/datasets?name={query}")).body(bytes.into()).send().await.unwrap()
    }

    pub async fn snapshot(&self) -> Snapshot {
        Lines::of(self.get("/api/snapshots").await).next().await.unwrap()
    }

    /// Looks until it is so.
    pub async fn until(&self, what: &str, is_so: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let mut lines = Lines::of(self.get("/api/snapshots").await);
        let since = std::time::Instant::now();
        loop {
            let snapshot: Snapshot = lines.next().await.expect("snapshots do not end");
            if is_so(&snapshot) {
                return snapshot;
            }
            assert!(since.elapsed() < PATIENCE, "waited for: {what}; last: {snapshot:#?}");
        }
    }
}

/// The sentence of a refusal.
pub async fn refusal(response: Response) -> (StatusCode, String) {
    let (status, text) = (response.status(), response.text().await.unwrap());
    let error: ApiError = serde_json::from_str(&text).unwrap_or_else(|_| panic!("not a refusal: {status} {text}"));
    (status, error.error)
}

/// JSON lines of a streamed answer.
pub struct Lines {
    /// In a mutex only to be `Sync`: devices are shared by tasks.
    body: Mutex<futures::stream::BoxStream<'static, reqwest::Result<bytes::Bytes>>>,
    kept: Vec<u8>,
}

impl Lines {
    pub fn of(response: Response) -> Self {
        assert!(response.status().is_success(), "{}", response.status());
        Self { body: Mutex::new(response.bytes_stream().boxed()), kept: Vec::new() }
    }

    pub async fn next<T: DeserializeOwned>(&mut self) -> Option<T> {
        loop {
            if let Some(end) = self.kept.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.kept.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&line))));
            }
            self.kept.extend_from_slice(&tokio::time::timeout(PATIENCE, self.body.get_mut().unwrap().next()).await.expect("a line in time")?.ok()?);
        }
    }
}

pub struct Device {
    pub client: Client,
    pub node: NodeId,
    pub session: String,
    pub stream: Lines,
}

pub fn join_request(name: &str) -> JoinRequest {
    JoinRequest {
        version: PROTOCOL_VERSION,
        name: name.into(),
        kind: NodeKind::Native,
        backend: BackendReport { kind: "cpu".into(), description: "none".into(), reason: "a test".into() },
        gflops: 10.0,
        memory_budget_bytes: 1 << 30,
        storage_budget_bytes: 1 << 30,
        device_token: format!("token of {name}").replace([' ', '\''], "-"),
    }
}

impl Device {
    pub async fn join(client: &Client, name: &str) -> Self {
        let response = client.post("/api/join", &join_request(name)).await;
        assert!(response.status().is_success());
        let reply: JoinReply = response.json().await.unwrap();
        let stream = Self::open(client, &reply).await;
        let device = Self { client: client.clone(), node: reply.node, session: reply.session, stream: Lines::of(stream) };
        device.stay_alive();
        device
    }

    pub async fn open(client: &Client, reply: &JoinReply) -> Response {
        let path = format!("/api/nodes/{}/stream", reply.node);
        client.request(Method::GET, &path).header("x-barycenter-session", &reply.session).send().await.unwrap()
    }

    pub async fn say(&self, messages: &[FromNode]) -> Response {
        let path = format!("/api/nodes/{}/messages", self.node);
        self.client.request(Method::POST, &path).header("x-barycenter-session", &self.session).json(&messages).send().await.unwrap()
    }

    /// Ends by itself when the place is gone.
    fn stay_alive(&self) {
        let path = format!("/api/nodes/{}/messages", self.node);
        let (client, session) = (self.client.clone(), self.session.clone());
        tokio::spawn(async move {
            let alive = FromNode::Alive { counters: Counters { cache_bytes: 7, ..Counters::default() } };
            loop {
                let sent = client.request(Method::POST, &path).header("x-barycenter-session", &session).json(&alive).send().await;
                if !sent.is_ok_and(|response| response.status().is_success()) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        });
    }

    /// The next message that is no ping.
    pub async fn hear(&mut self) -> Option<ToNode> {
        loop {
            match self.stream.next::<ToNode>().await? {
                ToNode::Ping => {}
                message => return Some(message),
            }
        }
    }
}

pub fn tiny_config() -> serde_json::Value {
    serde_json::json!({
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
        "head_dim": 16, "intermediate_size": 64, "vocab_size": 64, "max_position_embeddings": 48, "eos_token_id": 1, "bos_token_id": 0
    })
}

/// A model folder: random-looking weights, a tokenizer of single words.
pub fn tiny_model(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let text = tiny_config().to_string();
    let config = ModelConfig::parse(&text).unwrap();
    let tensors: BTreeMap<String, RawTensor> = Parts::all(&config)
        .parameters(&config)
        .into_iter()
        .map(|Parameter { name, shape }| {
            let values: Vec<f32> = (0..shape.iter().product::<usize>()).map(|i| (i % 17) as f32 / 100.0).collect();
            (name, RawTensor::from_f32(&shape, &values))
        })
        .collect();
    std::fs::write(folder.join("config.json"), text).unwrap();
    std::fs::write(folder.join("model.safetensors"), write_safetensors(tensors.iter().map(|(n, t)| (n.as_str(), t)), &BTreeMap::new())).unwrap();
    let mut vocabulary = serde_json::json!({"<s>": 0, "</s>": 1, "<unk>": 2});
    for (id, word) in ["turn", "on", "off", "the", "lamp", "fan", "please", "now", "done", "kitchen", "hall"].iter().enumerate() {
        vocabulary[*word] = (id + 3).into();
    }
    let tokenizer = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null, "decoder": null,
        "added_tokens": [{"id": 1, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}
    });
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// 40 rows.
pub fn tiny_data() -> String {
    let rooms = ["kitchen", "hall"];
    let things = ["lamp", "fan"];
    let mut lines = String::new();
    for i in 0..40 {
        let (room, thing, state) = (rooms[i % 2], things[i / 2 % 2], ["on", "off"][i / 4 % 2]);
        let extra = ["please ", "now "][i / 8 % 2].repeat(1 + i / 16);
        lines += &format!("{{\"prompt\": \"{extra}turn {state} the {room} {thing}\", \"response\": \"{room} {thing} {state}\"}}\n");
    }
    lines
}
