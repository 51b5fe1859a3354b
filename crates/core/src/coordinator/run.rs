//! One run: plan, prepare, phases, and starting again from the last checkpoint when somebody is gone.
//!
//! A generation either fills (epoch 0 through the pipeline, then a refill of what the cache lacks) or trains
//! (redistribution, then epochs from the cache), or only refills before it trains. Every change of plan is a new generation from the newest
//! checkpoint; at the end of an epoch that checkpoint is the end of the epoch, so that nothing is redone. When a change is
//! worth it is decided in `run/replan.rs`; what is done for a device that says that it leaves, in `run/leaving.rs`.

mod leaving;
mod replan;

use super::SavedStep;
use super::books::Books;
use super::cache::{self, Held};
use super::pace::Pace;
use super::stall::Stall;
use super::swarm::Context;
use super::{CoordinatorOutput, Level, Patience, RunProgress, RunSnapshot, RunStart, StepRecord};
use crate::io::{Micros, SECOND};
use crate::order::SampleOrder;
use crate::planner::{self, FillWish, PlanOptions, linked_subset};
use crate::schedule::{steps_per_epoch, total_steps};
use barycenter_protocol::api::RunState;
use barycenter_protocol::control::{Assignment, CheckpointRef, FromNode, Holding, Measurements, Phase, PhaseKind, StepReport, ToNode};
use barycenter_protocol::plan::{FillMode, Plan};
use barycenter_protocol::{Generation, NodeId, RunId};
use leaving::Leaving;
use replan::{Rehearsal, Weighing};
use std::collections::{BTreeMap, BTreeSet};

