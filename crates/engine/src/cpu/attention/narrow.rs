//! Attention whose heads are a few values wide, as a side network's are: eight queries side by side in the lanes of a
//! vector, keys one after the other. No sum goes across lanes but the keys' and values' gradients, once at the end.

use super::super::simd::{exp, fused_kernel, ln, plus};
use super::bias::HeadBias;
use super::short::{GradInputs, GradOutputs, Scratch, Segment};

/// Queries side by side.
pub(super) const QUERIES: usize = 8;
/// One value of each of these queries.
type Lanes = [f32; QUERIES];

/// Whether heads of this width are compiled.
pub(super) fn applies(head_dim: usize) -> bool {
    matches!(head_dim, 4 | 8 | 12 | 16)
}

/// `inputs`: q, k, v of the segment, from its first row on.
pub(super) fn attend(segment: Segment, inputs: (&[f32], &[f32], &[f32]), bias: Option<&HeadBias>, out: &mut [f32], lse: &mut [f32], scratch: &mut Scratch) {
    let function = match segment.head_dim {
        4 => attend_4,
        8 => attend_8,
        12 => attend_12,
        _ => attend_16,
    };
    function(segment, inputs, bias, out, lse, scratch);
}

/// `dbias`: gradient of scaled scores by [`super::bias::BiasSizes::at`] for each head, added to; empty where it is not wanted.
pub(super) fn attend_grad(segment: Segment, from: GradInputs<'_>, to: GradOutputs<'_>, dbias: &mut [f32], scratch: &mut Scratch) {
    let function = match segment.head_dim {
        4 => attend_grad_4,
        8 => attend_grad_8,
        12 => attend_grad_12,
        _ => attend_grad_16,
    };
    function(segment, from, to, dbias, scratch);
}

macro_rules! of_width {
    ($width:literal, $attend:ident, $attend_grad:ident) => {
        fused_kernel! {
            fn $attend[FUSED](segment: Segment, inputs: (&[f32], &[f32], &[f32]), bias: Option<&HeadBias>, out: &mut [f32], lse: &mut [f32], scratch: &mut Scratch) {
                attend_width::<$width, FUSED>(segment, inputs, bias, out, lse, &mut scratch.lanes);
            }
        }
        fused_kernel! {
            fn $attend_grad[FUSED](segment: Segment, from: GradInputs<'_>, to: GradOutputs<'_>, dbias: &mut [f32], scratch: &mut Scratch) {
                attend_grad_width::<$width, FUSED>(segment, from, to, dbias, &mut scratch.lanes);
            }
        }
    };
}
of_width!(4, attend_4, attend_grad_4);
of_width!(8, attend_8, attend_grad_8);
of_width!(12, attend_12, attend_grad_12);
of_width!(16, attend_16, attend_grad_16);

/// Up to eight queries of one head.
struct Block {
    first: usize,
    count: usize,
    /// Element of the head's first value in the first query's row, and elements between rows.
    at: usize,
    stride: usize,
    /// Keys any of the queries sees, and those all of them see.
    some: std::ops::Range<usize>,
    all: std::ops::Range<usize>,
    /// The keys each query sees: the first, and the first behind them.
    starts: [i32; QUERIES],
    ends: [i32; QUERIES],
}

impl Block {
    #[inline(always)]
    fn new(segment: &Segment, head: usize, first: usize) -> Self {
        let (count, stride) = (QUERIES.min(segment.queries - first), segment.heads * segment.head_dim);
        let (low, high) = (segment.seen(first), segment.seen(first + count - 1));
        // Lanes without a query see all keys of the block: finite, and never stored.
        let (mut starts, mut ends) = ([low.start as i32; QUERIES], [high.end as i32; QUERIES]);
        for lane in 0..count {
            let range = segment.seen(first + lane);
            (starts[lane], ends[lane]) = (range.start as i32, range.end as i32);
        }
        let (some, all) = (low.start..high.end, high.start..low.end);
        Self { first, count, at: first * stride + head * segment.head_dim, stride, some, all, starts, ends }
    }

    /// The queries' values of a table with their rows, 0 in lanes without a query.
    #[inline(always)]
    fn load<const WIDTH: usize>(&self, from: &[f32]) -> [Lanes; WIDTH] {
        let mut lanes = [[0f32; QUERIES]; WIDTH];
        for lane in 0..self.count {
            let row = &from[self.at + lane * self.stride..][..WIDTH];
            for d in 0..WIDTH {
                lanes[d][lane] = row[d];
            }
        }
        lanes
    }

    #[inline(always)]
    fn store<const WIDTH: usize>(&self, values: &[Lanes; WIDTH], to: &mut [f32]) {
        for lane in 0..self.count {
            let row = &mut to[self.at + lane * self.stride..][..WIDTH];
            for d in 0..WIDTH {
                row[d] = values[d][lane];
            }
        }
    }

