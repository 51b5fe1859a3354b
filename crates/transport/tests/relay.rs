//! Relayed links over a post office in memory, in virtual time.
//!
//! ```text
//!   node 1 ── sealed parcels ── post office (reads, changes, repeats, loses) ── sealed parcels ── node 2
//!      └───── direct connections that fail, never open, or open too late ────────────────────────┘
//! ```
#![cfg(not(target_arch = "wasm32"))]

mod common;

use barycenter_protocol::auth::sha256_hex;
use barycenter_protocol::peer::{PeerMessage, StepKey};
use barycenter_protocol::relay::Parcel;
use barycenter_protocol::{Generation, NodeId};
use barycenter_transport::memory::{MemoryLink, MemoryNetwork};
use barycenter_transport::relay::{Inbox, PostOffice};
use barycenter_transport::{
    Connection, ConnectionEvent, ConnectionEvents, Connector, Description, DescriptionKind, Plane, RelayConnector, Transport, TransportConfig, TransportEvent, platform,
};
use bytes::Bytes;
use common::{Pair, secret};
use futures::{FutureExt, StreamExt};
use futures::channel::mpsc;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);

fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

/// What the post office does with a parcel: what it hands on, in order.
type Meddle = Box<dyn FnMut(Parcel) -> Vec<Parcel>>;

#[derive(Clone, Default)]
struct Office(Rc<RefCell<Inside>>);

#[derive(Default)]
struct Inside {
    inboxes: HashMap<NodeId, mpsc::UnboundedSender<Result<Parcel, String>>>,
    seen: Vec<u8>,
    meddle: Option<Meddle>,
}

struct Counter(Office, NodeId);

impl PostOffice for Counter {
    fn open(&self) -> impl Future<Output = Result<Inbox, String>> + 'static {
        let (sender, inbox) = mpsc::unbounded();
        self.0.0.borrow_mut().inboxes.insert(self.1, sender);
        async move { Ok(inbox.boxed_local()) }
    }

    fn post(&self, to: NodeId, mailbox: u64, plane: Plane, packets: Vec<u8>) -> impl Future<Output = Result<(), String>> + 'static {
        let mut inside = self.0.0.borrow_mut();
        inside.seen.extend_from_slice(&packets);
        let parcel = Parcel { from: self.1, mailbox, plane: plane as u8, packets };
        let parcels = inside.meddle.as_mut().map_or_else(|| vec![parcel.clone()], |meddle| meddle(parcel.clone()));
        let handed = match inside.inboxes.get(&to) {
            Some(inbox) => parcels.into_iter().try_for_each(|parcel| inbox.unbounded_send(Ok(parcel))).map_err(|_| "nobody reads".to_owned()),
            None => Err("nobody is there".into()),
        };
        async move {
            platform::yield_now().await;
            handed
        }
    }
}

fn node(id: NodeId, seed: u8, relay_only: bool, connector: impl Connector + 'static, office: &Office) -> (Transport, barycenter_transport::TransportEvents) {
    let config = TransportConfig { relay_only, ..TransportConfig::new(id, secret(seed)) };
    let office = office.clone();
    Transport::with_relay(config, connector, RelayConnector::new(move || Counter(office.clone(), id)))
}

fn pair(relay_only: bool, first: impl Connector + 'static, second: impl Connector + 'static, office: &Office) -> Pair {
    let (a, a_events) = node(ONE, 1, relay_only, first, office);
    let (b, b_events) = node(TWO, 1, relay_only, second, office);
    a.dial(TWO);
    b.dial(ONE);
    Pair { a, a_events, b, b_events, round_trip_millis: 0.0, bytes_per_second: 0.0 }
}

