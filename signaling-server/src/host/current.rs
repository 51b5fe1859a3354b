//! The current run: starting it, a person's wishes, and the records it leaves.

use super::{Examination, Host, Wish, unix_millis};
use crate::error::{Answer, Refusal};
use crate::run_request::{PreparedRun, SMALL_MODEL_BYTES};
use crate::side::answering_memory_bytes;
use crate::store::{Store, StoredRun};
use barycenter_core::coordinator::{CoordinatorInput, RunProgress, RunSnapshot, RunStart};
use barycenter_protocol::RunId;
use barycenter_protocol::api::{EpochView, HeldOutPoint, LossPoint, PlanPreview, RunInfo, RunState};
use barycenter_protocol::control::PhaseKind;
use std::collections::BTreeMap;

/// The newest run, over or not.
pub struct CurrentRun {
    /// What the data base knows of it.
    pub stored: StoredRun,
    /// Held-out prompts, if they are to be answered.
    pub examination: Option<Box<Examination>>,
    /// Memory that answering takes.
    pub generate_memory_bytes: u64,
    /// Loss by optimiser steps before it.
    pub losses: BTreeMap<u32, f64>,
    /// Held-out loss by optimiser steps before it.
    pub held_out: BTreeMap<u32, f64>,
    /// Finished epochs.
    pub epochs: BTreeMap<u32, EpochView>,
    /// Phase.
    pub phase: Option<PhaseKind>,
    /// Current epoch.
    pub epoch: u32,
    /// Current step in it.
    pub step: u32,
    /// Predicted.
    pub seconds_left: Option<f64>,
    /// Optimiser steps before the checkpoint that lies in its place; 0 if none does.
    pub checkpoint_steps: u32,
    /// All steps are done, the held-out prompts are being answered.
    pub finishing: bool,
}

impl CurrentRun {
    fn new(stored: StoredRun, examination: Option<Box<Examination>>, generate_memory_bytes: u64) -> Self {
        Self {
            stored,
            examination,
            generate_memory_bytes,
            losses: BTreeMap::new(),
            held_out: BTreeMap::new(),
            epochs: BTreeMap::new(),
            phase: None,
            epoch: 0,
            step: 0,
            seconds_left: None,
            checkpoint_steps: 0,
            finishing: false,
        }
    }

    /// Whether it may still make steps or is being finished.
    pub fn is_active(&self) -> bool {
        is_active(self.stored.info.state)
    }

    /// Facts as of now.
    pub fn info(&self) -> RunInfo {
        let mut info = self.stored.info.clone();
        info.loss = self.losses.last_key_value().map(|(_, loss)| *loss);
        info.held_out_loss = self.held_out.last_key_value().map(|(_, loss)| *loss);
        if self.is_active() {
            info.seconds = seconds_since(info.started_at);
        }
        info
    }
}

/// Whether a state is not final.
pub fn is_active(state: RunState) -> bool {
    !matches!(state, RunState::Done | RunState::Stopped | RunState::Failed)
}

/// Seconds since a moment in Unix seconds.
pub fn seconds_since(started_at: u64) -> f64 {
    (unix_millis() as f64 / 1000.0 - started_at as f64).max(0.0)
}

