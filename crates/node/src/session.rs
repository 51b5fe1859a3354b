//! The stays of a node at the server: the loop that feeds the core machine and does what it says.

use crate::blobs::Blobs;
use crate::events::{Activity, NodeEvent};
use crate::worker::{Fetcher, Worker, fetches};
use crate::{NodeConfig, NodeError, NodeShell};
use barycenter_core::io::{Job, JobId, JobResult, Micros, NodeInput, NodeOutput};
use barycenter_core::node::Node;
use barycenter_engine::Device;
use barycenter_protocol::{NodeId, ProtocolVersion};
use barycenter_protocol::control::{Counters, FromNode, JoinRequest, Phase, PhaseKind, ToNode};
use barycenter_protocol::plan::StageMember;
use barycenter_transport::{Connection, ConnectionEvents, Connector, RelayConnector, Signalling, SignallingEvent, Transport, TransportConfig, TransportEvent, TransportEvents, platform};
use futures::future::{Fuse, FusedFuture, LocalBoxFuture};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, Stream, StreamExt, select_biased};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

/// Counters and the core's clock are brought forward this often.
const TICK_MILLIS: u32 = 1_000;
/// Whoever leaves waits this long for the others to take over its part; somewhat longer than the server lets it wait.
const HAND_OVER_MILLIS: u32 = 65_000;
/// A farewell is given this long to reach the server.
const FAREWELL_MILLIS: u32 = 300;

type RunningJob = LocalBoxFuture<'static, (Worker, JobId, JobResult)>;

/// The time between joining and losing the server.
struct Stay {
    node_id: NodeId,
    server: ProtocolVersion,
    core: Node,
    transport: Transport,
    queue: VecDeque<(JobId, Job)>,
    activity: Activity,
    /// Weights on their way for a plan to come.
    fetching: Fuse<LocalBoxFuture<'static, ()>>,
    /// Messages on their way; their futures only have to be driven.
    sends: FuturesUnordered<LocalBoxFuture<'static, ()>>,
}

struct Session<'a> {
    shell: &'a NodeShell,
    signalling: Signalling,
    blobs: Rc<RefCell<Blobs>>,
    weights: Fetcher,
}

/// Joins and works until the node leaves or is refused; reconnects by itself.
pub(crate) async fn run(config: &NodeConfig, shell: &NodeShell, device: Device, request: JoinRequest, leave: impl Stream<Item = ()>) -> Result<(), NodeError> {
    let mut leave = std::pin::pin!(leave.fuse());
    let mut gives_up: Fuse<LocalBoxFuture<'static, ()>> = Fuse::terminated();
    let blobs = Rc::new(RefCell::new(Blobs::default()));
    let worker = Worker::new(shell, device, Rc::clone(&blobs), config.storage_budget_bytes);
    let weights = worker.fetcher();
    let mut idle_worker = Some(worker);
    let mut job_fetches = false;
    let mut job: Fuse<RunningJob> = Fuse::terminated();
    // Results of a job that was started in an earlier stay are nobody's.
    let mut job_is_current = true;
    let (signalling, mut server) = Signalling::start(shell.http.clone(), request);
    let session = Session { shell, signalling, blobs, weights };
    let mut stay: Option<Stay> = None;
    let mut peers: Option<TransportEvents> = None;
    let mut tick = tick();
    let mut attempts = 0;
    loop {
        select_biased! {
            () = leave.select_next_some() => match &stay {
                Some(stay) if gives_up.is_terminated() && stay.server >= ProtocolVersion::HANDS_OVER => {
                    session.signalling.send(FromNode::Leaving);
                    gives_up = platform::sleep(HAND_OVER_MILLIS).boxed_local().fuse();
                    session.shell.say(NodeEvent::Leaving);
                }
                // asked twice, or nobody is there who would let others take over
                _ => return session.leave(stay.as_ref()).await,
            },
            () = gives_up => return session.leave(stay.as_ref()).await,
            event = server.next().fuse() => match event {
                Some(SignallingEvent::Joined(reply)) => {
                    attempts = 0;
                    let transport_config = TransportConfig { relay_only: config.relay_only, ..TransportConfig::new(reply.node, config.secret.clone()) };
                    let relay = RelayConnector::through_server(shell.http.invitation().clone(), reply.node, reply.session);
                    let (transport, events) = Transport::with_relay(transport_config, SharedConnector(Rc::clone(&shell.connector)), relay);
                    job_is_current = job.is_terminated();
                    if let Some(worker) = &mut idle_worker {
                        worker.forget_generation();
                    }
                    stay = Some(Stay { node_id: reply.node, server: reply.version, fetching: Fuse::terminated(), core: Node::new(reply.node), transport, queue: VecDeque::new(), activity: Activity::default(), sends: FuturesUnordered::new() });
                    peers = Some(events);
                    session.shell.say(NodeEvent::Joined { node: reply.node.0 });
                }
                Some(SignallingEvent::Message(ToNode::Goodbye { reason })) => {
                    session.shell.say(NodeEvent::Left { reason });
                    return Ok(());
                }
                Some(SignallingEvent::Message(message)) => if let Some(stay) = &mut stay {
                    session.hear_server(stay, message);
                },
                Some(SignallingEvent::Lost { reason }) => {
                    attempts += 1;
                    if let Some(stay) = stay.take() {
                        stay.transport.hang_up_all();
                    }
                    peers = None;
                    if !gives_up.is_terminated() {
                        return session.leave(None).await;
                    }
                    shell.cancelled.set(shell.cancelled.get() + 1);
                    session.shell.say(NodeEvent::Reconnecting { reason, attempt: attempts });
                }
                Some(SignallingEvent::Refused { reason }) => return Err(NodeError::Refused(reason)),
                None => return Err(NodeError::Refused("the connection to the server ended".into())),
            },
            // Before the peers, who may have more to say than is read in a second: a busy node is not a silent one.
            () = tick => {
                tick = self::tick();
                if let Some(stay) = &mut stay {
                    let counters = session.counters(stay);
                    session.signalling.send(FromNode::Alive { counters: counters.clone() });
                    session.shell.say(NodeEvent::Counters { counters });
                    stay.core.handle(now(), NodeInput::Tick);
                }
            }
            event = next_event(&mut peers).fuse() => if let Some(stay) = &mut stay {
                session.hear_transport(stay, event);
            },
            (worker, id, result) = job => {
                idle_worker = Some(worker);
                if let (Some(stay), true) = (&mut stay, job_is_current) {
                    stay.core.handle(now(), NodeInput::JobDone { job: id, result });
                }
                job_is_current = true;
            }
            () = drive_beside(&mut stay).fuse() => {}
        }
        let Some(stay) = &mut stay else { continue };
        session.drain(stay, job_fetches && idle_worker.is_none());
        // Both must be there before either is taken.
        if idle_worker.is_some() && let Some((id, next)) = stay.queue.pop_front() && let Some(worker) = idle_worker.take() {
            job_fetches = fetches(&next);
            if job_fetches && !stay.fetching.is_terminated() {
                // The store has one writer: the job fetches what is left.
                stay.fetching = Fuse::terminated();
                stay.core.handle(now(), NodeInput::Fetched);
                session.drain(stay, true);
            }
            job = session.start(worker, id, next);
        }
    }
}

