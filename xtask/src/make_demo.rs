//! The demo's base model and personal data set.

use anyhow::Result;

use crate::run::{cargo, run};

/// Builds `barycenter-demo` in release mode and runs it; further arguments are handed on.
pub fn make(rest: &[String]) -> Result<()> {
    run(cargo(["run", "-q", "--release", "-p", "barycenter-demo", "--"]).args(rest))
}
