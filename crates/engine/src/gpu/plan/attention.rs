//! Attention and its gradient: which variant, and how many blocks a dispatch takes.

use super::{Binding, Dispatch, Plan, SUBMIT_COST, at, elements, grid, optional, scratch};
use crate::op::{AttentionShape, BufferId, Slice};

/// Attention reaches about this fraction of what a product reaches.
const COST_FACTOR: u64 = 4;
/// Columns of a head that the kernels hold at most: more overflow workgroup memory.
pub const MAX_HEAD_DIM: u32 = 256;

/// Inputs and outputs of the forward operation.
pub struct Forward {
    pub q: Slice,
    pub k: Slice,
    pub v: Slice,
    pub table: BufferId,
    pub bias: Option<Slice>,
    pub out: Slice,
    pub lse: Slice,
}

/// Outputs of the gradient.
pub struct Gradients {
    pub dq: Slice,
    pub dk: Slice,
    pub dv: Slice,
    pub dbias: Option<Slice>,
}

pub fn forward(forward: &Forward, shape: &AttentionShape) -> Plan {
    let &Forward { q, k, v, table, bias, out, lse } = forward;
    let (rows, q_len, kv_len) = lengths(shape);
    let bias_binding = optional(bias, bias_len(shape));
    let bindings =
        vec![at(q, q_len), at(k, kv_len), at(v, kv_len), at(table, 4 * shape.segments), bias_binding, at(out, q_len), at(lse, rows)];
    let vec4 = aligned(shape, &[q, k]);
    let constants = vec![("HEAD_PAD", head_pad(shape)), ("VEC4", vec4), ("BIAS", bias.is_some() as u32)];
    let mut plan = Plan::default();
    blocks(&mut plan, "attention", &constants, &bindings, shape, Blocks { count: shape.queries.div_ceil(8), heads: shape.heads, products: 2 });
    plan
}

pub fn gradient(forward: &Forward, dout: Slice, delta: Slice, grads: &Gradients, shape: &AttentionShape) -> Plan {
    let (rows, q_len, kv_len) = lengths(shape);
    // The statistics of the queries, and behind them a copy of the bias: a ninth buffer is not to be had.
    let bias_words = if forward.bias.is_some() { bias_len(shape) } else { 0 };
    let mut plan = Plan { dispatches: Vec::new(), scratch: vec![(2 * rows + bias_words) as usize] };
    let stats = scratch(0, 2 * rows + bias_words);
    if rows > 0 {
        plan.dispatches.push(Dispatch {
            kernel: "attention_grad_delta",
            constants: Vec::new(),
            bindings: vec![at(forward.out, q_len), at(dout, q_len), at(forward.lse, rows), at(delta, rows), stats],
            params: vec![rows, shape.head_dim],
            groups: grid(rows.div_ceil(256)),
            cost: 16 * u64::from(q_len),
        });
    }
    if let Some(bias) = forward.bias {
        let copy = Binding { offset: 2 * rows, ..scratch(0, bias_words) };
        plan.dispatches.extend(elements("copy", vec![at(bias, bias_words), copy], bias_words, &[]).dispatches);
    }
    let has_bias = forward.bias.is_some() as u32;
    let pad = head_pad(shape);
    let block = if pad == 256 { 4 } else { 8 };
    let vec4 = aligned(shape, &[forward.q, forward.k, forward.v, dout]);
    let inputs = [
        at(forward.q, q_len),
        at(forward.k, kv_len),
        at(forward.v, kv_len),
        at(forward.table, 4 * shape.segments),
        at(dout, q_len),
        stats,
    ];
    let mut bindings = inputs.to_vec();
    bindings.push(at(grads.dq, q_len));
    let constants = vec![("HEAD_PAD", pad), ("VEC4", vec4), ("QUERIES", block), ("BIAS", has_bias)];
    let size = Blocks { count: shape.queries.div_ceil(block), heads: shape.heads, products: 3 };
    blocks(&mut plan, "attention_grad_q", &constants, &bindings, shape, size);
    let mut bindings = inputs.to_vec();
    bindings.extend([at(grads.dk, kv_len), at(grads.dv, kv_len)]);
    let constants = vec![("HEAD_PAD", pad), ("VEC4", vec4), ("KEYS", block), ("BIAS", has_bias)];
    let size = Blocks { count: shape.keys.div_ceil(block), heads: shape.kv_heads, products: 4 };
    blocks(&mut plan, "attention_grad_kv", &constants, &bindings, shape, size);
    if let (Some(dbias), true) = (grads.dbias, bias_words > 0) {
        let mut bindings = inputs.to_vec();
        bindings.push(at(dbias, bias_words));
        let AttentionShape { heads, kv_heads, head_dim, scale, causal, window, segments, queries, bias_zero, .. } = *shape;
        let params = vec![heads, kv_heads, head_dim, scale.to_bits(), causal as u32, window, segments, queries, bias_zero];
        let cost = 4 * COST_FACTOR * pairs(shape) * u64::from(heads) * u64::from(head_dim);
        let groups = (2 * bias_zero + 1, heads);
        plan.dispatches.push(Dispatch { kernel: "attention_grad_bias", constants: Vec::new(), bindings, params, groups, cost });
    }
    plan
}

