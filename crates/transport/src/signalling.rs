//! The node's line to the server: joins, keeps the stream, posts, and joins again after every break.

use crate::http::{Http, HttpError};
use crate::platform;
use barycenter_protocol::control::{FromNode, JoinReply, JoinRequest, ToNode};
use barycenter_protocol::{NodeId, PROTOCOL_VERSION};
use futures::channel::mpsc;
use futures::{FutureExt, Stream, StreamExt, select};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// The server pings each second; after so long without a line the stream is dead.
const SILENCE_MILLIS: u32 = 5_000;
/// Tries of a node that was never in, about eight seconds: then the address is wrong rather than the server busy.
const FIRST_TRIES: u32 = 6;
/// First wait before another try; doubled up to [`MAX_BACK_OFF_MILLIS`].
const MIN_BACK_OFF_MILLIS: u32 = 250;
/// A restarted server is found again after at most so long.
const MAX_BACK_OFF_MILLIS: u32 = 4_000;
/// Messages waiting to be posted; a node that cannot get rid of so many has lost the server: it joins again.
const MAX_QUEUED: usize = 4_096;
/// Messages in one `POST`.
const MAX_BATCH: usize = 256;

/// What happens on the line.
#[derive(Clone, Debug, PartialEq)]
pub enum SignallingEvent {
    /// Joined, for the first time or again: always with a new node id, so what belonged to the old one is void.
    Joined(JoinReply),
    /// The server said something (its pings are not passed on).
    Message(ToNode),
    /// The line broke or the server is not there; it is being tried again. Not said twice in a row.
    Lost {
        /// A sentence for people.
        reason: String,
    },
    /// The server does not want this node (wrong secret, other version, bad request), or was not there when the node first came; it is not tried again.
    Refused {
        /// A sentence for people.
        reason: String,
    },
}

/// The upward half. Cheap to clone; the line ends when the events are dropped.
#[derive(Clone)]
pub struct Signalling {
    outbox: Rc<RefCell<Outbox>>,
    wake: mpsc::UnboundedSender<()>,
}

/// The downward half.
pub struct SignallingEvents {
    receiver: mpsc::UnboundedReceiver<SignallingEvent>,
}

#[derive(Default)]
struct Outbox {
    /// `None` while not joined: what is sent then belongs to no session and is dropped.
    queue: Option<VecDeque<FromNode>>,
    has_overflown: bool,
    /// The node said farewell: the end of the line is no reason to join again.
    is_leaving: bool,
}

impl Signalling {
    /// Joins and stays joined until the events are dropped or the server refuses. `http` gets each session.
    pub fn start(http: Http, request: JoinRequest) -> (Self, SignallingEvents) {
        let (events, receiver) = mpsc::unbounded();
        let (wake, wakes) = mpsc::unbounded();
        let outbox = Rc::new(RefCell::new(Outbox::default()));
        platform::spawn_local(stay_joined(http, request, Rc::clone(&outbox), wakes, events));
        (Self { outbox, wake }, SignallingEvents { receiver })
    }

    /// Queues a message; they are posted in order, several at a time. While the node is not joined it is dropped.
    pub fn send(&self, message: FromNode) {
        let mut outbox = self.outbox.borrow_mut();
        outbox.is_leaving |= matches!(message, FromNode::Leave);
        let Some(queue) = &mut outbox.queue else { return };
        // Only the newest sign of life counts.
        if matches!(message, FromNode::Alive { .. }) {
            queue.retain(|queued| !matches!(queued, FromNode::Alive { .. }));
        }
        queue.push_back(message);
        if queue.len() > MAX_QUEUED {
            outbox.queue = None;
            outbox.has_overflown = true;
        }
        let _ = self.wake.unbounded_send(());
    }
}

impl Stream for SignallingEvents {
    type Item = SignallingEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SignallingEvent>> {
        self.receiver.poll_next_unpin(cx)
    }
}

impl SignallingEvents {
    /// The next event; waits for it. `None` after [`SignallingEvent::Refused`].
    pub async fn recv(&mut self) -> Option<SignallingEvent> {
        self.receiver.next().await
    }
}

type Events = mpsc::UnboundedSender<SignallingEvent>;

