//! What nodes say to each other over a link.
//!
//! Two ordered channels per link: `control` for what is small and urgent, `bulk` for tensors. A [`PeerMessage`] names a
//! piece of work by generation and step, so that a late message of an abandoned generation is recognised and dropped.

use crate::{Generation, NodeId, ProtocolVersion, SampleId};
use serde::{Deserialize, Serialize};

/// First message on both channels, in both directions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version spoken.
    pub version: ProtocolVersion,
    /// Who speaks.
    pub node: NodeId,
    /// [`crate::auth::RoomSecret::link_proof`] of the speaker's role.
    pub proof: [u8; 32],
}

impl Hello {
    /// As the body of a frame message.
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("numbers have no failing serialiser")
    }

    /// The inverse of [`Hello::encode`].
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        postcard::from_bytes(body).map_err(|_| DecodeError)
    }
}

/// A message between nodes; `data`, where there is any, follows the postcard header in the same frame message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum PeerMessage {
    /// Answered by a `Pong` with the same number: measures the round trip.
    Ping(u32),
    /// See `Ping`.
    Pong(u32),
    /// How many probe bytes came in how many microseconds: ends a bandwidth measurement.
    ProbeResult {
        /// Bytes counted.
        bytes: u64,
        /// From first to last, microseconds.
        micros: u64,
    },
    /// Output of a stage for some samples of a micro-batch: data = b rows f32 [tokens, width], then (in the fill phase) a rows
    /// f32 [tokens, side width], samples in the order given.
    Activation {
        /// Work it belongs to.
        key: MicroKey,
        /// Samples in the data, ascending slot order.
        samples: Vec<SampleId>,
    },
    /// Gradient of a for some samples: data = rows f32 [tokens, side width].
    SideGradient {
        /// Work it belongs to.
        key: MicroKey,
        /// Samples in the data, ascending slot order.
        samples: Vec<SampleId>,
    },
    /// One rank's share of the gradient for the owner of a shard: data = f32.
    GradientShard {
        /// Which step.
        key: StepKey,
        /// Rank that owns the shard.
        shard: u16,
    },
    /// The summed shard: data = f32.
    ReducedShard {
        /// Which step.
        key: StepKey,
        /// Rank that owns the shard.
        shard: u16,
    },
    /// Squared norm of a stage's reduced gradient, sent by its members to the other stages' members.
    GradientNorm {
        /// Which step.
        key: StepKey,
        /// Stage index.
        stage: u16,
        /// Σ g².
        squared: f64,
    },
    /// Cache entries of one sample, taps `first_tap ..`: data = encoded entries (see the engine's cache codec), one after the other.
    CacheEntries {
        /// Which generation.
        generation: Generation,
        /// Whose.
        sample: SampleId,
        /// First tap.
        first_tap: u16,
        /// Length of each tap's entry, bytes.
        lengths: Vec<u32>,
    },
    /// The activations of a forward-only micro-batch were used: the sender may go on (it runs a bounded number ahead).
    ActivationUsed {
        /// Work it belongs to.
        key: MicroKey,
    },
    /// Cache entries were stored: the sender may go on (it runs a bounded number ahead).
    CacheStored {
        /// Which generation.
        generation: Generation,
        /// Whose.
        sample: SampleId,
        /// First tap.
        first_tap: u16,
    },
    /// Asks who keeps a sample's cache entries for all of them, ahead of the step that needs them; answered by `CacheEntries`
    /// from tap 0 (since 1.2).
    CacheWanted {
        /// Which generation.
        generation: Generation,
        /// Whose.
        sample: SampleId,
    },
}

/// A step of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StepKey {
    /// Which generation.
    pub generation: Generation,
    /// Epoch.
    pub epoch: u32,
    /// Step in the epoch (refill: running number of the refill's mini-batch).
    pub step: u32,
}

/// A micro-batch of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct MicroKey {
    /// The step.
    pub step: StepKey,
    /// Micro-batch in the step.
    pub micro: u16,
    /// Forward-only (refill) or training.
    pub forward_only: bool,
}

/// Bytes sent are counted by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TrafficKind {
    /// Activations.
    Activations,
    /// Side gradients.
    SideGradients,
    /// Adapter gradients.
    AdapterGradients,
    /// Cache entries.
    Cache,
    /// The rest.
    Other,
}

