//! The HTTP surface: which path does what, and who may.

mod data;
mod leftover;
mod node;
mod relay;
mod run;

use crate::data_dir::DataDir;
use crate::datasets::{Datasets, MAX_UPLOAD_BYTES};
use crate::error::{Answer, Refusal};
use crate::host::HostHandle;
use crate::models::Models;
use crate::pages::{self, Pages};
use crate::store::Store;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use barycenter_protocol::PROTOCOL_VERSION;
use barycenter_protocol::api::{Invite, Version};
use barycenter_protocol::auth::equal_in_constant_time;
use std::sync::Arc;
use tower_http::compression::CompressionLayer;

/// Largest body of most calls: messages of a node are far below.
const MAX_BODY_BYTES: usize = 4 << 20;
/// Largest body of a join.
const MAX_JOIN_BYTES: usize = 64 << 10;

/// What handlers work with.
pub struct App {
    /// Opens the API.
    pub token: String,
    /// URL to scan.
    pub invite: Invite,
    /// Files.
    pub data: DataDir,
    /// Data base.
    pub store: Arc<Store>,
    /// Models.
    pub models: Arc<Models>,
    /// Data sets.
    pub datasets: Arc<Datasets>,
    /// The task that owns nodes and run.
    pub host: HostHandle,
}

type AppState = State<Arc<App>>;

/// All routes.
pub fn router(app: Arc<App>, pages: Pages) -> Router {
    let api = Router::new()
        .route("/api/join", post(node::join).layer(DefaultBodyLimit::max(MAX_JOIN_BYTES)))
        .route("/api/nodes/{node}/stream", get(node::stream))
        .route("/api/nodes/{node}/messages", post(node::messages))
        .route("/api/nodes/{node}/relay", get(relay::inbox))
        .route("/api/nodes/{node}/relay/{peer}/{mailbox}/{plane}", post(relay::parcel))
        .route("/api/models", get(data::models))
        .route("/api/models/{id}/manifest", get(data::manifest))
        .route("/api/models/{id}/files/{index}", get(data::file))
        .route("/api/datasets", get(data::datasets).post(data::upload).layer(DefaultBodyLimit::max(MAX_UPLOAD_BYTES)))
        .route("/api/datasets/{id}/preview", get(data::preview))
        .route("/api/datasets/{id}/samples", get(data::samples))
        .route("/api/plan", post(run::plan))
        .route("/api/runs", get(run::list).post(run::start))
        .route("/api/runs/{id}", get(run::info))
        .route("/api/runs/{id}/view", get(run::view))
        .route("/api/runs/{id}/pause", post(run::pause))
        .route("/api/runs/{id}/resume", post(run::resume))
        .route("/api/runs/{id}/stop", post(run::stop))
        .route("/api/runs/{id}/checkpoint/{generation}/{epoch}/{step}/{part}", put(run::put_checkpoint).layer(DefaultBodyLimit::disable()))
        .route("/api/runs/{id}/checkpoint", get(run::get_checkpoint))
        .route("/api/runs/{id}/adapter/adapter_model.safetensors", get(run::adapter))
        .route("/api/runs/{id}/adapter/adapter_config.json", get(run::adapter_config))
        .route("/api/ask", post(run::ask))
        .route("/api/snapshots", get(node::snapshots))
        .route("/api/invite", get(async |State(app): AppState| Json(app.invite.clone())))
        .route("/api/{*path}", axum::routing::any(async || Refusal::missing("there is no such call: the page or program is of another version than the server, reload it")))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn(leftover::read))
        .layer(middleware::from_fn_with_state(app.clone(), require_token))
        .with_state(app);
    let web = Router::new()
        .route("/", get(|pages, headers| pages::page(pages, "index", headers)))
        .route("/join", get(|pages, headers| pages::page(pages, "join", headers)))
        .route("/try", get(|pages, headers| pages::page(pages, "try", headers)))
        .route("/assets/{*path}", get(pages::asset))
        .route("/favicon.ico", get(async || StatusCode::NO_CONTENT))
        .layer(CompressionLayer::new())
        .with_state(pages);
    Router::new()
        .route("/api/version", get(version))
        .merge(api)
        .merge(web)
        .fallback(async || Refusal::missing("there is no such page: open the address that the server printed"))
        .layer(middleware::from_fn(pages::security_headers))
}

async fn version() -> Json<Version> {
    Json(Version { protocol: PROTOCOL_VERSION, server: env!("CARGO_PKG_VERSION").into() })
}

async fn require_token(State(app): AppState, request: Request, next: Next) -> Answer<Response> {
    let sent = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    if !sent.is_some_and(|token| equal_in_constant_time(token.as_bytes(), app.token.as_bytes())) {
        let sentence = "this device was not invited, or the address is not complete: scan the code that the server shows";
        return Err(Refusal::new(StatusCode::UNAUTHORIZED, sentence));
    }
    Ok(next.run(request).await)
}

/// A body within its limit.
fn body(body: Result<Bytes, BytesRejection>) -> Answer<Bytes> {
    body.map_err(|rejection| match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than the server takes: split it or choose a smaller file"),
        status => Refusal::new(status, "the body did not arrive completely: send it again"),
    })
}

/// A JSON body.
fn json<T: serde::de::DeserializeOwned>(bytes: Result<Bytes, BytesRejection>) -> Answer<T> {
    let bytes = body(bytes)?;
    serde_json::from_slice(&bytes).map_err(|error| Refusal::bad(format!("the body is not what this call expects ({error}): the page or program is of another version, reload it")))
}

/// A number in a path.
fn number<T: std::str::FromStr>(what: &str, text: &str) -> Answer<T> {
    text.parse().map_err(|_| Refusal::missing(format!("`{}` is not the number of a {what}", crate::models::clip(text))))
}

fn text_header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Runs what reads files or computes where that does no harm.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Answer<T> + Send + 'static) -> Answer<T> {
    tokio::task::spawn_blocking(work).await.map_err(Refusal::internal)?
}
