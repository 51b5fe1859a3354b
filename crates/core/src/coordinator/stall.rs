//! Who stands still while others wait.

use crate::io::{Micros, SECOND};
use barycenter_protocol::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// Nodes repeat their report every 5 s while nothing reaches them; a longer gap means that something did.
const FRESH: Micros = 7 * SECOND;
/// A first report comes after so long.
const FIRST: Micros = 5 * SECOND;

#[derive(Debug)]
struct Report {
    since: Micros,
    last: Micros,
    peers: Vec<NodeId>,
}

/// Reports of waiting in the current phase.
#[derive(Debug, Default)]
pub(super) struct Stall(BTreeMap<NodeId, Report>);

impl Stall {
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Something of this node went on.
    pub fn moved(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    pub fn waits(&mut self, now: Micros, node: NodeId, peers: Vec<NodeId>) {
        match self.0.get_mut(&node) {
            Some(report) if report.last + FRESH >= now && report.peers == peers => report.last = now,
            _ => {
                self.0.insert(node, Report { since: now.saturating_sub(FIRST), last: now, peers });
            }
        }
    }

    /// If somebody has waited for `limit`: the node at the end of the chain of waiting, that is one that others wait for
    /// and that waits for nobody. If all wait in a circle (a message was lost): the one in it that `prefer` likes least.
    pub fn culprit(&self, now: Micros, limit: Micros, pending: &BTreeSet<NodeId>, prefer: impl Fn(NodeId) -> f64) -> Option<NodeId> {
        let waiting = |node: &NodeId| self.0.get(node).filter(|r| r.last + FRESH >= now);
        let (start, _) = self.0.iter().find(|(node, r)| waiting(node).is_some() && r.since + limit <= now)?;
        let mut seen = BTreeSet::from([*start]);
        let mut queue = vec![*start];
        while let Some(node) = queue.pop() {
            for peer in waiting(&node).into_iter().flat_map(|r| r.peers.iter().copied()).filter(|p| pending.contains(p)) {
                if waiting(&peer).is_none() {
                    return Some(peer);
                }
                if seen.insert(peer) {
                    queue.push(peer);
                }
            }
        }
        seen.into_iter().min_by(|a, b| prefer(*a).total_cmp(&prefer(*b)).then(b.cmp(a)))
    }
}
