//! Attention over short sequences, one segment a job. Nothing is allocated: scratch belongs to the thread, results go
//! where they stay. A side network's narrow heads have their own functions ([`super::narrow`]); for wider ones keys and
//! values of one head, transposed, stay in the first-level cache, and a few queries at once meet all their keys as vectors.

use super::super::simd::{self, LANES, exp, fused_kernel, lane_sum};
use super::bias::{BiasSizes, HeadBias};
use super::small::{ROWS, columns_times, rows_times, transpose};
use super::{Forward, Gradients, Inputs, narrow};
use crate::op::AttentionShape;
use std::cell::RefCell;

/// Keys and values of a head, transposed, hold at most this many values each (32 KiB).
const HEAD_VALUES: usize = 1 << 13;

/// A segment of as many keys is worth one thread even where the others have none.
const ALONE: u32 = 512;

/// Whether these functions apply: short segments that lie one behind the other, and of a bias a row for each of their distances. How
/// many segments there are and how many threads matters only for longer ones: sums do not depend on what else is in the batch.
pub(super) fn applies(inputs: &Inputs<'_>, shape: &AttentionShape) -> bool {
    let (mut q_end, mut k_end, mut longest, mut most) = (0, 0, 0, 0);
    for row in inputs.table.chunks_exact(4) {
        let (queries, keys) = (row[1] - row[0], row[3] - row[2]);
        if row[0] < q_end || row[2] < k_end || keys == 0 || shape.causal && keys < queries {
            return false;
        }
        (q_end, k_end, longest, most) = (row[1], row[3], longest.max(keys), most.max(queries));
    }
    let values = (longest as usize).next_multiple_of(LANES) * shape.head_dim as usize;
    let has_distances = inputs.bias.is_none() || longest.max(most) <= shape.bias_zero + 1;
    let shared_out = longest <= ALONE || inputs.table.len() >= 8 * simd::threads();
    has_distances && values <= HEAD_VALUES && shared_out
}

/// Values of one thread, kept from call to call.
#[derive(Default)]
pub(super) struct Scratch {
    /// Scores of a block of queries, or gradients of keys and values in lanes ([`super::narrow`]).
    pub lanes: Vec<f32>,
    /// Keys and values `[head_dim, pad]`.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Probabilities and score gradients `[queries, pad]`, 0 where a key is not seen.
    probs: Vec<f32>,
    dscores: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Sizes of one segment; `q` and `k` rows of it are slices that begin at its first row.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub queries: usize,
    pub keys: usize,
    /// Keys rounded up to whole vectors.
    pad: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    causal: bool,
    window: usize,
    pub scale: f32,
}

impl Segment {
    fn new(row: &[u32], shape: &AttentionShape) -> Self {
        let keys = (row[3] - row[2]) as usize;
        Self {
            queries: (row[1] - row[0]) as usize,
            keys,
            pad: keys.next_multiple_of(LANES),
            heads: shape.heads as usize,
            kv_heads: shape.kv_heads as usize,
            head_dim: shape.head_dim as usize,
            causal: shape.causal,
            window: shape.window as usize,
            scale: shape.scale,
        }
    }

    /// The keys query `i` sees.
    #[inline(always)]
    pub fn seen(&self, i: usize) -> std::ops::Range<usize> {
        let end = if self.causal { i + 1 + self.keys - self.queries } else { self.keys };
        let start = if self.window == 0 { 0 } else { end.saturating_sub(self.window) };
        start..end
    }

    fn q_stride(&self) -> usize {
        self.heads * self.head_dim
    }

