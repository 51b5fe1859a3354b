//! Optimiser steps: of the fill phase through the pipeline, of the train phase from the cache.

use super::mailbox::{Inbox, Outbox};
use super::pipeline::Pipeline;
use super::reduce::{Groups, Reduce};
use super::stream::Stream;
use super::{Next, Setup, Tally};
use crate::io::{Job, JobResult, LossPart};
use crate::order::EpochOrder;
use crate::schedule;
use barycenter_protocol::SampleId;
use barycenter_protocol::control::{FromNode, StepReport};
use barycenter_protocol::peer::StepKey;
use barycenter_protocol::plan::StageMember;

/// How a step computes its gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// As this stage of the pipeline.
    Fill { stage: usize },
    /// From the cache.
    Train,
}

#[derive(Debug)]
enum State {
    /// Before the step.
    Ready,
    Pipeline(Pipeline),
    Cached(Tally),
    Reduce(Tally, Reduce),
    Checkpoint,
    HeldOut { left: Vec<SampleId>, loss: LossPart },
    Over,
}

/// Steps from one on, up to the end of an epoch.
#[derive(Debug)]
pub(super) struct Steps {
    way: Way,
    order: EpochOrder,
    epoch: u32,
    step: u32,
    last_epoch: u32,
    /// The first step of this epoch that is not to be done.
    stop: Option<u32>,
    state: State,
    stream: Stream,
}

impl Steps {
    pub fn new(setup: &Setup, way: Way, epoch: u32, step: u32, last_epoch: u32) -> Self {
        let mut steps = Self { way, order: setup.order.epoch(epoch), epoch, step, last_epoch, stop: None, state: State::Ready, stream: Stream::default() };
        if way == Way::Train && !setup.assignment.plan.stores.is_empty() {
            let held_out = held_out_samples(setup);
            let held_out = held_out.chunks(held_out_at_once(setup)).map(<[_]>::to_vec);
            steps.stream = Stream::new((step..steps.order.steps()).map(|step| steps.my_samples(setup, step)).chain(held_out));
        }
        if step >= steps.order.steps() {
            steps.end_epoch(setup);
        }
        steps
    }

    /// Epoch and step.
    pub fn at(&self) -> (u32, u32) {
        (self.epoch, self.step)
    }

    /// Part of the epoch done, 0 … 1.
    pub fn fraction(&self) -> f32 {
        self.step as f32 / self.order.steps().max(1) as f32
    }

    /// Ends before a step that has not begun; the checkpoint lies there.
    pub fn stop_before(&mut self, epoch: u32, step: u32) {
        if epoch == self.epoch && step > self.step && step < self.order.steps() {
            self.stop = Some(step);
        }
    }

    fn key(&self, setup: &Setup) -> StepKey {
        StepKey { generation: setup.assignment.generation, epoch: self.epoch, step: self.step }
    }

    fn my_samples(&self, setup: &Setup, step: u32) -> Vec<SampleId> {
        let slots = setup.train_slots.clone().unwrap_or(0..0);
        self.order.mini_batch(step).iter().filter(|s| slots.contains(&s.slot)).map(|s| s.sample).collect()
    }

    pub fn next(&mut self, setup: &Setup, inbox: &mut Inbox, out: &mut Outbox, paused: bool, wait_seconds: &mut f64) -> Next {
        self.stream.look(setup, inbox, out);
        match &mut self.state {
            State::Ready if paused => Next::Hold,
            State::Ready => {
                *wait_seconds = 0.0;
                let (key, mini_batch) = (self.key(setup), self.order.mini_batch(self.step));
                match self.way {
                    Way::Fill { stage } => {
                        self.state = State::Pipeline(Pipeline::new(setup, stage, key, &mini_batch));
                        Next::Again
                    }
                    Way::Train => {
                        let samples = self.my_samples(setup, self.step);
                        let tally = Tally { samples: samples.clone(), ..Tally::default() };
                        if samples.is_empty() {
                            self.stream.used(out);
                            self.state = State::Reduce(tally, self.reduce(setup));
                            return Next::Again;
                        }
                        let streamed = match self.stream.first() {
                            Ok(streamed) => streamed,
                            Err(peers) => return Next::Wait(peers),
                        };
                        self.state = State::Cached(tally);
                        let total_labels = setup.labels(mini_batch.iter().map(|s| s.sample));
                        Next::Job(Job::CachedStep { key, samples, total_labels, next_samples: self.my_samples(setup, self.step + 1), streamed })
                    }
                }
            }
            State::Pipeline(pipeline) => match pipeline.next(inbox, out) {
                Next::Done => {
                    let tally = std::mem::take(&mut pipeline.tally);
                    self.state = State::Reduce(tally, self.reduce(setup));
                    Next::Again
                }
                next => next,
            },
            State::Reduce(tally, reduce) => match reduce.next(setup, inbox) {
                Next::Done => {
                    let report = StepReport {
                        generation: setup.assignment.generation,
                        epoch: self.epoch,
                        step: self.step,
                        loss_sum: tally.loss.loss_sum,
                        tokens: tally.loss.tokens,
                        samples: std::mem::take(&mut tally.samples),
                        backbone_seconds: tally.backbone_seconds,
                        side_seconds: tally.side_seconds + reduce.seconds,
                        wait_seconds: *wait_seconds,
                        gradient_norm: reduce.norm().unwrap_or(0.0),
                    };
                    out.server(FromNode::StepDone(report));
                    self.after_update(setup)
                }
                next => next,
            },
            State::HeldOut { left, loss } => {
                if left.is_empty() {
                    if loss.tokens > 0 {
                        out.server(FromNode::HeldOutLoss { generation: setup.assignment.generation, epoch: self.epoch, loss_sum: loss.loss_sum, tokens: loss.tokens });
                    }
                    if self.epoch >= self.last_epoch {
                        self.state = State::Over;
                    } else {
                        *self = Self::new(setup, self.way, self.epoch + 1, 0, self.last_epoch);
                    }
                    return Next::Again;
                }
                let streamed = match self.stream.first() {
                    Ok(streamed) => streamed,
                    Err(peers) => return Next::Wait(peers),
                };
                let count = held_out_at_once(setup).min(left.len());
                Next::Job(Job::EvaluateHeldOut { epoch: self.epoch, samples: left.drain(..count).collect(), streamed })
            }
            State::Over => Next::Done,
            State::Cached(_) | State::Checkpoint => Next::Hold,
        }
    }

