//! A household in virtual time: devices with the real node machine, a server with the real coordinator, and between them
//! a network with latency, bandwidth and faults. After every event the invariants are checked.

mod check;
mod computers;
mod conductor;
mod links;
mod server;
mod sessions;

use crate::engine::{Adapter, Cache, Data};
use crate::house::{DeviceSpec, House};
use crate::meter::Meter;
use crate::network::{Effect, Network, Timer};
use crate::timing::{Costs, Weights};
use barycenter_core::coordinator::{Coordinator, CoordinatorInput, Level, Patience, RunProgress, RunSnapshot, RunStart};
use barycenter_core::io::{Micros, SECOND};
use barycenter_core::order::SampleOrder;
use barycenter_protocol::api::RunState;
use barycenter_protocol::control::{CheckpointRef, FromNode, PhaseKind, ToNode};
use barycenter_protocol::peer::PeerMessage;
use barycenter_protocol::{Generation, NodeId, PROTOCOL_VERSION, ProtocolVersion};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;
pub use conductor::Marks;
use computers::Computer;
use conductor::Conductor;
use sessions::Session;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A millisecond.
pub const MILLI: Micros = 1000;
/// One way between a device and the server, for what is small.
const SERVER_LATENCY: Micros = 3 * MILLI;

#[derive(Debug)]
struct Device {
    spec: DeviceSpec,
    /// What its storage keeps over sessions.
    cache: Cache,
    weights: BTreeSet<Weights>,
    session: Option<Session>,
    /// Switched on: joins by itself whenever it has no session.
    is_on: bool,
    /// Its engine stands still, though it says that it is alive.
    is_frozen: bool,
    fails_next: u32,
    /// Jobs take this many times longer.
    slowness: f64,
    /// Whose cores it computes on.
    computer: usize,
}

/// What a script does.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// A new device comes (or one that was off comes back).
    On(usize),
    /// It says that it leaves, and goes when the server lets it.
    Leave(usize),
    /// The page is closed: the stream ends.
    Close(usize),
    /// The plug is pulled: nobody is told.
    PullPlug(usize),
    /// Its engine stands still.
    Freeze(usize),
    /// Its engine goes on.
    Thaw(usize),
    /// Its jobs take this many times longer from now on.
    Slow(usize, f64),
    /// Its next job fails.
    Fail(usize),
    /// Its storage is emptied, and the page reloaded.
    LoseCache(usize),
    /// The run is stopped by a person.
    Stop,
    /// No direct link between these two from now on.
    Cut(usize, usize),
    /// A link between them is possible again.
    Mend(usize, usize),
    /// No direct links between these devices and all others from now on.
    Partition(BTreeSet<usize>),
    /// Every link is possible again.
    Heal,
    /// The server is killed.
    ServerDown,
    /// The server starts again.
    ServerUp,
    /// The run is paused by a person.
    Pause,
    /// The run goes on.
    Resume,
    /// The run is started.
    Start,
}

#[derive(Clone, Debug)]
enum Event {
    Act(Act),
    Join(usize),
    ToServer(NodeId, FromNode),
    ToNode(NodeId, ToNode),
    StreamEnd(NodeId),
    Peer(Box<PeerParcel>),
    LinkMade(NodeId, NodeId),
    LinkFailed(NodeId, NodeId),
    LinkLost { node: NodeId, peer: NodeId, link: u64 },
    /// What a preparation needs from the server has arrived.
    Fetched(NodeId, u64),
    JobDone(NodeId, u64),
    Computer(usize),
    Network(Timer),
    Alive(NodeId),
    /// Weights that it asked for beside its work have arrived.
    FetchedBeside(NodeId, u64),
    NodeTick(NodeId),
    ServerTick,
    Upload(Generation, CheckpointRef, Adapter),
}

#[derive(Clone, Debug)]
struct PeerParcel {
    to: NodeId,
    from: NodeId,
    link: u64,
    message: PeerMessage,
    data: Option<Data>,
}

