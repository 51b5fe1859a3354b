//! The relay's calls: parcels between joined devices, its bounds, and strangers.

use super::support::{Device, House, join_request, refusal};
use barycenter_protocol::NodeId;
use barycenter_protocol::control::JoinReply;
use barycenter_protocol::relay::{MAX_PARCEL_BYTES, Parcel, Parcels};
use futures::StreamExt;
use futures::stream::BoxStream;
use reqwest::{Method, Response, StatusCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

struct Inbox {
    body: BoxStream<'static, reqwest::Result<bytes::Bytes>>,
    parcels: Parcels,
}

impl Inbox {
    async fn open(device: &Device) -> Self {
        let response = device.client.request(Method::GET, &format!("/api/nodes/{}/relay", device.node)).header("x-barycenter-session", &device.session).send().await.unwrap();
        assert!(response.status().is_success());
        Self { body: response.bytes_stream().boxed(), parcels: Parcels::default() }
    }

    /// The next parcel that is not the server's own sign; `None` when the stream has ended.
    async fn next(&mut self) -> Option<Parcel> {
        loop {
            match self.parcels.take().unwrap() {
                Some(parcel) if parcel.from == NodeId(0) => {}
                Some(parcel) => return Some(parcel),
                None => {
                    let piece = tokio::time::timeout(super::support::PATIENCE, self.body.next()).await.expect("something in time");
                    self.parcels.push(&piece?.ok()?);
                }
            }
        }
    }
}

async fn post(from: &Device, session: &str, to: NodeId, plane: &str, bytes: Vec<u8>) -> Response {
    try_post(from, session, to, plane, bytes).await.unwrap()
}

async fn try_post(from: &Device, session: &str, to: NodeId, plane: &str, bytes: Vec<u8>) -> reqwest::Result<Response> {
    let path = format!("/api/nodes/{}/relay/{to}/00000000000000ff/{plane}", from.node);
    from.client.request(Method::POST, &path).header("x-barycenter-session", session).body(bytes).send().await
}

#[tokio::test(flavor = "multi_thread")]
async fn parcels_pass_between_two_devices_in_order_and_wait_for_their_reader() {
    let house = House::open().await;
    let (first, second) = (Device::join(&house.client, "first").await, Device::join(&house.client, "second").await);
    let mut inbox = Inbox::open(&second).await;
    // 28 MB: more than all buffers on the way hold.
    const PARCELS: u8 = 64;
    let (to, posted) = (second.node, Arc::new(AtomicU8::new(0)));
    let count = posted.clone();
    let sending = tokio::spawn(async move {
        for i in 0..PARCELS {
            assert_eq!(post(&first, &first.session, to, "bulk", vec![i; MAX_PARCEL_BYTES[1]]).await.status(), StatusCode::NO_CONTENT);
            count.fetch_add(1, Ordering::Relaxed);
        }
        first
    });
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(posted.load(Ordering::Relaxed) < PARCELS, "nobody has read yet");
    for i in 0..PARCELS {
        let parcel = inbox.next().await.unwrap();
        assert_eq!((parcel.mailbox, parcel.plane, parcel.packets.len()), (255, 1, MAX_PARCEL_BYTES[1]));
        assert!(parcel.packets.iter().all(|byte| *byte == i));
    }
    assert_eq!(sending.await.unwrap().node, NodeId(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_absent_devices_and_immoderate_parcels_are_refused_with_a_sentence() {
    let house = House::open().await;
    let (first, second) = (Device::join(&house.client, "first").await, Device::join(&house.client, "second").await);
    let sent = |session: &str, to: NodeId, plane: &'static str, len: usize| {
        let (session, first) = (session.to_owned(), &first);
        async move { refusal(post(first, &session, to, plane, vec![1; len]).await).await.0 }
    };
    assert_eq!(sent(&first.session, second.node, "bulk", 9).await, StatusCode::CONFLICT, "no inbox is open");
    let mut inbox = Inbox::open(&second).await;
    assert_eq!(sent(&second.session, second.node, "bulk", 9).await, StatusCode::GONE, "a session of another device");
    assert_eq!(sent(&first.session, NodeId(99), "bulk", 9).await, StatusCode::CONFLICT);
    assert_eq!(sent(&first.session, first.node, "bulk", 9).await, StatusCode::CONFLICT);
    assert_eq!(sent(&first.session, second.node, "video", 9).await, StatusCode::NOT_FOUND);
    assert_eq!(sent(&first.session, second.node, "bulk", 0).await, StatusCode::LENGTH_REQUIRED, "an empty body has no length");
    // The server answers without reading what is too large; a sender that is still writing finds the connection closed instead.
    match try_post(&first, &first.session, second.node, "control", vec![1; MAX_PARCEL_BYTES[0] + 1]).await {
        Ok(response) => assert_eq!(refusal(response).await.0, StatusCode::PAYLOAD_TOO_LARGE),
        Err(error) => assert!(error.is_request(), "{error}"),
    }
    // Joined, but without a stream: not here yet.
    let reply: JoinReply = house.client.post("/api/join", &join_request("third")).await.json().await.unwrap();
    let asked = house.client.request(Method::GET, &format!("/api/nodes/{}/relay", reply.node)).header("x-barycenter-session", &reply.session).send().await.unwrap();
    assert_eq!(refusal(asked).await.0, StatusCode::CONFLICT);
    let uninvited = house.client.http.get(format!("{}/api/nodes/{}/relay", house.client.base, second.node)).send().await.unwrap();
    assert_eq!(uninvited.status(), StatusCode::UNAUTHORIZED);
    // Nothing of all that arrived.
    assert_eq!(post(&first, &first.session, second.node, "control", vec![7]).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(inbox.next().await.unwrap().packets, [7]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inbox_ends_with_its_device_and_when_another_is_opened() {
    let house = House::open().await;
    let (first, second) = (Device::join(&house.client, "first").await, Device::join(&house.client, "second").await);
    let mut earlier = Inbox::open(&second).await;
    let mut later = Inbox::open(&second).await;
    assert_eq!(earlier.next().await, None);
    assert_eq!(post(&first, &first.session, second.node, "bulk", vec![1]).await.status(), StatusCode::NO_CONTENT);
    assert_eq!(later.next().await.map(|parcel| parcel.packets), Some(vec![1]));
    let node = second.node;
    drop(second);
    assert_eq!(later.next().await, None);
    assert_eq!(post(&first, &first.session, node, "bulk", vec![1]).await.status(), StatusCode::CONFLICT);
}
