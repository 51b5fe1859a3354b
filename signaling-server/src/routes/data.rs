//! Models and data sets.

use super::{AppState, blocking, body, number, text_header};
use crate::error::{Answer, Refusal};
use crate::ranges;
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use barycenter_protocol::api::{DatasetInfo, DatasetPreview, ModelInfo};
use serde::Deserialize;
use std::ops::Range;

/// `GET /api/models`.
pub async fn models(State(app): AppState) -> Answer<Json<Vec<ModelInfo>>> {
    blocking(move || Ok(Json(app.models.list().iter().map(|model| model.info.clone()).collect()))).await
}

/// `GET /api/models/{id}/manifest`.
pub async fn manifest(State(app): AppState, Path(id): Path<String>) -> Answer<Response> {
    let manifest = blocking(move || app.models.get(&id)?.manifest()).await?;
    Ok(([(header::CACHE_CONTROL, "no-cache")], Json(&*manifest)).into_response())
}

/// `GET /api/models/{id}/files/{index}`.
pub async fn file(State(app): AppState, Path((id, index)): Path<(String, String)>, headers: HeaderMap) -> Answer<Response> {
    let index: usize = number("weight file", &index)?;
    let (path, tag) = blocking(move || {
        let model = app.models.get(&id)?;
        let manifest = model.manifest()?;
        Ok((model.file(&manifest, index)?, format!("{}-{index}", manifest.model_hash)))
    })
    .await?;
    ranges::file(&path, &tag, &headers).await
}

/// `GET /api/datasets`.
pub async fn datasets(State(app): AppState) -> Answer<Json<Vec<DatasetInfo>>> {
    blocking(move || app.datasets.list().map(Json)).await
}

/// Query of an upload.
#[derive(Deserialize)]
pub struct UploadQuery {
    name: Option<String>,
}

/// `POST /api/datasets?name=…`.
pub async fn upload(State(app): AppState, Query(query): Query<UploadQuery>, headers: HeaderMap, bytes: Result<Bytes, BytesRejection>) -> Answer<Json<DatasetInfo>> {
    let bytes = body(bytes)?;
    let content_type = text_header(&headers, header::CONTENT_TYPE.as_str()).map(str::to_owned);
    let name = query.name.unwrap_or_default();
    let now = crate::host::unix_millis() / 1000;
    blocking(move || app.datasets.upload(&name, content_type.as_deref(), &bytes, now).map(Json)).await
}

/// Query of a preview.
#[derive(Deserialize)]
pub struct PreviewQuery {
    model: Option<String>,
}

/// `GET /api/datasets/{id}/preview?model=…`.
pub async fn preview(State(app): AppState, Path(id): Path<String>, Query(query): Query<PreviewQuery>) -> Answer<Json<DatasetPreview>> {
    let model = needed(query.model)?;
    blocking(move || app.datasets.preview(&id, &*app.models.get(&model)?).map(Json)).await
}

/// Query of samples.
#[derive(Deserialize)]
pub struct SamplesQuery {
    model: Option<String>,
    range: Option<String>,
}

/// `GET /api/datasets/{id}/samples?model=…&range=a..b`.
pub async fn samples(State(app): AppState, Path(id): Path<String>, Query(query): Query<SamplesQuery>) -> Answer<Response> {
    let model = needed(query.model)?;
    blocking(move || {
        let set = app.datasets.tokenised(&id, &*app.models.get(&model)?)?;
        let range = match &query.range {
            None => 0..set.samples.len(),
            Some(text) => parse_range(text).filter(|range| range.end <= set.samples.len()).ok_or_else(|| {
                Refusal::bad(format!("the range {} is not within the samples 0..{}: write it as a..b", crate::models::clip(text), set.samples.len()))
            })?,
        };
        Ok(Json(&set.samples[range]).into_response())
    })
    .await
}

fn needed(model: Option<String>) -> Answer<String> {
    model.ok_or_else(|| Refusal::bad("the call names no model: add ?model=…"))
}

fn parse_range(text: &str) -> Option<Range<usize>> {
    let (start, end) = text.split_once("..")?;
    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
    (start <= end).then_some(start..end)
}
