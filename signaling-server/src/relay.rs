//! The relay: parcels of sealed packets wait here until their receiver reads them. The server cannot open them.
//!
//! Memory is taken before a parcel is read: at most two parcels of each plane wait per pair and direction, together
//! less than 2 MiB per pair of devices, and [`MAX_WAITING_BYTES`] in all. While there is no room the `POST` waits, which is the
//! back-pressure; a reader that reads nothing for [`STALL`] loses its inbox, and with it its relayed links.

use crate::error::{Answer, Refusal};
use axum::http::StatusCode;
use barycenter_protocol::NodeId;
use barycenter_protocol::relay::{MAX_PARCEL_BYTES, Parcel};
use bytes::Bytes;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};

/// Room for parcels that wait for one receiver, by sender and plane: two bulk parcels, one of control. With both directions
/// 2 MiB per pair.
const LANE_BYTES: [usize; 2] = [MAX_PARCEL_BYTES[0], 2 * MAX_PARCEL_BYTES[1]];
/// Room for all parcels of the house.
const MAX_WAITING_BYTES: usize = 64 << 20;
/// A receiver that is there reads within milliseconds; one that read nothing for so long is gone or frozen.
pub const STALL: Duration = Duration::from_secs(15);
/// How often a waiting parcel looks whether its receiver reads at all.
const LOOK: Duration = Duration::from_millis(500);

static WAITING: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MAX_WAITING_BYTES)));

/// What waits for one node.
#[derive(Debug)]
pub struct Inbox {
    state: Mutex<State>,
    arrived: Notify,
    stall: Duration,
}

#[derive(Debug)]
struct State {
    queues: [VecDeque<Waiting>; 2],
    lanes: HashMap<(NodeId, usize), Lane>,
    last_read: Instant,
    has_ended: bool,
}

