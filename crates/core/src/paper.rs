//! *Pluto and Charon* (PAC, ICPP 2024) reproduced: its models, its planner, its testbed, its tables and figures.
//!
//! Nothing here plans a household; that is [`crate::planner`]. This module answers one question: do the paper's own
//! equations and a model of its rack of Jetson Nanos give the paper's own numbers? [`experiments`] computes every cell,
//! [`published`] holds what the paper prints, and [`calibration`] lists each fitted constant with the cells it was fitted to.
//! Only cells of the systems that PAC is compared with may be fitted to; PAC's cells are predictions.

pub mod accounting;
pub mod calibration;
pub mod experiments;
pub mod planner;
pub mod profile;
pub mod published;
pub mod summary;
pub mod timing;

#[cfg(test)]
mod tests;

/// The three backbones of the paper.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Model {
    /// T5-Base.
    T5Base,
    /// BART-Large.
    BartLarge,
    /// T5-Large.
    T5Large,
}

impl Model {
    /// In the order of the paper's tables.
    pub const ALL: [Self; 3] = [Self::T5Base, Self::BartLarge, Self::T5Large];

    /// As the paper writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::T5Base => "T5-Base",
            Self::BartLarge => "BART-Large",
            Self::T5Large => "T5-Large",
        }
    }
}

/// What is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Technique {
    /// Every parameter.
    Full,
    /// Houlsby adapters: two bottlenecks of width d/16 per layer.
    Adapters,
    /// LoRA of rank 32 on q and v of every attention.
    Lora,
    /// The paper's parallel adapters, k = 8.
    ParallelAdapters,
}

impl Technique {
    /// All four.
    pub const ALL: [Self; 4] = [Self::Full, Self::Adapters, Self::Lora, Self::ParallelAdapters];

    /// As the paper writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Full => "Full",
            Self::Adapters => "Adapters",
            Self::Lora => "LoRA",
            Self::ParallelAdapters => "P.A.",
        }
    }
}

/// How devices work together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum System {
    /// One device.
    Standalone,
    /// Pure pipeline: a stage per device.
    EcoFl,
    /// Pure data parallelism: one stage that every device holds.
    Eddl,
    /// The paper's: stages held by groups in the first epoch, data parallelism from the cache afterwards.
    Pac,
}

impl System {
    /// As the paper writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Standalone => "Standalone",
            Self::EcoFl => "Eco-FL",
            Self::Eddl => "EDDL",
            Self::Pac => "PAC",
        }
    }
}

/// The four GLUE tasks of Table 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Task {
    /// MRPC, three epochs.
    Mrpc,
    /// STS-B, three epochs.
    StsB,
    /// SST-2, one epoch.
    Sst2,
    /// QNLI, one epoch.
    Qnli,
}

impl Task {
    /// In the order of Table 2.
    pub const ALL: [Self; 4] = [Self::Mrpc, Self::StsB, Self::Sst2, Self::Qnli];

    /// As the paper writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mrpc => "MRPC",
            Self::StsB => "STS-B",
            Self::Sst2 => "SST-2",
            Self::Qnli => "QNLI",
        }
    }

    /// Training samples (GLUE; all rows of Table 2 agree with them).
    pub fn samples(self) -> f64 {
        match self {
            Self::Mrpc => 3668.0,
            Self::StsB => 5749.0,
            Self::Sst2 => 67349.0,
            Self::Qnli => 104_743.0,
        }
    }

    /// Epochs of Table 2 (§6.1).
    pub fn epochs(self) -> u32 {
        match self {
            Self::Mrpc | Self::StsB => 3,
            Self::Sst2 | Self::Qnli => 1,
        }
    }
}
