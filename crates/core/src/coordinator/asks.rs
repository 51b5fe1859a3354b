//! Prompts on their way to a node that can hold the whole model, and again to another if that one leaves or fails.

use super::swarm::Swarm;
use super::{Answers, CoordinatorOutput};
use barycenter_protocol::NodeId;
use barycenter_protocol::control::{GenerateRequest, ToNode};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

#[derive(Debug)]
struct Ask {
    request: Box<GenerateRequest>,
    memory_bytes: u64,
    node: Option<NodeId>,
    tried: BTreeSet<NodeId>,
    problem: String,
}

#[derive(Debug, Default)]
pub(super) struct Asks(BTreeMap<u64, Ask>);

impl Asks {
    pub fn add(&mut self, request: Box<GenerateRequest>, memory_bytes: u64, swarm: &Swarm, out: &mut VecDeque<CoordinatorOutput>) {
        let number = request.request;
        self.0.insert(number, Ask { request, memory_bytes, node: None, tried: BTreeSet::new(), problem: String::new() });
        self.place(number, swarm, out);
    }

    /// Gives it to the fastest node with enough memory that has not been tried.
    fn place(&mut self, number: u64, swarm: &Swarm, out: &mut VecDeque<CoordinatorOutput>) {
        let Some(ask) = self.0.get_mut(&number) else { return };
        let fits = swarm.members.values().map(|m| &m.profile).filter(|p| p.memory_budget_bytes >= ask.memory_bytes && !ask.tried.contains(&p.node));
        match fits.max_by(|a, b| a.gflops.total_cmp(&b.gflops).then(b.node.cmp(&a.node))) {
            Some(profile) => {
                ask.node = Some(profile.node);
                ask.tried.insert(profile.node);
                out.push_back(CoordinatorOutput::ToNode { node: profile.node, message: ToNode::Generate(ask.request.clone()) });
            }
            None => {
                let sentence = if swarm.members.is_empty() {
                    "no device has joined that could answer: open the join page on one, or start `barycenter node`".to_owned()
                } else if ask.problem.is_empty() {
                    format!("answering takes {} of memory on one device, and none that has joined offers that: join a device with more memory", crate::planner::human_bytes(ask.memory_bytes))
                } else {
                    std::mem::take(&mut ask.problem)
                };
                self.0.remove(&number);
                out.push_back(CoordinatorOutput::Generated { request: number, result: Err(sentence) });
            }
        }
    }

    pub fn done(&mut self, number: u64, answers: Answers, out: &mut VecDeque<CoordinatorOutput>) {
        if self.0.get(&number).is_some_and(|a| a.node == Some(answers.node)) {
            self.0.remove(&number);
            out.push_back(CoordinatorOutput::Generated { request: number, result: Ok(answers) });
        }
    }

    pub fn failed(&mut self, node: NodeId, number: u64, reason: String, swarm: &Swarm, out: &mut VecDeque<CoordinatorOutput>) {
        if let Some(ask) = self.0.get_mut(&number).filter(|a| a.node == Some(node)) {
            ask.problem = reason;
            self.place(number, swarm, out);
        }
    }

    /// A node is gone (and no member any more).
    pub fn left(&mut self, node: NodeId, swarm: &Swarm, out: &mut VecDeque<CoordinatorOutput>) {
        let numbers: Vec<_> = self.0.iter().filter(|(_, a)| a.node == Some(node)).map(|(n, _)| *n).collect();
        for number in numbers {
            self.failed(node, number, "the device that was asked left before it had answered: ask again".into(), swarm, out);
        }
    }
}
