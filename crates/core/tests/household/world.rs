//! A household in virtual time: devices with the real node machine, a server with the real coordinator, and between them
//! a network with latency, bandwidth and faults. After every event the invariants are checked. Nothing here knows a
//! clock: the same seed and script give the same trace.

use crate::engine::{Adapter, Blob, Cache, Engine, Finished};
use barycenter_core::coordinator::{Coordinator, CoordinatorInput, CoordinatorOutput, Level, Patience, RunProgress, RunSnapshot, RunStart};
use barycenter_core::io::{Job, JobId, JobResult, Micros, NodeInput, NodeOutput, SECOND};
use barycenter_core::node::Node;
use barycenter_core::order::SampleOrder;
use barycenter_core::planner::PlanOptions;
use barycenter_protocol::api::RunState;
use barycenter_protocol::control::{CheckpointRef, Counters, FromNode, PhaseKind, RunSpec, SampleSize, ToNode};
use barycenter_protocol::peer::PeerMessage;
use barycenter_protocol::plan::{DeviceProfile, LayerCost, ModelCost};
use barycenter_protocol::{Generation, NodeId, RunId};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

pub const MILLI: Micros = 1000;
/// One way between a device and the server.
const SERVER_LATENCY: Micros = 3 * MILLI;

/// A device of the household.
#[derive(Clone, Debug)]
pub struct Spec {
    pub gflops: f64,
    pub memory: u64,
    pub storage: u64,
}

impl Spec {
    pub fn laptop() -> Self {
        Self { gflops: 100.0, memory: 1_000_000_000, storage: 1_000_000_000 }
    }

    pub fn phone() -> Self {
        Self { gflops: 40.0, memory: 40_000_000, storage: 1_000_000_000 }
    }
}

struct Device {
    spec: Spec,
    cache: Cache,
    session: Option<Session>,
    /// Switched on: joins by itself whenever it has no session.
    is_on: bool,
    /// Its engine stands still, though it says that it is alive.
    is_frozen: bool,
    fails_next: u32,
    /// Jobs take this many times longer.
    slowness: f64,
}

struct Session {
    node: NodeId,
    machine: Node,
    engine: Engine,
    links: BTreeMap<NodeId, u64>,
    jobs: VecDeque<(JobId, Job)>,
    running: Option<(u64, JobId, Job)>,
    tick_at: Option<Micros>,
    arrivals: BTreeMap<NodeId, Micros>,
}

/// What a script does.
#[derive(Clone, Debug)]
pub enum Act {
    /// A new device comes (or one that was off comes back).
    On(usize),
    /// The page is closed: the stream ends.
    Close(usize),
    /// The plug is pulled: nobody is told.
    PullPlug(usize),
    Freeze(usize),
    Thaw(usize),
    Slow(usize, f64),
    /// Its next job fails.
    Fail(usize),
    /// Its storage is emptied, and the page reloaded.
    LoseCache(usize),
    Stop,
    /// No direct link between these two from now on.
    Cut(usize, usize),
    Mend(usize, usize),
    ServerDown,
    ServerUp,
    Pause,
    Resume,
    Start,
}

#[derive(Clone, Debug)]
enum Event {
    Act(Act),
    Join(usize),
    ToServer(NodeId, FromNode),
    ToNode(NodeId, ToNode),
    StreamEnd(NodeId),
    Peer { to: NodeId, from: NodeId, link: u64, message: PeerMessage, blob: Option<Blob> },
    LinkMade(NodeId, NodeId),
    LinkFailed(NodeId, NodeId),
    LinkLost { node: NodeId, peer: NodeId, link: u64 },
    JobDone(NodeId, u64),
    Alive(NodeId),
    NodeTick(NodeId),
    ServerTick,
    Upload(Generation, CheckpointRef, Adapter),
}

