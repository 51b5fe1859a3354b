//! The WebGPU back end: operations recorded into command buffers, in the browser and natively.
//!
//! `plan` turns an operation into dispatches, `recorder` records them, `pool` owns the buffers, and `poll_*` is the
//! one difference between browser and native: who drives the device while a read is awaited. `tile` lists the forms of a
//! matrix product, of which `tuning` finds a device's fastest.

mod plan;
#[cfg(not(target_arch = "wasm32"))]
#[path = "gpu/poll_native.rs"]
mod poll;
#[cfg(target_arch = "wasm32")]
#[path = "gpu/poll_web.rs"]
mod poll;
mod pool;
mod recorder;
mod tile;
mod tuning;

pub(crate) use plan::MAX_HEAD_DIM;
pub use tile::{Tile, Tuning};
pub use tuning::Tunings;

use crate::backend::{Backend, BackendError, BackendInfo, BackendKind, MemoryUse};
use crate::op::{BufferId, Op};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::LocalBoxFuture;
use poll::Poller;
use recorder::Recorder;
use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex, PoisonError};

/// Names under which software adapters describe themselves where the adapter type does not say it.
const SOFTWARE_NAMES: [&str; 5] = ["swiftshader", "llvmpipe", "lavapipe", "basic render", "software"];

const IN_BROWSER: bool = cfg!(target_arch = "wasm32");

/// Executes operations with WGSL kernels on a WebGPU device.
pub struct GpuBackend {
    info: BackendInfo,
    software: bool,
    /// Name, driver and interface of the adapter: what a measured tuning holds for.
    adapter: String,
    tuning: Cell<Tuning>,
    recorder: RefCell<Recorder>,
    poller: Poller,
    failure: Failure,
    limit_bytes: u64,
    too_large: Cell<Option<u64>>,
}

/// The first thing that went wrong on the device; set from its callbacks, read by every `read`.
#[derive(Clone, Default)]
struct Failure(Arc<Mutex<Option<String>>>);

impl Failure {
    fn set(&self, message: String) {
        let mut first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(message);
    }

    fn get(&self) -> Option<BackendError> {
        let first = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        first.as_ref().map(|message| BackendError::DeviceLost(format!("WebGPU ({message})")))
    }
}

fn new_instance() -> wgpu::Instance {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::PRIMARY;
    wgpu::Instance::new(descriptor)
}

/// The one instance of a native process. It is never destroyed: with the last instance the Vulkan loader unloads the
/// driver, and lavapipe's threads may still run in it (seen as a crash at exit, once in some twenty runs).
#[cfg(not(target_arch = "wasm32"))]
fn process_instance() -> &'static wgpu::Instance {
    static INSTANCE: std::sync::LazyLock<wgpu::Instance> = std::sync::LazyLock::new(new_instance);
    &INSTANCE
}

impl GpuBackend {
    /// Opens the best adapter, or, with `force_fallback`, a software one.
    ///
    /// # Errors
    /// [`BackendError::NoAdapter`] if there is no adapter, if it lacks what the kernels need (WebGPU's default
    /// limits), or if it refuses a device.
    pub async fn create(force_fallback: bool) -> Result<Self, BackendError> {
        #[cfg(not(target_arch = "wasm32"))]
        let instance = process_instance();
        #[cfg(target_arch = "wasm32")]
        let instance = new_instance();
        let adapter = instance
            .request_adapter(&wgpu::RequestAdapterOptions {
                power_preference: wgpu::PowerPreference::HighPerformance,
                force_fallback_adapter: force_fallback,
                ..Default::default()
            })
            .await
            .map_err(|error| BackendError::NoAdapter(format!("turn on hardware acceleration or use the CPU ({error})")))?;
        let limits = wanted_limits(&adapter.limits())?;
        let limit_bytes = limits.max_storage_buffer_binding_size.min(limits.max_buffer_size);
        let (device, queue) = adapter
            .request_device(&wgpu::DeviceDescriptor {
                label: Some("barycenter"),
                required_features: wgpu::Features::empty(),
                required_limits: limits,
                ..Default::default()
            })
            .await
            .map_err(|error| BackendError::NoAdapter(format!("the adapter gave no device, use the CPU ({error})")))?;

        let failure = Failure::default();
        let lost = failure.clone();
        device.set_device_lost_callback(move |reason, message| lost.set(format!("{reason:?} {message}")));
        let faulty = failure.clone();
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
            log::error!("WebGPU: {error}");
            faulty.set(error.to_string());
        }));

        let adapter_info = adapter.get_info();
        let software = is_software(&adapter_info);
        let kind = if software { "a software WebGPU adapter" } else { "a WebGPU adapter" };
        let info = BackendInfo {
            kind: BackendKind::Webgpu,
            description: describe(&adapter_info),
            reason: format!("{kind} was found"),
        };
        let poller = Poller::new(&device);
        let recorder = RefCell::new(Recorder::new(device, queue, (limit_bytes / 4) as usize));
        let identity = identity(&adapter_info, &adapter.limits());
        let tuning = Cell::new(Tuning::unmeasured(software && IN_BROWSER));
        Ok(Self { info, software, adapter: identity, tuning, recorder, poller, failure, limit_bytes, too_large: Cell::new(None) })
    }

    /// Whether the adapter computes on the processor, 15 to 100 times slower there than the CPU back end.
    pub fn is_software(&self) -> bool {
        self.software
    }

    /// Whether the adapter is a browser's software one; see [`Tile`].
    fn is_emulated(&self) -> bool {
        self.software && IN_BROWSER
    }

    /// The forms in which products are made.
    pub fn tuning(&self) -> Tuning {
        self.tuning.get()
    }

    /// Makes products in these forms from now on.
    pub fn set_tuning(&self, tuning: Tuning) {
        self.tuning.set(tuning);
    }

    /// Says why this back end was chosen.
    pub fn set_reason(&mut self, reason: impl Into<String>) {
        self.info.reason = reason.into();
    }

    /// Destroys the device as a driver reset would: every later `read` fails.
    pub fn lose_device(&self) {
        self.recorder.borrow().device.destroy();
        self.failure.set("destroyed on request".to_string());
    }

    fn error(&self) -> Option<BackendError> {
        let too_large = self.too_large.get().map(|wanted_bytes| BackendError::BufferTooLarge { wanted_bytes, limit_bytes: self.limit_bytes });
        too_large.or_else(|| self.failure.get())
    }
}

