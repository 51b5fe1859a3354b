//! The phases of a generation, one after the other, up to its end at a checkpoint.

use super::{Context, Run, State, cache};
use crate::coordinator::{Level, RunProgress};
use crate::schedule::steps_per_epoch;
use barycenter_protocol::api::RunState;
use barycenter_protocol::control::{Phase, PhaseKind, ToNode};
use barycenter_protocol::{NodeId, SampleId};
use std::collections::BTreeSet;

/// Refills in a row that leave something missing before the run is given up.
const MAX_FRUITLESS_REFILLS: u32 = 3;

impl Run {
    fn missing(&self) -> Vec<SampleId> {
        cache::missing(&self.start.spec, self.participants.iter().filter_map(|n| self.holdings.get(n)))
    }

    fn stage_members(&self) -> BTreeSet<NodeId> {
        self.plan.iter().flat_map(|p| &p.stages).flat_map(|s| &s.members).map(|m| m.node).collect()
    }

    /// Who keeps cache entries for others: it serves them while they train.
    pub(super) fn keepers(&self) -> BTreeSet<NodeId> {
        self.plan.iter().flat_map(|p| &p.stores).map(|m| m.node).collect()
    }

    pub(super) fn prepared(&mut self, ctx: &mut Context) {
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

    fn refill(&mut self, ctx: &mut Context, samples: Vec<SampleId>) {
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

    pub(super) fn begin(&mut self, ctx: &mut Context, kind: PhaseKind, epoch: u32, phases: Vec<(NodeId, Phase)>) {
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

    pub(super) fn phase_done(&mut self, ctx: &mut Context) {
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
    pub(super) fn boundary(&mut self, ctx: &mut Context, (epoch, step): (u32, u32)) {
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
}
