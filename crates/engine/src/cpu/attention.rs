//! Softmax attention per segment and key/value head, its queries in blocks, so that scores stay in the cache.

mod bias;
mod narrow;
mod short;
mod small;

use super::matmul::{Matrix, strided};
use super::simd::{self, dot, exp, kernel, largest};
use crate::op::AttentionShape;

/// Queries that are scored together; a block holds `QUERY_BLOCK × keys` scores.
const QUERY_BLOCK: usize = 48;

/// Elements of the query side and of the key side.
pub(super) fn lengths(shape: &AttentionShape) -> (usize, usize) {
    let len = |rows: u32, heads: u32| rows as usize * heads as usize * shape.head_dim as usize;
    (len(shape.queries, shape.heads), len(shape.keys, shape.kv_heads))
}

/// Elements of the bias by distance.
pub(super) fn bias_len(shape: &AttentionShape) -> usize {
    (2 * shape.bias_zero as usize + 1) * shape.heads as usize
}

/// What an attention reads.
pub(super) struct Inputs<'a> {
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
    pub table: &'a [u32],
    pub bias: Option<&'a [f32]>,
}

/// What the gradient needs of the forward pass.
pub(super) struct Forward<'a> {
    pub inputs: Inputs<'a>,
    pub out: &'a [f32],
    pub lse: &'a [f32],
}

/// What the gradient writes; `dbias` is empty where it is not wanted.
pub(super) struct Gradients<'a> {
    pub delta: &'a mut [f32],
    pub dq: &'a mut [f32],
    pub dk: &'a mut [f32],
    pub dv: &'a mut [f32],
    pub dbias: &'a mut [f32],
}

pub(super) fn attention(inputs: &Inputs<'_>, out: &mut [f32], lse: &mut [f32], shape: &AttentionShape) {
    if short::applies(inputs, shape) {
        return short::attention(inputs, out, lse, shape);
    }
    by_blocks(inputs, out, lse, shape);
}

fn by_blocks(inputs: &Inputs<'_>, out: &mut [f32], lse: &mut [f32], shape: &AttentionShape) {
    let tasks = Task::all(inputs.table, shape);
    let work = tasks.iter().map(Task::work).sum();
    let results = simd::map_tasks(tasks.len(), work, |index| attend(&tasks[index], inputs, shape));
    for (task, (task_out, task_lse)) in tasks.iter().zip(results) {
        task.put_queries(&task_out, out, task.head_dim);
        task.put_queries(&task_lse, lse, 1);
    }
}

pub(super) fn attention_grad(forward: &Forward<'_>, dout: &[f32], to: Gradients<'_>, shape: &AttentionShape) {
    if short::applies(&forward.inputs, shape) {
        return short::attention_grad(forward, dout, to, shape);
    }
    by_blocks_grad(forward, dout, to, shape);
}

fn by_blocks_grad(forward: &Forward<'_>, dout: &[f32], to: Gradients<'_>, shape: &AttentionShape) {
    let tasks = Task::all(forward.inputs.table, shape);
    let work = tasks.iter().map(Task::work).sum();
    let bias_wanted = !to.dbias.is_empty();
    let results = simd::map_tasks(tasks.len(), work, |index| attend_grad(&tasks[index], forward, dout, bias_wanted, shape));
    for values in [&mut *to.dq, to.dk, to.dv, to.delta, to.dbias] {
        values.fill(0.0);
    }
    for (task, grads) in tasks.iter().zip(results) {
        task.put_queries(&grads.dq, to.dq, task.head_dim);
        task.put_queries(&grads.delta, to.delta, 1);
        task.put_keys(&grads.dk, to.dk);
        task.put_keys(&grads.dv, to.dv);
        let rows = to.dbias.chunks_exact_mut(shape.heads as usize).zip(grads.dbias.chunks_exact(task.group));
        rows.for_each(|(sum, part)| sum[task.kv_head * task.group..].iter_mut().zip(part).for_each(|(sum, part)| *sum += part));
    }
}

/// One segment and one key/value head with the query heads that read it.
struct Task {
    q_start: usize,
    queries: usize,
    k_start: usize,
    keys: usize,
    kv_head: usize,
    group: usize,
    head_dim: usize,
    /// Elements between rows of q, and of k.
    q_stride: usize,
    k_stride: usize,
}