/// Workgroups of a kernel in x and y, and the products of `queries × keys × head_dim` it makes.
struct Blocks {
    count: u32,
    heads: u32,
    products: u64,
}

/// Dispatches over all blocks, as many at a time as fit a submit.
fn blocks(plan: &mut Plan, kernel: &'static str, constants: &[(&'static str, u32)], bindings: &[Binding], shape: &AttentionShape, size: Blocks) {
    let cost = 2 * COST_FACTOR * size.products * pairs(shape) * u64::from(shape.heads) * u64::from(shape.head_dim);
    let pieces = u32::try_from(cost.div_ceil(SUBMIT_COST)).unwrap_or(u32::MAX).clamp(1, size.count.max(1));
    let step = size.count.div_ceil(pieces).max(1);
    let mut first = 0;
    while first < size.count {
        let count = step.min(size.count - first);
        plan.dispatches.push(Dispatch {
            kernel,
            constants: constants.to_vec(),
            bindings: bindings.to_vec(),
            params: vec![
                shape.heads,
                shape.kv_heads,
                shape.head_dim,
                shape.scale.to_bits(),
                shape.causal as u32,
                shape.window,
                shape.segments,
                shape.queries,
                shape.keys,
                first,
                shape.bias_zero,
            ],
            groups: (count, size.heads),
            cost: cost / u64::from(pieces),
        });
        first += count;
    }
}

/// Pairs of a query and a key, segments taken as equally long.
fn pairs(shape: &AttentionShape) -> u64 {
    u64::from(shape.queries) * u64::from(shape.keys) / u64::from(shape.segments.max(1))
}

fn bias_len(shape: &AttentionShape) -> u32 {
    (2 * shape.bias_zero + 1) * shape.heads
}

/// Elements of lse, of q, of k.
fn lengths(shape: &AttentionShape) -> (u32, u32, u32) {
    let rows = shape.queries * shape.heads;
    (rows, rows * shape.head_dim, shape.keys * shape.kv_heads * shape.head_dim)
}

/// The kernels' `HEAD_PAD`.
///
/// # Panics
/// If heads are wider than [`MAX_HEAD_DIM`]: `Backbone` loads no such model on this back end.
fn head_pad(shape: &AttentionShape) -> u32 {
    assert!(shape.head_dim <= MAX_HEAD_DIM, "a head of {} columns was asked for, the kernels hold {MAX_HEAD_DIM}", shape.head_dim);
    shape.head_dim.next_power_of_two().max(8)
}

fn aligned(shape: &AttentionShape, slices: &[Slice]) -> u32 {
    (shape.head_dim.is_multiple_of(4) && slices.iter().all(|slice| slice.offset.is_multiple_of(4))) as u32
}
