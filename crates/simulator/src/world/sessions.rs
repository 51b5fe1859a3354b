//! Devices: joining and leaving, the node machine, and its jobs one at a time.

use super::computers::Work;
use super::{Event, MILLI, SERVER_LATENCY, World};
use crate::engine::{Engine, Finished};
use crate::meter::{JobKind, JobSpan};
use crate::network::SERVER;
use crate::shared::Use;
use crate::timing::{Seconds, Weights};
use barycenter_core::coordinator::CoordinatorInput;
use barycenter_core::io::{Job, JobId, JobResult, Micros, NodeInput, NodeOutput, SECOND, StagePart};
use barycenter_core::node::Node;
use barycenter_protocol::NodeId;
use barycenter_protocol::control::{Counters, FromNode, ToNode};
use barycenter_protocol::plan::DeviceProfile;
use std::collections::{BTreeMap, VecDeque};

/// Value and two moments of an adapter parameter, f32: what a checkpoint holds of it.
const CHECKPOINT_BYTES_PER_PARAMETER: u64 = 12;

/// A stay of a device.
#[derive(Debug)]
pub(super) struct Session {
    pub node: NodeId,
    pub machine: Node,
    pub engine: Engine,
    pub links: BTreeMap<NodeId, u64>,
    jobs: VecDeque<(JobId, Job)>,
    running: Option<Running>,
    /// What it fetches beside its jobs.
    fetching: Option<(u64, Vec<Weights>)>,
    tick_at: Option<Micros>,
}

#[derive(Debug)]
struct Running {
    token: u64,
    id: JobId,
    job: Job,
    began: Micros,
    seconds: Seconds,
    /// Its place on the computer's cores; none while it downloads.
    place: Option<Use>,
}

impl Session {
    pub fn is_in_backward(&self) -> bool {
        self.running.as_ref().is_some_and(|r| matches!(r.job, Job::Backward { .. }))
    }
}

impl World {
    pub(super) fn join(&mut self, index: usize) {
        if !self.devices[index].is_on || self.devices[index].session.is_some() || self.devices[index].is_frozen {
            return;
        }
        if self.server.is_none() && self.conductor.is_none() {
            return self.after(SECOND, Event::Join(index));
        }
        let node = NodeId(self.next_node);
        self.next_node += 1;
        self.owner.insert(node, index);
        let device = &mut self.devices[index];
        device.session = Some(Session { node, machine: Node::new(node), engine: Engine::default(), links: BTreeMap::new(), jobs: VecDeque::new(), running: None, fetching: None, tick_at: None });
        let spec = &device.spec;
        let profile = DeviceProfile { node, name: spec.name.clone(), gflops: spec.gflops, memory_budget_bytes: spec.memory_bytes, storage_budget_bytes: spec.storage_bytes };
        self.joined.insert(node);
        self.meter.presence(index, self.now, true);
        self.after(SECOND, Event::Alive(node));
        if self.left_out.contains(&index) {
            self.serve(CoordinatorInput::LeaveOut { node });
        }
        self.serve(CoordinatorInput::NodeJoined { profile, version: self.version });
    }

    /// The session is over on the device's side; its peers notice sooner or later.
    pub(super) fn end_session(&mut self, device: usize) -> Option<NodeId> {
        let session = self.devices[device].session.take()?;
        if let Some(place) = session.running.as_ref().and_then(|r| r.place) {
            self.free_core(device, place);
        }
        self.meter.presence(device, self.now, false);
        self.network.forget(self.now, device);
        self.drain_network();
        for (peer, link) in session.links {
            let delay = 100 * MILLI + self.below(6_000) * MILLI;
            self.after(delay, Event::LinkLost { node: peer, peer: session.node, link });
        }
        Some(session.node)
    }

    pub(super) fn up(&mut self, node: NodeId, message: FromNode) {
        if matches!(message, FromNode::PhaseDone { .. })
            && let Some(&device) = self.owner.get(&node)
        {
            self.meter.working(device, self.now, false);
        }
        self.after(SERVER_LATENCY, Event::ToServer(node, message));
    }

    pub(super) fn say_alive(&mut self, node: NodeId) {
        let Some(session) = self.session(node) else { return };
        if session.running.as_ref().is_some_and(|r| matches!(r.job, Job::Prepare { .. }) && r.place.is_none()) {
            self.up(node, FromNode::Progress { text: "weights".into(), fraction: 0.5 });
        }
        self.up(node, FromNode::Alive { counters: Counters::default() });
        self.after(SECOND, Event::Alive(node));
    }

