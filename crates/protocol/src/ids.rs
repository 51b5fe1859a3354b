//! Newtypes for everything that is counted or named.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id! {
    /// A node of the swarm, given by the server at joining, never reused within a server's life.
    NodeId(u32)
}
id! {
    /// A link of one node, local to it.
    LinkId(u32)
}
id! {
    /// A run of fine-tuning, as numbered in the server's data base.
    RunId(u64)
}
id! {
    /// Counts the plans of a run: every join, loss or restart that changes the plan starts a new generation.
    /// Messages of another generation are dropped.
    Generation(u32)
}
id! {
    /// A sample of the tokenised data set: training samples first, then held-out ones.
    SampleId(u32)
}
