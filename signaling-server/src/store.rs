//! The data base: runs and their curves, data sets, devices, and what a restart needs.

use barycenter_core::coordinator::RunSnapshot;
use barycenter_protocol::RunId;
use barycenter_protocol::api::{EpochView, ExampleView, HeldOutPoint, LossPoint, RunInfo, RunState, RunView};
use barycenter_protocol::control::{JoinRequest, RunSpec};
use barycenter_protocol::plan::Plan;
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Tables, made where absent. A later version adds columns by `user_version`.
const SCHEMA: &str = "
create table if not exists meta (key text primary key, value text not null) strict;
create table if not exists devices (token text primary key, name text not null, kind text not null, backend text not null,
  gflops real not null, last_seen integer not null) strict;
create table if not exists datasets (id text primary key, name text not null, format text not null, train_rows integer not null,
  held_out_rows integer not null, created integer not null) strict;
create table if not exists runs (id integer primary key autoincrement, model text not null, dataset text not null, spec text not null,
  started_at integer not null, state text not null, note text not null, epochs integer not null, steps_per_epoch integer not null,
  exact_match_before real, exact_match_after real, exact_match_rows integer not null, seconds real not null, plan text, example text) strict;
create table if not exists losses (run integer not null, at integer not null, loss real not null, primary key (run, at)) strict, without rowid;
create table if not exists held_out (run integer not null, at integer not null, loss real not null, primary key (run, at)) strict, without rowid;
create table if not exists epochs (run integer not null, epoch integer not null, view text not null, primary key (run, epoch)) strict, without rowid;
";

/// A data set as kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredDataset {
    /// Id in paths.
    pub id: String,
    /// The uploaded file's name, for people and messages only.
    pub name: String,
    /// Ending that tells the format, without the dot.
    pub format: String,
    /// Rows to train on.
    pub train_rows: u32,
    /// Rows held out.
    pub held_out_rows: u32,
}

/// A run as kept.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredRun {
    /// Facts.
    pub info: RunInfo,
    /// Its mathematics.
    pub spec: RunSpec,
    /// Held-out prompts to answer.
    pub exact_match_rows: u32,
    /// Plan last in force.
    pub plan: Option<Plan>,
    /// Example.
    pub example: Option<ExampleView>,
}

/// The data base. Calls are short and synchronous; none is made with another lock held.
#[derive(Debug)]
pub struct Store(Mutex<Connection>);

type Result<T> = rusqlite::Result<T>;

