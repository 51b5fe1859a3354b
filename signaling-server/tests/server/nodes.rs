//! Join, streams, messages, and how a device that is gone is noticed.

use super::support::{Device, House, join_request, refusal};
use barycenter_protocol::control::{FromNode, JoinReply, ToNode};
use reqwest::{Method, StatusCode};
use std::time::Instant;

#[tokio::test(flavor = "multi_thread")]
async fn two_devices_are_told_to_dial_and_pair_through_the_server() {
    let house = House::open().await;
    let mut first = Device::join(&house.client, "first").await;
    let mut second = Device::join(&house.client, "second").await;
    assert_eq!(first.hear().await, Some(ToNode::Dial { peer: second.node }));
    assert_eq!(second.hear().await, Some(ToNode::Dial { peer: first.node }));
    let offer = FromNode::Signal { to: second.node, payload: "offer".into() };
    assert_eq!(first.say(&[offer]).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(second.hear().await, Some(ToNode::Signal { from: first.node, payload: "offer".into() }));
    for (device, peer) in [(&first, second.node), (&second, first.node)] {
        device.say(&[FromNode::LinkUp { peer, round_trip_millis: 2.0, bytes_per_second: 1e7, relayed: true }]).await;
    }
    let snapshot = house.client.until("two nodes and a link", |s| s.nodes.len() == 2 && s.links.len() == 1 && s.nodes[0].counters.cache_bytes == 7).await;
    assert_eq!(snapshot.nodes[0].name, "first");
    assert!(snapshot.links[0].relayed);
    let told = snapshot.events.iter().filter(|event| event.text.contains("first and second do not reach each other directly"));
    assert_eq!(told.count(), 1, "both ends say so, once it is told: {:?}", snapshot.events);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_whose_stream_ends_is_gone_at_once() {
    let house = House::open().await;
    let mut first = Device::join(&house.client, "first").await;
    let second = Device::join(&house.client, "second").await;
    assert_eq!(first.hear().await, Some(ToNode::Dial { peer: second.node }));
    house.client.until("both are here", |s| s.nodes.len() == 2).await;
    let closed = Instant::now();
    let (node, session) = (second.node, second.session.clone());
    drop(second);
    assert_eq!(first.hear().await, Some(ToNode::HangUp { peer: node }));
    assert!(closed.elapsed().as_secs_f64() < 3.0, "noticed after {:?}", closed.elapsed());
    house.client.until("one is left", |s| s.nodes.len() == 1).await;
    let path = format!("/api/nodes/{node}/messages");
    let response = house.client.request(Method::POST, &path).header("x-barycenter-session", session).json(&FromNode::Leave).send().await.unwrap();
    assert_eq!(refusal(response).await.0, StatusCode::GONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_leaves_with_a_word_and_a_reloaded_page_takes_its_old_place() {
    let house = House::open().await;
    let mut device = Device::join(&house.client, "tablet").await;
    let again = Device::join(&house.client, "tablet").await;
    assert!(matches!(device.hear().await, Some(ToNode::Goodbye { .. })));
    assert_eq!(device.hear().await, None);
    let snapshot = house.client.until("one place", |s| s.nodes.len() == 1).await;
    assert_eq!(snapshot.nodes[0].node, again.node);
    assert_eq!(again.say(&[FromNode::Leave]).await.status(), StatusCode::NO_CONTENT);
    house.client.until("nobody", |s| s.nodes.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_asked_for_and_messages_are_bounded() {
    let house = House::open().await;
    let reply: JoinReply = house.client.post("/api/join", &join_request("laptop")).await.json().await.unwrap();
    let forged = JoinReply { session: "0".repeat(32), ..reply.clone() };
    assert_eq!(refusal(Device::open(&house.client, &forged).await).await.0, StatusCode::GONE);
    let path = format!("/api/nodes/{}/messages", reply.node);
    let send = |body: Vec<u8>| house.client.request(Method::POST, &path).header("x-barycenter-session", &reply.session).body(body).send();
    let (status, _) = refusal(send(b"[]".to_vec()).await.unwrap()).await;
    assert_eq!(status, StatusCode::CONFLICT, "the stream is not open yet");
    let _stream = Device::open(&house.client, &reply).await;
    assert_eq!(refusal(Device::open(&house.client, &reply).await).await.0, StatusCode::CONFLICT);
    assert_eq!(send(b"[]".to_vec()).await.unwrap().status(), StatusCode::NO_CONTENT);
    let (status, sentence) = refusal(send(br#"{"type": "dance"}"#.to_vec()).await.unwrap()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(sentence.contains("dance"), "{sentence}");
    let (status, sentence) = refusal(send(vec![b' '; (4 << 20) + 1]).await.unwrap()).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(sentence.contains("larger"));
}
