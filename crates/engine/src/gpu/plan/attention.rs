//! Attention and its gradient: which variant, and how many blocks a dispatch takes.

use super::{Binding, Dispatch, Plan, SUBMIT_COST, at, grid, scratch};
use crate::op::{AttentionShape, BufferId, Slice};

/// Attention reaches about this fraction of what a product reaches.
const COST_FACTOR: u64 = 4;

/// Inputs and outputs of the forward operation.
pub struct Forward {
    pub q: Slice,
    pub k: Slice,
    pub v: Slice,
    pub table: BufferId,
    pub out: Slice,
    pub lse: Slice,
}

pub fn forward(q: Slice, k: Slice, v: Slice, table: BufferId, out: Slice, lse: Slice, shape: &AttentionShape) -> Plan {
    let (rows, q_len, kv_len) = lengths(shape);
    let bindings = vec![at(q, q_len), at(k, kv_len), at(v, kv_len), at(table, 4 * shape.segments), at(out, q_len), at(lse, rows)];
    let vec4 = aligned(shape, &[q, k]);
    let constants = vec![("HEAD_PAD", head_pad(shape)), ("VEC4", vec4)];
    let mut plan = Plan::default();
    blocks(&mut plan, "attention", &constants, &bindings, shape, Blocks { count: shape.queries.div_ceil(8), heads: shape.heads, products: 2 });
    plan
}

pub fn gradient(forward: &Forward, dout: Slice, delta: Slice, grads: (Slice, Slice, Slice), shape: &AttentionShape) -> Plan {
    let (rows, q_len, kv_len) = lengths(shape);
    let mut plan = Plan { dispatches: Vec::new(), scratch: vec![2 * rows as usize] };
    let stats = scratch(0, 2 * rows);
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
    let (dq, dk, dv) = grads;
    let mut bindings = inputs.to_vec();
    bindings.push(at(dq, q_len));
    let constants = vec![("HEAD_PAD", pad), ("VEC4", vec4), ("QUERIES", block)];
    let size = Blocks { count: shape.queries.div_ceil(block), heads: shape.heads, products: 3 };
    blocks(&mut plan, "attention_grad_q", &constants, &bindings, shape, size);
    let mut bindings = inputs.to_vec();
    bindings.extend([at(dk, kv_len), at(dv, kv_len)]);
    let constants = vec![("HEAD_PAD", pad), ("VEC4", vec4), ("KEYS", block)];
    let size = Blocks { count: shape.keys.div_ceil(block), heads: shape.kv_heads, products: 4 };
    blocks(&mut plan, "attention_grad_kv", &constants, &bindings, shape, size);
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
    let pairs = u64::from(shape.queries) * u64::from(shape.keys) / u64::from(shape.segments.max(1));
    let cost = 2 * COST_FACTOR * size.products * pairs * u64::from(shape.heads) * u64::from(shape.head_dim);
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
            ],
            groups: (count, size.heads),
            cost: cost / u64::from(pieces),
        });
        first += count;
    }
}

/// Elements of lse, of q, of k.
fn lengths(shape: &AttentionShape) -> (u32, u32, u32) {
    let rows = shape.queries * shape.heads;
    (rows, rows * shape.head_dim, shape.keys * shape.kv_heads * shape.head_dim)
}

/// The kernels' `HEAD_PAD`; heads wider than 256 do not occur in the models that load.
fn head_pad(shape: &AttentionShape) -> u32 {
    assert!(shape.head_dim <= 256, "a head of {} columns was asked for, the kernels hold 256: use the CPU back end", shape.head_dim);
    shape.head_dim.next_power_of_two().max(8)
}

fn aligned(shape: &AttentionShape, slices: &[Slice]) -> u32 {
    (shape.head_dim.is_multiple_of(4) && slices.iter().all(|slice| slice.offset.is_multiple_of(4))) as u32
}
