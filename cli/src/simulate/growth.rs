//! `barycenter simulate --growth`: what more devices bring.

use super::household::{model_cost, write};
use anyhow::{Result, ensure};
use barycenter_simulator::growth::{Medium, Point, Setting, beyond};
use barycenter_simulator::plot::{Panel, Series, chart, fill_parts, train_parts};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// What to simulate.
#[derive(clap::Args)]
pub struct GrowthOptions {
    /// Epoch times for 1 to 64 equal devices, and what the time goes into.
    #[arg(long, conflicts_with = "house")]
    pub growth: bool,
    /// Speed of each device.
    #[arg(long, default_value_t = 20.0)]
    pub growth_gflops: f64,
    /// Most devices.
    #[arg(long, default_value_t = 64)]
    pub growth_devices: u32,
}

/// Samples of a mini-batch for each device of weak scaling.
const PER_DEVICE: u32 = 4;

/// Simulates, prints, and writes the chart to `svg`.
pub fn run(options: &GrowthOptions, model: &Path, tokens: u32, reduction: u32, svg: Option<&PathBuf>, json: Option<&PathBuf>) -> Result<ExitCode> {
    ensure!(options.growth_gflops > 0.0 && options.growth_gflops.is_finite(), "--growth-gflops is {}: give a number above 0", options.growth_gflops);
    ensure!((1..=64).contains(&options.growth_devices), "--growth-devices is {}: give 1 to 64", options.growth_devices);
    let (cost, _) = model_cost(model, reduction, 1, f64::from(tokens))?;
    let devices: Vec<u32> = (0..7).map(|i| 1 << i).filter(|n| *n <= options.growth_devices).collect();
    let setting = |medium| Setting { gflops: options.growth_gflops, medium, tokens };
    let (cable, wifi) = (setting(Medium::Cable), setting(Medium::Wifi));
    let tables = [
        ("strong scaling, cables of 1 Gbit/s", cable.strong(&cost, &devices)),
        ("strong scaling, one Wi-Fi cell of 400 Mbit/s", wifi.strong(&cost, &devices)),
        ("weak scaling, cables", cable.weak(&cost, &devices, PER_DEVICE)),
        ("weak scaling, Wi-Fi", wifi.weak(&cost, &devices, PER_DEVICE)),
    ];
    for (name, points) in &tables {
        print_table(name, points);
    }
    let mut variants = Vec::new();
    for (name, setting, points) in [("cables", cable, &tables[0].1), ("Wi-Fi", wifi, &tables[1].1)] {
        if let Some(last) = points.last() {
            println!("\nBeyond, {} devices, {name}: an epoch of 8 steps from the cache, seconds", last.devices);
            let of_medium = beyond(&setting, &cost, last);
            for variant in &of_medium {
                println!("{:<52} {:>9.2}", variant.name, variant.seconds);
            }
            variants.push((name, of_medium));
        }
    }
    if let Some(path) = svg {
        write(path, &draw(&tables, options.growth_gflops))?;
    }
    if let Some(path) = json {
        let tables: Vec<_> = tables.iter().map(|(name, points)| json!({ "name": name, "points": points })).collect();
        let variants: Vec<_> = variants.iter().map(|(name, list)| json!({ "network": name, "variants": list })).collect();
        write(path, &serde_json::to_string_pretty(&json!({ "tables": tables, "beyond": variants }))?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print_table(name: &str, points: &[Point]) {
    println!("\n{name}\ndevices  batch  stages   fill s  redistribution s  train s   fill: compute pipeline AllReduce   train: compute AllReduce");
    for p in points {
        println!(
            "{:>7} {:>6} {:>7} {:>8.2} {:>17.2} {:>8.2} {:>15.2} {:>8.2} {:>9.2} {:>16.2} {:>9.2}",
            p.devices, p.batch, p.stages, p.fill_seconds, p.redistribution_seconds, p.train_seconds, p.fill.compute, p.fill.pipeline, p.fill.all_reduce, p.train.compute, p.train.all_reduce
        );
    }
    let fastest = |of: fn(&Point) -> f64| points.iter().min_by(|a, b| of(a).total_cmp(&of(b))).map_or(0, |p| p.devices);
    println!("fastest: fill with {} devices, from the cache with {}", fastest(|p| p.fill_seconds / f64::from(p.batch)), fastest(|p| p.train_seconds / f64::from(p.batch)));
}

fn draw(tables: &[(&str, Vec<Point>); 4], gflops: f64) -> String {
    let times = |points: &[Point], of: fn(&Point) -> f64| points.iter().map(|p| (p.devices, of(p))).filter(|p| p.1 > 0.0).collect::<Vec<_>>();
    let lines = |title: &str, cable: &[Point], wifi: &[Point]| Panel::Lines {
        title: format!("{title}: seconds of an epoch of 8 steps"),
        series: vec![
            Series { name: "fill, cables", colour: "#3f7fd9", points: times(cable, |p| p.fill_seconds) },
            Series { name: "from the cache, cables", colour: "#2a9d8f", points: times(cable, |p| p.train_seconds) },
            Series { name: "fill, Wi-Fi", colour: "#e0861a", points: times(wifi, |p| p.fill_seconds) },
            Series { name: "from the cache, Wi-Fi", colour: "#c94f6d", points: times(wifi, |p| p.train_seconds) },
            Series { name: "redistribution, Wi-Fi", colour: "#8e6fc9", points: times(wifi, |p| p.redistribution_seconds) },
        ],
    };
    let panels = [
        lines("Strong scaling (mini-batch of 64)", &tables[0].1, &tables[1].1),
        lines("Weak scaling (4 samples a device)", &tables[2].1, &tables[3].1),
        Panel::Parts { title: "Strong, cables: the fill epoch".into(), bars: fill_parts(&tables[0].1) },
        Panel::Parts { title: "Strong, cables: from the cache".into(), bars: train_parts(&tables[0].1) },
        Panel::Parts { title: "Strong, Wi-Fi: the fill epoch".into(), bars: fill_parts(&tables[1].1) },
        Panel::Parts { title: "Strong, Wi-Fi: from the cache".into(), bars: train_parts(&tables[1].1) },
    ];
    chart(&format!("1 to 64 devices of {gflops} GFLOP/s"), &panels)
}
