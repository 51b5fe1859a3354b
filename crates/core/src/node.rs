//! A node: takes part in generations as the coordinator says, together with its peers.
//!
//! `handle(now, input)`, then `poll()` until it answers `Wait`. One generation at a time; within it at most one job of
//! it is outstanding. Messages of other generations are dropped, early ones of this generation wait in the inbox.

mod mailbox;
mod pipeline;
mod redistribute;
mod reduce;
mod steps;
mod stream;
mod takeover;
mod work;

use crate::io::{Job, JobId, JobResult, LossPart, Micros, NodeInput, NodeOutput, SECOND, StagePart};
use crate::order::SampleOrder;
use barycenter_protocol::control::{Assignment, CacheSend, FromNode, Phase, PhaseKind, RunSpec, ToNode};
use barycenter_protocol::peer::PeerMessage;
use barycenter_protocol::plan::{Plan, layers_text};
use barycenter_protocol::{Generation, NodeId, SampleId};
use mailbox::{CacheArrival, Inbox, Outbox};
use pipeline::Refill;
use redistribute::Redistribute;
use std::collections::BTreeMap;
use std::ops::Range;
use steps::{Steps, Way};
use takeover::Takeover;

/// A node that waits for peers this long says for whom, and again each time it passes.
const WAITING_REPORT: Micros = 5 * SECOND;

/// The machine in a device.
#[derive(Debug)]
pub struct Node {
    id: NodeId,
    paused: bool,
    active: Option<Active>,
    next_job: u64,
    generates: BTreeMap<JobId, u64>,
    out: Outbox,
}

/// What a generation is about, fixed while it lasts.
#[derive(Debug)]
struct Setup {
    id: NodeId,
    assignment: Box<Assignment>,
    order: SampleOrder,
    part: Option<StagePart>,
    train_slots: Option<Range<u32>>,
}

#[derive(Debug)]
struct Active {
    setup: Setup,
    inbox: Inbox,
    doing: Doing,
    job: Option<JobId>,
    /// Beside what it does: somebody is about to leave.
    takeover: Option<Takeover>,
    /// The job outstanding is the takeover's.
    is_beside: bool,
    job_began: Micros,
    /// So long the takeover may work before the work goes on: as long as the last job of the work took.
    turn_beside: Micros,
    has_backbone: bool,
    idle_since: Option<Micros>,
    wait_seconds: f64,
    waiting: Option<Waiting>,
    /// Who gets the cache entries that are being read, and of which sample.
    serves: Option<(NodeId, SampleId)>,
}

#[derive(Debug)]
struct Waiting {
    peers: Vec<NodeId>,
    report_at: Micros,
}

#[derive(Debug)]
enum Doing {
    Preparing,
    Idle,
    /// Frees the frozen weights before what comes after.
    Releasing(Box<Doing>),
    Fill(Steps),
    Refill(Refill),
    Redistribute(Redistribute),
    Train(Steps),
    /// Asks what the cache holds, to report the end of a phase.
    Counting(PhaseKind),
    /// Cannot go on; waits for the next generation.
    Stuck,
}

impl Doing {
    /// What is done, or begins once the frozen weights are freed.
    fn under_way(&mut self) -> &mut Self {
        match self {
            Self::Releasing(after) => after,
            doing => doing,
        }
    }
}

/// What comes next in a phase.
#[derive(Debug)]
enum Next {
    /// Run this.
    Job(Job),
    /// Nothing before these peers send something.
    Wait(Vec<NodeId>),
    /// Nothing before something else happens.
    Hold,
    /// Look again.
    Again,
    /// The phase is over.
    Done,
}

/// Sums over a step at one node.
#[derive(Clone, Debug, Default)]
struct Tally {
    loss: LossPart,
    samples: Vec<SampleId>,
    backbone_seconds: f64,
    side_seconds: f64,
}

impl Setup {
    fn new(id: NodeId, assignment: Box<Assignment>) -> Self {
        let plan = &assignment.plan;
        let part = part_of(plan, &assignment.spec, id);
        let train_slots = train_slots_of(plan, id);
        Self { id, order: SampleOrder::of(&assignment.spec), part, train_slots, assignment }
    }