pub struct World {
    pub now: Micros,
    queue: BTreeMap<(Micros, u64), Event>,
    sequence: u64,
    random: Pcg64,
    devices: Vec<Device>,
    owner: BTreeMap<NodeId, usize>,
    cuts: BTreeSet<(usize, usize)>,
    dialled: BTreeSet<(NodeId, NodeId)>,
    latencies: BTreeMap<(usize, usize), Micros>,
    server: Option<Coordinator>,
    joined: BTreeSet<NodeId>,
    server_tick: Option<Micros>,
    next_node: u32,
    next_token: u64,
    next_link: u64,
    snapshot: Option<RunSnapshot>,
    stored: Option<(CheckpointRef, Adapter)>,
    parts: BTreeMap<(Generation, u32, u32), Adapter>,
    pub start: RunStart,
    order: SampleOrder,
    /// Everything the coordinator said of the run.
    pub progress: Vec<(Micros, RunProgress)>,
    pub events: Vec<(Micros, Level, String)>,
    pub traffic: BTreeMap<&'static str, u64>,
    phase: Option<PhaseKind>,
    pub most_blobs: usize,
    trace: Option<DefaultHasher>,
    pub sent_to_peers: u64,
    /// Every job takes this many times longer.
    pub pace: f64,
}

pub fn run_start(layers: u32, samples: u32, held_out: u32, batch: u32, epochs: u32) -> RunStart {
    let layer = LayerCost { forward_flops: 2e7, side_forward_flops: 1e6, side_backward_flops: 2e6, weight_bytes: 8_000_000, adapter_parameters: 20_000, activation_bytes: 4000 };
    let spec = RunSpec {
        model: "tiny".into(),
        model_hash: "m".into(),
        dataset: "home".into(),
        dataset_hash: "d".into(),
        train_samples: samples,
        held_out_samples: held_out,
        sample_sizes: (0..samples + held_out).map(|i| SampleSize { tokens: 10 + i % 7, labels: 2 + i % 3 }).collect(),
        layers,
        reduction: 8,
        batch,
        epochs,
        learning_rate: 1e-3,
        warmup_steps: 3,
        weight_decay: 0.0,
        clip_norm: 1.0,
        seed: 5,
        checkpoint_steps: 3,
    };
    let cost = ModelCost { layers: vec![layer; layers as usize], embedding: LayerCost::default(), head: LayerCost::default(), width: 128, side_width: 16, tied_head: false };
    let plan = PlanOptions { model: "tiny".into(), min_stages: 1, use_all_nodes: false, mean_tokens: 13.0, max_tokens: 16, mean_labels: 3.0, cache_bytes: 1_000_000, ..PlanOptions::default() };
    RunStart { run: RunId(1), spec, cost, plan, wait_for_nodes: 1 }
}

impl World {
    pub fn new(seed: u64, start: RunStart, devices: Vec<Spec>) -> Self {
        let devices = devices.into_iter().map(|spec| Device { spec, cache: Cache::new(), session: None, is_on: false, is_frozen: false, fails_next: 0, slowness: 1.0 }).collect();
        Self {
            now: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            random: Pcg64::seed_from_u64(seed),
            devices,
            owner: BTreeMap::new(),
            cuts: BTreeSet::new(),
            dialled: BTreeSet::new(),
            latencies: BTreeMap::new(),
            server: Some(Coordinator::new(Patience::default())),
            joined: BTreeSet::new(),
            server_tick: None,
            next_node: 1,
            next_token: 0,
            next_link: 0,
            snapshot: None,
            stored: None,
            parts: BTreeMap::new(),
            order: SampleOrder::of(&start.spec),
            start,
            progress: Vec::new(),
            events: Vec::new(),
            traffic: BTreeMap::new(),
            phase: None,
            most_blobs: 0,
            trace: None,
            sent_to_peers: 0,
            pace: 1.0,
        }
    }

    /// Everything that happens goes into a hash.
    pub fn with_trace(mut self) -> Self {
        self.trace = Some(DefaultHasher::new());
        self
    }

