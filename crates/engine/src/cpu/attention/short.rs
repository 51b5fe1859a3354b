//! Attention over short sequences, one segment a job. Nothing is allocated: scratch belongs to the thread, results go
//! where they stay. A side network's narrow heads have their own functions ([`super::narrow`]); for wider ones keys and
//! values of one head, transposed, stay in the first-level cache, and a few queries at once meet all their keys as vectors.

use super::super::simd::{self, LANES, exp, fused_kernel, kernel, lane_sum, plus};
use super::bias::{BiasSizes, HeadBias};
use super::{Forward, Gradients, Inputs, narrow};
use crate::op::AttentionShape;
use std::cell::RefCell;

/// Keys and values of a head, transposed, hold at most this many values each (32 KiB).
const HEAD_VALUES: usize = 1 << 13;

/// Queries that share the keys' and values' loads, and columns of a block: as many sums as stay in registers.
const QUERIES: usize = 4;
const COLUMNS: usize = if cfg!(target_arch = "wasm32") { 8 } else { 16 };

/// Whether these functions apply: short segments that lie one behind the other, enough of them for all threads, and of a bias
/// a row for each of their distances.
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
    has_distances && values <= HEAD_VALUES && inputs.table.len() >= 8 * simd::threads()
}

/// Values of one thread, kept from call to call.
#[derive(Default)]
pub(super) struct Scratch {
    /// Scores of a block of queries, or gradients of keys and values in lanes ([`super::narrow`]).
    pub lanes: Vec<f32>,
    /// Keys and values `[head_dim, pad]`.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Their gradients, likewise.
    dkeys: Vec<f32>,
    dvalues: Vec<f32>,
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
        scratch.probs.resize(QUERIES * pad, 0.0);
        for kv_head in 0..kv_heads {
            transpose(&k[kv_head * head_dim..], k_stride, (keys, head_dim, pad), &mut scratch.keys);
            for head in kv_head * group..(kv_head + 1) * group {
                for first in (0..queries).step_by(QUERIES) {
                    let count = QUERIES.min(queries - first);
                    let at = first * q_stride + head * head_dim;
                    // A later query never sees fewer keys, so the last row's width is everyone's.
                    let end = segment.seen(first + count - 1).end;
                    let wide = end.next_multiple_of(LANES);
                    rows_times::<FUSED>((&q[at..], q_stride), (&scratch.keys, pad), (&mut scratch.probs, pad), (count, wide, head_dim));
                    let mut inverse = [0f32; QUERIES];
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

/// `out[r, c] = Σ_i x[r, i] · m[i, c]` of sizes `(rows, cols, inner)`, rows at most [`QUERIES`]; each table with the elements
/// from one row to the next.
#[inline(always)]
fn rows_times<const FUSED: bool>(
    x: (&[f32], usize),
    m: (&[f32], usize),
    out: (&mut [f32], usize),
    (rows, cols, inner): (usize, usize, usize),
) {
    let mut at = 0;
    if rows == QUERIES {
        while at + COLUMNS <= cols {
            block_times::<QUERIES, COLUMNS, FUSED>(x, m, (out.0, out.1), at, inner);
            at += COLUMNS;
        }
    }
    for row in 0..rows {
        let x = &x.0[row * x.1..][..inner];
        row_times(x, &m.0[at..], m.1, &mut out.0[row * out.1 + at..][..cols - at]);
    }
}

/// `TALL` rows and `WIDE` columns from `at` on.
#[inline(always)]
fn block_times<const TALL: usize, const WIDE: usize, const FUSED: bool>(x: (&[f32], usize), m: (&[f32], usize), out: (&mut [f32], usize), at: usize, inner: usize) {
    let mut left = [&x.0[..0]; TALL];
    for (row, left) in left.iter_mut().enumerate() {
        *left = &x.0[row * x.1..][..inner];
    }
    let mut sums = [[0f32; WIDE]; TALL];
    for i in 0..inner {
        let right: &[f32; WIDE] = m.0[i * m.1 + at..][..WIDE].try_into().expect("the slice was just cut to that length");
        for (sums, left) in sums.iter_mut().zip(&left) {
            for (sum, right) in sums.iter_mut().zip(right) {
                *sum = plus::<FUSED>(left[i], *right, *sum);
            }
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        out.0[row * out.1 + at..][..WIDE].copy_from_slice(sums);
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

kernel! {
    /// `dbias` as that of [`narrow::attend_grad`].
    fn attend_grad(segment: Segment, from: GradInputs<'_>, to: GradOutputs<'_>, dbias: &mut [f32], scratch: &mut Scratch) {
        let Segment { queries, keys, pad, heads, kv_heads, head_dim, scale, .. } = segment;
        let (dq, dk, dv, delta) = to;
        let (group, q_stride, k_stride) = (heads / kv_heads, heads * head_dim, kv_heads * head_dim);
        let Scratch { keys: kt, values: vt, dkeys, dvalues, probs, dscores, .. } = scratch;
        for matrix in [&mut *probs, &mut *dscores] {
            matrix.clear();
            matrix.resize(queries * pad, 0.0);
        }
        for kv_head in 0..kv_heads {
            let column = kv_head * head_dim;
            transpose(&from.k[column..], k_stride, (keys, head_dim, pad), kt);
            transpose(&from.v[column..], k_stride, (keys, head_dim, pad), vt);
            for sums in [&mut *dkeys, &mut *dvalues] {
                sums.clear();
                sums.resize(head_dim * pad, 0.0);
            }
            for head in kv_head * group..(kv_head + 1) * group {
                for i in 0..queries {
                    let at = i * q_stride + head * head_dim;
                    let (q, dout) = (&from.q[at..at + head_dim], &from.dout[at..at + head_dim]);
                    let seen = segment.seen(i);
                    let wide = seen.end.next_multiple_of(LANES);
                    let (p, ds) = (&mut probs[i * pad..][..wide], &mut dscores[i * pad..][..wide]);
                    row_times(q, kt, pad, p);
                    row_times(dout, vt, pad, ds);
                    let row_delta: f32 = dout.iter().zip(&from.out[at..at + head_dim]).map(|(a, b)| a * b).sum();
                    delta[i * heads + head] = row_delta;
                    let score_scale = scale_and_bias(p, &segment, (head, i), from.bias);
                    score_gradients(p, ds, seen.clone(), score_scale, from.lse[i * heads + head], row_delta);
                    if let (Some(bias), false) = (from.bias, dbias.is_empty()) {
                        let to = &mut dbias[head * bias.sizes().stride + bias.sizes().at(&segment, i, seen.start)..];
                        to.iter_mut().zip(&ds[seen.clone()]).for_each(|(to, ds)| *to += ds);
                    }
                    ds.iter_mut().for_each(|ds| *ds *= scale);
                    let dq = &mut dq[at..at + head_dim];
                    row_times(&ds[..seen.end], &from.k[column..], k_stride, dq);
                }
                // A later query never sees fewer keys, so the last row's width is everyone's.
                for d in 0..head_dim {
                    let column = head * head_dim + d;
                    add_row_times(&from.q[column..], q_stride, dscores, (queries, pad), &mut dkeys[d * pad..][..pad]);
                    add_row_times(&from.dout[column..], q_stride, probs, (queries, pad), &mut dvalues[d * pad..][..pad]);
                }
            }
            for (sums, to) in [(&*dkeys, &mut *dk), (&*dvalues, &mut *dv)] {
                for (d, sums) in sums.chunks_exact(pad).enumerate() {
                    for (j, sum) in sums[..keys].iter().enumerate() {
                        to[j * k_stride + column + d] = *sum;
                    }
                }
            }
        }
    }
}

/// `[rows, width]` of a table with `stride` elements a row becomes `[width, pad]`, 0 behind the last row.
#[inline(always)]
fn transpose(from: &[f32], stride: usize, (rows, width, pad): (usize, usize, usize), to: &mut Vec<f32>) {
    to.clear();
    to.resize(width * pad, 0.0);
    for (j, row) in from.chunks(stride).take(rows).enumerate() {
        for (d, x) in row[..width].iter().enumerate() {
            to[d * pad + j] = *x;
        }
    }
}

/// `out[c] = Σ_r x[r] · m[r, c]`, the rows of `m` being `stride` apart.
#[inline(always)]
fn row_times(x: &[f32], m: &[f32], stride: usize, out: &mut [f32]) {
    let at = tiles::<32, false>(x, 1, m, stride, out, 0);
    let at = tiles::<16, false>(x, 1, m, stride, out, at);
    let at = tiles::<8, false>(x, 1, m, stride, out, at);
    tiles::<1, false>(x, 1, m, stride, out, at);
}

/// `out[c] += Σ_r x[r · x_stride] · m[r, c]` over the first `rows` of `m: [rows, cols]`; `cols` is whole vectors.
#[inline(always)]
fn add_row_times(x: &[f32], x_stride: usize, m: &[f32], (rows, cols): (usize, usize), out: &mut [f32]) {
    let m = &m[..rows * cols];
    let at = tiles::<32, true>(x, x_stride, m, cols, out, 0);
    tiles::<16, true>(x, x_stride, m, cols, out, at);
}

/// As many whole tiles of `N` columns as there are from `at` on; returns where they end.
#[inline(always)]
fn tiles<const N: usize, const ADD: bool>(x: &[f32], x_stride: usize, m: &[f32], stride: usize, out: &mut [f32], mut at: usize) -> usize {
    while at + N <= out.len() {
        let mut sums = [0f32; N];
        for (x, row) in x.iter().step_by(x_stride).zip(m.chunks(stride)) {
            let row = &row[at..at + N];
            for i in 0..N {
                sums[i] += x * row[i];
            }
        }
        for (out, sum) in out[at..at + N].iter_mut().zip(sums) {
            *out = if ADD { *out + sum } else { sum };
        }
        at += N;
    }
    at
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
