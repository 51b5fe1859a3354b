//! What is left of a body when its request has been refused.
//!
//! To a client that is still sending when its connection is closed, the connection broke, and the sentence of the refusal is lost.
//! So the rest of the body is read and thrown away before the answer goes out, within limits.

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::Response;
use futures::StreamExt;
use std::future::poll_fn;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

/// Longer rests are not worth the sentence.
const MOST_BYTES: usize = 64 << 20;
const MOST_TIME: Duration = Duration::from_secs(10);

pub(super) async fn read(request: Request, next: Next) -> Response {
    if request.body().is_end_stream() {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    // The handler reads the same stream, and may drop its end early.
    let stream = Arc::new(Mutex::new(body.into_data_stream().fuse()));
    let shared = stream.clone();
    let poll = move |cx: &mut Context<'_>| -> Poll<Option<Result<Bytes, axum::Error>>> { shared.lock().unwrap_or_else(PoisonError::into_inner).poll_next_unpin(cx) };
    let response = next.run(Request::from_parts(parts, Body::from_stream(futures::stream::poll_fn(poll)))).await;
    if response.status().is_client_error() || response.status().is_server_error() {
        let rest = async {
            let mut bytes = 0;
            while let Some(Ok(piece)) = poll_fn(|cx| stream.lock().unwrap_or_else(PoisonError::into_inner).poll_next_unpin(cx)).await {
                bytes += piece.len();
                if bytes > MOST_BYTES {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(MOST_TIME, rest).await;
    }
    response
}
