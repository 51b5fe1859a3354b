//! What every device did when: jobs, transfers, presence, phases; and bytes over every link.

use barycenter_core::io::{Job, Micros};
use barycenter_protocol::control::PhaseKind;
use barycenter_protocol::peer::TrafficKind;
use std::collections::BTreeMap;

/// Kinds of jobs that are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum JobKind {
    /// Getting ready for a generation, downloads included.
    Prepare,
    /// Forward, backward, steps from the cache.
    Train,
    /// Reading, summing and applying gradients.
    Reduce,
    /// Reading and writing cache entries that travel.
    Cache,
    /// Anything else.
    Other,
}

impl JobKind {
    pub(crate) fn of(job: &Job) -> Self {
        match job {
            Job::Prepare { .. } => Self::Prepare,
            Job::Forward { .. } | Job::Backward { .. } | Job::CachedStep { .. } => Self::Train,
            Job::MeasureGradient { .. } | Job::ReadGradient { .. } | Job::SumShard { .. } | Job::ApplyUpdate { .. } => Self::Reduce,
            Job::ReadCache { .. } | Job::WriteCache { .. } => Self::Cache,
            _ => Self::Other,
        }
    }
}

/// A job from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobSpan {
    /// Start.
    pub from: Micros,
    /// End.
    pub to: Micros,
    /// What.
    pub kind: JobKind,
}

/// What a device is seen doing; the first that applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// A job runs, other than getting ready.
    Compute,
    /// Gets ready for a generation (and downloads for it).
    Prepare,
    /// No job runs, and something is being sent.
    Send,
    /// Has a part in the phase, and can go on only when others have sent something.
    Wait,
    /// Is there, without a part in what is going on.
    Rest,
    /// Is not there.
    Away,
}

/// A state from one time to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Start.
    pub from: Micros,
    /// End.
    pub to: Micros,
    /// What.
    pub state: State,
}

/// Intervals, ascending and disjoint; the last may be open.
#[derive(Clone, Debug, Default)]
struct Intervals {
    closed: Vec<(Micros, Micros)>,
    open: Option<Micros>,
    depth: u32,
}

impl Intervals {
    fn enter(&mut self, now: Micros) {
        self.depth += 1;
        self.open.get_or_insert(now);
    }

    fn leave(&mut self, now: Micros) {
        self.depth = self.depth.saturating_sub(1);
        if self.depth == 0 {
            self.end(now);
        }
    }

    fn end(&mut self, now: Micros) {
        self.depth = 0;
        if let Some(from) = self.open.take() {
            self.push(from, now);
        }
    }

    fn push(&mut self, from: Micros, to: Micros) {
        match self.closed.last_mut() {
            Some(last) if last.1 >= from => last.1 = last.1.max(to),
            _ if to > from => self.closed.push((from, to)),
            _ => {}
        }
    }

    fn until(&self, end: Micros) -> Vec<(Micros, Micros)> {
        let mut all = self.closed.clone();
        all.extend(self.open.filter(|from| *from < end).map(|from| (from, end)));
        all
    }
}

#[derive(Clone, Debug, Default)]
struct Record {
    jobs: Vec<JobSpan>,
    present: Intervals,
    working: Intervals,
    sending: Intervals,
}

/// Everything recorded of a household.
#[derive(Clone, Debug, Default)]
pub struct Meter {
    records: Vec<Record>,
    bytes: BTreeMap<(usize, usize, &'static str), u64>,
    /// (time, phase, epoch) of every phase that began.
    pub phases: Vec<(Micros, PhaseKind, u32)>,
    /// Bytes the server sent (weights, checkpoints) and received (checkpoints).
    pub server_bytes: (u64, u64),
}

impl Meter {
    pub(crate) fn new(devices: usize) -> Self {
        Self { records: vec![Record::default(); devices], ..Self::default() }
    }

    pub(crate) fn job(&mut self, device: usize, span: JobSpan) {
        self.records[device].jobs.push(span);
    }

    pub(crate) fn presence(&mut self, device: usize, now: Micros, is_there: bool) {
        let record = &mut self.records[device];
        if is_there {
            record.present.enter(now);
        } else {
            record.present.end(now);
            record.working.end(now);
        }
    }

