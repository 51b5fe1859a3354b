//! Who has joined, and what a run may ask of the surroundings.

use super::links::Links;
use super::{CoordinatorOutput, Level, Patience, RunProgress};
use crate::io::Micros;
use barycenter_protocol::control::{Measurements, ToNode};
use barycenter_protocol::plan::DeviceProfile;
use barycenter_protocol::{NodeId, ProtocolVersion, RunId};
use std::collections::{BTreeMap, VecDeque};

#[derive(Debug)]
pub(super) struct Member {
    pub profile: DeviceProfile,
    pub version: ProtocolVersion,
    pub last_heard: Micros,
}

#[derive(Debug, Default)]
pub(super) struct Swarm {
    pub members: BTreeMap<NodeId, Member>,
    pub links: Links,
    /// Counts what may change a plan: members and links that come and go.
    pub version: u64,
}

impl Swarm {
    pub fn name(&self, node: NodeId) -> String {
        self.members.get(&node).map_or_else(|| format!("device {node}"), |m| m.profile.name.clone())
    }

    pub fn measurements(&self, wanted: impl Fn(NodeId) -> bool) -> Measurements {
        let devices = self.members.values().map(|m| m.profile.clone()).filter(|p| wanted(p.node)).collect();
        let links = self.links.profiles().into_iter().filter(|l| wanted(l.a) && wanted(l.b)).collect();
        Measurements { devices, links }
    }
}

/// What a run sees and does while it handles something.
pub(super) struct Context<'a> {
    pub now: Micros,
    pub patience: Patience,
    pub swarm: &'a Swarm,
    pub out: &'a mut VecDeque<CoordinatorOutput>,
    /// Nodes to be sent away once the run has finished handling.
    pub dropped: Vec<(NodeId, String)>,
    /// Nodes that wished to leave and may go now.
    pub released: Vec<NodeId>,
}

impl Context<'_> {
    pub fn tell(&mut self, node: NodeId, message: ToNode) {
        if self.swarm.members.contains_key(&node) {
            self.out.push_back(CoordinatorOutput::ToNode { node, message });
        }
    }

    pub fn event(&mut self, level: Level, text: impl Into<String>) {
        self.out.push_back(CoordinatorOutput::Event { level, text: text.into() });
    }

    pub fn progress(&mut self, run: RunId, progress: RunProgress) {
        self.out.push_back(CoordinatorOutput::Progress(run, progress));
    }
}
