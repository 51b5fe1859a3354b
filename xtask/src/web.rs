//! Builds the pages.

use anyhow::Result;

use crate::root::root;
use crate::run::{command, run, step};
use crate::wasm;

/// Builds the browser node and the pages into `web/dist`.
pub fn build(quick: bool) -> Result<()> {
    wasm::build(wasm::How { quick, bench: false })?;
    step("pages", || {
        let mut build = command("node", [root().join("web/build.mjs")]);
        if quick {
            build.arg("--dev");
        }
        run(&mut build)
    })
}
