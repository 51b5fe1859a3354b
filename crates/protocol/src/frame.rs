//! The wire unit of a link: a 16-byte header and a chunk (docs/PROTOCOL.md).
//!
//! ```text
//! 0..2   magic 0x4243 ("BC")     little-endian throughout
//! 2      version major
//! 3      kind
//! 4..8   message id
//! 8..12  offset of this chunk in the message
//! 12..16 total length of the message
//! ```
//! Every bound is checked before anything is allocated; a bad frame ends its link and nothing else.

use std::collections::HashMap;

/// Length of the header, bytes.
pub const HEADER_BYTES: usize = 16;
/// Largest frame, header included: what every browser's SCTP stack takes in one message.
pub const MAX_FRAME_BYTES: usize = 64 * 1024;
/// Largest message: 64 MiB holds a micro-batch of 4,096 tokens at width 4,096 in f32.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;
/// Messages being put together at once on one link; a peer that opens more is broken.
pub const MAX_PARTIAL_MESSAGES: usize = 8;
const MAGIC: u16 = 0x4243;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// First on both channels: [`crate::peer::Hello`].
    Hello = 1,
    /// A small message: [`crate::peer::PeerMessage`] without data.
    Control = 2,
    /// A tensor: postcard header, then raw little-endian data.
    Tensor = 3,
    /// Bytes to measure bandwidth with; answered by nothing.
    Probe = 4,
}

impl TryFrom<u8> for FrameKind {
    type Error = FrameError;

    fn try_from(kind: u8) -> Result<Self, FrameError> {
        match kind {
            1 => Ok(Self::Hello),
            2 => Ok(Self::Control),
            3 => Ok(Self::Tensor),
            4 => Ok(Self::Probe),
            other => Err(FrameError::UnknownKind(other)),
        }
    }
}

/// Why a frame was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Shorter than its header.
    #[error("a frame of {0} bytes is shorter than its 16-byte header")]
    TooShort(usize),
    /// Longer than any frame.
    #[error("a frame of {0} bytes is longer than 65536")]
    TooLong(usize),
    /// Not ours.
    #[error("a frame starts with {0:#06x} instead of 0x4243")]
    BadMagic(u16),
    /// Another major version.
    #[error("the other device speaks protocol version {theirs}, this one {ours}: reload the page on both")]
    Version {
        /// Their major.
        theirs: u8,
        /// Our major.
        ours: u8,
    },
    /// Unknown kind.
    #[error("a frame of unknown kind {0}")]
    UnknownKind(u8),
    /// Total length over the limit.
    #[error("a message of {0} bytes was announced, the limit is 67108864")]
    MessageTooLong(u32),
    /// A chunk outside its message, or out of order, or another total than before.
    #[error("chunk at {offset} of message {message} does not fit (have {have} of {total} bytes)")]
    BadChunk {
        /// Message id.
        message: u32,
        /// Offset of the chunk.
        offset: u32,
        /// Bytes so far.
        have: usize,
        /// Bytes announced.
        total: u32,
    },
    /// Too many at once.
    #[error("more than 8 messages at once on one channel")]
    TooManyMessages,
}

/// A complete message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: FrameKind,
    /// Its body.
    pub body: Vec<u8>,
}

/// Cuts a message into frames of at most `max_frame_bytes` (header included).
pub fn chunk(kind: FrameKind, message_id: u32, body: &[u8], max_frame_bytes: usize) -> impl Iterator<Item = Vec<u8>> + '_ {
    let room = max_frame_bytes.clamp(HEADER_BYTES + 1, MAX_FRAME_BYTES) - HEADER_BYTES;
    let count = body.len().div_ceil(room).max(1);
    (0..count).map(move |i| cut(kind, message_id, [body, &[]], i * room, max_frame_bytes))
}

