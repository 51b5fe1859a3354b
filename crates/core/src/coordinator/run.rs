//! One run: plan, prepare, phases, and starting again from the last checkpoint when somebody is gone.
//!
//! A generation either fills (epoch 0 through the pipeline, then a refill of what the cache lacks) or trains
//! (redistribution, then epochs from the cache), or only refills before it trains. Every change of plan is a new generation from the newest
//! checkpoint; at the end of an epoch that checkpoint is the end of the epoch, so that nothing is redone.
//!
//! Here is what a run is and what it hears. `run/gather.rs` finds a plan and has it prepared, `run/phases.rs` goes through the phases,
//! `run/steps.rs` keeps what nodes report of their steps, `run/clock.rs` looks who is late. When a change is worth it is decided in
//! `run/replan.rs`; what is done for a device that says that it leaves, in `run/leaving.rs`.

mod clock;
mod gather;
mod leaving;
mod phases;
mod replan;
mod steps;

use super::books::Books;
use super::cache::{self, Held};
use super::pace::Pace;
use super::stall::Stall;
use super::swarm::Context;
use super::{CoordinatorOutput, Level, RunProgress, RunSnapshot, RunStart};
use crate::io::{Micros, SECOND};
use crate::order::SampleOrder;
use crate::schedule::steps_per_epoch;
use barycenter_protocol::api::RunState;
use barycenter_protocol::control::{CheckpointRef, FromNode, Holding, PhaseKind, ToNode};
use barycenter_protocol::plan::Plan;
use barycenter_protocol::{Generation, NodeId, RunId};
use leaving::Leaving;
use replan::{Rehearsal, Weighing};
use std::collections::{BTreeMap, BTreeSet};

/// Failures of a node without a step between, after which it is not tried again.
const MAX_FAILURES: u32 = 3;
/// Time a node is left out after its first failure; doubled at each further one.
const LEFT_OUT: Micros = 5 * SECOND;

/// Why the run has no plan in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fresh {
    Start,
    Restored { nodes: u32 },
    Changed,
}

/// A node that could not do its part: it is left out for a while, and for good after some failures without a step between.
#[derive(Debug)]
struct Exclusion {
    failures: u32,
    until: Micros,
    reason: String,
}

impl Exclusion {
    fn is_final(&self) -> bool {
        self.failures >= MAX_FAILURES
    }

    fn holds(&self, now: Micros) -> bool {
        self.is_final() || now < self.until
    }
}

#[derive(Debug)]
enum State {
    Gathering { since: Option<Micros> },
    Preparing { pending: BTreeMap<NodeId, Micros> },
    Phase { kind: PhaseKind, epoch: u32, held_out_only: bool, doing: BTreeSet<NodeId>, pending: BTreeSet<NodeId>, stop: Option<u32> },
    /// All steps before this epoch and step are done: waits for their checkpoint.
    Boundary { since: Micros, at: (u32, u32) },
    Over,
}

#[derive(Debug)]
pub(super) struct Run {
    pub start: RunStart,
    order: SampleOrder,
    generation: Generation,
    /// Highest generation used, by a plan or by devices that get ready for one.
    used: Generation,
    checkpoint: Option<CheckpointRef>,
    paused: bool,
    /// While there is no plan in force: why.
    fresh: Fresh,
    state: State,
    /// What the server was told last.
    shown: Option<(RunState, String)>,
    /// The plan in force.
    pub plan: Option<Plan>,
    /// Whether the generation trains through the pipeline.
    fills: bool,
    /// Whether its nodes hold frozen layers.
    needs_backbone: bool,
    /// Whether the next generation must, to compute entries that nobody holds.
    force_backbone: bool,
    /// Refills in a row that left something missing.
    fruitless_refills: u32,
    /// Who gets messages of the generation.
    participants: BTreeSet<NodeId>,
    /// The devices that the plan in force was made of.
    considered: BTreeSet<NodeId>,
    /// The swarm's version, and how many are left out, when no plan could be made: no use trying again before that changes.
    hopeless: Option<(u64, u64)>,
    /// Devices of the last plan, which a restored run waits for.
    nodes_before: u32,
    excluded: BTreeMap<NodeId, Exclusion>,
    holdings: BTreeMap<NodeId, Held>,
    books: Books,
    stall: Stall,
    fill_pace: Pace,
    train_pace: Pace,
    weighing: Weighing,
    rehearsal: Option<Rehearsal>,
    leaving: Leaving,
    /// Last step that all have reported.
    last_step: Option<(u32, u32)>,
    prepare_began: Option<Micros>,
    prepare_seconds: Option<f64>,
}

