//! Attention, at the sizes of the model and of its side network.

use super::{Meter, Work, half};
use crate::backend::BackendError;
use crate::bench::steps::REDUCTION;
use crate::error::EngineError;
use crate::op::Op;
use crate::packed::attention_shape;
use crate::side::side_model_config;
use crate::tensor::Tensor;
use barycenter_model::ModelConfig;

pub(super) async fn measure<Clock: Fn() -> f64>(meter: &mut Meter<'_, Clock>, config: &ModelConfig, batch: usize, sequence: usize) -> Result<(), EngineError> {
    stack(meter, config, batch, sequence).await?;
    Ok(stack(meter, &side_model_config(config, REDUCTION)?, batch, sequence).await?)
}

async fn stack<Clock: Fn() -> f64>(meter: &mut Meter<'_, Clock>, config: &ModelConfig, batch: usize, sequence: usize) -> Result<(), BackendError> {
    let (device, tokens) = (meter.device, batch * sequence);
    let wide = || half(device, &[tokens, config.query_width()]);
    let narrow = || half(device, &[tokens, config.kv_width()]);
    let scores = || half(device, &[tokens, config.heads]);
    let (q, out, dout, dq) = (wide(), wide(), wide(), wide());
    let (k, v, dk, dv) = (narrow(), narrow(), narrow(), narrow());
    let (lse, delta) = (scores(), scores());
    let rows: Vec<u32> = (0..batch).flat_map(|at| [at * sequence, (at + 1) * sequence].repeat(2)).map(|row| row as u32).collect();
    let table = Tensor::from_u32(device, &rows);
    let shape = attention_shape(config, 0, batch, tokens as u32, tokens as u32);
    let pairs = batch * config.heads * if config.causal { sequence * (sequence + 1) / 2 } else { sequence * sequence };
    // A product of a query with a key, or of a weight with a value: one multiplication and addition a column.
    let products = |count: f64| count * 2.0 * (pairs * config.head_dim) as f64;
    let sizes = format!("{batch} × {sequence} tokens, {} heads of {}", config.heads, config.head_dim);

    let work = Work { flops: products(2.0), bytes: 4.0 * (2 * q.len() + 2 * k.len() + lse.len()) as f64 };
    let op = Op::Attention { q: q.slice(), k: k.slice(), v: v.slice(), table: table.buffer(), bias: None, out: out.slice(), lse: lse.slice(), shape };
    meter.row("attention", sizes.clone(), work, op, &out).await?;

    // Scores again, then the gradients of weights, values, queries and keys.
    let work = Work { flops: products(5.0), bytes: 4.0 * (4 * q.len() + 4 * k.len() + 2 * lse.len()) as f64 };
    let op = Op::AttentionGrad {
        q: q.slice(),
        k: k.slice(),
        v: v.slice(),
        table: table.buffer(),
        out: out.slice(),
        lse: lse.slice(),
        dout: dout.slice(),
        delta: delta.slice(),
        bias: None,
        dq: dq.slice(),
        dk: dk.slice(),
        dv: dv.slice(),
        dbias: None,
        shape,
    };
    meter.row("attention gradient", sizes, work, op, &dq).await
}