    fn k_stride(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

pub(super) fn attention(inputs: &Inputs<'_>, out: &mut [f32], lse: &mut [f32], shape: &AttentionShape) {
    let (heads, width) = (shape.heads as usize, shape.heads as usize * shape.head_dim as usize);
    let bias = inputs.bias.map(|bias| HeadBias::new(bias, shape));
    let bias = bias.as_ref();
    let outs = Parts::new(out, width, inputs.table, 0);
    let lses = Parts::new(lse, heads, inputs.table, 0);
    let rows = inputs.table.chunks_exact(4);
    let jobs: Vec<_> = rows.zip(outs).zip(lses).map(|((row, out), lse)| (row, out, lse)).collect();
    simd::for_jobs(jobs, work(shape), |(row, out, lse)| {
        let segment = Segment::new(row, shape);
        let q = &inputs.q[row[0] as usize * segment.q_stride()..];
        let (k, v) = (&inputs.k[row[2] as usize * segment.k_stride()..], &inputs.v[row[2] as usize * segment.k_stride()..]);
        SCRATCH.with_borrow_mut(|scratch| match narrow::applies(segment.head_dim) {
            true => narrow::attend(segment, (q, k, v), bias, out, lse, scratch),
            false => attend(segment, (q, k, v), bias, out, lse, scratch),
        });
    });
}

pub(super) fn attention_grad(forward: &Forward<'_>, dout: &[f32], to: Gradients<'_>, shape: &AttentionShape) {
    let inputs = &forward.inputs;
    let (heads, head_dim) = (shape.heads as usize, shape.head_dim as usize);
    let kv_width = shape.kv_heads as usize * head_dim;
    let queries = Parts::new(to.dq, heads * head_dim, inputs.table, 0).zip(Parts::new(to.delta, heads, inputs.table, 0));
    let keys = Parts::new(to.dk, kv_width, inputs.table, 2).zip(Parts::new(to.dv, kv_width, inputs.table, 2));
    let bias = inputs.bias.map(|bias| HeadBias::new(bias, shape));
    let bias = bias.as_ref();
    // The bias' gradient of each segment; they are added in the segments' order, whichever thread is done first.
    let sizes = BiasSizes::new(shape);
    let part = if to.dbias.is_empty() { 0 } else { sizes.len() };
    let mut dbiases = vec![0f32; part * inputs.table.len() / 4];
    let mut rest = &mut dbiases[..];
    let parts = std::iter::repeat_with(|| rest.split_off_mut(..part).expect("there is a part for each segment"));
    let jobs: Vec<_> = inputs.table.chunks_exact(4).zip(queries).zip(keys).zip(parts).collect();
    simd::for_jobs(jobs, 2 * work(shape), |(((row, (dq, delta)), (dk, dv)), dbias)| {
        let segment = Segment::new(row, shape);
        let (q_at, k_at) = (row[0] as usize * segment.q_stride(), row[2] as usize * segment.k_stride());
        let from = GradInputs {
            q: &inputs.q[q_at..],
            k: &inputs.k[k_at..],
            v: &inputs.v[k_at..],
            out: &forward.out[q_at..],
            lse: &forward.lse[row[0] as usize * heads..],
            dout: &dout[q_at..],
            bias,
        };
        SCRATCH.with_borrow_mut(|scratch| match narrow::applies(segment.head_dim) {
            true => narrow::attend_grad(segment, from, (dq, dk, dv, delta), dbias, scratch),
            false => attend_grad(segment, from, (dq, dk, dv, delta), dbias, scratch),
        });
    });
    to.dbias.fill(0.0);
    for part in dbiases.chunks_exact(sizes.len()) {
        sizes.add_to(part, to.dbias);
    }
}

/// About how many elementwise operations an attention is worth, for the decision to use threads.
fn work(shape: &AttentionShape) -> usize {
    let per_segment = shape.queries.div_ceil(shape.segments.max(1)) as usize;
    shape.heads as usize * shape.queries as usize * per_segment * (shape.head_dim as usize).max(8) / 8
}

/// A table's rows cut into those of each segment; rows of no segment are set to 0.
struct Parts<'a> {
    rest: &'a mut [f32],
    /// Rows already handed out.
    done: usize,
    width: usize,
    table: &'a [u32],
    /// Column of the segment table that has the first row.
    column: usize,
}

impl<'a> Parts<'a> {
    fn new(rest: &'a mut [f32], width: usize, table: &'a [u32], column: usize) -> Self {
        Self { rest, done: 0, width, table, column }
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = &'a mut [f32];

    fn next(&mut self) -> Option<Self::Item> {
        let (row, table) = self.table.split_at_checked(4)?;
        self.table = table;
        let (start, end) = (row[self.column] as usize, row[self.column + 1] as usize);
        let (gap, rest) = std::mem::take(&mut self.rest).split_at_mut((start - self.done) * self.width);
        gap.fill(0.0);
        let (part, rest) = rest.split_at_mut((end - start) * self.width);
        (self.rest, self.done) = (rest, end);
        if table.is_empty() {
            std::mem::take(&mut self.rest).fill(0.0);
        }
        Some(part)
    }
}

fused_kernel! {
    fn attend[FUSED](segment: Segment, inputs: (&[f32], &[f32], &[f32]), bias: Option<&HeadBias>, out: &mut [f32], lse: &mut [f32], scratch: &mut Scratch) {
        let (q, k, v) = inputs;
        let Segment { queries, keys, pad, heads, kv_heads, head_dim, .. } = segment;
        let (group, q_stride, k_stride) = (heads / kv_heads, heads * head_dim, kv_heads * head_dim);
        scratch.probs.resize(ROWS * pad, 0.0);
        for kv_head in 0..kv_heads {
            transpose(&k[kv_head * head_dim..], k_stride, (keys, head_dim, pad), &mut scratch.keys);
            for head in kv_head * group..(kv_head + 1) * group {
                for first in (0..queries).step_by(ROWS) {
                    let count = ROWS.min(queries - first);
                    let at = first * q_stride + head * head_dim;
                    // A later query never sees fewer keys, so the last row's width is everyone's.
                    let end = segment.seen(first + count - 1).end;
                    let wide = end.next_multiple_of(LANES);
                    rows_times::<FUSED>((&q[at..], q_stride), (&scratch.keys, pad), (&mut scratch.probs, pad), (count, wide, head_dim));
                    let mut inverse = [0f32; ROWS];
                    for (row, inverse) in inverse[..count].iter_mut().enumerate() {
                        let (scores, seen) = (&mut scratch.probs[row * pad..][..wide], segment.seen(first + row));
                        let scale = scale_and_bias(scores, &segment, (head, first + row), bias);
                        let (sum, log_sum) = exponentials(scores, seen, scale);
                        lse[(first + row) * heads + head] = log_sum;
                        *inverse = 1.0 / sum;
                    }
                    rows_times::<FUSED>((&scratch.probs, pad), (&v[kv_head * head_dim..], k_stride), (&mut out[at..], q_stride), (count, head_dim, end));
                    for (row, inverse) in inverse[..count].iter().enumerate() {
                        out[at + row * q_stride..][..head_dim].iter_mut().for_each(|x| *x *= inverse);
                    }
                }
            }
        }
    }
}

/// What the gradient of a segment reads, from its first row on.
#[derive(Clone, Copy)]
pub(super) struct GradInputs<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub out: &'a [f32],
    pub lse: &'a [f32],
    pub dout: &'a [f32],
    pub bias: Option<&'a HeadBias>,
}

/// dq, dk, dv and delta of a segment, overwritten.
pub(super) type GradOutputs<'a> = (&'a mut [f32], &'a mut [f32], &'a mut [f32], &'a mut [f32]);

fused_kernel! {
    /// `dbias` as that of [`narrow::attend_grad`].
    fn attend_grad[FUSED](segment: Segment, from: GradInputs<'_>, to: GradOutputs<'_>, dbias: &mut [f32], scratch: &mut Scratch) {
        let Segment { queries, keys, pad, heads, kv_heads, head_dim, scale, .. } = segment;
        let (dq, dk, dv, delta) = to;
        let (group, q_stride, k_stride) = (heads / kv_heads, heads * head_dim, kv_heads * head_dim);
        let Scratch { keys: kt, values: vt, probs, dscores, .. } = scratch;
        for matrix in [&mut *probs, &mut *dscores] {
            matrix.clear();
            matrix.resize(queries * pad, 0.0);
        }
        for kv_head in 0..kv_heads {
            let column = kv_head * head_dim;
            transpose(&from.k[column..], k_stride, (keys, head_dim, pad), kt);
            transpose(&from.v[column..], k_stride, (keys, head_dim, pad), vt);
            for head in kv_head * group..(kv_head + 1) * group {
                for first in (0..queries).step_by(ROWS) {
                    let count = ROWS.min(queries - first);
                    let at = first * q_stride + head * head_dim;
                    // A later query never sees fewer keys, so the last row's width is everyone's.
                    let end = segment.seen(first + count - 1).end;
                    let wide = end.next_multiple_of(LANES);
                    let (p, ds) = (&mut probs[first * pad..], &mut dscores[first * pad..]);
                    rows_times::<FUSED>((&from.q[at..], q_stride), (kt, pad), (p, pad), (count, wide, head_dim));
                    rows_times::<FUSED>((&from.dout[at..], q_stride), (vt, pad), (ds, pad), (count, wide, head_dim));
                    for row in 0..count {
                        let (i, at) = (first + row, at + row * q_stride);
                        let row_delta = simd::dot(&from.dout[at..at + head_dim], &from.out[at..at + head_dim]);
                        delta[i * heads + head] = row_delta;
                        let (p, ds, seen) = (&mut p[row * pad..][..wide], &mut ds[row * pad..][..wide], segment.seen(i));
                        let score_scale = scale_and_bias(p, &segment, (head, i), from.bias);
                        score_gradients(p, ds, seen.clone(), score_scale, from.lse[i * heads + head], row_delta);
                        if let (Some(bias), false) = (from.bias, dbias.is_empty()) {
                            let to = &mut dbias[head * bias.sizes().stride + bias.sizes().at(&segment, i, seen.start)..];
                            to.iter_mut().zip(&ds[seen]).for_each(|(to, ds)| *to += ds);
                        }
                        ds.iter_mut().for_each(|ds| *ds *= scale);
                    }
                    rows_times::<FUSED>((ds, pad), (&from.k[column..], k_stride), (&mut dq[at..], q_stride), (count, head_dim, end));
                }
                // Of the first query head the sums are the gradient, those of the others are added.
                let (of_queries, adds) = (head * head_dim, head > kv_head * group);
                // Earlier queries see neither key `j` nor a later one.
                let first_of = |j: usize| if segment.causal { j.saturating_sub(keys - queries) } else { 0 };
                let sizes = (queries, keys, head_dim);
                columns_times::<FUSED>((dscores, pad), (&from.q[of_queries..], q_stride), (&mut dk[column..], k_stride), sizes, first_of, adds);
                columns_times::<FUSED>((probs, pad), (&from.dout[of_queries..], q_stride), (&mut dv[column..], k_stride), sizes, first_of, adds);
            }
        }
    }
}

/// Scores become exp(scale · score − max), 0 where not seen; returns their sum and log Σ exp(scale · score).
#[inline(always)]
fn exponentials(row: &mut [f32], seen: std::ops::Range<usize>, scale: f32) -> (f32, f32) {
    row[..seen.start].fill(f32::MIN);
    row[seen.end..].fill(f32::MIN);
    let max = simd::largest(row) * scale;
    let mut sums = [0f32; LANES];
    for chunk in row.as_chunks_mut::<LANES>().0 {
        for i in 0..LANES {
            // What is not seen stays at the lowest value; exp would make 1e-38 of it.
            let e = if chunk[i] == f32::MIN { 0.0 } else { exp(chunk[i] * scale - max) };
            chunk[i] = e;
            sums[i] += e;
        }
    }
    let sum = lane_sum(sums);
    (sum, max + sum.ln())
}

/// Scales scores of query `i` of `head` and adds their bias, where there is one; returns what they are still to be multiplied by.
#[inline(always)]
fn scale_and_bias(scores: &mut [f32], segment: &Segment, (head, i): (usize, usize), bias: Option<&HeadBias>) -> f32 {
    let Some(bias) = bias else { return segment.scale };
    let seen = segment.seen(i);
    let biases = &bias.head(head)[bias.sizes().at(segment, i, seen.start)..];
    for (score, bias) in scores[seen].iter_mut().zip(biases) {
        *score = *score * segment.scale + bias;
    }
    1.0
}

/// Scores in `p`, times `scale`, become probabilities, d(probability) in `ds` becomes d(scaled score); both 0 where not seen.
#[inline(always)]
fn score_gradients(p: &mut [f32], ds: &mut [f32], seen: std::ops::Range<usize>, scale: f32, lse: f32, delta: f32) {
    for (p, ds) in p.as_chunks_mut::<LANES>().0.iter_mut().zip(ds.as_chunks_mut::<LANES>().0) {
        for i in 0..LANES {
            p[i] = exp(p[i] * scale - lse);
            ds[i] = p[i] * (ds[i] - delta);
        }
    }
    for row in [p, ds] {
        row[..seen.start].fill(0.0);
        row[seen.end..].fill(0.0);
    }
}
