//! No step but the first asks for memory: buffers are planned by what the first one needed.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

mod support;

use barycenter_engine::optim::AdamWConfig;
use barycenter_engine::side::SideConfig;
use barycenter_engine::stage::{ForwardPass, StageRuntime};
use barycenter_engine::tape::no_yield;
use barycenter_engine::{CpuBackend, Device};
use barycenter_model::names::Parts;
use barycenter_model::{FolderTensors, ModelConfig};
use pollster::block_on;
use std::path::PathBuf;
use std::rc::Rc;
use support::batch;

fn later_steps_make_no_buffers(device: &Device) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama-gqa");
    let config = ModelConfig::from_folder(&folder).unwrap();
    let mut stage = StageRuntime::new(device, config.clone(), 0..config.layers, no_yield(), Rc::new(|| 0.0));
    let mut weights = FolderTensors::open(&folder).unwrap();
    stage.load_backbone(&mut weights, &Parts::all(&config)).unwrap();
    stage.start_side(&SideConfig::new(4, config.layers), 0..config.layers, AdamWConfig::default(), 1).unwrap();
    let batch = batch();
    let loss_factor = 1.0 / batch.classes.len() as f32;
    let mut entries = Vec::new();
    let mut step = 0;
    for phase in ["fill", "cached"] {
        let mut made = Vec::new();
        for _ in 0..4 {
            if phase == "fill" {
                let pass = ForwardPass { batch: &batch, input: None, forward_only: false, cache: true, loss_factor };
                entries = block_on(stage.forward(0, pass)).unwrap().entries;
                block_on(stage.backward(0, None)).unwrap();
            } else {
                block_on(stage.train_cached(&batch, &entries, loss_factor, true)).unwrap();
            }
            block_on(stage.gradient_squared_norm()).unwrap();
            step += 1;
            stage.apply(step, 1e-3, 1.0).unwrap();
            made.push(device.memory().buffers_made);
        }
        assert!(made[0] > 0, "{phase}: buffers are counted");
        assert_eq!(made[1], made[3], "{phase}: buffers made up to each step: {made:?}");
        stage.load_backbone(&mut weights, &Parts::head_only()).unwrap();
        device.reset_peak();
    }
}

#[test]
fn on_the_cpu() {
    let device: Device = Rc::new(CpuBackend::default());
    later_steps_make_no_buffers(&device);
}

#[test]
fn on_webgpu() {
    let Some(gpu) = support::gpu() else { return };
    let device: Device = Rc::new(gpu);
    later_steps_make_no_buffers(&device);
}
