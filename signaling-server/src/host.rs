//! The one task that owns the coordinator, the joined nodes and the current run.
//!
//! Everything comes in through one bounded queue; nothing is locked. Handlers wait while the queue is full.

mod current;
mod evaluate;
mod snapshot;

pub use current::{is_active, seconds_since};
pub use evaluate::{Examination, MAX_NEW_TOKENS, Material, lean};

use crate::checkpoint::{self, CheckpointKey, Collector, Complete, Expected};
use crate::data_dir::{DataDir, write_atomically};
use crate::error::{Answer, Refusal};
use crate::models::{clip, clip_to};
use crate::nodes::{NodeStream, Nodes, Sent};
use crate::relay::{Inbox, Reader};
use crate::run_request::PreparedRun;
use crate::store::Store;
use axum::http::StatusCode;
use barycenter_core::coordinator::{Answers, Coordinator, CoordinatorInput, CoordinatorOutput, Level, Patience, RunSnapshot};
use barycenter_core::io::Micros;
use barycenter_model::RawTensor;
use barycenter_protocol::api::{EventView, PlanPreview, RunInfo, RunView};
use barycenter_protocol::control::{FromNode, GenerateRequest, JoinReply, JoinRequest, ToNode};
use barycenter_protocol::plan::DeviceProfile;
use barycenter_protocol::{NodeId, RunId};
use current::CurrentRun;
use evaluate::Pending;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};

/// Commands waiting for the host; when it is full, handlers wait.
const COMMANDS: usize = 256;
/// Events kept for dashboards.
const MAX_EVENTS: usize = 100;
/// Snapshots at change: at most four per second.
const SNAPSHOT_LEAST: Duration = Duration::from_millis(250);
/// Snapshots without change: clocks on pages go on.
const SNAPSHOT_MOST: Duration = Duration::from_secs(1);
/// Longest sentence of a device that reaches dashboards.
const MAX_SENTENCE_CHARACTERS: usize = 400;
/// Longest pairing message: SDP of two data channels has about 1 KiB.
const MAX_SIGNAL_BYTES: usize = 64 << 10;

/// Answer channel of a command.
pub type Reply<T> = oneshot::Sender<Answer<T>>;

/// What handlers ask of the host.
pub enum Command {
    /// A device wants in.
    Join(Box<JoinRequest>, Reply<JoinReply>),
    /// It opens its stream.
    Open(NodeId, String, Reply<NodeStream>),
    /// It opens its inbox at the relay.
    OpenInbox(NodeId, String, Reply<Reader>),
    /// It has a parcel for another device.
    Inbox(NodeId, String, NodeId, Reply<Arc<Inbox>>),
    /// It says something.
    Messages(NodeId, String, Vec<FromNode>, Reply<()>),
    /// What would a run do?
    Plan(Box<PreparedRun>, Reply<PlanPreview>),
    /// Start it; the material is for exact match.
    Start(Box<PreparedRun>, Option<Box<Examination>>, Reply<RunInfo>),
    /// A person's wish about a run.
    Control(RunId, Wish, Reply<()>),
    /// The current run as a dashboard sees it, if it is this one.
    View(RunId, Reply<Option<RunView>>),
    /// A part of a checkpoint.
    Part(CheckpointKey, BTreeMap<String, RawTensor>, Arc<Expected>, Reply<()>),
    /// A complete checkpoint lies at this path, not yet in its place.
    Written(Box<Complete>, std::path::PathBuf),
    /// Prompts for a node.
    Ask(Box<GenerateRequest>, u64, Reply<(Answers, String)>),
    /// Material for the exact match of a resumed run.
    Resumed(RunId, Box<Examination>),
    /// End: all streams end.
    Shutdown,
}

/// What a person can do with a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// No further step.
    Pause,
    /// Go on.
    Resume,
    /// End.
    Stop,
}

/// The way to the host.
#[derive(Clone)]
pub struct HostHandle {
    commands: mpsc::Sender<Command>,
    snapshots: watch::Receiver<Arc<str>>,
}

impl HostHandle {
    /// Sends a command and waits for its answer.
    pub async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Answer<T> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| Refusal::unavailable())?;
        answer.await.map_err(|_| Refusal::unavailable())?
    }

    /// Sends a command that has no answer.
    pub async fn tell(&self, command: Command) {
        let _ = self.commands.send(command).await;
    }

    /// JSON lines of snapshots, without line ends.
    pub fn snapshots(&self) -> watch::Receiver<Arc<str>> {
        self.snapshots.clone()
    }
}

