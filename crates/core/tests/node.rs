//! One node alone, its peers played by the test.
//!
//! ```text
//!     test (server, engine, network)
//!        |
//!      node 2 of   1 ──> 2 ──> 3     a pipeline of three, one layer each
//! ```

use barycenter_core::io::{BlobId, Job, JobId, JobResult, NodeInput, NodeOutput, SECOND};
use barycenter_core::node::Node;
use barycenter_protocol::control::{Assignment, CacheSend, FromNode, Phase, RunSpec, SampleSize, ToNode};
use barycenter_protocol::peer::{MicroKey, PeerMessage, StepKey};
use barycenter_protocol::plan::{Plan, Stage, StageMember};
use barycenter_protocol::{Generation, NodeId, RunId, SampleId};

const G: Generation = Generation(3);

fn assignment() -> Assignment {
    let member = |n| vec![StageMember { node: NodeId(n), slots: 0..8 }];
    let plan = Plan {
        stages: (0..3).map(|i| Stage { layers: i..i + 1, members: member(i + 1) }).collect(),
        micro_batches: 8,
        train: member(2),
        fill_step_seconds: 1.0,
        train_step_seconds: 1.0,
        single_device_fill_step_seconds: 1.0,
        reasons: Vec::new(),
        ..Plan::default()
    };
    let spec = RunSpec {
        model: "m".into(),
        model_hash: "m".into(),
        dataset: "d".into(),
        dataset_hash: "d".into(),
        train_samples: 32,
        held_out_samples: 0,
        sample_sizes: vec![SampleSize { tokens: 3, labels: 1 }; 32],
        layers: 3,
        tap_every: 1,
        cache: Default::default(),
        reduction: 8,
        batch: 8,
        epochs: 2,
        learning_rate: 1.0,
        warmup_steps: 0,
        weight_decay: 0.0,
        clip_norm: 0.0,
        seed: 1,
        checkpoint_steps: 0,
        gradients: Default::default(),
        weights: Default::default(),
    };
    Assignment { run: RunId(1), generation: G, spec, plan, checkpoint: None, needs_backbone: true, fills: true }
}

struct Bench {
    node: Node,
    now: u64,
    next_blob: u64,
}

impl Bench {
    /// Node 2, linked and prepared.
    fn new() -> Self {
        Self::with(assignment())
    }

    fn with(assignment: Assignment) -> Self {
        let mut bench = Self { node: Node::new(NodeId(2)), now: 0, next_blob: 0 };
        for peer in [1, 3] {
            bench.give(NodeInput::LinkUp { peer: NodeId(peer) });
        }
        let out = bench.give(NodeInput::Server(ToNode::Prepare(Box::new(assignment))));
        let (job, _) = jobs(&out).pop().expect("a Prepare");
        let out = bench.give(NodeInput::JobDone { job, result: JobResult::Prepared { holdings: Vec::new() } });
        assert!(matches!(out[..], [NodeOutput::ToServer(FromNode::Prepared { generation: G, .. })]));
        bench
    }

    fn give(&mut self, input: NodeInput) -> Vec<NodeOutput> {
        self.node.handle(self.now, input);
        let mut out = Vec::new();
        loop {
            match self.node.poll() {
                NodeOutput::Wait(_) => return out,
                output => out.push(output),
            }
        }
    }

    fn begin(&mut self, phase: Phase) -> Vec<NodeOutput> {
        self.give(NodeInput::Server(ToNode::Begin { generation: G, phase }))
    }

    fn blob(&mut self) -> BlobId {
        self.next_blob += 1;
        BlobId(self.next_blob)
    }

    fn activation(&mut self, key: MicroKey, samples: Vec<SampleId>) -> Vec<NodeOutput> {
        let blob = Some(self.blob());
        self.give(NodeInput::Peer { from: NodeId(1), message: PeerMessage::Activation { key, samples }, blob })
    }

    fn forward_done(&mut self, job: JobId) -> Vec<NodeOutput> {
        let outputs = vec![self.blob()];
        self.give(NodeInput::JobDone { job, result: JobResult::ForwardDone { outputs, entries: Vec::new(), loss: None, backbone_seconds: 0.1, side_seconds: 0.1 } })
    }
}

fn jobs(out: &[NodeOutput]) -> Vec<(JobId, Job)> {
    out.iter().filter_map(|o| if let NodeOutput::Run(id, job) = o { Some((*id, job.clone())) } else { None }).collect()
}