/// The frame that starts at `offset` of a message whose body is the two parts one after the other.
///
/// # Panics
/// If `offset` is behind the end of the body.
pub fn cut(kind: FrameKind, message_id: u32, parts: [&[u8]; 2], offset: usize, max_frame_bytes: usize) -> Vec<u8> {
    let room = max_frame_bytes.clamp(HEADER_BYTES + 1, MAX_FRAME_BYTES) - HEADER_BYTES;
    let border = parts[0].len();
    let total = border + parts[1].len();
    let end = (offset + room).min(total);
    let mut frame = Vec::with_capacity(HEADER_BYTES + end - offset);
    frame.extend_from_slice(&MAGIC.to_le_bytes());
    frame.push(crate::PROTOCOL_VERSION.major);
    frame.push(kind as u8);
    frame.extend_from_slice(&message_id.to_le_bytes());
    frame.extend_from_slice(&(offset as u32).to_le_bytes());
    frame.extend_from_slice(&(total as u32).to_le_bytes());
    frame.extend_from_slice(&parts[0][offset.min(border)..end.min(border)]);
    frame.extend_from_slice(&parts[1][offset.max(border) - border..end.max(border) - border]);
    frame
}

/// What a frame belongs to, by its header alone; `None` if that says no known kind.
pub fn kind_of(frame: &[u8]) -> Option<FrameKind> {
    FrameKind::try_from(*frame.get(3)?).ok()
}

/// Whether a frame holds a part of its message and not all of it, by its header alone.
pub fn is_part(frame: &[u8]) -> bool {
    frame.len() >= HEADER_BYTES && (word(frame, 8) != 0 || word(frame, 12) as usize != frame.len() - HEADER_BYTES)
}

/// A number of the header.
fn word(frame: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
}

/// Puts the frames of one ordered channel together again.
#[derive(Debug, Default)]
pub struct Assembler {
    partial: HashMap<u32, (FrameKind, u32, Vec<u8>)>,
}

