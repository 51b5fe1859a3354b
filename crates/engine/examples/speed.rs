//! Measures matrix products and full training on the CPU: `cargo run --example speed`.

use barycenter_engine::op::{Dtype, Layout, Op};
use barycenter_engine::optim::{AdamWConfig, LinearSchedule};
use barycenter_engine::packed::{MicroBatch, Sequence};
use barycenter_engine::tape::no_yield;
use barycenter_engine::train_full::{FullTrainer, FullTraining};
use barycenter_engine::{CpuBackend, Device, Tensor};
use barycenter_model::ModelConfig;
use std::rc::Rc;
use std::time::Instant;

fn main() {
    let device: Device = Rc::new(CpuBackend::default());
    println!("{}", device.info().description);
    for (m, n, k) in [(1536, 512, 192), (1536, 192, 512), (1536, 192, 192), (1536, 4096, 192), (1024, 1024, 1024), (1, 1536, 576), (1, 49_152, 576)] {
        for layout in [Layout::Nt, Layout::Nn, Layout::Tn] {
            let [a, b, c] = [m * k, k * n, m * n].map(|len| Tensor::full(&device, &[len], 0.5));
            let op = |b_dtype| Op::MatMul {
                a: a.slice(), b: b.slice(), c: c.slice(), m: m as u32, n: n as u32, k: k as u32, layout, b_dtype, accumulate: false,
            };
            let dtypes: &[Dtype] = if layout == Layout::Tn { &[Dtype::F32] } else { &[Dtype::F32, Dtype::F16, Dtype::Q8, Dtype::Q4] };
            for &dtype in dtypes {
                device.run(op(dtype));
                let (start, mut runs) = (Instant::now(), 0);
                while start.elapsed().as_secs_f64() < 0.3 {
                    device.run(op(dtype));
                    runs += 1;
                }
                let gflops = 2.0 * (m * n * k * runs) as f64 / start.elapsed().as_secs_f64() / 1e9;
                println!("matmul {m}x{n}x{k} {layout:?} {dtype:?}: {gflops:.1} GFLOP/s");
            }
        }
    }
    let json = serde_json::json!({
        "model_type": "llama", "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6,
        "num_key_value_heads": 3, "intermediate_size": 512, "vocab_size": 2048, "tie_word_embeddings": true
    });
    let config = ModelConfig::parse(&json.to_string()).expect("a valid config");
    let training = FullTraining {
        schedule: LinearSchedule { warmup_steps: 5, total_steps: 1000, peak_lr: 1e-3 },
        optimiser: AdamWConfig::default(),
        max_norm: 1.0,
    };
    let mut trainer = FullTrainer::fresh(&device, &config, 1, training).expect("a model");
    let sequences: Vec<Sequence> = (0..32u32)
        .map(|s| {
            let ids: Vec<u32> = (0..48u32).map(|t| (s * 31 + t * t * 7 + s * t) % 2048).collect();
            let labels = (0..47).map(|t| (t, ids[t as usize + 1])).collect();
            Sequence { ids, labels }
        })
        .collect();
    let batch = vec![MicroBatch::pack(&sequences)];
    let parameters: usize = trainer.parameters.flat_len();
    let hook = no_yield();
    pollster::block_on(async {
        for _ in 0..3 {
            trainer.step(&batch, &hook).await.expect("a step");
        }
        let (start, mut tokens, mut last) = (Instant::now(), 0, None);
        for _ in 0..20 {
            let report = trainer.step(&batch, &hook).await.expect("a step");
            tokens += report.tokens;
            last = Some(report);
        }
        let rate = tokens as f64 / start.elapsed().as_secs_f64();
        println!("full training, {parameters} parameters: {rate:.0} tokens/s, {:.0} GFLOP/s useful, {last:?}", 6.0 * rate * parameters as f64 / 1e9);
        println!("{:?}", device.memory());
    });
}