fn key(micro: u16, forward_only: bool) -> MicroKey {
    MicroKey { step: StepKey { generation: G, epoch: 0, step: 0 }, micro, forward_only }
}

/// Samples of micro-batch `micro` of the first mini-batch: with 8 slots and 8 micro-batches, one each.
fn sample(micro: u16) -> SampleId {
    barycenter_core::order::SampleOrder::of(&assignment().spec).epoch(0).mini_batch(0)[micro as usize].sample
}

#[test]
fn the_middle_stage_keeps_two_micro_batches_in_flight_and_prefers_backward() {
    let mut bench = Bench::new();
    bench.begin(Phase::Fill { from_step: 0 });
    let mut running = Vec::new();
    for micro in 0..8 {
        running.extend(jobs(&bench.activation(key(micro, false), vec![sample(micro)])));
    }
    // one job at a time; the third forward waits for a backward though its input is here
    assert!(matches!(running[..], [(_, Job::Forward { .. })]));
    let second = jobs(&bench.forward_done(running[0].0));
    assert!(matches!(second[..], [(_, Job::Forward { .. })]));
    assert!(jobs(&bench.forward_done(second[0].0)).is_empty());
    let blob = Some(bench.blob());
    let out = bench.give(NodeInput::Peer { from: NodeId(3), message: PeerMessage::SideGradient { key: key(0, false), samples: vec![sample(0)] }, blob });
    assert!(matches!(jobs(&out)[..], [(_, Job::Backward { .. })]));
    let outputs = vec![bench.blob()];
    let out = bench.give(NodeInput::JobDone { job: jobs(&out)[0].0, result: JobResult::BackwardDone { outputs, side_seconds: 0.1 } });
    assert!(out.iter().any(|o| matches!(o, NodeOutput::ToPeer { to: NodeId(1), message: PeerMessage::SideGradient { .. }, .. })));
    assert!(matches!(jobs(&out)[..], [(_, Job::Forward { .. })]));
}

#[test]
fn a_forward_only_stream_runs_four_micro_batches_ahead() {
    let mut bench = Bench::new();
    let samples: Vec<_> = (0..8).map(SampleId).collect();
    bench.begin(Phase::Refill { samples: samples.clone(), expect: 0 });
    let mut started = 0;
    let mut waiting = Vec::new();
    for micro in 0..8u16 {
        waiting.extend(jobs(&bench.activation(key(micro, true), vec![samples[micro as usize]])));
        while let Some((job, _)) = waiting.pop() {
            started += 1;
            waiting.extend(jobs(&bench.forward_done(job)));
        }
    }
    assert_eq!(started, 4);
    let out = bench.give(NodeInput::Peer { from: NodeId(3), message: PeerMessage::ActivationUsed { key: key(0, true) }, blob: None });
    assert_eq!(jobs(&out).len(), 1);
}

#[test]
fn early_messages_wait_and_those_of_other_generations_are_dropped() {
    let mut bench = Bench::new();
    let out = bench.activation(key(0, false), vec![sample(0)]);
    assert!(out.is_empty(), "kept until the phase begins");
    let mut old = key(1, false);
    old.step.generation = Generation(2);
    assert!(matches!(bench.activation(old, vec![sample(1)])[..], [NodeOutput::DropBlob(_)]));
    let out = bench.activation(key(0, false), vec![sample(0)]);
    assert!(matches!(out[..], [NodeOutput::DropBlob(_)]), "the first of two counts");
    assert!(matches!(jobs(&bench.begin(Phase::Fill { from_step: 0 }))[..], [(_, Job::Forward { .. })]));
}

#[test]
fn rows_of_other_samples_than_planned_are_not_computed() {
    let mut bench = Bench::new();
    bench.begin(Phase::Fill { from_step: 0 });
    let out = bench.activation(key(0, false), vec![sample(5)]);
    assert!(jobs(&out).is_empty());
    assert!(out.iter().any(|o| matches!(o, NodeOutput::DropBlob(_))));
    assert_eq!(jobs(&bench.activation(key(0, false), vec![sample(0)])).len(), 1);
}

#[test]
fn a_flood_of_messages_is_bounded() {
    let mut bench = Bench::new();
    let mut kept = 0;
    for step in 0..20_000 {
        let mut k = key(0, false);
        k.step.step = step;
        kept += usize::from(bench.activation(k, vec![sample(0)]).is_empty());
    }
    assert!(kept < 5000);
}

