//! Calls of the relay: sealed parcels up, and down in one streamed answer per node.

use super::{AppState, number, node::session};
use crate::error::{Answer, Refusal};
use crate::host::Command;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use barycenter_protocol::NodeId;
use std::convert::Infallible;
use std::time::Duration;

/// A parcel whose bytes come more slowly than this is not waited for: its room is needed.
const BODY_TIMEOUT: Duration = Duration::from_secs(15);

/// `GET /api/nodes/{node}/relay`.
pub async fn inbox(State(app): AppState, Path(node): Path<String>, headers: HeaderMap) -> Answer<Response> {
    let node = NodeId(number("device", &node)?);
    let session = session(&headers)?;
    let reader = app.host.ask(|reply| Command::OpenInbox(node, session, reply)).await?;
    let pieces = futures::stream::unfold(reader, async |mut reader| Some((Ok::<_, Infallible>(reader.next().await?), reader)));
    let headers = [(header::CONTENT_TYPE, "application/octet-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(pieces)).into_response())
}

/// `POST /api/nodes/{node}/relay/{peer}/{mailbox}/{plane}`.
pub async fn parcel(State(app): AppState, Path((node, peer, mailbox, plane)): Path<(String, String, String, String)>, request: Request) -> Answer<StatusCode> {
    let node = NodeId(number("device", &node)?);
    let peer = NodeId(number("device", &peer)?);
    let mailbox = u64::from_str_radix(&mailbox, 16).map_err(|_| Refusal::missing(format!("`{}` is not the number of a mailbox", crate::models::clip(&mailbox))))?;
    let plane = match plane.as_str() {
        "control" => 0,
        "bulk" => 1,
        _ => return Err(Refusal::missing("there is no such plane: control or bulk")),
    };
    let session = session(request.headers())?;
    let len = request.headers().get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse::<usize>().ok());
    let len = len.ok_or_else(|| Refusal::new(StatusCode::LENGTH_REQUIRED, "a parcel for the relay says how long it is (content-length)"))?;
    let inbox = app.host.ask(|reply| Command::Inbox(node, session, peer, reply)).await?;
    let place = inbox.place(node, plane, len).await?;
    let cut = || Refusal::bad(format!("a parcel of {len} bytes was announced and did not come in time: the link is made anew"));
    let body = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(request.into_body(), len)).await;
    let body = body.ok().and_then(Result::ok).filter(|body| body.len() == len).ok_or_else(cut)?;
    place.put(mailbox, body)?;
    Ok(StatusCode::NO_CONTENT)
}
