//! The planner as wasm, for timing it where a page would run it: `node bench/planner.mjs`.

#[path = "planner/instances.rs"]
mod instances;

use barycenter_core::planner::plan;
use std::hint::black_box;

/// Draws a household and plans for it; gives the objective, seconds per step.
#[unsafe(no_mangle)]
pub extern "C" fn plan_household(devices: u32, layers: u32, batch: u32, seed: u32) -> f64 {
    let (cost, measured, options) = instances::instance(devices, layers, batch, u64::from(seed));
    plan(&cost, &measured, batch, &options).map_or(f64::NAN, |plan| plan.bound.objective_seconds)
}

/// The same without planning, to know what the drawing takes.
#[unsafe(no_mangle)]
pub extern "C" fn draw_household(devices: u32, layers: u32, batch: u32, seed: u32) -> u32 {
    black_box(instances::instance(devices, layers, batch, u64::from(seed))).1.links.len() as u32
}
