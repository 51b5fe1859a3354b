//! Options that mean nothing together are refused, so that nobody takes them for heeded.

use super::data::Task;
use super::tuned::Cache;
use super::{Method, Options};
use anyhow::{Result, ensure};
use clap::ValueEnum;

impl Options {
    /// Refuses options that the method, or what the rows are, would pass over.
    pub(super) fn check_combination(&self, task: Task) -> Result<()> {
        let Self { method, side, sentences, .. } = self;
        let of_methods = |given: bool, option: &str, methods: &[Method]| {
            ensure!(!given || methods.contains(method), "{option} is not for --method {}: choose --method {}, or leave it out", name(method), methods.iter().map(name).collect::<Vec<_>>().join(" or "));
            Ok(())
        };
        let lora = [(self.rank.is_some(), "--rank"), (self.alpha.is_some(), "--alpha"), (!self.targets.is_empty(), "--targets")];
        for (given, option) in lora.into_iter().chain([(self.resume_adapter.is_some(), "--resume-adapter")]) {
            of_methods(given, option, &[Method::Lora])?;
        }
        of_methods(self.last_layers.is_some(), "--last-layers", &[Method::Lora, Method::Adapters])?;
        for (given, option) in lora.into_iter().chain([(self.last_layers.is_some(), "--last-layers")]) {
            ensure!(!given || self.resume_adapter.is_none(), "{option} does not go with --resume-adapter, whose folder says it: leave one of them out");
        }
        for (given, option) in side.given() {
            of_methods(given, option, &[Method::ParallelAdapter])?;
            ensure!(!given || !self.is_version_2(task), "{option} is of parallel adapters, version 1: add --adapter-version 1, or leave it out");
        }
        let is_cached = match method {
            Method::ParallelAdapter => self.cache != Some(Cache::None),
            Method::Lora | Method::Adapters => self.cache.is_some_and(|cache| cache != Cache::None),
            Method::Full => false,
        };
        ensure!(*method != Method::Full || self.cache.is_none_or(|cache| cache == Cache::None), "--cache keeps what frozen layers give, and full fine-tuning has none: leave it out");
        ensure!(is_cached || self.cache_dir.is_none(), "--cache-dir is for a cache, and nothing is cached here: add --cache, or leave it out");
        for (given, option) in sentences.given() {
            ensure!(!given || matches!(task, Task::Classify | Task::Regress), "{option} is for --task classify or regress, and these rows are of --task {}: leave it out", name(&task));
        }
        Ok(())
    }
}

/// As the command line says it.
fn name(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
}