impl Task {
    fn all(table: &[u32], shape: &AttentionShape) -> Vec<Self> {
        let (heads, kv_heads, head_dim) = (shape.heads as usize, shape.kv_heads as usize, shape.head_dim as usize);
        let task = |row: &[u32], kv_head| Self {
            q_start: row[0] as usize,
            queries: (row[1] - row[0]) as usize,
            k_start: row[2] as usize,
            keys: (row[3] - row[2]) as usize,
            kv_head,
            group: heads / kv_heads,
            head_dim,
            q_stride: heads * head_dim,
            k_stride: kv_heads * head_dim,
        };
        table.chunks_exact(4).flat_map(|row| (0..kv_heads).map(move |kv_head| task(row, kv_head))).collect()
    }

    fn work(&self) -> usize {
        self.group * self.queries * self.keys * self.head_dim / 4
    }

    /// Offset of query row `i` of the `g`-th head of the group.
    fn q_at(&self, g: usize, i: usize) -> usize {
        (self.q_start + i) * self.q_stride + (self.kv_head * self.group + g) * self.head_dim
    }

    fn k_at(&self, j: usize) -> usize {
        (self.k_start + j) * self.k_stride + self.kv_head * self.head_dim
    }

    /// The keys query `i` sees.
    fn seen(&self, i: usize, shape: &AttentionShape) -> std::ops::Range<usize> {
        let end = if shape.causal { i + 1 + self.keys - self.queries } else { self.keys };
        let start = if shape.window == 0 { 0 } else { end.saturating_sub(shape.window as usize) };
        start..end
    }

    /// Row of the bias for query `i` and key `j`.
    fn bias_row(&self, i: usize, j: usize, shape: &AttentionShape) -> usize {
        shape.bias_zero as usize + self.queries + j - self.keys - i
    }

    /// Brings raw scores of query `i` and keys `first..` to their scaled and biased form.
    fn bias_scores(&self, scores: &mut [f32], bias: &[f32], (g, i): (usize, usize), first: usize, shape: &AttentionShape) {
        let heads = shape.heads as usize;
        let head = self.kv_head * self.group + g;
        let seen = self.seen(i, shape);
        for j in seen {
            let score = &mut scores[j - first];
            *score = *score * shape.scale + bias[self.bias_row(i, j, shape) * heads + head];
        }
    }

    /// Blocks of queries with the keys any of them sees: (first query, count, keys).
    fn blocks(&self, shape: &AttentionShape) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
        (0..self.queries).step_by(QUERY_BLOCK).map(|first| {
            let count = QUERY_BLOCK.min(self.queries - first);
            let keys = self.seen(first, shape).start..self.seen(first + count - 1, shape).end;
            (first, count, keys)
        })
    }

    /// Moves `[group, queries, width]` to its place in `[queries, heads, width]`.
    fn put_queries(&self, from: &[f32], to: &mut [f32], width: usize) {
        for (row, from) in from.chunks_exact(width).enumerate() {
            let at = self.q_at(row / self.queries, row % self.queries) / self.head_dim * width;
            to[at..at + width].copy_from_slice(from);
        }
    }

    fn put_keys(&self, from: &[f32], to: &mut [f32]) {
        for (row, from) in from.chunks_exact(self.head_dim).enumerate() {
            to[self.k_at(row)..][..self.head_dim].copy_from_slice(from);
        }
    }
}

/// Returns the outputs `[group, queries, head_dim]` and log-sums `[group, queries]`.
fn attend(task: &Task, inputs: &Inputs<'_>, shape: &AttentionShape) -> (Vec<f32>, Vec<f32>) {
    let Inputs { q, k, v, bias, .. } = *inputs;
    let mut out = vec![0f32; task.group * task.queries * task.head_dim];
    let mut lse = vec![0f32; task.group * task.queries];
    let mut scores = Vec::new();
    for g in 0..task.group {
        for (first, count, keys) in task.blocks(shape) {
            let width = keys.len();
            scores.resize(count * width, 0.0);
            let query = Matrix(&q[task.q_at(g, first)..], (task.q_stride, 1));
            let key = Matrix(&k[task.k_at(keys.start)..], (1, task.k_stride));
            strided(query, key, &mut scores, width, (count, width, task.head_dim), false, false);
            for (i, row) in scores.chunks_exact_mut(width).enumerate() {
                let seen = task.seen(first + i, shape);
                let mut scale = shape.scale;
                if let Some(bias) = bias {
                    task.bias_scores(row, bias, (g, first + i), keys.start, shape);
                    scale = 1.0;
                }
                lse[g * task.queries + first + i] = softmax_row(row, seen.start - keys.start, seen.end - keys.start, scale);
            }
            let value = Matrix(&v[task.k_at(keys.start)..], (task.k_stride, 1));
            let out = &mut out[(g * task.queries + first) * task.head_dim..];
            strided(Matrix(&scores, (width, 1)), value, out, task.head_dim, (count, task.head_dim, width), false, false);
        }
    }
    (out, lse)
}

