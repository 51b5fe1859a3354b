//! Where the parameters of a side network start.

use super::SideLayout;
use barycenter_model::{ModelConfig, NormKind, names};
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

/// Ways to start a side network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SideInit {
    /// Linear layers as PyTorch starts them, norms at 1, gates and the up-projection at 0.
    #[default]
    Random,
}

/// The flat vector a side network starts from; every parameter has its own stream of random numbers, made from the
/// seed and its name, so that the start does not depend on who holds what.
pub fn initial_values(layout: &SideLayout, seed: u64) -> Vec<f32> {
    let infos = layout.infos();
    let shapes: std::collections::HashMap<&str, &[usize]> =
        infos.iter().map(|info| (info.name.as_str(), info.shape.as_slice())).collect();
    let transposed = layout.side_model().family.table().transposed;
    let mut flat = vec![0f32; crate::params::flat_len(&infos)];
    for info in &infos {
        let target = &mut flat[info.offset..info.offset + info.elements()];
        if ["gate.", "up."].iter().any(|start| info.name.starts_with(&layout.name(start))) {
            continue;
        }
        if names::is_norm_weight(&info.name) {
            target.fill(norm_start(layout.side_model()));
            continue;
        }
        if info.name.strip_suffix("bias").is_some_and(|stem| names::is_norm_weight(&format!("{stem}weight"))) {
            continue;
        }
        // A bias is drawn from the range of the weight it belongs to.
        let weight = info.name.strip_suffix("bias").map(|stem| format!("{stem}weight"));
        let shape = weight.as_deref().and_then(|name| shapes.get(name).copied()).unwrap_or(info.shape.as_slice());
        let family_matrix = shape.len() == 2 && info.name.starts_with(&layout.name("layers."));
        let fan_in = if transposed && family_matrix { shape.first() } else { shape.last() };
        uniform(&info.name, seed, *fan_in.unwrap_or(&1), target);
    }
    flat
}

/// U(−1/√fan_in, 1/√fan_in): torch's `kaiming_uniform_(a = √5)`.
pub(crate) fn uniform(name: &str, seed: u64, fan_in: usize, target: &mut [f32]) {
    let bound = 1.0 / (fan_in.max(1) as f32).sqrt();
    let mut rng = named_rng(name, seed);
    for value in target {
        *value = (2.0 * rng.random::<f32>() - 1.0) * bound;
    }
}

/// What a norm's weight is where it changes nothing.
pub(crate) fn norm_start(model: &ModelConfig) -> f32 {
    if model.norm == NormKind::RmsOnePlus { 0.0 } else { 1.0 }
}

/// A generator of its own for each (seed, name): the name hashed by 64-bit FNV-1a.
pub(crate) fn named_rng(name: &str, seed: u64) -> Pcg64Mcg {
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let hash = seed.to_le_bytes().into_iter().chain(name.bytes()).fold(0xcbf2_9ce4_8422_2325, fnv);
    Pcg64Mcg::seed_from_u64(hash)
}