/// The next event of the peers, for as long as there is a transport.
async fn next_event(peers: &mut Option<TransportEvents>) -> TransportEvent {
    if let Some(events) = peers
        && let Some(event) = events.recv().await
    {
        return event;
    }
    std::future::pending().await
}

/// Ends when a message was sent, or weights were fetched; never, when none are on their way.
async fn drive_beside(stay: &mut Option<Stay>) {
    let Some(stay) = stay else { return std::future::pending().await };
    select_biased! {
        () = &mut stay.fetching => stay.core.handle(now(), NodeInput::Fetched),
        () = stay.sends.select_next_some() => {}
        complete => std::future::pending().await,
    }
}

impl Session<'_> {
    /// Leaves without waiting for anybody.
    async fn leave(&self, stay: Option<&Stay>) -> Result<(), NodeError> {
        self.signalling.send(FromNode::Leave);
        if let Some(stay) = stay {
            stay.transport.hang_up_all();
        }
        platform::sleep(FAREWELL_MILLIS).await;
        self.shell.say(NodeEvent::Left { reason: "You left.".into() });
        Ok(())
    }

    fn start(&self, mut worker: Worker, id: JobId, job: Job) -> Fuse<RunningJob> {
        let signalling = self.signalling.clone();
        let running: RunningJob = Box::pin(async move {
            let result = worker.run(job, &|text, fraction| signalling.send(FromNode::Progress { text, fraction })).await;
            (worker, id, result)
        });
        running.fuse()
    }

    fn hear_server(&self, stay: &mut Stay, message: ToNode) {
        match &message {
            ToNode::Ping => return,
            ToNode::Dial { peer } => stay.transport.dial(*peer),
            ToNode::HangUp { peer } => stay.transport.hang_up(*peer),
            ToNode::Signal { from, payload } => return stay.transport.on_signal(*from, payload),
            _ => {}
        }
        self.note_activity(stay, &message);
        stay.core.handle(now(), NodeInput::Server(message));
    }

    fn hear_transport(&self, stay: &mut Stay, event: TransportEvent) {
        match event {
            TransportEvent::Signal { to, payload } => self.signalling.send(FromNode::Signal { to, payload }),
            TransportEvent::LinkUp { peer, round_trip_millis, bytes_per_second, relayed } => {
                self.signalling.send(FromNode::LinkUp { peer, round_trip_millis, bytes_per_second, relayed });
                let (round_trip_millis, bytes_per_second) = (Some(round_trip_millis), Some(bytes_per_second));
                self.shell.say(NodeEvent::Link { peer: peer.0, up: true, round_trip_millis, bytes_per_second, relayed: Some(relayed), reason: None });
                stay.core.handle(now(), NodeInput::LinkUp { peer });
            }
            TransportEvent::LinkDown { peer, reason } => {
                self.signalling.send(FromNode::LinkDown { peer, reason: reason.clone() });
                self.shell.say(NodeEvent::Link { peer: peer.0, up: false, round_trip_millis: None, bytes_per_second: None, relayed: None, reason: Some(reason.clone()) });
                stay.core.handle(now(), NodeInput::LinkDown { peer, reason });
            }
            TransportEvent::Message { from, message, data } => {
                let blob = message.is_bulk().then(|| self.blobs.borrow_mut().insert(data));
                stay.core.handle(now(), NodeInput::Peer { from, message, blob });
            }
        }
    }

    /// `is_fetching`: a job at work may fetch weights.
    fn drain(&self, stay: &mut Stay, is_fetching: bool) {
        loop {
            match stay.core.poll() {
                NodeOutput::ToServer(message) => {
                    if let FromNode::StepDone(report) = &message {
                        self.shell.meter.update(|c| c.wait_seconds += report.wait_seconds);
                        stay.activity.epoch = Some(report.epoch);
                        stay.activity.step = Some(report.step);
                        self.shell.say(NodeEvent::Activity(stay.activity.clone()));
                    }
                    self.signalling.send(message);
                }
                NodeOutput::ToPeer { to, message, blob } => {
                    let data = blob.map(|id| self.blobs.borrow().get(id)).unwrap_or_default();
                    // A link that ended is reported by its own event.
                    stay.sends.push(stay.transport.send(to, message, data).map(|_| ()).boxed_local());
                }
                NodeOutput::DropBlob(id) => self.blobs.borrow_mut().remove(id),
                NodeOutput::Run(id, job) => stay.queue.push_back((id, job)),
                NodeOutput::Fetch { .. } if is_fetching => stay.core.handle(now(), NodeInput::Fetched),
                NodeOutput::Fetch { spec, part, trains } => stay.fetching = self.weights.clone().fetch_ahead(spec, part, trains).boxed_local().fuse(),
                NodeOutput::CancelAll => {
                    stay.fetching = Fuse::terminated();
                    stay.queue.retain(|(_, job)| matches!(job, Job::Generate(_)));
                    self.shell.cancelled.set(self.shell.cancelled.get() + 1);
                }
                NodeOutput::Wait(_) => return,
            }
        }
    }

    fn counters(&self, stay: &Stay) -> Counters {
        let mut counters = self.shell.meter.counters();
        counters.memory_bytes += self.blobs.borrow().held_bytes();
        counters.links = stay.transport.counters();
        counters
    }

    fn note_activity(&self, stay: &mut Stay, message: &ToNode) {
        let activity = &mut stay.activity;
        match message {
            ToNode::Prepare(assignment) => {
                let of = |members: &[StageMember]| members.iter().find(|m| m.node == stay.node_id).map(|m| (m.slots.start, m.slots.end));
                let stage = assignment.plan.stages.iter().find(|s| of(&s.members).is_some());
                let spec = &assignment.spec;
                let keeps = of(&assignment.plan.stores).is_some() && stage.is_none() && of(&assignment.plan.train).is_none();
                *activity = Activity {
                    text: if keeps { "keeping cache entries for others" } else { "getting ready" }.into(),
                    layers: stage.map(|s| (s.layers.start, s.layers.end)),
                    slots: of(&assignment.plan.train),
                    epochs: Some(spec.epochs),
                    steps_per_epoch: Some(spec.train_samples.div_ceil(spec.batch.max(1))),
                    ..Activity::default()
                };
            }
            ToNode::Begin { phase, .. } => {
                let (text, kind, epoch) = match phase {
                    Phase::Fill { .. } => ("reading the data once, filling the cache", PhaseKind::Fill, Some(0)),
                    Phase::Refill { .. } => ("completing the cache", PhaseKind::Refill, None),
                    Phase::Redistribute { .. } => ("passing cache entries on", PhaseKind::Redistribute, None),
                    Phase::Train { epoch, .. } => ("training from the cache", PhaseKind::Train, Some(*epoch)),
                };
                activity.text = text.into();
                activity.epoch = epoch.or(activity.epoch);
                activity.phase = Some(kind);
            }
            ToNode::Pause => activity.text = "paused".into(),
            ToNode::Resume => activity.text = "going on".into(),
            ToNode::Abort { .. } => *activity = Activity { text: "waiting for work".into(), ..Activity::default() },
            _ => return,
        }
        self.shell.say(NodeEvent::Activity(activity.clone()));
    }
}

/// One connector for the transports of all stays.
struct SharedConnector(Rc<dyn Connector>);

impl Connector for SharedConnector {
    fn connect(&self, is_offerer: bool) -> (Box<dyn Connection>, ConnectionEvents) {
        self.0.connect(is_offerer)
    }
}

fn tick() -> Fuse<LocalBoxFuture<'static, ()>> {
    platform::sleep(TICK_MILLIS).boxed_local().fuse()
}

fn now() -> Micros {
    (platform::now_millis() * 1_000.0) as Micros
}
