//! What dashboards see, as JSON lines.

use super::{CurrentRun, Host, unix_millis};
use barycenter_protocol::NodeId;
use barycenter_protocol::api::{HeldOutPoint, LinkView, LossPoint, NodeView, RunView, Snapshot};
use barycenter_protocol::control::PhaseKind;
use barycenter_protocol::plan::layers_text;
use std::sync::Arc;
use std::time::Instant;

impl Host {
    /// Gives every watching page the state of things.
    pub(super) fn publish(&mut self) {
        self.changed = false;
        self.last_snapshot = Instant::now();
        let snapshot = self.snapshot();
        match serde_json::to_string(&snapshot) {
            Ok(line) => drop(self.snapshots.send_replace(Arc::from(line))),
            Err(error) => log::error!("a snapshot could not be written: {error}"),
        }
    }

    fn snapshot(&self) -> Snapshot {
        let links = self.coordinator.measurements().links.into_iter();
        Snapshot {
            now_millis: unix_millis(),
            nodes: self.nodes.present().map(|(id, _)| self.node_view(id)).collect::<Option<_>>().unwrap_or_default(),
            links: links
                .map(|link| LinkView {
                    a: link.a,
                    b: link.b,
                    round_trip_millis: finite(link.round_trip_millis),
                    bytes_per_second: finite(link.bytes_per_second),
                    relayed: self.relayed.contains(&(link.a.min(link.b), link.a.max(link.b))),
                })
                .collect(),
            run: self.run.as_ref().map(|run| self.run_view(run)),
            events: self.events.iter().cloned().collect(),
        }
    }

    fn node_view(&self, id: NodeId) -> Option<NodeView> {
        let node = self.nodes.get(id)?;
        let run = self.run.as_ref().filter(|run| run.is_active());
        let plan = run.and_then(|run| run.stored.plan.as_ref());
        let stage = plan.and_then(|plan| plan.stages.iter().enumerate().find(|(_, stage)| stage.members.iter().any(|m| m.node == id)));
        let slots = plan.and_then(|plan| plan.train.iter().find(|m| m.node == id)).map(|m| (m.slots.start, m.slots.end));
        let keeps = plan.is_some_and(|plan| plan.stores.iter().any(|m| m.node == id));
        let activity = match (&node.progress, run) {
            (Some((text, _)), _) => text.clone(),
            (None, None) => "idle".into(),
            (None, Some(run)) if run.finishing => "idle".into(),
            (None, Some(run)) => match (run.phase, &stage, slots) {
                (Some(PhaseKind::Train), _, None) | (Some(_), None, None) if keeps => "keeps cache entries for the others".into(),
                (_, None, None) if plan.is_some_and(|plan| plan.reasons.iter().any(|reason| reason.node == id)) => "rests, the others are faster without help".into(),
                (_, None, None) => "waits for the next epoch".into(),
                (None, ..) => "gets ready".into(),
                (Some(PhaseKind::Fill | PhaseKind::Refill), Some((at, stage)), _) => {
                    format!("stage {}, {}", at + 1, layers_text(stage.layers.start, stage.layers.end))
                }
                (Some(PhaseKind::Redistribute), ..) => "moves cache entries".into(),
                (Some(PhaseKind::Train), _, Some((start, end))) => format!("trains on {} of every {} samples", end - start, run.stored.spec.batch),
                _ => "waits for the others".into(),
            },
        };
        Some(NodeView {
            node: id,
            name: node.request.name.clone(),
            kind: node.request.kind,
            backend: node.request.backend.clone(),
            gflops: node.request.gflops,
            memory_budget_bytes: node.request.memory_budget_bytes,
            counters: node.counters.clone(),
            activity,
            progress: node.progress.as_ref().map(|(_, fraction)| *fraction),
            layers: stage.map(|(_, stage)| (stage.layers.start, stage.layers.end)),
            train_slots: slots,
        })
    }

    pub(super) fn run_view(&self, run: &CurrentRun) -> RunView {
        RunView {
            info: run.info(),
            plan: run.stored.plan.clone(),
            phase: run.phase,
            epoch: run.epoch,
            step: run.step,
            seconds_left: run.seconds_left,
            losses: run.losses.iter().map(|(at, loss)| LossPoint { at: *at, loss: *loss }).collect(),
            held_out: run.held_out.iter().map(|(at, loss)| HeldOutPoint { at: *at, loss: *loss }).collect(),
            epochs: run.epochs.values().cloned().collect(),
            cache_bytes: self.nodes.present().map(|(_, node)| node.counters.cache_bytes).sum(),
            example: run.stored.example.clone(),
        }
    }
}

/// JSON has no infinity: a link that was not measured shows 0.
fn finite(value: f64) -> f64 {
    if value.is_finite() { value } else { 0.0 }
}