async fn stay_joined(http: Http, request: JoinRequest, outbox: Rc<RefCell<Outbox>>, mut wakes: mpsc::UnboundedReceiver<()>, events: Events) {
    let mut back_off = MIN_BACK_OFF_MILLIS;
    let mut is_lost = false;
    let mut tries_left = Some(FIRST_TRIES);
    while !events.is_closed() {
        http.set_session(None);
        let reason = match join(&http, &request).await {
            Ok(reply) => {
                back_off = MIN_BACK_OFF_MILLIS;
                is_lost = false;
                tries_left = None;
                http.set_session(Some(reply.session.clone()));
                *outbox.borrow_mut() = Outbox { queue: Some(VecDeque::new()), ..Outbox::default() };
                let node = reply.node;
                let _ = events.unbounded_send(SignallingEvent::Joined(reply));
                let reason = select! {
                    reason = listen(&http, node, &events).fuse() => reason,
                    reason = post(&http, node, &outbox, &mut wakes).fuse() => reason,
                };
                outbox.borrow_mut().queue = None;
                if outbox.borrow().is_leaving {
                    return;
                }
                reason
            }
            Err(error) if error.is_worth_a_retry() && tries_left != Some(1) => {
                tries_left = tries_left.map(|left| left - 1);
                error.to_string()
            }
            Err(error) => {
                let _ = events.unbounded_send(SignallingEvent::Refused { reason: error.to_string() });
                return;
            }
        };
        if !is_lost {
            is_lost = true;
            let _ = events.unbounded_send(SignallingEvent::Lost { reason });
        }
        platform::sleep(back_off).await;
        back_off = (back_off * 2).min(MAX_BACK_OFF_MILLIS);
    }
}

async fn join(http: &Http, request: &JoinRequest) -> Result<JoinReply, HttpError> {
    let reply: JoinReply = http.post_json("/api/join", request).await?;
    if !reply.version.is_compatible_with(PROTOCOL_VERSION) {
        let (theirs, ours) = (reply.version.major, PROTOCOL_VERSION.major);
        return Err(HttpError::SetUp(format!("the server speaks protocol version {theirs}, this device {ours}: reload the page, or update the older program")));
    }
    Ok(reply)
}

/// Reads the stream to its end; the result is why it ended.
async fn listen(http: &Http, node: NodeId, events: &Events) -> String {
    let path = format!("/api/nodes/{node}/stream");
    let mut lines = match platform::timeout(SILENCE_MILLIS, http.get_lines::<ToNode>(&path)).await {
        Some(Ok(lines)) => lines,
        Some(Err(error)) => return error.to_string(),
        None => return "the server did not answer".into(),
    };
    loop {
        match platform::timeout(SILENCE_MILLIS, lines.next()).await {
            Some(Some(Ok(ToNode::Ping))) if events.is_closed() => return "this node left".into(),
            Some(Some(Ok(ToNode::Ping))) => {}
            Some(Some(Ok(message))) => {
                if events.unbounded_send(SignallingEvent::Message(message)).is_err() {
                    return "this node left".into();
                }
            }
            Some(Some(Err(error))) => return error.to_string(),
            Some(None) => return "the server closed the line".into(),
            None => return format!("nothing was heard of the server for {} s", SILENCE_MILLIS / 1000),
        }
    }
}

/// Posts what is queued; ends when that cannot go on, with the reason. A batch is repeated until it is through, so the
/// server may see one twice when an answer is lost.
async fn post(http: &Http, node: NodeId, outbox: &RefCell<Outbox>, wakes: &mut mpsc::UnboundedReceiver<()>) -> String {
    let path = format!("/api/nodes/{node}/messages");
    let mut back_off = MIN_BACK_OFF_MILLIS;
    while wakes.next().await.is_some() {
        loop {
            let batch: Vec<FromNode> = match &mut *outbox.borrow_mut() {
                Outbox { has_overflown: true, .. } => return format!("{MAX_QUEUED} messages could not be posted"),
                Outbox { queue: Some(queue), .. } => queue.drain(..queue.len().min(MAX_BATCH)).collect(),
                Outbox { queue: None, .. } => Vec::new(),
            };
            if batch.is_empty() {
                break;
            }
            while let Err(error) = http.post(&path, &batch).await {
                if !error.is_worth_a_retry() {
                    return error.to_string();
                }
                platform::sleep(back_off).await;
                back_off = (back_off * 2).min(MAX_BACK_OFF_MILLIS);
            }
            back_off = MIN_BACK_OFF_MILLIS;
        }
    }
    // All senders are gone; the stream alone keeps the line.
    futures::future::pending().await
}
