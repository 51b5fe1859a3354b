//! From an operation to the kernels that perform it: pure, without a device.

mod attention;
mod matmul;

pub use attention::MAX_HEAD_DIM;

use super::tile::Tuning;
use crate::op::{Activation, BufferId, Dtype, Op, Slice};

/// Work that one submit may carry, in floating-point operations: 4·10⁹ take 80 ms on a phone's 50 GFLOP/s, and
/// 0.4 ms, still several times the cost of a submit, on a desktop's 10 TFLOP/s.
pub const SUBMIT_COST: u64 = 4_000_000_000;
/// Cost of one element of an elementwise operation: about 12 bytes at 30 GB/s while 50 GFLOP/s would compute.
const ELEMENT_COST: u64 = 16;
/// WebGPU's `maxComputeWorkgroupsPerDimension`.
const MAX_GROUPS: u32 = 65_535;
/// Workgroups of a two-stage sum, enough to fill a large device.
const SUM_GROUPS: u32 = 256;

/// Where a binding's buffer comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A buffer of the caller.
    Buffer(BufferId),
    /// Entry of [`Plan::scratch`].
    Scratch(usize),
    /// Declared by the kernel and not touched by this variant.
    Unused,
}

/// One storage binding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Binding {
    /// The buffer.
    pub source: Source,
    /// First element, in the kernel's elements.
    pub offset: u32,
    /// Elements that share words, and the words they share ([`Dtype::group`]).
    pub group: (u32, u32),
    /// Words from the offset on that the kernel may touch.
    pub words: u32,
}

/// One dispatch.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// File name of the kernel.
    pub kernel: &'static str,
    /// Constants of its variant.
    pub constants: Vec<(&'static str, u32)>,
    /// Storage buffers in binding order.
    pub bindings: Vec<Binding>,
    /// Words of `params` that follow the offsets.
    pub params: Vec<u32>,
    /// Workgroups in x and y.
    pub groups: (u32, u32),
    /// Estimated floating-point operations.
    pub cost: u64,
}

/// What an operation becomes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In order.
    pub dispatches: Vec<Dispatch>,
    /// Words of temporary buffers, free again after the last dispatch.
    pub scratch: Vec<usize>,
}