/// Both ends say that the link is up; whether it is relayed.
async fn until_up(pair: &mut Pair) -> bool {
    let mut up = Vec::new();
    while up.len() < 2 {
        match pair.next().await {
            (node, TransportEvent::LinkUp { relayed, .. }) => up.push((node, relayed)),
            (_, event) => panic!("{event:?}"),
        }
    }
    assert_ne!(up[0].0, up[1].0);
    assert_eq!(up[0].1, up[1].1, "both ends agree");
    up[0].1
}

async fn relayed_pair() -> (Office, Pair) {
    let office = Office::default();
    let mut pair = pair(true, Unable::Silent, Unable::Silent, &office);
    assert!(until_up(&mut pair).await);
    (office, pair)
}

fn bulk(step: u32) -> PeerMessage {
    PeerMessage::ReducedShard { key: StepKey { generation: Generation(1), epoch: 0, step }, shard: 0 }
}

/// Direct connections that come to nothing.
#[derive(Clone, Copy)]
enum Unable {
    /// Describes itself, and then nothing happens: client isolation.
    Silent,
    /// Ends at once: a browser without WebRTC.
    Closed,
}

struct UnableConnection {
    is_offerer: bool,
    events: mpsc::UnboundedSender<ConnectionEvent>,
}

fn described(kind: DescriptionKind) -> ConnectionEvent {
    ConnectionEvent::LocalDescription(Description { kind, sdp: format!("a=fingerprint:sha-256 {}\r\n", ["AB"; 32].join(":")) })
}

impl Connector for Unable {
    fn connect(&self, is_offerer: bool) -> (Box<dyn Connection>, ConnectionEvents) {
        let (events, receiver) = mpsc::unbounded();
        let _ = match self {
            Self::Closed => events.unbounded_send(ConnectionEvent::Closed("this browser could not open a connection".into())),
            Self::Silent if is_offerer => events.unbounded_send(described(DescriptionKind::Offer)),
            Self::Silent => Ok(()),
        };
        (Box::new(UnableConnection { is_offerer, events }), receiver)
    }
}

impl Connection for UnableConnection {
    fn set_remote(&self, _: Description) {
        if !self.is_offerer {
            let _ = self.events.unbounded_send(described(DescriptionKind::Answer));
        }
    }

    fn add_candidate(&self, _: String) {}

    fn send(&self, _: Plane, _: Vec<u8>) {}
}

/// Opens its channels late.
struct Late<C>(C, u32);

impl<C: Connector> Connector for Late<C> {
    fn connect(&self, is_offerer: bool) -> (Box<dyn Connection>, ConnectionEvents) {
        let (connection, mut inner) = self.0.connect(is_offerer);
        let (events, receiver) = mpsc::unbounded();
        let late = self.1;
        platform::spawn_local(async move {
            while let Some(event) = inner.next().await {
                if matches!(event, ConnectionEvent::Open(_)) {
                    platform::sleep(late).await;
                }
                let _ = events.unbounded_send(event);
            }
        });
        (connection, receiver)
    }
}

#[test]
fn a_relayed_link_carries_both_planes_and_shows_the_post_office_nothing() {
    local(async {
        let (office, mut pair) = relayed_pair().await;
        let secret_words = b"what the children wrote in their diary, ".repeat(20_000);
        let data = Bytes::from(secret_words);
        let sending = pair.a.send(TWO, bulk(7), data.clone());
        pair.b.send(ONE, PeerMessage::GradientNorm { key: StepKey { generation: Generation(1), epoch: 0, step: 3 }, stage: 0, squared: 2.5 }, Bytes::new()).await.expect("sent");
        let mut messages = 0;
        while messages < 2 {
            match pair.next().await {
                (1, TransportEvent::Message { message, .. }) => assert!(matches!(message, PeerMessage::GradientNorm { squared: 2.5, .. })),
                (2, TransportEvent::Message { message, data: came, .. }) => {
                    assert_eq!(message, bulk(7));
                    assert_eq!(sha256_hex(&came), sha256_hex(&data));
                }
                (_, event) => panic!("{event:?}"),
            }
            messages += 1;
        }
        sending.await.expect("sent");
        let seen = &office.0.borrow().seen;
        assert!(seen.len() > data.len() + 2 * 256 * 1024, "probes and data went this way: {} bytes", seen.len());
        for kind in 1..=4 {
            // Magic, version, kind, and a message number below 65,536.
            let is_header = |bytes: &[u8]| bytes[..4] == [0x43, 0x42, 1, kind] && bytes[6..8] == [0, 0];
            assert!(!seen.windows(8).any(is_header), "a plain header of kind {kind}");
        }
        assert!(!seen.windows(12).any(|bytes| bytes == b"in their dia"), "plain words");
        assert!(!seen.windows(64).any(|bytes| bytes == [0; 64]), "the zeros of a probe");
    });
}

