//! Whether another plan is worth the change: after a join, and when steps have drifted from what was expected.
//!
//! - A change happens where a checkpoint is: in the middle of an epoch it must pay off before the epoch's end, where the next
//!   chance comes at a lower price; at the end of an epoch before the end of the run.
//! - The price is counted: steps since the checkpoint that are done again, getting ready, weights to fetch, cache entries to
//!   move. The gain must be a tenth of a step at least, so that noise does not move a household to and fro.
//! - Make before break: devices that are new to the work get ready (fetch weights and data) while the others go on, and the
//!   change waits for them. Who works already keeps on with the plan in force until the change.

use super::{Context, Run, State};
use crate::coordinator::{Level, cache};
use crate::io::{Micros, SECOND};
use crate::planner::FillWish;
use crate::schedule::steps_per_epoch;
use barycenter_protocol::control::{Assignment, FromNode, Measurements, PhaseKind, StepReport, ToNode};
use barycenter_protocol::plan::{LayerCost, Plan};
use barycenter_protocol::{Generation, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// A plan must save this part of a step to be worth any change.
const LEAST_GAIN: f64 = 0.1;
/// Getting ready before it was ever measured, seconds.
const PREPARE_SECONDS: f64 = 2.0;
/// Bandwidth of a node whose links were not measured, bytes per second.
const UNKNOWN_BYTES_PER_SECOND: f64 = 5e6;

/// Devices that get ready for work while the others do it.
#[derive(Debug)]
pub(super) struct Rehearsal {
    pub generation: Generation,
    pub pending: BTreeMap<NodeId, Micros>,
    pub ready: BTreeSet<NodeId>,
}

/// Why plans were last compared, and when it is no use to compare them again.
#[derive(Debug, Default)]
pub(super) struct Weighing {
    /// How often steps have drifted since the last change, or the last comparison at an epoch's end.
    pub drifts: u32,
    /// The swarm's version, the drifts and whether newcomers were ready at the last comparison in the middle of an epoch: no
    /// use comparing again before one of them changes.
    seen: Option<(u64, u32, bool)>,
}

/// What a comparison came to.
enum Verdict {
    Stay,
    /// These have to get ready first.
    After(Box<Plan>, BTreeSet<NodeId>),
    Change,
}

impl Run {
    /// Measurements with every node's speed as its work showed it: in the phase to plan for, or at least in the one before.
    pub(super) fn corrected(&self, measured: Measurements) -> Measurements {
        let trains = self.position().epoch > 0 || matches!(self.state, State::Phase { kind: PhaseKind::Train, .. });
        let pace = if trains && self.train_pace.has_measured() { &self.train_pace } else { &self.fill_pace };
        let devices = measured.devices.into_iter().map(|mut d| {
            d.gflops *= pace.ratio(d.node);
            d
        });
        Measurements { devices: devices.collect(), links: measured.links }
    }

    /// A step that all have reported: how long it took, and who worked how long.
    pub(super) fn note_pace(&mut self, ctx: &Context, is_fill: bool, seconds: f64, reports: &[(NodeId, StepReport)]) {
        let Some(plan) = &self.plan else { return };
        let claimed: Vec<_> = reports
            .iter()
            .filter_map(|(node, report)| {
                let gflops = ctx.swarm.members.get(node)?.profile.gflops;
                Some((*node, self.flops(plan, *node, is_fill) / (gflops.max(1e-3) * 1e9), report.backbone_seconds + report.side_seconds))
            })
            .collect();
        let pace = if is_fill { &mut self.fill_pace } else { &mut self.train_pace };
        for (node, claimed_seconds, measured) in claimed {
            pace.worked(node, claimed_seconds, measured);
        }
        if pace.step(seconds) {
            self.weighing.drifts += 1;
        }
    }

    /// FLOP of a node's part in a step.
    fn flops(&self, plan: &Plan, node: NodeId, is_fill: bool) -> f64 {
        let (cost, options) = (&self.start.cost, &self.start.plan);
        let slots = |members: &[barycenter_protocol::plan::StageMember]| members.iter().find(|m| m.node == node).map(|m| f64::from(m.slots.end - m.slots.start));
        let side = |l: &LayerCost| l.side_forward_flops + l.side_backward_flops;
        let whole = |l: &LayerCost| l.forward_flops + side(l);
        if !is_fill {
            let per_sample = options.mean_tokens * (cost.layers.iter().map(side).sum::<f64>() + side(&cost.embedding)) + options.mean_labels * whole(&cost.head);
            return slots(&plan.train).unwrap_or(0.0) * per_sample;
        }
        let of_stage = |stage: &barycenter_protocol::plan::Stage| {
            let slots = slots(&stage.members)?;
            let mut per_sample = options.mean_tokens * cost.layers[stage.layers.start as usize..stage.layers.end as usize].iter().map(whole).sum::<f64>();
            if stage.layers.start == 0 {
                per_sample += options.mean_tokens * whole(&cost.embedding);
            }
            if stage.layers.end as usize == cost.layers.len() {
                per_sample += options.mean_labels * whole(&cost.head);
            }
            Some(slots * per_sample)
        };
        plan.stages.iter().find_map(of_stage).unwrap_or(0.0)
    }

    /// Seconds of the busiest node of a plan, at the speeds that were measured.
    fn busiest(&self, ctx: &Context, plan: &Plan, is_fill: bool) -> f64 {
        let pace = if is_fill { &self.fill_pace } else { &self.train_pace };
        let speed = |node: NodeId| ctx.swarm.members.get(&node).map_or(1e-3, |m| m.profile.gflops.max(1e-3)) * 1e9 * pace.ratio(node);
        plan.nodes().into_iter().map(|node| self.flops(plan, node, is_fill) / speed(node)).fold(0.0, f64::max)
    }

    /// A checkpoint is there (or somebody has joined): changes the plan in the middle of an epoch, or lets newcomers get ready.
    pub(super) fn weigh_amid(&mut self, ctx: &mut Context, is_at_checkpoint: bool) {
        let State::Phase { kind: kind @ (PhaseKind::Fill | PhaseKind::Train), epoch, held_out_only: false, .. } = self.state else { return };
        if !self.leaving.is_empty() {
            return; // there will be another plan anyway
        }
        let has_newcomers = !self.newcomers(ctx).is_empty() && ctx.swarm.links.all_up(|n| self.takes_part(ctx.now, n));
        let is_ready = match &self.rehearsal {
            Some(rehearsal) if !rehearsal.pending.is_empty() => return,
            rehearsal => rehearsal.is_some(),
        };
        let has_reason = if is_at_checkpoint { self.weighing.drifts > 0 || is_ready || has_newcomers } else { has_newcomers && !is_ready };
        // at the end of an epoch, `changes_at_epoch_end` decides (and after the fill epoch there is a new plan anyway)
        if is_at_checkpoint && self.position().step == 0 {
            return;
        }
        let situation = Some((ctx.swarm.version, self.weighing.drifts, is_ready));
        if self.paused || !has_reason || self.weighing.seen == situation {
            return;
        }
        self.weighing.seen = situation;
        let steps = steps_per_epoch(&self.start.spec);
        let at = self.position().optimiser_steps;
        let end_of_epoch = (epoch + 1) * steps;
        // who has just come gets ready if that pays by the end of the run; a change here and now must pay by the epoch's
        let end = if is_at_checkpoint || kind == PhaseKind::Fill { end_of_epoch } else { self.start.spec.epochs * steps };
        let redone = if is_at_checkpoint { self.last_step.map_or(0, |(e, s)| (e * steps + s + 1).saturating_sub(at)) } else { 0 };
        match self.weigh(ctx, kind, end.saturating_sub(at), redone, !is_at_checkpoint) {
            Verdict::After(plan, nodes) => self.rehearse(ctx, &plan, nodes),
            Verdict::Change if is_at_checkpoint => {
                let at = self.position();
                ctx.event(Level::Info, format!("The plan changes in epoch {}, at the checkpoint before step {}.", at.epoch, at.step));
                self.regenerate(ctx);
            }
            Verdict::Change | Verdict::Stay => {}
        }
    }

    /// The end of a train epoch: whether the next one gets another plan.
    pub(super) fn changes_at_epoch_end(&mut self, ctx: &mut Context, epoch: u32) -> bool {
        // Whoever is still making links is asked about at the end of a later epoch.
        let mut newcomers = self.newcomers(ctx);
        if !newcomers.is_empty() {
            let linked = self.linked(ctx);
            newcomers.retain(|n| linked.devices.iter().any(|d| d.node == *n));
        }
        let is_ready = match &self.rehearsal {
            Some(rehearsal) if !rehearsal.pending.is_empty() => return false,
            rehearsal => rehearsal.is_some(),
        };
        if self.weighing.drifts == 0 && newcomers.is_empty() && !is_ready {
            return false;
        }
        let left = (self.start.spec.epochs - epoch) * steps_per_epoch(&self.start.spec);
        match self.weigh(ctx, PhaseKind::Train, left, 0, true) {
            Verdict::Change => true,
            Verdict::After(plan, nodes) => {
                self.rehearse(ctx, &plan, nodes);
                false
            }
            Verdict::Stay => {
                self.weighing = Weighing::default();
                self.considered.extend(newcomers);
                self.end_rehearsal(ctx);
                false
            }
        }
    }

    /// Nodes that no plan was asked about yet.
    fn newcomers(&self, ctx: &Context) -> BTreeSet<NodeId> {
        ctx.swarm.members.keys().copied().filter(|n| !self.considered.contains(n) && !self.is_left_out(ctx.now, *n)).collect()
    }

    /// Compares the plan at work with the one that would be made now. `horizon`: steps in which a change must pay, `redone`:
    /// steps that it throws away, `heeds_wish`: everybody is to take part if a person wished that, whether it pays or not.
    fn weigh(&mut self, ctx: &Context, kind: PhaseKind, horizon: u32, redone: u32, heeds_wish: bool) -> Verdict {
        let is_fill = kind == PhaseKind::Fill;
        let Some(now) = &self.plan else { return Verdict::Stay };
        // A fill that trains at once goes on as one: only plans of its kind compare with the plan in force.
        let fill = if self.fills { FillWish::Hybrid } else { self.start.plan.fill };
        let Ok((next, considered)) = self.make_plan(ctx, fill) else { return Verdict::Stay };
        let same = if is_fill { next.stages == now.stages && next.micro_batches == now.micro_batches } else { next.train == now.train };
        if same {
            return Verdict::Stay;
        }
        let predicted = if is_fill { next.fill_step_seconds } else { next.train_step_seconds };
        let expected = if is_fill { now.fill_step_seconds } else { now.train_step_seconds };
        let pace = if is_fill { &self.fill_pace } else { &self.train_pace };
        let measured = pace.step_seconds().unwrap_or(expected);
        // by the planner, and by the busiest device alone: what neither of them knows of stays as it is
        let gain = (measured - predicted).min(self.busiest(ctx, now, is_fill) - self.busiest(ctx, &next, is_fill));
        let is_wished = heeds_wish && horizon > 0 && self.start.plan.use_all_nodes && !considered.is_subset(&self.considered);
        let pays = gain >= LEAST_GAIN * measured && gain * f64::from(horizon) > self.price(ctx, &next, is_fill, redone, measured);
        if !is_wished && !pays {
            return Verdict::Stay;
        }
        let at_work: BTreeSet<_> = if is_fill { next.stages.iter().flat_map(|s| &s.members).map(|m| m.node).collect() } else { next.train.iter().map(|m| m.node).collect() };
        let is_ready = |n: &NodeId| self.participants.contains(n) || self.rehearsal.as_ref().is_some_and(|r| r.ready.contains(n));
        let lacking: BTreeSet<_> = at_work.into_iter().filter(|n| !is_ready(n)).collect();
        if lacking.is_empty() { Verdict::Change } else { Verdict::After(Box::new(next), lacking) }
    }

    /// Bandwidth of a node's slowest link.
    pub(super) fn bytes_per_second(&self, ctx: &Context, node: NodeId) -> f64 {
        let links = ctx.swarm.links.profiles();
        let own = links.iter().filter(|l| l.a == node || l.b == node).map(|l| l.bytes_per_second).fold(f64::INFINITY, f64::min);
        if own.is_finite() { own.max(1.0) } else { UNKNOWN_BYTES_PER_SECOND }
    }

    /// Seconds that a change of plan costs.
    fn price(&self, ctx: &Context, next: &Plan, is_fill: bool, redone: u32, step_seconds: f64) -> f64 {
        let bytes_per_second = |node: NodeId| self.bytes_per_second(ctx, node);
        let moving = if is_fill {
            // frozen layers that those at work do not hold yet; newcomers fetch theirs while the others go on
            let held = |node: NodeId| self.plan.iter().flat_map(|p| &p.stages).find(|s| s.members.iter().any(|m| m.node == node)).map_or(0..0, |s| s.layers.clone());
            let fetch = |stage: &barycenter_protocol::plan::Stage, node: NodeId| -> u64 {
                let held = held(node);
                stage.layers.clone().filter(|l| !held.contains(l)).map(|l| self.start.cost.layers[l as usize].weight_bytes).sum()
            };
            let nodes = next.stages.iter().flat_map(|s| s.members.iter().filter(|m| self.participants.contains(&m.node)).map(move |m| (s, m.node)));
            nodes.map(|(stage, node)| fetch(stage, node) as f64 / bytes_per_second(node)).fold(0.0, f64::max)
        } else {
            let spec = &self.start.spec;
            let nodes = self.holdings.iter().filter(|(n, _)| ctx.swarm.members.contains_key(n)).map(|(n, held)| (*n, held)).collect();
            let entry_bytes = self.start.plan.mean_tokens * spec.cache.token_bytes(self.start.cost.width) as f64;
            let transfers = cache::transfers(spec, next, &self.order, &nodes);
            transfers.iter().map(|(node, (_, expect))| *expect as f64 * entry_bytes / bytes_per_second(*node)).fold(0.0, f64::max)
        };
        f64::from(redone) * step_seconds + self.prepare_seconds.unwrap_or(PREPARE_SECONDS) + moving
    }

    /// Lets nodes that are new to the work fetch what a plan asks of them. They start from no checkpoint: the change itself
    /// gives them one.
    pub(super) fn rehearse(&mut self, ctx: &mut Context, plan: &Plan, nodes: BTreeSet<NodeId>) {
        self.used.0 += 1;
        let generation = self.used;
        let ready = self.rehearsal.take().map(|r| r.ready).unwrap_or_default();
        let names: Vec<_> = nodes.iter().map(|n| ctx.swarm.name(*n)).collect();
        ctx.event(Level::Info, format!("{} gets ready while the others go on.", names.join(" and ")));
        self.rehearsal = Some(Rehearsal { generation, pending: nodes.iter().map(|n| (*n, ctx.now)).collect(), ready });
        self.persist(ctx);
        let is_fill = matches!(self.state, State::Phase { kind: PhaseKind::Fill, .. });
        let assignment = Assignment { run: self.id(), generation, spec: self.start.spec.clone(), plan: plan.clone(), checkpoint: None, needs_backbone: is_fill, fills: is_fill };
        for node in nodes {
            ctx.tell(node, ToNode::Prepare(Box::new(assignment.clone())));
        }
    }

    pub(super) fn end_rehearsal(&mut self, ctx: &mut Context) {
        let Some(rehearsal) = self.rehearsal.take() else { return };
        for node in rehearsal.pending.into_keys().chain(rehearsal.ready) {
            ctx.tell(node, ToNode::Abort { generation: rehearsal.generation });
        }
    }

    /// What a node that gets ready says; true if it was about that.
    pub(super) fn rehearsal_message(&mut self, ctx: &mut Context, node: NodeId, message: &FromNode) -> bool {
        let Some(rehearsal) = &mut self.rehearsal else { return false };
        match message {
            FromNode::Prepared { generation, holdings } if *generation == rehearsal.generation => {
                if rehearsal.pending.remove(&node).is_some() {
                    rehearsal.ready.insert(node);
                    self.holds(node, holdings);
                }
                true
            }
            FromNode::Failed { generation, reason } if *generation == rehearsal.generation => {
                self.exclude(ctx, node, reason.clone());
                true
            }
            FromNode::Progress { .. } => match rehearsal.pending.get_mut(&node) {
                Some(last) => {
                    *last = ctx.now;
                    true
                }
                None => false,
            },
            _ => false,
        }
    }

    pub(super) fn rehearsal_deadline(&self, ctx: &Context) -> Option<Micros> {
        self.rehearsal.as_ref()?.pending.values().map(|last| last + ctx.patience.prepare).min()
    }

    pub(super) fn late_for_rehearsal(&self, ctx: &Context) -> Vec<NodeId> {
        let pending = self.rehearsal.iter().flat_map(|r| &r.pending);
        pending.filter(|(_, last)| **last + ctx.patience.prepare <= ctx.now).map(|(n, _)| *n).collect()
    }

    /// A node that was to get ready is gone or cannot: nobody waits for it.
    pub(super) fn leaves_rehearsal(&mut self, node: NodeId) {
        if let Some(rehearsal) = &mut self.rehearsal {
            rehearsal.pending.remove(&node);
            rehearsal.ready.remove(&node);
            if rehearsal.pending.is_empty() && rehearsal.ready.is_empty() {
                self.rehearsal = None;
            }
        }
    }

    pub(super) fn rehearses(&self, node: NodeId) -> bool {
        self.rehearsal.as_ref().is_some_and(|r| r.pending.contains_key(&node) || r.ready.contains(&node))
    }

    /// How long the preparation of the plan in force took.
    pub(super) fn note_prepared(&mut self, now: Micros) {
        if let Some(began) = self.prepare_began.take() {
            self.prepare_seconds = Some(now.saturating_sub(began) as f64 / SECOND as f64);
        }
    }
}