/// The kernels that perform `op`, products in the forms of `tuning`; none for an operation on nothing.
pub fn plan(op: &Op, tuning: Tuning) -> Plan {
    match *op {
        Op::Fill { dst, value, len } => elements("fill", vec![at(dst, len)], len, &[value.to_bits()]),
        Op::Copy { src, dst, len } => elements("copy", vec![at(src, len), at(dst, len)], len, &[]),
        Op::MatMul { a, b, c, m, n, k, layout, b_dtype, accumulate } => {
            matmul::plan(a, b, c, matmul::Shape { m, n, k, layout, b_dtype, accumulate }, tuning)
        }
        // Activations are not rounded here.
        Op::MatMulRounded { a, b, c, m, n, k, b_dtype } => {
            matmul::plan(a, b, c, matmul::Shape { m, n, k, layout: crate::op::Layout::Nt, b_dtype, accumulate: false }, tuning)
        }
        Op::AddBias { y, bias, rows, cols } => {
            elements("add_bias", vec![at(bias, cols), at(y, rows * cols)], rows * cols, &[cols])
        }
        Op::ColumnSum { x, out, rows, cols, accumulate } => {
            columns("column_sum", vec![at(x, rows * cols), at(out, cols)], rows, cols, &[accumulate as u32])
        }
        Op::Add { a, b, out, len } if out == a => axpy(b, out, 1.0, len),
        Op::Add { a, b, out, len } if out == b => axpy(a, out, 1.0, len),
        Op::Add { a, b, out, len } => elements("add", vec![at(a, len), at(b, len), at(out, len)], len, &[]),
        Op::Axpy { src, dst, factor, len } => axpy(src, dst, factor, len),
        Op::Embed { table, ids, out, tokens, width, first_row, table_rows, dtype } => {
            let bindings = vec![packed(table, dtype, table_rows * width), at(ids, tokens), at(out, tokens * width)];
            let mut plan = elements("embed", bindings, tokens * width, &[width, first_row, table_rows]);
            set_constants(&mut plan, &[("DTYPE", dtype_number(dtype))]);
            plan
        }
        Op::EmbedGrad { dout, ids, dtable, tokens, width, first_row, table_rows } => {
            let bindings = vec![at(dout, tokens * width), at(ids, tokens), at(dtable, table_rows * width)];
            let mut plan = elements("embed_grad", bindings, width, &[tokens, first_row, table_rows]);
            set_cost(&mut plan, u64::from(tokens) * u64::from(width) * ELEMENT_COST);
            plan
        }
        Op::RmsNorm { x, weight, out, inv, rows, cols, eps, weight_shift } => {
            let bindings = vec![at(x, rows * cols), at(weight, cols), at(out, rows * cols), at(inv, rows)];
            lanes("rms_norm", bindings, rows, cols, &[eps.to_bits(), weight_shift.to_bits()])
        }
        Op::RmsNormGrad { x, weight, inv, dy, dx, rows, cols, weight_shift, accumulate } => {
            let len = rows * cols;
            let bindings = vec![at(x, len), at(weight, cols), at(inv, rows), at(dy, len), at(dx, len)];
            lanes("rms_norm_grad", bindings, rows, cols, &[weight_shift.to_bits(), accumulate as u32])
        }
        Op::RmsNormWeightGrad { x, inv, dy, dweight, rows, cols } => {
            let bindings = vec![at(x, rows * cols), at(inv, rows), at(dy, rows * cols), at(dweight, cols)];
            columns("rms_norm_weight_grad", bindings, rows, cols, &[])
        }
        Op::Rope { x, positions, inv_freq, out, tokens, heads, head_dim, scale, inverse } => {
            let (len, half) = (tokens * heads * head_dim, head_dim / 2);
            let in_place = x == out;
            let input = if in_place { unused() } else { at(x, len) };
            let bindings = vec![input, at(positions, tokens), at(inv_freq, half), at(out, len)];
            let params = [heads, half, scale.to_bits(), inverse as u32];
            let mut plan = elements("rope", bindings, tokens * heads * half, &params);
            set_constants(&mut plan, &[("IN_PLACE", in_place as u32)]);
            plan
        }
        Op::Attention { q, k, v, table, bias, out, lse, ref shape } => {
            attention::forward(&attention::Forward { q, k, v, table, bias, out, lse }, shape)
        }
        Op::AttentionGrad { q, k, v, table, out, lse, dout, delta, bias, dq, dk, dv, dbias, ref shape } => {
            let forward = attention::Forward { q, k, v, table, bias, out, lse };
            attention::gradient(&forward, dout, delta, &attention::Gradients { dq, dk, dv, dbias }, shape)
        }
        Op::Activate { activation, x, up, out, len } => {
            let mut plan = elements("activate", vec![at(x, len), optional(up, len), at(out, len)], len, &[]);
            set_constants(&mut plan, &[("ACTIVATION", activation_number(activation)), ("GATED", up.is_some() as u32)]);
            plan
        }
        Op::ActivateGrad { activation, x, up, dout, dx, dup, len } => {
            let bindings = vec![at(x, len), optional(up, len), at(dout, len), at(dx, len), optional(dup, len)];
            let mut plan = elements("activate_grad", bindings, len, &[]);
            set_constants(&mut plan, &[("ACTIVATION", activation_number(activation)), ("GATED", up.is_some() as u32)]);
            plan
        }
        Op::CenterRows { x, out, rows, cols, accumulate } => {
            lanes("center_rows", vec![at(x, rows * cols), at(out, rows * cols)], rows, cols, &[accumulate as u32])
        }
        Op::CopyColumns { src, dst, rows, cols, src_stride, dst_stride, accumulate } => {
            let params = [cols, src_stride, dst_stride, accumulate as u32];
            elements("copy_columns", vec![to_end(src), to_end(dst)], rows * cols, &params)
        }
        Op::TapScale { x, out, rho, rows, cols } => {
            lanes("tap_scale", vec![at(x, rows * cols), at(out, rows * cols), at(rho, rows)], rows, cols, &[])
        }
        Op::ScaledAdd { base, rho, u, out, rows, cols } => {
            let len = rows * cols;
            elements("scaled_add", vec![at(base, len), at(rho, rows), at(u, len), at(out, len)], len, &[cols])
        }
        Op::ScaleRows { x, rho, out, rows, cols, accumulate } => {
            let len = rows * cols;
            elements("scale_rows", vec![at(x, len), at(rho, rows), at(out, len)], len, &[cols, accumulate as u32])
        }
        Op::GateMix { a, p, gate, out, len, temperature } => {
            let bindings = vec![at(a, len), at(p, len), at(gate, 1), at(out, len)];
            elements("gate_mix", bindings, len, &[temperature.to_bits()])
        }
        Op::GateMixGrad { a, p, gate, dout, da, dp, dgate, len, temperature } => {
            let inputs = vec![at(a, len), at(p, len), at(gate, 1), at(dout, len), at(da, len), at(dp, len)];
            two_stage_sum("gate_mix_grad", inputs, len, &[temperature.to_bits()], dgate)
        }
        Op::GatherRows { x, indices, out, rows, cols } => {
            elements("gather_rows", vec![to_end(x), at(indices, rows), at(out, rows * cols)], rows * cols, &[cols])
        }
        Op::ScatterRows { dy, indices, dx, rows, cols } => {
            elements("scatter_rows", vec![at(dy, rows * cols), at(indices, rows), to_end(dx)], rows * cols, &[cols])
        }
        Op::SegmentMax { x, ranges, out, index, segments, cols } => {
            let len = segments * cols;
            elements("segment_max", vec![to_end(x), at(ranges, 2 * segments), at(out, len), at(index, len)], len, &[cols])
        }
        Op::SegmentMaxGrad { dy, index, dx, segments, cols } => {
            let len = segments * cols;
            elements("segment_max_grad", vec![at(dy, len), at(index, len), to_end(dx)], len, &[cols])
        }
        Op::SoftmaxStats { logits, labels, max, sum, target, rows, cols, first_class } => {
            let bindings = vec![at(logits, rows * cols), at(labels, rows), at(max, rows), at(sum, rows), at(target, rows)];
            rows_of_classes("softmax_stats", bindings, rows, cols, first_class)
        }
        Op::SoftmaxGrad { logits, labels, lse, rows, cols, first_class, factor } => {
            let bindings = vec![at(labels, rows), at(lse, rows), at(logits, rows * cols)];
            elements("softmax_grad", bindings, rows * cols, &[cols, first_class, factor.to_bits()])
        }
        Op::SoftmaxLoss { max, sum, target, lse, loss, rows } => {
            let bindings = vec![at(max, rows), at(sum, rows), at(target, rows), at(lse, rows), at(loss, rows)];
            elements("softmax_loss", bindings, rows, &[])
        }
        Op::ArgMax { logits, best_value, best_index, rows, cols, first_class } => {
            let bindings = vec![at(logits, rows * cols), at(best_value, rows), at(best_index, rows)];
            rows_of_classes("arg_max", bindings, rows, cols, first_class)
        }
        Op::SumSquares { x, out, len } => two_stage_sum("sum_squares", vec![at(x, len)], len, &[], out),
        Op::AdamW { param, grad, m, v, len, step, lr, beta1, beta2, eps, weight_decay, grad_factor } => {
            // Powers and corrections in f64, as torch does.
            let correction1 = 1.0 - f64::from(beta1).powi(step as i32);
            let correction2 = 1.0 - f64::from(beta2).powi(step as i32);
            let params = [
                f64::from(lr) * f64::from(weight_decay),
                f64::from(beta1),
                f64::from(beta2),
                1.0 - f64::from(beta1),
                1.0 - f64::from(beta2),
                f64::from(lr) / correction1,
                1.0 / correction2,
                f64::from(eps),
                f64::from(grad_factor),
            ];
            let params = params.map(|value| (value as f32).to_bits());
            elements("adam_w", vec![at(grad, len), at(param, len), at(m, len), at(v, len)], len, &params)
        }
        Op::PackF16 { x, out, len } => elements("pack_f16", vec![at(x, len), at(out, len / 2)], len / 2, &[]),
        Op::UnpackF16 { x, out, len } => {
            let words = Slice { buffer: x.buffer, offset: x.offset / 2 };
            elements("unpack_f16", vec![at(words, len / 2), at(out, len)], len / 2, &[])
        }
    }
}

