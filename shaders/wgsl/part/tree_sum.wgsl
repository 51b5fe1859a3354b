
// Sums over a whole workgroup of 256 invocations.

var<workgroup> partial: array<f32, 256>;

// Sum of `value` over all invocations, in a fixed order.
fn tree_sum(lane: u32, value: f32) -> f32 {
    partial[lane] = value;
    workgroupBarrier();
    for (var s = 128u; s > 0u; s = s / 2u) {
        if lane < s {
            partial[lane] += partial[lane + s];
        }
        workgroupBarrier();
    }
    return partial[0];
}