impl Run {
    pub fn new(start: RunStart) -> Self {
        Self::with(start, Fresh::Start, Generation(0), None, false, Books::default())
    }

    pub fn restore(snapshot: RunSnapshot) -> Self {
        let epoch = snapshot.checkpoint.map_or(0, |c| c.epoch);
        let books = Books::restore(epoch, &snapshot.steps, snapshot.epoch_seconds, snapshot.held_out_epoch);
        let fresh = if snapshot.generation.0 == 0 { Fresh::Start } else { Fresh::Restored { nodes: snapshot.nodes } };
        let run = Self::with(snapshot.start, fresh, snapshot.generation, snapshot.checkpoint, snapshot.paused, books);
        Self { nodes_before: snapshot.nodes, ..run }
    }

    fn with(mut start: RunStart, fresh: Fresh, generation: Generation, checkpoint: Option<CheckpointRef>, paused: bool, books: Books) -> Self {
        // What the run is, the planner is not to choose again.
        start.plan.gradients = Some(start.spec.gradients);
        (start.plan.epochs, start.plan.steps_per_epoch) = (start.spec.epochs, steps_per_epoch(&start.spec));
        Self {
            order: SampleOrder::of(&start.spec),
            start,
            generation,
            used: generation,
            checkpoint,
            paused,
            fresh,
            state: State::Gathering { since: None },
            shown: None,
            plan: None,
            fills: false,
            needs_backbone: false,
            force_backbone: false,
            fruitless_refills: 0,
            participants: BTreeSet::new(),
            considered: BTreeSet::new(),
            hopeless: None,
            nodes_before: 0,
            excluded: BTreeMap::new(),
            holdings: BTreeMap::new(),
            books,
            stall: Stall::default(),
            fill_pace: Pace::default(),
            train_pace: Pace::default(),
            weighing: Weighing::default(),
            rehearsal: None,
            leaving: Leaving::default(),
            last_step: None,
            prepare_began: None,
            prepare_seconds: None,
        }
    }

    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    pub fn accepts_checkpoint(&self, generation: Generation) -> bool {
        generation == self.generation && matches!(self.state, State::Phase { .. } | State::Boundary { .. })
    }

    fn id(&self) -> RunId {
        self.start.run
    }

    /// Epoch and step the next generation starts at, and optimiser steps before it.
    fn position(&self) -> CheckpointRef {
        self.checkpoint.unwrap_or(CheckpointRef { epoch: 0, step: 0, optimiser_steps: 0 })
    }

    fn show(&mut self, ctx: &mut Context, state: RunState, note: impl Into<String>) {
        let state = if self.paused && state == RunState::Running { RunState::Paused } else { state };
        let shown = (state, note.into());
        if self.shown.as_ref() != Some(&shown) {
            self.shown = Some(shown.clone());
            ctx.progress(self.id(), RunProgress::State { state: shown.0, note: shown.1 });
        }
    }

    pub fn persist(&self, ctx: &mut Context) {
        let at = self.position();
        let (steps, epoch_seconds) = self.books.save(ctx.now, at.epoch, at.step);
        let snapshot = RunSnapshot {
            start: self.start.clone(),
            generation: self.used,
            checkpoint: self.checkpoint,
            paused: self.paused,
            nodes: self.nodes_before,
            held_out_epoch: self.books.held_out_epoch,
            steps,
            epoch_seconds,
        };
        ctx.out.push_back(CoordinatorOutput::Persist(Some(Box::new(snapshot))));
    }

