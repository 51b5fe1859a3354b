//! Which back end computes.

use crate::backend::BackendError;
use crate::cpu::CpuBackend;
use crate::gpu::{GpuBackend, Tunings};
use crate::tensor::Device;
use std::rc::Rc;

/// What was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// WebGPU where there is a real adapter, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// WebGPU, even by a software adapter.
    Gpu,
}

/// Opens the back end; its description says why it was chosen.
///
/// # Errors
/// Only if [`BackendChoice::Gpu`] was asked for and there is no adapter: `Auto` falls back to the CPU.
pub async fn create_backend(choice: BackendChoice) -> Result<Device, BackendError> {
    Ok(open(choice).await?.device())
}

/// [`create_backend`], and a graphics card's kernels tuned: as `known` says, or else by timing them, which is added to
/// `known` ([`GpuBackend::tune`]). Answers whether that was done, and `known` is worth keeping.
///
/// # Errors
/// As [`create_backend`], and if the device goes away meanwhile.
pub async fn create_tuned_backend(
    choice: BackendChoice,
    known: &mut Tunings,
    now_millis: &dyn Fn() -> f64,
) -> Result<(Device, bool), BackendError> {
    let opened = open(choice).await?;
    let measured = match &opened {
        Opened::Cpu(_) => false,
        Opened::Gpu(gpu) => gpu.tune(known, now_millis).await?,
    };
    Ok((opened.device(), measured))
}

enum Opened {
    Cpu(CpuBackend),
    Gpu(Box<GpuBackend>),
}

impl Opened {
    fn device(self) -> Device {
        match self {
            Self::Cpu(cpu) => Rc::new(cpu),
            Self::Gpu(gpu) => Rc::new(*gpu),
        }
    }
}

async fn open(choice: BackendChoice) -> Result<Opened, BackendError> {
    let gpu = |mut gpu: GpuBackend, reason: &str| {
        gpu.set_reason(reason);
        Opened::Gpu(Box::new(gpu))
    };
    match choice {
        BackendChoice::Cpu => Ok(Opened::Cpu(CpuBackend::new("the CPU was asked for"))),
        BackendChoice::Gpu => {
            let opened = GpuBackend::create(false).await?;
            let software = opened.is_software();
            Ok(gpu(opened, if software { "WebGPU was asked for; the adapter is a software one" } else { "WebGPU was asked for" }))
        }
        BackendChoice::Auto => match GpuBackend::create(false).await {
            Ok(opened) if opened.is_software() => {
                let reason = "the only WebGPU adapter is a software one, which is slower than the CPU";
                Ok(Opened::Cpu(CpuBackend::new(reason)))
            }
            Ok(opened) => Ok(gpu(opened, "a WebGPU adapter was found")),
            Err(error) => Ok(Opened::Cpu(CpuBackend::new(error.to_string()))),
        },
    }
}
