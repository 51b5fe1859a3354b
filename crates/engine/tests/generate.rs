//! Decoding with caches gives what forward passes over the whole text give.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps")]

use barycenter_engine::backbone::Backbone;
use barycenter_engine::generate::{GenerateOptions, generate};
use barycenter_engine::loss::greedy;
use barycenter_engine::packed::{DeviceBatch, MicroBatch, Sequence};
use barycenter_engine::side::{Side, SideConfig, SideLayout, initial_values};
use barycenter_engine::tape::{Tape, Var, no_yield};
use barycenter_engine::{CpuBackend, Device, Tensor};
use barycenter_model::names::Parts;
use barycenter_model::{FolderTensors, ModelConfig};
use std::path::Path;
use std::rc::Rc;

/// The likeliest next token, by a forward pass over all of `ids`.
fn next_token(device: &Device, model: &Backbone, side: Option<&Side>, ids: &[u32]) -> u32 {
    let batch = DeviceBatch::new(device, &MicroBatch::pack(&[Sequence { ids: ids.to_vec(), labels: Vec::new() }]));
    let tape = Tape::computing(device);
    let mut x = model.embed(&tape, &batch).unwrap();
    let mut a = side.map(|side| side.start(&tape, &tape.tap_scale(&x.value).0).unwrap());
    for index in 0..model.layers.len() {
        x = model.layer(&tape, index, &x, &batch).unwrap();
        if let (Some(side), Some(last)) = (side, a.take()) {
            let tap = tape.tap_scale(&x.value).0;
            a = Some(side.step(&tape, index + 1, &last, &tap, &batch).unwrap());
        }
    }
    if let (Some(side), Some(a)) = (side, a) {
        let rho = tape.tap_scale(&x.value).1;
        x = side.finish(&tape, &a, &x.value, &rho).unwrap();
    }
    let last = Tensor::from_u32(device, &[ids.len() as u32 - 1]);
    let row: Var = tape.gather_rows(&x, &last);
    pollster::block_on(greedy(&tape, model.head.as_ref().unwrap(), &row).read_words()).unwrap()[0]
}

#[test]
fn cached_decoding_equals_whole_passes() {
    let device: Device = Rc::new(CpuBackend::default());
    for case in ["llama-gqa", "llama3-rope-scaled", "qwen3", "gemma3", "gpt2"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(case);
        let config = ModelConfig::from_folder(&folder).unwrap();
        let mut weights = FolderTensors::open(&folder).unwrap();
        let model = Backbone::load(&device, &config, &mut weights, &Parts::all(&config)).unwrap();
        let layout = SideLayout::whole(&config, &SideConfig::new(4, config.layers)).unwrap();
        let mut values = initial_values(&layout, 3);
        // An up-projection other than 0, so that the side network matters.
        let up = layout.infos().into_iter().find(|info| info.name == "side.up.weight").unwrap();
        for (i, value) in values[up.offset..up.offset + up.elements()].iter_mut().enumerate() {
            *value = (i as f32).sin() * 0.3;
        }
        let side = Side::new(&device, layout, &values).unwrap();
        let prompts = vec![vec![5, 17, 200, 31], vec![9], vec![100, 101, 102, 103, 104, 105, 106]];
        for side in [None, Some(&side)] {
            let options = GenerateOptions { max_new_tokens: 9, stop: vec![2] };
            let got = pollster::block_on(generate(&model, side, &prompts, &options, &no_yield())).unwrap();
            for (prompt, got) in prompts.iter().zip(got) {
                let mut ids = prompt.clone();
                while ids.len() < prompt.len() + 9 {
                    match next_token(&device, &model, side, &ids) {
                        2 => break,
                        token => ids.push(token),
                    }
                }
                assert_eq!(got, ids[prompt.len()..], "{case}, side network: {}", side.is_some());
            }
        }
    }
}

#[test]
fn bad_prompts_are_refused() {
    let device: Device = Rc::new(CpuBackend::default());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llama-gqa");
    let config = ModelConfig::from_folder(&folder).unwrap();
    let model = Backbone::load(&device, &config, &mut FolderTensors::open(&folder).unwrap(), &Parts::all(&config)).unwrap();
    let options = GenerateOptions { max_new_tokens: 2, stop: Vec::new() };
    for (prompt, expected) in [(vec![], "no tokens"), (vec![320], "vocabulary"), (vec![1; 129], "exceeds")] {
        let error = pollster::block_on(generate(&model, None, &[prompt], &options, &no_yield())).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
