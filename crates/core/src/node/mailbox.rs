//! What came from peers and is not used yet, and what goes out.

use crate::io::{BlobId, NodeOutput, Rows, RowsIn};
use barycenter_protocol::control::FromNode;
use barycenter_protocol::peer::{MicroKey, PeerMessage, StepKey};
use barycenter_protocol::{NodeId, SampleId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Most unused messages. An honest swarm has a few per peer and micro-batch; above this, arrivals are dropped, the step
/// stands still, and the coordinator removes who causes it.
const CAPACITY: usize = 4096;

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Topic {
    Activation(MicroKey),
    SideGradient(MicroKey),
    Used(MicroKey),
    Shard(StepKey, u16),
    Reduced(StepKey, u16),
    Norm(StepKey),
}

/// What it holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Item {
    pub samples: Vec<SampleId>,
    pub blob: Option<BlobId>,
    pub squared: f64,
}

/// Cache entries that arrived.
#[derive(Clone, Debug)]
pub(super) struct CacheArrival {
    pub from: NodeId,
    pub sample: SampleId,
    pub first_tap: u16,
    pub lengths: Vec<u32>,
    pub blob: BlobId,
}

/// Unused messages of the current generation, by topic and sender: the first of each counts.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    items: BTreeMap<(Topic, NodeId), Item>,
    cache: VecDeque<CacheArrival>,
    stored: BTreeMap<NodeId, usize>,
    wanted: VecDeque<(NodeId, SampleId)>,
    /// Entries may come beside the work of the phase: somebody is about to leave.
    pub takes_over: bool,
}

impl Inbox {
    /// Takes a message of this generation; false: it is not wanted, its blob is to be dropped.
    pub fn put(&mut self, from: NodeId, message: PeerMessage, blob: Option<BlobId>) -> bool {
        if self.items.len() + self.cache.len() + self.wanted.len() >= CAPACITY {
            return false;
        }
        let (topic, item) = match message {
            PeerMessage::Activation { key, samples } if blob.is_some() => (Topic::Activation(key), Item { samples, blob, squared: 0.0 }),
            PeerMessage::SideGradient { key, samples } if blob.is_some() => (Topic::SideGradient(key), Item { samples, blob, squared: 0.0 }),
            PeerMessage::GradientShard { key, shard } if blob.is_some() => (Topic::Shard(key, shard), Item { blob, ..Item::default() }),
            PeerMessage::ReducedShard { key, shard } if blob.is_some() => (Topic::Reduced(key, shard), Item { blob, ..Item::default() }),
            PeerMessage::GradientNorm { key, squared, .. } => (Topic::Norm(key), Item { squared, ..Item::default() }),
            PeerMessage::ActivationUsed { key } => (Topic::Used(key), Item::default()),
            PeerMessage::CacheStored { .. } => {
                *self.stored.entry(from).or_default() += 1;
                return blob.is_none();
            }
            PeerMessage::CacheWanted { sample, .. } => {
                self.wanted.push_back((from, sample));
                return blob.is_none();
            }
            PeerMessage::CacheEntries { sample, first_tap, lengths, .. } => match blob {
                Some(blob) => {
                    self.cache.push_back(CacheArrival { from, sample, first_tap, lengths, blob });
                    return true;
                }
                None => return false,
            },
            _ => return false,
        };
        match self.items.entry((topic, from)) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(item);
                true
            }
            std::collections::btree_map::Entry::Occupied(_) => false,
        }
    }

    /// Whether all of these peers have sent it; otherwise who has not.
    pub fn missing(&self, topic: Topic, from: impl Iterator<Item = NodeId>) -> Vec<NodeId> {
        from.filter(|peer| !self.items.contains_key(&(topic, *peer))).collect()
    }

    /// Takes one.
    pub fn take(&mut self, topic: Topic, from: NodeId) -> Option<Item> {
        self.items.remove(&(topic, from))
    }

    /// Takes these rows if all are here, otherwise says whose are missing. Rows of other samples than expected are dropped.
    pub fn take_rows(&mut self, topic: Topic, rows: &[Rows], out: &mut Outbox) -> Result<Vec<RowsIn>, Vec<NodeId>> {
        for row in rows {
            if self.items.get(&(topic, row.node)).is_some_and(|item| item.samples != row.samples) {
                out.drop_blob(self.take(topic, row.node).and_then(|item| item.blob));
            }
        }
        let missing = self.missing(topic, rows.iter().map(|r| r.node));
        if !missing.is_empty() {
            return Err(missing);
        }
        Ok(rows.iter().filter_map(|r| self.take(topic, r.node)).filter_map(|item| Some(RowsIn { samples: item.samples, blob: item.blob? })).collect())
    }

    /// The oldest cache entries that arrived.
    pub fn take_cache(&mut self) -> Option<CacheArrival> {
        self.cache.pop_front()
    }

    /// The oldest cache entries of which this is true.
    pub fn take_cache_if(&mut self, is_wanted: impl Fn(&CacheArrival) -> bool) -> Option<CacheArrival> {
        let at = self.cache.iter().position(is_wanted)?;
        self.cache.remove(at)
    }

    /// Drops the cache entries that arrived, unless a takeover is waiting for them.
    pub fn drop_cache(&mut self, out: &mut Outbox) {
        if !self.takes_over {
            out.drop_blob(self.cache.drain(..).map(|arrival| arrival.blob));
        }
    }

    /// The oldest request for a sample's cache entries.
    pub fn take_wanted(&mut self) -> Option<(NodeId, SampleId)> {
        self.wanted.pop_front()
    }

    /// How many of `most` sendings of cache entries a peer has stored that were not taken yet.
    pub fn take_stored_by(&mut self, peer: NodeId, most: usize) -> usize {
        let Some(count) = self.stored.get_mut(&peer) else { return 0 };
        let taken = most.min(*count);
        *count -= taken;
        taken
    }

    /// How many sendings of cache entries each peer has stored that were not taken yet.
    pub fn take_stored(&mut self) -> BTreeMap<NodeId, usize> {
        std::mem::take(&mut self.stored)
    }
}

/// What goes out, and which blobs the node still answers for.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    pub queue: VecDeque<NodeOutput>,
    pub links: BTreeSet<NodeId>,
    live: BTreeSet<BlobId>,
    /// A peer that was to get a message and has no link: the generation cannot go on.
    pub unreachable: Option<NodeId>,
}

impl Outbox {
    pub fn server(&mut self, message: FromNode) {
        self.queue.push_back(NodeOutput::ToServer(message));
    }

    /// Sends to a linked peer; an unlinked one is noted.
    pub fn peer(&mut self, to: NodeId, message: PeerMessage, blob: Option<BlobId>) {
        if self.links.contains(&to) {
            self.queue.push_back(NodeOutput::ToPeer { to, message, blob });
        } else {
            self.unreachable = Some(to);
        }
    }

    /// The node answers for these from now on.
    pub fn adopt(&mut self, blobs: impl IntoIterator<Item = BlobId>) {
        self.live.extend(blobs);
    }

    pub fn drop_blob(&mut self, blob: impl IntoIterator<Item = BlobId>) {
        for blob in blob {
            self.live.remove(&blob);
            self.queue.push_back(NodeOutput::DropBlob(blob));
        }
    }

    /// The generation ends: nothing of it is needed.
    pub fn drop_all(&mut self) {
        let live = std::mem::take(&mut self.live);
        self.drop_blob(live);
        self.unreachable = None;
    }
}
