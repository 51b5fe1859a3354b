//! Calls of nodes and watching pages: join, streams, messages.

use super::{AppState, body, json, number, text_header};
use crate::error::{Answer, Refusal};
use crate::host::Command;
use crate::nodes::NodeStream;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use barycenter_protocol::NodeId;
use barycenter_protocol::control::{FromNode, JoinReply, ToNode};
use futures::{Stream, StreamExt};
use std::convert::Infallible;
use std::time::Duration;
use tokio_stream::wrappers::WatchStream;

/// Keeps a node's stream alive.
const PING: Duration = Duration::from_secs(1);
/// Most messages in one call.
const MAX_MESSAGES: usize = 4096;

/// `POST /api/join`.
pub async fn join(State(app): AppState, body: Result<Bytes, BytesRejection>) -> Answer<Json<JoinReply>> {
    let request = Box::new(json(body)?);
    app.host.ask(|reply| Command::Join(request, reply)).await.map(Json)
}

/// `GET /api/nodes/{node}/stream`.
pub async fn stream(State(app): AppState, Path(node): Path<String>, headers: HeaderMap) -> Answer<Response> {
    let node = NodeId(number("device", &node)?);
    let session = session(&headers)?;
    let stream = app.host.ask(|reply| Command::Open(node, session, reply)).await?;
    Ok(json_lines(to_node(stream)))
}

/// `POST /api/nodes/{node}/messages`.
pub async fn messages(State(app): AppState, Path(node): Path<String>, headers: HeaderMap, bytes: Result<Bytes, BytesRejection>) -> Answer<StatusCode> {
    let node = NodeId(number("device", &node)?);
    let session = session(&headers)?;
    let bytes = body(bytes)?;
    let is_list = bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[');
    let parsed = if is_list { serde_json::from_slice::<Vec<FromNode>>(&bytes) } else { serde_json::from_slice::<FromNode>(&bytes).map(|m| vec![m]) };
    let messages = parsed.map_err(|error| Refusal::bad(format!("a message of this device cannot be read ({error}): it runs another version, reload the page")))?;
    if messages.len() > MAX_MESSAGES {
        return Err(Refusal::bad(format!("{} messages came in one call, at most {MAX_MESSAGES} are read", messages.len())));
    }
    app.host.ask(|reply| Command::Messages(node, session, messages, reply)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /api/snapshots`.
pub async fn snapshots(State(app): AppState) -> Response {
    let lines = WatchStream::new(app.host.snapshots()).map(|line| {
        let mut bytes = Vec::with_capacity(line.len() + 1);
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
        Bytes::from(bytes)
    });
    json_lines(lines)
}

pub(super) fn session(headers: &HeaderMap) -> Answer<String> {
    text_header(headers, "x-barycenter-session")
        .map(str::to_owned)
        .ok_or_else(|| Refusal::new(StatusCode::GONE, "the call names no session (x-barycenter-session): join first"))
}

/// A node's queue as lines, with a ping each second. Dropping it (the connection is gone) tells the host at once.
fn to_node(stream: NodeStream) -> impl Stream<Item = Bytes> {
    futures::stream::unfold((stream, tokio::time::interval(PING)), |(mut stream, mut ping)| async move {
        let message = tokio::select! {
            biased;
            message = stream.queue.recv() => message?,
            _ = ping.tick() => ToNode::Ping,
        };
        let mut line = serde_json::to_vec(&message).inspect_err(|error| log::error!("a message could not be written: {error}")).ok()?;
        line.push(b'\n');
        Some((Bytes::from(line), (stream, ping)))
    })
}

fn json_lines(lines: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/x-ndjson"), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(lines.map(Ok::<_, Infallible>))).into_response()
}