#[test]
fn a_waiting_node_says_for_whom() {
    let mut bench = Bench::new();
    bench.begin(Phase::Fill { from_step: 0 });
    bench.now += 4 * SECOND;
    assert!(bench.give(NodeInput::Tick).is_empty());
    bench.now += 2 * SECOND;
    let out = bench.give(NodeInput::Tick);
    assert_eq!(out, [NodeOutput::ToServer(FromNode::Waiting { generation: G, peers: vec![NodeId(1)] })]);
}

#[test]
fn an_abandoned_generation_leaves_no_blob_behind() {
    let mut bench = Bench::new();
    for micro in 0..3 {
        bench.activation(key(micro, false), vec![sample(micro)]);
    }
    let out = bench.begin(Phase::Fill { from_step: 0 });
    let (job, _) = jobs(&out)[0].clone();
    let out = bench.give(NodeInput::Server(ToNode::Abort { generation: G }));
    assert_eq!(out[0], NodeOutput::CancelAll);
    assert_eq!(out.len(), 4, "three blobs are dropped: {out:?}");
    let late = bench.forward_done(job);
    assert!(matches!(late[..], [NodeOutput::DropBlob(_)]), "the late result's blob too");
}

#[test]
fn a_broken_link_stops_the_work_and_is_reported() {
    let mut bench = Bench::new();
    bench.begin(Phase::Fill { from_step: 0 });
    let out = bench.activation(key(0, false), vec![sample(0)]);
    let (job, _) = jobs(&out)[0].clone();
    let out = bench.give(NodeInput::LinkDown { peer: NodeId(3), reason: "closed".into() });
    assert!(matches!(out[..], [NodeOutput::ToServer(FromNode::LinkDown { peer: NodeId(3), .. })]));
    let out = bench.forward_done(job);
    assert!(!out.iter().any(|o| matches!(o, NodeOutput::ToPeer { .. })), "nothing goes to a dead peer: {out:?}");
}

#[test]
fn entries_are_sent_beside_a_step_that_waits_and_the_end_is_said_once_the_weights_are_there() {
    let mut bench = Bench::new();
    bench.begin(Phase::Fill { from_step: 0 });
    let sends = vec![CacheSend { to: NodeId(3), samples: vec![SampleId(5)], taps: 1..2 }];
    let out = bench.give(NodeInput::Server(ToNode::TakeOver { generation: G, round: 1, plan: Box::new(assignment().plan), sends }));
    assert!(out.iter().any(|o| matches!(o, NodeOutput::Fetch { part: Some(part), trains: true, .. } if part.layers == (1..2))), "{out:?}");
    let [(read, Job::ReadCache { sample: SampleId(5), .. })] = jobs(&out)[..] else { panic!("{out:?}") };

    // the step waits for stage 1 for longer than a node keeps silent about: nothing is due before the job is done
    bench.now += 10 * SECOND;
    bench.give(NodeInput::Tick);
    assert_eq!(bench.node.poll(), NodeOutput::Wait(None));
    let blob = bench.blob();
    let out = bench.give(NodeInput::JobDone { job: read, result: JobResult::CacheRead { blob, lengths: vec![24] } });
    assert!(out.iter().any(|o| matches!(o, NodeOutput::ToPeer { to: NodeId(3), message: PeerMessage::CacheEntries { first_tap: 1, .. }, .. })), "{out:?}");
    assert!(out.iter().any(|o| matches!(o, NodeOutput::ToServer(FromNode::Waiting { .. }))), "{out:?}");

    let is_over = |out: &[NodeOutput]| out.iter().filter(|o| matches!(o, NodeOutput::ToServer(FromNode::TakenOver { generation: G, round: 1 }))).count();
    let stored = PeerMessage::CacheStored { generation: G, sample: SampleId(5), first_tap: 1 };
    assert_eq!(is_over(&bench.give(NodeInput::Peer { from: NodeId(3), message: stored, blob: None })), 0, "the weights are on their way");
    assert_eq!(is_over(&bench.give(NodeInput::Fetched)), 1);
    assert_eq!(is_over(&bench.give(NodeInput::Tick)), 0);
    // the step goes on as if nothing had been
    assert!(matches!(jobs(&bench.activation(key(0, false), vec![sample(0)]))[..], [(_, Job::Forward { .. })]));
}

