//! Exact match before and after, and single questions: prompts answered by a node.

use super::{Host, Reply};
use crate::datasets::{Datasets, TokenisedSet};
use crate::error::{Answer, Refusal};
use crate::models::{Model, Models};
use crate::store::StoredRun;
use barycenter_core::coordinator::{Answers, CoordinatorInput, Level};
use barycenter_model::TextTokenizer;
use barycenter_model::dataset::exact_match;
use barycenter_protocol::api::ExampleView;
use barycenter_protocol::control::{GenerateRequest, RunSpec};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Questions of people that are answered at a time.
pub const MAX_ASKS: usize = 8;
/// A person waits no longer for an answer.
pub const ASK_TIMEOUT: Duration = Duration::from_secs(120);
/// The end of a run waits no longer for its held-out answers.
const AFTER_TIMEOUT: Duration = Duration::from_secs(180);
/// A node stops by itself at the end token; beyond the longest expected answer it may go on a little.
const EXTRA_TOKENS: u32 = 8;
/// Longest answer asked for.
pub const MAX_NEW_TOKENS: u32 = 512;

/// Held-out prompts with what is expected.
pub struct Examination {
    /// Decodes answers.
    pub tokenizer: Arc<TextTokenizer>,
    /// Prompts as tokens.
    pub prompts: Vec<Vec<u32>>,
    /// (prompt, expected response).
    pub rows: Vec<(String, String)>,
    /// Longest answer.
    pub max_new_tokens: u32,
}

impl Examination {
    /// The first `count` held-out rows; `None` if there are none.
    pub fn new(model: &Model, set: &TokenisedSet, count: u32) -> Answer<Option<Box<Self>>> {
        let tokenizer = model.tokenizer()?;
        let failed = |error: barycenter_model::ModelError| Refusal::conflict(error.to_string());
        let (mut prompts, mut rows, mut longest) = (Vec::new(), Vec::new(), 0);
        for row in set.held_out_rows().iter().take(count as usize).filter(|row| !row.prompt.is_empty()) {
            prompts.push(tokenizer.encode_prompt(&row.prompt).map_err(failed)?);
            longest = longest.max(tokenizer.encode_response(&row.response).map_err(failed)?.len() as u32);
            rows.push((row.prompt.clone(), row.response.clone()));
        }
        let room = model.config()?.max_positions.saturating_sub(prompts.iter().map(Vec::len).max().unwrap_or(0)) as u32;
        let max_new_tokens = (longest + EXTRA_TOKENS).min(MAX_NEW_TOKENS).min(room.max(1));
        let examination = Self { tokenizer, prompts, rows, max_new_tokens };
        Ok((!examination.rows.is_empty()).then(|| Box::new(examination)))
    }

    /// Answers as text and the share that is exactly right.
    fn mark(&self, answers: &[Vec<u32>]) -> Option<(Vec<String>, f64)> {
        if answers.len() != self.rows.len() {
            return None;
        }
        let texts: Vec<String> = answers.iter().map(|ids| self.tokenizer.decode_response(ids).unwrap_or_default()).collect();
        let right = texts.iter().zip(&self.rows).filter(|(text, (_, expected))| exact_match(text, expected)).count();
        let share = right as f64 / self.rows.len() as f64;
        Some((texts, share))
    }
}

/// Models and data sets, for what is made anew after a restart.
pub struct Material<'a> {
    /// Models.
    pub models: &'a Models,
    /// Data sets.
    pub datasets: &'a Datasets,
}

impl Material<'_> {
    /// The examination of a kept run. Computes: call it where blocking is allowed.
    pub fn examination(&self, run: &StoredRun) -> Answer<Option<Box<Examination>>> {
        let model = self.models.get(&run.info.model)?;
        let set = self.datasets.tokenised(&run.info.dataset, &model)?;
        Examination::new(&model, &set, run.exact_match_rows)
    }
}

/// Who waits for answers.
pub enum Pending {
    /// The current run, about its base model.
    Before,
    /// The current run, which is over but for this.
    After {
        /// Not later.
        deadline: Instant,
    },
    /// A person.
    Ask {
        /// To whom.
        reply: Reply<(Answers, String)>,
        /// Not later.
        deadline: Instant,
    },
}