/// Gradients of one task.
struct Grads {
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
    delta: Vec<f32>,
    /// `[distances, group]`, or empty.
    dbias: Vec<f32>,
}

fn attend_grad(task: &Task, forward: &Forward<'_>, dout: &[f32], bias_wanted: bool, shape: &AttentionShape) -> Grads {
    let inputs = &forward.inputs;
    let (rows, head_dim) = (task.group * task.queries, task.head_dim);
    let mut grads = Grads {
        dq: vec![0f32; rows * head_dim],
        dk: vec![0f32; task.keys * head_dim],
        dv: vec![0f32; task.keys * head_dim],
        delta: vec![0f32; rows],
        dbias: vec![0f32; if bias_wanted { (2 * shape.bias_zero as usize + 1) * task.group } else { 0 }],
    };
    let (mut probs, mut dscores) = (Vec::new(), Vec::new());
    for g in 0..task.group {
        for (first, count, keys) in task.blocks(shape) {
            let width = keys.len();
            probs.resize(count * width, 0.0);
            dscores.resize(count * width, 0.0);
            let queries = &inputs.q[task.q_at(g, first)..];
            let douts = &dout[task.q_at(g, first)..];
            let keys_from = &inputs.k[task.k_at(keys.start)..];
            let values_from = &inputs.v[task.k_at(keys.start)..];
            let (q_stride, k_stride) = (task.q_stride, task.k_stride);
            let sizes = (count, width, head_dim);
            strided(Matrix(queries, (q_stride, 1)), Matrix(keys_from, (1, k_stride)), &mut probs, width, sizes, false, false);
            strided(Matrix(douts, (q_stride, 1)), Matrix(values_from, (1, k_stride)), &mut dscores, width, sizes, false, false);
            for (i, (p, ds)) in probs.chunks_exact_mut(width).zip(dscores.chunks_exact_mut(width)).enumerate() {
                let at = task.q_at(g, first + i);
                let delta = dot(&dout[at..at + head_dim], &forward.out[at..at + head_dim]);
                grads.delta[g * task.queries + first + i] = delta;
                let seen = task.seen(first + i, shape);
                let lse = forward.lse[at / head_dim];
                let mut scale = shape.scale;
                if let Some(bias) = inputs.bias {
                    task.bias_scores(p, bias, (g, first + i), keys.start, shape);
                    scale = 1.0;
                }
                score_grad_row(p, ds, seen.start - keys.start, seen.end - keys.start, (scale, shape.scale), lse, delta);
                if bias_wanted {
                    for j in seen {
                        grads.dbias[task.bias_row(first + i, j, shape) * task.group + g] += ds[j - keys.start] / shape.scale;
                    }
                }
            }
            let dq = &mut grads.dq[(g * task.queries + first) * head_dim..];
            strided(Matrix(&dscores, (width, 1)), Matrix(keys_from, (k_stride, 1)), dq, head_dim, (count, head_dim, width), false, false);
            let (at, sizes) = (keys.start * head_dim, (width, head_dim, count));
            strided(Matrix(&dscores, (1, width)), Matrix(queries, (q_stride, 1)), &mut grads.dk[at..], head_dim, sizes, true, false);
            strided(Matrix(&probs, (1, width)), Matrix(douts, (q_stride, 1)), &mut grads.dv[at..], head_dim, sizes, true, false);
        }
    }
    grads
}

kernel! {
    /// Scores to probabilities over `start..end` of the row, 0 elsewhere; returns log Σ exp.
    fn softmax_row(row: &mut [f32], start: usize, end: usize, scale: f32) -> f32 {
        row[..start].fill(0.0);
        row[end..].fill(0.0);
        let row = &mut row[start..end];
        for x in row.iter_mut() {
            *x *= scale;
        }
        let max = largest(row);
        for x in row.iter_mut() {
            *x = exp(*x - max);
        }
        let sum: f32 = simd::sum(row);
        let inverse = 1.0 / sum;
        for x in row.iter_mut() {
            *x *= inverse;
        }
        max + sum.ln()
    }
}

