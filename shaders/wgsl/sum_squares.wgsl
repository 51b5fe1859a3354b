// partials[g] = the part of sum x^2 that workgroup g sees; sum_partials adds them
// x: [len]. partials: [workgroups], overwritten.
// Dispatch: 256 invocations a workgroup, as many workgroups as partials, each invocation striding over x.

struct Params {
    x_at: u32,
    partials_at: u32,
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> partials: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    var sum = 0.0;
    for (var i = group.x * 256u + lane; i < params.len; i += groups.x * 256u) {
        let value = x[params.x_at + i];
        sum += value * value;
    }
    let total = tree_sum(lane, sum);
    if lane == 0u {
        partials[params.partials_at + group.x] = total;
    }
}
