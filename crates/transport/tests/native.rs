//! Links over real WebRTC on this machine.
//!
//! ```text
//!   node 1 ── native link ── node 2            node 1 ── native link ── a child process, killed
//!      └───── native link ── a forger
//! ```
#![cfg(not(target_arch = "wasm32"))]

mod common;

use barycenter_protocol::auth::sha256_hex;
use barycenter_protocol::peer::{PeerMessage, StepKey};
use barycenter_protocol::{Generation, NodeId};
use barycenter_transport::native::NativeConnector;
use barycenter_transport::{ConnectionEvent, Connector, Description, DescriptionKind, Plane, SendError, Transport, TransportEvent, TransportEvents, platform};
use bytes::Bytes;
use futures::StreamExt;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

const CHILD: &str = "BARYCENTER_TRANSPORT_TEST_CHILD";

fn local<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let test = async { tokio::time::timeout(Duration::from_secs(60), test).await.expect("the test ends within a minute") };
    tokio::task::LocalSet::new().block_on(&runtime, test)
}

fn shard(step: u32) -> PeerMessage {
    PeerMessage::GradientShard { key: StepKey { generation: Generation(1), epoch: 0, step }, shard: 0 }
}

/// Reproducible bytes that differ from message to message.
fn noise(seed: u32, len: usize) -> Bytes {
    let mut state = u64::from(seed) | 1;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect::<Vec<u8>>().into()
}

#[test]
fn both_directions_carry_32_mib_unharmed_and_in_order() {
    local(async {
        let mut pair = common::connect(NativeConnector::default(), NativeConnector::default()).await;
        assert!(pair.round_trip_millis > 0.0 && pair.bytes_per_second > 0.0);
        const LENGTHS: [usize; 6] = [4 << 20, 1, 0, 12 << 20, 70_000, (16 << 20) - 70_001];
        let send = |from: Transport, to: u32, seed: u32| async move {
            for (step, len) in LENGTHS.into_iter().enumerate() {
                from.send(NodeId(to), shard(step as u32), noise(seed + step as u32, len)).await.expect("sent");
            }
        };
        let receive = |seed: u32, events: TransportEvents| async move {
            let mut events = events;
            for (step, len) in LENGTHS.into_iter().enumerate() {
                match events.recv().await {
                    Some(TransportEvent::Message { message, data, .. }) => {
                        assert_eq!(message, shard(step as u32));
                        assert_eq!(sha256_hex(&data), sha256_hex(&noise(seed + step as u32, len)));
                    }
                    other => panic!("{other:?}"),
                }
            }
            events
        };
        let sent_a = send(pair.a.clone(), 2, 100);
        let sent_b = send(pair.b.clone(), 1, 200);
        let (_, _, a_events, b_events) = futures::join!(sent_a, sent_b, receive(200, pair.a_events), receive(100, pair.b_events));
        (pair.a_events, pair.b_events) = (a_events, b_events);
        let counters = pair.a.counters();
        assert_eq!((counters.len(), counters[0].peer), (1, NodeId(2)));
        let bytes = counters[0].adapter_gradients_bytes as usize;
        let payload: usize = LENGTHS.iter().sum();
        assert!(bytes > payload && bytes < payload + payload / 1000, "{bytes} bytes for {payload}");
        assert!(counters[0].other_bytes > 256 * 1024, "greeting and probe are counted");
    });
}

#[test]
fn a_node_with_another_secret_is_refused_with_a_sentence_on_both_sides() {
    local(async {
        let (a, a_events) = common::node(1, 1, NativeConnector::default());
        let (b, b_events) = common::node(2, 9, NativeConnector::default());
        a.dial(NodeId(2));
        let mut pair = common::Pair { a, a_events, b, b_events, round_trip_millis: 0.0, bytes_per_second: 0.0 };
        let mut down = Vec::new();
        while down.len() < 2 {
            match pair.next().await {
                (node, TransportEvent::LinkDown { reason, .. }) => {
                    assert!(reason.contains("secret"), "{reason}");
                    down.push(node);
                }
                (_, event) => panic!("{event:?}"),
            }
        }
        assert_eq!(pair.a.send(NodeId(2), shard(0), Bytes::new()).await, Err(SendError::NoLink(NodeId(2))));
    });
}