/// What the data base knows of the newest run after a start of the server. A run that nobody can resume is closed.
pub fn after_start(store: &Store, resume: Option<&RunSnapshot>) -> rusqlite::Result<Option<CurrentRun>> {
    let resumed = resume.map(|resume| resume.start.run);
    let mut current = None;
    for mut stored in store.runs()? {
        let run = stored.info.run;
        if is_active(stored.info.state) && resumed != Some(run) {
            let all_steps = stored.info.epochs * stored.info.steps_per_epoch;
            let done = store.view(run)?.and_then(|view| view.losses.last().map(|point| point.at + 1)).unwrap_or(0);
            (stored.info.state, stored.info.note) = if done >= all_steps {
                (RunState::Done, "the server stopped before the held-out prompts were answered".into())
            } else {
                (RunState::Failed, "the server stopped before anything of the run could be kept: start it again".into())
            };
            store.update_run(&stored)?;
        }
        if current.is_none() || resumed == Some(run) {
            current = Some(stored);
        }
    }
    let Some(stored) = current else { return Ok(None) };
    let view = store.view(stored.info.run)?;
    let mut run = CurrentRun::new(stored, None, 0);
    if let Some(view) = view {
        run.losses = view.losses.iter().map(|point| (point.at, point.loss)).collect();
        run.held_out = view.held_out.iter().map(|point| (point.at, point.loss)).collect();
        run.epochs = view.epochs.into_iter().map(|epoch| (epoch.epoch, epoch)).collect();
        (run.epoch, run.step) = (view.epoch, view.step);
    }
    if run.is_active() {
        run.stored.info.state = RunState::Waiting;
        run.stored.info.note = "waiting for devices after a restart of the server".into();
        // The vocabulary is not kept with a run; it is the smallest part.
        run.generate_memory_bytes = resume.map_or(0, |resume| answering_memory_bytes(&resume.start.cost, 0));
        run.checkpoint_steps = resume.and_then(|resume| resume.checkpoint).map_or(0, |checkpoint| checkpoint.optimiser_steps);
    }
    Ok(Some(run))
}

impl Host {
    pub(super) fn plan(&self, prepared: &PreparedRun) -> Answer<PlanPreview> {
        let spec = &prepared.spec;
        let plan = self.coordinator.preview(&prepared.cost, spec.batch, &prepared.options).map_err(|error| Refusal::conflict(error.to_string()))?;
        let steps_per_epoch = barycenter_core::schedule::steps_per_epoch(spec);
        let steps = f64::from(steps_per_epoch);
        let seconds = steps * plan.fill_step_seconds + steps * f64::from(spec.epochs.saturating_sub(1)) * plan.train_step_seconds + plan.redistribution_seconds;
        Ok(PlanPreview { plan, cache_bytes: prepared.options.cache_bytes, seconds, steps_per_epoch, epochs: spec.epochs })
    }

    pub(super) fn start_run(&mut self, mut prepared: PreparedRun, examination: Option<Box<Examination>>) -> Answer<RunInfo> {
        if let Some(run) = self.run.as_ref().filter(|run| run.is_active()) {
            return Err(Refusal::conflict(format!("run {} is not over yet: stop it before starting another", run.stored.info.run)));
        }
        // What the planner chose now holds for the whole run, whatever later plans would choose.
        let gradients = self.plan(&prepared)?.plan.gradients;
        prepared.options.gradients = Some(gradients);
        prepared.spec.gradients = gradients;
        let steps_per_epoch = barycenter_core::schedule::steps_per_epoch(&prepared.spec);
        let run = self.store.add_run(&prepared.spec, unix_millis() / 1000, steps_per_epoch, prepared.exact_match_rows)?;
        let stored = self.store.run(run)?.ok_or_else(|| Refusal::internal("a run vanished from the data base"))?;
        let ask_first = examination.is_some() && prepared.model_bytes <= SMALL_MODEL_BYTES;
        self.run = Some(CurrentRun::new(stored, examination, prepared.generate_memory_bytes));
        self.changed = true;
        // Under whatever id they come again.
        self.left_out = prepared.options.without.iter().filter_map(|node| Some(self.nodes.get(*node)?.request.device_token.clone())).collect();
        self.store.set_left_out(&self.left_out)?;
        // Held-out answers of an earlier run would be taken for this one's.
        self.pending.retain(|_, pending| matches!(pending, super::Pending::Ask { .. }));
        if ask_first {
            self.examine(true, false);
        }
        let start = RunStart { run, spec: prepared.spec, cost: prepared.cost, plan: prepared.options, wait_for_nodes: 1 };
        self.tell(CoordinatorInput::StartRun(Box::new(start)));
        self.drain();
        if !self.coordinator.is_running()
            && let Some(run) = self.run.as_mut().filter(|run| run.stored.info.state == RunState::Waiting)
        {
            run.stored.info.state = RunState::Failed;
            run.stored.info.note = self.events.back().map_or_else(String::new, |event| event.text.clone());
            self.keep_run();
        }
        self.run.as_ref().map(CurrentRun::info).ok_or_else(Refusal::unavailable)
    }