/// The household, its server, and everything that is on its way.
pub struct World {
    /// Virtual time.
    pub now: Micros,
    queue: BTreeMap<(Micros, u64), Event>,
    sequence: u64,
    random: Pcg64,
    devices: Vec<Device>,
    computers: Vec<Computer>,
    network: Network<Event>,
    costs: Costs,
    owner: BTreeMap<NodeId, usize>,
    cuts: BTreeSet<(usize, usize)>,
    dialled: BTreeSet<(NodeId, NodeId)>,
    patience: Patience,
    server: Option<Coordinator>,
    /// In place of a server, see [`World::conduct`].
    conductor: Option<Conductor>,
    joined: BTreeSet<NodeId>,
    /// Devices that the run was started without, as the server keeps them.
    left_out: BTreeSet<usize>,
    server_tick: Option<Micros>,
    next_node: u32,
    next_token: u64,
    next_link: u64,
    snapshot: Option<RunSnapshot>,
    stored: Option<(CheckpointRef, Adapter)>,
    parts: BTreeMap<(Generation, u32, u32), Adapter>,
    /// The run that [`Act::Start`] starts.
    pub start: RunStart,
    order: SampleOrder,
    /// Everything the coordinator said of the run.
    pub progress: Vec<(Micros, RunProgress)>,
    /// What it told people.
    pub events: Vec<(Micros, Level, String)>,
    /// What every device did.
    pub meter: Meter,
    /// Messages to peers so far.
    pub sent_to_peers: u64,
    /// Every job takes this many times longer.
    pub pace: f64,
    /// What devices that join speak.
    pub version: ProtocolVersion,
    phase: Option<PhaseKind>,
    state: Option<RunState>,
    most_blobs: usize,
    /// What happened may have changed who is there or who does what.
    plan_is_unchecked: bool,
    /// Devices whose engine did something since the last check.
    unchecked: BTreeSet<usize>,
    trace: Option<DefaultHasher>,
}

impl World {
    /// A household with all devices off, and a run that nobody has started.
    pub fn new(seed: u64, start: RunStart, house: House) -> Self {
        let mut computers: Vec<_> = house.computers.iter().map(|(cores, _)| Computer::new(*cores)).collect();
        let mut devices = Vec::new();
        for (index, spec) in house.devices.iter().enumerate() {
            let shared = house.computers.iter().position(|(_, devices)| devices.contains(&index));
            let computer = shared.unwrap_or_else(|| {
                computers.push(Computer::new(1.0));
                computers.len() - 1
            });
            let spec = spec.clone();
            devices.push(Device { spec, cache: Cache::new(), weights: BTreeSet::new(), session: None, is_on: false, is_frozen: false, fails_next: 0, slowness: 1.0, computer });
        }
        let patience = Patience::default();
        Self {
            now: 0,
            queue: BTreeMap::new(),
            sequence: 0,
            random: Pcg64::seed_from_u64(seed),
            meter: Meter::new(devices.len()),
            devices,
            computers,
            network: Network::new(&house.network, house.devices.iter().map(|d| d.link_work).collect()),
            costs: Costs::new(&start.cost, &start.spec),
            owner: BTreeMap::new(),
            cuts: BTreeSet::new(),
            dialled: BTreeSet::new(),
            patience,
            server: Some(Coordinator::new(patience)),
            conductor: None,
            joined: BTreeSet::new(),
            left_out: BTreeSet::new(),
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
            sent_to_peers: 0,
            pace: 1.0,
            version: PROTOCOL_VERSION,
            phase: None,
            state: None,
            most_blobs: 0,
            plan_is_unchecked: false,
            unchecked: BTreeSet::new(),
            trace: None,
        }
    }

    /// Everything that happens goes into a hash.
    pub fn with_trace(mut self) -> Self {
        self.trace = Some(DefaultHasher::new());
        self
    }

    /// The hash of everything that has happened.
    pub fn trace(&self) -> u64 {
        self.trace.as_ref().map_or(0, |t| t.clone().finish())
    }