    /// Who keeps a sample's cache entries in the train phase, where the plan says so; else whoever trains on it.
    fn keeper(&self, sample: SampleId) -> NodeId {
        self.assignment.plan.keeper_for_others(self.order.slot_of(sample)).unwrap_or(self.id)
    }

    /// Whether this node keeps a sample's entries for another one, who may ask for them.
    fn keeps_for(&self, peer: NodeId, sample: SampleId) -> bool {
        let (plan, spec) = (&self.assignment.plan, &self.assignment.spec);
        let slot = self.order.slot_of(sample);
        let trains = plan.train.iter().any(|m| m.node == peer && m.slots.contains(&slot));
        trains && sample.0 < spec.train_samples + spec.held_out_samples && !plan.stores.is_empty() && self.keeper(sample) == self.id
    }

    /// Whether a sample has the taps that a peer sends entries of.
    fn has_taps(&self, arrival: &CacheArrival) -> bool {
        let spec = &self.assignment.spec;
        arrival.sample.0 < spec.train_samples + spec.held_out_samples && usize::from(arrival.first_tap) + arrival.lengths.len() <= spec.tap_count() as usize
    }

    fn labels(&self, samples: impl Iterator<Item = SampleId>) -> u64 {
        samples.filter_map(|s| self.assignment.spec.sample_sizes.get(s.0 as usize)).map(|s| u64::from(s.labels)).sum()
    }
}

fn part_of(plan: &Plan, spec: &RunSpec, node: NodeId) -> Option<StagePart> {
    let stages = plan.stages.len();
    plan.stages.iter().enumerate().find(|(_, s)| s.members.iter().any(|m| m.node == node)).map(|(stage, s)| StagePart {
        stage,
        layers: s.layers.clone(),
        taps: spec.taps_of(&s.layers),
        is_first: stage == 0,
        is_last: stage + 1 == stages,
    })
}

fn train_slots_of(plan: &Plan, node: NodeId) -> Option<Range<u32>> {
    plan.train.iter().find(|m| m.node == node).map(|m| m.slots.clone())
}

impl Node {
    /// A node that has just joined under this id. After a lost stream the device joins anew, and a new machine starts.
    pub fn new(id: NodeId) -> Self {
        Self { id, paused: false, active: None, next_job: 0, generates: BTreeMap::new(), out: Outbox::default() }
    }

    /// Takes one input at time `now`.
    pub fn handle(&mut self, now: Micros, input: NodeInput) {
        match input {
            NodeInput::Server(message) => self.server(message),
            NodeInput::LinkUp { peer } => {
                self.out.links.insert(peer);
            }
            NodeInput::LinkDown { peer, reason } => {
                self.out.links.remove(&peer);
                self.out.server(FromNode::LinkDown { peer, reason });
            }
            NodeInput::Peer { from, message, blob } => {
                self.out.adopt(blob);
                let wanted = match &mut self.active {
                    Some(active) if message.generation() == Some(active.setup.assignment.generation) && !matches!(active.doing, Doing::Stuck) => active.inbox.put(from, message, blob),
                    _ => false,
                };
                if !wanted {
                    self.out.drop_blob(blob);
                }
            }
            NodeInput::JobDone { job, result } => self.job_done(now, job, result),
            NodeInput::Fetched => {
                if let Some(takeover) = self.active.as_mut().and_then(|a| a.takeover.as_mut()) {
                    takeover.fetched();
                }
            }
            NodeInput::Tick => {}
        }
        self.advance(now);
    }

    /// The next output; call until it is `Wait`.
    pub fn poll(&mut self) -> NodeOutput {
        // While a job of a takeover is outstanding, its end is what is waited for.
        let waiting = self.active.as_ref().filter(|a| a.job.is_none()).and_then(|a| a.waiting.as_ref());
        self.out.queue.pop_front().unwrap_or_else(|| NodeOutput::Wait(waiting.map(|w| w.report_at)))
    }

    /// The generation it works for.
    pub fn generation(&self) -> Option<Generation> {
        self.active.as_ref().map(|a| a.setup.assignment.generation)
    }

