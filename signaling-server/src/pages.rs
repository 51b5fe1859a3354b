//! The web pages: embedded in the binary, or from a folder.

use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use barycenter_protocol::auth::{sha256_hex, to_hex};
use rust_embed::RustEmbed;
use std::borrow::Cow;
use std::path::{Component, Path as FsPath, PathBuf};
use std::sync::Arc;

/// What `web/` builds to, in release builds.
#[derive(RustEmbed)]
#[folder = "../web/dist"]
#[allow_missing = true]
struct Dist;

/// Where everyday builds read the pages, at each request. Not left to `rust-embed`: it resolves the folder when it is
/// compiled, and finds nothing ever after where the folder was built later.
const BUILT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../web/dist");

/// Where pages come from.
#[derive(Clone, Debug, Default)]
pub struct Pages {
    /// A folder in place of the embedded pages.
    pub folder: Option<Arc<PathBuf>>,
}

/// Cross-origin isolation (shared memory for wasm threads, precise clocks), and nothing from anywhere else.
const HEADERS: [(&str, &str); 6] = [
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-embedder-policy", "require-corp"),
    ("cross-origin-resource-policy", "same-origin"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    (
        "content-security-policy",
        "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; \
         img-src 'self' data: blob:; connect-src 'self'; worker-src 'self' blob:; object-src 'none'; base-uri 'none'; \
         form-action 'self'; frame-ancestors 'none'",
    ),
];

/// Middleware: puts the security headers on every answer.
pub async fn security_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    response
}

/// `/`, `/join`, `/try`.
pub async fn page(State(pages): State<Pages>, name: &'static str, headers: HeaderMap) -> Response {
    match pages.read(&format!("{name}.html")) {
        Some(file) => answer(file, "text/html; charset=utf-8", &headers),
        None => {
            let text = "<!doctype html><meta charset=utf-8><title>Barycenter</title><p>The server runs, but its pages are not built: run <code>npm start</code> in the project's folder, it builds them.";
            (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "text/html; charset=utf-8")], text).into_response()
        }
    }
}

/// `/assets/{path}`.
pub async fn asset(State(pages): State<Pages>, Path(path): Path<String>, headers: HeaderMap) -> Response {
    let mime = mime_guess::from_path(&path).first_or_octet_stream();
    let mime = if mime.type_() == "text" { format!("{mime}; charset=utf-8") } else { mime.to_string() };
    match pages.read(&format!("assets/{path}")).or_else(|| pages.read(&path)) {
        Some(file) => answer(file, &mime, &headers),
        None => (StatusCode::NOT_FOUND, format!("there is no asset {path}: reload the page\n")).into_response(),
    }
}

/// A page's bytes and a tag that changes with them.
struct File {
    bytes: Cow<'static, [u8]>,
    tag: String,
}

impl Pages {
    fn read(&self, name: &str) -> Option<File> {
        let path = PathBuf::from(name);
        if !path.components().all(|c| matches!(c, Component::Normal(_))) {
            return None;
        }
        let built = cfg!(debug_assertions).then_some(FsPath::new(BUILT));
        match self.folder.as_deref().map(PathBuf::as_path).or(built) {
            Some(folder) => {
                let bytes = std::fs::read(folder.join(path)).ok()?;
                Some(File { tag: sha256_hex(&bytes), bytes: bytes.into() })
            }
            None => Dist::get(name).map(|file| File { tag: to_hex(&file.metadata.sha256_hash()), bytes: file.data }),
        }
    }
}

/// Every file is asked for again and answered with 304 when unchanged: pages are never older than the server.
fn answer(file: File, mime: &str, request: &HeaderMap) -> Response {
    let tag = format!("W/\"{}\"", &file.tag[..32]);
    let unchanged = request.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()).is_some_and(|tags| tags.contains(&tag));
    let builder = Response::builder().header(header::ETAG, &tag).header(header::CACHE_CONTROL, "no-cache");
    let response = if unchanged {
        builder.status(StatusCode::NOT_MODIFIED).body(Body::empty())
    } else {
        let body = match file.bytes {
            Cow::Borrowed(bytes) => Body::from(bytes),
            Cow::Owned(bytes) => Body::from(bytes),
        };
        builder.header(header::CONTENT_TYPE, mime).body(body)
    };
    response.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}
