//! Connections on the `webrtc` crate.
//!
//! They run on threads of their own: a node that computes for seconds on its one thread still answers the other end's
//! consent checks, and SCTP still flows.
//!
//! Browsers hide the addresses of a page's device behind `.local` names. The native end asks for them by multicast DNS
//! where the machine allows it; and where not, the page's checks reach *our* candidates, which are plain addresses.

mod sockets;

use crate::connection::{Connection, ConnectionEvent, ConnectionEvents, ConnectionEventsSender, Connector, Description, DescriptionKind, Plane};
use bytes::BytesMut;
use futures::channel::mpsc;
use rtc::ice::mdns::MulticastDnsMode;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::{Notify, mpsc as queue};
use webrtc::data_channel::{DataChannel, DataChannelEvent, RTCDataChannelInit};
use webrtc::peer_connection::{
    PeerConnection, PeerConnectionBuilder, PeerConnectionEventHandler, RTCIceCandidateInit, RTCIceGatheringState, RTCPeerConnectionState, RTCSessionDescription,
    SettingEngineBuilder,
};

/// Unacknowledged bytes in a channel at which its writer waits: with one frame more, what the receiving socket of a
/// browser holds while its thread is busy. More is lost there, and a lost tail costs SCTP a second: 64 KiB gave 15 MB/s
/// without loss towards Chromium on two busy cores, 128 KiB and above 6 to 10 MB/s with stalls.
const CHANNEL_LIMIT_BYTES: usize = 64 * 1024;
/// What the link may have waiting for the writer.
const WINDOW_BYTES: usize = 1024 * 1024;
/// Without STUN servers gathering is a look at the interfaces.
const GATHERING_TIMEOUT: Duration = Duration::from_secs(2);
/// Consent checks are answered within a round trip, so three missing ones mean that the other end is gone; with the
/// link's own second of patience that stays below five seconds.
const ICE_DISCONNECTED: Duration = Duration::from_secs(3);
const ICE_FAILED: Duration = Duration::from_secs(1);
const ICE_KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Where names in `.local` are asked for.
const MULTICAST_DNS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 251);
/// Threads for the sockets of all links of the process.
const THREADS: usize = 2;

/// Where a native node listens.
#[derive(Clone, Debug)]
pub struct NativeOptions {
    /// UDP addresses to bind; `0.0.0.0:0` stands for every interface but loopback.
    pub addresses: Vec<String>,
}

impl Default for NativeOptions {
    /// Every interface, and loopback for nodes on one machine that is in no network.
    fn default() -> Self {
        Self { addresses: vec!["0.0.0.0:0".into(), "127.0.0.1:0".into()] }
    }
}

/// Makes native connections.
#[derive(Clone, Debug, Default)]
pub struct NativeConnector {
    options: NativeOptions,
}

impl NativeConnector {
    /// A connector; binds nothing yet.
    pub fn new(options: NativeOptions) -> Self {
        Self { options }
    }
}

impl Connector for NativeConnector {
    fn connect(&self, is_offerer: bool) -> (Box<dyn Connection>, ConnectionEvents) {
        let (events, receiver) = mpsc::unbounded();
        let (commands, todo) = queue::unbounded_channel();
        let (control, control_frames) = queue::unbounded_channel();
        let (bulk, bulk_frames) = queue::unbounded_channel();
        let addresses = self.options.addresses.clone();
        match runtime() {
            Ok(runtime) => drop(runtime.spawn(async move {
                if let Err(reason) = run(is_offerer, addresses, &events, todo, [control_frames, bulk_frames]).await {
                    let _ = events.unbounded_send(ConnectionEvent::Closed(reason));
                }
            })),
            Err(reason) => drop(events.unbounded_send(ConnectionEvent::Closed(reason.clone()))),
        }
        (Box::new(NativeConnection { commands, frames: [control, bulk] }), receiver)
    }
}

struct NativeConnection {
    commands: queue::UnboundedSender<ToConnection>,
    frames: [queue::UnboundedSender<Vec<u8>>; 2],
}

enum ToConnection {
    Remote(Description),
    Candidate(String),
    Ended(String),
}

impl Connection for NativeConnection {
    fn set_remote(&self, description: Description) {
        let _ = self.commands.send(ToConnection::Remote(description));
    }

