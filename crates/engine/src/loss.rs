//! Cross-entropy at labelled positions, the head taken in vocabulary chunks: `[tokens × vocab]` never exists.

use crate::backbone::Head;
use crate::op::{Activation, Layout, Op};
use crate::packed::MicroBatch;
use crate::tape::{Tape, Var, forward_product, product};
use crate::tensor::{Device, Tensor};

/// Logits of one chunk hold at most this many values (8 MiB).
const CHUNK_LOGITS: usize = 2 << 20;
/// A chunk has at least this many classes, however many rows there are.
const MIN_CHUNK_CLASSES: usize = 256;
/// Where a running maximum starts.
const LOWEST: f32 = -3.4e38;

/// Losses of the labelled rows, still on the device.
pub struct RowLosses {
    /// `[rows]`, natural logarithm, not scaled; or what they sum up to, `[1]`.
    pub losses: Tensor,
}

impl RowLosses {
    /// Their sum.
    pub async fn sum(&self) -> Result<f64, crate::BackendError> {
        Ok(self.losses.read().await?.into_iter().map(f64::from).sum())
    }
}

/// Loss of `hidden: [rows, width]` (before the final norm) against `classes` (u32 `[rows]`).
///
/// If the tape records, the gradients of `factor · Σ loss` are found at once, chunk by chunk, and put where a
/// backward pass starts: the chunks' logits are computed a second time instead of being kept.
pub fn cross_entropy(tape: &Tape, head: &Head, hidden: &Var, classes: &Tensor, factor: f32) -> RowLosses {
    let x = head.input(tape, hidden);
    let rows = classes.len();
    let device = tape.device();
    let max = Tensor::full(device, &[rows], LOWEST);
    let [sum, target] = [(); 2].map(|()| Tensor::zeros(device, &[rows]));
    let chunks = chunks(head, rows);
    let mut kept = None;
    for chunk in &chunks {
        let (logits, inner) = chunk.logits_and_inner(device, &x.value);
        logits.run(Op::SoftmaxStats {
            logits: logits.slice(),
            labels: classes.buffer(),
            max: max.slice(),
            sum: sum.slice(),
            target: target.slice(),
            rows: rows as u32,
            cols: logits.cols() as u32,
            first_class: chunk.first_class as u32,
        });
        kept = Some((logits, inner));
    }
    let [lse, losses] = [(); 2].map(|()| Tensor::empty(device, &[rows]));
    losses.run(Op::SoftmaxLoss {
        max: max.slice(),
        sum: sum.slice(),
        target: target.slice(),
        lse: lse.slice(),
        loss: losses.slice(),
        rows: rows as u32,
    });
    if tape.is_recording() && (x.is_trained() || head.shards.iter().any(|(shard, _)| shard.is_trained())) {
        let dx = Tensor::empty(device, x.value.shape());
        for (index, chunk) in chunks.iter().enumerate().rev() {
            // The last chunk's logits are still there.
            let (mut logits, inner) = kept.take().unwrap_or_else(|| chunk.logits_and_inner(device, &x.value));
            logits.run(Op::SoftmaxGrad {
                logits: logits.slice(),
                labels: classes.buffer(),
                lse: lse.slice(),
                rows: rows as u32,
                cols: logits.cols() as u32,
                first_class: chunk.first_class as u32,
                factor,
            });
            if let Some(inner) = inner {
                // cap · tanh'(z / cap) / cap.
                let through = Tensor::empty(device, logits.shape());
                let (dx, len) = (through.slice(), through.len() as u32);
                through.run(Op::ActivateGrad { activation: Activation::Tanh, x: inner.slice(), up: None, dout: logits.slice(), dx, dup: None, len });
                logits = through;
            }
            product(&logits, &chunk.weight, &dx, chunk.weight.rows(), Layout::Nn, index + 1 < chunks.len());
            chunk.var.add_weight_gradient(chunk.first_row, &logits, &x.value);
            if let Some(bias) = &head.bias {
                bias.add_bias_part_gradient(chunk.first_class, &logits);
            }
        }
        x.add_gradient(dx);
    }
    RowLosses { losses }
}

/// Loss of the labelled rows of a batch, `hidden: [rows, width]`: cross-entropy, or the squared error where it has values.
/// If the tape records, gradients of `factor · Σ loss` are put where a backward pass starts.
pub fn labelled_loss(tape: &Tape, head: &Head, hidden: &Var, batch: &MicroBatch, factor: f32) -> RowLosses {
    match batch.values.as_slice() {
        [] => cross_entropy(tape, head, hidden, &Tensor::from_u32(tape.device(), &batch.classes), factor),
        values => squared_error(tape, head, hidden, &Tensor::from_f32(tape.device(), &[values.len(), 1], values), factor),
    }
}

