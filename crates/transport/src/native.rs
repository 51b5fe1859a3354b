//! Connections on the `webrtc` crate.
