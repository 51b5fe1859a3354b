//! How long the planner takes, and how far from the best its plans can be.
//!
//! `cargo run --release -p barycenter-core --example planner_speed [DEVICES LAYERS BATCH DRAWS]`

#[path = "planner/instances.rs"]
mod instances;

use barycenter_core::planner::plan;
use std::time::Instant;

/// Devices, layers, mini-batch, draws.
const SIZES: [(u32, u32, u32, u64); 7] = [(2, 24, 16, 20), (4, 32, 16, 20), (8, 32, 16, 20), (16, 32, 16, 20), (32, 32, 32, 5), (100, 32, 64, 3), (1000, 32, 256, 1)];

fn main() {
    let given: Vec<u32> = std::env::args().skip(1).map(|text| text.parse().expect("devices, layers, mini-batch and draws are whole numbers")).collect();
    let sizes = match given[..] {
        [devices, layers, batch, draws] => vec![(devices, layers, batch, u64::from(draws))],
        _ => SIZES.to_vec(),
    };
    println!("devices  layers  batch  seconds, mean  longest  objective / lower bound  exact  stages  in train");
    for (devices, layers, batch, draws) in sizes {
        let (mut total, mut longest, mut ratio, mut exact, mut stages, mut train) = (0.0, 0.0f64, 0.0, 0, 0, 0);
        for seed in 0..draws {
            let (cost, measured, options) = instances::instance(devices, layers, batch, seed);
            let began = Instant::now();
            let plan = plan(&cost, &measured, batch, &options).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let seconds = began.elapsed().as_secs_f64();
            total += seconds;
            longest = longest.max(seconds);
            ratio += plan.bound.objective_seconds / plan.bound.lower_bound_seconds;
            exact += u32::from(plan.bound.is_exact);
            stages += plan.stages.len();
            train += plan.train.len();
        }
        let mean = |sum: f64| sum / draws as f64;
        println!(
            "{devices:>7}  {layers:>6}  {batch:>5}  {:>13.4}  {longest:>7.4}  {:>23.3}  {exact:>2}/{draws:<2}  {:>6.1}  {:>8.1}",
            mean(total),
            mean(ratio),
            mean(stages as f64),
            mean(train as f64)
        );
    }
}
