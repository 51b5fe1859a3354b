//! What a run has done: losses and times by (epoch, step). A redone step overwrites.

use super::SavedStep;
use crate::io::{Micros, SECOND};
use crate::order::{EpochOrder, SampleOrder, Slotted};
use barycenter_protocol::api::EpochView;
use barycenter_protocol::control::{PhaseKind, StepReport};
use barycenter_protocol::{NodeId, SampleId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Steps whose wall-clock times give the rate that predictions use.
const RATE_WINDOW: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Books {
    steps: BTreeMap<(u32, u32), SavedStep>,
    open: BTreeMap<(u32, u32), BTreeMap<NodeId, StepReport>>,
    /// Steps that a generation ended before all had reported: what came so far, for what may still come.
    late: BTreeMap<(u32, u32), BTreeMap<NodeId, StepReport>>,
    order: Option<(u32, EpochOrder)>,
    step_began: Micros,
    epoch_began: BTreeMap<u32, Micros>,
    epoch_before: BTreeMap<u32, f64>,
    rates: BTreeMap<bool, VecDeque<f64>>,
    closed_epoch: Option<u32>,
    pub held_out_epoch: Option<u32>,
    held_out: BTreeMap<NodeId, (f64, u64)>,
}

/// A step that all its nodes have reported.
pub(super) struct ClosedStep {
    pub sums: SavedStep,
    pub gradient_norm: f64,
    pub seconds: f64,
    /// Whether the reported samples are exactly the mini-batch.
    pub is_exact: bool,
    /// What every node reported.
    pub reports: Vec<(NodeId, StepReport)>,
}

impl Books {
    /// From a snapshot's steps of `epoch`.
    pub fn restore(epoch: u32, steps: &[SavedStep], epoch_seconds: f64, held_out_epoch: Option<u32>) -> Self {
        Self {
            steps: steps.iter().map(|s| ((epoch, s.step), *s)).collect(),
            epoch_before: BTreeMap::from([(epoch, epoch_seconds)]),
            closed_epoch: epoch.checked_sub(1),
            held_out_epoch,
            ..Self::default()
        }
    }

    /// Steps of an epoch before `step`, and the seconds it took so far.
    pub fn save(&self, now: Micros, epoch: u32, step: u32) -> (Vec<SavedStep>, f64) {
        (self.steps.range((epoch, 0)..(epoch, step)).map(|(_, s)| *s).collect(), self.epoch_seconds(now, epoch))
    }

    /// A generation starts here: what lies at or after it is to be done again; epochs before are closed. A step before
    /// it was applied everywhere, even if somebody was gone before reporting it: it counts as far as it was reported. These
    /// steps are given back.
    pub fn rewind(&mut self, epoch: u32, step: u32) -> Vec<((u32, u32), SavedStep)> {
        let mut partly = Vec::new();
        for (at, reports) in std::mem::take(&mut self.open) {
            if at < (epoch, step) && !self.steps.contains_key(&at) {
                let sums = sums(at.1, reports.values());
                self.steps.insert(at, sums);
                self.late.insert(at, reports);
                partly.push((at, sums));
            }
        }
        self.held_out.clear();
        self.steps.retain(|at, _| *at < (epoch, step) && at.0 + 1 >= epoch);
        self.late.retain(|at, _| *at < (epoch, step) && at.0 + 1 >= epoch);
        partly
    }

    /// Takes a report that came after its generation had ended; the step with it, if it was still incomplete.
    pub fn late_report(&mut self, node: NodeId, report: StepReport) -> Option<SavedStep> {
        let at = (report.epoch, report.step);
        let reports = self.late.get_mut(&at)?;
        if reports.values().any(|known| known.generation != report.generation) {
            return None;
        }
        reports.insert(node, report);
        let sums = sums(at.1, reports.values());
        self.steps.insert(at, sums);
        Some(sums)
    }

    /// An epoch (or what is left of it) begins.
    pub fn begin(&mut self, now: Micros, epoch: u32) {
        self.step_began = now;
        self.epoch_began.entry(epoch).or_insert(now);
    }

    /// Seconds since the last step was complete (or the phase began).
    pub fn seconds_in_step(&self, now: Micros) -> f64 {
        seconds(now.saturating_sub(self.step_began))
    }

    fn epoch_seconds(&self, now: Micros, epoch: u32) -> f64 {
        let before = self.epoch_before.get(&epoch).copied().unwrap_or(0.0);
        before + self.epoch_began.get(&epoch).map_or(0.0, |began| seconds(now.saturating_sub(*began)))
    }

    /// Takes a node's report; the step if that was the last of `nodes`.
    pub fn report(&mut self, now: Micros, node: NodeId, report: StepReport, nodes: &BTreeSet<NodeId>, order: &SampleOrder, is_fill: bool) -> Option<ClosedStep> {
        let at = (report.epoch, report.step);
        let reports = self.open.entry(at).or_default();
        reports.insert(node, report);
        if !nodes.iter().all(|n| reports.contains_key(n)) {
            return None;
        }
        let reports = self.open.remove(&at)?;
        let sums = sums(at.1, reports.values());
        let mut samples: Vec<SampleId> = reports.values().flat_map(|r| r.samples.iter().copied()).collect();
        let gradient_norm = reports.values().next_back().map_or(0.0, |r| r.gradient_norm);
        self.steps.insert(at, sums);
        let took = seconds(now.saturating_sub(self.step_began));
        self.step_began = now;
        let rates = self.rates.entry(is_fill).or_default();
        rates.push_back(took);
        if rates.len() > RATE_WINDOW {
            rates.pop_front();
        }
        if self.order.as_ref().is_none_or(|(epoch, _)| *epoch != at.0) {
            self.order = Some((at.0, order.epoch(at.0)));
        }
        let mut wanted: Vec<_> = self.order.iter().flat_map(|(_, order)| order.mini_batch(at.1)).map(|s| s.sample).collect();
        wanted.sort();
        samples.sort();
        Some(ClosedStep { sums, gradient_norm, seconds: took, is_exact: samples == wanted, reports: reports.into_iter().collect() })
    }

    /// The mini-batch of a step of the epoch that was reported last.
    pub fn mini_batch(&self, step: u32) -> Vec<Slotted> {
        self.order.as_ref().map_or(Vec::new(), |(_, order)| order.mini_batch(step))
    }

    /// An epoch whose last step is done, the first time it is asked for.
    pub fn close_epoch(&mut self, now: Micros, epoch: u32, phase: PhaseKind) -> Option<EpochView> {
        let done: Vec<_> = self.steps.range((epoch, 0)..(epoch + 1, 0)).map(|(_, s)| s).collect();
        if done.is_empty() || self.closed_epoch >= Some(epoch) {
            return None;
        }
        let sum = |f: fn(&SavedStep) -> f64| done.iter().map(|s| f(s)).sum::<f64>();
        let view = EpochView {
            epoch,
            phase,
            seconds: self.epoch_seconds(now, epoch),
            loss: sum(|s| s.loss_sum) / sum(|s| s.tokens as f64).max(1.0),
            backbone_seconds: sum(|s| s.backbone_seconds),
            side_seconds: sum(|s| s.side_seconds),
            wait_seconds: sum(|s| s.wait_seconds),
        };
        self.closed_epoch = Some(epoch);
        Some(view)
    }

    /// A node's part of the held-out loss.
    pub fn held_out(&mut self, node: NodeId, loss_sum: f64, tokens: u64) {
        self.held_out.insert(node, (loss_sum, tokens));
    }

    /// The mean over all parts, once, at the end of an epoch.
    pub fn close_held_out(&mut self, epoch: u32) -> Option<f64> {
        self.held_out_epoch = Some(epoch);
        let parts = std::mem::take(&mut self.held_out);
        let tokens = parts.values().fold(0u64, |sum, p| sum.saturating_add(p.1));
        (tokens > 0).then(|| parts.values().map(|p| p.0).sum::<f64>() / tokens as f64)
    }

    /// Measured seconds per step in a phase, where there are any.
    pub fn rate(&self, is_fill: bool) -> Option<f64> {
        let rates = self.rates.get(&is_fill).filter(|r| !r.is_empty())?;
        Some(rates.iter().sum::<f64>() / rates.len() as f64)
    }

    /// Rates of an earlier plan say nothing about the next.
    pub fn forget_rates(&mut self) {
        self.rates.clear();
    }
}

fn sums<'a>(step: u32, reports: impl Iterator<Item = &'a StepReport>) -> SavedStep {
    let mut sums = SavedStep { step, loss_sum: 0.0, tokens: 0, backbone_seconds: 0.0, side_seconds: 0.0, wait_seconds: 0.0 };
    for report in reports {
        sums.loss_sum += report.loss_sum;
        sums.tokens = sums.tokens.saturating_add(report.tokens);
        sums.backbone_seconds += report.backbone_seconds;
        sums.side_seconds += report.side_seconds;
        sums.wait_seconds += report.wait_seconds;
    }
    sums
}