/// The way from one sender, on one plane.
#[derive(Clone, Debug)]
struct Lane {
    room: Arc<Semaphore>,
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// A parcel with the room it takes.
#[derive(Debug)]
struct Waiting {
    header: Bytes,
    packets: Bytes,
    room: Room,
}

/// Room in a lane and in the house.
#[derive(Debug)]
struct Room {
    _lane: OwnedSemaphorePermit,
    _house: OwnedSemaphorePermit,
}

/// A place for one parcel, taken before its bytes are read.
#[derive(Debug)]
pub struct Place {
    inbox: Arc<Inbox>,
    from: NodeId,
    plane: usize,
    room: Room,
    _turn: OwnedMutexGuard<()>,
}

/// Ends its inbox when the node is forgotten or opens another one.
#[derive(Debug)]
pub struct Owner(Arc<Inbox>);

/// The receiving end; dropping it ends the inbox.
#[derive(Debug)]
pub struct Reader {
    inbox: Arc<Inbox>,
    packets: Option<Bytes>,
    /// Of the parcel that was handed over last: free when the next is asked for.
    read: Option<Room>,
}

/// An empty inbox with its owner's and its reader's handle.
pub fn inbox(stall: Duration) -> (Owner, Reader) {
    let state = State { queues: Default::default(), lanes: HashMap::new(), last_read: Instant::now(), has_ended: false };
    let inbox = Arc::new(Inbox { state: Mutex::new(state), arrived: Notify::new(), stall });
    // A first sign goes out at once: some browsers hand a body on only when something of it came.
    let sign = Bytes::copy_from_slice(&Parcel::header(NodeId(0), 0, 0, 0));
    (Owner(inbox.clone()), Reader { inbox, packets: Some(sign), read: None })
}

impl Owner {
    /// For those who post.
    pub fn inbox(&self) -> Arc<Inbox> {
        self.0.clone()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.inbox.end();
    }
}

impl Inbox {
    /// Waits for room for a parcel of `len` bytes.
    pub async fn place(self: Arc<Self>, from: NodeId, plane: usize, len: usize) -> Answer<Place> {
        if len == 0 || len > MAX_PARCEL_BYTES[plane] {
            let sentence = format!("a parcel of {len} bytes came for the relay, 1 to {} are passed on: reload the page", MAX_PARCEL_BYTES[plane]);
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, sentence));
        }
        let lane = self.lane(from, plane)?;
        // A link that is made anew may come while the last parcel of the one before still waits.
        let turn = tokio::time::timeout(2 * self.stall, lane.turn.lock_owned()).await;
        let turn = turn.map_err(|_| Refusal::conflict("a parcel for this device is on its way already: one at a time"))?;
        let lane = self.room(lane.room, len).await?;
        let house = self.room(WAITING.clone(), len).await?;
        Ok(Place { inbox: self, from, plane, room: Room { _lane: lane, _house: house }, _turn: turn })
    }

    fn lane(&self, from: NodeId, plane: usize) -> Answer<Lane> {
        let mut state = self.state();
        if state.has_ended {
            return Err(gone());
        }
        let new = || Lane { room: Arc::new(Semaphore::new(LANE_BYTES[plane])), turn: Arc::default() };
        Ok(state.lanes.entry((from, plane)).or_insert_with(new).clone())
    }

    async fn room(&self, room: Arc<Semaphore>, len: usize) -> Answer<OwnedSemaphorePermit> {
        let since = Instant::now();
        let mut taken = std::pin::pin!(room.acquire_many_owned(len as u32));
        loop {
            match tokio::time::timeout(LOOK.min(self.stall), &mut taken).await {
                Ok(Ok(_)) if self.state().has_ended => return Err(gone()),
                Ok(taken) => return taken.map_err(|_| gone()),
                Err(_) => {}
            }
            let (last_read, has_something) = {
                let state = self.state();
                (state.last_read.max(since), state.queues.iter().any(|queue| !queue.is_empty()))
            };
            if has_something && last_read.elapsed() >= self.stall {
                self.end();
                return Err(Refusal::new(StatusCode::GATEWAY_TIMEOUT, format!("the other device has read nothing for {} s", self.stall.as_secs_f32())));
            }
            // The house is full of what others do not read: they are ended by then.
            if since.elapsed() >= 2 * self.stall {
                return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "the relay of the server is full: the link is made anew"));
            }
        }
    }

    fn end(&self) {
        let mut state = self.state();
        state.has_ended = true;
        state.queues = Default::default();
        state.lanes.drain().for_each(|(_, lane)| lane.room.close());
        self.arrived.notify_one();
    }

    /// Nothing panics while it is held, so poison means nothing.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The parcel's bytes came.
    pub fn put(self, mailbox: u64, packets: Bytes) -> Answer<()> {
        let header = Bytes::copy_from_slice(&Parcel::header(self.from, mailbox, self.plane as u8, packets.len()));
        let mut state = self.inbox.state();
        if state.has_ended {
            return Err(gone());
        }
        state.queues[self.plane].push_back(Waiting { header, packets, room: self.room });
        drop(state);
        self.inbox.arrived.notify_one();
        Ok(())
    }
}

impl Reader {
    /// The next piece: control before bulk, in order within a plane. `None` when the inbox has ended.
    pub async fn next(&mut self) -> Option<Bytes> {
        if let Some(packets) = self.packets.take() {
            return Some(packets);
        }
        self.read = None;
        loop {
            {
                let mut state = self.inbox.state();
                state.last_read = Instant::now();
                if state.has_ended {
                    return None;
                }
                if let Some(Waiting { header, packets, room }) = state.queues.iter_mut().find_map(VecDeque::pop_front) {
                    self.packets = Some(packets);
                    self.read = Some(room);
                    return Some(header);
                }
            }
            self.inbox.arrived.notified().await;
        }
    }
}