    pub(crate) fn working(&mut self, device: usize, now: Micros, is_working: bool) {
        let working = &mut self.records[device].working;
        if is_working && working.open.is_none() {
            working.enter(now);
        } else if !is_working {
            working.end(now);
        }
    }

    pub(crate) fn sending(&mut self, device: usize, now: Micros, begins: bool) {
        if let Some(record) = self.records.get_mut(device) {
            if begins { record.sending.enter(now) } else { record.sending.leave(now) }
        }
    }

    pub(crate) fn sent(&mut self, from: usize, to: usize, kind: TrafficKind, bytes: u64) {
        *self.bytes.entry((from, to, kind_name(kind))).or_default() += bytes;
    }

    /// Bytes sent, by (from, to, kind).
    pub fn bytes(&self) -> &BTreeMap<(usize, usize, &'static str), u64> {
        &self.bytes
    }

    /// Jobs of a device that ended, by start.
    pub fn jobs(&self, device: usize) -> &[JobSpan] {
        &self.records[device].jobs
    }

    /// What a device was seen doing from 0 to `end`, without gaps.
    pub fn timeline(&self, device: usize, end: Micros) -> Vec<Span> {
        let record = &self.records[device];
        let jobs = |wanted: bool| -> Vec<_> { record.jobs.iter().filter(|j| (j.kind == JobKind::Prepare) == wanted).map(|j| (j.from, j.to)).collect() };
        let layers = [
            (State::Rest, record.present.until(end)),
            (State::Wait, record.working.until(end)),
            (State::Send, record.sending.until(end)),
            (State::Prepare, jobs(true)),
            (State::Compute, jobs(false)),
        ];
        // sweep: at every border, the strongest state that is open
        let mut borders: Vec<(Micros, usize, bool)> = Vec::new();
        for (i, (_, intervals)) in layers.iter().enumerate() {
            for &(from, to) in intervals {
                if from < end && to > from {
                    borders.push((from, i, true));
                    borders.push((to.min(end), i, false));
                }
            }
        }
        borders.sort();
        let mut open = [0u32; 5];
        let mut spans: Vec<Span> = Vec::new();
        let mut at = 0;
        let mut push = |from: Micros, to: Micros, state: State| match spans.last_mut() {
            _ if to <= from => {}
            Some(last) if last.state == state => last.to = to,
            _ => spans.push(Span { from, to, state }),
        };
        for (time, layer, opens) in borders {
            let strongest = (0..5).rev().find(|i| open[*i] > 0).map_or(State::Away, |i| layers[i].0);
            // sending in the background of a device that has left is over
            let state = if open[0] == 0 { State::Away } else { strongest };
            push(at, time, state);
            at = at.max(time);
            if opens { open[layer] += 1 } else { open[layer] -= 1 }
        }
        push(at, end, State::Away);
        spans
    }
}

fn kind_name(kind: TrafficKind) -> &'static str {
    match kind {
        TrafficKind::Activations => "activations",
        TrafficKind::SideGradients => "side gradients",
        TrafficKind::AdapterGradients => "adapter gradients",
        TrafficKind::Cache => "cache",
        TrafficKind::Other => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_seen_in_the_strongest_of_its_states_and_without_gaps() {
        let mut meter = Meter::new(1);
        meter.presence(0, 10, true);
        meter.working(0, 20, true);
        meter.job(0, JobSpan { from: 30, to: 40, kind: JobKind::Train });
        meter.sending(0, 35, true);
        meter.sending(0, 50, false);
        meter.working(0, 60, false);
        meter.presence(0, 80, false);
        let seen: Vec<_> = meter.timeline(0, 100).iter().map(|s| (s.from, s.to, s.state)).collect();
        assert_eq!(
            seen,
            [(0, 10, State::Away), (10, 20, State::Rest), (20, 30, State::Wait), (30, 40, State::Compute), (40, 50, State::Send), (50, 60, State::Wait), (60, 80, State::Rest), (80, 100, State::Away)]
        );
    }
}