    pub fn trace(&self) -> u64 {
        self.trace.as_ref().map_or(0, |t| t.clone().finish())
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.random.next_u64() % n.max(1)
    }

    pub fn at(&mut self, time: Micros, act: Act) {
        self.schedule(time, Event::Act(act));
    }

    fn schedule(&mut self, time: Micros, event: Event) {
        self.sequence += 1;
        self.queue.insert((time.max(self.now), self.sequence), event);
    }

    fn after(&mut self, delay: Micros, event: Event) {
        self.schedule(self.now + delay, event);
    }

    /// Runs until the condition holds; false if it does not before `limit`.
    pub fn run_until(&mut self, limit: Micros, mut done: impl FnMut(&Self) -> bool) -> bool {
        while !done(self) {
            let Some((&(time, sequence), _)) = self.queue.first_key_value() else { return false };
            if time > limit {
                self.now = limit;
                return false;
            }
            let event = self.queue.remove(&(time, sequence)).expect("the first event");
            self.now = time;
            if let Some(trace) = &mut self.trace {
                (time, format!("{event:?}")).hash(trace);
            }
            self.handle(event);
            self.check();
        }
        true
    }

    pub fn run_to(&mut self, time: Micros) {
        self.run_until(time, |_| false);
    }

    pub fn state(&self) -> Option<RunState> {
        self.progress.iter().rev().find_map(|(_, p)| if let RunProgress::State { state, .. } = p { Some(*state) } else { None })
    }

    pub fn is_done(&self) -> bool {
        self.state() == Some(RunState::Done)
    }

    pub fn steps_done(&self) -> usize {
        self.progress.iter().filter(|(_, p)| matches!(p, RunProgress::Step(_))).count()
    }

    pub fn phase(&self) -> Option<PhaseKind> {
        self.phase
    }

    pub fn plans(&self) -> Vec<(Micros, barycenter_protocol::plan::Plan)> {
        self.progress.iter().filter_map(|(t, p)| if let RunProgress::Planned { plan, .. } = p { Some((*t, plan.clone())) } else { None }).collect()
    }

    pub fn node_of(&self, device: usize) -> Option<NodeId> {
        self.devices[device].session.as_ref().map(|s| s.node)
    }

    pub fn checkpoint(&self) -> Option<CheckpointRef> {
        self.stored.as_ref().map(|s| s.0)
    }

    /// A device runs a forward or backward job of the fill phase now.
    pub fn is_in_backward(&self, device: usize) -> bool {
        self.devices[device].session.as_ref().and_then(|s| s.running.as_ref()).is_some_and(|r| matches!(r.2, Job::Backward { .. }))
    }

    pub fn has_backbone(&self, device: usize) -> bool {
        self.devices[device].session.as_ref().is_some_and(|s| s.engine.has_backbone())
    }

    /// The checkpoint store of a new run is empty.
    pub fn restart_run(&mut self) {
        self.stored = None;
    }

    pub fn ask(&mut self, request: barycenter_protocol::control::GenerateRequest, memory_bytes: u64) {
        self.serve(CoordinatorInput::Generate { request: Box::new(request), memory_bytes });
    }

    // ---- events ----

