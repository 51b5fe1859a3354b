//! A device says that it leaves: the others take over before it goes, and no step is done twice.
//!
//! - The nodes at work end before a step that none of them has begun, and leave a checkpoint there; or the epoch ends first.
//! - The new plan goes without the leaver. It stays as long as it holds cache entries that the others lack, hands them to their
//!   owners, and is released before the next step.
//! - It is released at once where there is nothing to take over or nobody who could, and after [`PATIENCE`] in any case: then
//!   the run goes on as if its page had been closed.

use super::{Context, Run, State};
use crate::coordinator::{Level, cache};
use crate::io::{Micros, SECOND};
use crate::schedule::steps_per_epoch;
use barycenter_protocol::NodeId;
use barycenter_protocol::control::{CacheSend, Phase, PhaseKind, ToNode};
use std::collections::{BTreeMap, BTreeSet};

/// Whoever wishes to leave waits for the others this long at most.
const PATIENCE: Micros = 10 * SECOND;
/// By then a message has reached every node.
const NOTICE_SECONDS: f64 = 0.5;

/// Devices that have said that they leave, and when they go in any case.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    until: BTreeMap<NodeId, Micros>,
    /// The redistribution at work moves what they hold.
    pub hands_over: bool,
}

impl Leaving {
    pub fn contains(&self, node: NodeId) -> bool {
        self.until.contains_key(&node)
    }

    pub fn is_empty(&self) -> bool {
        self.until.is_empty()
    }

    pub fn forget(&mut self, node: NodeId) {
        self.until.remove(&node);
    }

    pub fn deadline(&self) -> Option<Micros> {
        self.until.values().min().copied()
    }
}

impl Run {
    /// A node says that it is about to leave.
    pub fn announces_leave(&mut self, ctx: &mut Context, node: NodeId) {
        if self.leaving.contains(node) {
            return;
        }
        self.leaving.until.insert(node, ctx.now + PATIENCE);
        if self.paused || !self.is_of_use(node) || self.make_plan(ctx, self.start.plan.fill).is_err() {
            return self.release(ctx, node);
        }
        let name = ctx.swarm.name(node);
        match &self.state {
            State::Phase { kind: PhaseKind::Fill | PhaseKind::Train, stop: Some(_), .. } | State::Phase { held_out_only: true, .. } | State::Boundary { .. } => {}
            State::Phase { kind: PhaseKind::Fill | PhaseKind::Train, .. } => match self.stop_step(ctx) {
                Some(step) => self.stop_before(ctx, step),
                None => return self.release(ctx, node),
            },
            State::Preparing { .. } | State::Phase { .. } => self.regenerate(ctx),
            State::Gathering { .. } | State::Over => return self.release(ctx, node),
        }
        ctx.event(Level::Info, format!("{name} is about to leave: the others take over first."));
    }

    /// Whether the others would miss a node: it works, or holds entries that nobody else does.
    fn is_of_use(&self, node: NodeId) -> bool {
        let works = match &self.state {
            State::Phase { kind: PhaseKind::Fill | PhaseKind::Train, doing, .. } => doing.contains(&node),
            _ => true,
        };
        self.participants.contains(&node) && (works || self.is_only_holder(node, &self.participants))
    }

    /// Whether a node holds cache entries that none of the others does.
    fn is_only_holder(&self, node: NodeId, others: &BTreeSet<NodeId>) -> bool {
        let Some(own) = self.holdings.get(&node) else { return false };
        let others: Vec<_> = others.iter().filter(|n| **n != node).filter_map(|n| self.holdings.get(n)).collect();
        own.iter().enumerate().any(|(sample, taps)| taps & !others.iter().fold(0, |union, held| union | held.get(sample).copied().unwrap_or(0)) != 0)
    }

    /// The first step of the epoch that no node will have begun when it hears of it; at most as many as the epoch has. `None`: it is
    /// too far away for a leaver to wait for.
    fn stop_step(&self, ctx: &Context) -> Option<u32> {
        let State::Phase { kind, epoch, .. } = self.state else { return None };
        let pace = if kind == PhaseKind::Fill { &self.fill_pace } else { &self.train_pace };
        let predicted = self.plan.as_ref().map_or(0.0, |p| if kind == PhaseKind::Fill { p.fill_step_seconds } else { p.train_step_seconds });
        let seconds = pace.step_seconds().unwrap_or(predicted).max(1e-3);
        // the step at work may end at any moment, and the next one takes `seconds`
        let begun = match self.last_step.filter(|(e, _)| *e == epoch) {
            Some((_, done)) => done + 1,
            None => self.position().step,
        };
        let left_of_step = (seconds - self.books.seconds_in_step(ctx.now)).max(0.0);
        let further = ((NOTICE_SECONDS - left_of_step) / seconds).ceil().max(0.0);
        let wait = left_of_step + further * seconds;
        let step = begun + 1 + further as u32;
        (wait < PATIENCE as f64 / SECOND as f64).then(|| step.min(steps_per_epoch(&self.start.spec)))
    }