    /// What it does now, for people, and the part of it done (0 … 1) where that is known.
    pub fn activity(&self) -> (String, Option<f32>) {
        let Some(active) = &self.active else { return ("idle".into(), None) };
        let layers = || active.setup.part.as_ref().map_or(String::new(), |p| format!("stage {}, {}", p.stage + 1, layers_text(p.layers.start, p.layers.end)));
        match &active.doing {
            Doing::Preparing => ("getting ready".into(), None),
            Doing::Idle if active.setup.assignment.plan.stores.iter().any(|m| m.node == active.setup.id) => ("keeping cache entries for others".into(), None),
            Doing::Idle | Doing::Releasing(_) | Doing::Counting(_) => ("ready".into(), None),
            Doing::Fill(steps) => (format!("{}: filling the cache", layers()), Some(steps.fraction())),
            Doing::Refill(refill) if active.setup.part.is_none() => ("keeping cache entries as they are computed".into(), Some(refill.fraction())),
            Doing::Refill(refill) => (format!("{}: computing missing cache entries", layers()), Some(refill.fraction())),
            Doing::Redistribute(r) => ("exchanging cache entries".into(), Some(r.fraction())),
            Doing::Train(steps) => (format!("training from the cache, epoch {}, step {}", steps.at().0 + 1, steps.at().1 + 1), Some(steps.fraction())),
            Doing::Stuck => ("waiting for a new plan".into(), None),
        }
    }

    fn server(&mut self, message: ToNode) {
        match message {
            ToNode::Prepare(assignment) => {
                self.abandon();
                let setup = Setup::new(self.id, assignment);
                let job = Job::Prepare { assignment: setup.assignment.clone(), part: setup.part.clone(), train_slots: setup.train_slots.clone() };
                let mut active = Active {
                    inbox: Inbox::default(),
                    doing: Doing::Preparing,
                    job: None,
                    takeover: None,
                    is_beside: false,
                    job_began: 0,
                    turn_beside: 0,
                    has_backbone: setup.assignment.needs_backbone && setup.part.is_some(),
                    idle_since: None,
                    wait_seconds: 0.0,
                    waiting: None,
                    serves: None,
                    setup,
                };
                active.job = Some(self.run(job));
                self.active = Some(active);
            }
            ToNode::Begin { generation, phase } => {
                if let Some(active) = self.active.as_mut().filter(|a| a.setup.assignment.generation == generation && matches!(a.doing, Doing::Idle)) {
                    active.begin(phase);
                }
            }
            ToNode::TakeOver { generation, round, plan, sends } => self.take_over(generation, round, &plan, sends),
            ToNode::StopBefore { generation, epoch, step } => {
                if let Some(active) = self.active.as_mut().filter(|a| a.setup.assignment.generation == generation)
                    && let Doing::Fill(steps) | Doing::Train(steps) = active.doing.under_way()
                {
                    steps.stop_before(epoch, step);
                }
            }
            ToNode::Pause => self.paused = true,
            ToNode::Resume => self.paused = false,
            ToNode::Abort { generation } => {
                if self.active.as_ref().is_some_and(|a| a.setup.assignment.generation <= generation) {
                    self.abandon();
                }
            }
            ToNode::Generate(request) => {
                let number = request.request;
                let job = self.run(Job::Generate(request));
                self.generates.insert(job, number);
            }
            ToNode::Ping | ToNode::Dial { .. } | ToNode::HangUp { .. } | ToNode::Signal { .. } | ToNode::Goodbye { .. } => {}
        }
    }

    fn take_over(&mut self, generation: Generation, round: u32, plan: &Plan, sends: Vec<CacheSend>) {
        let Some(active) = self.active.as_mut().filter(|a| a.setup.assignment.generation == generation) else { return };
        active.inbox.takes_over = true;
        let takeover = match &mut active.takeover {
            Some(takeover) => {
                takeover.renew(round, sends);
                takeover
            }
            takeover => takeover.insert(Takeover::new(round, sends)),
        };
        let assignment = &active.setup.assignment;
        let layers = part_of(plan, &assignment.spec, self.id).filter(|_| assignment.needs_backbone);
        let trains = train_slots_of(plan, self.id).is_some();
        if layers.is_none() && !trains {
            return takeover.fetched();
        }
        self.out.queue.push_back(NodeOutput::Fetch { spec: Box::new(assignment.spec.clone()), part: layers, trains });
    }

