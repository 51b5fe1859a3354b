//! A forward and backward pass against known answers, and the speed of the matrix product: run before joining.
//!
//! Phones exist whose drivers compute garbage. The known answers were computed by the CPU back end, whose numbers are
//! checked against PyTorch by the golden tests; `tests/self_test.rs` recomputes them.

use barycenter_engine::op::{Dtype, Layout, Op};
use barycenter_engine::optim::AdamWConfig;
use barycenter_engine::packed::{MicroBatch, Sequence};
use barycenter_engine::side::SideConfig;
use barycenter_engine::stage::{ForwardPass, StageRuntime};
use barycenter_engine::tape::no_yield;
use barycenter_engine::{Device, EngineError, Tensor};
use barycenter_model::names::Parts;
use barycenter_model::{MemoryTensors, ModelConfig, RawTensor};
use std::rc::Rc;

/// Largest relative error that is accepted: f32 in any order of summation stays far below.
pub const TOLERANCE: f64 = 1e-3;
/// Known answers: loss of the first step, loss after three steps of AdamW, norm of the first gradient.
pub const ANSWERS: [f64; 3] = [4.2872666865587234, 3.851275786757469, 0.7001828775885242];
/// Side of the square matrices whose product is timed.
const SIZE: usize = 256;
/// The product is repeated for at least this long, milliseconds.
const MEASURE_MILLIS: f64 = 120.0;

/// What the self-test found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Largest relative error of the answers.
    pub largest_error: f64,
    /// Speed of the matrix product, GFLOP/s.
    pub gflops: f64,
}

/// Runs both; `now_millis` is a clock that never goes back.
pub async fn run(device: &Device, now_millis: &dyn Fn() -> f64) -> Result<Outcome, EngineError> {
    let answers = answers(device).await?;
    let errors = answers.iter().zip(&ANSWERS).map(|(got, known)| ((got - known) / known).abs());
    let largest_error = errors.fold(0.0, |worst: f64, e| if e.is_nan() { f64::INFINITY } else { worst.max(e) });
    Ok(Outcome { largest_error, gflops: gflops(device, now_millis).await? })
}

/// A tiny Llama with seeded weights takes three steps of parallel-adapter training.
pub async fn answers(device: &Device) -> Result<[f64; 3], EngineError> {
    let config = ModelConfig::parse(CONFIG)?;
    let mut weights = MemoryTensors::default();
    for (index, parameter) in Parts::all(&config).parameters(&config).into_iter().enumerate() {
        let scale = if parameter.shape.len() == 1 { 0.0 } else { 0.3 };
        let values: Vec<f32> = (0..parameter.elements()).map(|i| if scale == 0.0 { 1.0 } else { scale * wave(index * 7919 + i) }).collect();
        weights.tensors.insert(parameter.name, RawTensor::from_f32(&parameter.shape, &values));
    }
    let side = SideConfig::new(4, config.layers);
    let mut runtime = StageRuntime::new(device, config.clone(), 0..config.layers, no_yield(), Rc::new(|| 0.0));
    runtime.load_backbone(&mut weights, &Parts::all(&config))?;
    runtime.start_side(&side, 0..config.layers, AdamWConfig::default(), 1)?;
    let sequence = |seed: u32, len: u32| Sequence { ids: (0..len).map(|i| (i * 13 + seed * 5) % 61).collect(), labels: (2..len - 1).map(|t| (t, (t * 17 + seed) % 61)).collect() };
    let sequences = [sequence(1, 9), sequence(2, 13)];
    let batch = MicroBatch::pack(&sequences);
    let count = batch.classes.len() as f32;
    let (mut losses, mut norm) = (Vec::new(), 0.0);
    for step in 1..=4 {
        let output = runtime.forward(0, ForwardPass { batch: &batch, input: None, forward_only: false, cache: false, loss_factor: 1.0 / count }).await?;
        runtime.backward(0, None).await?;
        if step == 1 {
            norm = runtime.gradient_squared_norm().await?.sqrt();
        }
        runtime.apply(step, 0.02, 1.0)?;
        losses.push(output.loss_sum.unwrap_or(f64::NAN) / f64::from(count));
    }
    Ok([losses[0], losses[3], norm])
}

/// GFLOP/s of a square matrix product in f32.
pub async fn gflops(device: &Device, now_millis: &dyn Fn() -> f64) -> Result<f64, EngineError> {
    let values: Vec<f32> = (0..SIZE * SIZE).map(wave).collect();
    let (a, b) = (Tensor::from_f32(device, &[SIZE, SIZE], &values), Tensor::from_f32(device, &[SIZE, SIZE], &values));
    let c = Tensor::zeros(device, &[SIZE, SIZE]);
    let n = SIZE as u32;
    let multiply = || device.run(Op::MatMul { a: a.slice(), b: b.slice(), c: c.slice(), m: n, n, k: n, layout: Layout::Nt, b_dtype: Dtype::F32, accumulate: false });
    multiply();
    device.read(c.buffer(), 0, 1).await?;
    let (started, mut products) = (now_millis(), 0);
    let mut elapsed = 0.0;
    while elapsed < MEASURE_MILLIS {
        for _ in 0..4 {
            multiply();
            products += 1;
        }
        device.submit();
        device.read(c.buffer(), 0, 1).await?;
        elapsed = now_millis() - started;
    }
    Ok(f64::from(products) * 2.0 * (SIZE as f64).powi(3) / (elapsed * 1e6))
}

/// A deterministic value in −1 … 1.
fn wave(i: usize) -> f32 {
    let x = (i as u32).wrapping_mul(2_654_435_761) >> 8;
    x as f32 / (1 << 23) as f32 - 1.0
}

const CONFIG: &str = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_size":32,"intermediate_size":64,"num_hidden_layers":2,
"num_attention_heads":4,"num_key_value_heads":2,"vocab_size":61,"rms_norm_eps":1e-5,"rope_theta":10000.0,"max_position_embeddings":64,"tie_word_embeddings":true}"#;