    fn handle(&mut self, event: Event) {
        match event {
            Event::Act(act) => self.act(act),
            Event::Join(device) => self.join(device),
            Event::ToServer(node, message) => {
                if self.joined.contains(&node) {
                    self.serve(CoordinatorInput::FromNode { node, message });
                }
            }
            Event::StreamEnd(node) => {
                if self.joined.remove(&node) {
                    self.serve(CoordinatorInput::NodeLeft { node });
                }
            }
            Event::ToNode(node, message) => self.arrive_at_node(node, message),
            Event::Peer { to, from, link, message, blob } => {
                if let Some(session) = self.session(to)
                    && session.links.get(&from) == Some(&link)
                {
                    let blob = blob.map(|b| session.engine.put(b));
                    self.input(to, NodeInput::Peer { from, message, blob });
                }
            }
            Event::LinkMade(a, b) => self.link_made(a, b),
            Event::LinkFailed(a, b) => {
                for (node, peer) in [(a, b), (b, a)] {
                    if self.session(node).is_some_and(|s| !s.links.contains_key(&peer)) {
                        self.up(node, FromNode::LinkDown { peer, reason: "no route".into() });
                    }
                }
            }
            Event::LinkLost { node, peer, link } => {
                if self.session(node).is_some_and(|s| s.links.get(&peer) == Some(&link)) {
                    self.session(node).expect("just seen").links.remove(&peer);
                    self.input(node, NodeInput::LinkDown { peer, reason: "closed".into() });
                }
            }
            Event::JobDone(node, token) => self.job_done(node, token),
            Event::Alive(node) => {
                if self.session(node).is_some() {
                    self.up(node, FromNode::Alive { counters: Counters::default() });
                    self.after(SECOND, Event::Alive(node));
                }
            }
            Event::NodeTick(node) => {
                let now = self.now;
                if let Some(session) = self.session(node)
                    && session.tick_at == Some(now)
                {
                    session.tick_at = None;
                    self.input(node, NodeInput::Tick);
                }
            }
            Event::ServerTick => {
                if self.server_tick == Some(self.now) {
                    self.server_tick = None;
                    self.serve(CoordinatorInput::Tick);
                }
            }
            Event::Upload(generation, at, adapter) => self.upload(generation, at, adapter),
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::On(device) => {
                self.devices[device].is_on = true;
                self.join(device);
            }
            Act::Close(device) => {
                self.devices[device].is_on = false;
                if let Some(node) = self.end_session(device) {
                    self.after(SERVER_LATENCY, Event::StreamEnd(node));
                }
            }
            Act::PullPlug(device) => {
                self.devices[device].is_on = false;
                self.end_session(device);
            }
            Act::Freeze(device) => self.devices[device].is_frozen = true,
            Act::Thaw(device) => {
                self.devices[device].is_frozen = false;
                if let Some(node) = self.node_of(device) {
                    self.start_job(node);
                } else {
                    self.join(device);
                }
            }
            Act::Fail(device) => self.devices[device].fails_next += 1,
            Act::LoseCache(device) => {
                self.devices[device].cache.clear();
                if let Some(node) = self.end_session(device) {
                    self.after(SERVER_LATENCY, Event::StreamEnd(node));
                    self.after(SECOND, Event::Join(device));
                }
            }
            Act::Stop => self.serve(CoordinatorInput::Stop),
            Act::Slow(device, times) => self.devices[device].slowness = times,
            Act::Cut(a, b) => {
                self.cuts.insert((a.min(b), a.max(b)));
                if let (Some(x), Some(y)) = (self.node_of(a), self.node_of(b)) {
                    let link = self.session(x).and_then(|s| s.links.get(&y).copied());
                    if let Some(link) = link {
                        self.after(SECOND, Event::LinkLost { node: x, peer: y, link });
                        self.after(2 * SECOND, Event::LinkLost { node: y, peer: x, link });
                    }
                }
            }
            Act::Mend(a, b) => {
                self.cuts.remove(&(a.min(b), a.max(b)));
            }
            Act::ServerDown => {
                if self.server.take().is_some() {
                    self.parts.clear();
                    self.joined.clear();
                    self.server_tick = None;
                    for device in 0..self.devices.len() {
                        self.end_session(device);
                        self.after(SECOND, Event::Join(device));
                    }
                }
            }
            Act::ServerUp => {
                if self.server.is_none() {
                    let restored = |s: &RunSnapshot| Coordinator::restore(Patience::default(), s.clone());
                    self.server = Some(self.snapshot.as_ref().map_or_else(|| Coordinator::new(Patience::default()), restored));
                    self.serve(CoordinatorInput::Tick);
                }
            }
            Act::Pause => self.serve(CoordinatorInput::Pause),
            Act::Resume => self.serve(CoordinatorInput::Resume),
            Act::Start => self.serve(CoordinatorInput::StartRun(Box::new(self.start.clone()))),
        }
    }

