//! Files by byte ranges: how devices fetch the weights of their own layers only.

use crate::error::{Answer, Refusal};
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use std::ops::Range;
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncSeekExt};

/// Bytes read from disk at a time.
const CHUNK_BYTES: usize = 256 * 1024;

/// What a `Range` header asks of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of it.
    Whole,
    /// These bytes.
    Part(Range<u64>),
    /// Bytes that the file does not have.
    Unsatisfiable,
}

/// Reads a `Range` header (RFC 9110 §14); several ranges or an unknown unit mean the whole file, as the RFC allows.
pub fn parse(header: Option<&str>, len: u64) -> Wanted {
    let Some(spec) = header.and_then(|h| h.trim().strip_prefix("bytes=")) else { return Wanted::Whole };
    let Some((first, last)) = spec.split_once('-') else { return Wanted::Whole };
    let number = |text: &str| text.trim().parse::<u64>().ok();
    match (first.trim(), last.trim()) {
        ("", suffix) => match number(suffix) {
            Some(0) => Wanted::Unsatisfiable,
            Some(count) if len > 0 => Wanted::Part(len.saturating_sub(count)..len),
            Some(_) => Wanted::Unsatisfiable,
            None => Wanted::Whole,
        },
        (first, last) => match (number(first), last.is_empty(), number(last)) {
            (Some(first), _, _) if first >= len => Wanted::Unsatisfiable,
            (Some(first), true, _) => Wanted::Part(first..len),
            (Some(first), false, Some(last)) if last >= first => Wanted::Part(first..last.saturating_add(1).min(len)),
            _ => Wanted::Whole,
        },
    }
}

/// Answers with a file or the part of it that is asked for. `tag` names its contents for ever.
pub async fn file(path: &Path, tag: &str, request: &HeaderMap) -> Answer<Response> {
    let failed = |error: std::io::Error| Refusal::internal(format!("{}: {error}", path.display()));
    let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
    let len = file.metadata().await.map_err(failed)?.len();
    let text = |name| request.get(name).and_then(|v: &axum::http::HeaderValue| v.to_str().ok());
    let quoted = format!("\"{tag}\"");
    let builder = Response::builder()
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, &quoted)
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CACHE_CONTROL, "private, max-age=31536000, immutable");
    let finish = |builder: axum::http::response::Builder, body| builder.body(body).map_err(Refusal::internal);
    if text(header::IF_NONE_MATCH).is_some_and(|tags| tags.contains(&quoted)) {
        return finish(builder.status(StatusCode::NOT_MODIFIED), Body::empty());
    }
    let (status, range) = match parse(text(header::RANGE), len) {
        Wanted::Whole => (StatusCode::OK, 0..len),
        Wanted::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Wanted::Unsatisfiable => {
            let sentence = format!("bytes beyond the end were asked for, the file has {len}: fetch the manifest again");
            let mut response = axum::response::IntoResponse::into_response(Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, sentence));
            if let Ok(value) = format!("bytes */{len}").parse() {
                response.headers_mut().insert(header::CONTENT_RANGE, value);
            }
            return Ok(response);
        }
    };
    let mut builder = builder.status(status).header(header::CONTENT_LENGTH, range.end - range.start);
    if status == StatusCode::PARTIAL_CONTENT {
        builder = builder.header(header::CONTENT_RANGE, format!("bytes {}-{}/{len}", range.start, range.end - 1));
    }
    file.seek(std::io::SeekFrom::Start(range.start)).await.map_err(failed)?;
    finish(builder, Body::from_stream(chunks(file, range.end - range.start)))
}

fn chunks(file: tokio::fs::File, len: u64) -> impl futures::Stream<Item = std::io::Result<Bytes>> {
    futures::stream::try_unfold((file, len), |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut chunk = vec![0; CHUNK_BYTES.min(usize::try_from(left).unwrap_or(CHUNK_BYTES))];
        let read = file.read(&mut chunk).await?;
        if read == 0 {
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the file became shorter while it was read"));
        }
        chunk.truncate(read);
        Ok(Some((Bytes::from(chunk), (file, left - read as u64))))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_clamped_to_the_file() {
        assert_eq!(parse(Some("bytes=0-9"), 100), Wanted::Part(0..10));
        assert_eq!(parse(Some("bytes=90-"), 100), Wanted::Part(90..100));
        assert_eq!(parse(Some("bytes=90-18446744073709551615"), 100), Wanted::Part(90..100));
        assert_eq!(parse(Some("bytes=-5"), 100), Wanted::Part(95..100));
        assert_eq!(parse(Some("bytes=-500"), 100), Wanted::Part(0..100));
    }

    #[test]
    fn what_the_file_does_not_have_is_unsatisfiable() {
        assert_eq!(parse(Some("bytes=100-"), 100), Wanted::Unsatisfiable);
        assert_eq!(parse(Some("bytes=-0"), 100), Wanted::Unsatisfiable);
        assert_eq!(parse(Some("bytes=0-0"), 0), Wanted::Unsatisfiable);
    }

    #[test]
    fn nonsense_is_ignored() {
        for header in [None, Some("bytes"), Some("bytes=a-b"), Some("bytes=5-2"), Some("lines=1-2"), Some("bytes=0-1,4-5")] {
            assert_eq!(parse(header, 100), Wanted::Whole, "{header:?}");
        }
    }
}