impl Store {
    /// Opens or makes the data base.
    pub fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "NORMAL")?;
        connection.busy_timeout(std::time::Duration::from_secs(5))?;
        connection.execute_batch(SCHEMA)?;
        Ok(Self(Mutex::new(connection)))
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn meta(&self, key: &str) -> Result<Option<String>> {
        self.lock().query_row("select value from meta where key = ?1", [key], |row| row.get(0)).optional()
    }

    fn set_meta(&self, key: &str, value: Option<&str>) -> Result<()> {
        match value {
            Some(value) => self.lock().execute("insert into meta values (?1, ?2) on conflict (key) do update set value = ?2", [key, value])?,
            None => self.lock().execute("delete from meta where key = ?1", [key])?,
        };
        Ok(())
    }

    /// The highest node id ever given.
    pub fn last_node(&self) -> Result<u32> {
        Ok(self.meta("last_node")?.and_then(|v| v.parse().ok()).unwrap_or(0))
    }

    /// Keeps it.
    pub fn set_last_node(&self, last: u32) -> Result<()> {
        self.set_meta("last_node", Some(&last.to_string()))
    }

    /// What the coordinator resumes from; `None` too when it is of another version and cannot be read.
    pub fn snapshot(&self) -> Result<Option<RunSnapshot>> {
        Ok(self.meta("coordinator")?.and_then(|text| {
            serde_json::from_str(&text).inspect_err(|error| log::warn!("the kept run cannot be resumed: {error}")).ok()
        }))
    }

    /// Keeps it, or forgets it.
    pub fn set_snapshot(&self, snapshot: Option<&RunSnapshot>) -> Result<()> {
        self.set_meta("coordinator", snapshot.map(to_json).as_deref())
    }

    /// Tokens of the devices that the current run was started without.
    pub fn left_out(&self) -> Result<BTreeSet<String>> {
        Ok(self.meta("left_out")?.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default())
    }

    /// Keeps them.
    pub fn set_left_out(&self, tokens: &BTreeSet<String>) -> Result<()> {
        self.set_meta("left_out", Some(&to_json(tokens)))
    }

    /// Notes that a device joined.
    pub fn see_device(&self, device: &JoinRequest, now: u64) -> Result<()> {
        self.lock().execute(
            "insert into devices values (?1, ?2, ?3, ?4, ?5, ?6) on conflict (token) do update set name = ?2, kind = ?3, backend = ?4, gflops = ?5, last_seen = ?6",
            params![device.device_token, device.name, to_json(&device.kind), to_json(&device.backend), device.gflops, now as i64],
        )?;
        Ok(())
    }

    /// Every uploaded data set, oldest first.
    pub fn datasets(&self) -> Result<Vec<StoredDataset>> {
        let connection = self.lock();
        let mut statement = connection.prepare("select id, name, format, train_rows, held_out_rows from datasets order by created, id")?;
        let rows = statement.query_map([], |row| {
            Ok(StoredDataset { id: row.get(0)?, name: row.get(1)?, format: row.get(2)?, train_rows: row.get(3)?, held_out_rows: row.get(4)? })
        })?;
        rows.collect()
    }

    /// Adds one.
    pub fn add_dataset(&self, dataset: &StoredDataset, now: u64) -> Result<()> {
        self.lock().execute(
            "insert into datasets values (?1, ?2, ?3, ?4, ?5, ?6)",
            params![dataset.id, dataset.name, dataset.format, dataset.train_rows, dataset.held_out_rows, now as i64],
        )?;
        Ok(())
    }

    /// Adds a run and gives its number.
    pub fn add_run(&self, spec: &RunSpec, started_at: u64, steps_per_epoch: u32, exact_match_rows: u32) -> Result<RunId> {
        let connection = self.lock();
        connection.execute(
            "insert into runs (model, dataset, spec, started_at, state, note, epochs, steps_per_epoch, exact_match_rows, seconds)
             values (?1, ?2, ?3, ?4, ?5, '', ?6, ?7, ?8, 0.0)",
            params![spec.model, spec.dataset, to_json(spec), started_at as i64, to_json(&RunState::Waiting), spec.epochs, steps_per_epoch, exact_match_rows],
        )?;
        Ok(RunId(connection.last_insert_rowid() as u64))
    }

    /// Keeps what changes in a run.
    pub fn update_run(&self, run: &StoredRun) -> Result<()> {
        let info = &run.info;
        self.lock().execute(
            "update runs set state = ?2, note = ?3, exact_match_before = ?4, exact_match_after = ?5, seconds = ?6, plan = ?7, example = ?8 where id = ?1",
            params![
                info.run.0 as i64,
                to_json(&info.state),
                info.note,
                info.exact_match_before,
                info.exact_match_after,
                info.seconds,
                run.plan.as_ref().map(to_json),
                run.example.as_ref().map(to_json)
            ],
        )?;
        Ok(())
    }

    /// Keeps the loss of a step; a redone step replaces it.
    pub fn set_loss(&self, run: RunId, point: LossPoint) -> Result<()> {
        self.lock().execute("insert or replace into losses values (?1, ?2, ?3)", params![run.0 as i64, point.at, point.loss])?;
        Ok(())
    }

    /// Keeps a held-out loss.
    pub fn set_held_out(&self, run: RunId, point: HeldOutPoint) -> Result<()> {
        self.lock().execute("insert or replace into held_out values (?1, ?2, ?3)", params![run.0 as i64, point.at, point.loss])?;
        Ok(())
    }

    /// Keeps a finished epoch.
    pub fn set_epoch(&self, run: RunId, epoch: &EpochView) -> Result<()> {
        self.lock().execute("insert or replace into epochs values (?1, ?2, ?3)", params![run.0 as i64, epoch.epoch, to_json(epoch)])?;
        Ok(())
    }

    /// Every run, newest first.
    pub fn runs(&self) -> Result<Vec<StoredRun>> {
        self.select_runs("order by id desc", params![])
    }

    /// One run.
    pub fn run(&self, run: RunId) -> Result<Option<StoredRun>> {
        Ok(self.select_runs("where id = ?1", params![run.0 as i64])?.pop())
    }

    fn select_runs(&self, rest: &str, values: impl rusqlite::Params) -> Result<Vec<StoredRun>> {
        let connection = self.lock();
        let mut statement = connection.prepare(&format!(
            "select id, model, dataset, spec, started_at, state, note, epochs, steps_per_epoch, exact_match_before, exact_match_after,
             exact_match_rows, seconds, plan, example,
             (select loss from losses where run = runs.id order by at desc limit 1),
             (select loss from held_out where run = runs.id order by at desc limit 1) from runs {rest}"
        ))?;
        let rows = statement.query_map(values, |row| {
            let info = RunInfo {
                run: RunId(row.get::<_, i64>(0)? as u64),
                model: row.get(1)?,
                dataset: row.get(2)?,
                started_at: row.get::<_, i64>(4)? as u64,
                state: json_column(row, 5)?,
                note: row.get(6)?,
                epochs: row.get(7)?,
                steps_per_epoch: row.get(8)?,
                exact_match_before: row.get(9)?,
                exact_match_after: row.get(10)?,
                loss: row.get(15)?,
                held_out_loss: row.get(16)?,
                seconds: row.get(12)?,
            };
            Ok(StoredRun {
                info,
                spec: json_column(row, 3)?,
                exact_match_rows: row.get(11)?,
                plan: optional_json_column(row, 13)?,
                example: optional_json_column(row, 14)?,
            })
        })?;
        rows.collect()
    }

    /// A run with its curves, as a dashboard shows it.
    pub fn view(&self, run: RunId) -> Result<Option<RunView>> {
        let Some(stored) = self.run(run)? else { return Ok(None) };
        let connection = self.lock();
        let id = run.0 as i64;
        let mut statement = connection.prepare("select at, loss from losses where run = ?1 order by at")?;
        let losses = statement.query_map([id], |row| Ok(LossPoint { at: row.get(0)?, loss: row.get(1)? }))?.collect::<Result<Vec<_>>>()?;
        let mut statement = connection.prepare("select at, loss from held_out where run = ?1 order by at")?;
        let held_out = statement.query_map([id], |row| Ok(HeldOutPoint { at: row.get(0)?, loss: row.get(1)? }))?.collect::<Result<Vec<_>>>()?;
        let mut statement = connection.prepare("select view from epochs where run = ?1 order by epoch")?;
        let epochs = statement.query_map([id], |row| json_column::<EpochView>(row, 0))?.collect::<Result<Vec<_>>>()?;
        let steps_done = losses.last().map_or(0, |point| point.at + 1);
        let per_epoch = stored.info.steps_per_epoch.max(1);
        Ok(Some(RunView {
            epoch: steps_done.saturating_sub(1) / per_epoch,
            step: steps_done.saturating_sub(1) % per_epoch,
            info: stored.info,
            plan: stored.plan,
            phase: None,
            seconds_left: None,
            losses,
            held_out,
            epochs,
            cache_bytes: 0,
            example: stored.example,
        }))
    }
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("the protocol's types have string keys and no failing serialiser")
}