    /// Sets lanes whose query does not see key `j` to `value`.
    #[inline(always)]
    fn mask(&self, j: usize, lanes: &mut Lanes, value: f32) {
        if !self.all.contains(&j) {
            let j = j as i32;
            for ((x, start), end) in lanes.iter_mut().zip(self.starts).zip(self.ends) {
                *x = if (j >= start) & (j < end) { *x } else { value };
            }
        }
    }
}

/// Σ_d a[d] · row[d], in every lane.
#[inline(always)]
fn dot<const WIDTH: usize, const FUSED: bool>(a: &[Lanes; WIDTH], row: &[f32]) -> Lanes {
    let mut sum = [0f32; QUERIES];
    for d in 0..WIDTH {
        add_times::<FUSED>(&mut sum, &a[d], row[d]);
    }
    sum
}

/// `sum += a · factor`, in every lane.
#[inline(always)]
fn add_times<const FUSED: bool>(sum: &mut Lanes, a: &Lanes, factor: f32) {
    for i in 0..QUERIES {
        sum[i] = plus::<FUSED>(a[i], factor, sum[i]);
    }
}

/// `sums[d] += a · b[d]`, lane by lane. (Each sum is taken out and put back, so that the compiler sees whole vectors.)
#[inline(always)]
fn add_products<const WIDTH: usize, const FUSED: bool>(sums: &mut [Lanes], a: &Lanes, b: &[Lanes; WIDTH]) {
    for (to, b) in sums.iter_mut().zip(b) {
        let mut sum = *to;
        for i in 0..QUERIES {
            sum[i] = plus::<FUSED>(a[i], b[i], sum[i]);
        }
        *to = sum;
    }
}

/// Raw scores become scaled ones with their bias; `near`: the first query's place in the head's biases, the others' are before it.
#[inline(always)]
fn add_bias(scores: &mut Lanes, scale: f32, biases: &[f32], near: usize) {
    let biases = &biases[near + 1 - QUERIES..][..QUERIES];
    for i in 0..QUERIES {
        scores[i] = scores[i] * scale + biases[QUERIES - 1 - i];
    }
}

/// The lanes added as a tree.
#[inline(always)]
fn total(lanes: &Lanes) -> f32 {
    let mut sums = [0f32; QUERIES / 2];
    for i in 0..QUERIES / 2 {
        sums[i] = lanes[i] + lanes[i + QUERIES / 2];
    }
    (sums[0] + sums[2]) + (sums[1] + sums[3])
}

#[inline(always)]
fn attend_width<const WIDTH: usize, const FUSED: bool>(
    segment: Segment,
    (q, k, v): (&[f32], &[f32], &[f32]),
    bias: Option<&HeadBias>,
    out: &mut [f32],
    lse: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let (group, k_stride) = (segment.heads / segment.kv_heads, segment.kv_heads * WIDTH);
    // Scores with a bias are scaled already.
    let scale = if bias.is_some() { 1.0 } else { segment.scale };
    scratch.resize(segment.keys * QUERIES, 0.0);
    let scores = scratch.as_chunks_mut::<QUERIES>().0;
    for head in 0..segment.heads {
        let column = head / group * WIDTH;
        let biases = bias.map(|bias| (bias.head(head), bias.sizes()));
        for first in (0..segment.queries).step_by(QUERIES) {
            let block = Block::new(&segment, head, first);
            let q = block.load::<WIDTH>(q);
            let mut max = [f32::MIN; QUERIES];
            for j in block.some.clone() {
                let mut s = dot::<WIDTH, FUSED>(&q, &k[j * k_stride + column..][..WIDTH]);
                if let Some((biases, sizes)) = biases {
                    add_bias(&mut s, segment.scale, biases, sizes.at(&segment, first, j));
                }
                block.mask(j, &mut s, f32::MIN);
                for i in 0..QUERIES {
                    max[i] = if s[i] > max[i] { s[i] } else { max[i] };
                }
                scores[j] = s;
            }
            let (mut sum, mut outs) = ([0f32; QUERIES], [[0f32; QUERIES]; WIDTH]);
            for j in block.some.clone() {
                let mut e = [0f32; QUERIES];
                for i in 0..QUERIES {
                    e[i] = exp((scores[j][i] - max[i]) * scale);
                }
                block.mask(j, &mut e, 0.0);
                let row = &v[j * k_stride + column..][..WIDTH];
                for i in 0..QUERIES {
                    sum[i] += e[i];
                }
                for d in 0..WIDTH {
                    add_times::<FUSED>(&mut outs[d], &e, row[d]);
                }
            }
            let mut logs = [0f32; QUERIES];
            for i in 0..QUERIES {
                logs[i] = max[i] * scale + ln(sum[i]);
                let inverse = 1.0 / sum[i];
                for out in &mut outs {
                    out[i] *= inverse;
                }
            }
            block.store(&outs, out);
            for lane in 0..block.count {
                lse[(block.first + lane) * segment.heads + head] = logs[lane];
            }
        }
    }
}

