//! Makes the JavaScript side of the browser node: `xtask-bindgen MODULE FOLDER NAME`.
//!
//! The library behind wasm-bindgen's command line, in the version that the workspace pins: nothing is
//! downloaded, and the two sides cannot differ. A package of its own, because it is the one heavy
//! dependency of the tools: `cargo xtask` builds it only when a module has to be bound.

use anyhow::{Result, bail};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [module, folder, name] = &arguments[..] else { bail!("usage: xtask-bindgen MODULE FOLDER NAME") };
    Bindgen::new().web(true)?.input_path(module).out_name(name).remove_producers_section(true).generate(folder)
}
