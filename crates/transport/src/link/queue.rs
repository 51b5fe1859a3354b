//! What waits to be sent on one plane of a link, and what of it is on its way.

use crate::connection::Plane;
use barycenter_protocol::control::LinkCounters;
use barycenter_protocol::frame::{self, FrameKind, HEADER_BYTES, MAX_FRAME_BYTES, MAX_MESSAGE_BYTES};
use barycenter_protocol::peer::{PeerMessage, TrafficKind};
use bytes::Bytes;
use futures::channel::oneshot;
use std::collections::VecDeque;

/// Messages of the link itself (greetings, questions, answers) that wait on a plane. An honest end has a few; one that asks and
/// does not read the answers would make them grow without end.
const MAX_OWN: usize = 64;

/// A message on its way out.
pub(crate) struct Outgoing {
    kind: FrameKind,
    plane: Plane,
    traffic: TrafficKind,
    head: Vec<u8>,
    data: Bytes,
    frame_bytes: usize,
    offset: usize,
    /// Whoever waits for it to be sent; nobody does for the link's own messages.
    done: Option<oneshot::Sender<()>>,
}

impl Outgoing {
    /// A message from above; the error is its size if that is too large.
    pub fn new(message: &PeerMessage, data: Bytes, done: oneshot::Sender<()>) -> Result<Self, usize> {
        let head = message.encode(&[]);
        let len = head.len() + data.len();
        if len > MAX_MESSAGE_BYTES {
            return Err(len);
        }
        let (kind, plane) = if message.is_bulk() { (FrameKind::Tensor, Plane::Bulk) } else { (FrameKind::Control, Plane::Control) };
        Ok(Self { kind, plane, traffic: message.traffic_kind(), head, data, frame_bytes: MAX_FRAME_BYTES, offset: 0, done: Some(done) })
    }

    /// A message of the link itself.
    pub fn own(kind: FrameKind, plane: Plane, head: Vec<u8>) -> Self {
        Self { kind, plane, traffic: TrafficKind::Other, head, data: Bytes::new(), frame_bytes: MAX_FRAME_BYTES, offset: 0, done: None }
    }

    /// The same in frames of at most so many bytes, header included.
    pub fn in_frames_of(self, frame_bytes: usize) -> Self {
        Self { frame_bytes, ..self }
    }

    pub fn plane(&self) -> Plane {
        self.plane
    }
}

/// The queue of one plane. Messages from above are bounded by who sends them, who waits for each; the link's own by [`MAX_OWN`].
#[derive(Default)]
pub(super) struct Queue {
    waiting: VecDeque<(u32, Outgoing)>,
    own: usize,
    unanswered_bytes: usize,
}

impl Queue {
    /// Puts a message at the end, under its number; `false` if too many of the link's own wait already.
    pub fn push(&mut self, number: u32, outgoing: Outgoing) -> bool {
        if outgoing.done.is_none() {
            if self.own >= MAX_OWN {
                return false;
            }
            self.own += 1;
        }
        self.waiting.push_back((number, outgoing));
        true
    }

    /// So many bytes are no longer queued on this machine.
    pub fn answered(&mut self, bytes: usize) {
        self.unanswered_bytes = self.unanswered_bytes.saturating_sub(bytes);
    }

    /// The next frame, of at most `max_frame_bytes`, while `window` bytes may be unanswered; it is counted, and whoever waits for
    /// the message is told with its last frame.
    pub fn next_frame(&mut self, max_frame_bytes: usize, window: usize, counters: &mut LinkCounters) -> Option<Vec<u8>> {
        let (number, message) = self.waiting.front_mut()?;
        let frame_bytes = message.frame_bytes.min(max_frame_bytes);
        if self.unanswered_bytes > 0 && self.unanswered_bytes + frame_bytes > window {
            return None;
        }
        let total = message.head.len() + message.data.len();
        let frame = frame::cut(message.kind, *number, [&message.head, &message.data], message.offset, frame_bytes);
        message.offset += frame.len() - HEADER_BYTES;
        self.unanswered_bytes += frame.len();
        count(counters, message.traffic, frame.len() as u64);
        if message.offset >= total {
            match self.waiting.pop_front().and_then(|(_, message)| message.done) {
                Some(done) => drop(done.send(())),
                None => self.own -= 1,
            }
        }
        Some(frame)
    }
}

fn count(counters: &mut LinkCounters, traffic: TrafficKind, bytes: u64) {
    let counter = match traffic {
        TrafficKind::Activations => &mut counters.activations_bytes,
        TrafficKind::SideGradients => &mut counters.side_gradients_bytes,
        TrafficKind::AdapterGradients => &mut counters.adapter_gradients_bytes,
        TrafficKind::Cache => &mut counters.cache_bytes,
        TrafficKind::Other => &mut counters.other_bytes,
    };
    *counter += bytes;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(bytes: usize) -> Outgoing {
        Outgoing::own(FrameKind::Control, Plane::Control, vec![0; bytes])
    }

    #[test]
    fn a_full_window_waits_and_a_lone_frame_larger_than_it_goes() {
        let (mut queue, mut counters) = (Queue::default(), LinkCounters::default());
        assert!(queue.push(1, own(100)));
        let mut sent = Vec::new();
        while let Some(frame) = queue.next_frame(40, 60, &mut counters) {
            sent.push(frame.len());
        }
        assert_eq!(sent, [40], "a second frame would make 80 bytes of 60");
        queue.answered(40);
        assert_eq!(queue.next_frame(40, 30, &mut counters).map(|frame| frame.len()), Some(40), "nothing is on its way");
        assert_eq!(counters.other_bytes, 80);
    }

    #[test]
    fn the_links_own_messages_are_bounded_and_those_from_above_are_not_counted() {
        let (mut queue, mut counters) = (Queue::default(), LinkCounters::default());
        let (done, mut sent) = oneshot::channel();
        assert!(queue.push(0, Outgoing::new(&PeerMessage::Ping(0), Bytes::new(), done).expect("it is small")));
        assert!((0..MAX_OWN as u32).all(|number| queue.push(number, own(1))));
        assert!(!queue.push(99, own(1)), "one more is refused");
        assert!(queue.next_frame(100, 1000, &mut counters).is_some());
        assert_eq!(sent.try_recv(), Ok(Some(())), "whoever waits is told");
        assert!(!queue.push(99, own(1)));
        assert!(queue.next_frame(100, 1000, &mut counters).is_some());
        assert!(queue.push(99, own(1)), "one has gone");
    }
}