impl Assembler {
    /// Takes a frame; returns the message it completes, if any.
    pub fn push(&mut self, frame: &[u8]) -> Result<Option<Message>, FrameError> {
        if frame.len() < HEADER_BYTES {
            return Err(FrameError::TooShort(frame.len()));
        }
        if frame.len() > MAX_FRAME_BYTES {
            return Err(FrameError::TooLong(frame.len()));
        }
        let magic = u16::from_le_bytes([frame[0], frame[1]]);
        if magic != MAGIC {
            return Err(FrameError::BadMagic(magic));
        }
        let ours = crate::PROTOCOL_VERSION.major;
        if frame[2] != ours {
            return Err(FrameError::Version { theirs: frame[2], ours });
        }
        let kind = FrameKind::try_from(frame[3])?;
        let (message, offset, total) = (word(frame, 4), word(frame, 8), word(frame, 12));
        if total as usize > MAX_MESSAGE_BYTES {
            return Err(FrameError::MessageTooLong(total));
        }
        let data = &frame[HEADER_BYTES..];
        let bad = |have: usize| FrameError::BadChunk { message, offset, have, total };
        if offset == 0 && data.len() == total as usize {
            return if self.partial.contains_key(&message) { Err(bad(0)) } else { Ok(Some(Message { kind, body: data.to_vec() })) };
        }
        if offset == 0 {
            if self.partial.len() >= MAX_PARTIAL_MESSAGES {
                return Err(FrameError::TooManyMessages);
            }
            if data.is_empty() || data.len() > total as usize || self.partial.contains_key(&message) {
                return Err(bad(0));
            }
            // Memory grows with what arrives, not with what is announced.
            self.partial.insert(message, (kind, total, data.to_vec()));
            return Ok(None);
        }
        let (known_kind, known_total, body) = self.partial.get_mut(&message).ok_or_else(|| bad(0))?;
        if *known_kind != kind || *known_total != total || body.len() != offset as usize || data.is_empty() || body.len() + data.len() > total as usize {
            return Err(bad(body.len()));
        }
        body.extend_from_slice(data);
        if body.len() < total as usize {
            return Ok(None);
        }
        let (kind, _, body) = self.partial.remove(&message).expect("the entry was just borrowed");
        Ok(Some(Message { kind, body }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bytes_of_a_frame_are_pinned() {
        let frame: Vec<_> = chunk(FrameKind::Control, 0x0102_0304, b"hi", MAX_FRAME_BYTES).collect();
        assert_eq!(frame, vec![vec![0x43, 0x42, 1, 2, 4, 3, 2, 1, 0, 0, 0, 0, 2, 0, 0, 0, b'h', b'i']]);
    }

    #[test]
    fn hostile_frames_are_refused_before_allocation() {
        let good: Vec<u8> = chunk(FrameKind::Tensor, 1, &[0; 4], 64).next().expect("one frame");
        let with = |at: usize, bytes: &[u8]| {
            let mut frame = good.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            Assembler::default().push(&frame).expect_err("refused")
        };
        assert_eq!(with(0, &[0, 0]), FrameError::BadMagic(0));
        assert_eq!(with(2, &[9]), FrameError::Version { theirs: 9, ours: 1 });
        assert_eq!(with(3, &[77]), FrameError::UnknownKind(77));
        assert_eq!(with(12, &u32::MAX.to_le_bytes()), FrameError::MessageTooLong(u32::MAX));
        assert!(matches!(with(8, &8u32.to_le_bytes()), FrameError::BadChunk { .. }));
        assert_eq!(Assembler::default().push(&[1, 2]), Err(FrameError::TooShort(2)));
        assert_eq!(Assembler::default().push(&vec![0; MAX_FRAME_BYTES + 1]), Err(FrameError::TooLong(MAX_FRAME_BYTES + 1)));
    }

    #[test]
    fn kind_and_wholeness_are_read_from_the_header() {
        let frames: Vec<_> = chunk(FrameKind::Tensor, 5, &[1; 100], 64).collect();
        assert!(frames.len() > 1 && frames.iter().all(|frame| is_part(frame) && kind_of(frame) == Some(FrameKind::Tensor)));
        assert!(chunk(FrameKind::Hello, 5, &[1; 40], 64).all(|frame| !is_part(&frame) && kind_of(&frame) == Some(FrameKind::Hello)));
        assert!(!is_part(&[0; HEADER_BYTES - 1]) && kind_of(&[0; 3]).is_none() && kind_of(&[9; 4]).is_none());
    }

    proptest! {
        #[test]
        fn messages_survive_chunking_and_interleaving(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..500), 1..6), size in 17usize..120) {
            let mut queues: Vec<Vec<Vec<u8>>> = bodies.iter().enumerate().map(|(i, b)| chunk(FrameKind::Tensor, i as u32, b, size).collect()).collect();
            let mut assembler = Assembler::default();
            let mut done = vec![None; bodies.len()];
            while queues.iter().any(|q| !q.is_empty()) {
                for (i, queue) in queues.iter_mut().enumerate() {
                    if queue.is_empty() { continue; }
                    if let Some(message) = assembler.push(&queue.remove(0)).expect("good frame") { done[i] = Some(message.body); }
                }
            }
            prop_assert_eq!(done.into_iter().map(|b| b.expect("complete")).collect::<Vec<_>>(), bodies);
        }

        #[test]
        fn a_body_in_two_parts_is_cut_like_one(body in prop::collection::vec(any::<u8>(), 0..300), border in 0usize..300, size in 17usize..120) {
            let parts = body.split_at(border.min(body.len()));
            for frame in chunk(FrameKind::Tensor, 3, &body, size) {
                let offset = u32::from_le_bytes([frame[8], frame[9], frame[10], frame[11]]) as usize;
                prop_assert_eq!(cut(FrameKind::Tensor, 3, [parts.0, parts.1], offset, size), frame);
            }
        }

        #[test]
        fn arbitrary_bytes_never_panic(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..20)) {
            let mut assembler = Assembler::default();
            for frame in frames { let _ = assembler.push(&frame); }
        }
    }
}