/// State of the task.
struct Host {
    store: Arc<Store>,
    data: DataDir,
    coordinator: Coordinator,
    nodes: Nodes,
    closed: FuturesUnordered<BoxFuture<'static, NodeId>>,
    run: Option<CurrentRun>,
    /// Tokens of the devices that it was started without.
    left_out: BTreeSet<String>,
    events: VecDeque<EventView>,
    /// Pairs whose link goes through the relay, lower id first.
    relayed: BTreeSet<(NodeId, NodeId)>,
    pending: HashMap<u64, Pending>,
    last_request: u64,
    collector: Collector,
    commands: mpsc::WeakSender<Command>,
    snapshots: watch::Sender<Arc<str>>,
    started: Instant,
    deadline: Option<Micros>,
    changed: bool,
    last_snapshot: Instant,
}

/// Starts the task; it ends when the last handle is dropped. `resume` is what the coordinator goes on with.
pub fn start(store: Arc<Store>, data: DataDir, resume: Option<RunSnapshot>) -> rusqlite::Result<HostHandle> {
    let (commands, queue) = mpsc::channel(COMMANDS);
    let (snapshots, watcher) = watch::channel(Arc::from("{}"));
    let nodes = Nodes::new(store.last_node()?);
    let run = current::after_start(&store, resume.as_ref())?;
    let now = Instant::now();
    let coordinator = match resume {
        Some(resume) => Coordinator::restore(Patience::default(), resume),
        None => Coordinator::new(Patience::default()),
    };
    let mut host = Host {
        left_out: store.left_out()?,
        store,
        data,
        coordinator,
        nodes,
        closed: FuturesUnordered::new(),
        run,
        events: VecDeque::new(),
        relayed: BTreeSet::new(),
        pending: HashMap::new(),
        last_request: 0,
        collector: Collector::default(),
        commands: commands.downgrade(),
        snapshots,
        started: now,
        deadline: Some(0),
        changed: true,
        last_snapshot: now,
    };
    if let Some(run) = host.run.as_ref().filter(|run| run.is_active()) {
        let text = format!("The server is back: run {} goes on when devices are there.", run.stored.info.run);
        host.event(Level::Info, text);
    }
    host.publish();
    tokio::spawn(host.run_loop(queue));
    Ok(HostHandle { commands, snapshots: watcher })
}