    // ---- what people and the server ask ----

    pub fn pause(&mut self, ctx: &mut Context, paused: bool) {
        if self.paused == paused || self.is_over() {
            return;
        }
        self.paused = paused;
        for node in ctx.swarm.members.keys() {
            ctx.tell(*node, if paused { ToNode::Pause } else { ToNode::Resume });
        }
        self.stall.clear();
        self.persist(ctx);
        ctx.event(Level::Info, if paused { "The run is paused." } else { "The run goes on." });
        if matches!(self.state, State::Phase { .. } | State::Boundary { .. }) {
            self.show(ctx, RunState::Running, "");
        }
    }

    /// A device that the run was started without has another id.
    pub fn leave_out(&mut self, ctx: &mut Context, node: NodeId) {
        if !self.is_over() && !self.start.plan.without.contains(&node) {
            self.start.plan.without.push(node);
            self.persist(ctx);
        }
    }

    pub fn stop(&mut self, ctx: &mut Context) {
        if !self.is_over() {
            self.end(ctx, RunState::Stopped, "stopped by you");
            ctx.event(Level::Info, "The run was stopped; its newest checkpoint stays.");
        }
    }

    fn end(&mut self, ctx: &mut Context, state: RunState, note: impl Into<String>) {
        self.abort(ctx);
        self.release_all(ctx);
        if self.paused {
            self.paused = false;
            for node in ctx.swarm.members.keys() {
                ctx.tell(*node, ToNode::Resume);
            }
        }
        self.state = State::Over;
        ctx.out.push_back(CoordinatorOutput::Persist(None));
        self.show(ctx, state, note);
    }

    pub fn checkpoint_complete(&mut self, ctx: &mut Context, checkpoint: CheckpointRef, generation: Generation) {
        if !self.accepts_checkpoint(generation) || checkpoint.optimiser_steps <= self.position().optimiser_steps {
            return;
        }
        self.checkpoint = Some(checkpoint);
        self.persist(ctx);
        ctx.progress(self.id(), RunProgress::Checkpoint(checkpoint));
        if let State::Boundary { at, .. } = self.state {
            self.boundary(ctx, at);
        } else {
            self.weigh_amid(ctx, true);
        }
    }

    // ---- nodes ----

    /// A node is gone (it is no member any more).
    pub fn left(&mut self, ctx: &mut Context, node: NodeId, name: &str) {
        self.holdings.remove(&node);
        self.excluded.remove(&node);
        self.stall.moved(node);
        self.fill_pace.forget(node);
        self.train_pace.forget(node);
        self.leaves_rehearsal(node);
        self.leaving.forget(node);
        self.lose(ctx, node, name);
    }

    fn lose(&mut self, ctx: &mut Context, node: NodeId, name: &str) {
        if !self.participants.remove(&node) || self.is_over() {
            return;
        }
        let keeps = self.keepers().contains(&node);
        let in_stages = self.plan.iter().flat_map(|p| &p.stages).any(|s| s.members.iter().any(|m| m.node == node));
        let in_plan = self.plan.as_ref().is_some_and(|p| p.nodes().contains(&node));
        match &mut self.state {
            State::Preparing { pending } if (self.fills && !in_stages) || !in_plan => {
                pending.remove(&node);
                if pending.is_empty() {
                    self.prepared(ctx);
                }
                return;
            }
            // not needed for what is being done: it held cache entries that are elsewhere now, or waits for the train phase
            State::Phase { kind: PhaseKind::Fill | PhaseKind::Train, doing, .. } if !doing.contains(&node) && !keeps => return,
            _ => {}
        }
        self.again(ctx, format!("{name} is gone: the others go on without it"));
    }

