//! Micro-batches through the stages: 1F1B with backward in the fill phase, a forward-only stream in the refill.

use super::mailbox::{CacheArrival, Inbox, Outbox, Topic};
use super::work::{MicroPart, micro_parts};
use super::{Next, Setup, Tally};
use crate::io::{BlobId, Entries, Job, JobResult, RowsIn};
use crate::order::Slotted;
use barycenter_protocol::peer::{MicroKey, PeerMessage, StepKey};
use barycenter_protocol::{NodeId, SampleId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A forward-only sender runs at most so many micro-batches ahead of the stage after it: enough to hide a round trip,
/// little enough for the receiver's memory.
const REFILL_AHEAD: usize = 4;

/// One mini-batch of the fill phase at one node.
#[derive(Debug)]
pub(super) struct Pipeline {
    micros: Vec<MicroPart>,
    total_labels: u64,
    /// Forwards without their backward, at most (stages − my index).
    in_flight: usize,
    forwards: usize,
    backwards: usize,
    held: Vec<BlobId>,
    pub tally: Tally,
}

impl Pipeline {
    pub fn new(setup: &Setup, stage: usize, key: StepKey, mini_batch: &[Slotted]) -> Self {
        let plan = &setup.assignment.plan;
        Self {
            micros: micro_parts(plan, stage, setup.id, key, mini_batch, false),
            total_labels: setup.labels(mini_batch.iter().map(|s| s.sample)),
            in_flight: plan.stages.len() - stage,
            forwards: 0,
            backwards: 0,
            held: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Backward first, in order; then forward, in order, while few enough are in flight. The lowest unfinished
    /// micro-batch is never held back by others, so that the stages cannot block each other.
    pub fn next(&mut self, inbox: &mut Inbox, out: &mut Outbox) -> Next {
        let mut missing = Vec::new();
        if self.backwards < self.forwards {
            let part = &self.micros[self.backwards];
            match inbox.take_rows(Topic::SideGradient(part.key), &part.outputs, out) {
                Ok(inputs) => {
                    self.held = blobs(&inputs);
                    return Next::Job(Job::Backward { key: part.key, samples: part.samples.clone(), inputs, outputs: part.inputs.clone() });
                }
                Err(peers) => missing.extend(peers),
            }
        }
        if self.forwards < self.micros.len() && self.forwards - self.backwards < self.in_flight {
            let part = &self.micros[self.forwards];
            match inbox.take_rows(Topic::Activation(part.key), &part.inputs, out) {
                Ok(inputs) => {
                    self.held = blobs(&inputs);
                    return Next::Job(forward(part, inputs, self.total_labels, Vec::new()));
                }
                Err(peers) => missing.extend(peers),
            }
        }
        if self.backwards == self.micros.len() { Next::Done } else { Next::Wait(missing) }
    }

    pub fn job_done(&mut self, result: JobResult, out: &mut Outbox) {
        out.drop_blob(self.held.drain(..));
        match result {
            JobResult::ForwardDone { outputs, loss, backbone_seconds, side_seconds, .. } => {
                let part = &self.micros[self.forwards];
                send_activations(part, &outputs, out);
                if let Some(loss) = loss {
                    self.tally.loss.loss_sum += loss.loss_sum;
                    self.tally.loss.tokens += loss.tokens;
                    self.tally.samples.extend(&part.samples);
                }
                self.tally.backbone_seconds += backbone_seconds;
                self.tally.side_seconds += side_seconds;
                self.forwards += 1;
            }
            JobResult::BackwardDone { outputs, side_seconds } => {
                let part = &self.micros[self.backwards];
                for (rows, blob) in part.inputs.iter().zip(&outputs) {
                    out.peer(rows.node, PeerMessage::SideGradient { key: part.key, samples: rows.samples.clone() }, Some(*blob));
                }
                out.drop_blob(outputs);
                self.tally.side_seconds += side_seconds;
                self.backwards += 1;
            }
            _ => {}
        }
    }
}

/// The forward-only stream over listed samples, and what others send here to be kept.
#[derive(Debug)]
pub(super) struct Refill {
    samples: Vec<SampleId>,
    /// `None`: this node only keeps entries.
    stage: Option<usize>,
    batch: usize,
    next_batch: u32,
    micros: VecDeque<MicroPart>,
    unused: VecDeque<(MicroKey, Vec<NodeId>)>,
    held: Vec<BlobId>,
    /// Of the last micro-batches, how many samples' entries each keeper has not stored yet.
    unstored: VecDeque<BTreeMap<NodeId, usize>>,
    expect: u64,
    received: u64,
    writes: Option<CacheArrival>,
}

impl Refill {
    pub fn new(setup: &Setup, stage: Option<usize>, samples: Vec<SampleId>, expect: u64) -> Self {
        Self {
            samples,
            stage,
            batch: setup.assignment.spec.batch.max(1) as usize,
            next_batch: 0,
            micros: VecDeque::new(),
            unused: VecDeque::new(),
            held: Vec::new(),
            unstored: VecDeque::new(),
            expect,
            received: 0,
            writes: None,
        }
    }

    pub fn next(&mut self, setup: &Setup, inbox: &mut Inbox, out: &mut Outbox, paused: bool) -> Next {
        while let Some((key, peers)) = self.unused.front_mut() {
            peers.retain(|peer| inbox.take(Topic::Used(*key), *peer).is_none());
            if !peers.is_empty() {
                break;
            }
            self.unused.pop_front();
        }
        self.note_stored(inbox);
        // who sends them waits for their being stored
        if let Some(arrival) = inbox.take_cache_if(|arrival| setup.has_taps(arrival) && setup.keeper(arrival.sample) == setup.id) {
            let job = Job::WriteCache { sample: arrival.sample, first_tap: u32::from(arrival.first_tap), lengths: arrival.lengths.clone(), blob: arrival.blob };
            self.writes = Some(arrival);
            return Next::Job(job);
        }
        inbox.drop_cache(out);
        while self.micros.is_empty() {
            let start = self.next_batch as usize * self.batch;
            let Some(stage) = self.stage.filter(|_| start < self.samples.len()) else {
                return self.rest(setup);
            };
            if paused {
                return Next::Hold;
            }
            let end = (start + self.batch).min(self.samples.len());
            let mini_batch: Vec<_> = self.samples[start..end].iter().enumerate().map(|(slot, &sample)| Slotted { slot: slot as u32, sample }).collect();
            let key = StepKey { generation: setup.assignment.generation, epoch: 0, step: self.next_batch };
            self.micros = micro_parts(&setup.assignment.plan, stage, setup.id, key, &mini_batch, true).into();
            self.next_batch += 1;
        }
        if let (true, Some((_, peers))) = (self.unused.len() >= REFILL_AHEAD, self.unused.front()) {
            return Next::Wait(peers.clone());
        }
        if self.unstored.len() >= REFILL_AHEAD {
            return Next::Wait(self.unstored[0].keys().copied().collect());
        }
        let part = &self.micros[0];
        match inbox.take_rows(Topic::Activation(part.key), &part.inputs, out) {
            Ok(inputs) => {
                self.held = blobs(&inputs);
                let hand_on = part.samples.iter().copied().filter(|sample| setup.keeper(*sample) != setup.id).collect();
                Next::Job(forward(part, inputs, 0, hand_on))
            }
            Err(peers) => Next::Wait(peers),
        }
    }

    /// Everything of this node's own is computed.
    fn rest(&self, setup: &Setup) -> Next {
        if let Some((_, peers)) = self.unused.front() {
            return Next::Wait(peers.clone());
        }
        if let Some(keepers) = self.unstored.front() {
            return Next::Wait(keepers.keys().copied().collect());
        }
        if self.received < self.expect {
            let members = setup.assignment.plan.stages.iter().flat_map(|s| &s.members).map(|m| m.node);
            let others: BTreeSet<_> = members.filter(|n| *n != setup.id).collect();
            return Next::Wait(others.into_iter().collect());
        }
        Next::Done
    }

    /// Keepers store in the order of arrival.
    fn note_stored(&mut self, inbox: &mut Inbox) {
        for micro in &mut self.unstored {
            micro.retain(|keeper, left| {
                *left -= inbox.take_stored_by(*keeper, *left);
                *left > 0
            });
        }
        self.unstored.retain(|micro| !micro.is_empty());
    }

    pub fn job_done(&mut self, setup: &Setup, result: JobResult, out: &mut Outbox) {
        let generation = setup.assignment.generation;
        if let Some(arrival) = self.writes.take() {
            out.drop_blob([arrival.blob]);
            self.received += arrival.lengths.len() as u64;
            out.peer(arrival.from, PeerMessage::CacheStored { generation, sample: arrival.sample, first_tap: arrival.first_tap }, None);
            return;
        }
        out.drop_blob(self.held.drain(..));
        if let (JobResult::ForwardDone { outputs, entries, .. }, Some(part)) = (result, self.micros.pop_front()) {
            for rows in &part.inputs {
                out.peer(rows.node, PeerMessage::ActivationUsed { key: part.key }, None);
            }
            send_activations(&part, &outputs, out);
            if !part.outputs.is_empty() {
                self.unused.push_back((part.key, part.outputs.iter().map(|r| r.node).collect()));
            }
            let mut unstored: BTreeMap<NodeId, usize> = BTreeMap::new();
            for Entries { sample, first_tap, lengths, blob } in entries {
                let keeper = setup.keeper(sample);
                out.peer(keeper, PeerMessage::CacheEntries { generation, sample, first_tap: first_tap as u16, lengths }, Some(blob));
                out.drop_blob([blob]);
                *unstored.entry(keeper).or_default() += 1;
            }
            if !unstored.is_empty() {
                self.unstored.push_back(unstored);
            }
        }
    }

    /// Part done, 0 … 1.
    pub fn fraction(&self) -> f32 {
        if self.stage.is_none() {
            return self.received as f32 / self.expect.max(1) as f32;
        }
        (self.next_batch as usize * self.batch).min(self.samples.len()) as f32 / self.samples.len().max(1) as f32
    }
}

fn forward(part: &MicroPart, inputs: Vec<RowsIn>, total_labels: u64, hand_on: Vec<SampleId>) -> Job {
    Job::Forward { key: part.key, samples: part.samples.clone(), inputs, outputs: part.outputs.clone(), total_labels, cache_write: true, hand_on }
}

fn send_activations(part: &MicroPart, outputs: &[BlobId], out: &mut Outbox) {
    for (rows, blob) in part.outputs.iter().zip(outputs) {
        out.peer(rows.node, PeerMessage::Activation { key: part.key, samples: rows.samples.clone() }, Some(*blob));
    }
    out.drop_blob(outputs.iter().copied());
}

fn blobs(inputs: &[RowsIn]) -> Vec<BlobId> {
    inputs.iter().map(|r| r.blob).collect()
}
