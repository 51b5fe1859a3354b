//! The browser node: the wasm-bindgen surface.
#![cfg(target_arch = "wasm32")]

mod opfs;
mod products;
mod self_test;
mod start;
mod threads;
#[cfg(feature = "bench")]
mod training;

use wasm_bindgen::prelude::wasm_bindgen;

/// Version of this module; the page compares it with its own.
#[wasm_bindgen]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}
