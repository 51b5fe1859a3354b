
// Sums over rows of a matrix, of several rows a workgroup.

// Invocations that share a row (a power of two up to 64); 64 / LANES rows a workgroup.
const LANES: u32 = 64u;

var<workgroup> partial: array<f32, 64>;

// Sum of `value` over the LANES invocations of a row.
fn row_sum(lane: u32, value: f32) -> f32 {
    partial[lane] = value;
    workgroupBarrier();
    for (var s = LANES / 2u; s > 0u; s = s / 2u) {
        if lane % LANES < s {
            partial[lane] += partial[lane + s];
        }
        workgroupBarrier();
    }
    return partial[lane - lane % LANES];
}
