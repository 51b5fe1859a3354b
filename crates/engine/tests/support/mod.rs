//! What tests of the engine share.
#![allow(dead_code, reason = "each test uses its part")]

pub mod golden;
pub mod side_v2;

use barycenter_engine::gpu::GpuBackend;
use barycenter_engine::packed::{MicroBatch, Sequence};

/// The best adapter there is, a software one included; `None`, said on one line, if there is none at all.
///
/// With BARYCENTER_REQUIRE_GPU=1 the lack of an adapter is a failure.
pub fn gpu() -> Option<GpuBackend> {
    let found = pollster::block_on(async {
        match GpuBackend::create(false).await {
            Ok(backend) => Ok(backend),
            Err(_) => GpuBackend::create(true).await,
        }
    });
    match found {
        Ok(backend) => Some(backend),
        Err(error) => {
            println!("NOT TESTED on WebGPU: {error}; a software adapter comes with `apt install mesa-vulkan-drivers`");
            let required = std::env::var("BARYCENTER_REQUIRE_GPU").is_ok_and(|value| value == "1");
            assert!(!required, "BARYCENTER_REQUIRE_GPU=1 and no WebGPU adapter");
            None
        }
    }
}

/// Three sequences of the golden models' ids, each with its second half labelled.
pub fn batch() -> MicroBatch {
    let make = |s: u32, len: u32| {
        let ids: Vec<u32> = (0..len).map(|t| (s * 31 + t * t * 7 + 3) % 320).collect();
        let labels = (len / 2..len - 1).map(|t| (t, ids[t as usize + 1])).collect();
        Sequence { ids, labels }
    };
    MicroBatch::pack(&[make(0, 12), make(1, 7), make(2, 15)])
}

/// A small seeded generator (splitmix64): the tests need numbers, not statistics.
pub struct Random(pub u64);

impl Random {
    /// The seed of this run: BARYCENTER_SEED, or a fixed one; printed so that a failure can be rerun.
    pub fn from_env(test: &str) -> Self {
        let seed = std::env::var("BARYCENTER_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_251);
        println!("{test}: BARYCENTER_SEED={seed}");
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u32) -> u32 {
        (self.bits() % u64::from(n)) as u32
    }

    /// Uniform in −1 .. 1.
    pub fn value(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }

    pub fn positive(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value().abs() + 0.1).collect()
    }
}
