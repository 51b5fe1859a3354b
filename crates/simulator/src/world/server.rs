//! The server around the coordinator: checkpoint store, snapshot, streams; and its restarts.

use super::{Event, SERVER_LATENCY, World};
use crate::engine::Adapter;
use barycenter_core::coordinator::{Coordinator, CoordinatorInput, CoordinatorOutput, Level, RunProgress};
use barycenter_core::io::SECOND;
use barycenter_protocol::Generation;
use barycenter_protocol::api::RunState;
use barycenter_protocol::control::CheckpointRef;

impl World {
    pub(super) fn server_down(&mut self) {
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

    pub(super) fn server_up(&mut self) {
        if self.server.is_none() {
            let patience = self.patience;
            self.server = Some(match &self.snapshot {
                Some(snapshot) => Coordinator::restore(patience, snapshot.clone()),
                None => Coordinator::new(patience),
            });
            self.serve(CoordinatorInput::Tick);
        }
    }

    pub(super) fn upload(&mut self, generation: Generation, at: CheckpointRef, adapter: Adapter) {
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

    pub(super) fn serve(&mut self, input: CoordinatorInput) {
        if self.conductor.is_some() {
            return self.conduct_input(input);
        }
        let now = self.now;
        let Some(server) = &mut self.server else { return };
        server.handle(now, input);
        self.plan_is_unchecked = true;
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
                    match &progress {
                        RunProgress::Phase { phase, epoch, .. } => {
                            self.phase = Some(*phase);
                            self.meter.phases.push((now, *phase, *epoch));
                        }
                        RunProgress::State { state, .. } => {
                            self.state = Some(*state);
                            if !matches!(state, RunState::Running | RunState::Paused) {
                                self.phase = None;
                            }
                        }
                        _ => {}
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
}