    fn add_candidate(&self, candidate: String) {
        let _ = self.commands.send(ToConnection::Candidate(candidate));
    }

    fn send(&self, plane: Plane, frame: Vec<u8>) {
        let _ = self.frames[plane.index()].send(frame);
    }

    fn window_bytes(&self) -> usize {
        WINDOW_BYTES
    }
}

fn runtime() -> &'static Result<Runtime, String> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).thread_name("links").enable_all().build();
        runtime.map_err(|error| format!("the threads for links could not be started: {error}"))
    })
}

/// The life of a connection; the error is why it ended. `Ok` when the link let go of it.
async fn run(
    is_offerer: bool,
    addresses: Vec<String>,
    events: &ConnectionEventsSender,
    mut todo: queue::UnboundedReceiver<ToConnection>,
    frames: [queue::UnboundedReceiver<Vec<u8>>; 2],
) -> Result<(), String> {
    let sentence = |error: webrtc::error::Error| format!("a connection could not be set up: {error}");
    let (ended, endings) = queue::unbounded_channel();
    let handler = Arc::new(Handler { events: events.clone(), ended: ended.clone(), gathered: Notify::new() });
    let connection = build(addresses, Arc::clone(&handler)).await.map_err(sentence)?;
    // Each channel is served by its own two tasks, so that control never waits for bulk.
    let mut tasks = Tasks(Vec::new());
    for (plane, frames) in Plane::ALL.into_iter().zip(frames) {
        let init = RTCDataChannelInit { negotiated: Some(plane as u16), ..RTCDataChannelInit::default() };
        let channel = connection.create_data_channel(plane.label(), Some(init)).await.map_err(sentence)?;
        tasks.0.push(tokio::spawn(read(plane, Arc::clone(&channel), events.clone(), ended.clone())));
        tasks.0.push(tokio::spawn(write(plane, channel, frames, events.clone())));
    }
    let result = obey(is_offerer, &*connection, &handler, &mut todo, endings).await;
    drop(tasks);
    let _ = connection.close().await;
    result
}

async fn obey(
    is_offerer: bool,
    connection: &dyn PeerConnection,
    handler: &Handler,
    todo: &mut queue::UnboundedReceiver<ToConnection>,
    mut endings: queue::UnboundedReceiver<String>,
) -> Result<(), String> {
    if is_offerer {
        describe(DescriptionKind::Offer, connection, handler).await?;
    }
    loop {
        let command = tokio::select! {
            command = todo.recv() => command,
            ending = endings.recv() => ending.map(ToConnection::Ended),
        };
        match command {
            None => return Ok(()),
            Some(ToConnection::Ended(reason)) => return Err(reason),
            Some(ToConnection::Remote(Description { kind, sdp })) => {
                let description = match kind {
                    DescriptionKind::Offer => RTCSessionDescription::offer(sdp),
                    DescriptionKind::Answer => RTCSessionDescription::answer(sdp),
                };
                let description = description.map_err(|error| format!("the other device's description could not be read: {error}"))?;
                connection.set_remote_description(description).await.map_err(|error| format!("the other device's description does not fit: {error}"))?;
                if !is_offerer {
                    describe(DescriptionKind::Answer, connection, handler).await?;
                }
            }
            // One candidate that cannot be used is no reason to give up the others.
            Some(ToConnection::Candidate(candidate)) => match serde_json::from_str::<RTCIceCandidateInit>(&candidate) {
                Ok(candidate) => {
                    if let Err(error) = connection.add_ice_candidate(candidate).await {
                        log::debug!("a candidate is not used: {error}");
                    }
                }
                Err(error) => log::debug!("a candidate could not be read: {error}"),
            },
        }
    }
}

/// Makes the local description and says it with all candidates in it (there are no servers to wait for).
async fn describe(kind: DescriptionKind, connection: &dyn PeerConnection, handler: &Handler) -> Result<(), String> {
    let sentence = |error: webrtc::error::Error| format!("a connection could not be described: {error}");
    let description = match kind {
        DescriptionKind::Offer => connection.create_offer(None).await,
        DescriptionKind::Answer => connection.create_answer(None).await,
    };
    connection.set_local_description(description.map_err(sentence)?).await.map_err(sentence)?;
    if tokio::time::timeout(GATHERING_TIMEOUT, handler.gathered.notified()).await.is_err() {
        log::warn!("not all addresses of this device were found in time");
    }
    let sdp = connection.local_description().await.map(|description| description.sdp).ok_or("a connection has no description")?;
    let _ = handler.events.unbounded_send(ConnectionEvent::LocalDescription(Description { kind, sdp }));
    Ok(())
}

