//! Cache entries that others keep, asked for ahead of the steps that need them, held in memory and dropped after the step.
//!
//! At most the entries of two mini-batches are asked for or here: those of the step at work and of the next one. So they
//! travel while the device computes, and take no more memory than the planner counts.

use super::Setup;
use super::mailbox::{CacheArrival, Inbox, Outbox};
use crate::io::Entries;
use barycenter_protocol::peer::PeerMessage;
use barycenter_protocol::{NodeId, SampleId};
use std::collections::{BTreeMap, VecDeque};

/// Mini-batches whose entries are asked for.
const AHEAD: usize = 2;

/// What one epoch will read, in order; empty where everybody keeps its own entries.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// Samples of the step at work and of those after it; held-out ones at the end.
    steps: VecDeque<Vec<SampleId>>,
    asked: BTreeMap<SampleId, NodeId>,
    here: BTreeMap<SampleId, Entries>,
}

impl Stream {
    pub fn new(steps: impl Iterator<Item = Vec<SampleId>>) -> Self {
        Self { steps: steps.collect(), ..Self::default() }
    }

    /// Asks for what comes next and takes in what has come. What nobody asked for is dropped.
    pub fn look(&mut self, setup: &Setup, inbox: &mut Inbox, out: &mut Outbox) {
        let generation = setup.assignment.generation;
        for &sample in self.steps.iter().take(AHEAD).flatten() {
            let keeper = setup.keeper(sample);
            if keeper != setup.id && !self.asked.contains_key(&sample) {
                self.asked.insert(sample, keeper);
                out.peer(keeper, PeerMessage::CacheWanted { generation, sample }, None);
            }
        }
        let Self { asked, here, .. } = self;
        let taps = setup.assignment.spec.tap_count() as usize;
        let is_due = |a: &CacheArrival, here: &BTreeMap<_, _>| a.first_tap == 0 && a.lengths.len() == taps && asked.get(&a.sample) == Some(&a.from) && !here.contains_key(&a.sample);
        while let Some(arrival) = inbox.take_cache_if(|arrival| is_due(arrival, here)) {
            here.insert(arrival.sample, Entries { sample: arrival.sample, first_tap: 0, lengths: arrival.lengths, blob: arrival.blob });
        }
        if !setup.assignment.plan.stores.is_empty() {
            inbox.drop_cache(out);
        }
    }

    /// The entries of the first step that others keep, if all are here; otherwise who has not sent them.
    pub fn first(&self) -> Result<Vec<Entries>, Vec<NodeId>> {
        let wanted = || self.steps.front().into_iter().flatten().filter_map(|sample| Some((sample, self.asked.get(sample)?)));
        let mut missing: Vec<_> = wanted().filter(|(sample, _)| !self.here.contains_key(sample)).map(|(_, keeper)| *keeper).collect();
        if missing.is_empty() {
            return Ok(wanted().filter_map(|(sample, _)| self.here.get(sample).cloned()).collect());
        }
        missing.sort();
        missing.dedup();
        Err(missing)
    }

    /// The first step is computed: its entries are needed no more.
    pub fn used(&mut self, out: &mut Outbox) {
        for sample in self.steps.pop_front().into_iter().flatten() {
            self.asked.remove(&sample);
            out.drop_blob(self.here.remove(&sample).map(|entries| entries.blob));
        }
    }
}
