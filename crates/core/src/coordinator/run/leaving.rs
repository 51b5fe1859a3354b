//! A device says that it leaves: the others take over before it goes, and no step is done twice.
//!
//! 1. *While the run goes on*, the others fetch the frozen layers that the plan without the leaver asks of them, and the leaver
//!    sends them the cache entries that nobody else holds. Who was idle gets ready as for any change of plan (`run/replan.rs`).
//! 2. Once all have done so, the nodes at work end before a step that none of them has begun, and leave a checkpoint there; or the
//!    epoch ends first. A refill has no steps: it ends where it is.
//! 3. The new plan goes without the leaver. It stays as long as it holds entries that the others still lack (those of the last
//!    steps), hands them over, and is released before the next step.
//!
//! It is released at once where there is nothing to take over or nobody who could, and after [`Patience::prepare`] in any case: then
//! the run goes on as if its page had been closed. Entries that are computed again faster than they are sent stay behind, and those
//! that are not through after half of that time.
//!
//! [`Patience::prepare`]: crate::coordinator::Patience::prepare

use super::{Context, Run, State};
use crate::coordinator::{Level, cache};
use crate::io::{Micros, SECOND};
use crate::schedule::steps_per_epoch;
use barycenter_protocol::control::{CacheSend, Phase, PhaseKind, ToNode};
use barycenter_protocol::plan::Plan;
use barycenter_protocol::{NodeId, ProtocolVersion};
use std::collections::{BTreeMap, BTreeSet};

/// By then a message has reached every node.
const NOTICE_SECONDS: f64 = 0.5;

/// Devices that have said that they leave.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    /// When they go in any case.
    until: BTreeMap<NodeId, Micros>,
    /// Whose entries are not worth moving.
    left_behind: BTreeSet<NodeId>,
    /// Who may hold more than it has said.
    unreported: BTreeSet<NodeId>,
    /// What is done beside the steps.
    takeover: Option<Takeover>,
    /// The plan that the others took over for, and the devices that were asked about it.
    planned: Option<(Plan, BTreeSet<NodeId>)>,
    /// Numbers the takeovers of the run.
    round: u32,
    /// The redistribution at work moves what leavers hold.
    pub hands_over: bool,
}

/// The others get what they need for the plan without the leavers, while all go on with their work.
#[derive(Debug)]
struct Takeover {
    until: Micros,
    pending: BTreeSet<NodeId>,
    sends: BTreeMap<NodeId, Vec<CacheSend>>,
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
        self.left_behind.remove(&node);
        if let Some(takeover) = &mut self.takeover {
            takeover.pending.remove(&node);
        }
    }

    pub fn deadline(&self) -> Option<Micros> {
        self.until.values().copied().chain(self.takeover.as_ref().map(|t| t.until)).min()
    }

    /// A new generation begins: what was done beside the one before is over.
    pub fn begins_anew(&mut self) {
        self.takeover = None;
        self.planned = None;
        self.unreported.clear();
        self.hands_over = false;
    }
}

impl Run {
    /// A node says that it is about to leave.
    pub fn announces_leave(&mut self, ctx: &mut Context, node: NodeId) {
        if self.leaving.contains(node) {
            return;
        }
        let name = ctx.swarm.name(node);
        self.leaving.until.insert(node, ctx.now + ctx.patience.prepare);
        let knows = |n: &NodeId| ctx.swarm.members.get(n).is_none_or(|m| m.version >= ProtocolVersion::HANDS_OVER);
        if self.paused || !self.is_of_use(node) || !self.participants.iter().all(knows) {
            return self.release(ctx, node);
        }
        let Ok(planned) = self.make_plan(ctx, self.start.plan.fill) else { return self.release(ctx, node) };
        ctx.event(Level::Info, format!("{name} is about to leave: the others take over first."));
        match &self.state {
            // There is another plan soon anyway.
            State::Phase { stop: Some(_), .. } | State::Phase { held_out_only: true, .. } | State::Boundary { .. } => {}
            // Nothing is lost: no step was done since the checkpoint.
            State::Preparing { .. } | State::Phase { kind: PhaseKind::Redistribute, .. } => self.regenerate(ctx),
            State::Phase { .. } => self.take_over(ctx, planned),
            State::Gathering { .. } | State::Over => self.release(ctx, node),
        }
    }

