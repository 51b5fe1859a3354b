//! What works on rows or single values: norms, cross-entropy, activations, the side network's mixing, the optimiser.

use super::{Meter, Work, half};
use crate::backend::BackendError;
use crate::op::{Activation, Op};
use crate::tensor::Tensor;
use barycenter_model::ModelConfig;

/// Rows and classes of a chunk of logits: as large as chunks get (8 MiB).
const LOGITS: (usize, usize) = (256, 8192);
/// Values the optimiser updates.
const PARAMETERS: usize = 4 << 20;

pub(super) async fn measure<Clock: Fn() -> f64>(meter: &mut Meter<'_, Clock>, config: &ModelConfig, tokens: usize) -> Result<(), BackendError> {
    norms(meter, config, tokens).await?;
    cross_entropy(meter).await?;
    activations(meter, config, tokens).await?;
    mixing(meter, config, tokens).await?;
    optimiser(meter).await
}

async fn norms<Clock: Fn() -> f64>(meter: &mut Meter<'_, Clock>, config: &ModelConfig, tokens: usize) -> Result<(), BackendError> {
    let (device, width) = (meter.device, config.width);
    let [x, out, dy] = [(); 3].map(|()| half(device, &[tokens, width]));
    let [weight, dweight] = [(); 2].map(|()| half(device, &[width]));
    let inv = half(device, &[tokens]);
    let (rows, cols, len) = (tokens as u32, width as u32, tokens * width);
    let sizes = format!("{tokens} × {width}");
    let op = Op::RmsNorm { x: x.slice(), weight: weight.slice(), out: out.slice(), inv: inv.slice(), rows, cols, eps: 1e-6, weight_shift: 0.0 };
    meter.row("RMS norm", sizes.clone(), Work::moving(2 * len), op, &out).await?;
    let op = Op::RmsNormGrad { x: x.slice(), weight: weight.slice(), inv: inv.slice(), dy: dy.slice(), dx: out.slice(), rows, cols, weight_shift: 0.0, accumulate: false };
    meter.row("RMS norm gradient", sizes.clone(), Work::moving(3 * len), op, &out).await?;
    let op = Op::RmsNormWeightGrad { x: x.slice(), inv: inv.slice(), dy: dy.slice(), dweight: dweight.slice(), rows, cols };
    meter.row("RMS norm weight gradient", sizes.clone(), Work::moving(2 * len), op, &dweight).await?;
    let op = Op::TapScale { x: x.slice(), out: out.slice(), rho: inv.slice(), rows, cols };
    meter.row("tap scale", sizes, Work::moving(2 * len), op, &out).await
}

async fn cross_entropy<Clock: Fn() -> f64>(meter: &mut Meter<'_, Clock>) -> Result<(), BackendError> {
    let (device, (rows, cols)) = (meter.device, LOGITS);
    let logits = half(device, &[rows, cols]);
    let [max, sum, target, lse] = [(); 4].map(|()| half(device, &[rows]));
    let labels = Tensor::from_u32(device, &vec![1; rows]);
    let (len, sizes) = (rows * cols, format!("{rows} × {cols}"));
    let (rows, cols) = (rows as u32, cols as u32);
    let op = Op::SoftmaxStats { logits: logits.slice(), labels: labels.buffer(), max: max.slice(), sum: sum.slice(), target: target.slice(), rows, cols, first_class: 0 };
    meter.row("cross-entropy", sizes.clone(), Work::moving(len), op, &sum).await?;
    let op = Op::SoftmaxGrad { logits: logits.slice(), labels: labels.buffer(), lse: lse.slice(), rows, cols, first_class: 0, factor: 1.0 };
    meter.row("cross-entropy gradient", sizes, Work::moving(2 * len), op, &logits).await
}

async fn activations<Clock: Fn() -> f64>(meter: &mut Meter<'_, Clock>, config: &ModelConfig, tokens: usize) -> Result<(), BackendError> {
    let device = meter.device;
    let [x, up, out, dup] = [(); 4].map(|()| half(device, &[tokens, config.ffn_width]));
    let (len, sizes) = (x.len() as u32, format!("{tokens} × {}", config.ffn_width));
    for (activation, name) in [(Activation::Silu, "SiLU"), (Activation::Gelu, "GELU")] {
        let op = Op::Activate { activation, x: x.slice(), up: Some(up.slice()), out: out.slice(), len };
        meter.row(&format!("{name} gate"), sizes.clone(), Work::moving(3 * x.len()), op, &out).await?;
        // The gradient of the output stands where the activation's output stood.
        let [dout, dx] = [&out, &dup].map(Tensor::slice);
        let other = half(device, x.shape());
        let op = Op::ActivateGrad { activation, x: x.slice(), up: Some(up.slice()), dout, dx, dup: Some(other.slice()), len };
        meter.row(&format!("{name} gate gradient"), sizes.clone(), Work::moving(5 * x.len()), op, &other).await?;
    }
    Ok(())
}

async fn mixing<Clock: Fn() -> f64>(meter: &mut Meter<'_, Clock>, config: &ModelConfig, tokens: usize) -> Result<(), BackendError> {
    let device = meter.device;
    let [a, b, out, da, db] = [(); 5].map(|()| half(device, &[tokens, config.width]));
    let [gate, dgate] = [(); 2].map(|()| half(device, &[1]));
    let (len, values, sizes) = (a.len() as u32, a.len(), format!("{tokens} × {}", config.width));
    let op = Op::Add { a: a.slice(), b: b.slice(), out: out.slice(), len };
    meter.row("add", sizes.clone(), Work::moving(3 * values), op, &out).await?;
    let op = Op::Axpy { src: a.slice(), dst: out.slice(), factor: 0.5, len };
    meter.row("axpy", sizes.clone(), Work::moving(3 * values), op, &out).await?;
    let op = Op::GateMix { a: a.slice(), p: b.slice(), gate: gate.slice(), out: out.slice(), len, temperature: 0.1 };
    meter.row("gate mix", sizes.clone(), Work::moving(3 * values), op, &out).await?;
    let op = Op::GateMixGrad { a: a.slice(), p: b.slice(), gate: gate.slice(), dout: out.slice(), da: da.slice(), dp: db.slice(), dgate: dgate.slice(), len, temperature: 0.1 };
    meter.row("gate mix gradient", sizes, Work::moving(5 * values), op, &dgate).await?;
    let packed = Tensor::from_u32(device, &vec![0; values.div_ceil(2)]);
    let even = len / 2 * 2;
    let op = Op::PackF16 { x: a.slice(), out: packed.buffer(), len: even };
    meter.row("pack f16", format!("{even}"), Work { flops: 0.0, bytes: 6.0 * f64::from(even) }, op, &packed).await
}

async fn optimiser<Clock: Fn() -> f64>(meter: &mut Meter<'_, Clock>) -> Result<(), BackendError> {
    let device = meter.device;
    let [param, grad, m, v] = [(); 4].map(|()| half(device, &[PARAMETERS]));
    let len = PARAMETERS as u32;
    let op = Op::AdamW {
        param: param.slice(),
        grad: grad.slice(),
        m: m.slice(),
        v: v.slice(),
        len,
        step: 3,
        lr: 1e-3,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        grad_factor: 1.0,
    };
    meter.row("AdamW", format!("{PARAMETERS}"), Work::moving(7 * PARAMETERS), op, &param).await?;
    let sum = half(device, &[1]);
    let op = Op::SumSquares { x: grad.slice(), out: sum.slice(), len };
    meter.row("sum of squares", format!("{PARAMETERS}"), Work::moving(PARAMETERS), op, &sum).await
}