    pub(super) fn control(&mut self, run: RunId, wish: Wish) -> Answer<()> {
        let current = self.run.as_ref().filter(|current| current.stored.info.run == run);
        let current = current.ok_or_else(|| Refusal::missing(format!("run {run} is not the current one: only that can be paused, resumed or stopped")))?;
        if !current.is_active() {
            return Err(Refusal::conflict(format!("run {run} is over: start a new one")));
        }
        if current.finishing {
            // Nothing is left but the held-out answers.
            if wish == Wish::Stop {
                self.pending.retain(|_, pending| matches!(pending, super::Pending::Ask { .. }));
                self.finish();
            }
            return Ok(());
        }
        self.tell(match wish {
            Wish::Pause => CoordinatorInput::Pause,
            Wish::Resume => CoordinatorInput::Resume,
            Wish::Stop => CoordinatorInput::Stop,
        });
        Ok(())
    }

    /// Takes a record of the coordinator into the run and the data base.
    pub(super) fn progress(&mut self, run: RunId, progress: RunProgress) {
        self.changed = true;
        let store = self.store.clone();
        let Some(current) = self.run.as_mut().filter(|current| current.stored.info.run == run) else {
            log::warn!("a record of run {run} came, which is not the current one");
            return;
        };
        let kept = match progress {
            RunProgress::State { state: RunState::Done, .. } => {
                self.last_step_done();
                return;
            }
            RunProgress::State { state, note } => {
                current.stored.info.state = state;
                current.stored.info.note = note;
                if !current.is_active() {
                    current.phase = None;
                    current.seconds_left = None;
                    current.stored.info.seconds = seconds_since(current.stored.info.started_at);
                }
                store.update_run(&current.stored)
            }
            RunProgress::Planned { plan, .. } => {
                current.stored.plan = Some(plan);
                store.update_run(&current.stored)
            }
            RunProgress::Phase { phase, epoch, seconds_left } => {
                current.phase = Some(phase);
                current.epoch = epoch;
                current.seconds_left = Some(seconds_left).filter(|s| s.is_finite());
                Ok(())
            }
            RunProgress::Step(record) => {
                (current.epoch, current.step) = (record.epoch, record.step);
                current.seconds_left = Some(record.seconds_left).filter(|s| s.is_finite());
                if record.loss.is_finite() {
                    current.losses.insert(record.optimiser_steps, record.loss);
                    store.set_loss(run, LossPoint { at: record.optimiser_steps, loss: record.loss })
                } else {
                    Ok(())
                }
            }
            RunProgress::Epoch(epoch) => {
                let kept = store.set_epoch(run, &epoch);
                current.epochs.insert(epoch.epoch, epoch);
                kept
            }
            RunProgress::HeldOut { optimiser_steps, loss, .. } if loss.is_finite() => {
                current.held_out.insert(optimiser_steps, loss);
                store.set_held_out(run, HeldOutPoint { at: optimiser_steps, loss })
            }
            RunProgress::HeldOut { .. } | RunProgress::Checkpoint(_) => Ok(()),
        };
        if let Err(error) = kept {
            log::error!("a record of run {run} could not be kept: {error}");
        }
    }

    /// The coordinator is done; the run is when its held-out prompts are answered.
    fn last_step_done(&mut self) {
        let Some(run) = self.run.as_mut() else { return };
        run.finishing = true;
        run.phase = None;
        run.seconds_left = None;
        run.stored.info.state = RunState::Running;
        if run.examination.is_some() {
            run.stored.info.note = "answering held-out prompts".into();
            let base = run.stored.info.exact_match_before.is_none();
            self.pending.retain(|_, pending| !matches!(pending, super::Pending::Before));
            self.examine(base, true);
        } else {
            self.finish();
        }
    }

    pub(super) fn finish(&mut self) {
        let Some(run) = self.run.as_mut().filter(|run| run.finishing) else { return };
        run.finishing = false;
        run.stored.info.state = RunState::Done;
        run.stored.info.note = String::new();
        run.stored.info.seconds = seconds_since(run.stored.info.started_at);
        self.keep_run();
    }

    pub(super) fn keep_run(&mut self) {
        self.changed = true;
        if let Some(run) = &self.run
            && let Err(error) = self.store.update_run(&run.stored)
        {
            log::error!("run {} could not be kept: {error}", run.stored.info.run);
        }
    }
}
