//! Links in memory, in virtual time.
//!
//! ```text
//!   node 1 ── memory link ── node 2       (latency, bandwidth, cuts, forged frames)
//!      └───── memory link ── node 3
//! ```
#![cfg(not(target_arch = "wasm32"))]

mod common;

use barycenter_protocol::auth::RoomSecret;
use barycenter_protocol::frame::{FrameKind, chunk};
use barycenter_protocol::peer::{Hello, PeerMessage, StepKey};
use barycenter_protocol::{Generation, NodeId, PROTOCOL_VERSION, ProtocolVersion};
use barycenter_transport::memory::{MemoryLink, MemoryNetwork};
use barycenter_transport::{Plane, SendError, Transport, TransportConfig, TransportEvent, platform};
use bytes::Bytes;
use common::Pair;
use futures::FutureExt;
use proptest::prelude::*;

const ONE: NodeId = NodeId(1);
const TWO: NodeId = NodeId(2);

/// Runs in virtual time: sleeping costs nothing.
fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

async fn pair(link: MemoryLink) -> (MemoryNetwork, Pair) {
    let network = MemoryNetwork::new(link);
    let pair = common::connect(network.connector(ONE), network.connector(TWO)).await;
    (network, pair)
}

fn bulk(step: u32) -> PeerMessage {
    PeerMessage::ReducedShard { key: StepKey { generation: Generation(1), epoch: 0, step }, shard: 0 }
}

fn small(step: u32) -> PeerMessage {
    PeerMessage::GradientNorm { key: StepKey { generation: Generation(1), epoch: 0, step }, stage: 0, squared: 1.0 }
}

async fn down(pair: &mut Pair, node: u32) -> String {
    loop {
        match pair.next().await {
            (who, TransportEvent::LinkDown { reason, .. }) if who == node => return reason,
            (_, TransportEvent::LinkDown { .. } | TransportEvent::Message { .. }) => {}
            (_, event) => panic!("{event:?}"),
        }
    }
}

#[test]
fn round_trip_and_bandwidth_are_measured() {
    local(async {
        let (_, pair) = pair(MemoryLink { latency_millis: 20.0, bytes_per_second: Some(10e6) }).await;
        assert!((39.9..50.0).contains(&pair.round_trip_millis), "{}", pair.round_trip_millis);
        assert!((8e6..12e6).contains(&pair.bytes_per_second), "{}", pair.bytes_per_second);
    });
}

#[test]
fn control_overtakes_bulk_and_a_slow_peer_holds_up_nobody_else() {
    local(async {
        let network = MemoryNetwork::new(MemoryLink { latency_millis: 1.0, bytes_per_second: Some(1e6) });
        let mut pair = common::connect(network.connector(ONE), network.connector(TWO)).await;
        // Eight seconds of bulk at this speed.
        let sending = pair.a.send(TWO, bulk(0), Bytes::from(vec![1; 8 << 20]));
        let before = platform::now_millis();
        pair.a.send(TWO, small(7), Bytes::new()).await.expect("sent");
        match pair.next().await {
            (2, TransportEvent::Message { message, .. }) => assert_eq!(message, small(7)),
            event => panic!("{event:?}"),
        }
        // What was in the window of the bulk channel (2 MiB) may be ahead on the one cable.
        assert!(platform::now_millis() - before < 2_500.0);
        assert!(sending.now_or_never().is_none(), "back-pressure: 8 MiB are not with a channel that takes 2 MiB");
    });
}

#[test]
fn a_cut_cable_ends_the_link_and_waiting_senders_are_told() {
    local(async {
        let (network, mut pair) = pair(MemoryLink { latency_millis: 1.0, bytes_per_second: Some(1e6) }).await;
        let sending = pair.a.send(TWO, bulk(0), Bytes::from(vec![1; 8 << 20]));
        network.cut(ONE, TWO, 3_000);
        let start = platform::now_millis();
        assert!(down(&mut pair, 1).await.contains("nothing was heard"));
        assert!(platform::now_millis() - start <= 5_000.0);
        assert_eq!(sending.await, Err(SendError::LinkDown(TWO)));
        assert_eq!(pair.a.send(TWO, small(0), Bytes::new()).await, Err(SendError::NoLink(TWO)));
    });
}