fn json_column<T: DeserializeOwned>(row: &rusqlite::Row<'_>, column: usize) -> Result<T> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|error| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, error.into()))
}

fn optional_json_column<T: DeserializeOwned>(row: &rusqlite::Row<'_>, column: usize) -> Result<Option<T>> {
    match row.get_ref(column)? {
        rusqlite::types::ValueRef::Null => Ok(None),
        _ => json_column(row, column).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use barycenter_protocol::control::PhaseKind;

    fn spec() -> RunSpec {
        serde_json::from_value(serde_json::json!({
            "model": "m", "model_hash": "h", "dataset": "d", "dataset_hash": "h", "train_samples": 10, "held_out_samples": 2,
            "sample_sizes": [], "layers": 2, "reduction": 8, "batch": 4, "epochs": 3, "learning_rate": 1e-3, "warmup_steps": 1,
            "weight_decay": 0.01, "clip_norm": 1.0, "seed": 7, "checkpoint_steps": 5
        }))
        .unwrap()
    }

    #[test]
    fn a_run_and_its_curves_survive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.sqlite3");
        let run = {
            let store = Store::open(&path).unwrap();
            let run = store.add_run(&spec(), 5, 3, 10).unwrap();
            for (at, loss) in [(0, 3.0), (1, 2.0), (1, 2.5), (2, 1.0)] {
                store.set_loss(run, LossPoint { at, loss }).unwrap();
            }
            store.set_held_out(run, HeldOutPoint { at: 3, loss: 1.5 }).unwrap();
            let epoch = EpochView { epoch: 0, phase: PhaseKind::Fill, seconds: 1.0, loss: 2.0, backbone_seconds: 1.0, side_seconds: 1.0, wait_seconds: 0.0 };
            store.set_epoch(run, &epoch).unwrap();
            let mut stored = store.run(run).unwrap().unwrap();
            stored.info.state = RunState::Done;
            stored.info.exact_match_after = Some(0.9);
            store.update_run(&stored).unwrap();
            run
        };
        let view = Store::open(&path).unwrap().view(run).unwrap().unwrap();
        assert_eq!((view.info.state, view.info.exact_match_after, view.info.loss, view.info.held_out_loss), (RunState::Done, Some(0.9), Some(1.0), Some(1.5)));
        assert_eq!(view.losses.iter().map(|p| p.loss).collect::<Vec<_>>(), [3.0, 2.5, 1.0]);
        assert_eq!(view.epochs.len(), 1);
    }
}