impl PeerMessage {
    /// Which counter its bytes go to.
    pub fn traffic_kind(&self) -> TrafficKind {
        match self {
            Self::Activation { .. } => TrafficKind::Activations,
            Self::SideGradient { .. } => TrafficKind::SideGradients,
            Self::GradientShard { .. } | Self::ReducedShard { .. } => TrafficKind::AdapterGradients,
            Self::CacheEntries { .. } => TrafficKind::Cache,
            Self::Ping(_) | Self::Pong(_) | Self::ProbeResult { .. } | Self::GradientNorm { .. } | Self::ActivationUsed { .. } | Self::CacheStored { .. } | Self::CacheWanted { .. } => TrafficKind::Other,
        }
    }

    /// The generation it belongs to, if to one.
    pub fn generation(&self) -> Option<Generation> {
        match self {
            Self::Activation { key, .. } | Self::SideGradient { key, .. } | Self::ActivationUsed { key } => Some(key.step.generation),
            Self::GradientShard { key, .. } | Self::ReducedShard { key, .. } | Self::GradientNorm { key, .. } => Some(key.generation),
            Self::CacheEntries { generation, .. } | Self::CacheStored { generation, .. } | Self::CacheWanted { generation, .. } => Some(*generation),
            Self::Ping(_) | Self::Pong(_) | Self::ProbeResult { .. } => None,
        }
    }

    /// Whether it travels on the bulk channel.
    pub fn is_bulk(&self) -> bool {
        matches!(self, Self::Activation { .. } | Self::SideGradient { .. } | Self::GradientShard { .. } | Self::ReducedShard { .. } | Self::CacheEntries { .. })
    }

    /// Header (length-prefixed postcard) and data as one body.
    pub fn encode(&self, data: &[u8]) -> Vec<u8> {
        let header = postcard::to_stdvec(self).expect("the message types have no failing serialiser");
        let mut body = Vec::with_capacity(4 + header.len() + data.len());
        body.extend_from_slice(&(header.len() as u32).to_le_bytes());
        body.extend_from_slice(&header);
        body.extend_from_slice(data);
        body
    }

    /// The inverse of [`PeerMessage::encode`]: the message and where its data starts.
    pub fn decode(body: &[u8]) -> Result<(Self, usize), DecodeError> {
        let prefix: [u8; 4] = body.get(..4).and_then(|p| p.try_into().ok()).ok_or(DecodeError)?;
        let end = (u32::from_le_bytes(prefix) as usize).checked_add(4).ok_or(DecodeError)?;
        let header = body.get(4..end).ok_or(DecodeError)?;
        Ok((postcard::from_bytes(header).map_err(|_| DecodeError)?, end))
    }
}

/// A message whose header cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message with an unreadable header: the other device runs another version, reload the page on both")]
pub struct DecodeError;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_encoding_with_their_data() {
        let step = StepKey { generation: Generation(3), epoch: 0, step: 9 };
        let message = PeerMessage::Activation { key: MicroKey { step, micro: 2, forward_only: false }, samples: vec![SampleId(4), SampleId(70)] };
        let body = message.encode(&[1, 2, 3]);
        let (decoded, at) = PeerMessage::decode(&body).expect("decodes");
        assert_eq!((decoded, &body[at..]), (message, &[1u8, 2, 3][..]));
    }

    #[test]
    fn damaged_headers_are_errors() {
        for body in [&[][..], &[1, 0], &[255, 255, 255, 255, 0], &[1, 0, 0, 0, 250]] {
            assert_eq!(PeerMessage::decode(body), Err(DecodeError));
        }
    }

    #[test]
    fn the_bytes_of_a_message_are_pinned() {
        let key = StepKey { generation: Generation(1), epoch: 2, step: 3 };
        assert_eq!(PeerMessage::GradientShard { key, shard: 5 }.encode(&[9]), [5, 0, 0, 0, 5, 1, 2, 3, 5, 9]);
        assert_eq!(PeerMessage::CacheWanted { generation: Generation(1), sample: SampleId(7) }.encode(&[]), [3, 0, 0, 0, 11, 1, 7]);
    }
}