    fn session(&mut self, node: NodeId) -> Option<&mut Session> {
        let device = *self.owner.get(&node)?;
        self.devices[device].session.as_mut().filter(|s| s.node == node)
    }

    fn join(&mut self, index: usize) {
        if !self.devices[index].is_on || self.devices[index].session.is_some() || self.devices[index].is_frozen {
            return;
        }
        if self.server.is_none() {
            return self.after(SECOND, Event::Join(index));
        }
        let node = NodeId(self.next_node);
        self.next_node += 1;
        self.owner.insert(node, index);
        let device = &mut self.devices[index];
        let spec = device.spec.clone();
        device.session = Some(Session { node, machine: Node::new(node), engine: Engine::default(), links: BTreeMap::new(), jobs: VecDeque::new(), running: None, tick_at: None, arrivals: BTreeMap::new() });
        self.joined.insert(node);
        self.after(SECOND, Event::Alive(node));
        let profile = DeviceProfile { node, name: format!("device {index}"), gflops: spec.gflops, memory_budget_bytes: spec.memory, storage_budget_bytes: spec.storage };
        self.serve(CoordinatorInput::NodeJoined { profile });
    }

    /// The session is over on the device's side; its peers notice sooner or later.
    fn end_session(&mut self, device: usize) -> Option<NodeId> {
        let session = self.devices[device].session.take()?;
        for (peer, link) in session.links {
            let delay = 100 * MILLI + self.below(6_000) * MILLI;
            self.after(delay, Event::LinkLost { node: peer, peer: session.node, link });
        }
        Some(session.node)
    }

    fn up(&mut self, node: NodeId, message: FromNode) {
        self.after(SERVER_LATENCY, Event::ToServer(node, message));
    }

    fn arrive_at_node(&mut self, node: NodeId, message: ToNode) {
        if self.session(node).is_none() {
            return;
        }
        match message {
            ToNode::Dial { peer } => {
                self.dialled.insert((node, peer));
                if self.dialled.remove(&(peer, node)) {
                    self.dialled.remove(&(node, peer));
                    let latency = self.latency(node, peer);
                    self.after(4 * latency, Event::LinkMade(node, peer));
                }
            }
            ToNode::HangUp { peer } => {
                if let Some(link) = self.session(node).and_then(|s| s.links.get(&peer).copied()) {
                    self.handle(Event::LinkLost { node, peer, link });
                }
            }
            message => self.input(node, NodeInput::Server(message)),
        }
    }

    fn latency(&mut self, a: NodeId, b: NodeId) -> Micros {
        let (a, b) = (self.owner[&a], self.owner[&b]);
        let random = MILLI + self.random.next_u64() % (30 * MILLI);
        *self.latencies.entry((a.min(b), a.max(b))).or_insert(random)
    }

    fn is_cut(&self, a: NodeId, b: NodeId) -> bool {
        let (a, b) = (self.owner[&a], self.owner[&b]);
        self.cuts.contains(&(a.min(b), a.max(b)))
    }

    fn link_made(&mut self, a: NodeId, b: NodeId) {
        if self.session(a).is_none() || self.session(b).is_none() {
            return;
        }
        if self.is_cut(a, b) {
            return self.after(3 * SECOND, Event::LinkFailed(a, b));
        }
        self.next_link += 1;
        let link = self.next_link;
        let latency = self.latency(a, b);
        for (node, peer) in [(a, b), (b, a)] {
            let session = self.session(node).expect("just seen");
            // a link that one end has lost is made anew on both
            let was_up = session.links.insert(peer, link).is_some();
            session.arrivals.remove(&peer);
            if was_up {
                self.input(node, NodeInput::LinkDown { peer, reason: "made anew".into() });
            }
            self.input(node, NodeInput::LinkUp { peer });
            self.up(node, FromNode::LinkUp { peer, round_trip_millis: 2.0 * latency as f64 / 1000.0, bytes_per_second: 5e6 });
        }
    }

