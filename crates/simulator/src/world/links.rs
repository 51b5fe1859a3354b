//! Links between devices: made, broken, and what they carry.

use super::{Event, PeerParcel, World};
use barycenter_core::io::{BlobId, Micros, NodeInput, SECOND};
use barycenter_protocol::NodeId;
use barycenter_protocol::control::FromNode;
use barycenter_protocol::peer::PeerMessage;
use rand::Rng;

/// Header of a message: frame, key, samples.
const HEADER_BYTES: u64 = 50;

impl World {
    /// One end is told to dial; once both are, the handshake takes two round trips.
    pub(super) fn dial(&mut self, node: NodeId, peer: NodeId) {
        self.dialled.insert((node, peer));
        if self.dialled.contains(&(peer, node)) {
            self.dialled.remove(&(node, peer));
            self.dialled.remove(&(peer, node));
            let latency = self.network.link(self.owner[&node], self.owner[&peer]).latency;
            self.after(4 * latency, Event::LinkMade(node, peer));
        }
    }

    pub(super) fn hang_up(&mut self, node: NodeId, peer: NodeId) {
        if let Some(link) = self.session(node).and_then(|s| s.links.get(&peer).copied()) {
            self.link_lost(node, peer, link);
        }
    }

    fn is_cut(&self, a: NodeId, b: NodeId) -> bool {
        let (a, b) = (self.owner[&a], self.owner[&b]);
        self.cuts.contains(&(a.min(b), a.max(b)))
    }

    /// From now on nothing arrives between two devices; they notice after a second or two.
    pub(super) fn cut(&mut self, a: usize, b: usize) {
        self.cuts.insert((a.min(b), a.max(b)));
        if let (Some(x), Some(y)) = (self.node_of(a), self.node_of(b)) {
            let link = self.session(x).and_then(|s| s.links.get(&y).copied());
            if let Some(link) = link {
                self.after(SECOND, Event::LinkLost { node: x, peer: y, link });
                self.after(2 * SECOND, Event::LinkLost { node: y, peer: x, link });
            }
        }
    }

    pub(super) fn link_made(&mut self, a: NodeId, b: NodeId) {
        if self.session(a).is_none() || self.session(b).is_none() {
            return;
        }
        if self.is_cut(a, b) {
            return self.after(3 * SECOND, Event::LinkFailed(a, b));
        }
        self.next_link += 1;
        let link = self.next_link;
        let (x, y) = (self.owner[&a], self.owner[&b]);
        self.network.forget_link(self.now, x, y);
        self.drain_network();
        let spec = self.network.link(x, y);
        let bytes_per_second = self.network.quiet_bytes_per_second(x, y);
        let round_trip_millis = (2 * spec.latency) as f64 / 1000.0;
        for (node, peer) in [(a, b), (b, a)] {
            let session = self.session(node).expect("just seen");
            // a link that one end has lost is made anew on both
            if session.links.insert(peer, link).is_some() {
                self.input(node, NodeInput::LinkDown { peer, reason: "made anew".into() });
            }
            self.input(node, NodeInput::LinkUp { peer });
            self.up(node, FromNode::LinkUp { peer, round_trip_millis, bytes_per_second, relayed: false });
        }
        if spec.loss_per_hour > 0.0 {
            // breaks come at random, independently of each other
            let uniform = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            let after = (-(1.0 - uniform).ln() / spec.loss_per_hour * 3600.0 * SECOND as f64) as Micros;
            self.after(after, Event::LinkLost { node: a, peer: b, link });
            self.after(after, Event::LinkLost { node: b, peer: a, link });
        }
    }

    pub(super) fn link_failed(&mut self, a: NodeId, b: NodeId) {
        for (node, peer) in [(a, b), (b, a)] {
            if self.session(node).is_some_and(|s| !s.links.contains_key(&peer)) {
                self.up(node, FromNode::LinkDown { peer, reason: "no route".into() });
            }
        }
    }

    pub(super) fn link_lost(&mut self, node: NodeId, peer: NodeId, link: u64) {
        if let Some(session) = self.session(node)
            && session.links.get(&peer) == Some(&link)
        {
            session.links.remove(&peer);
            self.input(node, NodeInput::LinkDown { peer, reason: "closed".into() });
        }
    }

    pub(super) fn send_to_peer(&mut self, node: NodeId, to: NodeId, message: PeerMessage, blob: Option<BlobId>) {
        let now = self.now;
        let session = self.session(node).expect("a machine that speaks has a session");
        let data = blob.map(|b| session.engine.blobs.get(&b).expect("a live blob is sent").clone());
        let link = *session.links.get(&to).unwrap_or_else(|| panic!("node {node} sends to {to}, to whom it has no link: {message:?}"));
        assert_eq!(message.is_bulk(), data.is_some(), "bulk messages have data, others have none: {message:?}");
        let bytes = HEADER_BYTES + data.as_ref().map_or(0, |d| d.bytes);
        let (x, y) = (self.owner[&node], self.owner[&to]);
        self.sent_to_peers += 1;
        self.meter.sent(x, y, message.traffic_kind(), bytes);
        if self.is_cut(node, to) {
            return;
        }
        let bulk = message.is_bulk();
        let parcel = Event::Peer(Box::new(PeerParcel { to, from: node, link, message, data }));
        if bulk {
            self.network.send(now, x, y, bytes, parcel);
        } else {
            self.network.send_small(now, x, y, parcel, &mut self.random);
        }
        self.drain_network();
    }

    pub(super) fn arrive_from_peer(&mut self, parcel: PeerParcel) {
        let PeerParcel { to, from, link, message, data } = parcel;
        if let Some(session) = self.session(to)
            && session.links.get(&from) == Some(&link)
        {
            let blob = data.map(|d| session.engine.put(d));
            self.input(to, NodeInput::Peer { from, message, blob });
        }
    }
}
