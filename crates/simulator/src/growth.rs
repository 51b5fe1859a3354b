//! What more devices bring: epoch times for 1 … 64 equal devices, weak and strong scaling, and what the time goes into.
//!
//! The nodes are the real ones and carry out a plan that is given ([`World::conduct`]), because a planner would rightly use
//! fewer devices where more do not pay. [`beyond`] is a model of costs only, fed with what the nodes took.

use crate::house::{CellSpec, DeviceSpec, House, LinkSpec, NetworkSpec};
use crate::job::Job;
use crate::report::{Spent, spent};
use crate::world::{Act, World};
use barycenter_core::io::{Micros, SECOND};
use barycenter_protocol::NodeId;
use barycenter_protocol::control::CacheType;
use barycenter_protocol::plan::{ModelCost, Plan, Stage, StageMember};
use serde::Serialize;
use std::collections::BTreeMap;

/// Mini-batch of strong scaling, and of weak scaling for 64 devices: a sample for each of the most devices.
const BATCH: u32 = 64;
/// Steps of an epoch. Epochs of more steps take proportionally longer.
const STEPS: u32 = 8;
/// Household time by which a growth run must be over.
const LIMIT: Micros = 14 * 24 * 3600 * SECOND;

/// What links the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Medium {
    /// A cable of 1 Gbit/s from each device to a switch, 0.3 ms.
    Cable,
    /// One Wi-Fi cell of 400 Mbit/s, 3 ms.
    Wifi,
}

/// Devices, all alike.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Setting {
    /// Speed of each.
    pub gflops: f64,
    /// Network.
    pub medium: Medium,
    /// Mean tokens of a sample.
    pub tokens: u32,
}

/// One number of devices.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Point {
    /// Devices.
    pub devices: u32,
    /// Mini-batch.
    pub batch: u32,
    /// Stages of the pipeline that fills; each has devices / stages members.
    pub stages: u32,
    /// Seconds of the fill epoch.
    pub fill_seconds: f64,
    /// Seconds until every device has the cache entries of its samples.
    pub redistribution_seconds: f64,
    /// Seconds of an epoch from the cache.
    pub train_seconds: f64,
    /// What the fill epoch went into, mean over devices.
    pub fill: Spent,
    /// What the epoch from the cache went into.
    pub train: Spent,
}

impl Setting {
    fn house(&self, devices: u32) -> House {
        let specs = (0..devices).map(|i| DeviceSpec::new(format!("device {}", i + 1), self.gflops, 64_000_000_000, 1_000_000_000_000)).collect();
        let link = |mbit: f64, latency: Micros| LinkSpec { bytes_per_second: mbit * 1e6 / 8.0, latency, jitter: latency / 5, loss_per_hour: 0.0 };
        let (default_link, cells) = match self.medium {
            // the port of a device is shared by all its links: a cell of its own that carries both directions
            Medium::Cable => (link(1000.0, 300), (0..devices as usize).map(|d| CellSpec { name: format!("port {d}"), bytes_per_second: 2.5e8, devices: vec![d] }).collect()),
            Medium::Wifi => (link(400.0, 3000), vec![CellSpec { name: "home".into(), bytes_per_second: 5e7, devices: (0..devices as usize).collect() }]),
        };
        House { devices: specs, network: NetworkSpec { default_link, links: BTreeMap::new(), cells, ports: BTreeMap::new() }, computers: Vec::new() }
    }

    /// `devices` of them carry out a plan of `stages` stages on mini-batches of `batch`, for `steps` steps in each phase.
    fn run(&self, cost: &ModelCost, devices: u32, batch: u32, stages: u32, steps: u32) -> Point {
        let job = Job { samples: batch * steps, held_out: 0, tokens: self.tokens, labelled: 0.5, batch, epochs: 1, reduction: 8, tap_every: 1, cache: CacheType::F16, min_stages: 1, use_all_nodes: true, seed: 1 };
        let start = job.start("growth", cost.clone());
        let mut world = World::new(1, start, self.house(devices));
        world.conduct(even_plan(cost.layers.len() as u32, devices, stages, batch));
        for device in 0..devices as usize {
            world.at(0, Act::On(device));
        }
        assert!(world.run_until(LIMIT, |w| w.marks().is_some()), "a growth run of {devices} devices is over in {} days", LIMIT / SECOND / 86400);
        let marks = world.marks().expect("it is over");
        let seconds = |(from, to): (Micros, Micros)| to.saturating_sub(from) as f64 / SECOND as f64;
        Point {
            devices,
            batch,
            stages,
            fill_seconds: seconds(marks.fill),
            redistribution_seconds: seconds(marks.redistribution),
            train_seconds: seconds(marks.train),
            fill: spent(&world, marks.fill.0, marks.fill.1),
            train: spent(&world, marks.train.0, marks.train.1),
        }
    }

    /// The fastest fill of all even pipelines, by two steps of each.
    fn best(&self, cost: &ModelCost, devices: u32, batch: u32) -> Point {
        let layers = cost.layers.len() as u32;
        let possible = (1..=devices.min(layers)).filter(|s| devices.is_multiple_of(*s));
        let tried = possible.map(|stages| (self.run(cost, devices, batch, stages, 2).fill_seconds, stages));
        let (_, stages) = tried.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, 1));
        self.run(cost, devices, batch, stages, STEPS)
    }

    /// The same work for ever more devices.
    pub fn strong(&self, cost: &ModelCost, devices: &[u32]) -> Vec<Point> {
        devices.iter().map(|n| self.best(cost, *n, BATCH.max(*n))).collect()
    }

    /// Work in proportion to the devices: `per_device` samples of a mini-batch each.
    pub fn weak(&self, cost: &ModelCost, devices: &[u32], per_device: u32) -> Vec<Point> {
        devices.iter().map(|n| self.best(cost, *n, per_device * n)).collect()
    }
}

