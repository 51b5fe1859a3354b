//! The cores of computers, and what they work on: a job of a node at a time, and the bytes of its links.

use super::{Event, World};
use crate::network::Message;
use crate::shared::{Shared, Use};
use barycenter_core::io::Micros;
use barycenter_protocol::NodeId;
use std::collections::BTreeMap;

/// What a place on the cores is taken by.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work {
    /// The job of a node with its token.
    Job(NodeId, u64),
    /// A message at one of its ends.
    Link(Message),
}

/// Cores, and who uses them.
#[derive(Debug)]
pub(super) struct Computer {
    cores: Shared,
    uses: BTreeMap<Use, Work>,
    called_at: Option<Micros>,
}

impl Computer {
    pub fn new(cores: f64) -> Self {
        Self { cores: Shared::new(cores), uses: BTreeMap::new(), called_at: None }
    }

    /// Work of so many seconds takes a place.
    pub fn start(&mut self, now: Micros, seconds: f64, work: Work) -> Use {
        let place = self.cores.start(now, seconds);
        self.uses.insert(place, work);
        place
    }
}

impl World {
    /// A device's processor works on a message. It goes on if the link is lost meanwhile: what was sent was encrypted.
    pub(super) fn work_on_link(&mut self, device: usize, seconds: f64, message: Message) {
        let computer = self.devices[device].computer;
        self.computers[computer].start(self.now, seconds, Work::Link(message));
        self.call_for(computer);
    }

    pub(super) fn free_core(&mut self, device: usize, place: Use) {
        let computer = self.devices[device].computer;
        self.computers[computer].cores.cancel(self.now, place);
        self.computers[computer].uses.remove(&place);
        self.call_for(computer);
    }

    pub(super) fn call_for(&mut self, computer: usize) {
        let at = self.computers[computer].cores.next_end();
        if self.computers[computer].called_at != at
            && let Some(time) = at
        {
            self.computers[computer].called_at = at;
            self.schedule(time, Event::Computer(computer));
        }
    }

    pub(super) fn computer_due(&mut self, computer: usize) {
        self.computers[computer].called_at = None;
        for place in self.computers[computer].cores.finished(self.now) {
            match self.computers[computer].uses.remove(&place) {
                Some(Work::Job(node, token)) => self.job_done(node, token),
                Some(Work::Link(message)) => {
                    self.network.part_done(self.now, message, &mut self.random);
                    self.drain_network();
                }
                None => {}
            }
        }
        self.call_for(computer);
    }
}
