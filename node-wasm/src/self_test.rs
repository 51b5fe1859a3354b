//! The self-test alone, for tests and figures: which back end computes here, how well, and how fast.

use barycenter_engine::{BackendChoice, BackendError, Device, bench};
use barycenter_node::device::open_device;
use barycenter_node::self_test;
use barycenter_node::storage::MemoryStorage;
use barycenter_protocol::control::BackendReport;
use barycenter_transport::platform::now_millis;
use serde::Serialize;
use wasm_bindgen::prelude::{JsError, JsValue, wasm_bindgen};

thread_local! {
    /// What is remembered from call to call.
    static STORAGE: MemoryStorage = MemoryStorage::default();
}

/// Opens a back end, whose kernels are tuned at the first call of a page.
pub(crate) async fn open(choice: BackendChoice) -> Result<Device, BackendError> {
    open_device(choice, &STORAGE.with(MemoryStorage::clone)).await
}

/// What `self_test` answers.
#[derive(Serialize)]
struct Report {
    backend: BackendReport,
    answers: [f64; 3],
    gflops: f64,
}

/// Opens a back end (`"auto"`, `"cpu"`, `"gpu"`) and runs the self-test on it: `{backend, answers, gflops}`.
///
/// # Errors
/// When the word is none of these, when there is no such back end here, or when it fails.
#[wasm_bindgen]
pub async fn self_test(backend: JsValue) -> Result<JsValue, JsError> {
    console_error_panic_hook::set_once();
    let choice: BackendChoice = serde_wasm_bindgen::from_value(backend)?;
    let device = open(choice).await?;
    let answers = self_test::answers(&device).await?;
    let gflops = self_test::gflops(&device, &now_millis).await?;
    let report = Report { backend: barycenter_node::report(device.info()), answers, gflops };
    Ok(serde_wasm_bindgen::to_value(&report)?)
}

/// Opens a back end and measures products of square matrices of these sizes: a list of `{size, weights, millis, gflops}`,
/// with f32 and with packed f16 weights.
///
/// # Errors
/// As [`self_test`].
#[wasm_bindgen]
pub async fn matmul_rates(backend: JsValue, sizes: Vec<u32>) -> Result<JsValue, JsError> {
    console_error_panic_hook::set_once();
    let choice: BackendChoice = serde_wasm_bindgen::from_value(backend)?;
    let device = open(choice).await?;
    let sizes: Vec<usize> = sizes.into_iter().map(|size| size as usize).collect();
    Ok(serde_wasm_bindgen::to_value(&bench::matmul_rates(device.as_ref(), &sizes, now_millis).await?)?)
}
