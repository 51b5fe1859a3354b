//! Households and models of any size for timing the planner.

use barycenter_core::cost::{Dimensions, cache_bytes, model_cost};
use barycenter_core::planner::{FillWish, PlanOptions};
use barycenter_protocol::NodeId;
use barycenter_protocol::control::{CacheType, Measurements};
use barycenter_protocol::plan::{DeviceProfile, LinkProfile, ModelCost};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;

/// Phones, tablets, laptops and desktops with links of their own; a model of `layers` layers of width 1024 with the
/// weights in f16, for 1000 samples of 128 tokens in mini-batches of `batch`.
pub fn instance(devices: u32, layers: u32, batch: u32, seed: u64) -> (ModelCost, Measurements, PlanOptions) {
    let random = &mut Pcg64::seed_from_u64(seed);
    let mut profile = |i: u32| {
        let (gflops, memory) = [(5.0..25.0, 0.3..2.0), (8.0..40.0, 0.5..3.0), (25.0..150.0, 1.0..8.0), (60.0..400.0, 2.0..16.0)][random.random_range(0..4)].clone();
        DeviceProfile {
            node: NodeId(i + 1),
            name: format!("device {}", i + 1),
            gflops: random.random_range(gflops),
            memory_budget_bytes: (random.random_range(memory) * 1e9) as u64,
            storage_budget_bytes: 20_000_000_000,
        }
    };
    let devices: Vec<_> = (0..devices).map(&mut profile).collect();
    let nodes: Vec<_> = devices.iter().map(|d| d.node).collect();
    let mut links = Vec::new();
    for (i, &a) in nodes.iter().enumerate() {
        for &b in &nodes[i + 1..] {
            links.push(LinkProfile { a, b, round_trip_millis: random.random_range(0.5..8.0), bytes_per_second: random.random_range(3e6..1.2e8) });
        }
    }
    let dimensions = Dimensions { layers, width: 1024, heads: 16, kv_heads: 8, head_dim: 64, ffn_width: 2816, vocab: 32_000, reduction: 8, weight_bytes: 2, mean_tokens: 128, tied_head: true, gated: true, tap_every: 1 };
    let options = PlanOptions {
        mean_tokens: 128.0,
        max_tokens: 256,
        mean_labels: 64.0,
        cache_bytes: cache_bytes(CacheType::F16, layers + 1, 1024, 128_000, 64_000),
        fill: FillWish::Fastest,
        epochs: 3,
        steps_per_epoch: 1000 / batch,
        ..PlanOptions::default()
    };
    (model_cost(&dimensions), Measurements { devices, links }, options)
}
