//! What the two ends of a link say to each other through the server, before there is a link.

use serde::{Deserialize, Serialize};

/// What travels through the server, as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Signal {
    /// The node with the higher id wants a link: please offer.
    Wanted {
        /// Through the server.
        #[serde(default)]
        relayed: bool,
    },
    Offer {
        /// The offerer's number of this attempt; what belongs to it carries it.
        attempt: u32,
        sdp: String,
    },
    Answer {
        attempt: u32,
        sdp: String,
    },
    Candidate {
        attempt: u32,
        candidate: String,
    },
    /// As `Offer`, for a link through the server.
    RelayOffer {
        attempt: u32,
        /// X25519, see [`crate::relay`].
        key: String,
    },
    RelayAnswer {
        attempt: u32,
        key: String,
    },
}

impl Signal {
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers have a JSON form")
    }
}
