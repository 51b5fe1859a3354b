//! The browser node: the wasm-bindgen surface.