#[test]
fn forged_frames_end_their_link_with_a_sentence() {
    let body = |message: PeerMessage| message.encode(&[]);
    let one = |kind, body: &[u8]| chunk(kind, 9_999, body, 65_536).next().expect("one frame");
    let mut other_version = one(FrameKind::Control, &[0]);
    other_version[2] = 77;
    let mut absurd = one(FrameKind::Tensor, &[0]);
    absurd[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut unknown = one(FrameKind::Tensor, &[0]);
    unknown[3] = 200;
    let hello = Hello { version: PROTOCOL_VERSION, node: ONE, proof: [0; 32] };
    let cases = [
        (Plane::Control, other_version, "version 77"),
        (Plane::Bulk, absurd, "announced"),
        (Plane::Bulk, unknown, "unknown kind"),
        (Plane::Bulk, vec![], "shorter"),
        (Plane::Control, one(FrameKind::Control, &[255; 9]), "unreadable header"),
        (Plane::Control, one(FrameKind::Control, &body(bulk(0))), "control channel"),
        (Plane::Bulk, one(FrameKind::Tensor, &body(small(0))), "bulk channel"),
        (Plane::Control, one(FrameKind::Hello, &hello.encode()), "greeted again"),
    ];
    for (plane, frame, sentence) in cases {
        local(async {
            let (network, mut pair) = pair(MemoryLink::default()).await;
            let (third, mut third_events) = common::node(3, 1, network.connector(NodeId(3)));
            pair.b.dial(NodeId(3));
            let mut up = 0;
            while up < 2 {
                tokio::select! {
                    event = pair.b_events.recv() => match event {
                        Some(TransportEvent::Signal { payload, .. }) => third.on_signal(TWO, &payload),
                        Some(TransportEvent::LinkUp { .. }) => up += 1,
                        event => panic!("{event:?}"),
                    },
                    event = third_events.recv() => match event {
                        Some(TransportEvent::Signal { payload, .. }) => pair.b.on_signal(NodeId(3), &payload),
                        Some(TransportEvent::LinkUp { .. }) => up += 1,
                        event => panic!("{event:?}"),
                    },
                }
            }
            network.forge(ONE, TWO, plane, frame);
            let reason = down(&mut pair, 2).await;
            assert!(reason.contains(sentence), "{reason}");
            assert!(pair.b.is_up(NodeId(3)), "the other link lives");
        });
    }
}

#[test]
fn a_peer_of_another_version_or_name_is_refused() {
    let secret = RoomSecret::from_bytes([1; 16]);
    let other = ProtocolVersion { major: 99, ..PROTOCOL_VERSION };
    let frame = |hello: &Hello| chunk(FrameKind::Hello, 0, &hello.encode(), 65_536).next().expect("one frame");
    for (frame, sentence) in [
        (frame(&Hello { version: other, node: ONE, proof: [0; 32] }), "version 99"),
        (frame(&Hello { version: PROTOCOL_VERSION, node: ONE, proof: secret.link_proof(true, "AA", "BB") }), "secret"),
        (chunk(FrameKind::Tensor, 0, &bulk(0).encode(&[]), 65_536).next().expect("one frame"), "began with a Tensor frame"),
        (chunk(FrameKind::Tensor, 0, &[0; 100_000], 65_536).next().expect("a frame"), "began with a part of a Tensor message"),
    ] {
        local(async {
            let network = MemoryNetwork::default();
            let (a, a_events) = common::node(1, 1, network.connector(ONE));
            let (b, b_events) = common::node(2, 1, network.connector(TWO));
            a.dial(TWO);
            let mut pair = Pair { a, a_events, b, b_events, round_trip_millis: 0.0, bytes_per_second: 0.0 };
            // The offer is passed on, the forged frame is there before the honest greeting.
            let Some(TransportEvent::Signal { payload, .. }) = pair.a_events.recv().await else { panic!("an offer") };
            pair.b.on_signal(ONE, &payload);
            let Some(TransportEvent::Signal { payload, .. }) = pair.b_events.recv().await else { panic!("an answer") };
            pair.a.on_signal(TWO, &payload);
            let forging = async {
                for _ in 0..200 {
                    network.forge(ONE, TWO, Plane::Bulk, frame.clone());
                    platform::yield_now().await;
                }
            };
            let (reason, ()) = futures::join!(down_or_up(&mut pair), forging);
            assert!(reason.contains(sentence), "{reason}");
        });
    }
}

async fn down_or_up(pair: &mut Pair) -> String {
    loop {
        if let (2, TransportEvent::LinkDown { reason, .. }) = pair.next().await {
            return reason;
        }
    }
}

#[test]
fn a_peer_that_never_answers_is_given_up_in_time() {
    local(async {
        let network = MemoryNetwork::default();
        let (transport, mut events) = common::node(1, 1, network.connector(ONE));
        transport.dial(TWO);
        let start = platform::now_millis();
        loop {
            match events.recv().await {
                Some(TransportEvent::LinkDown { reason, .. }) => {
                    assert!(reason.contains("did not answer"), "{reason}");
                    break;
                }
                Some(TransportEvent::Signal { .. }) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!((14_900.0..16_000.0).contains(&(platform::now_millis() - start)));
        transport.on_signal(TWO, "{");
        transport.on_signal(TWO, r#"{"type":"answer","attempt":1,"sdp":""}"#);
        transport.on_signal(ONE, r#"{"type":"wanted"}"#);
        assert!(!transport.is_up(TWO));
    });
}

/// Node 1 sends so many messages of that length to node 2, which may leave 1 MiB unread.
fn flood(messages: u32, len: usize) {
    local(async {
        let network = MemoryNetwork::default();
        let mut config = TransportConfig::new(TWO, common::secret(1));
        config.max_unread_bytes = 1 << 20;
        let (b, b_events) = Transport::new(config, network.connector(TWO));
        let (a, a_events) = common::node(1, 1, network.connector(ONE));
        a.dial(TWO);
        let mut pair = Pair { a, a_events, b, b_events, round_trip_millis: 0.0, bytes_per_second: 0.0 };
        let mut up = 0;
        while up < 2 {
            if let (_, TransportEvent::LinkUp { .. }) = pair.next().await {
                up += 1;
            }
        }
        for step in 0..messages {
            let _ = if len > 0 { pair.a.send(TWO, bulk(step), Bytes::from(vec![0; len])).await } else { pair.a.send(TWO, small(step), Bytes::new()).await };
        }
        // Nobody read in the meantime.
        platform::sleep(1_000).await;
        assert!(down(&mut pair, 2).await.contains("not asked for"));
    });
}

#[test]
fn a_peer_that_floods_loses_its_link() {
    flood(4, 400_000);
    // Small ones by themselves are 100 kB, but each takes more than its bytes.
    flood(5_000, 0);
}

#[test]
fn a_peer_that_asks_without_reading_loses_its_link() {
    local(async {
        let (network, mut pair) = pair(MemoryLink { latency_millis: 1.0, bytes_per_second: Some(1e5) }).await;
        let ping = chunk(FrameKind::Control, 9_999, &PeerMessage::Ping(0).encode(&[]), 65_536).next().expect("one frame");
        // More answers than the channel takes (2 MiB) and the queue behind it.
        for _ in 0..120_000 {
            network.forge(ONE, TWO, Plane::Control, ping.clone());
        }
        assert!(down(&mut pair, 2).await.contains("asks without reading"));
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn every_message_arrives_once_in_order_and_is_counted(
        messages in prop::collection::vec((any::<bool>(), prop_oneof![0usize..200, 60_000usize..200_000]), 1..30),
        latency_millis in 0.0f64..50.0,
        bytes_per_second in prop_oneof![Just(None), (1e5f64..1e8).prop_map(Some)],
    ) {
        local(async move {
            let (_, mut pair) = pair(MemoryLink { latency_millis, bytes_per_second }).await;
            let sends: Vec<_> = messages.iter().enumerate().map(|(step, (is_bulk, len))| {
                let step = step as u32;
                if *is_bulk { pair.a.send(TWO, bulk(step), Bytes::from(vec![step as u8; *len])) } else { pair.a.send(TWO, small(step), Bytes::new()) }
            }).collect::<Vec<_>>();
            let sending = futures::future::join_all(sends);
            let expected = |wanted: bool| messages.iter().enumerate().filter(move |(_, (is_bulk, _))| *is_bulk == wanted).map(|(step, (_, len))| (step as u32, if wanted { *len } else { 0 })).collect::<Vec<_>>();
            let receiving = async {
                let (mut on_bulk, mut on_control) = (Vec::new(), Vec::new());
                while on_bulk.len() + on_control.len() < messages.len() {
                    match pair.b_events.recv().await {
                        Some(TransportEvent::Message { message: PeerMessage::ReducedShard { key, .. }, data, .. }) => {
                            assert!(data.iter().all(|byte| *byte == key.step as u8));
                            on_bulk.push((key.step, data.len()));
                        }
                        Some(TransportEvent::Message { message: PeerMessage::GradientNorm { key, .. }, data, .. }) => on_control.push((key.step, data.len())),
                        other => panic!("{other:?}"),
                    }
                }
                (on_bulk, on_control)
            };
            let (results, (on_bulk, on_control)) = futures::join!(sending, receiving);
            assert!(results.iter().all(Result::is_ok));
            assert_eq!(on_bulk, expected(true));
            assert_eq!(on_control, expected(false));
            let payload: usize = on_bulk.iter().map(|(_, len)| len).sum();
            assert!(pair.a.counters()[0].adapter_gradients_bytes as usize >= payload);
        });
    }
}