impl Host {
    /// Has prompts answered; the answer comes to `generated`.
    pub fn generate(&mut self, mut request: GenerateRequest, memory_bytes: u64, pending: Pending) {
        self.last_request += 1;
        request.request = self.last_request;
        self.pending.insert(self.last_request, pending);
        self.tell(CoordinatorInput::Generate { request: Box::new(request), memory_bytes });
    }

    /// Asks the held-out prompts of the current run.
    pub fn examine(&mut self, base: bool, tuned: bool) {
        let Some(run) = self.run.as_ref() else { return };
        let Some(examination) = run.examination.as_ref() else { return };
        let request = GenerateRequest {
            request: 0,
            spec: lean(&run.stored.spec),
            run: tuned.then_some(run.stored.info.run),
            prompts: examination.prompts.clone(),
            max_new_tokens: examination.max_new_tokens,
            base,
            tuned,
        };
        let memory = run.generate_memory_bytes;
        let pending = if tuned { Pending::After { deadline: Instant::now() + AFTER_TIMEOUT } } else { Pending::Before };
        self.generate(request, memory, pending);
    }

    /// Answers have come, or a sentence why not.
    pub fn generated(&mut self, request: u64, result: Result<Answers, String>) {
        match self.pending.remove(&request) {
            None => log::debug!("answers to request {request} came late"),
            Some(Pending::Ask { reply, .. }) => {
                let name = |answers: &Answers| self.nodes.get(answers.node).map_or_else(|| format!("device {}", answers.node), |n| n.request.name.clone());
                drop(reply.send(result.map(|answers| { let name = name(&answers); (answers, name) }).map_err(Refusal::conflict)));
            }
            Some(Pending::Before) => self.marked(result, false),
            Some(Pending::After { .. }) => {
                self.marked(result, true);
                self.finish();
            }
        }
    }

    fn marked(&mut self, result: Result<Answers, String>, is_after: bool) {
        let answers = match result {
            Ok(answers) => answers,
            Err(reason) if is_after => {
                self.event(Level::Warning, format!("The held-out prompts were not answered: {reason}."));
                return;
            }
            // They are asked again at the end.
            Err(reason) => {
                self.event(Level::Info, format!("The base model's answers come later: {reason}."));
                return;
            }
        };
        let Some(run) = self.run.as_mut() else { return };
        let Some(examination) = run.examination.as_ref() else { return };
        let base = answers.base.as_deref().and_then(|a| examination.mark(a));
        let tuned = answers.tuned.as_deref().and_then(|a| examination.mark(a));
        let mut sentences = Vec::new();
        if let Some((texts, share)) = &base {
            run.stored.info.exact_match_before = Some(*share);
            sentences.push(format!("The base model answers {:.0} % of the held-out prompts exactly.", share * 100.0));
            let (prompt, expected) = examination.rows[0].clone();
            run.stored.example = Some(ExampleView { prompt, expected, base: texts[0].clone(), tuned: None });
        }
        if let Some((texts, share)) = &tuned {
            run.stored.info.exact_match_after = Some(*share);
            sentences.push(format!("The tuned model answers {:.0} % of the held-out prompts exactly.", share * 100.0));
            if let Some(example) = &mut run.stored.example {
                example.tuned = Some(texts[0].clone());
            }
        }
        self.keep_run();
        for sentence in sentences {
            self.event(Level::Good, sentence);
        }
    }

    /// Gives up what has waited too long.
    pub fn expire(&mut self, now: Instant) {
        let late = |pending: &Pending| match pending {
            Pending::Before => false,
            Pending::After { deadline } | Pending::Ask { deadline, .. } => *deadline <= now,
        };
        let over: Vec<u64> = self.pending.iter().filter(|(_, pending)| late(pending)).map(|(request, _)| *request).collect();
        for request in over {
            self.generated(request, Err("no device answered in time, ask again when the devices have less to do".into()));
        }
    }
}

/// Without the sample sizes, which answering does not need.
pub fn lean(spec: &RunSpec) -> RunSpec {
    RunSpec { sample_sizes: Vec::new(), ..spec.clone() }
}
