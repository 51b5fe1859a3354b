//! Which back end computes.

use crate::backend::BackendError;
use crate::cpu::CpuBackend;
use crate::gpu::GpuBackend;
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
    match choice {
        BackendChoice::Cpu => Ok(Rc::new(CpuBackend::new("the CPU was asked for"))),
        BackendChoice::Gpu => {
            let mut gpu = GpuBackend::create(false).await?;
            gpu.set_reason(if gpu.is_software() { "WebGPU was asked for; the adapter is a software one" } else { "WebGPU was asked for" });
            Ok(Rc::new(gpu))
        }
        BackendChoice::Auto => match GpuBackend::create(false).await {
            Ok(gpu) if gpu.is_software() => {
                let reason = "the only WebGPU adapter is a software one, which is slower than the CPU";
                Ok(Rc::new(CpuBackend::new(reason)))
            }
            Ok(mut gpu) => {
                gpu.set_reason("a WebGPU adapter was found");
                Ok(Rc::new(gpu))
            }
            Err(error) => Ok(Rc::new(CpuBackend::new(error.to_string()))),
        },
    }
}
