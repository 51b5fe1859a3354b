//! A node: takes part in generations as the coordinator says, together with its peers.

use crate::io::{Micros, NodeInput, NodeOutput};
use barycenter_protocol::{Generation, NodeId};

/// The machine in a device.
#[derive(Debug)]
pub struct Node {}

impl Node {
    /// A node that has just joined under this id. After a lost stream the device joins anew, and a new machine starts.
    pub fn new(id: NodeId) -> Self {
        todo!("{id}")
    }

    /// Takes one input at time `now`.
    pub fn handle(&mut self, now: Micros, input: NodeInput) {
        todo!("{now} {input:?}")
    }

    /// The next output; call until it is `Wait`.
    pub fn poll(&mut self) -> NodeOutput {
        todo!()
    }

    /// The generation it works for.
    pub fn generation(&self) -> Option<Generation> {
        todo!()
    }

    /// What it does now, for people.
    pub fn activity(&self) -> String {
        todo!()
    }
}