/// Multicast needs a network that carries it: a computer without a route has none, and makes its links without.
fn multicast_dns() -> MulticastDnsMode {
    let joined = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|socket| socket.join_multicast_v4(&MULTICAST_DNS, &Ipv4Addr::UNSPECIFIED));
    match joined {
        Ok(()) => MulticastDnsMode::QueryOnly,
        Err(error) => {
            log::info!("names of devices are not asked for by multicast: {error}");
            MulticastDnsMode::Disabled
        }
    }
}

async fn build(addresses: Vec<String>, handler: Arc<Handler>) -> Result<Arc<dyn PeerConnection>, webrtc::error::Error> {
    let settings = SettingEngineBuilder::new()
        .with_ice_timeouts(Some(ICE_DISCONNECTED), Some(ICE_FAILED), Some(ICE_KEEP_ALIVE))
        .with_sctp_max_receive_buffer_size(sockets::receive_window_bytes())
        .with_include_loopback_candidate(true)
        .with_multicast_dns_mode(multicast_dns())
        .build();
    let connection = PeerConnectionBuilder::new()
        .with_setting_engine(settings)
        .with_handler(handler)
        .with_runtime(Arc::new(sockets::RoomySockets))
        .with_udp_addrs(addresses)
        .with_data_channel_send_buffer_limit(CHANNEL_LIMIT_BYTES)
        .build()
        .await?;
    Ok(Arc::new(connection))
}

/// Ends its tasks when dropped.
struct Tasks(Vec<tokio::task::JoinHandle<()>>);

impl Drop for Tasks {
    fn drop(&mut self) {
        self.0.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

struct Handler {
    events: ConnectionEventsSender,
    ended: queue::UnboundedSender<String>,
    gathered: Notify,
}

#[async_trait::async_trait]
impl PeerConnectionEventHandler for Handler {
    async fn on_ice_gathering_state_change(&self, state: RTCIceGatheringState) {
        if state == RTCIceGatheringState::Complete {
            self.gathered.notify_one();
        }
    }

    async fn on_connection_state_change(&self, state: RTCPeerConnectionState) {
        let event = match state {
            RTCPeerConnectionState::Connected => ConnectionEvent::Reconnected,
            RTCPeerConnectionState::Disconnected => ConnectionEvent::Disconnected,
            RTCPeerConnectionState::Failed => {
                let _ = self.ended.send("the connection to the other device broke".into());
                return;
            }
            RTCPeerConnectionState::Closed => {
                let _ = self.ended.send("the other device closed the link".into());
                return;
            }
            _ => return,
        };
        let _ = self.events.unbounded_send(event);
    }
}

async fn read(plane: Plane, channel: Arc<dyn DataChannel>, events: ConnectionEventsSender, ended: queue::UnboundedSender<String>) {
    while let Some(event) = channel.poll().await {
        let event = match event {
            DataChannelEvent::OnOpen => ConnectionEvent::Open(plane),
            DataChannelEvent::OnMessage(message) => ConnectionEvent::Message(plane, message.data.freeze()),
            DataChannelEvent::OnClosing | DataChannelEvent::OnClose => break,
            _ => continue,
        };
        if events.unbounded_send(event).is_err() {
            return;
        }
    }
    let _ = ended.send("the other device closed the link".into());
}

async fn write(plane: Plane, channel: Arc<dyn DataChannel>, mut frames: queue::UnboundedReceiver<Vec<u8>>, events: ConnectionEventsSender) {
    while let Some(frame) = frames.recv().await {
        let len = frame.len();
        if let Err(error) = channel.send(BytesMut::from(bytes::Bytes::from(frame))).await {
            log::debug!("{} channel: {error}", plane.label());
            return;
        }
        let _ = events.unbounded_send(ConnectionEvent::Sent(plane, len));
    }
}