    /// At the end of the epoch there will be another plan anyway.
    fn stop_before(&mut self, ctx: &mut Context, step: u32) {
        let State::Phase { epoch, doing, stop, .. } = &mut self.state else { return };
        if step < steps_per_epoch(&self.start.spec) {
            *stop = Some(step);
            for node in doing.iter() {
                ctx.tell(*node, ToNode::StopBefore { generation: self.generation, epoch: *epoch, step });
            }
        }
    }

    /// Who is about to leave and holds what those of a new plan lack.
    pub(super) fn donors(&self, ctx: &Context, others: &BTreeSet<NodeId>) -> Vec<NodeId> {
        self.leaving.until.keys().copied().filter(|n| ctx.swarm.members.contains_key(n) && !self.is_left_out(ctx.now, *n) && self.is_only_holder(*n, others)).collect()
    }

    /// Lets those who are about to leave hand over what they hold; true if there is anything. Otherwise they may go.
    pub(super) fn hands_over(&mut self, ctx: &mut Context) -> bool {
        let Some(plan) = self.plan.as_ref().filter(|_| !self.leaving.is_empty()) else { return false };
        let nodes: BTreeMap<_, _> = self.participants.iter().filter_map(|n| Some((*n, self.holdings.get(n)?))).collect();
        let mut phases: BTreeMap<NodeId, (Vec<CacheSend>, u64)> = BTreeMap::new();
        for (from, (sends, _)) in cache::transfers(&self.start.spec, plan, &self.order, &nodes) {
            if self.leaving.contains(from) {
                for send in &sends {
                    phases.entry(send.to).or_default().1 += send.samples.len() as u64 * u64::from(send.taps.end - send.taps.start);
                }
                phases.entry(from).or_default().0 = sends;
            }
        }
        if phases.is_empty() {
            self.release_all(ctx);
            return false;
        }
        self.leaving.hands_over = true;
        let epoch = self.position().epoch;
        self.begin(ctx, PhaseKind::Redistribute, epoch, phases.into_iter().map(|(n, (sends, expect))| (n, Phase::Redistribute { sends, expect })).collect());
        true
    }

    /// The others have everything: the leavers go, and the generation does what it is for.
    pub(super) fn handed_over(&mut self, ctx: &mut Context) {
        self.leaving.hands_over = false;
        self.release_all(ctx);
        self.prepared(ctx);
    }

    pub(super) fn release_all(&mut self, ctx: &mut Context) {
        for node in self.leaving.until.keys().copied().collect::<Vec<_>>() {
            // whoever has work still does it, as far as anybody waits for it
            self.participants.remove(&node);
            self.release(ctx, node);
        }
    }

    /// It may go; if it has a part still, the run goes on as after a closed page.
    fn release(&mut self, ctx: &mut Context, node: NodeId) {
        self.leaving.forget(node);
        ctx.released.push(node);
    }

    /// Nobody waits for a leaver without a part in the plan, for one that has waited for too long, or when there is no plan.
    pub(super) fn release_late(&mut self, ctx: &mut Context) {
        let is_idle = matches!(self.state, State::Gathering { .. } | State::Over);
        let late: Vec<_> = self.leaving.until.iter().filter(|(n, until)| is_idle || **until <= ctx.now || !self.participants.contains(n)).map(|(n, _)| *n).collect();
        for node in late {
            self.release(ctx, node);
        }
    }

    /// A link of a leaver broke: it goes, as nobody can be reached any more by it for sure.
    pub(super) fn gives_up_on_leaver(&mut self, ctx: &mut Context, a: NodeId, b: NodeId) -> bool {
        let leavers: Vec<_> = [a, b].into_iter().filter(|n| self.leaving.contains(*n)).collect();
        for node in &leavers {
            self.release(ctx, *node);
        }
        !leavers.is_empty()
    }
}