/// Nobody reads what is posted.
pub fn gone() -> Refusal {
    Refusal::conflict("the other device is not at the relay: the link is made anew")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BULK: usize = 1;
    const FULL: usize = MAX_PARCEL_BYTES[BULK];

    async fn post(owner: &Owner, from: u32, plane: usize, len: usize) -> Answer<()> {
        owner.inbox().place(NodeId(from), plane, len).await?.put(9, vec![from as u8; len].into())
    }

    async fn parcel(reader: &mut Reader) -> Option<(Bytes, usize)> {
        Some((reader.next().await?, reader.next().await?.len()))
    }

    #[tokio::test]
    async fn control_overtakes_bulk_and_a_full_lane_makes_its_sender_wait() {
        let (owner, mut reader) = inbox(STALL);
        assert_eq!(reader.next().await.map(|sign| sign.len()), Some(17));
        for _ in 0..2 {
            post(&owner, 1, BULK, FULL).await.unwrap();
        }
        post(&owner, 1, 0, 5).await.unwrap();
        let mut third = Box::pin(post(&owner, 1, BULK, FULL));
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut third).await.is_err(), "two parcels fill the lane");
        post(&owner, 2, BULK, FULL).await.unwrap();
        assert_eq!(parcel(&mut reader).await.unwrap(), (Bytes::copy_from_slice(&Parcel::header(NodeId(1), 9, 0, 5)), 5));
        assert_eq!(parcel(&mut reader).await.unwrap().1, FULL);
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut third).await.is_err(), "what was handed over is still on its way");
        assert_eq!(parcel(&mut reader).await.unwrap().1, FULL);
        third.await.unwrap();
        assert_eq!(parcel(&mut reader).await.unwrap().0[0], 2);
        assert_eq!(parcel(&mut reader).await.unwrap().0[0], 1);
    }

    #[tokio::test]
    async fn a_reader_that_stalls_loses_its_inbox_and_all_that_waits() {
        let (owner, mut reader) = inbox(Duration::from_millis(100));
        for _ in 0..2 {
            post(&owner, 1, BULK, FULL).await.unwrap();
        }
        let refusal = post(&owner, 1, BULK, FULL).await.unwrap_err();
        assert!(refusal.status == StatusCode::GATEWAY_TIMEOUT && refusal.sentence.contains("read nothing"), "{refusal:?}");
        assert!(owner.0.state().queues.iter().all(VecDeque::is_empty), "its room is free again");
        assert_eq!(post(&owner, 2, BULK, 1).await.unwrap_err().status, StatusCode::CONFLICT);
        assert!(reader.next().await.is_some(), "the sign that was under way");
        assert_eq!(reader.next().await, None);
    }

    #[tokio::test]
    async fn a_waiting_sender_is_told_when_the_reader_or_the_node_goes() {
        for node_goes in [false, true] {
            let (owner, reader) = inbox(STALL);
            let inbox = owner.inbox();
            let fill = |_| inbox.clone().place(NodeId(1), BULK, FULL);
            for i in 0..2 {
                fill(i).await.unwrap().put(1, vec![0; FULL].into()).unwrap();
            }
            let waiting = tokio::spawn(fill(2));
            tokio::time::sleep(Duration::from_millis(20)).await;
            let kept = if node_goes { drop(owner); Some(reader) } else { drop(reader); None };
            let refusal = waiting.await.unwrap().unwrap_err();
            assert_eq!(refusal.status, StatusCode::CONFLICT, "{refusal:?}");
            drop(kept);
        }
    }

    #[tokio::test]
    async fn parcels_have_bounds_and_each_lane_takes_one_at_a_time() {
        let (owner, _reader) = inbox(Duration::from_millis(50));
        for (plane, len) in [(0, 0), (0, MAX_PARCEL_BYTES[0] + 1), (1, FULL + 1)] {
            assert_eq!(post(&owner, 1, plane, len).await.unwrap_err().status, StatusCode::PAYLOAD_TOO_LARGE);
        }
        let place = owner.inbox().place(NodeId(1), BULK, 10).await.unwrap();
        assert!(owner.inbox().place(NodeId(1), BULK, 10).await.unwrap_err().sentence.contains("one at a time"));
        drop(place);
        owner.inbox().place(NodeId(1), BULK, 10).await.unwrap();
        let per_pair: usize = 2 * LANE_BYTES.iter().sum::<usize>();
        assert_eq!(per_pair, 2 << 20);
    }
}