    fn run(&mut self, job: Job) -> JobId {
        let id = JobId(self.next_job);
        self.next_job += 1;
        self.out.queue.push_back(NodeOutput::Run(id, job));
        id
    }

    fn abandon(&mut self) {
        if self.active.take().is_some() {
            self.out.queue.push_back(NodeOutput::CancelAll);
            self.out.drop_all();
        }
    }

    fn job_done(&mut self, now: Micros, job: JobId, result: JobResult) {
        if let Some(request) = self.generates.remove(&job) {
            self.out.server(match result {
                JobResult::Generated { base, tuned } => FromNode::Generated { request, base, tuned },
                JobResult::Failed { reason } => FromNode::GenerateFailed { request, reason },
                _ => FromNode::GenerateFailed { request, reason: "the device gave no answers: ask again".into() },
            });
            return;
        }
        self.out.adopt(result.blobs());
        let Some(active) = self.active.as_mut().filter(|a| a.job == Some(job)) else {
            self.out.drop_blob(result.blobs());
            return;
        };
        active.job = None;
        let took = now.saturating_sub(active.job_began);
        if active.is_beside {
            active.turn_beside = active.turn_beside.saturating_sub(took);
        } else {
            active.turn_beside = took;
            active.idle_since = Some(now);
        }
        active.job_done(result, &mut self.out);
    }

    fn advance(&mut self, now: Micros) {
        loop {
            let Some(active) = self.active.as_mut().filter(|a| a.job.is_none()) else { return };
            if active.turn_beside > 0 && self.work_beside(now) {
                return;
            }
            let Some(active) = self.active.as_mut() else { return };
            let next = active.next(&mut self.out, self.paused);
            if let Some(peer) = self.out.unreachable.take() {
                active.doing = Doing::Stuck;
                active.waiting = None;
                self.out.server(FromNode::LinkDown { peer, reason: "there is no link to it".into() });
                return;
            }
            match next {
                Next::Job(job) => {
                    let waited = active.idle_since.take().map_or(0, |since| now.saturating_sub(since));
                    active.wait_seconds += waited as f64 / SECOND as f64;
                    active.waiting = None;
                    self.work(now, job, false);
                }
                Next::Wait(peers) => {
                    match &mut active.waiting {
                        Some(waiting) if waiting.peers == peers => {
                            if waiting.report_at <= now {
                                waiting.report_at = now + WAITING_REPORT;
                                self.out.server(FromNode::Waiting { generation: active.setup.assignment.generation, peers });
                            }
                        }
                        waiting => *waiting = Some(Waiting { peers, report_at: now + WAITING_REPORT }),
                    }
                    self.work_beside(now);
                    return;
                }
                Next::Hold => {
                    active.waiting = None;
                    active.idle_since = None;
                    self.work_beside(now);
                    return;
                }
                Next::Again | Next::Done => active.idle_since = active.idle_since.or(Some(now)),
            }
        }
    }

    /// Runs a job of the generation.
    fn work(&mut self, now: Micros, job: Job, is_beside: bool) {
        let id = self.run(job);
        if let Some(active) = &mut self.active {
            (active.job, active.is_beside, active.job_began) = (Some(id), is_beside, now);
        }
    }

    /// Runs a job of the takeover, if there is one to do.
    fn work_beside(&mut self, now: Micros) -> bool {
        let Some(active) = self.active.as_mut().filter(|a| !matches!(a.doing, Doing::Stuck)) else { return false };
        let Active { takeover: Some(takeover), setup, inbox, .. } = active else { return false };
        let Some(job) = takeover.next(setup, inbox, &mut self.out, self.paused) else { return false };
        self.work(now, job, true);
        true
    }
}