    /// Whether the others would miss a node: it works, or holds entries that nobody else does.
    fn is_of_use(&self, node: NodeId) -> bool {
        let works = match &self.state {
            State::Phase { doing, .. } => doing.contains(&node),
            _ => true,
        };
        self.participants.contains(&node) && (works || self.is_only_holder(node, &self.participants))
    }

    /// Whether a node holds cache entries that none of the others does.
    fn is_only_holder(&self, node: NodeId, others: &BTreeSet<NodeId>) -> bool {
        let others = self.union_of(others.iter().filter(|n| **n != node));
        self.holdings.get(&node).is_some_and(|own| own.iter().zip(&others).any(|(own, others)| own & !others != 0))
    }

    fn union_of<'a>(&self, nodes: impl Iterator<Item = &'a NodeId>) -> cache::Held {
        cache::union(&self.start.spec, nodes.filter_map(|n| self.holdings.get(n)))
    }

    // ---- beside the steps ----

    /// Lets the others get what they need for the plan without the leavers, and the leavers send what only they hold.
    fn take_over(&mut self, ctx: &mut Context, (plan, considered): (Plan, BTreeSet<NodeId>)) {
        let sends: BTreeMap<_, _> = self.sends_of_leavers(&plan).into_iter().map(|(node, (sends, _))| (node, sends)).collect();
        for (node, sends) in &sends {
            if !self.is_worth_moving(ctx, &plan, *node, sends) {
                self.leaving.left_behind.insert(*node);
            }
        }
        let sends: BTreeMap<_, _> = sends.into_iter().filter(|(node, _)| !self.leaving.left_behind.contains(node)).collect();
        self.leaving.round += 1;
        let (generation, round) = (self.generation, self.leaving.round);
        for node in &self.participants {
            let sends = sends.get(node).cloned().unwrap_or_default();
            ctx.tell(*node, ToNode::TakeOver { generation, round, plan: Box::new(plan.clone()), sends });
        }
        let idle: BTreeSet<_> = plan.nodes().into_iter().filter(|n| !self.participants.contains(n) && !self.rehearses(*n)).collect();
        if !idle.is_empty() {
            self.rehearse(ctx, &plan, idle);
        }
        self.leaving.takeover = Some(Takeover { until: ctx.now + ctx.patience.prepare / 2, pending: self.participants.clone(), sends });
        self.leaving.planned = Some((plan, considered));
    }

    /// What leavers would have to send so that the owners of a plan hold what now only leavers do, and how many entries each owner receives.
    fn sends_of_leavers(&self, plan: &Plan) -> BTreeMap<NodeId, (Vec<CacheSend>, u64)> {
        let staying = plan.nodes();
        let known = self.union_of(staying.iter());
        let all: Vec<_> = self.holdings.iter().filter(|(n, _)| staying.contains(n)).map(|(n, held)| (*n, held.clone())).collect();
        let own = |held: &cache::Held| -> cache::Held { held.iter().zip(&known).map(|(own, known)| own & !known).collect() };
        let leavers = self.holdings.iter().filter(|(n, _)| self.leaving.contains(**n) && !self.leaving.left_behind.contains(n)).map(|(n, held)| (*n, own(held)));
        let all: BTreeMap<_, _> = all.into_iter().chain(leavers).collect();
        let transfers = cache::transfers(&self.start.spec, plan, &self.order, &all.iter().map(|(n, held)| (*n, held)).collect());
        transfers.into_iter().filter(|(from, _)| self.leaving.contains(*from)).collect()
    }

    /// Sending must be done while the leaver waits, and faster than computing the entries again.
    fn is_worth_moving(&self, ctx: &Context, plan: &Plan, node: NodeId, sends: &[CacheSend]) -> bool {
        let spec = &self.start.spec;
        let entry_bytes = self.start.plan.mean_tokens * spec.cache.token_bytes(self.start.cost.width) as f64;
        let entries: u64 = sends.iter().map(|send| send.samples.len() as u64 * u64::from(send.taps.end - send.taps.start)).sum();
        let moving = entries as f64 * entry_bytes / self.bytes_per_second(ctx, node);
        let samples: BTreeSet<_> = sends.iter().flat_map(|send| &send.samples).collect();
        let computing = samples.len() as f64 / f64::from(spec.batch.max(1)) * plan.fill_step_seconds;
        moving < computing.min(ctx.patience.prepare as f64 / SECOND as f64)
    }

    /// A node has what the plan without the leavers asks of it, or has sent what it holds.
    pub(super) fn took_over(&mut self, node: NodeId, round: u32) {
        let Some(takeover) = self.leaving.takeover.as_mut().filter(|_| round == self.leaving.round) else { return };
        takeover.pending.remove(&node);
        // Said anew by each of them before the next generation begins.
        for send in takeover.sends.remove(&node).unwrap_or_default() {
            if let Some(held) = self.holdings.get_mut(&send.to) {
                send.samples.iter().for_each(|sample| cache::note(held, *sample, &send.taps));
            }
        }
    }

    /// The plan that the others have got ready for, if the same devices would be asked now.
    pub(super) fn plan_taken_over(&mut self, ctx: &Context) -> Option<(Plan, BTreeSet<NodeId>)> {
        let (plan, considered) = self.leaving.planned.take()?;
        let linked: BTreeSet<_> = self.linked(ctx).devices.iter().map(|d| d.node).collect();
        (linked == considered).then_some((plan, considered))
    }

    /// All have what they need, or had half of the time that a leaver waits: the work stops.
    pub(super) fn stop_if_taken_over(&mut self, ctx: &mut Context) {
        let is_ready = |t: &mut Takeover| t.until <= ctx.now || t.pending.is_empty() && self.rehearsal.as_ref().is_none_or(|r| r.pending.is_empty());
        let Some(takeover) = self.leaving.takeover.take_if(is_ready) else { return };
        // What has not come through by now would not in the time that is left.
        self.leaving.left_behind.extend(takeover.pending.iter().filter(|node| self.leaving.until.contains_key(node)));
        match &self.state {
            State::Phase { kind: PhaseKind::Fill | PhaseKind::Train, held_out_only: false, .. } => match self.stop_step(ctx) {
                Some(step) => self.stop_before(ctx, step),
                None => self.leaving.until.keys().copied().collect::<Vec<_>>().into_iter().for_each(|node| self.release(ctx, node)),
            },
            // What a refill has computed is in the caches, as the nodes say when they get ready for the new plan.
            State::Phase { kind: PhaseKind::Refill, doing, .. } => {
                let refilling = self.leaving.until.keys().copied().filter(|node| doing.contains(node));
                self.leaving.unreported.extend(refilling);
                if self.fills { self.boundary(ctx, (1, 0)) } else { self.regenerate(ctx) }
            }
            // There is another plan soon anyway.
            _ => {}
        }
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
        let patience = self.leaving.until.values().min().copied().unwrap_or(0).saturating_sub(ctx.now) as f64 / SECOND as f64;
        (wait < patience).then(|| step.min(steps_per_epoch(&self.start.spec)))
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

    /// Whether somebody waits in a step before which others have stopped already: it had begun it when it heard of that.
    pub(super) fn has_missed_stop(&self) -> bool {
        matches!(&self.state, State::Phase { stop: Some(_), doing, pending, .. } if pending.len() < doing.len())
    }

    // ---- between two plans ----

    /// Who is about to leave and holds what those of a new plan lack.
    pub(super) fn donors(&self, ctx: &Context, others: &BTreeSet<NodeId>) -> Vec<NodeId> {
        let may = |n: &NodeId| ctx.swarm.members.contains_key(n) && !self.is_left_out(ctx.now, *n) && !self.leaving.left_behind.contains(n);
        self.leaving.until.keys().copied().filter(|n| may(n) && (self.leaving.unreported.contains(n) || self.is_only_holder(*n, others))).collect()
    }

    /// Lets those who are about to leave hand over what they hold; true if there is anything. Otherwise they may go.
    pub(super) fn hands_over(&mut self, ctx: &mut Context) -> bool {
        let Some(plan) = self.plan.as_ref().filter(|_| !self.leaving.is_empty()) else { return false };
        let mut phases: BTreeMap<NodeId, (Vec<CacheSend>, u64)> = BTreeMap::new();
        for (from, (sends, _)) in self.sends_of_leavers(plan) {
            for send in &sends {
                phases.entry(send.to).or_default().1 += send.samples.len() as u64 * u64::from(send.taps.end - send.taps.start);
            }
            phases.entry(from).or_default().0 = sends;
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

    // ---- the end ----

    /// Lets all go who are about to; none of them has a part in the plan in force.
    pub(super) fn release_all(&mut self, ctx: &mut Context) {
        for node in self.leaving.until.keys().copied().collect::<Vec<_>>() {
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