/// `words` one-word elements of a caller's buffer.
fn at(slice: impl Into<Slice>, words: u32) -> Binding {
    let slice = slice.into();
    Binding { source: Source::Buffer(slice.buffer), offset: slice.offset, group: (1, 1), words }
}

/// A caller's buffer from an offset to its end: the kernel's indices decide.
fn to_end(slice: Slice) -> Binding {
    at(slice, u32::MAX)
}

/// `elements` of a weight in the form it is stored in.
fn packed(slice: Slice, dtype: Dtype, elements: u32) -> Binding {
    let (elements_together, words_together) = dtype.group();
    let group = (elements_together as u32, words_together as u32);
    // A slice that starts inside a group touches one group more.
    let groups = (slice.offset % group.0 + elements).div_ceil(group.0);
    Binding { group, words: groups * group.1, ..at(slice, 0) }
}

fn scratch(index: usize, words: u32) -> Binding {
    Binding { source: Source::Scratch(index), offset: 0, group: (1, 1), words }
}

fn unused() -> Binding {
    Binding { source: Source::Unused, offset: 0, group: (1, 1), words: 0 }
}

fn optional(slice: Option<Slice>, words: u32) -> Binding {
    slice.map_or_else(unused, |slice| at(slice, words))
}

/// The kernels' `ACTIVATION`.
fn activation_number(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::QuickGelu => 3,
        Activation::Relu => 4,
        Activation::Tanh => 5,
    }
}

