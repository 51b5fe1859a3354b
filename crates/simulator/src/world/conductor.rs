//! In place of the coordinator: a plan that is given, carried out once by the real nodes. For households that nobody plans
//! for, such as forced numbers of devices.

use super::{Event, SERVER_LATENCY, World};
use barycenter_core::coordinator::CoordinatorInput;
use barycenter_core::io::Micros;
use barycenter_core::order::SampleOrder;
use barycenter_protocol::control::{Assignment, CacheSend, FromNode, Phase, RunSpec, ToNode};
use barycenter_protocol::plan::Plan;
use barycenter_protocol::{Generation, NodeId, RunId, SampleId};
use std::collections::{BTreeMap, BTreeSet};

/// Borders between the parts of a carried-out plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// The fill epoch.
    pub fill: (Micros, Micros),
    /// The redistribution of the cache.
    pub redistribution: (Micros, Micros),
    /// An epoch from the cache.
    pub train: (Micros, Micros),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Linking,
    PreparingFill,
    Filling,
    PreparingTrain,
    Redistributing,
    Training,
    Done,
}

#[derive(Debug)]
pub(super) struct Conductor {
    plan: Plan,
    spec: RunSpec,
    expected: usize,
    joined: Vec<NodeId>,
    links: BTreeSet<(NodeId, NodeId)>,
    stage: Stage,
    pending: BTreeSet<NodeId>,
    pub marks: Marks,
}

impl Conductor {
    fn handle(&mut self, now: Micros, input: CoordinatorInput) -> Vec<(NodeId, ToNode)> {
        match input {
            CoordinatorInput::NodeJoined { profile, .. } => {
                let peers = self.joined.clone();
                self.joined.push(profile.node);
                let mut out: Vec<_> = peers.into_iter().flat_map(|p| [(p, ToNode::Dial { peer: profile.node }), (profile.node, ToNode::Dial { peer: p })]).collect();
                if self.expected == 1 {
                    out.extend(self.prepare(Stage::PreparingFill));
                }
                out
            }
            CoordinatorInput::FromNode { node, message } => match message {
                FromNode::LinkUp { peer, .. } => {
                    self.links.insert((node, peer));
                    if self.stage == Stage::Linking && self.links.len() == self.expected * (self.expected - 1) { self.prepare(Stage::PreparingFill) } else { Vec::new() }
                }
                FromNode::Prepared { .. } | FromNode::PhaseDone { .. } => {
                    self.pending.remove(&node);
                    if self.pending.is_empty() { self.next(now) } else { Vec::new() }
                }
                FromNode::Failed { reason, .. } => panic!("{node} failed: {reason}"),
                _ => Vec::new(),
            },
            _ => Vec::new(),
        }
    }

    fn next(&mut self, now: Micros) -> Vec<(NodeId, ToNode)> {
        match self.stage {
            Stage::PreparingFill => {
                self.marks.fill.0 = now;
                let nodes: BTreeSet<_> = self.plan.stages.iter().flat_map(|s| &s.members).map(|m| m.node).collect();
                self.begin(Stage::Filling, nodes.into_iter().map(|n| (n, Phase::Fill { from_step: 0 })).collect())
            }
            Stage::Filling => {
                self.marks.fill.1 = now;
                self.prepare(Stage::PreparingTrain)
            }
            Stage::PreparingTrain => {
                self.marks.redistribution.0 = now;
                let transfers = self.transfers();
                if transfers.is_empty() {
                    self.stage = Stage::Redistributing;
                    return self.next(now);
                }
                self.begin(Stage::Redistributing, transfers.into_iter().map(|(n, (sends, expect))| (n, Phase::Redistribute { sends, expect })).collect())
            }
            Stage::Redistributing => {
                self.marks.redistribution.1 = now;
                self.marks.train.0 = now;
                let nodes: Vec<_> = self.plan.train.iter().map(|m| m.node).collect();
                // the adapter starts anew: the steps of epoch 0 take as long as any
                self.begin(Stage::Training, nodes.into_iter().map(|n| (n, Phase::Train { epoch: 0, from_step: 0, last_epoch: 0 })).collect())
            }
            Stage::Training => {
                self.marks.train.1 = now;
                self.stage = Stage::Done;
                Vec::new()
            }
            Stage::Linking | Stage::Done => Vec::new(),
        }
    }

    fn generation(&self) -> Generation {
        Generation(if matches!(self.stage, Stage::PreparingFill | Stage::Filling) { 1 } else { 2 })
    }

    fn prepare(&mut self, stage: Stage) -> Vec<(NodeId, ToNode)> {
        self.stage = stage;
        let fills = stage == Stage::PreparingFill;
        let assignment = Assignment { run: RunId(1), generation: self.generation(), spec: self.spec.clone(), plan: self.plan.clone(), checkpoint: None, needs_backbone: fills, fills };
        self.pending = self.joined.iter().copied().collect();
        self.joined.iter().map(|n| (*n, ToNode::Prepare(Box::new(assignment.clone())))).collect()
    }

    fn begin(&mut self, stage: Stage, phases: Vec<(NodeId, Phase)>) -> Vec<(NodeId, ToNode)> {
        self.stage = stage;
        self.pending = phases.iter().map(|p| p.0).collect();
        let generation = self.generation();
        phases.into_iter().map(|(node, phase)| (node, ToNode::Begin { generation, phase })).collect()
    }

    /// Every stage's taps of a sample go from the member that had its slot to the owner of its slot.
    fn transfers(&self) -> BTreeMap<NodeId, (Vec<CacheSend>, u64)> {
        let order = SampleOrder::of(&self.spec);
        let mut result: BTreeMap<NodeId, (Vec<CacheSend>, u64)> = BTreeMap::new();
        for stage in &self.plan.stages {
            let taps = self.spec.taps_of(&stage.layers);
            for (member, owner) in stage.members.iter().flat_map(|m| self.plan.train.iter().map(move |o| (m, o))).filter(|(m, o)| m.node != o.node) {
                let common = member.slots.start.max(owner.slots.start)..member.slots.end.min(owner.slots.end);
                let samples: Vec<SampleId> = if common.is_empty() { Vec::new() } else { order.train_samples_of(&common) };
                if !samples.is_empty() {
                    result.entry(owner.node).or_default().1 += samples.len() as u64 * u64::from(taps.end - taps.start);
                    result.entry(member.node).or_default().0.push(CacheSend { to: owner.node, samples, taps: taps.clone() });
                }
            }
        }
        result
    }
}

impl World {
    /// No coordinator: when all devices are on and linked, their nodes carry out this plan. Node ids are those in the order
    /// of joining, from 1.
    pub fn conduct(&mut self, plan: Plan) {
        self.server = None;
        let spec = self.start.spec.clone();
        let expected = self.devices.len();
        self.conductor = Some(Conductor { plan, spec, expected, joined: Vec::new(), links: BTreeSet::new(), stage: Stage::Linking, pending: BTreeSet::new(), marks: Marks::default() });
    }

    /// What was carried out, once it is.
    pub fn marks(&self) -> Option<Marks> {
        self.conductor.as_ref().filter(|c| c.stage == Stage::Done).map(|c| c.marks)
    }

    pub(super) fn conduct_input(&mut self, input: CoordinatorInput) {
        let now = self.now;
        let Some(conductor) = &mut self.conductor else { return };
        for (node, message) in conductor.handle(now, input) {
            self.after(SERVER_LATENCY, Event::ToNode(node, message));
        }
    }
}