    fn exclude(&mut self, ctx: &mut Context, node: NodeId, reason: String) {
        let name = ctx.swarm.name(node);
        ctx.event(Level::Warning, format!("{name}: {reason}"));
        self.holdings.remove(&node);
        let failures = self.excluded.get(&node).map_or(0, |e| e.failures) + 1;
        self.leaves_rehearsal(node);
        self.excluded.insert(node, Exclusion { failures, until: ctx.now + (LEFT_OUT << (failures.min(MAX_FAILURES) - 1)), reason: reason.clone() });
        self.lose(ctx, node, &name);
        if !self.is_over() && ctx.swarm.members.keys().all(|n| self.excluded.get(n).is_some_and(Exclusion::is_final)) {
            self.end(ctx, RunState::Failed, reason);
        }
    }

    /// Whether a plan may count on a node: nobody has left it out, and it is not about to leave.
    pub(super) fn takes_part(&self, now: Micros, node: NodeId) -> bool {
        !self.is_left_out(now, node) && !self.leaving.contains(node) && !self.start.plan.without.contains(&node)
    }

    fn is_left_out(&self, now: Micros, node: NodeId) -> bool {
        self.excluded.get(&node).is_some_and(|e| e.holds(now))
    }

    pub fn link_lost(&mut self, ctx: &mut Context, a: NodeId, b: NodeId) {
        if self.participants.contains(&a) && self.participants.contains(&b) && !self.is_over() {
            if self.gives_up_on_leaver(ctx, a, b) {
                return;
            }
            let (a, b) = (ctx.swarm.name(a), ctx.swarm.name(b));
            self.again(ctx, format!("the link between {a} and {b} broke"));
        }
    }

    pub fn message(&mut self, ctx: &mut Context, node: NodeId, message: FromNode) {
        if self.rehearsal_message(ctx, node, &message) {
            return;
        }
        let current = |generation: Generation| generation == self.generation && self.participants.contains(&node);
        match message {
            FromNode::Prepared { generation, holdings } if current(generation) => {
                self.holds(node, &holdings);
                if let State::Preparing { pending } = &mut self.state {
                    pending.remove(&node);
                    if pending.is_empty() {
                        self.prepared(ctx);
                    }
                }
            }
            FromNode::Progress { .. } => {
                if let State::Preparing { pending } = &mut self.state
                    && let Some(last) = pending.get_mut(&node)
                {
                    *last = ctx.now;
                }
            }
            FromNode::StepDone(report) if current(report.generation) => self.step_done(ctx, node, report),
            FromNode::StepDone(report) => {
                // Its step was applied, and a new plan was made before everybody had said so.
                let at = (report.epoch, report.step);
                if let Some(sums) = self.books.late_report(node, report) {
                    self.show_loss(ctx, at, sums);
                }
            }
            FromNode::HeldOutLoss { generation, loss_sum, tokens, .. } if current(generation) => {
                self.stall.moved(node);
                self.books.held_out(node, loss_sum, tokens);
            }
            FromNode::PhaseDone { generation, phase, holdings } if current(generation) => {
                self.stall.moved(node);
                self.holds(node, &holdings);
                if let State::Phase { kind, pending, .. } = &mut self.state
                    && *kind == phase
                {
                    pending.remove(&node);
                    if pending.is_empty() {
                        self.phase_done(ctx);
                    }
                }
            }
            FromNode::Waiting { generation, peers } if current(generation) => {
                if self.has_missed_stop() {
                    return self.again(ctx, format!("{} had begun another step already", ctx.swarm.name(node)));
                }
                self.stall.waits(ctx.now, node, peers);
                self.check_stall(ctx);
            }
            FromNode::TakenOver { generation, round } if current(generation) => self.took_over(node, round),
            FromNode::Failed { generation, reason } if current(generation) && !self.is_over() => self.exclude(ctx, node, reason),
            _ => {}
        }
    }

    fn holds(&mut self, node: NodeId, holdings: &[Holding]) {
        self.holdings.insert(node, cache::held(&self.start.spec, holdings));
    }
}
