//! The coordinator: who is here, who does what, and how a run goes on when someone leaves.

mod asks;
mod books;
mod cache;
mod links;
mod messages;
mod pace;
mod run;
mod stall;
mod swarm;

pub use messages::*;

use crate::io::{Micros, SECOND};
use crate::planner::{self, PlanError, PlanOptions, linked_subset};
use asks::Asks;
use barycenter_protocol::control::{FromNode, Measurements, ToNode};
use barycenter_protocol::plan::{DeviceProfile, ModelCost, Plan};
use barycenter_protocol::{Generation, NodeId, ProtocolVersion};
use run::Run;
use std::collections::VecDeque;
use swarm::{Context, Member, Swarm};

/// Patience, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// A node silent for this long is gone (three predicted steps, if that is longer; somewhat more while it gets ready).
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
pub struct Coordinator {
    patience: Patience,
    now: Micros,
    swarm: Swarm,
    run: Option<Run>,
    asks: Asks,
    out: VecDeque<CoordinatorOutput>,
}

impl Coordinator {
    /// Without nodes or run.
    pub fn new(patience: Patience) -> Self {
        Self { patience, now: 0, swarm: Swarm::default(), run: None, asks: Asks::default(), out: VecDeque::new() }
    }

    /// After a restart of the server: the run goes on when nodes come back.
    pub fn restore(patience: Patience, snapshot: RunSnapshot) -> Self {
        Self { run: Some(Run::restore(snapshot)), ..Self::new(patience) }
    }

    /// Takes one input at time `now`.
    pub fn handle(&mut self, now: Micros, input: CoordinatorInput) {
        self.now = self.now.max(now);
        match input {
            CoordinatorInput::NodeJoined { profile, version } => self.join(profile, version),
            CoordinatorInput::LeaveOut { node } => self.with_run(|run, ctx| run.leave_out(ctx, node)),
            CoordinatorInput::NodeLeft { node } => self.remove(node, "left"),
            CoordinatorInput::FromNode { node, message } => {
                if let Some(member) = self.swarm.members.get_mut(&node) {
                    member.last_heard = self.now;
                    self.message(node, message);
                }
            }
            CoordinatorInput::StartRun(start) => self.start(*start),
            CoordinatorInput::Pause => self.with_run(|run, ctx| run.pause(ctx, true)),
            CoordinatorInput::Resume => self.with_run(|run, ctx| run.pause(ctx, false)),
            CoordinatorInput::Stop => self.with_run(|run, ctx| run.stop(ctx)),
            CoordinatorInput::CheckpointComplete { checkpoint, generation } => self.with_run(|run, ctx| run.checkpoint_complete(ctx, checkpoint, generation)),
            CoordinatorInput::Generate { request, memory_bytes } => self.asks.add(request, memory_bytes, &self.swarm, &mut self.out),
            CoordinatorInput::Tick => {}
        }
        self.keep_time();
    }

    /// The next output; call until it is `Wait`.
    pub fn poll(&mut self) -> CoordinatorOutput {
        if let Some(output) = self.out.pop_front() {
            return output;
        }
        let silent = self.swarm.members.iter().map(|(n, m)| m.last_heard + self.patience_with(*n)).min();
        let context = Context { now: self.now, patience: self.patience, swarm: &self.swarm, out: &mut self.out, dropped: Vec::new(), released: Vec::new() };
        let run = self.run.as_ref().and_then(|r| r.deadline(&context));
        CoordinatorOutput::Wait([silent, run, self.swarm.links.deadline()].into_iter().flatten().min())
    }

    /// Whether an uploaded part of a checkpoint of this generation counts now.
    pub fn accepts_checkpoint(&self, generation: Generation) -> bool {
        self.run.as_ref().is_some_and(|r| r.accepts_checkpoint(generation))
    }

    /// What was measured of the joined nodes and their links that are up.
    pub fn measurements(&self) -> Measurements {
        self.swarm.measurements(|_| true)
    }

    /// The plan that would be made now.
    pub fn preview(&self, cost: &ModelCost, batch: u32, options: &PlanOptions) -> Result<Plan, PlanError> {
        // who is left out has no say in who is linked with whom; that nobody is wanted, the planner says
        let measured = self.measurements();
        let wanted = planner::without(&measured, &options.without);
        let measured = if wanted.devices.is_empty() { measured } else { wanted };
        planner::plan(cost, &linked_subset(&measured), batch, options)
    }

    /// The plan in force.
    pub fn plan(&self) -> Option<&Plan> {
        self.run.as_ref().filter(|r| !r.is_over()).and_then(|r| r.plan.as_ref())
    }

    /// Whether a run is active (not done, stopped or failed).
    pub fn is_running(&self) -> bool {
        self.run.as_ref().is_some_and(|r| !r.is_over())
    }

    /// Joined nodes, ascending.
    pub fn nodes(&self) -> Vec<NodeId> {
        self.swarm.members.keys().copied().collect()
    }

    fn event(&mut self, level: Level, text: String) {
        self.out.push_back(CoordinatorOutput::Event { level, text });
    }