/// Unix milliseconds.
pub fn unix_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Host {
    async fn run_loop(mut self, mut queue: mpsc::Receiver<Command>) {
        self.drain();
        loop {
            let wake = self.next_wake();
            tokio::select! {
                command = queue.recv() => match command {
                    Some(Command::Shutdown) | None => break,
                    Some(command) => self.command(command),
                },
                Some(node) = self.closed.next(), if !self.closed.is_empty() => self.leave(node, None),
                () = tokio::time::sleep_until(wake.into()) => self.tick(),
            }
            self.drain();
            if self.changed && self.last_snapshot.elapsed() >= SNAPSHOT_LEAST {
                self.publish();
            }
        }
    }

    fn now(&self) -> Micros {
        self.started.elapsed().as_micros() as Micros
    }

    fn next_wake(&self) -> Instant {
        let snapshot = self.last_snapshot + if self.changed { SNAPSHOT_LEAST } else { SNAPSHOT_MOST };
        match self.deadline {
            Some(deadline) => snapshot.min(self.started + Duration::from_micros(deadline)),
            None => snapshot,
        }
    }

    fn tick(&mut self) {
        let now = Instant::now();
        if self.deadline.is_some_and(|deadline| deadline <= self.now()) {
            self.tell(CoordinatorInput::Tick);
        }
        for node in self.nodes.unopened(now) {
            self.nodes.remove(node);
        }
        self.expire(now);
        if now.duration_since(self.last_snapshot) >= SNAPSHOT_MOST {
            self.publish();
        }
    }

    /// Hands an input to the coordinator; `drain` follows.
    fn tell(&mut self, input: CoordinatorInput) {
        let now = self.now();
        self.coordinator.handle(now, input);
    }

    fn drain(&mut self) {
        loop {
            match self.coordinator.poll() {
                CoordinatorOutput::ToNode { node, message } => self.send(node, message),
                CoordinatorOutput::Drop { node, reason } => self.dismiss(node, reason),
                CoordinatorOutput::Event { level, text } => self.event(level, text),
                CoordinatorOutput::Progress(run, progress) => self.progress(run, progress),
                CoordinatorOutput::Persist(snapshot) => {
                    if let Err(error) = self.store.set_snapshot(snapshot.as_deref()) {
                        log::error!("the run could not be kept for a restart: {error}");
                    }
                }
                CoordinatorOutput::Generated { request, result } => self.generated(request, result),
                CoordinatorOutput::Wait(deadline) => {
                    self.deadline = deadline;
                    return;
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        // A caller that went away needs no answer: `send` may fail.
        match command {
            Command::Join(request, reply) => drop(reply.send(self.join(*request))),
            Command::Open(node, session, reply) => drop(reply.send(self.open(node, &session))),
            Command::OpenInbox(node, session, reply) => drop(reply.send(self.nodes.open_inbox(node, &session))),
            Command::Inbox(node, session, peer, reply) => drop(reply.send(self.nodes.inbox(node, &session, peer))),
            Command::Messages(node, session, messages, reply) => drop(reply.send(self.messages(node, &session, messages))),
            Command::Plan(prepared, reply) => drop(reply.send(self.plan(&prepared))),
            Command::Start(prepared, examination, reply) => drop(reply.send(self.start_run(*prepared, examination))),
            Command::Control(run, wish, reply) => drop(reply.send(self.control(run, wish))),
            Command::View(run, reply) => {
                let current = self.run.as_ref().filter(|current| current.stored.info.run == run);
                drop(reply.send(Ok(current.map(|current| self.run_view(current)))));
            }
            Command::Part(key, part, expected, reply) => drop(reply.send(self.part(key, part, &expected))),
            Command::Written(complete, path) => self.written(*complete, &path),
            Command::Ask(request, memory, reply) => self.ask(*request, memory, reply),
            Command::Shutdown => {}
            Command::Resumed(run, examination) => {
                if let Some(current) = self.run.as_mut().filter(|current| current.stored.info.run == run) {
                    current.examination = Some(examination);
                }
            }
        }
    }

    fn join(&mut self, request: JoinRequest) -> Answer<JoinReply> {
        if let Err(error) = self.store.see_device(&request, unix_millis() / 1000) {
            log::warn!("the device could not be noted: {error}");
        }
        let (reply, earlier) = self.nodes.join(request, Instant::now())?;
        self.store.set_last_node(self.nodes.last_id())?;
        if let Some(earlier) = earlier {
            self.leave(earlier, Some("this device joined anew".into()));
        }
        Ok(reply)
    }

    fn open(&mut self, node: NodeId, session: &str) -> Answer<NodeStream> {
        let (stream, dropped) = self.nodes.open(node, session)?;
        let Some(entry) = self.nodes.get(node) else { return Err(Refusal::unavailable()) };
        let request = &entry.request;
        let profile = DeviceProfile {
            node,
            name: request.name.clone(),
            gflops: request.gflops,
            memory_budget_bytes: request.memory_budget_bytes,
            storage_budget_bytes: request.storage_budget_bytes,
        };
        let version = request.version;
        let is_left_out = self.left_out.contains(&request.device_token);
        self.closed.push(Box::pin(async move {
            let _ = dropped.await;
            node
        }));
        self.changed = true;
        if is_left_out {
            self.tell(CoordinatorInput::LeaveOut { node });
        }
        self.tell(CoordinatorInput::NodeJoined { profile, version });
        Ok(stream)
    }

    fn messages(&mut self, node: NodeId, session: &str, messages: Vec<FromNode>) -> Answer<()> {
        if !self.nodes.authorised(node, session)?.is_present() {
            return Err(Refusal::conflict("this device has not opened its stream: open it before sending messages"));
        }
        for mut message in messages {
            self.changed = true;
            if let FromNode::Failed { reason, .. } | FromNode::LinkDown { reason, .. } | FromNode::GenerateFailed { reason, .. } = &mut message {
                *reason = clip_to(reason, MAX_SENTENCE_CHARACTERS);
            }
            let Ok(entry) = self.nodes.authorised(node, session) else { break };
            match &message {
                FromNode::Alive { counters } => entry.counters = counters.clone(),
                FromNode::Progress { text, fraction } => entry.progress = Some((clip(text), fraction.clamp(0.0, 1.0))),
                FromNode::Signal { to, payload } => {
                    if payload.len() > MAX_SIGNAL_BYTES {
                        return Err(Refusal::bad(format!("a pairing message of {} bytes came, at most {MAX_SIGNAL_BYTES} are passed on", payload.len())));
                    }
                    self.send(*to, ToNode::Signal { from: node, payload: payload.clone() });
                    continue;
                }
                FromNode::LinkUp { peer, relayed, .. } => self.note_route(node, *peer, *relayed),
                FromNode::Leave => {
                    self.leave(node, Some("left on its own wish".into()));
                    break;
                }
                FromNode::Prepared { .. } | FromNode::StepDone(_) | FromNode::PhaseDone { .. } | FromNode::Failed { .. } => entry.progress = None,
                _ => {}
            }
            self.tell(CoordinatorInput::FromNode { node, message });
            // Each message sees the outputs of those before it.
            self.drain();
        }
        Ok(())
    }

    /// Both ends of a link say which way it goes; the first to say so is the news.
    fn note_route(&mut self, node: NodeId, peer: NodeId, relayed: bool) {
        let pair = (node.min(peer), node.max(peer));
        let (Some(one), Some(other)) = (self.nodes.get(pair.0), self.nodes.get(pair.1)) else { return };
        if !relayed {
            self.relayed.remove(&pair);
        } else if !self.relayed.contains(&pair) {
            let (one, other) = (&one.request.name, &other.request.name);
            let text = format!("{one} and {other} do not reach each other directly: this server passes their sealed messages on.");
            self.relayed.retain(|(a, b)| self.nodes.get(*a).is_some() && self.nodes.get(*b).is_some());
            self.relayed.insert(pair);
            self.event(Level::Info, text);
        }
    }

    fn send(&mut self, node: NodeId, message: ToNode) {
        if self.nodes.send(node, message) == Sent::Overflow {
            self.leave(node, None);
        }
    }

    /// Ends a node's stay with a sentence, on the coordinator's wish.
    fn dismiss(&mut self, node: NodeId, reason: String) {
        self.nodes.send(node, ToNode::Goodbye { reason });
        self.nodes.remove(node);
        self.changed = true;
    }

    /// Ends a node's stay. Called again for a node that is gone, it does nothing.
    fn leave(&mut self, node: NodeId, farewell: Option<String>) {
        if let Some(reason) = farewell {
            self.nodes.send(node, ToNode::Goodbye { reason });
        }
        if self.nodes.remove(node).is_some() {
            self.changed = true;
            self.tell(CoordinatorInput::NodeLeft { node });
        }
    }

    fn event(&mut self, level: Level, text: String) {
        log::info!("{text}");
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(EventView { at_millis: unix_millis(), level: level.as_str().into(), text });
        self.changed = true;
    }

    fn part(&mut self, key: CheckpointKey, part: BTreeMap<String, RawTensor>, expected: &Expected) -> Answer<()> {
        if !self.counts(key) {
            return Err(Refusal::conflict("this part belongs to a plan that is no longer in force: it is not needed"));
        }
        let Some(complete) = self.collector.add(key, part, expected) else { return Ok(()) };
        let folder = self.data.run(key.run.0);
        let Some(commands) = self.commands.upgrade() else { return Ok(()) };
        // Megabytes are written elsewhere; only the rename happens here.
        tokio::spawn(async move {
            let path = folder.join(format!("checkpoint-{}-{}-{}.new", key.generation, key.epoch, key.step));
            let (written, at, bytes) = (path.clone(), folder, complete.bytes.clone());
            let result = tokio::task::spawn_blocking(move || std::fs::create_dir_all(&at).and_then(|()| write_atomically(&written, &bytes))).await;
            match result {
                Ok(Ok(())) => drop(commands.send(Command::Written(Box::new(complete), path)).await),
                Ok(Err(error)) => log::error!("the checkpoint could not be written: {error}"),
                Err(error) => log::error!("the checkpoint could not be written: {error}"),
            }
        });
        Ok(())
    }

    fn counts(&self, key: CheckpointKey) -> bool {
        self.run.as_ref().is_some_and(|run| run.stored.info.run == key.run) && self.coordinator.accepts_checkpoint(key.generation)
    }

    /// The file takes its place and the coordinator learns of it in the same breath.
    fn written(&mut self, complete: Complete, path: &std::path::Path) {
        // Two uploads may be written at a time: the later one stays.
        let steps = complete.reference.optimiser_steps;
        let newest = self.run.as_ref().map_or(0, |run| run.checkpoint_steps);
        if !self.counts(complete.key) || steps <= newest {
            let _ = std::fs::remove_file(path);
            return;
        }
        let place = checkpoint::path(&self.data.run(complete.key.run.0));
        if let Err(error) = std::fs::rename(path, &place) {
            self.event(Level::Bad, format!("The checkpoint could not be put into its place ({error}): make room on the server's disk."));
            return;
        }
        if let Some(run) = self.run.as_mut() {
            run.checkpoint_steps = steps;
        }
        self.tell(CoordinatorInput::CheckpointComplete { checkpoint: complete.reference, generation: complete.key.generation });
    }

    fn ask(&mut self, request: GenerateRequest, memory: u64, reply: Reply<(Answers, String)>) {
        let asked = self.pending.values().filter(|pending| matches!(pending, Pending::Ask { .. })).count();
        if asked >= evaluate::MAX_ASKS {
            drop(reply.send(Err(Refusal::new(StatusCode::TOO_MANY_REQUESTS, format!("{asked} prompts are being answered already: wait for them")))));
            return;
        }
        self.generate(request, memory, Pending::Ask { reply, deadline: Instant::now() + evaluate::ASK_TIMEOUT });
    }
}