/// `(y − value)²` of a head with one output y, for each row of `hidden: [rows, width]`; `values: [rows, 1]`. The losses
/// come as their sum.
fn squared_error(tape: &Tape, head: &Head, hidden: &Var, values: &Tensor, factor: f32) -> RowLosses {
    let device = tape.device();
    let Some((weight, _)) = head.shards.first() else { return RowLosses { losses: Tensor::zeros(device, &[1]) } };
    let y = tape.linear(&head.input(tape, hidden), weight, head.bias.as_ref(), false);
    let difference = y.value.duplicate();
    let len = difference.len() as u32;
    difference.run(Op::Axpy { src: values.slice(), dst: difference.slice(), factor: -1.0, len });
    let losses = Tensor::zeros(device, &[1]);
    losses.run(Op::SumSquares { x: difference.slice(), out: losses.slice(), len });
    if tape.is_recording() {
        let gradient = Tensor::zeros(device, difference.shape());
        gradient.run(Op::Axpy { src: difference.slice(), dst: gradient.slice(), factor: 2.0 * factor, len });
        y.add_gradient(gradient);
    }
    RowLosses { losses }
}

/// Logits `[rows, vocab]` of a few rows: for tests and for printing; training never asks for them.
pub fn logits(tape: &Tape, head: &Head, hidden: &Var) -> Vec<Tensor> {
    let x = head.input(tape, hidden);
    chunks(head, x.value.rows()).iter().map(|chunk| chunk.logits(tape.device(), &x.value)).collect()
}

/// The likeliest class of each row of `hidden`, u32 `[rows]`; ties go to the lower class.
pub fn greedy(tape: &Tape, head: &Head, hidden: &Var) -> Tensor {
    let x = head.input(tape, hidden);
    let rows = x.value.rows();
    let device = tape.device();
    let best_value = Tensor::full(device, &[rows], LOWEST);
    let best_index = Tensor::zeros(device, &[rows]);
    for chunk in chunks(head, rows) {
        let logits = chunk.logits(device, &x.value);
        logits.run(Op::ArgMax {
            logits: logits.slice(),
            best_value: best_value.slice(),
            best_index: best_index.buffer(),
            rows: rows as u32,
            cols: logits.cols() as u32,
            first_class: chunk.first_class as u32,
        });
    }
    best_index
}

/// Some classes of a shard of the head.
struct Chunk<'a> {
    var: &'a Var,
    weight: Tensor,
    first_row: usize,
    first_class: usize,
    /// `[classes of the chunk]`.
    bias: Option<Tensor>,
    /// See [`barycenter_model::ModelConfig::logit_cap`].
    cap: Option<f32>,
}

impl Chunk<'_> {
    fn logits(&self, device: &Device, x: &Tensor) -> Tensor {
        self.logits_and_inner(device, x).0
    }

    /// Logits `[rows, classes of the chunk]`; where they are capped, `cap · tanh(z / cap)`, with z / cap of the same shape.
    fn logits_and_inner(&self, device: &Device, x: &Tensor) -> (Tensor, Option<Tensor>) {
        let logits = Tensor::empty(device, &[x.rows(), self.weight.rows()]);
        forward_product(x, &self.weight, &logits, x.cols());
        if let Some(bias) = &self.bias {
            let (rows, cols) = (logits.rows() as u32, logits.cols() as u32);
            logits.run(Op::AddBias { y: logits.slice(), bias: bias.slice(), rows, cols });
        }
        let Some(cap) = self.cap else { return (logits, None) };
        let len = logits.len() as u32;
        let [inner, capped] = [(); 2].map(|()| Tensor::zeros(device, logits.shape()));
        inner.run(Op::Axpy { src: logits.slice(), dst: inner.slice(), factor: 1.0 / cap, len });
        logits.run(Op::Activate { activation: Activation::Tanh, x: inner.slice(), up: None, out: logits.slice(), len });
        capped.run(Op::Axpy { src: logits.slice(), dst: capped.slice(), factor: cap, len });
        (capped, Some(inner))
    }
}

fn chunks(head: &Head, rows: usize) -> Vec<Chunk<'_>> {
    let classes = (CHUNK_LOGITS / rows.max(1)).max(MIN_CHUNK_CLASSES);
    let mut list = Vec::new();
    for (var, first) in &head.shards {
        let (shard_rows, width) = (var.value.rows(), var.value.cols());
        // Chunks of equal size, even, so that a packed shard is cut at whole words.
        let count = shard_rows.div_ceil(classes).max(1);
        let step = shard_rows.div_ceil(count).next_multiple_of(2);
        for first_row in (0..shard_rows).step_by(step) {
            let weight = var.value.part(first_row * width, &[step.min(shard_rows - first_row), width]);
            let first_class = first + first_row;
            let bias = head.bias.as_ref().map(|bias| bias.value.part(first_class, &[weight.rows()]));
            list.push(Chunk { var, weight, first_row, first_class, bias, cap: head.cap });
        }
    }
    list
}
