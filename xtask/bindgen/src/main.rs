//! Makes the JavaScript side of the browser node.
//!
//! A package of its own, because wasm-bindgen's command line is the one heavy dependency of the
//! tools: `cargo xtask` builds it only when a wasm module has to be bound.

fn main() -> anyhow::Result<()> {
    wasm_bindgen_cli::wasm_bindgen::run_cli_with_args(std::env::args_os())
}
