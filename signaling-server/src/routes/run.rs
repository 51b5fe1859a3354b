//! Runs, checkpoints, adapters and questions.

use super::{App, AppState, blocking, json, number};
use crate::checkpoint::{self, CheckpointKey, Expected};
use crate::error::{Answer, Refusal};
use crate::host::{Command, Examination, MAX_NEW_TOKENS, Wish};
use crate::run_request::{self, PreparedRun};
use crate::side;
use crate::store::StoredRun;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use barycenter_protocol::api::{AskReply, AskRequest, PlanPreview, RunInfo, RunRequest, RunView};
use barycenter_protocol::control::GenerateRequest;
use barycenter_protocol::{Generation, RunId};
use std::sync::Arc;
use std::time::Instant;

/// Tokens of an answer, if the question does not say.
const NEW_TOKENS: u32 = 64;

/// `POST /api/plan`.
pub async fn plan(State(app): AppState, body: Result<Bytes, BytesRejection>) -> Answer<Json<PlanPreview>> {
    let request: RunRequest = json(body)?;
    let (prepared, _) = prepare(&app, request).await?;
    app.host.ask(|reply| Command::Plan(Box::new(prepared), reply)).await.map(Json)
}

/// `POST /api/runs`.
pub async fn start(State(app): AppState, body: Result<Bytes, BytesRejection>) -> Answer<Json<RunInfo>> {
    let request: RunRequest = json(body)?;
    let (prepared, examination) = prepare(&app, request).await?;
    app.host.ask(|reply| Command::Start(Box::new(prepared), examination, reply)).await.map(Json)
}

async fn prepare(app: &Arc<App>, request: RunRequest) -> Answer<(PreparedRun, Option<Box<Examination>>)> {
    let app = app.clone();
    blocking(move || {
        let model = app.models.get(&request.model)?;
        let set = app.datasets.tokenised(&request.dataset, &model)?;
        let prepared = run_request::prepare(&request, &model, &set)?;
        let examination = Examination::new(&model, &set, prepared.exact_match_rows)?;
        Ok((prepared, examination))
    })
    .await
}

/// `GET /api/runs`.
pub async fn list(State(app): AppState) -> Answer<Json<Vec<RunInfo>>> {
    blocking(move || Ok(Json(app.store.runs()?.into_iter().map(with_seconds).collect()))).await
}

/// `GET /api/runs/{id}`.
pub async fn info(State(app): AppState, Path(id): Path<String>) -> Answer<Json<RunInfo>> {
    Ok(Json(with_seconds(find(&app, &id)?)))
}

/// `GET /api/runs/{id}/view`.
pub async fn view(State(app): AppState, Path(id): Path<String>) -> Answer<Json<RunView>> {
    let run = RunId(number("run", &id)?);
    if let Some(view) = app.host.ask(|reply| Command::View(run, reply)).await? {
        return Ok(Json(view));
    }
    app.store.view(run)?.map(Json).ok_or_else(|| no_run(run))
}

/// `POST /api/runs/{id}/pause`.
pub async fn pause(app: AppState, id: Path<String>) -> Answer<StatusCode> {
    control(app, id, Wish::Pause).await
}

/// `POST /api/runs/{id}/resume`.
pub async fn resume(app: AppState, id: Path<String>) -> Answer<StatusCode> {
    control(app, id, Wish::Resume).await
}

/// `POST /api/runs/{id}/stop`.
pub async fn stop(app: AppState, id: Path<String>) -> Answer<StatusCode> {
    control(app, id, Wish::Stop).await
}

