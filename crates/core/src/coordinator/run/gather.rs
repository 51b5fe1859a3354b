//! From no plan in force to one that every node of it gets ready for.

use super::{Context, Fresh, Run, State, Weighing, cache};
use crate::coordinator::{Level, RunProgress};
use crate::planner::{self, FillWish, PlanOptions, linked_subset};
use barycenter_protocol::NodeId;
use barycenter_protocol::api::RunState;
use barycenter_protocol::control::{Assignment, Measurements, ToNode};
use barycenter_protocol::plan::{FillMode, Plan};
use std::collections::BTreeSet;

impl Run {
    /// Gives up the generation in force; a new one starts from the newest checkpoint as soon as there is a plan.
    pub(super) fn again(&mut self, ctx: &mut Context, why: String) {
        ctx.event(Level::Warning, format!("{}.", capitalised(&why)));
        self.abort(ctx);
        self.regenerate(ctx);
    }

    pub(super) fn abort(&mut self, ctx: &mut Context) {
        self.end_rehearsal(ctx);
        self.plan = None;
        for node in std::mem::take(&mut self.participants) {
            ctx.tell(node, ToNode::Abort { generation: self.generation });
        }
    }

    pub(super) fn regenerate(&mut self, ctx: &mut Context) {
        self.fresh = Fresh::Changed;
        self.hopeless = None;
        self.state = State::Gathering { since: None };
        self.try_plan(ctx);
    }

    pub(super) fn try_plan(&mut self, ctx: &mut Context) {
        let State::Gathering { since } = &mut self.state else { return };
        let nodes = ctx.swarm.members.keys().filter(|n| !self.excluded.get(n).is_some_and(|e| e.holds(ctx.now))).count() as u32;
        let wanted = if self.fresh == Fresh::Start { self.start.wait_for_nodes.max(1) } else { 1 };
        if nodes < wanted {
            *since = None;
            let failed = self.excluded.values().next().map(|e| e.reason.clone());
            let note = match failed {
                Some(reason) => reason,
                None if wanted > 1 => format!("{nodes} of {wanted} devices are here"),
                None => "no device is here: open the invitation's address on one".into(),
            };
            self.show(ctx, RunState::Waiting, note);
            return;
        }
        let since = *since.get_or_insert(ctx.now);
        let linked = ctx.now >= since + ctx.patience.links || ctx.swarm.links.all_up(|n| self.takes_part(ctx.now, n));
        let ready = match self.fresh {
            Fresh::Start => linked,
            Fresh::Restored { nodes: before } => linked && (nodes >= before || ctx.now >= since + ctx.patience.restore),
            Fresh::Changed => true,
        };
        if !ready {
            self.show(ctx, RunState::Waiting, "devices are making their links");
            return;
        }
        let left_out = ctx.swarm.members.len() as u64 - u64::from(nodes);
        let situation = (ctx.swarm.version, left_out);
        if self.hopeless == Some(situation) {
            return;
        }
        match self.plan_taken_over(ctx).map_or_else(|| self.make_plan(ctx, self.start.plan.fill), Ok) {
            Ok((plan, considered)) => self.prepare(ctx, plan, considered),
            Err(error) => {
                self.hopeless = Some(situation);
                self.show(ctx, RunState::Waiting, error.to_string());
            }
        }
    }

    pub(super) fn make_plan(&self, ctx: &Context, fill: FillWish) -> Result<(Plan, BTreeSet<NodeId>), planner::PlanError> {
        let options = PlanOptions { fill, ..self.start.plan.clone() };
        let measured = self.corrected(self.linked(ctx));
        let considered = measured.devices.iter().map(|d| d.node).collect();
        Ok((planner::plan(&self.start.cost, &measured, self.start.spec.batch, &options)?, considered))
    }

    /// What is known of the devices that may take part and are linked with one another.
    pub(super) fn linked(&self, ctx: &Context) -> Measurements {
        linked_subset(&ctx.swarm.measurements(|n| self.takes_part(ctx.now, n)))
    }

    fn prepare(&mut self, ctx: &mut Context, plan: Plan, considered: BTreeSet<NodeId>) {
        let at = self.position();
        if at.step == 0 && at.epoch > 0 {
            self.close_epoch(ctx, at.epoch - 1);
        }
        for (at, sums) in self.books.rewind(at.epoch, at.step) {
            self.show_loss(ctx, at, sums);
        }
        self.books.forget_rates();
        self.stall.clear();
        let mut nodes: BTreeSet<_> = plan.nodes().into_iter().collect();
        self.nodes_before = nodes.len() as u32;
        nodes.extend(self.donors(ctx, &nodes));
        self.leaving.begins_anew();
        for node in self.participants.difference(&nodes) {
            ctx.tell(*node, ToNode::Abort { generation: self.generation });
        }
        if let Some(rehearsal) = self.rehearsal.take() {
            for node in rehearsal.pending.into_keys().chain(rehearsal.ready).filter(|n| !nodes.contains(n)) {
                ctx.tell(node, ToNode::Abort { generation: rehearsal.generation });
            }
        }
        self.used.0 += 1;
        self.generation = self.used;
        self.fill_pace.expect(plan.fill_step_seconds);
        self.train_pace.expect(plan.train_step_seconds);
        self.weighing = Weighing::default();
        self.last_step = None;
        self.prepare_began = Some(ctx.now);
        let known: Vec<_> = nodes.iter().filter_map(|n| self.holdings.get(n)).collect();
        let lacks = !cache::missing(&self.start.spec, known.iter().copied()).is_empty();
        // a forward-only fill is a refill of all that is missing; then epoch 0 is trained from the cache like the others
        let fills_forward_only = plan.fill == FillMode::ForwardOnly && at.epoch == 0 && lacks;
        self.fills = at.epoch == 0 && lacks && !fills_forward_only;
        self.needs_backbone = self.fills || fills_forward_only || self.force_backbone || (!known.is_empty() && lacks);
        self.hopeless = None;
        self.plan = Some(plan.clone());
        self.considered = considered;
        self.participants = nodes.clone();
        self.state = State::Preparing { pending: nodes.iter().map(|n| (*n, ctx.now)).collect() };
        self.persist(ctx);
        ctx.progress(self.id(), RunProgress::Planned { generation: self.generation, plan: plan.clone() });
        self.show(ctx, RunState::Preparing, "");
        let mut plan = plan;
        if self.needs_backbone && !self.fills {
            // this generation only refills: no node holds the whole adapter beside its frozen layers, which fit without it
            plan.train.clear();
        }
        let assignment = Assignment {
            run: self.id(),
            generation: self.generation,
            spec: self.start.spec.clone(),
            plan,
            checkpoint: self.checkpoint,
            needs_backbone: self.needs_backbone,
            fills: self.fills,
        };
        for node in nodes {
            ctx.tell(node, ToNode::Prepare(Box::new(assignment.clone())));
        }
    }
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