fn dtype_number(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::Bf16 => 2,
        Dtype::Q8 => 3,
        Dtype::Q4 => 4,
    }
}

/// `groups` workgroups as x and y inside the limit per dimension (a few too many: kernels check).
fn grid(groups: u32) -> (u32, u32) {
    let y = groups.div_ceil(MAX_GROUPS).max(1);
    (groups.div_ceil(y), y)
}

fn one(dispatch: Dispatch) -> Plan {
    Plan { dispatches: vec![dispatch], scratch: Vec::new() }
}

/// One invocation per element.
fn elements(kernel: &'static str, bindings: Vec<Binding>, len: u32, rest: &[u32]) -> Plan {
    if len == 0 {
        return Plan::default();
    }
    let mut params = vec![len];
    params.extend_from_slice(rest);
    let cost = u64::from(len) * ELEMENT_COST;
    one(Dispatch { kernel, constants: Vec::new(), bindings, params, groups: grid(len.div_ceil(256)), cost })
}

fn axpy(src: Slice, dst: Slice, factor: f32, len: u32) -> Plan {
    elements("axpy", vec![at(src, len), at(dst, len)], len, &[factor.to_bits()])
}

/// Sums down columns: 16 columns a workgroup.
fn columns(kernel: &'static str, bindings: Vec<Binding>, rows: u32, cols: u32, rest: &[u32]) -> Plan {
    if cols == 0 {
        return Plan::default();
    }
    let mut params = vec![rows, cols];
    params.extend_from_slice(rest);
    let cost = u64::from(rows) * u64::from(cols) * ELEMENT_COST;
    one(Dispatch { kernel, constants: Vec::new(), bindings, params, groups: (cols.div_ceil(16), 1), cost })
}