kernel! {
    /// Scores in `p`, times `scales.0`, become probabilities; d(probability) in `ds` becomes d(raw score), `scales.1`
    /// being what a raw score is multiplied by.
    fn score_grad_row(p: &mut [f32], ds: &mut [f32], start: usize, end: usize, scales: (f32, f32), lse: f32, delta: f32) {
        for row in [&mut *p, &mut *ds] {
            row[..start].fill(0.0);
            row[end..].fill(0.0);
        }
        for (p, ds) in p[start..end].iter_mut().zip(&mut ds[start..end]) {
            *p = exp(*p * scales.0 - lse);
            *ds = *p * (*ds - delta) * scales.1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values in −1 … 1 that look random and are the same in every run.
    fn values(len: usize, seed: u32) -> Vec<f32> {
        (0..len as u32).map(|i| ((i.wrapping_mul(2_654_435_761) ^ seed.wrapping_mul(40_503)) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    fn assert_close(got: &[f32], want: &[f32], what: &str) {
        let worst = got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(got.len() == want.len() && worst < 2e-5, "{what}: {worst}");
    }

    /// (query rows, key rows) of each segment; a row of no segment behind the first.
    fn compare(segments: &[(u32, u32)], heads: (u32, u32), head_dim: u32, causal: bool, window: u32, biased: bool) {
        let (mut table, mut queries, mut keys) = (Vec::new(), 0, 0);
        for (index, (q, k)) in segments.iter().enumerate() {
            let gap = u32::from(index == 1);
            (queries, keys) = (queries + gap, keys + gap);
            table.extend([queries, queries + q, keys, keys + k]);
            (queries, keys) = (queries + q, keys + k);
        }
        let bias_zero = if biased { segments.iter().map(|(q, k)| q.max(k) - 1).max().unwrap() } else { 0 };
        let shape = AttentionShape { heads: heads.0, kv_heads: heads.1, head_dim, scale: 0.7, bias_zero, causal, window, segments: segments.len() as u32, queries, keys };
        let (len, kv_len) = lengths(&shape);
        let (q, k, v, dout) = (values(len, 1), values(kv_len, 2), values(kv_len, 3), values(len, 4));
        let bias = values(bias_len(&shape), 5);
        let inputs = || Inputs { q: &q, k: &k, v: &v, table: &table, bias: biased.then_some(&bias) };
        let rows = (queries * heads.0) as usize;
        // Rows of no segment are left as they are by a forward pass, and 0 in a gradient.
        let (mut out, mut lse, mut want_out, mut want_lse) = (vec![0.0; len], vec![0.0; rows], vec![0.0; len], vec![0.0; rows]);
        short::attention(&inputs(), &mut out, &mut lse, &shape);
        by_blocks(&inputs(), &mut want_out, &mut want_lse, &shape);
        let what = format!("{segments:?} {shape:?}");
        assert_close(&out, &want_out, &format!("out {what}"));
        assert_close(&lse, &want_lse, &format!("lse {what}"));
        let grads = |short: bool| {
            let mut to = [vec![9.0; len], vec![9.0; kv_len], vec![9.0; kv_len], vec![9.0; rows], vec![9.0; if biased { bias.len() } else { 0 }]];
            let [dq, dk, dv, delta, dbias] = &mut to;
            let gradients = Gradients { dq, dk, dv, delta, dbias };
            let forward = Forward { inputs: inputs(), out: &want_out, lse: &want_lse };
            if short { short::attention_grad(&forward, &dout, gradients, &shape) } else { by_blocks_grad(&forward, &dout, gradients, &shape) }
            to
        };
        for ((got, want), name) in grads(true).iter().zip(&grads(false)).zip(["dq", "dk", "dv", "delta", "dbias"]) {
            assert_close(got, want, &format!("{name} {what}"));
        }
    }

    #[test]
    fn short_and_blocked_attention_agree() {
        for head_dim in [4, 8, 12, 16, 5, 32] {
            for (causal, window) in [(true, 0), (true, 5), (false, 0), (false, 7)] {
                for segments in [&[(1, 1), (8, 8), (25, 25)][..], &[(17, 17), (9, 9)], &[(3, 20), (1, 33), (40, 41)]] {
                    for heads in [(6, 3), (4, 4), (4, 1)] {
                        compare(segments, heads, head_dim, causal, window, false);
                        compare(segments, heads, head_dim, causal, window, true);
                    }
                }
            }
        }
        compare(&[(5, 9), (30, 2)], (4, 2), 8, false, 0, false);
        compare(&[(5, 9), (30, 2)], (4, 2), 8, false, 0, true);
    }
}