#[test]
fn a_packet_that_is_changed_repeated_lost_cut_or_moved_ends_the_link_with_one_sentence() {
    let flip = |mut parcel: Parcel| {
        let last = parcel.packets.len() - 1;
        parcel.packets[last] ^= 1;
        vec![parcel]
    };
    let cut = |mut parcel: Parcel| {
        parcel.packets.pop();
        vec![parcel]
    };
    let other_plane = |parcel: Parcel| vec![Parcel { plane: 0, ..parcel }];
    let meddles: [(&str, Meddle); 5] = [
        ("changed", Box::new(flip)),
        ("repeated", Box::new(|parcel| vec![parcel.clone(), parcel])),
        ("lost", {
            let mut is_first = true;
            Box::new(move |parcel| if std::mem::take(&mut is_first) { vec![] } else { vec![parcel] })
        }),
        ("cut", Box::new(cut)),
        ("moved", Box::new(other_plane)),
    ];
    for (name, meddle) in meddles {
        local(async {
            let (office, mut pair) = relayed_pair().await;
            office.0.borrow_mut().meddle = Some(meddle);
            for step in 0..2 {
                let _ = pair.a.send(TWO, bulk(step), Bytes::from(vec![1; 1000])).await;
                platform::sleep(10).await;
            }
            let reason = loop {
                match pair.next().await {
                    (2, TransportEvent::LinkDown { reason, .. }) => break reason,
                    (_, TransportEvent::Message { .. } | TransportEvent::LinkDown { .. }) => {}
                    (_, event) => panic!("{name}: {event:?}"),
                }
            };
            assert!(reason.contains("changed, repeated or left out"), "{name}: {reason}");
        });
    }
}

#[test]
fn whoever_does_not_know_the_secret_is_refused_on_both_sides() {
    local(async {
        let office = Office::default();
        let (a, a_events) = node(ONE, 1, true, Unable::Silent, &office);
        let (b, b_events) = node(TWO, 9, true, Unable::Silent, &office);
        a.dial(TWO);
        let mut pair = Pair { a, a_events, b, b_events, round_trip_millis: 0.0, bytes_per_second: 0.0 };
        for _ in 0..2 {
            match pair.next().await {
                (_, TransportEvent::LinkDown { reason, .. }) => assert!(reason.contains("secret"), "{reason}"),
                (_, event) => panic!("{event:?}"),
            }
        }
    });
}