fn seconds(micros: Micros) -> f64 {
    micros as f64 / SECOND as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use barycenter_protocol::Generation;

    fn report(generation: u32, step: u32, loss_sum: f64) -> StepReport {
        StepReport { generation: Generation(generation), epoch: 1, step, loss_sum, tokens: 2, samples: Vec::new(), gradient_norm: 1.0, backbone_seconds: 0.0, side_seconds: 0.5, wait_seconds: 0.0 }
    }

    /// A plan changes at a step that one node has reported and the other has only applied.
    #[test]
    fn a_step_that_a_new_plan_overtook_counts_what_is_said_of_it_later() {
        let (first, second) = (NodeId(1), NodeId(2));
        let order = SampleOrder::new(4, 2, 1);
        let mut books = Books::default();
        assert!(books.report(0, first, report(1, 3, 4.0), &BTreeSet::from([first, second]), &order, false).is_none());
        let partly = books.rewind(1, 4);
        assert_eq!(partly.iter().map(|(at, sums)| (*at, sums.loss_sum, sums.tokens)).collect::<Vec<_>>(), [((1, 3), 4.0, 2)]);
        assert!(books.late_report(second, report(2, 3, 5.0)).is_none(), "of another plan");
        assert!(books.late_report(second, report(1, 2, 5.0)).is_none(), "a step that was whole");
        let whole = books.late_report(second, report(1, 3, 5.0)).expect("the step is known");
        assert_eq!((whole.loss_sum, whole.tokens), (9.0, 4));
        assert_eq!(books.save(0, 1, 4).0.iter().map(|step| step.loss_sum).collect::<Vec<_>>(), [9.0]);
        books.rewind(1, 2);
        assert!(books.late_report(first, report(1, 3, 5.0)).is_none(), "a step that is done again");
    }
}