/// Sums along rows: 64 invocations to a row, or 8 where rows are short (heads).
fn lanes(kernel: &'static str, bindings: Vec<Binding>, rows: u32, cols: u32, rest: &[u32]) -> Plan {
    if rows == 0 || cols == 0 {
        return Plan::default();
    }
    let lanes = if cols <= 64 { 8 } else { 64 };
    let mut params = vec![rows, cols];
    params.extend_from_slice(rest);
    let cost = u64::from(rows) * u64::from(cols) * ELEMENT_COST;
    let groups = grid(rows.div_ceil(64 / lanes));
    one(Dispatch { kernel, constants: vec![("LANES", lanes)], bindings, params, groups, cost })
}

/// One workgroup per row of a chunk of classes.
fn rows_of_classes(kernel: &'static str, bindings: Vec<Binding>, rows: u32, cols: u32, first_class: u32) -> Plan {
    if rows == 0 {
        return Plan::default();
    }
    let cost = u64::from(rows) * u64::from(cols) * ELEMENT_COST;
    let params = vec![rows, cols, first_class];
    one(Dispatch { kernel, constants: Vec::new(), bindings, params, groups: grid(rows), cost })
}

/// `kernel` leaves one partial sum per workgroup, `sum_partials` adds them to `out[0]` in order.
fn two_stage_sum(kernel: &'static str, mut bindings: Vec<Binding>, len: u32, rest: &[u32], out: Slice) -> Plan {
    if len == 0 {
        return Plan::default();
    }
    let groups = len.div_ceil(1024).min(SUM_GROUPS);
    bindings.push(scratch(0, groups));
    let mut params = vec![len];
    params.extend_from_slice(rest);
    let cost = u64::from(len) * ELEMENT_COST;
    let first = Dispatch { kernel, constants: Vec::new(), bindings, params, groups: (groups, 1), cost };
    let second = Dispatch {
        kernel: "sum_partials",
        constants: Vec::new(),
        bindings: vec![scratch(0, groups), at(out, 1)],
        params: vec![groups],
        groups: (1, 1),
        cost: 0,
    };
    Plan { dispatches: vec![first, second], scratch: vec![groups as usize] }
}

fn set_constants(plan: &mut Plan, constants: &[(&'static str, u32)]) {
    for dispatch in &mut plan.dispatches {
        dispatch.constants = constants.to_vec();
    }
}

fn set_cost(plan: &mut Plan, cost: u64) {
    for dispatch in &mut plan.dispatches {
        dispatch.cost = cost;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::tile::Tile;
    use crate::op::Layout;

    #[test]
    fn long_ranges_stay_inside_the_limit_per_dimension() {
        for groups in [1, 65_535, 65_536, 1 << 20] {
            let (x, y) = grid(groups);
            assert!(x <= MAX_GROUPS && y <= MAX_GROUPS && x * y >= groups, "{groups}");
        }
    }

    #[test]
    fn a_product_too_large_for_one_submit_is_split_by_rows() {
        let slice = Slice { buffer: BufferId(0), offset: 0 };
        let (m, n, k) = (4096, 4096, 1024);
        let op = Op::MatMul { a: slice, b: slice, c: slice, m, n, k, layout: Layout::Nt, b_dtype: Dtype::F32, accumulate: false };
        for tile in Tile::ALL {
            let plan = plan(&op, Tuning::always(tile));
            assert!(plan.dispatches.len() > 1);
            assert!(plan.dispatches.iter().all(|dispatch| dispatch.cost <= SUBMIT_COST));
            assert_eq!(plan.dispatches.iter().map(|dispatch| dispatch.params[0]).sum::<u32>(), m);
        }
    }
}
