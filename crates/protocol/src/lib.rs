//! Ids, messages, frames and chunking: what travels between Barycenter's parts.
