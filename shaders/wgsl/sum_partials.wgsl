// out[0] += sum of partials
// partials: [len]. out: [1], accumulated.
// Dispatch: one workgroup of 256 invocations.

struct Params {
    partials_at: u32,
    out_at: u32,
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> partials: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(256)
fn main(@builtin(local_invocation_index) lane: u32) {
    var sum = 0.0;
    for (var i = lane; i < params.len; i += 256u) {
        sum += partials[params.partials_at + i];
    }
    let total = tree_sum(lane, sum);
    if lane == 0u {
        out[params.out_at] = out[params.out_at] + total;
    }
}