#[test]
fn entries_that_come_beside_a_step_are_stored_after_its_job() {
    let mut bench = Bench::new();
    bench.begin(Phase::Fill { from_step: 0 });
    bench.give(NodeInput::Server(ToNode::TakeOver { generation: G, round: 1, plan: Box::new(assignment().plan), sends: Vec::new() }));
    let out = bench.activation(key(0, false), vec![sample(0)]);
    let [(forward, Job::Forward { .. })] = jobs(&out)[..] else { panic!("{out:?}") };
    let blob = Some(bench.blob());
    let message = PeerMessage::CacheEntries { generation: G, sample: SampleId(9), first_tap: 0, lengths: vec![24] };
    assert_eq!(jobs(&bench.give(NodeInput::Peer { from: NodeId(1), message, blob })), [], "one job at a time");
    bench.now += SECOND;
    let out = bench.forward_done(forward);
    let [(write, Job::WriteCache { sample: SampleId(9), .. })] = jobs(&out)[..] else { panic!("{out:?}") };
    let out = bench.give(NodeInput::JobDone { job: write, result: JobResult::CacheWritten });
    assert!(out.iter().any(|o| matches!(o, NodeOutput::ToPeer { to: NodeId(1), message: PeerMessage::CacheStored { sample: SampleId(9), .. }, .. })), "{out:?}");
}

#[test]
fn entries_of_no_sample_or_tap_of_the_run_are_not_stored() {
    let mut bench = Bench::new();
    bench.begin(Phase::Redistribute { sends: Vec::new(), expect: 4 });
    let mut come = |sample: u32, first_tap: u16, count: usize| {
        let blob = bench.blob();
        let message = PeerMessage::CacheEntries { generation: G, sample: SampleId(sample), first_tap, lengths: vec![24; count] };
        (blob, bench.give(NodeInput::Peer { from: NodeId(1), message, blob: Some(blob) }))
    };
    // There are 32 samples of 4 taps.
    for (sample, first_tap, count) in [(32, 0, 1), (u32::MAX, 0, 1), (9, 4, 1), (9, 0, 5), (9, u16::MAX, 2)] {
        let (blob, out) = come(sample, first_tap, count);
        assert_eq!(out, [NodeOutput::DropBlob(blob)], "sample {sample}, {count} taps from {first_tap} on");
    }
    let (_, out) = come(31, 0, 4);
    assert!(matches!(jobs(&out)[..], [(_, Job::WriteCache { sample: SampleId(31), .. })]), "{out:?}");
}

/// Node 2 trains on slots 0 .. 6 and node 1 on the others; node 2 keeps the entries of slots 0 .. 2 and 6 .. 8, node 3 the rest.
fn storing() -> Assignment {
    let member = |n, slots| StageMember { node: NodeId(n), slots };
    let mut assignment = Assignment { needs_backbone: false, fills: false, ..assignment() };
    assignment.plan.train = vec![member(2, 0..6), member(1, 6..8)];
    assignment.plan.stores = vec![member(2, 0..2), member(3, 2..6), member(2, 6..8)];
    assignment
}

/// Samples of slots 2 .. 6 of a step of epoch 1: those that node 3 keeps for node 2.
fn kept_elsewhere(step: u32) -> Vec<SampleId> {
    let order = barycenter_core::order::SampleOrder::of(&storing().spec);
    order.epoch(1).mini_batch(step).iter().filter(|s| (2..6).contains(&s.slot)).map(|s| s.sample).collect()
}

fn wanted(out: &[NodeOutput]) -> Vec<SampleId> {
    let sample = |o: &NodeOutput| match o {
        NodeOutput::ToPeer { to: NodeId(3), message: PeerMessage::CacheWanted { generation: G, sample }, blob: None } => Some(*sample),
        _ => None,
    };
    out.iter().filter_map(sample).collect()
}

impl Bench {
    fn entries(&mut self, from: u32, sample: SampleId, taps: usize) -> Vec<NodeOutput> {
        let blob = Some(self.blob());
        let message = PeerMessage::CacheEntries { generation: G, sample, first_tap: 0, lengths: vec![6; taps] };
        self.give(NodeInput::Peer { from: NodeId(from), message, blob })
    }
}