#[test]
fn keys_that_are_swapped_on_the_way_make_no_link() {
    local(async {
        let office = Office::default();
        let (a, mut a_events) = node(ONE, 1, true, Unable::Silent, &office);
        let (b, mut b_events) = node(TWO, 1, true, Unable::Silent, &office);
        a.dial(TWO);
        let other_key = "7".repeat(64);
        loop {
            let (from, event) = futures::select! {
                event = a_events.recv().fuse() => (ONE, event.expect("it lives")),
                event = b_events.recv().fuse() => (TWO, event.expect("it lives")),
            };
            match event {
                // The server tells the answerer a key of its own instead.
                TransportEvent::Signal { payload, .. } if payload.contains("relayoffer") => {
                    let at = payload.find(r#""key":""#).expect("a key") + 7;
                    b.on_signal(ONE, &format!("{}{other_key}{}", &payload[..at], &payload[at + 64..]));
                }
                TransportEvent::Signal { payload, .. } if from == ONE => b.on_signal(ONE, &payload),
                TransportEvent::Signal { payload, .. } => a.on_signal(TWO, &payload),
                TransportEvent::LinkDown { reason, .. } => {
                    assert!(reason.starts_with("no link within 15 s") || reason.contains("changed, repeated or left out"), "{reason}");
                    break;
                }
                event => panic!("{event:?}"),
            }
        }
    });
}

#[test]
fn a_direct_connection_that_does_not_open_or_fails_is_made_up_for() {
    for (first, second, within) in [(Unable::Silent, Unable::Silent, 5_000.0), (Unable::Closed, Unable::Silent, 500.0), (Unable::Silent, Unable::Closed, 500.0), (Unable::Closed, Unable::Closed, 500.0)] {
        local(async {
            let start = platform::now_millis();
            let mut pair = pair(false, first, second, &Office::default());
            assert!(until_up(&mut pair).await, "relayed");
            let took = platform::now_millis() - start;
            assert!(took < within, "{took} ms");
        });
    }
}

#[test]
fn one_end_that_wants_the_relay_is_enough() {
    for forced in [ONE, TWO] {
        local(async {
            let (office, network) = (Office::default(), MemoryNetwork::new(MemoryLink::default()));
            let (a, a_events) = node(ONE, 1, forced == ONE, network.connector(ONE), &office);
            let (b, b_events) = node(TWO, 1, forced == TWO, network.connector(TWO), &office);
            a.dial(TWO);
            b.dial(ONE);
            let mut pair = Pair { a, a_events, b, b_events, round_trip_millis: 0.0, bytes_per_second: 0.0 };
            assert!(until_up(&mut pair).await);
        });
    }
}

#[test]
fn a_direct_connection_that_opens_too_late_makes_no_second_link() {
    local(async {
        let (office, network) = (Office::default(), MemoryNetwork::new(MemoryLink::default()));
        let mut pair = pair(false, Late(network.connector(ONE), 4_500), Late(network.connector(TWO), 4_500), &office);
        assert!(until_up(&mut pair).await);
        let quiet = platform::timeout(20_000, pair.next()).await;
        assert_eq!(quiet, None, "nothing follows");
        assert!(pair.a.is_up(TWO) && pair.b.is_up(ONE));
    });
}

#[test]
fn a_direct_link_is_preferred_and_after_a_break_tried_first_again() {
    local(async {
        let (office, network) = (Office::default(), MemoryNetwork::new(MemoryLink { latency_millis: 1.0, bytes_per_second: None }));
        let mut pair = pair(false, network.connector(ONE), network.connector(TWO), &office);
        assert!(!until_up(&mut pair).await, "direct");
        network.cut(ONE, TWO, 100);
        let mut down = 0;
        while down < 2 {
            match pair.next().await {
                (_, TransportEvent::LinkDown { .. }) => down += 1,
                (_, event) => panic!("{event:?}"),
            }
        }
        pair.a.dial(TWO);
        assert!(!until_up(&mut pair).await, "direct again");
        assert!(office.0.borrow().seen.is_empty());
    });
}

#[test]
fn a_relayed_link_that_is_hung_up_ends_at_the_other_end_and_can_be_dialled_again() {
    local(async {
        let (_, mut pair) = relayed_pair().await;
        pair.b.hang_up(ONE);
        match pair.next().await {
            (1, TransportEvent::LinkDown { reason, .. }) => assert!(reason.contains("closed the link"), "{reason}"),
            (_, event) => panic!("{event:?}"),
        }
        pair.b.dial(ONE);
        assert!(until_up(&mut pair).await);
    });
}
