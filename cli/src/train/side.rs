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
    /// Parallel adapters: which frozen layers they read; fewer make the cache and the epochs smaller.
    #[arg(long, default_value = "second")]
    taps: Taps,
    /// Parallel adapters: how what is read joins the side network.
    #[arg(long, default_value = "gate")]
    fusion: Join,
    /// Parallel adapters: what divides the gates before the sigmoid; smaller ones move faster.
    #[arg(long, default_value_t = 0.1)]
    gate_temperature: f32,
}

impl SideOptions {
    fn fusion(&self) -> anyhow::Result<Fusion> {
        let temperature = self.gate_temperature;
        anyhow::ensure!(temperature.is_finite() && temperature > 0.0, "--gate-temperature must be a number above 0");
        Ok(match self.fusion {
            Join::Gate => Fusion::Gate { temperature },
            Join::Sum => Fusion::Sum,
        })
    }

    /// Every so many-th layer is read.
    pub(super) fn tap_every(&self) -> u32 {
        match self.taps {
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