    fn input(&mut self, node: NodeId, input: NodeInput) {
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
                NodeOutput::ToPeer { to, message, blob } => {
                    let blob = blob.map(|b| session.engine.blobs.get(&b).expect("a live blob is sent").clone());
                    let link = *session.links.get(&to).unwrap_or_else(|| panic!("node {node} sends to {to}, to whom it has no link: {message:?}"));
                    assert_eq!(message.is_bulk(), blob.is_some());
                    let bytes = 50 + blob.as_ref().map_or(0, Blob::bytes);
                    let last = session.arrivals.get(&to).copied().unwrap_or(0);
                    let latency = self.latency(node, to);
                    let arrival = last.max(now) + bytes / 5 + if last > now { 0 } else { latency };
                    self.session(node).expect("just seen").arrivals.insert(to, arrival);
                    *self.traffic.entry(kind(&message)).or_default() += bytes;
                    self.sent_to_peers += 1;
                    if !self.is_cut(node, to) {
                        self.schedule(arrival, Event::Peer { to, from: node, link, message, blob });
                    }
                }
                NodeOutput::DropBlob(blob) => assert!(session.engine.blobs.remove(&blob).is_some(), "{blob:?} is dropped twice"),
                NodeOutput::Run(id, job) => {
                    session.jobs.push_back((id, job));
                    self.start_job(node);
                }
                NodeOutput::CancelAll => {
                    session.jobs.retain(|(_, job)| matches!(job, Job::Generate(_)));
                    session.engine.cancel();
                    if session.running.as_ref().is_some_and(|(_, _, job)| !matches!(job, Job::Generate(_))) {
                        session.running = None;
                    }
                    self.start_job(node);
                }
            }
        }
    }

    fn start_job(&mut self, node: NodeId) {
        let Some(&device) = self.owner.get(&node) else { return };
        let token = self.next_token;
        let jitter = self.random.next_u64() % 100;
        let pace = self.pace;
        let Device { session: Some(session), spec, slowness, is_frozen: false, .. } = &mut self.devices[device] else { return };
        if session.running.is_some() {
            return;
        }
        let Some((id, job)) = session.jobs.pop_front() else { return };
        let work = match &job {
            Job::Prepare { .. } => 30.0,
            Job::Forward { samples, .. } | Job::Backward { samples, .. } => samples.len() as f64 * 5.0,
            Job::CachedStep { samples, .. } => samples.len() as f64 * 2.0,
            Job::Generate(_) => 200.0,
            _ => 1.0,
        };
        let millis = 0.5 + work * 100.0 / spec.gflops * *slowness * pace * (1.0 + jitter as f64 / 1000.0);
        session.running = Some((token, id, job));
        self.next_token += 1;
        self.after((millis * 1000.0) as Micros, Event::JobDone(node, token));
    }

    fn job_done(&mut self, node: NodeId, token: u64) {
        let Some(&device) = self.owner.get(&node) else { return };
        let Device { session: Some(session), cache, is_frozen, fails_next, .. } = &mut self.devices[device] else { return };
        if session.node != node || session.running.as_ref().is_none_or(|r| r.0 != token) {
            return;
        }
        if *is_frozen {
            return self.after(SECOND, Event::JobDone(node, token));
        }
        let (_, id, job) = session.running.take().expect("just seen");
        let mut finished = session.engine.finish(job, cache, self.stored.as_ref());
        if *fails_next > 0 {
            *fails_next -= 1;
            for blob in finished.result.blobs() {
                session.engine.blobs.remove(&blob);
            }
            finished = Finished { result: JobResult::Failed { reason: "the graphics device was lost: reload the page".into() }, upload: None };
        }
        if let Some((generation, at, adapter)) = finished.upload {
            self.after(20 * MILLI, Event::Upload(generation, at, adapter));
        }
        self.input(node, NodeInput::JobDone { job: id, result: finished.result });
        self.start_job(node);
    }

    // ---- the server around the coordinator ----

    fn upload(&mut self, generation: Generation, at: CheckpointRef, adapter: Adapter) {
        if !self.server.as_ref().is_some_and(|s| s.accepts_checkpoint(generation)) {
            return;
        }
        let part = self.parts.entry((generation, at.epoch, at.step)).or_default();
        part.layers.extend(adapter.layers);
        part.counts.extend(adapter.counts);
        part.optimiser_steps = adapter.optimiser_steps;
        if part.layers.len() as u32 == self.start.spec.layers {
            let whole = self.parts.remove(&(generation, at.epoch, at.step)).expect("just seen");
            self.check_checkpoint(&at, &whole);
            if self.stored.as_ref().is_none_or(|s| s.0.optimiser_steps < at.optimiser_steps) {
                self.stored = Some((at, whole));
                self.serve(CoordinatorInput::CheckpointComplete { checkpoint: at, generation });
            }
        }
    }

    /// Every sample of every step before the checkpoint is in every layer exactly once, and nothing else.
    fn check_checkpoint(&self, at: &CheckpointRef, adapter: &Adapter) {
        let mut expected = BTreeMap::new();
        for epoch in 0..=at.epoch {
            let order = self.order.epoch(epoch);
            let steps = if epoch < at.epoch { order.steps() } else { at.step };
            for sample in (0..steps).flat_map(|step| order.mini_batch(step)) {
                expected.extend((0..self.start.spec.layers).map(|l| ((l, epoch, sample.sample.0), 1)));
            }
        }
        assert_eq!(adapter.counts, expected, "the checkpoint {at:?}");
    }

    fn serve(&mut self, input: CoordinatorInput) {
        let now = self.now;
        let Some(server) = &mut self.server else { return };
        server.handle(now, input);
        loop {
            let Some(server) = &mut self.server else { return };
            match server.poll() {
                CoordinatorOutput::ToNode { node, message } => {
                    assert!(self.joined.contains(&node), "a message to {node}, who is gone: {message:?}");
                    self.after(SERVER_LATENCY, Event::ToNode(node, message));
                }
                CoordinatorOutput::Drop { node, .. } => {
                    self.joined.remove(&node);
                    if let Some(&device) = self.owner.get(&node)
                        && self.node_of(device) == Some(node)
                    {
                        self.end_session(device);
                        self.after(SECOND, Event::Join(device));
                    }
                }
                CoordinatorOutput::Event { level, text } => {
                    assert!(!text.contains("other samples than planned"), "{text}");
                    self.events.push((now, level, text));
                }
                CoordinatorOutput::Progress(_, progress) => {
                    if let RunProgress::Phase { phase, .. } = &progress {
                        self.phase = Some(*phase);
                    }
                    if let RunProgress::State { state, .. } = &progress
                        && !matches!(state, RunState::Running | RunState::Paused)
                    {
                        self.phase = None;
                    }
                    self.progress.push((now, progress));
                }
                CoordinatorOutput::Persist(snapshot) => self.snapshot = snapshot.map(|s| *s),
                CoordinatorOutput::Generated { request, result } => self.events.push((now, Level::Info, format!("answer {request}: {result:?}"))),
                CoordinatorOutput::Wait(deadline) => {
                    if let Some(at) = deadline
                        && self.server_tick.is_none_or(|t| t > at || t < now)
                    {
                        self.server_tick = Some(at.max(now));
                        self.schedule(at, Event::ServerTick);
                    }
                    return;
                }
            }
        }
    }

    // ---- invariants ----

    fn check(&mut self) {
        if let Some(plan) = self.server.as_ref().and_then(|s| s.plan()) {
            let mut next = 0;
            for stage in &plan.stages {
                assert_eq!(stage.layers.start, next, "stages are contiguous");
                assert!(stage.layers.end > next, "a stage has layers");
                next = stage.layers.end;
                check_slots(&stage.members, self.start.spec.batch);
            }
            assert_eq!(next, self.start.spec.layers, "each layer has an owner");
            check_slots(&plan.train, self.start.spec.batch);
            let at_work: Vec<_> = match self.phase {
                Some(PhaseKind::Fill | PhaseKind::Refill) => plan.stages.iter().flat_map(|s| &s.members).map(|m| m.node).collect(),
                Some(PhaseKind::Train) => plan.train.iter().map(|m| m.node).collect(),
                _ => Vec::new(),
            };
            for node in at_work {
                assert!(self.joined.contains(&node), "{node} is at work in the plan and is gone");
            }
        }
        let start = &self.start;
        let sample_bytes = |layers: &std::ops::Range<u32>| {
            let per_token: u64 = layers.clone().map(|l| start.cost.layers[l as usize].activation_bytes).sum();
            per_token * u64::from(start.plan.max_tokens)
        };
        for device in &self.devices {
            if let Some(session) = &device.session {
                let memory = session.engine.memory(&start.cost, sample_bytes);
                assert!(memory <= device.spec.memory, "{memory} bytes on a device that offers {}", device.spec.memory);
                self.most_blobs = self.most_blobs.max(session.engine.blobs.len());
            }
        }
        assert!(self.most_blobs < 200, "blobs pile up");
    }

    /// What must hold of a run that is done: everything counted once, every step and held-out loss known, nothing left over.
    pub fn check_done(&self) {
        assert!(self.is_done());
        let spec = &self.start.spec;
        let (at, adapter) = self.stored.as_ref().expect("a checkpoint");
        let steps = spec.train_samples.div_ceil(spec.batch);
        assert_eq!((at.epoch, at.step, at.optimiser_steps), (spec.epochs, 0, spec.epochs * steps));
        self.check_checkpoint(at, adapter);
        assert!(self.snapshot.is_none(), "nothing to resume");
        for device in &self.devices {
            if let Some(session) = &device.session {
                assert!(session.engine.blobs.len() < 20, "blobs left over");
            }
        }
    }

    /// Step numbers with a recorded loss, ascending, each once.
    pub fn recorded_steps(&self) -> BTreeMap<(u32, u32), f64> {
        self.progress.iter().filter_map(|(_, p)| if let RunProgress::Step(s) = p { Some(((s.epoch, s.step), s.loss)) } else { None }).collect()
    }

    pub fn epochs_recorded(&self) -> BTreeSet<u32> {
        self.progress.iter().filter_map(|(_, p)| if let RunProgress::Epoch(e) = p { Some(e.epoch) } else { None }).collect()
    }

    pub fn held_out_recorded(&self) -> BTreeSet<u32> {
        self.progress.iter().filter_map(|(_, p)| if let RunProgress::HeldOut { epoch, .. } = p { Some(*epoch) } else { None }).collect()
    }
}

fn check_slots(members: &[barycenter_protocol::plan::StageMember], batch: u32) {
    let mut next = 0;
    for member in members {
        assert_eq!(member.slots.start, next);
        next = member.slots.end;
    }
    assert_eq!(next, batch, "each slot has an owner");
}

fn kind(message: &PeerMessage) -> &'static str {
    match message {
        PeerMessage::Activation { .. } => "activations",
        PeerMessage::SideGradient { .. } => "side gradients",
        PeerMessage::GradientShard { .. } | PeerMessage::ReducedShard { .. } => "adapter gradients",
        PeerMessage::CacheEntries { .. } => "cache",
        _ => "other",
    }
}