#[test]
fn entries_that_others_keep_are_asked_for_two_steps_deep_and_dropped_after_theirs() {
    let mut bench = Bench::with(storing());
    let out = bench.begin(Phase::Train { epoch: 1, from_step: 0, last_epoch: 1 });
    assert!(jobs(&out).is_empty(), "it waits for entries");
    assert_eq!(wanted(&out), [kept_elsewhere(0), kept_elsewhere(1)].concat());
    // unasked, of somebody else, or not whole: dropped
    for (from, sample, taps) in [(3, kept_elsewhere(2)[0], 4), (1, kept_elsewhere(0)[0], 4), (3, kept_elsewhere(0)[0], 3), (3, SampleId(u32::MAX), 4)] {
        assert!(matches!(bench.entries(from, sample, taps)[..], [NodeOutput::DropBlob(_)]));
    }
    let mut started = Vec::new();
    for sample in kept_elsewhere(0) {
        assert!(started.is_empty(), "not before all are here");
        started = jobs(&bench.entries(3, sample, 4));
    }
    let Job::CachedStep { samples, streamed, .. } = &started[0].1 else { panic!("{started:?}") };
    assert_eq!((samples.len(), streamed.iter().map(|e| e.sample).collect::<Vec<_>>()), (6, kept_elsewhere(0)));
    // what comes while the step is computed is for the next one
    for sample in kept_elsewhere(1) {
        assert!(bench.entries(3, sample, 4).is_empty());
    }
    let done = JobResult::CachedStepDone { loss: Default::default(), side_seconds: 0.1 };
    let out = bench.give(NodeInput::JobDone { job: started[0].0, result: done });
    assert_eq!(out.iter().filter(|o| matches!(o, NodeOutput::DropBlob(_))).count(), 4, "the step's entries are dropped: {out:?}");
    assert_eq!(wanted(&out), kept_elsewhere(2), "and the step after the next one is asked for");
}

#[test]
fn a_keeper_serves_who_trains_on_a_sample_and_nobody_else() {
    let mut bench = Bench::with(storing());
    let order = barycenter_core::order::SampleOrder::of(&storing().spec);
    let of_slot = |slot: u32| order.train_samples_of(&(slot..slot + 1))[0];
    let ask = |bench: &mut Bench, from: u32, sample: SampleId| bench.give(NodeInput::Peer { from: NodeId(from), message: PeerMessage::CacheWanted { generation: G, sample }, blob: None });
    for (from, sample) in [(3, of_slot(7)), (1, of_slot(0)), (1, of_slot(3)), (1, SampleId(40)), (1, SampleId(u32::MAX))] {
        assert!(ask(&mut bench, from, sample).is_empty(), "{from} has no right to {sample}");
    }
    let out = ask(&mut bench, 1, of_slot(7));
    assert_eq!(jobs(&out).into_iter().map(|j| j.1).collect::<Vec<_>>(), [Job::ReadCache { sample: of_slot(7), taps: 0..4 }]);
    let blob = bench.blob();
    let out = bench.give(NodeInput::JobDone { job: jobs(&out)[0].0, result: JobResult::CacheRead { blob, lengths: vec![6; 4] } });
    let entries = PeerMessage::CacheEntries { generation: G, sample: of_slot(7), first_tap: 0, lengths: vec![6; 4] };
    assert_eq!(out, [NodeOutput::ToPeer { to: NodeId(1), message: entries, blob: Some(blob) }, NodeOutput::DropBlob(blob)]);
}

#[test]
fn a_node_without_layers_keeps_what_is_computed_for_it_and_then_says_so() {
    let mut assignment = storing();
    assignment.plan.stages = vec![Stage { layers: 0..3, members: vec![StageMember { node: NodeId(1), slots: 0..8 }] }];
    let mut bench = Bench::with(assignment);
    let order = barycenter_core::order::SampleOrder::of(&storing().spec);
    let (mine, other) = (order.train_samples_of(&(0..1))[0], order.train_samples_of(&(3..4))[0]);
    assert!(bench.begin(Phase::Refill { samples: vec![mine], expect: 4 }).is_empty());
    for (sample, taps) in [(other, 4), (mine, 5), (SampleId(99), 4)] {
        assert!(matches!(bench.entries(1, sample, taps)[..], [NodeOutput::DropBlob(_)]), "not to be kept here");
    }
    let writing = jobs(&bench.entries(1, mine, 4));
    assert!(matches!(writing[..], [(_, Job::WriteCache { first_tap: 0, .. })]));
    let out = bench.give(NodeInput::JobDone { job: writing[0].0, result: JobResult::CacheWritten });
    assert!(out.iter().any(|o| matches!(o, NodeOutput::ToPeer { to: NodeId(1), message: PeerMessage::CacheStored { .. }, blob: None })));
    assert!(matches!(jobs(&out)[..], [(_, Job::Holdings)]), "all that was expected is here: {out:?}");
}