    fn join(&mut self, profile: DeviceProfile, version: ProtocolVersion) {
        let node = profile.node;
        self.event(Level::Good, format!("{} joined.", profile.name));
        for peer in self.swarm.members.keys().copied().filter(|p| *p != node).collect::<Vec<_>>() {
            self.swarm.links.add(self.now, node, peer);
            self.dial(node, peer);
        }
        self.swarm.version += 1;
        self.swarm.members.insert(node, Member { profile, version, last_heard: self.now });
        if self.run.as_ref().is_some_and(|r| r.is_paused()) {
            self.out.push_back(CoordinatorOutput::ToNode { node, message: ToNode::Pause });
        }
    }

    fn dial(&mut self, a: NodeId, b: NodeId) {
        for (node, peer) in [(a, b), (b, a)] {
            self.out.push_back(CoordinatorOutput::ToNode { node, message: ToNode::Dial { peer } });
        }
    }

    /// Forgets a node; everybody else hangs up.
    fn remove(&mut self, node: NodeId, why: &str) {
        let Some(member) = self.swarm.members.remove(&node) else { return };
        let name = member.profile.name;
        self.swarm.version += 1;
        self.swarm.links.remove(node);
        self.event(Level::Info, format!("{name} {why}."));
        for peer in self.nodes() {
            self.out.push_back(CoordinatorOutput::ToNode { node: peer, message: ToNode::HangUp { peer: node } });
        }
        self.with_run(|run, ctx| run.left(ctx, node, &name));
        self.asks.left(node, &self.swarm, &mut self.out);
    }

    fn message(&mut self, node: NodeId, message: FromNode) {
        match message {
            FromNode::Alive { .. } | FromNode::Signal { .. } => {}
            FromNode::Leave => self.remove(node, "left"),
            FromNode::Leaving if self.is_running() => self.with_run(|run, ctx| run.announces_leave(ctx, node)),
            FromNode::Leaving => self.release(node),
            FromNode::LinkUp { peer, round_trip_millis, bytes_per_second, .. } => {
                self.swarm.version += 1;
                self.swarm.links.up(node, peer, round_trip_millis, bytes_per_second);
            }
            FromNode::LinkDown { peer, .. } => {
                self.swarm.version += 1;
                self.swarm.links.down(self.now, node, peer);
                self.with_run(|run, ctx| run.link_lost(ctx, node, peer));
            }
            FromNode::Generated { request, base, tuned } => self.asks.done(request, Answers { node, base, tuned }, &mut self.out),
            FromNode::GenerateFailed { request, reason } => self.asks.failed(node, request, reason, &self.swarm, &mut self.out),
            message => self.with_run(|run, ctx| run.message(ctx, node, message)),
        }
    }

    fn start(&mut self, start: RunStart) {
        if self.is_running() {
            return self.event(Level::Bad, "A run is active already: stop it before starting another.".into());
        }
        if start.spec.layers > cache::MAX_LAYERS || start.spec.train_samples == 0 || start.spec.epochs == 0 || start.spec.batch == 0 {
            return self.event(Level::Bad, format!("A run needs samples, a mini-batch, an epoch and at most {} layers.", cache::MAX_LAYERS));
        }
        self.event(Level::Info, "A run starts.".into());
        self.run = Some(Run::new(start));
        self.with_run(|run, ctx| run.persist(ctx));
    }

    /// Timers, and what follows from what has just been handled.
    fn keep_time(&mut self) {
        let silent: Vec<_> = self.swarm.members.iter().filter(|(n, m)| m.last_heard + self.patience_with(**n) <= self.now).map(|(n, _)| *n).collect();
        for node in silent {
            self.send_away(node, "was silent for too long".into());
        }
        for (a, b) in self.swarm.links.due(self.now) {
            self.dial(a, b);
        }
        self.with_run(|run, ctx| run.tick(ctx));
    }

    fn patience_with(&self, node: NodeId) -> Micros {
        self.run.as_ref().map_or(self.patience.silent, |run| run.patience_with(node, &self.patience))
    }

    /// A node that wished to leave may go.
    fn release(&mut self, node: NodeId) {
        if self.swarm.members.contains_key(&node) {
            self.out.push_back(CoordinatorOutput::Drop { node, reason: "You left.".into() });
            self.remove(node, "left");
        }
    }

    fn send_away(&mut self, node: NodeId, reason: String) {
        if self.swarm.members.contains_key(&node) {
            self.out.push_back(CoordinatorOutput::Drop { node, reason: reason.clone() });
            self.remove(node, &reason);
        }
    }

    fn with_run(&mut self, act: impl FnOnce(&mut Run, &mut Context)) {
        let Some(run) = &mut self.run else { return };
        let mut context = Context { now: self.now, patience: self.patience, swarm: &self.swarm, out: &mut self.out, dropped: Vec::new(), released: Vec::new() };
        act(run, &mut context);
        let Context { dropped, released, .. } = context;
        for node in released {
            self.release(node);
        }
        for (node, reason) in dropped {
            self.send_away(node, format!("was dropped: {reason}"));
        }
    }
}