async fn control(State(app): AppState, Path(id): Path<String>, wish: Wish) -> Answer<StatusCode> {
    let run = find(&app, &id)?.info.run;
    app.host.ask(|reply| Command::Control(run, wish, reply)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `PUT /api/runs/{id}/checkpoint/{generation}/{epoch}/{step}/{part}`.
pub async fn put_checkpoint(State(app): AppState, Path((id, generation, epoch, step, part)): Path<(String, String, String, String, String)>, body: Body) -> Answer<StatusCode> {
    let run = find(&app, &id)?;
    let key = CheckpointKey {
        run: run.info.run,
        generation: Generation(number("generation", &generation)?),
        epoch: number("epoch", &epoch)?,
        step: number("step", &step)?,
    };
    let _: u16 = number("part", &part)?;
    if key.epoch > run.info.epochs || key.step > run.info.steps_per_epoch {
        return Err(Refusal::bad(format!("the run has no epoch {} step {}: the device runs another version, reload it", key.epoch, key.step)));
    }
    let expected = {
        let app = app.clone();
        Arc::new(blocking(move || Expected::of(app.models.get(&run.spec.model)?.config()?, &run.spec).map_err(Refusal::conflict)).await?)
    };
    let bytes = axum::body::to_bytes(body, expected.max_bytes()).await.map_err(|_| {
        Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the part is larger than the {} bytes of a whole checkpoint, or did not arrive completely: send it again", expected.max_bytes()))
    })?;
    let reader = expected.clone();
    let tensors = blocking(move || reader.read_part(&bytes).map_err(Refusal::bad)).await?;
    app.host.ask(|reply| Command::Part(key, tensors, expected, reply)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /api/runs/{id}/checkpoint`.
pub async fn get_checkpoint(State(app): AppState, Path(id): Path<String>) -> Answer<Response> {
    let run = find(&app, &id)?.info.run;
    let bytes = blocking(move || read_checkpoint(&app, run)).await?;
    Ok(download(bytes, None))
}

/// `GET /api/runs/{id}/adapter/adapter_model.safetensors`.
pub async fn adapter(State(app): AppState, Path(id): Path<String>) -> Answer<Response> {
    let run = find(&app, &id)?.info.run;
    let bytes = blocking(move || checkpoint::adapter(&read_checkpoint(&app, run)?).map_err(Refusal::conflict)).await?;
    Ok(download(bytes, Some("adapter_model.safetensors")))
}

/// `GET /api/runs/{id}/adapter/adapter_config.json`.
pub async fn adapter_config(State(app): AppState, Path(id): Path<String>) -> Answer<Response> {
    let spec = find(&app, &id)?.spec;
    let config = serde_json::json!({
        "method": "parallel_adapter",
        "version": 1,
        "reduction": spec.reduction,
        "taps": spec.tapped().collect::<Vec<_>>(),
        "gate_temperature": 0.1,
        "base_model": spec.model,
        "base_model_hash": spec.model_hash,
        "weights": spec.weights,
        "activations": "f32",
    });
    let disposition = [(header::CONTENT_DISPOSITION, "attachment; filename=\"adapter_config.json\"")];
    Ok((disposition, Json(config)).into_response())
}

/// `POST /api/ask`.
pub async fn ask(State(app): AppState, body: Result<Bytes, BytesRejection>) -> Answer<Json<AskReply>> {
    let request: AskRequest = json(body)?;
    let asked_at = Instant::now();
    let (run, tokenizer, generate, memory) = {
        let app = app.clone();
        blocking(move || {
            let run = asked_run(&app, request.run)?;
            let model = app.models.get(&run.info.model)?;
            let (config, tokenizer) = (model.config()?, model.tokenizer()?);
            if request.prompt.trim().is_empty() {
                return Err(Refusal::bad("there is no prompt: write what is to be answered"));
            }
            let prompt = tokenizer.encode_prompt(&request.prompt).map_err(|error| Refusal::bad(error.to_string()))?;
            let room = config.max_positions.saturating_sub(prompt.len()) as u32;
            let max_new_tokens = request.max_new_tokens.unwrap_or(NEW_TOKENS.min(room)).clamp(1, MAX_NEW_TOKENS);
            if max_new_tokens > room {
                let (tokens, context) = (prompt.len(), config.max_positions);
                return Err(Refusal::bad(format!("the prompt has {tokens} tokens and up to {max_new_tokens} are answered, but the model's context is {context}: shorten the prompt")));
            }
            let stored = side::model_cost(config, run.spec.reduction, run.spec.tap_every, model.info.bytes, 1.0).map_err(Refusal::conflict)?;
            let cost = side::held_as(stored, config, &*model.manifest()?, run.spec.weights).map_err(|error| Refusal::conflict(error.to_string()))?;
            let memory = side::answering_memory_bytes(&cost, config.vocab);
            let spec = crate::host::lean(&run.spec);
            let generate = GenerateRequest { request: 0, spec, run: Some(run.info.run), prompts: vec![prompt], max_new_tokens, base: true, tuned: true };
            Ok((run.info.run, tokenizer, Box::new(generate), memory))
        })
        .await?
    };
    let (answers, answered_by) = app.host.ask(|reply| Command::Ask(generate, memory, reply)).await?;
    let text = |answers: &Option<Vec<Vec<u32>>>| {
        let ids = answers.as_ref().and_then(|a| a.first()).ok_or_else(|| Refusal::conflict(format!("{answered_by} gave no answer: ask again")))?;
        tokenizer.decode_response(ids).map_err(|error| Refusal::conflict(error.to_string()))
    };
    let (base, tuned) = (text(&answers.base)?, text(&answers.tuned)?);
    Ok(Json(AskReply { base, tuned, run, answered_by, seconds: asked_at.elapsed().as_secs_f64() }))
}

/// The run that was asked for, or the newest with a checkpoint.
fn asked_run(app: &App, run: Option<RunId>) -> Answer<StoredRun> {
    let has_checkpoint = |run: &StoredRun| checkpoint::path(&app.data.run(run.info.run.0)).is_file();
    match run {
        Some(run) => {
            let stored = app.store.run(run)?.ok_or_else(|| no_run(run))?;
            if has_checkpoint(&stored) { Ok(stored) } else { Err(Refusal::conflict(format!("run {run} has no checkpoint yet: wait for its first one"))) }
        }
        None => app.store.runs()?.into_iter().find(has_checkpoint).ok_or_else(|| Refusal::conflict("nothing has been tuned yet: start a run first")),
    }
}

fn read_checkpoint(app: &App, run: RunId) -> Answer<Vec<u8>> {
    match std::fs::read(checkpoint::path(&app.data.run(run.0))) {
        Ok(bytes) => Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Refusal::missing(format!("run {run} has no checkpoint yet: wait for its first one"))),
        Err(error) => Err(error.into()),
    }
}

fn download(bytes: Vec<u8>, name: Option<&str>) -> Response {
    let mut response = ([(header::CONTENT_TYPE, "application/octet-stream"), (header::CACHE_CONTROL, "no-store")], bytes).into_response();
    if let Some(value) = name.and_then(|name| format!("attachment; filename=\"{name}\"").parse().ok()) {
        response.headers_mut().insert(header::CONTENT_DISPOSITION, value);
    }
    response
}

fn find(app: &App, id: &str) -> Answer<StoredRun> {
    let run = RunId(number("run", id)?);
    app.store.run(run)?.ok_or_else(|| no_run(run))
}

fn no_run(run: RunId) -> Refusal {
    Refusal::missing(format!("there is no run {run}: choose one of the list"))
}

fn with_seconds(run: StoredRun) -> RunInfo {
    let mut info = run.info;
    if crate::host::is_active(info.state) {
        info.seconds = crate::host::seconds_since(info.started_at);
    }
    info
}