/// Equal layers for every stage, equal slots for every member.
fn even_plan(layers: u32, devices: u32, stages: u32, batch: u32) -> Plan {
    let node = |i: u32| NodeId(i + 1);
    let slots = |i: u32, of: u32| i * batch / of..(i + 1) * batch / of;
    let group = devices / stages;
    Plan {
        stages: (0..stages)
            .map(|s| Stage { layers: s * layers / stages..(s + 1) * layers / stages, members: (0..group).map(|g| StageMember { node: node(s * group + g), slots: slots(g, group) }).collect() })
            .collect(),
        micro_batches: if stages == 1 { 1 } else { (4 * stages).min(batch / group) },
        train: (0..devices).map(|i| StageMember { node: node(i), slots: slots(i, devices) }).collect(),
        ..Plan::default()
    }
}

/// What an epoch from the cache would take with another way to exchange gradients.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Variant {
    /// What.
    pub name: &'static str,
    /// Seconds of the epoch.
    pub seconds: f64,
}

/// Ways beyond the AllReduce in two hops, for the devices of `point`: times from the bytes through the narrowest place and
/// the latencies, everything else as the nodes took it. What fewer exchanges do to the loss is not simulated.
pub fn beyond(setting: &Setting, cost: &ModelCost, point: &Point) -> Vec<Variant> {
    let n = f64::from(point.devices);
    let parameters = cost.layers.iter().map(|l| l.adapter_parameters).sum::<u64>() + cost.embedding.adapter_parameters + cost.head.adapter_parameters;
    let bytes = 4.0 * parameters as f64;
    let compute = point.train_seconds - point.train.all_reduce;
    let steps = f64::from(STEPS);
    // seconds of one exchange: (bytes through the narrowest place, hops)
    let exchange = |wired: f64, aired: f64, hops: f64| match setting.medium {
        Medium::Cable => wired * bytes / 1.25e8 + hops * 3e-4,
        Medium::Wifi => aired * bytes / 5e7 + hops * 3e-3,
    };
    let group = n.sqrt().ceil();
    let two_hops = exchange(2.0 * (n - 1.0) / n, 4.0 * (n - 1.0), 2.0);
    // leaders take in and give out: inside the groups, then among the leaders
    let hierarchical = exchange(2.0 * (group - 1.0) + 2.0 * (n / group - 1.0) / (n / group), 4.0 * (n - n / group) + 4.0 * (n / group - 1.0), 4.0);
    // a wired computer sums: every gradient crosses the air once up and once down
    let by_server = exchange(n, 2.0 * n, 2.0);
    let mut variants = vec![
        Variant { name: "AllReduce in two hops, simulated", seconds: point.train_seconds },
        Variant { name: "AllReduce in two hops, this model", seconds: compute + steps * two_hops },
        Variant { name: "hierarchical AllReduce, groups of √n", seconds: compute + steps * hierarchical },
        Variant { name: "summed by a computer on a cable", seconds: compute + steps * by_server },
        Variant { name: "two hops in f16", seconds: compute + steps * two_hops / 2.0 },
        Variant { name: "local steps: two hops after every 8th", seconds: compute + steps * two_hops / 8.0 },
    ];
    if setting.medium == Medium::Wifi {
        variants.push(Variant { name: "four access points, summed by a computer on a cable", seconds: compute + steps * by_server / 4.0 });
    }
    variants
}

#[cfg(test)]
mod tests {
    use super::*;
    use barycenter_core::cost::{Dimensions, model_cost};

    fn cost() -> ModelCost {
        model_cost(&Dimensions { layers: 8, width: 256, heads: 4, kv_heads: 4, head_dim: 64, ffn_width: 704, vocab: 1000, reduction: 8, weight_bytes: 2, mean_tokens: 32, tied_head: true, gated: true, tap_every: 1 })
    }

    #[test]
    fn few_devices_on_cables_share_the_work_and_many_on_one_wifi_do_not() {
        let cable = Setting { gflops: 5.0, medium: Medium::Cable, tokens: 32 };
        let one = cable.best(&cost(), 1, 16);
        let four = cable.best(&cost(), 4, 16);
        assert!(four.fill_seconds < one.fill_seconds / 2.5, "{} of {} s", four.fill_seconds, one.fill_seconds);
        let wifi = Setting { medium: Medium::Wifi, ..cable };
        let (few, many) = (wifi.best(&cost(), 2, 16), wifi.best(&cost(), 16, 16));
        assert!(many.train_seconds > few.train_seconds && many.train.all_reduce > 0.5 * many.train_seconds, "{many:?}");
    }

    #[test]
    fn the_model_of_what_is_beyond_agrees_with_the_nodes_on_what_is() {
        let wifi = Setting { gflops: 5.0, medium: Medium::Wifi, tokens: 32 };
        let variants = beyond(&wifi, &cost(), &wifi.best(&cost(), 8, 16));
        let (simulated, modelled) = (variants[0].seconds, variants[1].seconds);
        assert!((modelled / simulated - 1.0).abs() < 0.2, "{modelled} s against {simulated} s");
    }
}