#[inline(always)]
fn attend_grad_width<const WIDTH: usize, const FUSED: bool>(
    segment: Segment,
    from: GradInputs<'_>,
    (dq, dk, dv, delta): GradOutputs<'_>,
    dbias: &mut [f32],
    scratch: &mut Vec<f32>,
) {
    let (group, k_stride, scale) = (segment.heads / segment.kv_heads, segment.kv_heads * WIDTH, segment.scale);
    let score_scale = if from.bias.is_some() { 1.0 } else { scale };
    // Of a bias' gradient one part of each sum per lane, by the first lane's distance.
    let distances = if dbias.is_empty() { 0 } else { segment.queries + segment.keys - 1 };
    for kv_head in 0..segment.kv_heads {
        let column = kv_head * WIDTH;
        // Gradients of keys and values, `[keys, WIDTH]` each, in lanes: one part of each sum per lane.
        // Behind them probabilities and score gradients of a block of queries, and the bias' gradient of a head.
        scratch.clear();
        scratch.resize((2 * segment.keys * WIDTH + 2 * segment.keys + distances) * QUERIES, 0.0);
        let (dkeys, rest) = scratch.as_chunks_mut::<QUERIES>().0.split_at_mut(segment.keys * WIDTH);
        let (dvalues, rest) = rest.split_at_mut(segment.keys * WIDTH);
        let (probs, rest) = rest.split_at_mut(segment.keys);
        let (dscores, dbiases) = rest.split_at_mut(segment.keys);
        for head in kv_head * group..(kv_head + 1) * group {
            let biases = from.bias.map(|bias| (bias.head(head), bias.sizes()));
            dbiases.fill([0.0; QUERIES]);
            for first in (0..segment.queries).step_by(QUERIES) {
                let block = Block::new(&segment, head, first);
                let (q, dout, out) = (block.load::<WIDTH>(from.q), block.load::<WIDTH>(from.dout), block.load::<WIDTH>(from.out));
                let (mut lse, mut deltas, mut dqs) = ([0f32; QUERIES], [0f32; QUERIES], [[0f32; QUERIES]; WIDTH]);
                for d in 0..WIDTH {
                    for i in 0..QUERIES {
                        deltas[i] += dout[d][i] * out[d][i];
                    }
                }
                for lane in 0..block.count {
                    let at = (block.first + lane) * segment.heads + head;
                    lse[lane] = from.lse[at];
                    delta[at] = deltas[lane];
                }
                for j in block.some.clone() {
                    let (k, v) = (&from.k[j * k_stride + column..][..WIDTH], &from.v[j * k_stride + column..][..WIDTH]);
                    let (mut p, mut ds) = (dot::<WIDTH, FUSED>(&q, k), dot::<WIDTH, FUSED>(&dout, v));
                    if let Some((biases, sizes)) = biases {
                        add_bias(&mut p, scale, biases, sizes.at(&segment, first, j));
                    }
                    for i in 0..QUERIES {
                        p[i] = exp(p[i] * score_scale - lse[i]);
                    }
                    block.mask(j, &mut p, 0.0);
                    for i in 0..QUERIES {
                        ds[i] = p[i] * (ds[i] - deltas[i]);
                    }
                    if distances > 0 {
                        let to = &mut dbiases[segment.queries - 1 + j - first];
                        for i in 0..QUERIES {
                            to[i] += ds[i];
                        }
                    }
                    for ds in &mut ds {
                        *ds *= scale;
                    }
                    (probs[j], dscores[j]) = (p, ds);
                }
                // A loop of its own: short ones overlap better than a long one.
                for j in block.some.clone() {
                    let (p, ds) = (probs[j], dscores[j]);
                    let k = &from.k[j * k_stride + column..][..WIDTH];
                    for d in 0..WIDTH {
                        add_times::<FUSED>(&mut dqs[d], &ds, k[d]);
                    }
                    add_products::<WIDTH, FUSED>(&mut dkeys[j * WIDTH..][..WIDTH], &ds, &q);
                    add_products::<WIDTH, FUSED>(&mut dvalues[j * WIDTH..][..WIDTH], &p, &dout);
                }
                block.store(&dqs, dq);
            }
            if let (Some((_, sizes)), true) = (biases, distances > 0) {
                let (to, last) = (&mut dbias[head * sizes.stride..][..sizes.stride], sizes.at(&segment, segment.queries - 1, 0));
                for (distance, lanes) in dbiases.iter().enumerate() {
                    for (lane, part) in lanes.iter().enumerate() {
                        to[last + distance - lane] += part;
                    }
                }
            }
        }
        for (lanes, to) in [(&*dkeys, &mut *dk), (&*dvalues, &mut *dv)] {
            for (j, lanes) in lanes.as_chunks::<WIDTH>().0.iter().enumerate() {
                for (to, lanes) in to[j * k_stride + column..][..WIDTH].iter_mut().zip(lanes) {
                    *to = total(lanes);
                }
            }
        }
    }
}
