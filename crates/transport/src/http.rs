//! What a node asks of the server: JSON, byte ranges, uploads, streams; authenticated.

use barycenter_protocol::api::ApiError;
use barycenter_protocol::auth::Invitation;
use bytes::Bytes;
use futures::stream::LocalBoxStream;
use futures::{Stream, StreamExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

#[cfg(not(target_arch = "wasm32"))]
#[path = "http/native.rs"]
mod imp;
#[cfg(target_arch = "wasm32")]
#[path = "http/web.rs"]
mod imp;

/// Longest line of a JSON-lines stream: an assignment with the sizes of a million samples fits.
const MAX_LINE_BYTES: usize = 64 * 1024 * 1024;

/// The certificate is another one than the invitation's; waiting does not change that.
const WRONG_CERTIFICATE: &str = "the server's certificate is not the one of the invitation: scan or copy the address anew";

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// The server was not reached, or the connection broke: worth another try.
    #[error("the server was not reached ({0}): check that it runs and that this device is in the same network")]
    Network(String),
    /// The server answered with an error; the sentence is its own.
    #[error("{sentence}")]
    Status {
        /// HTTP status.
        status: u16,
        /// What the server said.
        sentence: String,
    },
    /// The answer is not what was asked for.
    #[error("the server's answer to {path} could not be read ({what}): reload the page, it may be older than the server")]
    Answer {
        /// What was asked for.
        path: String,
        /// What is wrong with the answer.
        what: String,
    },
    /// The invitation or the platform does not allow a client at all.
    #[error("{0}")]
    SetUp(String),
}

fn unreached(reason: String) -> HttpError {
    if reason.contains(WRONG_CERTIFICATE) { HttpError::SetUp(WRONG_CERTIFICATE.into()) } else { HttpError::Network(reason) }
}

impl HttpError {
    /// Whether the same request may succeed later.
    pub fn is_worth_a_retry(&self) -> bool {
        match self {
            Self::Network(_) => true,
            Self::Status { status, .. } => matches!(status, 429 | 502 | 503 | 504),
            Self::Answer { .. } | Self::SetUp(_) => false,
        }
    }
}

/// A client of one server. Cheap to clone; clones share the session.
#[derive(Clone)]
pub struct Http {
    shared: Rc<Shared>,
}

struct Shared {
    client: imp::Client,
    invitation: Invitation,
    origin: String,
    token: String,
    session: RefCell<Option<String>>,
}

/// What the platforms send.
struct Request {
    method: &'static str,
    url: String,
    headers: Vec<(&'static str, String)>,
    body: Option<Bytes>,
}

/// What the platforms receive; the body comes in pieces, or ends with the reason it broke.
struct Response {
    status: u16,
    body: LocalBoxStream<'static, Result<Bytes, String>>,
}

impl Http {
    /// A client for the server of an invitation. Natively its certificate must be the one the invitation names, if it
    /// names one.
    pub fn new(invitation: &Invitation) -> Result<Self, HttpError> {
        let client = imp::Client::new(invitation).map_err(HttpError::SetUp)?;
        let (origin, token) = (invitation.origin.trim_end_matches('/').to_owned(), invitation.secret.server_token());
        Ok(Self { shared: Rc::new(Shared { client, invitation: invitation.clone(), origin, token, session: RefCell::default() }) })
    }

    /// The invitation that the client was made from.
    pub fn invitation(&self) -> &Invitation {
        &self.shared.invitation
    }

    /// The session that later requests carry (`x-barycenter-session`).
    pub fn set_session(&self, session: Option<String>) {
        *self.shared.session.borrow_mut() = session;
    }

    /// `GET`, the answer from JSON. `path` starts with `/`.
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, HttpError> {
        read_json(path, &self.get(path).await?)
    }

    /// `GET`, the whole body.
    pub async fn get(&self, path: &str) -> Result<Bytes, HttpError> {
        self.collect(self.ask("GET", path, Vec::new(), None).await?).await
    }

    /// `GET` of bytes `range.start .. range.end` of a file; an answer of another length is an error.
    pub async fn get_range(&self, path: &str, range: Range<u64>) -> Result<Bytes, HttpError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let header = ("range", format!("bytes={}-{}", range.start, range.end - 1));
        let response = self.ask("GET", path, vec![header], None).await?;
        let status = response.status;
        let body = self.collect(response).await?;
        let wanted = range.end - range.start;
        if status != 206 && !(status == 200 && range.start == 0) || body.len() as u64 != wanted {
            let what = format!("{} bytes with status {status}, {wanted} bytes with status 206 were expected", body.len());
            return Err(HttpError::Answer { path: path.to_owned(), what });
        }
        Ok(body)
    }

    /// `POST` of JSON, the answer from JSON.
    pub async fn post_json<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, HttpError> {
        let body = self.post(path, body).await?;
        read_json(path, &body)
    }

