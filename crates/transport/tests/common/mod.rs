//! Two transports that pass their signals to each other.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(clippy::unwrap_used, reason = "test support")]

use barycenter_protocol::NodeId;
use barycenter_protocol::auth::RoomSecret;
use barycenter_transport::{Connector, Transport, TransportConfig, TransportEvent, TransportEvents};
use futures::FutureExt;

/// Two nodes with a link between them.
pub struct Pair {
    pub a: Transport,
    pub a_events: TransportEvents,
    pub b: Transport,
    pub b_events: TransportEvents,
    pub round_trip_millis: f64,
    pub bytes_per_second: f64,
}

pub fn secret(seed: u8) -> RoomSecret {
    RoomSecret::from_bytes([seed; 16])
}

pub fn node(id: u32, seed: u8, connector: impl Connector + 'static) -> (Transport, TransportEvents) {
    Transport::new(TransportConfig::new(NodeId(id), secret(seed)), connector)
}

/// Nodes 1 and 2, both dial.
pub async fn connect(first: impl Connector + 'static, second: impl Connector + 'static) -> Pair {
    let (a, a_events) = node(1, 1, first);
    let (b, b_events) = node(2, 1, second);
    a.dial(NodeId(2));
    b.dial(NodeId(1));
    let mut pair = Pair { a, a_events, b, b_events, round_trip_millis: 0.0, bytes_per_second: 0.0 };
    let mut up = 0;
    while up < 2 {
        match pair.next().await {
            (1, TransportEvent::LinkUp { peer, round_trip_millis, bytes_per_second, .. }) => {
                assert_eq!(peer, NodeId(2));
                (pair.round_trip_millis, pair.bytes_per_second) = (round_trip_millis, bytes_per_second);
                up += 1;
            }
            (2, TransportEvent::LinkUp { peer, .. }) => {
                assert_eq!(peer, NodeId(1));
                up += 1;
            }
            (_, event) => panic!("{event:?}"),
        }
    }
    pair
}

impl Pair {
    /// The next event that is no signal, and whose it is (1 or 2).
    pub async fn next(&mut self) -> (u32, TransportEvent) {
        loop {
            let (node, event) = futures::select! {
                event = self.a_events.recv().fuse() => (1, event.unwrap()),
                event = self.b_events.recv().fuse() => (2, event.unwrap()),
            };
            match event {
                TransportEvent::Signal { to, payload } => {
                    let (target, from) = if node == 1 { (&self.b, NodeId(1)) } else { (&self.a, NodeId(2)) };
                    assert_ne!(to, from);
                    target.on_signal(from, &payload);
                }
                event => return (node, event),
            }
        }
    }
}