impl Backend for GpuBackend {
    fn info(&self) -> &BackendInfo {
        &self.info
    }

    /// A buffer over the device's limit is replaced by a small one, and every later `read` says so.
    fn allocate(&self, words: usize) -> BufferId {
        let wanted_bytes = 4 * words as u64;
        if wanted_bytes > self.limit_bytes {
            self.too_large.set(Some(wanted_bytes));
            return self.recorder.borrow_mut().allocate(1);
        }
        self.recorder.borrow_mut().allocate(words)
    }

    fn free(&self, buffer: BufferId) {
        self.recorder.borrow_mut().pool.free(buffer);
    }

    fn write(&self, buffer: BufferId, first_word: usize, words: &[u32]) {
        if !words.is_empty() && self.error().is_none() {
            self.recorder.borrow_mut().write(buffer, first_word, words);
        }
    }

    fn read(&self, buffer: BufferId, first_word: usize, len: usize) -> LocalBoxFuture<'_, Result<Vec<u32>, BackendError>> {
        if let Some(error) = self.error() {
            return async { Err(error) }.boxed_local();
        }
        if len == 0 {
            return async { Ok(Vec::new()) }.boxed_local();
        }
        // Recorded now, not when the future is first polled: later operations must not be seen.
        let (staging, submission) = self.recorder.borrow_mut().stage(buffer, first_word, len);
        let (sender, receiver) = oneshot::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The reader may have given up.
            let _ = sender.send(result);
        });
        if let Some(submission) = submission {
            self.poller.wait_for(submission);
        }
        async move {
            let lost = || self.error().unwrap_or_else(|| BackendError::DeviceLost("WebGPU".to_string()));
            receiver.await.map_err(|_| lost())?.map_err(|_| lost())?;
            if let Some(error) = self.error() {
                return Err(error);
            }
            let words = {
                let view = staging.get_mapped_range(..).map_err(|_| lost())?;
                let mut words = vec![0u32; len];
                bytemuck::cast_slice_mut::<u32, u8>(&mut words).copy_from_slice(&view);
                words
            };
            staging.unmap();
            Ok(words)
        }
        .boxed_local()
    }

    fn run(&self, op: Op) {
        if self.error().is_none() {
            self.recorder.borrow_mut().run(&plan::plan(&op, self.tuning.get()));
        }
    }

    fn submit(&self) {
        self.recorder.borrow_mut().submit();
    }

    fn memory(&self) -> MemoryUse {
        self.recorder.borrow().pool.memory()
    }

    fn reset_peak(&self) {
        self.recorder.borrow_mut().reset_peak();
    }
}

/// WebGPU's default limits, lowered to the adapter's where the kernels do not need them.
fn wanted_limits(offered: &wgpu::Limits) -> Result<wgpu::Limits, BackendError> {
    let limits = wgpu::Limits::default().or_worse_values_from(offered);
    let needed = [
        ("storage buffers per stage", limits.max_storage_buffers_per_shader_stage, 8),
        ("invocations per workgroup", limits.max_compute_invocations_per_workgroup, 256),
        ("bytes of workgroup memory", limits.max_compute_workgroup_storage_size, 16 << 10),
        ("workgroups per dimension", limits.max_compute_workgroups_per_dimension, 65_535),
    ];
    for (what, has, needs) in needed {
        if has < needs {
            return Err(BackendError::NoAdapter(format!("the adapter allows {has} {what}, the kernels need {needs}: use the CPU")));
        }
    }
    Ok(limits)
}

fn is_software(info: &wgpu::AdapterInfo) -> bool {
    let name = info.name.to_lowercase();
    info.device_type == wgpu::DeviceType::Cpu || SOFTWARE_NAMES.iter().any(|software| name.contains(software))
}

fn describe(info: &wgpu::AdapterInfo) -> String {
    let name = if info.name.is_empty() { "GPU" } else { info.name.as_str() };
    let over = match info.backend {
        wgpu::Backend::BrowserWebGpu => "WebGPU".to_string(),
        other => format!("{other:?}"),
    };
    format!("{name} over {over}")
}

/// What tells one adapter from another, as far as it is said (browsers say little), and one version of the kernels.
fn identity(info: &wgpu::AdapterInfo, limits: &wgpu::Limits) -> String {
    let wgpu::AdapterInfo { name, vendor, device, driver, driver_info, backend, subgroup_min_size, subgroup_max_size, .. } = info;
    let buffer = limits.max_buffer_size;
    let adapter = format!("{name} {vendor:04x}:{device:04x}, {driver} {driver_info}, {backend:?}");
    format!("{adapter}, subgroups {subgroup_min_size}-{subgroup_max_size}, buffers {buffer}, kernels {}", env!("CARGO_PKG_VERSION"))
}