    pub fn job_done(&mut self, setup: &Setup, result: JobResult, out: &mut Outbox) {
        match (&mut self.state, result) {
            (State::Pipeline(pipeline), result) => pipeline.job_done(result, out),
            (State::Cached(tally), JobResult::CachedStepDone { loss, side_seconds }) => {
                self.stream.used(out);
                tally.loss = loss;
                tally.side_seconds += side_seconds;
                let tally = std::mem::take(tally);
                self.state = State::Reduce(tally, self.reduce(setup));
            }
            (State::Reduce(_, reduce), result) => reduce.job_done(result, out),
            (State::Checkpoint, JobResult::CheckpointTaken) => self.go_on(setup),
            (State::HeldOut { loss, .. }, JobResult::HeldOut(part)) => {
                self.stream.used(out);
                loss.loss_sum += part.loss_sum;
                loss.tokens += part.tokens;
            }
            _ => {}
        }
    }

    fn reduce(&self, setup: &Setup) -> Reduce {
        let plan = &setup.assignment.plan;
        let ranks = |members: &[StageMember]| members.iter().map(|m| m.node).collect::<Vec<_>>();
        let groups = match self.way {
            Way::Fill { stage } => Groups { groups: plan.stages.iter().map(|s| ranks(&s.members)).collect(), mine: stage },
            Way::Train => Groups { groups: vec![ranks(&plan.train)], mine: 0 },
        };
        Reduce::new(setup.id, self.key(setup), groups, self.optimiser_step(setup))
    }

    fn optimiser_step(&self, setup: &Setup) -> u32 {
        self.epoch * schedule::steps_per_epoch(&setup.assignment.spec) + self.step
    }

    /// Counts the step; a checkpoint every so many steps, where it stops, and at the end of an epoch, by the first of each group.
    fn after_update(&mut self, setup: &Setup) -> Next {
        let optimiser_steps = self.optimiser_step(setup) + 1;
        self.step += 1;
        let ends = self.step >= self.order.steps();
        let every = setup.assignment.spec.checkpoint_steps;
        let due = ends || self.stop == Some(self.step) || (every > 0 && optimiser_steps.is_multiple_of(every));
        let plan = &setup.assignment.plan;
        let (part, parts, saver) = match self.way {
            Way::Fill { stage } => (stage, plan.stages.len(), plan.stages[stage].members.first()),
            Way::Train => (0, 1, plan.train.first()),
        };
        if !due || saver.is_none_or(|m| m.node != setup.id) {
            self.go_on(setup);
            return Next::Again;
        }
        self.state = State::Checkpoint;
        let (epoch, step) = if ends { (self.epoch + 1, 0) } else { (self.epoch, self.step) };
        let next = StepKey { generation: setup.assignment.generation, epoch, step };
        Next::Job(Job::SaveCheckpoint { run: setup.assignment.run, next, optimiser_steps, part: part as u16, parts: parts as u16 })
    }

    fn go_on(&mut self, setup: &Setup) {
        if self.step >= self.order.steps() {
            self.end_epoch(setup);
        } else {
            self.state = if self.stop == Some(self.step) { State::Over } else { State::Ready };
        }
    }

    fn end_epoch(&mut self, setup: &Setup) {
        self.state = match (self.way, &setup.train_slots) {
            (Way::Train, Some(_)) => State::HeldOut { left: held_out_samples(setup), loss: LossPart::default() },
            _ => State::Over,
        };
    }
}

fn held_out_samples(setup: &Setup) -> Vec<SampleId> {
    setup.train_slots.as_ref().map_or_else(Vec::new, |slots| setup.order.held_out_samples_of(slots, setup.assignment.spec.held_out_samples))
}

/// How many held-out samples are computed in one go: where entries are streamed, no more than a step takes into memory.
fn held_out_at_once(setup: &Setup) -> usize {
    let slots = setup.train_slots.as_ref().filter(|_| !setup.assignment.plan.stores.is_empty());
    slots.map_or(setup.assignment.spec.batch, |slots| slots.end - slots.start).max(1) as usize
}
