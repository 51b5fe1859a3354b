//! The coordinator: who is here, who does what, and how a run goes on when someone leaves.

mod messages;

pub use messages::*;

use crate::io::{Micros, SECOND};
use crate::planner::{PlanError, PlanOptions};
use barycenter_protocol::control::Measurements;
use barycenter_protocol::plan::{ModelCost, Plan};
use barycenter_protocol::{Generation, NodeId};

/// Patience, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// A node silent for this long is gone.
    pub silent: Micros,
    /// A node that stands still for this long in a step while others wait for it is dropped (or ten times the
    /// predicted step, if that is longer).
    pub stalled: Micros,
    /// A preparation without any sign of progress for this long has failed.
    pub prepare: Micros,
    /// How long the first plan waits for links among the nodes.
    pub links: Micros,
    /// How long a run that resumes waits for further nodes after the first.
    pub restore: Micros,
}

impl Default for Patience {
    fn default() -> Self {
        Self { silent: 4 * SECOND, stalled: 30 * SECOND, prepare: 60 * SECOND, links: 10 * SECOND, restore: 5 * SECOND }
    }
}

/// The machine in the server.
#[derive(Debug)]
pub struct Coordinator {}

impl Coordinator {
    /// Without nodes or run.
    pub fn new(patience: Patience) -> Self {
        todo!("{patience:?}")
    }

    /// After a restart of the server: the run goes on when nodes come back.
    pub fn restore(patience: Patience, snapshot: RunSnapshot) -> Self {
        todo!("{patience:?} {snapshot:?}")
    }

    /// Takes one input at time `now`.
    pub fn handle(&mut self, now: Micros, input: CoordinatorInput) {
        todo!("{now} {input:?}")
    }

    /// The next output; call until it is `Wait`.
    pub fn poll(&mut self) -> CoordinatorOutput {
        todo!()
    }

    /// Whether an uploaded part of a checkpoint of this generation counts now.
    pub fn accepts_checkpoint(&self, generation: Generation) -> bool {
        todo!("{generation}")
    }

    /// What was measured of the joined nodes and their links that are up.
    pub fn measurements(&self) -> Measurements {
        todo!()
    }

    /// The plan that would be made now.
    pub fn preview(&self, cost: &ModelCost, batch: u32, options: &PlanOptions) -> Result<Plan, PlanError> {
        todo!("{cost:?} {batch} {options:?}")
    }

    /// The plan in force.
    pub fn plan(&self) -> Option<&Plan> {
        todo!()
    }

    /// Whether a run is active (not done, stopped or failed).
    pub fn is_running(&self) -> bool {
        todo!()
    }

    /// Joined nodes, ascending.
    pub fn nodes(&self) -> Vec<NodeId> {
        todo!()
    }
}
