//! What a node does beside its steps while somebody is about to leave: weights and cache entries find their new places.
//!
//! Entries are read, sent and stored by jobs of their own: while the step waits for peers, and after each of its jobs for as long as
//! that job took, at most. Weights are fetched by the driver ([`NodeOutput::Fetch`]).
//!
//! [`NodeOutput::Fetch`]: crate::io::NodeOutput::Fetch

use super::mailbox::{Inbox, Outbox};
use super::redistribute::Redistribute;
use super::{Next, Setup};
use crate::io::{Job, JobResult};
use barycenter_protocol::control::{CacheSend, FromNode};

/// One takeover at one node.
#[derive(Debug)]
pub(super) struct Takeover {
    round: u32,
    entries: Redistribute,
    has_weights: bool,
    has_reported: bool,
}

impl Takeover {
    pub fn new(round: u32, sends: Vec<CacheSend>) -> Self {
        Self { round, entries: Redistribute::new(sends, 0), has_weights: false, has_reported: false }
    }

    /// Another one in its place: what is on its way stays on its way.
    pub fn renew(&mut self, round: u32, sends: Vec<CacheSend>) {
        self.entries.send_instead(sends);
        (self.round, self.has_weights, self.has_reported) = (round, false, false);
    }

    /// The driver has ended fetching.
    pub fn fetched(&mut self) {
        self.has_weights = true;
    }

    /// A job that can be done now; otherwise, once all is done, says so.
    pub fn next(&mut self, setup: &Setup, inbox: &mut Inbox, out: &mut Outbox, paused: bool) -> Option<Job> {
        match self.entries.next(setup, inbox, out, paused) {
            Next::Job(job) => Some(job),
            Next::Done if self.has_weights && !self.has_reported => {
                self.has_reported = true;
                out.server(FromNode::TakenOver { generation: setup.assignment.generation, round: self.round });
                None
            }
            _ => None,
        }
    }

    pub fn job_done(&mut self, setup: &Setup, result: JobResult, out: &mut Outbox) {
        self.entries.job_done(setup, result, out);
    }
}