    /// Weights arrive beside the jobs, as a preparation would fetch them.
    fn fetch_beside(&mut self, node: NodeId, part: Option<&StagePart>, trains: bool) {
        let Some(&index) = self.owner.get(&node) else { return };
        let wanted: Vec<_> = self.costs.weight_bytes(part, trains).into_iter().filter(|(piece, _)| !self.devices[index].weights.contains(piece)).collect();
        let (now, number) = (self.now, self.next_token);
        self.next_token += 1;
        let Some(session) = self.session(node) else { return };
        let bytes = wanted.iter().map(|w| w.1).sum();
        session.fetching = Some((number, wanted.into_iter().map(|w| w.0).collect()));
        if bytes == 0 {
            return self.schedule(now, Event::FetchedBeside(node, number));
        }
        self.meter.server_bytes.0 += bytes;
        self.network.send(now, SERVER, index, bytes, Event::FetchedBeside(node, number));
        self.drain_network();
    }

    pub(super) fn fetched_beside(&mut self, node: NodeId, number: u64) {
        let Some(session) = self.session(node) else { return };
        let Some((_, pieces)) = session.fetching.take_if(|(n, _)| *n == number) else { return };
        if let Some(&index) = self.owner.get(&node) {
            self.devices[index].weights.extend(pieces);
        }
        self.input(node, NodeInput::Fetched);
    }

    pub(super) fn tick_node(&mut self, node: NodeId) {
        let now = self.now;
        if let Some(session) = self.session(node)
            && session.tick_at == Some(now)
        {
            session.tick_at = None;
            self.input(node, NodeInput::Tick);
        }
    }

    pub(super) fn arrive_at_node(&mut self, node: NodeId, message: ToNode) {
        let Some(&device) = self.owner.get(&node) else { return };
        if self.session(node).is_none() {
            return;
        }
        match message {
            ToNode::Dial { peer } => self.dial(node, peer),
            ToNode::HangUp { peer } => self.hang_up(node, peer),
            message => {
                match message {
                    ToNode::Begin { .. } => self.meter.working(device, self.now, true),
                    ToNode::Prepare(_) | ToNode::Abort { .. } => self.meter.working(device, self.now, false),
                    _ => {}
                }
                self.input(node, NodeInput::Server(message));
            }
        }
    }

    pub(super) fn input(&mut self, node: NodeId, input: NodeInput) {
        let now = self.now;
        let Some(session) = self.session(node) else { return };
        session.machine.handle(now, input);
        self.drain(node);
    }

    fn drain(&mut self, node: NodeId) {
        loop {
            let now = self.now;
            let Some(session) = self.session(node) else { return };
            match session.machine.poll() {
                NodeOutput::Wait(deadline) => {
                    if let Some(at) = deadline
                        && session.tick_at.is_none_or(|t| t > at || t < now)
                    {
                        session.tick_at = Some(at.max(now));
                        self.schedule(at, Event::NodeTick(node));
                    }
                    break;
                }
                NodeOutput::ToServer(message) => self.up(node, message),
                NodeOutput::ToPeer { to, message, blob } => self.send_to_peer(node, to, message, blob),
                NodeOutput::DropBlob(blob) => assert!(session.engine.blobs.remove(&blob).is_some(), "{blob:?} is dropped twice"),
                NodeOutput::Fetch { part, trains, .. } => self.fetch_beside(node, part.as_ref(), trains),
                NodeOutput::Run(id, job) => {
                    session.jobs.push_back((id, job));
                    self.start_job(node);
                }
                NodeOutput::CancelAll => {
                    session.fetching = None;
                    session.jobs.retain(|(_, job)| matches!(job, Job::Generate(_)));
                    session.engine.cancel();
                    let cancelled = session.running.take_if(|r| !matches!(r.job, Job::Generate(_)));
                    if let (Some(running), Some(&device)) = (cancelled, self.owner.get(&node)) {
                        self.meter.job(device, JobSpan { from: running.began, to: now, kind: JobKind::of(&running.job) });
                        if let Some(place) = running.place {
                            self.free_core(device, place);
                        }
                    }
                    self.start_job(node);
                }
            }
        }
    }

