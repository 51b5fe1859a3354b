//! The end of an optimiser step: AllReduce inside a group, global norm over all groups, update.
//!
//! Rank j of a group owns shard j of the flat gradient: every rank sends it its shard j, the owner sums in rank order
//! and sends the sum to all. Norms are summed by (stage, rank) on every node: all see the same bits.

use super::mailbox::{Inbox, Outbox, Topic};
use super::{Next, Setup};
use crate::io::{BlobId, Job, JobResult};
use crate::schedule;
use barycenter_protocol::NodeId;
use barycenter_protocol::peer::{PeerMessage, StepKey};

/// Who takes part: `groups[stage]` in rank order; the train phase has one group.
#[derive(Clone, Debug)]
pub(super) struct Groups {
    pub groups: Vec<Vec<NodeId>>,
    pub mine: usize,
}

#[derive(Debug)]
enum State {
    Start,
    Collect { own: BlobId },
    Summing { inputs: Vec<BlobId> },
    Gather { own: Option<BlobId>, squared: f64 },
    Applying { shards: Vec<BlobId>, norm: f64 },
    Done { norm: f64 },
}

/// One step's reduction at one node.
#[derive(Debug)]
pub(super) struct Reduce {
    key: StepKey,
    groups: Groups,
    rank: usize,
    optimiser_step: u32,
    state: State,
    pub seconds: f64,
}

impl Reduce {
    pub fn new(me: NodeId, key: StepKey, groups: Groups, optimiser_step: u32) -> Self {
        let rank = groups.groups[groups.mine].iter().position(|n| *n == me).unwrap_or(0);
        Self { key, groups, rank, optimiser_step, state: State::Start, seconds: 0.0 }
    }

    fn group(&self) -> &[NodeId] {
        &self.groups.groups[self.groups.mine]
    }

    fn others(&self) -> impl Iterator<Item = (usize, NodeId)> + '_ {
        self.group().iter().copied().enumerate().filter(|(rank, _)| *rank != self.rank)
    }

    /// Norm of the gradient, once applied.
    pub fn norm(&self) -> Option<f64> {
        if let State::Done { norm } = self.state { Some(norm) } else { None }
    }

    pub fn next(&mut self, setup: &Setup, inbox: &mut Inbox) -> Next {
        let me = self.rank as u16;
        match &self.state {
            State::Start if self.group().len() == 1 => Next::Job(Job::MeasureGradient { key: self.key }),
            State::Start => Next::Job(Job::ReadGradient { key: self.key, shards: self.group().len() as u16 }),
            State::Collect { own } => {
                let missing = inbox.missing(Topic::Shard(self.key, me), self.others().map(|(_, n)| n));
                if !missing.is_empty() {
                    return Next::Wait(missing);
                }
                let (own, rank) = (*own, self.rank);
                let inputs: Vec<_> = self.group().iter().enumerate().filter_map(|(r, n)| if r == rank { Some(own) } else { inbox.take(Topic::Shard(self.key, me), *n)?.blob }).collect();
                self.state = State::Summing { inputs: inputs.clone() };
                Next::Job(Job::SumShard { key: self.key, inputs })
            }
            State::Gather { own, squared } => {
                let my_place = (self.groups.mine, self.rank);
                let places: Vec<_> = self.groups.groups.iter().enumerate().flat_map(|(g, members)| members.iter().enumerate().map(move |(r, n)| ((g, r), *n))).collect();
                let mut missing = inbox.missing(Topic::Norm(self.key), places.iter().filter(|(p, _)| *p != my_place).map(|(_, n)| *n));
                missing.extend(self.others().filter(|(rank, n)| !inbox.missing(Topic::Reduced(self.key, *rank as u16), std::iter::once(*n)).is_empty()).map(|(_, n)| n));
                if !missing.is_empty() {
                    missing.sort();
                    missing.dedup();
                    return Next::Wait(missing);
                }
                let squares = places.iter().map(|(place, n)| if *place == my_place { *squared } else { inbox.take(Topic::Norm(self.key), *n).map_or(0.0, |i| i.squared) });
                let norm = squares.sum::<f64>().sqrt();
                let (own, rank) = (*own, self.rank);
                let shards: Vec<_> = if self.group().len() == 1 {
                    Vec::new()
                } else {
                    self.group().iter().enumerate().filter_map(|(r, n)| if r == rank { own } else { inbox.take(Topic::Reduced(self.key, r as u16), *n)?.blob }).collect()
                };
                let spec = &setup.assignment.spec;
                let job = Job::ApplyUpdate {
                    key: self.key,
                    shards: shards.clone(),
                    optimiser_step: self.optimiser_step,
                    learning_rate: schedule::learning_rate(spec, self.optimiser_step),
                    clip_factor: schedule::clip_factor(spec, norm),
                };
                self.state = State::Applying { shards, norm };
                Next::Job(job)
            }
            State::Done { .. } => Next::Done,
            State::Summing { .. } | State::Applying { .. } => Next::Hold,
        }
    }

    pub fn job_done(&mut self, result: JobResult, out: &mut Outbox) {
        match (std::mem::replace(&mut self.state, State::Start), result) {
            (_, JobResult::GradientMeasured { squared_norm }) => self.gather(None, squared_norm, out),
            (_, JobResult::GradientRead { shards }) => {
                for (rank, peer) in self.others() {
                    out.peer(peer, PeerMessage::GradientShard { key: self.key, shard: rank as u16 }, shards.get(rank).copied());
                }
                let own = shards[self.rank];
                out.drop_blob(shards.into_iter().filter(|b| *b != own));
                self.state = State::Collect { own };
            }
            (State::Summing { inputs }, JobResult::ShardSummed { blob, squared_norm }) => {
                out.drop_blob(inputs);
                for (_, peer) in self.others() {
                    out.peer(peer, PeerMessage::ReducedShard { key: self.key, shard: self.rank as u16 }, Some(blob));
                }
                self.gather(Some(blob), squared_norm, out);
            }
            (State::Applying { shards, norm }, JobResult::Applied { side_seconds }) => {
                out.drop_blob(shards);
                self.seconds += side_seconds;
                self.state = State::Done { norm };
            }
            (state, _) => self.state = state,
        }
    }

    fn gather(&mut self, own: Option<BlobId>, squared: f64, out: &mut Outbox) {
        let me = self.group()[self.rank];
        for peer in self.groups.groups.iter().flatten().filter(|n| **n != me) {
            out.peer(*peer, PeerMessage::GradientNorm { key: self.key, stage: self.groups.mine as u16, squared }, None);
        }
        self.state = State::Gather { own, squared };
    }
}
