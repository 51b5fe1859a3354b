//! What time does to a run: who is late, how long a node may be silent, when to look again.

use super::{Context, Run, State};
use crate::coordinator::Patience;
use crate::io::{Micros, SECOND};
use barycenter_protocol::NodeId;

/// How long the end of an epoch waits for its checkpoint before it is redone from the one before.
const CHECKPOINT_PATIENCE: Micros = 30 * SECOND;
/// Silence allowed to a node that gets ready: unpacking weights may keep a page's only thread busy for some seconds.
const BUSY_PREPARING: Micros = 15 * SECOND;

impl Run {
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

    pub(super) fn check_stall(&mut self, ctx: &mut Context) {
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
}
