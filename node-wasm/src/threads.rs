//! What the script needs to compute with several threads, and what it says where that is not possible.

#[cfg(target_feature = "atomics")]
use wasm_bindgen::prelude::JsError;
use wasm_bindgen::prelude::wasm_bindgen;

/// What the reason of the CPU back end ends with: why it computes with one thread. Before `start_node` or `self_test`.
#[wasm_bindgen]
pub fn remark_on_threads(remark: String) {
    barycenter_engine::cpu::remark_on_threads(remark);
}

/// Makes this worker one of `threads` that compute; the others have called `compute_thread`, or are about to.
///
/// # Errors
/// At the second call.
#[cfg(target_feature = "atomics")]
#[wasm_bindgen]
pub fn share_with_threads(threads: usize) -> Result<(), JsError> {
    console_error_panic_hook::set_once();
    Ok(barycenter_engine::cpu::pool::share_with(threads)?)
}

/// Computes for another worker with the same memory, until this one is ended.
#[cfg(target_feature = "atomics")]
#[wasm_bindgen]
pub fn compute_thread() {
    barycenter_engine::cpu::pool::compute_until_the_end();
}