    // ---- jobs ----

    pub(super) fn start_job(&mut self, node: NodeId) {
        let Some(&index) = self.owner.get(&node) else { return };
        let jitter = 1.0 + self.below(20) as f64 / 1000.0;
        let (now, token) = (self.now, self.next_token);
        let device = &mut self.devices[index];
        let Some(session) = device.session.as_mut().filter(|s| !device.is_frozen && s.node == node && s.running.is_none()) else { return };
        let Some((id, job)) = session.jobs.pop_front() else { return };
        self.next_token += 1;
        let (part, parameters) = session.engine.part(&self.costs);
        let scale = device.slowness * self.pace * jitter;
        let seconds = self.costs.seconds(&job, &device.spec.speed, part.as_ref(), parameters);
        let seconds = Seconds { backbone: seconds.backbone * scale, side: seconds.side * scale, other: seconds.other * scale };
        let fetch = match &job {
            Job::Prepare { assignment, part, train_slots } => {
                let wanted = self.costs.weight_bytes(part.as_ref().filter(|_| assignment.needs_backbone), train_slots.is_some());
                let weights: u64 = wanted.into_iter().filter(|(piece, _)| device.weights.insert(*piece)).map(|w| w.1).sum();
                let checkpoint = if assignment.checkpoint.is_some() { CHECKPOINT_BYTES_PER_PARAMETER * self.costs.adapter_parameters(0..assignment.spec.layers) } else { 0 };
                weights + checkpoint
            }
            _ => 0,
        };
        session.running = Some(Running { token, id, job, began: now, seconds, place: None });
        if fetch > 0 {
            self.meter.server_bytes.0 += fetch;
            self.network.send(now, SERVER, index, fetch, Event::Fetched(node, token));
            self.drain_network();
        } else {
            self.fetched(node, token);
        }
    }

    /// A job has what it needs and takes its place on the cores.
    pub(super) fn fetched(&mut self, node: NodeId, token: u64) {
        let Some(&index) = self.owner.get(&node) else { return };
        let now = self.now;
        let device = &mut self.devices[index];
        let Some(running) = device.session.as_mut().filter(|s| s.node == node).and_then(|s| s.running.as_mut()).filter(|r| r.token == token) else { return };
        running.place = Some(self.computers[device.computer].start(now, running.seconds.total(), Work::Job(node, token)));
        self.call_for(self.devices[index].computer);
    }

    pub(super) fn job_done(&mut self, node: NodeId, token: u64) {
        let Some(&index) = self.owner.get(&node) else { return };
        let now = self.now;
        let device = &mut self.devices[index];
        let Some(session) = device.session.as_mut().filter(|s| s.node == node) else { return };
        let Some(running) = session.running.take_if(|r| r.token == token && !device.is_frozen) else {
            if device.is_frozen && session.running.as_ref().is_some_and(|r| r.token == token) {
                self.after(SECOND, Event::JobDone(node, token));
            }
            return;
        };
        let Running { id, job, began, seconds, .. } = running;
        self.meter.job(index, JobSpan { from: began, to: now, kind: JobKind::of(&job) });
        self.unchecked.insert(index);
        // a node measures the time that passes, not the time it would have taken alone
        let stretch = (now - began) as f64 / SECOND as f64 / seconds.total().max(1e-9);
        let took = Seconds { backbone: seconds.backbone * stretch, side: seconds.side * stretch, other: seconds.other * stretch };
        let mut finished = session.engine.finish(job, took, &self.costs, &mut device.cache, self.stored.as_ref());
        if device.fails_next > 0 {
            device.fails_next -= 1;
            for blob in finished.result.blobs() {
                session.engine.blobs.remove(&blob);
            }
            finished = Finished { result: JobResult::Failed { reason: "the graphics device was lost: reload the page".into() }, upload: None };
        }
        if let Some((generation, at, adapter)) = finished.upload {
            let bytes = CHECKPOINT_BYTES_PER_PARAMETER * self.costs.adapter_parameters(adapter.layers.iter().copied());
            self.meter.server_bytes.1 += bytes;
            self.network.send(now, index, SERVER, bytes, Event::Upload(generation, at, adapter));
            self.drain_network();
        }
        self.input(node, NodeInput::JobDone { job: id, result: finished.result });
        self.start_job(node);
    }
}
