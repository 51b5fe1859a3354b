//! The home server, built as it should run.

use anyhow::Result;

use crate::run::{cargo, run, step};
use crate::{setup, web};

/// Sets up, builds everything in release mode, and runs `barycenter serve`.
pub fn serve(rest: &[String]) -> Result<()> {
    setup::all(false)?;
    web::build(false)?;
    step("barycenter", || run(&mut cargo(["build", "-q", "--release", "-p", "barycenter"])))?;
    run(cargo(["run", "-q", "--release", "-p", "barycenter", "--", "serve"]).args(rest))
}