    /// `POST` of JSON, the answer as bytes (empty for 204).
    pub async fn post(&self, path: &str, body: &impl Serialize) -> Result<Bytes, HttpError> {
        let body = serde_json::to_vec(body).map_err(|error| HttpError::SetUp(format!("a request to {path} has no JSON form: {error}")))?;
        let header = ("content-type", "application/json".to_owned());
        self.collect(self.ask("POST", path, vec![header], Some(body.into())).await?).await
    }

    /// `PUT` of bytes.
    pub async fn put(&self, path: &str, body: Bytes) -> Result<(), HttpError> {
        let header = ("content-type", "application/octet-stream".to_owned());
        self.collect(self.ask("PUT", path, vec![header], Some(body)).await?).await.map(drop)
    }

    /// `POST` of bytes.
    pub async fn post_bytes(&self, path: &str, body: Bytes) -> Result<(), HttpError> {
        let header = ("content-type", "application/octet-stream".to_owned());
        self.collect(self.ask("POST", path, vec![header], Some(body)).await?).await.map(drop)
    }

    /// `GET` of a body that comes for as long as the server likes; an error, a sentence, is the last piece.
    pub async fn get_stream(&self, path: &str) -> Result<LocalBoxStream<'static, Result<Bytes, String>>, HttpError> {
        let body = self.ask("GET", path, Vec::new(), None).await?.body;
        Ok(body.map(|piece| piece.map_err(|reason| HttpError::Network(reason).to_string())).boxed_local())
    }

    /// `GET` of a stream of JSON lines. Ends with the stream; an error is the last item.
    pub async fn get_lines<T: DeserializeOwned + 'static>(&self, path: &str) -> Result<impl Stream<Item = Result<T, HttpError>> + Unpin + use<T>, HttpError> {
        let body = self.ask("GET", path, Vec::new(), None).await?.body;
        let path = path.to_owned();
        let state = Some((body, Vec::<u8>::new(), 0usize));
        Ok(Box::pin(futures::stream::unfold(state, move |state| {
            let path = path.clone();
            async move {
                let (mut body, mut buffer, mut searched) = state?;
                loop {
                    if let Some(end) = buffer[searched..].iter().position(|byte| *byte == b'\n').map(|at| at + searched) {
                        let rest = buffer.split_off(end + 1);
                        let line = std::mem::replace(&mut buffer, rest);
                        searched = 0;
                        if line.iter().all(u8::is_ascii_whitespace) {
                            continue;
                        }
                        return match read_json(&path, &line) {
                            Ok(value) => Some((Ok(value), Some((body, buffer, 0)))),
                            Err(error) => Some((Err(error), None)),
                        };
                    }
                    searched = buffer.len();
                    match body.next().await? {
                        Ok(_) if buffer.len() > MAX_LINE_BYTES => {
                            let what = format!("a line of more than {MAX_LINE_BYTES} bytes");
                            return Some((Err(HttpError::Answer { path, what }), None));
                        }
                        Ok(bytes) => buffer.extend_from_slice(&bytes),
                        Err(reason) => return Some((Err(HttpError::Network(reason)), None)),
                    }
                }
            }
        })))
    }

    async fn ask(&self, method: &'static str, path: &str, mut headers: Vec<(&'static str, String)>, body: Option<Bytes>) -> Result<Response, HttpError> {
        headers.push(("authorization", format!("Bearer {}", self.shared.token)));
        headers.extend(self.shared.session.borrow().clone().map(|session| ("x-barycenter-session", session)));
        let request = Request { method, url: format!("{}{path}", self.shared.origin), headers, body };
        let response = self.shared.client.send(request).await.map_err(unreached)?;
        if (200..300).contains(&response.status) {
            return Ok(response);
        }
        let status = response.status;
        let body = self.collect(response).await.unwrap_or_default();
        let sentence = serde_json::from_slice::<ApiError>(&body).map_or_else(|_| format!("the server answered {path} with status {status}"), |answer| answer.error);
        Err(HttpError::Status { status, sentence })
    }

    async fn collect(&self, mut response: Response) -> Result<Bytes, HttpError> {
        let Some(first) = response.body.next().await else { return Ok(Bytes::new()) };
        let first = first.map_err(HttpError::Network)?;
        let Some(second) = response.body.next().await else { return Ok(first) };
        let mut all = Vec::from(first);
        all.extend_from_slice(&second.map_err(HttpError::Network)?);
        while let Some(bytes) = response.body.next().await {
            all.extend_from_slice(&bytes.map_err(HttpError::Network)?);
        }
        Ok(all.into())
    }
}

fn read_json<T: DeserializeOwned>(path: &str, body: &[u8]) -> Result<T, HttpError> {
    serde_json::from_slice(body).map_err(|error| HttpError::Answer { path: path.to_owned(), what: error.to_string() })
}
