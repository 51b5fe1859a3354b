//! What can go wrong, as answers: a status and one sentence.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use barycenter_protocol::api::ApiError;

/// Why the server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The data folder cannot be used.
    #[error("the data folder {path} could not be used ({reason}): choose another with --data")]
    DataDir {
        /// Path.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// The data base cannot be opened or read.
    #[error("the data base in the data folder could not be used ({0}): move barycenter.sqlite3 away to start anew")]
    Database(String),
    /// Another server runs over the same folder.
    #[error("the data folder {path} is in use by a server that runs: end that one first, or choose another folder with --data")]
    DataDirInUse {
        /// Path.
        path: String,
    },
    /// Certificate or key cannot be used.
    #[error("the certificate could not be used ({0}): give a PEM certificate chain and its PEM key with --cert and --key")]
    Certificate(String),
    /// The port is taken or forbidden.
    #[error("the address {address} could not be listened on ({reason}): choose another with --listen, as in --listen 0.0.0.0:8443, or leave it out to get a free one")]
    Listen {
        /// Address.
        address: String,
        /// The system's words.
        reason: String,
    },
    /// A model folder given on the command line does not exist.
    #[error("the models folder {path} does not exist: give a folder whose sub-folders hold config.json, model.safetensors and tokenizer.json")]
    NoModelsFolder {
        /// Path.
        path: String,
    },
    /// The system's random numbers failed.
    #[error("the system gave no random numbers ({0}): the room secret cannot be made without them")]
    Random(String),
}

impl From<rusqlite::Error> for ServerError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Database(error.to_string())
    }
}

/// An answer that says what went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Status of the answer.
    pub status: StatusCode,
    /// One sentence: what was expected, what came, what to do.
    pub sentence: String,
}

/// What handlers return.
pub type Answer<T> = Result<T, Refusal>;

impl Refusal {
    /// With any status.
    pub fn new(status: StatusCode, sentence: impl Into<String>) -> Self {
        Self { status, sentence: sentence.into() }
    }

    /// 400: the request itself is wrong.
    pub fn bad(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, sentence)
    }

    /// 404: there is no such thing.
    pub fn missing(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, sentence)
    }

    /// 409: right request, wrong time.
    pub fn conflict(sentence: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, sentence)
    }

    /// 503: the server is going down or a part of it did not answer.
    pub fn unavailable() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "the server is shutting down: try again when it is back")
    }

    /// 500, logged: nothing the caller did.
    pub fn internal(what: impl std::fmt::Display) -> Self {
        log::error!("{what}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the server failed ({what}): its log says more"))
    }
}

impl From<rusqlite::Error> for Refusal {
    fn from(error: rusqlite::Error) -> Self {
        Self::internal(format!("data base: {error}"))
    }
}

impl From<std::io::Error> for Refusal {
    fn from(error: std::io::Error) -> Self {
        Self::internal(format!("data folder: {error}"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(ApiError { error: self.sentence })).into_response()
    }
}