impl Active {
    fn begin(&mut self, phase: Phase) {
        let setup = &self.setup;
        let stage = setup.part.as_ref().map(|p| p.stage);
        let doing = match (phase, stage) {
            (Phase::Fill { from_step }, Some(stage)) => Doing::Fill(Steps::new(setup, Way::Fill { stage }, 0, from_step, 0)),
            (Phase::Refill { samples, expect }, stage) => Doing::Refill(Refill::new(setup, stage, samples, expect)),
            (Phase::Redistribute { sends, expect }, _) => Doing::Redistribute(Redistribute::new(sends, expect)),
            (Phase::Train { epoch, from_step, last_epoch }, _) if setup.train_slots.is_some() => Doing::Train(Steps::new(setup, Way::Train, epoch, from_step, last_epoch)),
            (Phase::Fill { .. }, None) => Doing::Counting(PhaseKind::Fill),
            (Phase::Train { .. }, _) => Doing::Counting(PhaseKind::Train),
        };
        let releases = self.has_backbone && matches!(doing, Doing::Train(_));
        self.doing = if releases { Doing::Releasing(Box::new(doing)) } else { doing };
    }

    fn next(&mut self, out: &mut Outbox, paused: bool) -> Next {
        let Self { setup, inbox, doing, wait_seconds, serves, .. } = self;
        // others wait for what is kept here; a request that has no right to an answer gets none
        while !matches!(doing, Doing::Preparing | Doing::Stuck)
            && let Some((peer, sample)) = inbox.take_wanted()
        {
            if setup.keeps_for(peer, sample) {
                *serves = Some((peer, sample));
                return Next::Job(Job::ReadCache { sample, taps: 0..setup.assignment.spec.tap_count() });
            }
        }
        let (next, kind) = match doing {
            Doing::Preparing | Doing::Idle | Doing::Stuck => return Next::Hold,
            Doing::Releasing(_) => return Next::Job(Job::ReleaseBackbone),
            Doing::Counting(_) => return Next::Job(Job::Holdings),
            Doing::Fill(steps) => (steps.next(setup, inbox, out, paused, wait_seconds), PhaseKind::Fill),
            Doing::Train(steps) => (steps.next(setup, inbox, out, paused, wait_seconds), PhaseKind::Train),
            Doing::Refill(refill) => (refill.next(setup, inbox, out, paused), PhaseKind::Refill),
            Doing::Redistribute(redistribute) => (redistribute.next(setup, inbox, out, paused), PhaseKind::Redistribute),
        };
        if matches!(next, Next::Done) {
            *doing = Doing::Counting(kind);
        }
        next
    }

    fn job_done(&mut self, result: JobResult, out: &mut Outbox) {
        let generation = self.setup.assignment.generation;
        if let JobResult::Failed { reason } = result {
            out.server(FromNode::Failed { generation, reason });
            self.doing = Doing::Stuck;
            return;
        }
        if std::mem::take(&mut self.is_beside) {
            if let Some(takeover) = &mut self.takeover {
                takeover.job_done(&self.setup, result, out);
            }
            return;
        }
        if let Some((peer, sample)) = self.serves.take() {
            if let JobResult::CacheRead { blob, lengths } = result {
                out.peer(peer, PeerMessage::CacheEntries { generation, sample, first_tap: 0, lengths }, Some(blob));
                out.drop_blob([blob]);
            }
            return;
        }
        match (&mut self.doing, result) {
            (Doing::Preparing, JobResult::Prepared { holdings }) => {
                out.server(FromNode::Prepared { generation, holdings });
                self.doing = Doing::Idle;
            }
            (Doing::Counting(phase), JobResult::Holdings(holdings)) => {
                out.server(FromNode::PhaseDone { generation, phase: *phase, holdings });
                self.doing = Doing::Idle;
            }
            (Doing::Releasing(after), JobResult::Released) => {
                self.has_backbone = false;
                self.doing = std::mem::replace(after, Doing::Idle);
            }
            (Doing::Fill(steps) | Doing::Train(steps), result) => steps.job_done(&self.setup, result, out),
            (Doing::Refill(refill), result) => refill.job_done(&self.setup, result, out),
            (Doing::Redistribute(redistribute), result) => redistribute.job_done(&self.setup, result, out),
            _ => {}
        }
    }
}
