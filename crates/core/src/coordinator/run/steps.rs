//! The steps of a run as nodes report them: what is kept of them and shown.

use super::{Context, Run, State, cache};
use crate::coordinator::{Level, RunProgress, SavedStep, StepRecord};
use crate::schedule::{steps_per_epoch, total_steps};
use barycenter_protocol::NodeId;
use barycenter_protocol::control::{PhaseKind, StepReport};
use barycenter_protocol::plan::FillMode;
use std::collections::BTreeSet;

impl Run {
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

    pub(super) fn step_done(&mut self, ctx: &mut Context, node: NodeId, report: StepReport) {
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
    pub(super) fn show_loss(&self, ctx: &mut Context, at: (u32, u32), sums: SavedStep) {
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

    pub(super) fn close_epoch(&mut self, ctx: &mut Context, epoch: u32) {
        let phase = if epoch == 0 && self.fills { PhaseKind::Fill } else { PhaseKind::Train };
        if let Some(view) = self.books.close_epoch(ctx.now, epoch, phase) {
            ctx.progress(self.id(), RunProgress::Epoch(view));
        }
    }

    pub(super) fn seconds_left(&self, optimiser_steps: u32) -> f64 {
        let Some(plan) = &self.plan else { return 0.0 };
        let spec = &self.start.spec;
        let fill_left = if self.fills { steps_per_epoch(spec).saturating_sub(optimiser_steps) } else { 0 };
        let streams = plan.fill == FillMode::ForwardOnly && matches!(self.state, State::Preparing { .. } | State::Phase { kind: PhaseKind::Refill, .. });
        let stream_left = if streams { f64::from(steps_per_epoch(spec)) * (plan.fill_step_seconds - plan.train_step_seconds) } else { 0.0 };
        let train_left = total_steps(spec).saturating_sub(optimiser_steps) - fill_left;
        stream_left + f64::from(fill_left) * self.books.rate(true).unwrap_or(plan.fill_step_seconds) + f64::from(train_left) * self.books.rate(false).unwrap_or(plan.train_step_seconds)
    }
}