    /// A random number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        self.random.next_u64() % n.max(1)
    }

    /// Something is to happen at a time.
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
    ///
    /// # Panics
    /// Where an invariant does not hold.
    pub fn run_until(&mut self, limit: Micros, mut done: impl FnMut(&Self) -> bool) -> bool {
        while !done(self) {
            let Some((&(time, _), _)) = self.queue.first_key_value() else { return false };
            if time > limit {
                self.now = limit;
                return false;
            }
            let ((time, _), event) = self.queue.pop_first().expect("just seen");
            self.now = time;
            if let Some(trace) = &mut self.trace {
                (time, format!("{event:?}")).hash(trace);
            }
            self.handle(event);
            self.check();
        }
        true
    }

    /// Runs to a time.
    pub fn run_to(&mut self, time: Micros) {
        self.run_until(time, |_| false);
    }

    /// State of the run, as last shown.
    pub fn state(&self) -> Option<RunState> {
        self.state
    }

    /// Whether the run is done.
    pub fn is_done(&self) -> bool {
        self.state == Some(RunState::Done)
    }

    /// Steps that were applied, redone ones as often as they were.
    pub fn steps_done(&self) -> usize {
        self.progress.iter().filter(|(_, p)| matches!(p, RunProgress::Step(_))).count()
    }

    /// The phase at work.
    pub fn phase(&self) -> Option<PhaseKind> {
        self.phase
    }

    /// Every plan that came into force.
    pub fn plans(&self) -> Vec<(Micros, barycenter_protocol::plan::Plan)> {
        self.progress.iter().filter_map(|(t, p)| if let RunProgress::Planned { plan, .. } = p { Some((*t, plan.clone())) } else { None }).collect()
    }

    /// Number of devices.
    pub fn devices(&self) -> usize {
        self.devices.len()
    }

    /// A device's description.
    pub fn spec(&self, device: usize) -> &DeviceSpec {
        &self.devices[device].spec
    }

    /// The device that joined (or once had joined) under this id.
    pub fn device_of(&self, node: NodeId) -> Option<usize> {
        self.owner.get(&node).copied()
    }

    /// Id of a device's session.
    pub fn node_of(&self, device: usize) -> Option<NodeId> {
        self.devices[device].session.as_ref().map(|s| s.node)
    }

    /// The checkpoint that the server hands out.
    pub fn checkpoint(&self) -> Option<CheckpointRef> {
        self.stored.as_ref().map(|s| s.0)
    }

    /// Whether a device runs a backward job of the fill phase now.
    pub fn is_in_backward(&self, device: usize) -> bool {
        self.devices[device].session.as_ref().is_some_and(Session::is_in_backward)
    }

    /// Whether a device holds frozen layers in memory now.
    pub fn has_backbone(&self, device: usize) -> bool {
        self.devices[device].session.as_ref().is_some_and(|s| s.engine.has_backbone())
    }

    /// Bytes of cache entries in a device's storage.
    pub fn stored_bytes(&self, device: usize) -> u64 {
        self.devices[device].cache.iter().map(|(sample, _)| self.costs.entry_bytes(barycenter_protocol::SampleId(*sample), 1)).sum()
    }

    /// The checkpoint store of a new run is empty.
    pub fn restart_run(&mut self) {
        self.stored = None;
        self.state = None;
    }

    /// A device says something of its own making to the server, as a faulty or hostile one might.
    pub fn forge(&mut self, device: usize, message: FromNode) {
        if let Some(node) = self.node_of(device) {
            self.serve(CoordinatorInput::FromNode { node, message });
        }
    }

    /// Asks for answers.
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
            Event::Peer(parcel) => self.arrive_from_peer(*parcel),
            Event::LinkMade(a, b) => self.link_made(a, b),
            Event::LinkFailed(a, b) => self.link_failed(a, b),
            Event::LinkLost { node, peer, link } => self.link_lost(node, peer, link),
            Event::Fetched(node, token) => self.fetched(node, token),
            Event::JobDone(node, token) => self.job_done(node, token),
            Event::Computer(computer) => self.computer_due(computer),
            Event::Network(timer) => self.network_due(timer),
            Event::Alive(node) => self.say_alive(node),
            Event::FetchedBeside(node, number) => self.fetched_beside(node, number),
            Event::NodeTick(node) => self.tick_node(node),
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
            Act::Leave(device) => {
                self.devices[device].is_on = false;
                if let Some(node) = self.node_of(device) {
                    self.up(node, FromNode::Leaving);
                }
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
                match self.node_of(device) {
                    Some(node) => self.start_job(node),
                    None => self.join(device),
                }
            }
            Act::Fail(device) => self.devices[device].fails_next += 1,
            Act::LoseCache(device) => {
                self.devices[device].cache.clear();
                self.devices[device].weights.clear();
                if let Some(node) = self.end_session(device) {
                    self.after(SERVER_LATENCY, Event::StreamEnd(node));
                    self.after(SECOND, Event::Join(device));
                }
            }
            Act::Slow(device, times) => self.devices[device].slowness = times,
            Act::Cut(a, b) => self.cut(a, b),
            Act::Mend(a, b) => {
                self.cuts.remove(&(a.min(b), a.max(b)));
            }
            Act::Partition(part) => {
                let others: Vec<_> = (0..self.devices.len()).filter(|d| !part.contains(d)).collect();
                for (a, b) in part.iter().flat_map(|a| others.iter().map(move |b| (*a, *b))) {
                    self.cut(a, b);
                }
            }
            Act::Heal => self.cuts.clear(),
            Act::ServerDown => self.server_down(),
            Act::ServerUp => self.server_up(),
            Act::Stop => self.serve(CoordinatorInput::Stop),
            Act::Pause => self.serve(CoordinatorInput::Pause),
            Act::Resume => self.serve(CoordinatorInput::Resume),
            Act::Start => {
                self.left_out = self.start.plan.without.iter().filter_map(|node| self.device_of(*node)).collect();
                self.serve(CoordinatorInput::StartRun(Box::new(self.start.clone())));
            }
        }
    }

    fn session(&mut self, node: NodeId) -> Option<&mut Session> {
        let device = *self.owner.get(&node)?;
        self.devices[device].session.as_mut().filter(|s| s.node == node)
    }

    fn network_due(&mut self, timer: Timer) {
        match timer {
            Timer::Cell(cell) => self.network.cell_due(self.now, cell),
            Timer::Port(port) => self.network.port_due(self.now, port, &mut self.random),
            Timer::Cable(message) => self.network.part_done(self.now, message, &mut self.random),
        }
        self.drain_network();
    }

    fn drain_network(&mut self) {
        while let Some(effect) = self.network.effects.pop_front() {
            match effect {
                Effect::CallAt(at, timer) => self.schedule(at, Event::Network(timer)),
                Effect::Deliver(at, event) => self.schedule(at, event),
                Effect::Sending(device, begins) => self.meter.sending(device, self.now, begins),
                Effect::Work(device, seconds, message) => self.work_on_link(device, seconds, message),
            }
        }
    }

    /// Step numbers with a recorded loss, ascending, each once.
    pub fn recorded_steps(&self) -> BTreeMap<(u32, u32), f64> {
        self.progress.iter().filter_map(|(_, p)| if let RunProgress::Step(s) = p { Some(((s.epoch, s.step), s.loss)) } else { None }).collect()
    }

    /// Epochs that were closed.
    pub fn epochs_recorded(&self) -> BTreeSet<u32> {
        self.progress.iter().filter_map(|(_, p)| if let RunProgress::Epoch(e) = p { Some(e.epoch) } else { None }).collect()
    }

    /// Epochs after which the held-out loss is known.
    pub fn held_out_recorded(&self) -> BTreeSet<u32> {
        self.progress.iter().filter_map(|(_, p)| if let RunProgress::HeldOut { epoch, .. } = p { Some(*epoch) } else { None }).collect()
    }
}
