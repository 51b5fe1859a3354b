//! Micro-batches through the stages: 1F1B with backward in the fill phase, a forward-only stream in the refill.

use super::mailbox::{Inbox, Outbox, Topic};
use super::work::{MicroPart, micro_parts};
use super::{Next, Setup, Tally};
use crate::io::{BlobId, Job, JobResult, RowsIn};
use crate::order::Slotted;
use barycenter_protocol::peer::{MicroKey, PeerMessage, StepKey};
use barycenter_protocol::{NodeId, SampleId};
use std::collections::VecDeque;

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
                    return Next::Job(forward(part, inputs, self.total_labels));
                }
                Err(peers) => missing.extend(peers),
            }
        }
        if self.backwards == self.micros.len() { Next::Done } else { Next::Wait(missing) }
    }

    pub fn job_done(&mut self, result: JobResult, out: &mut Outbox) {
        out.drop_blob(self.held.drain(..));
        match result {
            JobResult::ForwardDone { outputs, loss, backbone_seconds, side_seconds } => {
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

/// The forward-only stream over listed samples.
#[derive(Debug)]
pub(super) struct Refill {
    samples: Vec<SampleId>,
    stage: usize,
    batch: usize,
    next_batch: u32,
    micros: VecDeque<MicroPart>,
    unused: VecDeque<(MicroKey, Vec<NodeId>)>,
    held: Vec<BlobId>,
}

impl Refill {
    pub fn new(setup: &Setup, stage: usize, samples: Vec<SampleId>) -> Self {
        Self { samples, stage, batch: setup.assignment.spec.batch.max(1) as usize, next_batch: 0, micros: VecDeque::new(), unused: VecDeque::new(), held: Vec::new() }
    }

    pub fn next(&mut self, setup: &Setup, inbox: &mut Inbox, out: &mut Outbox, paused: bool) -> Next {
        while let Some((key, peers)) = self.unused.front_mut() {
            peers.retain(|peer| inbox.take(Topic::Used(*key), *peer).is_none());
            if !peers.is_empty() {
                break;
            }
            self.unused.pop_front();
        }
        while self.micros.is_empty() {
            let start = self.next_batch as usize * self.batch;
            if start >= self.samples.len() {
                return match self.unused.front() {
                    Some((_, peers)) => Next::Wait(peers.clone()),
                    None => Next::Done,
                };
            }
            if paused {
                return Next::Hold;
            }
            let end = (start + self.batch).min(self.samples.len());
            let mini_batch: Vec<_> = self.samples[start..end].iter().enumerate().map(|(slot, &sample)| Slotted { slot: slot as u32, sample }).collect();
            let key = StepKey { generation: setup.assignment.generation, epoch: 0, step: self.next_batch };
            self.micros = micro_parts(&setup.assignment.plan, self.stage, setup.id, key, &mini_batch, true).into();
            self.next_batch += 1;
        }
        if let (true, Some((_, peers))) = (self.unused.len() >= REFILL_AHEAD, self.unused.front()) {
            return Next::Wait(peers.clone());
        }
        let part = &self.micros[0];
        match inbox.take_rows(Topic::Activation(part.key), &part.inputs, out) {
            Ok(inputs) => {
                self.held = blobs(&inputs);
                Next::Job(forward(part, inputs, 0))
            }
            Err(peers) => Next::Wait(peers),
        }
    }

    pub fn job_done(&mut self, result: JobResult, out: &mut Outbox) {
        out.drop_blob(self.held.drain(..));
        if let (JobResult::ForwardDone { outputs, .. }, Some(part)) = (result, self.micros.pop_front()) {
            for rows in &part.inputs {
                out.peer(rows.node, PeerMessage::ActivationUsed { key: part.key }, None);
            }
            send_activations(&part, &outputs, out);
            if !part.outputs.is_empty() {
                self.unused.push_back((part.key, part.outputs.iter().map(|r| r.node).collect()));
            }
        }
    }

    /// Part done, 0 … 1.
    pub fn fraction(&self) -> f32 {
        (self.next_batch as usize * self.batch).min(self.samples.len()) as f32 / self.samples.len().max(1) as f32
    }
}

fn forward(part: &MicroPart, inputs: Vec<RowsIn>, total_labels: u64) -> Job {
    Job::Forward { key: part.key, samples: part.samples.clone(), inputs, outputs: part.outputs.clone(), total_labels, cache_write: true }
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