/// How long the end of an epoch waits for its checkpoint before it is redone from the one before.
const CHECKPOINT_PATIENCE: Micros = 30 * SECOND;
/// Silence allowed to a node that gets ready: unpacking weights may keep a page's only thread busy for some seconds.
const BUSY_PREPARING: Micros = 15 * SECOND;
/// Failures of a node without a step between, after which it is not tried again.
const MAX_FAILURES: u32 = 3;
/// Time a node is left out after its first failure; doubled at each further one.
const LEFT_OUT: Micros = 5 * SECOND;
/// Refills in a row that leave something missing before the run is given up.
const MAX_FRUITLESS_REFILLS: u32 = 3;

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
    fresh: Fresh,
    state: State,
    shown: Option<(RunState, String)>,
    pub plan: Option<Plan>,
    fills: bool,
    needs_backbone: bool,
    force_backbone: bool,
    fruitless_refills: u32,
    participants: BTreeSet<NodeId>,
    considered: BTreeSet<NodeId>,
    /// The swarm's version, and how many are left out, when no plan could be made: no use trying again before that changes.
    hopeless: Option<(u64, u64)>,
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

    // ---- time ----

    pub fn tick(&mut self, ctx: &mut Context) {
        match &self.state {
            State::Gathering { .. } => self.try_plan(ctx),
            State::Preparing { pending } => {
                let late: Vec<_> = pending.iter().filter(|(_, last)| **last + ctx.patience.prepare <= ctx.now).map(|(n, _)| *n).collect();
                for node in late {
                    ctx.dropped.push((node, "it did not get ready in time".into()));
                }
            }
            State::Boundary { since, at: (epoch, step) } if *since + CHECKPOINT_PATIENCE <= ctx.now => {
                let text = format!("the checkpoint before step {step} of epoch {} did not arrive", epoch + 1);
                self.again(ctx, text);
            }
            State::Phase { .. } => self.weigh_amid(ctx, false),
            _ => {}
        }
        for node in self.late_for_rehearsal(ctx) {
            ctx.dropped.push((node, "it did not get ready in time".into()));
        }
        self.stop_if_taken_over(ctx);
        self.release_late(ctx);
    }

    /// How long a node may be silent: a page whose processor is busy with a long job, or with reading weights, says nothing.
    pub fn patience_with(&self, node: NodeId, patience: &Patience) -> Micros {
        if self.rehearses(node) {
            return patience.silent.max(BUSY_PREPARING);
        }
        if !self.participants.contains(&node) {
            return patience.silent;
        }
        match self.state {
            State::Preparing { .. } => patience.silent.max(BUSY_PREPARING),
            State::Phase { .. } => {
                let measured = [true, false].into_iter().filter_map(|fill| self.books.rate(fill)).fold(0.0, f64::max);
                let predicted = self.plan.as_ref().map_or(0.0, |p| p.fill_step_seconds.max(p.train_step_seconds));
                patience.silent.max((3.0 * predicted.max(measured) * SECOND as f64) as Micros)
            }
            _ => patience.silent,
        }
    }

    pub fn deadline(&self, ctx: &Context) -> Option<Micros> {
        [self.state_deadline(ctx), self.rehearsal_deadline(ctx), self.leaving.deadline()].into_iter().flatten().min()
    }

    fn state_deadline(&self, ctx: &Context) -> Option<Micros> {
        match &self.state {
            State::Gathering { since } => {
                let steps = [ctx.patience.restore, ctx.patience.links];
                let waits = since.iter().flat_map(|since| steps.iter().map(move |s| since + s));
                waits.chain(self.excluded.values().map(|e| e.until)).filter(|t| *t > ctx.now).min()
            }
            State::Preparing { pending } => pending.values().map(|last| last + ctx.patience.prepare).min(),
            State::Boundary { since, .. } => Some(since + CHECKPOINT_PATIENCE),
            _ => None,
        }
    }

    fn check_stall(&mut self, ctx: &mut Context) {
        let State::Phase { pending, .. } = &self.state else { return };
        if self.paused {
            return;
        }
        let awaited = pending.union(&self.keepers()).copied().collect();
        let predicted = self.plan.as_ref().map_or(0.0, |p| p.fill_step_seconds.max(p.train_step_seconds));
        let limit = ctx.patience.stalled.max((predicted * 10.0 * SECOND as f64) as Micros);
        let speed = |node: NodeId| ctx.swarm.members.get(&node).map_or(0.0, |m| m.profile.gflops);
        if let Some(node) = self.stall.culprit(ctx.now, limit, &awaited, speed) {
            ctx.dropped.push((node, "it stood still while others waited for it".into()));
        }
    }

    // ---- plan ----

    /// Gives up the generation in force; a new one starts from the newest checkpoint as soon as there is a plan.
    fn again(&mut self, ctx: &mut Context, why: String) {
        ctx.event(Level::Warning, format!("{}.", capitalised(&why)));
        self.abort(ctx);
        self.regenerate(ctx);
    }

    fn abort(&mut self, ctx: &mut Context) {
        self.end_rehearsal(ctx);
        self.plan = None;
        for node in std::mem::take(&mut self.participants) {
            ctx.tell(node, ToNode::Abort { generation: self.generation });
        }
    }

    fn regenerate(&mut self, ctx: &mut Context) {
        self.fresh = Fresh::Changed;
        self.hopeless = None;
        self.state = State::Gathering { since: None };
        self.try_plan(ctx);
    }

    fn try_plan(&mut self, ctx: &mut Context) {
        let State::Gathering { since } = &mut self.state else { return };
        let nodes = ctx.swarm.members.keys().filter(|n| !self.excluded.get(n).is_some_and(|e| e.holds(ctx.now))).count() as u32;
        let wanted = if self.fresh == Fresh::Start { self.start.wait_for_nodes.max(1) } else { 1 };
        if nodes < wanted {
            *since = None;
            let failed = self.excluded.values().next().map(|e| e.reason.clone());
            let note = match failed {
                Some(reason) => reason,
                None if wanted > 1 => format!("{nodes} of {wanted} devices are here"),
                None => "no device is here: open the invitation's address on one".into(),
            };
            self.show(ctx, RunState::Waiting, note);
            return;
        }
        let since = *since.get_or_insert(ctx.now);
        let linked = ctx.now >= since + ctx.patience.links || ctx.swarm.links.all_up(|n| self.takes_part(ctx.now, n));
        let ready = match self.fresh {
            Fresh::Start => linked,
            Fresh::Restored { nodes: before } => linked && (nodes >= before || ctx.now >= since + ctx.patience.restore),
            Fresh::Changed => true,
        };
        if !ready {
            self.show(ctx, RunState::Waiting, "devices are making their links");
            return;
        }
        let left_out = ctx.swarm.members.len() as u64 - u64::from(nodes);
        let situation = (ctx.swarm.version, left_out);
        if self.hopeless == Some(situation) {
            return;
        }
        match self.plan_taken_over(ctx).map_or_else(|| self.make_plan(ctx, self.start.plan.fill), Ok) {
            Ok((plan, considered)) => self.prepare(ctx, plan, considered),
            Err(error) => {
                self.hopeless = Some(situation);
                self.show(ctx, RunState::Waiting, error.to_string());
            }
        }
    }

    fn make_plan(&self, ctx: &Context, fill: FillWish) -> Result<(Plan, BTreeSet<NodeId>), planner::PlanError> {
        let options = PlanOptions { fill, ..self.start.plan.clone() };
        let measured = self.corrected(self.linked(ctx));
        let considered = measured.devices.iter().map(|d| d.node).collect();
        Ok((planner::plan(&self.start.cost, &measured, self.start.spec.batch, &options)?, considered))
    }

    /// What is known of the devices that may take part and are linked with one another.
    fn linked(&self, ctx: &Context) -> Measurements {
        linked_subset(&ctx.swarm.measurements(|n| self.takes_part(ctx.now, n)))
    }

    fn prepare(&mut self, ctx: &mut Context, plan: Plan, considered: BTreeSet<NodeId>) {
        let at = self.position();
        if at.step == 0 && at.epoch > 0 {
            self.close_epoch(ctx, at.epoch - 1);
        }
        for (at, sums) in self.books.rewind(at.epoch, at.step) {
            self.show_loss(ctx, at, sums);
        }
        self.books.forget_rates();
        self.stall.clear();
        let mut nodes: BTreeSet<_> = plan.nodes().into_iter().collect();
        self.nodes_before = nodes.len() as u32;
        nodes.extend(self.donors(ctx, &nodes));
        self.leaving.begins_anew();
        for node in self.participants.difference(&nodes) {
            ctx.tell(*node, ToNode::Abort { generation: self.generation });
        }
        if let Some(rehearsal) = self.rehearsal.take() {
            for node in rehearsal.pending.into_keys().chain(rehearsal.ready).filter(|n| !nodes.contains(n)) {
                ctx.tell(node, ToNode::Abort { generation: rehearsal.generation });
            }
        }
        self.used.0 += 1;
        self.generation = self.used;
        self.fill_pace.expect(plan.fill_step_seconds);
        self.train_pace.expect(plan.train_step_seconds);
        self.weighing = Weighing::default();
        self.last_step = None;
        self.prepare_began = Some(ctx.now);
        let known: Vec<_> = nodes.iter().filter_map(|n| self.holdings.get(n)).collect();
        let lacks = !cache::missing(&self.start.spec, known.iter().copied()).is_empty();
        // a forward-only fill is a refill of all that is missing; then epoch 0 is trained from the cache like the others
        let fills_forward_only = plan.fill == FillMode::ForwardOnly && at.epoch == 0 && lacks;
        self.fills = at.epoch == 0 && lacks && !fills_forward_only;
        self.needs_backbone = self.fills || fills_forward_only || self.force_backbone || (!known.is_empty() && lacks);
        self.hopeless = None;
        self.plan = Some(plan.clone());
        self.considered = considered;
        self.participants = nodes.clone();
        self.state = State::Preparing { pending: nodes.iter().map(|n| (*n, ctx.now)).collect() };
        self.persist(ctx);
        ctx.progress(self.id(), RunProgress::Planned { generation: self.generation, plan: plan.clone() });
        self.show(ctx, RunState::Preparing, "");
        let mut plan = plan;
        if self.needs_backbone && !self.fills {
            // this generation only refills: no node holds the whole adapter beside its frozen layers, which fit without it
            plan.train.clear();
        }
        let assignment = Assignment {
            run: self.id(),
            generation: self.generation,
            spec: self.start.spec.clone(),
            plan,
            checkpoint: self.checkpoint,
            needs_backbone: self.needs_backbone,
            fills: self.fills,
        };
        for node in nodes {
            ctx.tell(node, ToNode::Prepare(Box::new(assignment.clone())));
        }
    }

    // ---- phases ----

    fn missing(&self) -> Vec<barycenter_protocol::SampleId> {
        cache::missing(&self.start.spec, self.participants.iter().filter_map(|n| self.holdings.get(n)))
    }

    fn stage_members(&self) -> BTreeSet<NodeId> {
        self.plan.iter().flat_map(|p| &p.stages).flat_map(|s| &s.members).map(|m| m.node).collect()
    }

    /// Who keeps cache entries for others: it serves them while they train.
    fn keepers(&self) -> BTreeSet<NodeId> {
        self.plan.iter().flat_map(|p| &p.stores).map(|m| m.node).collect()
    }

    fn prepared(&mut self, ctx: &mut Context) {
        if self.hands_over(ctx) {
            return;
        }
        let missing = self.missing();
        if self.fills && missing.is_empty() {
            ctx.event(Level::Good, "Every sample is in the cache already: epoch 1 is trained from it.");
            self.regenerate(ctx);
        } else if self.fills {
            let from_step = self.position().step;
            let nodes = self.stage_members();
            self.begin(ctx, PhaseKind::Fill, 0, nodes.into_iter().map(|n| (n, Phase::Fill { from_step })).collect());
        } else {
            self.complete_cache(ctx);
        }
    }

    /// A train generation's way to its epochs: redistribution and steps; before, where something is missing, a generation
    /// that only refills.
    fn complete_cache(&mut self, ctx: &mut Context) {
        let missing = self.missing();
        if missing.is_empty() {
            self.fruitless_refills = 0;
            self.force_backbone = false;
            if self.needs_backbone { self.regenerate(ctx) } else { self.redistribute(ctx) }
        } else if self.needs_backbone {
            self.refill(ctx, missing);
        } else {
            self.force_backbone = true;
            self.regenerate(ctx);
        }
    }

    fn refill(&mut self, ctx: &mut Context, samples: Vec<barycenter_protocol::SampleId>) {
        if self.fruitless_refills >= MAX_FRUITLESS_REFILLS {
            self.end(ctx, RunState::Failed, "cache entries vanish as soon as they are written: free storage on the devices, then start the run again");
            return;
        }
        ctx.event(Level::Info, format!("Computing the cache entries of {} samples.", samples.len()));
        let epoch = self.position().epoch;
        let Some(plan) = &self.plan else { return };
        let deliveries = cache::deliveries(&self.start.spec, plan, &self.order, &samples);
        let nodes: BTreeSet<_> = self.stage_members().into_iter().chain(deliveries.keys().copied()).collect();
        let phase = |n: &NodeId| Phase::Refill { samples: samples.clone(), expect: deliveries.get(n).copied().unwrap_or(0) };
        self.begin(ctx, PhaseKind::Refill, epoch, nodes.iter().map(|n| (*n, phase(n))).collect());
    }

    fn redistribute(&mut self, ctx: &mut Context) {
        let Some(plan) = &self.plan else { return };
        let nodes = self.participants.iter().filter_map(|n| Some((*n, self.holdings.get(n)?))).collect();
        let transfers = cache::transfers(&self.start.spec, plan, &self.order, &nodes);
        if transfers.is_empty() {
            self.train(ctx);
            return;
        }
        let epoch = self.position().epoch;
        self.begin(ctx, PhaseKind::Redistribute, epoch, transfers.into_iter().map(|(n, (sends, expect))| (n, Phase::Redistribute { sends, expect })).collect());
    }

    /// Epochs from the cache, one at a time; first the held-out loss of the epoch before, if it is not known.
    fn train(&mut self, ctx: &mut Context) {
        let at = self.position();
        if let Some(before) = at.epoch.checked_sub(1)
            && at.step == 0
            && self.start.spec.held_out_samples > 0
            && self.books.held_out_epoch < Some(before)
        {
            self.begin_train(ctx, before, steps_per_epoch(&self.start.spec), true);
            return;
        }
        self.next_epoch(ctx, at.epoch, at.step);
    }

    fn begin_train(&mut self, ctx: &mut Context, epoch: u32, from_step: u32, held_out_only: bool) {
        let nodes: Vec<_> = self.plan.iter().flat_map(|p| &p.train).map(|m| m.node).collect();
        self.begin(ctx, PhaseKind::Train, epoch, nodes.into_iter().map(|n| (n, Phase::Train { epoch, from_step, last_epoch: epoch })).collect());
        if let State::Phase { held_out_only: flag, .. } = &mut self.state {
            *flag = held_out_only;
        }
    }

    fn begin(&mut self, ctx: &mut Context, kind: PhaseKind, epoch: u32, phases: Vec<(NodeId, Phase)>) {
        let doing: BTreeSet<_> = phases.iter().map(|(n, _)| *n).collect();
        self.state = State::Phase { kind, epoch, held_out_only: false, pending: doing.clone(), doing, stop: None };
        self.stall.clear();
        if matches!(kind, PhaseKind::Fill | PhaseKind::Train) {
            self.books.begin(ctx.now, epoch);
        }
        self.note_prepared(ctx.now);
        let seconds_left = self.seconds_left(self.position().optimiser_steps);
        ctx.progress(self.id(), RunProgress::Phase { phase: kind, epoch, seconds_left });
        self.show(ctx, RunState::Running, "");
        for (node, phase) in phases {
            ctx.tell(node, ToNode::Begin { generation: self.generation, phase });
        }
    }

    fn phase_done(&mut self, ctx: &mut Context) {
        let State::Phase { kind, epoch, held_out_only, stop, .. } = self.state else { return };
        if let Some(step) = stop {
            return self.boundary(ctx, (epoch, step));
        }
        match kind {
            PhaseKind::Fill => match self.missing() {
                missing if missing.is_empty() => self.boundary(ctx, (1, 0)),
                missing => self.refill(ctx, missing),
            },
            PhaseKind::Refill if self.fills => match self.missing() {
                missing if missing.is_empty() => {
                    self.fruitless_refills = 0;
                    self.boundary(ctx, (1, 0));
                }
                missing => {
                    self.fruitless_refills += 1;
                    self.refill(ctx, missing);
                }
            },
            PhaseKind::Refill => {
                self.fruitless_refills += 1; // taken back if nothing is missing
                self.complete_cache(ctx);
            }
            PhaseKind::Redistribute if self.leaving.hands_over => self.handed_over(ctx),
            PhaseKind::Redistribute => {
                let Some(plan) = &self.plan else { return };
                let nodes = self.participants.iter().filter_map(|n| Some((*n, self.holdings.get(n)?))).collect();
                if cache::transfers(&self.start.spec, plan, &self.order, &nodes).is_empty() {
                    self.train(ctx);
                } else {
                    self.force_backbone = true;
                    self.again(ctx, "cache entries were lost on their way".into());
                }
            }
            PhaseKind::Train => {
                if let Some(loss) = self.books.close_held_out(epoch) {
                    let optimiser_steps = (epoch + 1) * steps_per_epoch(&self.start.spec);
                    ctx.progress(self.id(), RunProgress::HeldOut { epoch, optimiser_steps, loss });
                }
                let at = self.position();
                let (next, step) = if held_out_only { (at.epoch, at.step) } else { (epoch + 1, 0) };
                self.next_epoch(ctx, next, step);
            }
        }
    }

    /// Goes on with an epoch: with the plan in force, or with a new one if somebody has joined who is of use.
    fn next_epoch(&mut self, ctx: &mut Context, epoch: u32, step: u32) {
        if epoch >= self.start.spec.epochs {
            return self.boundary(ctx, (epoch, 0));
        }
        if step == 0 && (!self.leaving.is_empty() || self.changes_at_epoch_end(ctx, epoch)) {
            return self.boundary(ctx, (epoch, 0));
        }
        self.begin_train(ctx, epoch, step, false);
    }

    /// All steps before this epoch and step are done: once their checkpoint is there, a new plan or the end.
    fn boundary(&mut self, ctx: &mut Context, (epoch, step): (u32, u32)) {
        let at = self.position();
        if (at.epoch, at.step) < (epoch, step) {
            if !matches!(self.state, State::Boundary { .. }) {
                self.state = State::Boundary { since: ctx.now, at: (epoch, step) };
            }
            return;
        }
        let known = self.start.spec.held_out_samples == 0 || self.books.held_out_epoch >= epoch.checked_sub(1);
        if epoch >= self.start.spec.epochs && known {
            self.close_epoch(ctx, epoch.saturating_sub(1));
            self.end(ctx, RunState::Done, "");
            ctx.event(Level::Good, "The run is done.");
        } else {
            self.regenerate(ctx);
        }
    }

    // ---- books ----

    /// A step of the fill phase is in the cache: each stage wrote its taps.
    fn note_filled(&mut self, step: u32) {
        let Some(plan) = &self.plan else { return };
        let mini_batch = self.books.mini_batch(step);
        for (stage, member) in plan.stages.iter().flat_map(|s| s.members.iter().map(move |m| (s, m))) {
            let Some(held) = self.holdings.get_mut(&member.node) else { continue };
            let taps = self.start.spec.taps_of(&stage.layers);
            mini_batch.iter().filter(|s| member.slots.contains(&s.slot)).for_each(|s| cache::note(held, s.sample, &taps));
        }
    }

    fn step_done(&mut self, ctx: &mut Context, node: NodeId, report: StepReport) {
        let spec = &self.start.spec;
        let State::Phase { kind: kind @ (PhaseKind::Fill | PhaseKind::Train), doing, .. } = &self.state else { return };
        let (epoch, step) = (report.epoch, report.step);
        // A step that the run does not have is no step of it.
        if epoch >= spec.epochs || step >= steps_per_epoch(spec) {
            return;
        }
        self.stall.moved(node);
        let is_fill = *kind == PhaseKind::Fill;
        let done_by = if self.excluded.is_empty() { BTreeSet::new() } else { doing.clone() };
        let Some(closed) = self.books.report(ctx.now, node, report, doing, &self.order, is_fill) else { return };
        for node in &done_by {
            self.excluded.remove(node);
        }
        self.last_step = Some((epoch, step));
        self.note_pace(ctx, is_fill, closed.seconds, &closed.reports);
        if is_fill {
            self.note_filled(step);
        }
        if !closed.is_exact {
            ctx.event(Level::Bad, format!("Step {step} of epoch {epoch} was computed on other samples than planned: please report this."));
        }
        self.show_step(ctx, (epoch, step), closed.sums, closed.gradient_norm, closed.seconds);
        if step + 1 >= steps_per_epoch(&self.start.spec) {
            self.close_epoch(ctx, epoch);
        }
    }

    /// The loss of a step of which not all reports came in time, as far as they came.
    fn show_loss(&self, ctx: &mut Context, at: (u32, u32), sums: SavedStep) {
        // Only the last stage says losses.
        if sums.tokens > 0 {
            self.show_step(ctx, at, sums, 0.0, 0.0);
        }
    }

    fn show_step(&self, ctx: &mut Context, (epoch, step): (u32, u32), sums: SavedStep, gradient_norm: f64, seconds: f64) {
        let optimiser_steps = epoch * steps_per_epoch(&self.start.spec) + step;
        let (loss, seconds_left) = (sums.loss_sum / (sums.tokens.max(1) as f64), self.seconds_left(optimiser_steps + 1));
        ctx.progress(self.id(), RunProgress::Step(StepRecord { epoch, step, optimiser_steps, loss, gradient_norm, seconds, seconds_left }));
    }

    fn close_epoch(&mut self, ctx: &mut Context, epoch: u32) {
        let phase = if epoch == 0 && self.fills { PhaseKind::Fill } else { PhaseKind::Train };
        if let Some(view) = self.books.close_epoch(ctx.now, epoch, phase) {
            ctx.progress(self.id(), RunProgress::Epoch(view));
        }
    }

    fn seconds_left(&self, optimiser_steps: u32) -> f64 {
        let Some(plan) = &self.plan else { return 0.0 };
        let spec = &self.start.spec;
        let fill_left = if self.fills { steps_per_epoch(spec).saturating_sub(optimiser_steps) } else { 0 };
        let streams = plan.fill == FillMode::ForwardOnly && matches!(self.state, State::Preparing { .. } | State::Phase { kind: PhaseKind::Refill, .. });
        let stream_left = if streams { f64::from(steps_per_epoch(spec)) * (plan.fill_step_seconds - plan.train_step_seconds) } else { 0.0 };
        let train_left = total_steps(spec).saturating_sub(optimiser_steps) - fill_left;
        stream_left + f64::from(fill_left) * self.books.rate(true).unwrap_or(plan.fill_step_seconds) + f64::from(train_left) * self.books.rate(false).unwrap_or(plan.train_step_seconds)
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
