//! Links among the nodes: a full mesh is asked for, and asked for again when one breaks.

use crate::io::{Micros, SECOND};
use barycenter_protocol::NodeId;
use barycenter_protocol::plan::LinkProfile;
use std::collections::BTreeMap;

/// Longest pause between two attempts at a link.
const LONGEST_RETRY: Micros = 30 * SECOND;
/// An attempt that neither succeeds nor fails for this long counts as failed.
const ATTEMPT: Micros = 15 * SECOND;

#[derive(Debug)]
struct Link {
    up: [bool; 2],
    round_trip_millis: f64,
    bytes_per_second: f64,
    retry_at: Micros,
    pause: Micros,
}

/// All links, by (lower id, higher id).
#[derive(Debug, Default)]
pub(super) struct Links(BTreeMap<(NodeId, NodeId), Link>);

fn pair(a: NodeId, b: NodeId) -> (NodeId, NodeId) {
    (a.min(b), a.max(b))
}

impl Links {
    /// A first attempt is made now.
    pub fn add(&mut self, now: Micros, a: NodeId, b: NodeId) {
        self.0.insert(pair(a, b), Link { up: [false; 2], round_trip_millis: 0.0, bytes_per_second: 0.0, retry_at: now + ATTEMPT, pause: SECOND });
    }

    /// One end says that it is up; true when now both have said so.
    pub fn up(&mut self, from: NodeId, peer: NodeId, round_trip_millis: f64, bytes_per_second: f64) -> bool {
        let Some(link) = self.0.get_mut(&pair(from, peer)) else { return false };
        link.up[usize::from(from > peer)] = true;
        // measured by both ends: the slower counts
        link.bytes_per_second = if link.bytes_per_second > 0.0 { link.bytes_per_second.min(bytes_per_second) } else { bytes_per_second };
        link.round_trip_millis = link.round_trip_millis.max(round_trip_millis);
        if link.up == [true; 2] {
            link.pause = SECOND;
        }
        link.up == [true; 2]
    }

    /// One end says that it is down; true if it was up. The other end speaks for itself.
    pub fn down(&mut self, now: Micros, from: NodeId, peer: NodeId) -> bool {
        let Some(link) = self.0.get_mut(&pair(from, peer)) else { return false };
        let was_up = link.up == [true; 2];
        link.up[usize::from(from > peer)] = false;
        link.round_trip_millis = 0.0;
        link.bytes_per_second = 0.0;
        link.retry_at = now + link.pause;
        was_up
    }

    pub fn remove(&mut self, node: NodeId) {
        self.0.retain(|(a, b), _| *a != node && *b != node);
    }

    /// Whether every link among those of the joined nodes of which this is true is up.
    pub fn all_up(&self, takes_part: impl Fn(NodeId) -> bool) -> bool {
        self.0.iter().all(|((a, b), link)| link.up == [true; 2] || !takes_part(*a) || !takes_part(*b))
    }

    /// Links to dial again now.
    pub fn due(&mut self, now: Micros) -> Vec<(NodeId, NodeId)> {
        let mut due = Vec::new();
        for (pair, link) in &mut self.0 {
            if link.up != [true; 2] && link.retry_at <= now {
                link.pause = (link.pause * 2).min(LONGEST_RETRY);
                link.retry_at = now + link.pause.max(ATTEMPT);
                due.push(*pair);
            }
        }
        due
    }

    pub fn deadline(&self) -> Option<Micros> {
        self.0.values().filter(|l| l.up != [true; 2]).map(|l| l.retry_at).min()
    }

    pub fn profiles(&self) -> Vec<LinkProfile> {
        let up = self.0.iter().filter(|(_, l)| l.up == [true; 2]);
        up.map(|(&(a, b), l)| LinkProfile { a, b, round_trip_millis: l.round_trip_millis, bytes_per_second: l.bytes_per_second }).collect()
    }
}
