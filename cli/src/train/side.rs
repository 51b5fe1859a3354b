//! What a side network of version 1 looks like, from the options.

use super::tuned::Cache;
use barycenter_engine::cache_entry::CacheDtype;
use barycenter_engine::chains::ChainsConfig;
use barycenter_engine::side::{Fusion, SideConfig};
use barycenter_model::ModelConfig;

/// Which outputs of frozen layers a side network reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Taps {
    /// The embedding's and every layer's.
    All,
    /// The embedding's and every second layer's, counted back from the last.
    #[default]
    Second,
    /// The embedding's and every fourth layer's, counted back from the last.
    Fourth,
}

/// How they join it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Join {
    /// Through a trained gate.
    #[default]
    Gate,
    /// As a sum.
    Sum,
}

/// Options of parallel adapters.
#[derive(clap::Args)]
pub struct SideOptions {
    /// Parallel adapters: which frozen layers they read; fewer make the cache and the epochs smaller (default: second).
    #[arg(long)]
    taps: Option<Taps>,
    /// Parallel adapters: how what is read joins the side network (default: gate).
    #[arg(long)]
    fusion: Option<Join>,
    /// Parallel adapters: what divides the gates before the sigmoid; smaller ones move faster (default: 0.1).
    #[arg(long)]
    gate_temperature: Option<f32>,
}

/// Divides the gates unless another number is given.
const GATE_TEMPERATURE: f32 = 0.1;

impl SideOptions {
    /// Which of them were given, by their names.
    pub(super) fn given(&self) -> [(bool, &'static str); 3] {
        [(self.taps.is_some(), "--taps"), (self.fusion.is_some(), "--fusion"), (self.gate_temperature.is_some(), "--gate-temperature")]
    }

    fn fusion(&self) -> anyhow::Result<Fusion> {
        let temperature = self.gate_temperature.unwrap_or(GATE_TEMPERATURE);
        anyhow::ensure!(temperature.is_finite() && temperature > 0.0, "--gate-temperature must be a number above 0");
        match self.fusion.unwrap_or_default() {
            Join::Gate => Ok(Fusion::Gate { temperature }),
            Join::Sum => {
                anyhow::ensure!(self.gate_temperature.is_none(), "--gate-temperature is of gates, and --fusion sum has none: leave one of them out");
                Ok(Fusion::Sum)
            }
        }
    }

    /// Every so many-th layer is read.
    pub(super) fn tap_every(&self) -> u32 {
        match self.taps.unwrap_or_default() {
            Taps::All => 1,
            Taps::Second => 2,
            Taps::Fourth => 4,
        }
    }

    fn taps(&self, layers: usize) -> Vec<usize> {
        SideConfig::thinned_taps(layers, self.tap_every() as usize)
    }

    /// How what is read is kept; `None`: not at all.
    pub(super) fn cache_dtype(asked: Option<Cache>) -> Option<CacheDtype> {
        asked.map_or(Some(CacheDtype::Int8), Cache::taps)
    }

    /// Beside a decoder.
    pub(super) fn side(&self, reduction: u32, layers: usize) -> anyhow::Result<SideConfig> {
        Ok(SideConfig { reduction: reduction as usize, fusion: self.fusion()?, taps: self.taps(layers) })
    }

    /// Beside all stacks of a model.
    pub(super) fn chains(&self, reduction: u32, model: &ModelConfig) -> anyhow::Result<ChainsConfig> {
        Ok(ChainsConfig {
            reduction: reduction as usize,
            fusion: self.fusion()?,
            taps: Some(self.taps(model.layers)),
            encoder_taps: model.encoder.as_ref().map(|encoder| self.taps(encoder.layers)),
        })
    }
}
