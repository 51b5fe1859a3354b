//! Cache entries on their way to their owners.

use super::mailbox::{CacheArrival, Inbox, Outbox};
use super::{Next, Setup};
use crate::io::{Job, JobResult};
use barycenter_protocol::control::CacheSend;
use barycenter_protocol::peer::PeerMessage;
use barycenter_protocol::{NodeId, SampleId};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// Sendings to one peer that it has not stored yet, at most: hides a round trip at a bounded memory. Small ones may be more, as a peer
/// that works meanwhile stores them between two jobs.
const AHEAD: usize = 8;
/// Bytes of them up to which there may be more.
const AHEAD_BYTES: u64 = 2 << 20;
/// However small they are.
const MOST_AHEAD: usize = 256;

#[derive(Debug)]
enum Running {
    Read { to: NodeId, sample: SampleId, taps: Range<u32> },
    Write(CacheArrival),
}

/// The phase at one node.
#[derive(Debug)]
pub(super) struct Redistribute {
    sends: Vec<(NodeId, SampleId, Range<u32>)>,
    sent: usize,
    total: usize,
    expect: u64,
    received: u64,
    /// Bytes of each sending on its way, in order.
    unstored: BTreeMap<NodeId, VecDeque<u64>>,
    running: Option<Running>,
}

impl Redistribute {
    pub fn new(sends: Vec<CacheSend>, expect: u64) -> Self {
        let sends = one_by_one(sends);
        Self { sent: 0, total: sends.len(), sends, expect, received: 0, unstored: BTreeMap::new(), running: None }
    }

    /// Sends these and none of those before; what is on its way stays on its way.
    pub fn send_instead(&mut self, sends: Vec<CacheSend>) {
        self.sends = one_by_one(sends);
    }

    pub fn next(&mut self, setup: &Setup, inbox: &mut Inbox, out: &mut Outbox, paused: bool) -> Next {
        for (peer, count) in inbox.take_stored() {
            let unstored = self.unstored.entry(peer).or_default();
            unstored.drain(..count.min(unstored.len()));
        }
        while let Some(arrival) = inbox.take_cache() {
            // of no sample, or no taps, of the run: it would only fill the storage
            if !setup.has_taps(&arrival) {
                out.drop_blob([arrival.blob]);
                continue;
            }
            let job = Job::WriteCache { sample: arrival.sample, first_tap: u32::from(arrival.first_tap), lengths: arrival.lengths.clone(), blob: arrival.blob };
            self.running = Some(Running::Write(arrival));
            return Next::Job(job);
        }
        let is_free = |sent: &VecDeque<u64>| sent.len() < AHEAD || sent.len() < MOST_AHEAD && sent.iter().sum::<u64>() < AHEAD_BYTES;
        let free = |to: &NodeId| self.unstored.get(to).is_none_or(is_free);
        if let Some(at) = self.sends.iter().rposition(|(to, ..)| free(to)) {
            if paused {
                return Next::Hold;
            }
            let (to, sample, taps) = self.sends.remove(at);
            self.running = Some(Running::Read { to, sample, taps: taps.clone() });
            return Next::Job(Job::ReadCache { sample, taps });
        }
        let waiting: Vec<_> = self.unstored.iter().filter(|(_, sent)| !sent.is_empty()).map(|(peer, _)| *peer).collect();
        if !waiting.is_empty() {
            return Next::Wait(waiting);
        }
        if self.received < self.expect {
            return Next::Wait(setup.assignment.plan.nodes().into_iter().filter(|n| *n != setup.id).collect());
        }
        Next::Done
    }

    pub fn job_done(&mut self, setup: &Setup, result: JobResult, out: &mut Outbox) {
        let generation = setup.assignment.generation;
        match (self.running.take(), result) {
            (Some(Running::Read { to, sample, taps }), JobResult::CacheRead { blob, lengths }) => {
                self.unstored.entry(to).or_default().push_back(lengths.iter().map(|length| u64::from(*length)).sum());
                out.peer(to, PeerMessage::CacheEntries { generation, sample, first_tap: taps.start as u16, lengths }, Some(blob));
                out.drop_blob([blob]);
                self.sent += 1;
            }
            (Some(Running::Write(arrival)), JobResult::CacheWritten) => {
                out.drop_blob([arrival.blob]);
                self.received += arrival.lengths.len() as u64;
                out.peer(arrival.from, PeerMessage::CacheStored { generation, sample: arrival.sample, first_tap: arrival.first_tap }, None);
            }
            _ => {}
        }
    }

    /// Part done, 0 … 1.
    pub fn fraction(&self) -> f32 {
        (self.sent as f32 + self.received as f32) / (self.total as f32 + self.expect as f32).max(1.0)
    }
}

/// Taken from the back.
fn one_by_one(sends: Vec<CacheSend>) -> Vec<(NodeId, SampleId, Range<u32>)> {
    let mut sends: Vec<_> = sends.into_iter().flat_map(|s| s.samples.into_iter().map(move |sample| (s.to, sample, s.taps.clone()))).collect();
    sends.reverse();
    sends
}
