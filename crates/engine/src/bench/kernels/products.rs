//! Matrix products: those of the model's linear layers, and the small ones of the side network and of decoding.

use super::{Meter, Work, dtype_name, half, product};
use crate::backbone::upload;
use crate::backend::BackendError;
use crate::error::EngineError;
use crate::op::{Dtype, Layout};
use crate::side::side_model_config;
use crate::bench::steps::REDUCTION;
use crate::tensor::{Device, Tensor};
use barycenter_model::{ModelConfig, RawTensor, TensorDtype};

const PACKED: [Dtype; 5] = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::Q8, Dtype::Q4];
/// Labelled rows of a mini-batch: two of each of 16 sequences.
const LABELLED_ROWS: usize = 32;
/// Classes of a chunk of the head.
const HEAD_CLASSES: usize = 8192;

pub(super) async fn measure<Clock: Fn() -> f64>(meter: &mut Meter<'_, Clock>, config: &ModelConfig, tokens: usize) -> Result<(), EngineError> {
    let side = side_model_config(config, REDUCTION)?;
    for dtype in PACKED {
        linear(meter, "", tokens, config.width, config.ffn_width, dtype).await?;
    }
    linear(meter, "", tokens, config.ffn_width, config.width, Dtype::F32).await?;
    linear(meter, " (tap down)", tokens, config.width, side.width, Dtype::F32).await?;
    linear(meter, " (side, query)", tokens, side.width, side.query_width(), Dtype::F32).await?;
    linear(meter, " (side, up)", tokens, side.width, side.ffn_width, Dtype::F32).await?;
    linear(meter, " (head)", LABELLED_ROWS, config.width, HEAD_CLASSES.min(config.vocab), Dtype::F32).await?;
    for dtype in PACKED {
        forward(meter, " (decoding)", 1, config.width, config.ffn_width, dtype).await?;
    }
    Ok(())
}

/// A linear layer's three products; a packed weight is never trained, so it has two.
async fn linear<Clock: Fn() -> f64>(meter: &mut Meter<'_, Clock>, what: &str, rows: usize, inputs: usize, outputs: usize, dtype: Dtype) -> Result<(), BackendError> {
    forward(meter, what, rows, inputs, outputs, dtype).await?;
    let device = meter.device;
    let (x, dy) = (half(device, &[rows, inputs]), half(device, &[rows, outputs]));
    let weight = weight(device, outputs, inputs, dtype);
    row(meter, what, Layout::Nn, (&dy, &weight, &x), outputs).await?;
    if dtype == Dtype::F32 {
        row(meter, what, Layout::Tn, (&dy, &x, &weight), rows).await?;
    }
    Ok(())
}

async fn forward<Clock: Fn() -> f64>(meter: &mut Meter<'_, Clock>, what: &str, rows: usize, inputs: usize, outputs: usize, dtype: Dtype) -> Result<(), BackendError> {
    let device = meter.device;
    let (x, y) = (half(device, &[rows, inputs]), half(device, &[rows, outputs]));
    let weight = weight(device, outputs, inputs, dtype);
    row(meter, what, Layout::Nt, (&x, &weight, &y), inputs).await
}

async fn row<Clock: Fn() -> f64>(meter: &mut Meter<'_, Clock>, what: &str, layout: Layout, (a, b, c): (&Tensor, &Tensor, &Tensor), inner: usize) -> Result<(), BackendError> {
    let (m, n) = (c.rows(), c.cols());
    let work = Work {
        flops: 2.0 * (m * n) as f64 * inner as f64,
        bytes: 4.0 * (a.len() + c.len() + b.dtype().words(b.len())) as f64,
    };
    let kernel = format!("matmul {layout:?} {}", dtype_name(b.dtype()));
    meter.row(&kernel, format!("{m} × {n} × {inner}{what}"), work, product(a, b, c, inner, layout), c).await
}

/// `[outputs, inputs]` of 0.5, as far as the format has it.
fn weight(device: &Device, outputs: usize, inputs: usize, dtype: Dtype) -> Tensor {
    let shape = [outputs, inputs];
    let blocks = |dtype| upload(device, &RawTensor::from_f32(&shape, &vec![0.5; outputs * inputs]).converted(dtype));
    // 0.5 twice.
    let pairs = |pair: u32| Tensor::from_words(device, &shape, dtype, &vec![pair; dtype.words(outputs * inputs)]);
    match dtype {
        Dtype::F32 => half(device, &shape),
        Dtype::F16 => pairs(0x3800_3800),
        Dtype::Bf16 => pairs(0x3f00_3f00),
        Dtype::Q8 => blocks(TensorDtype::Q8),
        Dtype::Q4 => blocks(TensorDtype::Q4),
    }
}