#[test]
fn a_link_that_is_hung_up_ends_at_once_and_can_be_dialled_again() {
    local(async {
        let mut pair = common::connect(NativeConnector::default(), NativeConnector::default()).await;
        let start = Instant::now();
        pair.b.hang_up(NodeId(1));
        match pair.next().await {
            (1, TransportEvent::LinkDown { peer: NodeId(2), reason }) => println!("{:?}: {reason}", start.elapsed()),
            event => panic!("{event:?}"),
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        // The higher id asks for an offer.
        pair.b.dial(NodeId(1));
        let mut up = 0;
        while up < 2 {
            match pair.next().await {
                (_, TransportEvent::LinkUp { .. }) => up += 1,
                (_, event) => panic!("{event:?}"),
            }
        }
    });
}

#[test]
fn a_killed_peer_is_noticed_within_five_seconds() {
    local(async {
        let mut child = tokio::process::Command::new(std::env::current_exe().expect("the test's own path"))
            .args(["--exact", "child_process", "--nocapture"])
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the test starts itself");
        let (mut input, output) = (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
        let mut lines = BufReader::new(output).lines();
        let (transport, mut events) = common::node(1, 1, NativeConnector::default());
        transport.dial(NodeId(2));
        let mut killed_at: Option<Instant> = None;
        loop {
            tokio::select! {
                line = lines.next_line(), if killed_at.is_none() => {
                    if let Some(payload) = line.expect("readable").and_then(|line| line.split_once("SIGNAL ").map(|(_, payload)| payload.to_owned())) {
                        transport.on_signal(NodeId(2), &payload);
                    }
                }
                event = events.recv() => match event.expect("the transport lives") {
                    TransportEvent::Signal { payload, .. } => input.write_all(format!("{payload}\n").as_bytes()).await.expect("written"),
                    TransportEvent::LinkUp { .. } => {
                        child.kill().await.expect("killed");
                        killed_at = Some(Instant::now());
                    }
                    TransportEvent::LinkDown { reason, .. } => {
                        let after = killed_at.unwrap_or_else(|| panic!("the link did not come up: {reason}")).elapsed();
                        println!("noticed after {after:?}: {reason}");
                        assert!(after < Duration::from_secs(5), "{after:?}");
                        return;
                    }
                    event => panic!("{event:?}"),
                }
            }
        }
    });
}

/// Node 2 of the test above, in a process that can be killed; does nothing when run as a test.
#[test]
fn child_process() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    local(async {
        let (transport, mut events) = common::node(2, 1, NativeConnector::default());
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        loop {
            tokio::select! {
                line = lines.next_line() => match line.expect("readable") {
                    Some(payload) => transport.on_signal(NodeId(1), &payload),
                    None => return,
                },
                event = events.recv() => if let Some(TransportEvent::Signal { payload, .. }) = event {
                    println!("SIGNAL {payload}");
                    std::io::stdout().flush().expect("written");
                },
            }
        }
    });
}

#[test]
fn a_forger_loses_its_link_and_nobody_else_does() {
    local(async {
        let mut pair = common::connect(NativeConnector::default(), NativeConnector::default()).await;
        // Node 3 speaks WebRTC, but not our protocol.
        let (forger, mut forged) = NativeConnector::default().connect(false);
        pair.a.dial(NodeId(3));
        let (mut reason, mut attempt) = (None, serde_json::Value::Null);
        while reason.is_none() {
            tokio::select! {
                event = pair.a_events.recv() => match event.expect("the transport lives") {
                    TransportEvent::Signal { to: NodeId(3), payload } => {
                        let offer: serde_json::Value = serde_json::from_str(&payload).expect("JSON");
                        attempt = offer["attempt"].clone();
                        let sdp = offer["sdp"].as_str().expect("an offer").to_owned();
                        forger.set_remote(Description { kind: DescriptionKind::Offer, sdp });
                    }
                    TransportEvent::LinkDown { peer, reason: why } => {
                        assert_eq!(peer, NodeId(3));
                        reason = Some(why);
                    }
                    event => panic!("{event:?}"),
                },
                event = forged.next() => match event {
                    Some(ConnectionEvent::LocalDescription(Description { sdp, .. })) => {
                        pair.a.on_signal(NodeId(3), &serde_json::json!({"type": "answer", "attempt": attempt, "sdp": sdp}).to_string());
                    }
                    Some(ConnectionEvent::Open(Plane::Bulk)) => {
                        // Early frames may be lost while the other end opens.
                        platform::sleep(100).await;
                        forger.send(Plane::Bulk, vec![0xff; 1000]);
                    }
                    _ => {}
                },
            }
        }
        let reason = reason.expect("the loop ends with one");
        assert!(reason.contains("broken frame"), "{reason}");
        assert!(pair.a.is_up(NodeId(2)) && !pair.a.is_up(NodeId(3)));
        pair.a.send(NodeId(2), shard(1), noise(1, 100_000)).await.expect("the honest link lives");
        match pair.b_events.recv().await {
            Some(TransportEvent::Message { data, .. }) => assert_eq!(data, noise(1, 100_000)),
            other => panic!("{other:?}"),
        }
    });
}
