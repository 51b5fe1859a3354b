// da = mu * dout, dp = (1 - mu) * dout, mu = sigmoid(gate[0] / temperature)
// partials[g] = workgroup g's part of sum dout * (a - p) * mu * (1 - mu) / temperature; sum_partials adds them to dgate
// a, p, dout, da, dp: [len]. gate: [1]. partials: [workgroups]. da, dp and partials are overwritten.
// Dispatch: 256 invocations a workgroup, as many workgroups as partials, each invocation striding.

struct Params {
    a_at: u32,
    p_at: u32,
    gate_at: u32,
    dout_at: u32,
    da_at: u32,
    dp_at: u32,
    partials_at: u32,
    len: u32,
    temperature: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> p: array<f32>;
@group(0) @binding(3) var<storage, read> gate: array<f32>;
@group(0) @binding(4) var<storage, read> dout: array<f32>;
@group(0) @binding(5) var<storage, read_write> da: array<f32>;
@group(0) @binding(6) var<storage, read_write> dp: array<f32>;
@group(0) @binding(7) var<storage, read_write> partials: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let mu = 1.0 / (1.0 + exp(-clamp(gate[params.gate_at] / params.temperature, -80.0, 80.0)));
    var sum = 0.0;
    for (var i = group.x * 256u + lane; i < params.len; i += groups.x * 256u) {
        let d = dout[params.dout_at + i];
        sum += d * (a[params.a_at + i] - p[params.p_at + i]);
        da[params.da_at + i] = mu * d;
        dp[params.dp_at + i] = (1.0 - mu) * d;
    }
    let total = tree_sum(lane, sum);
    if lane == 0u {
        partials[params.partials_at + group.x] = total * mu * (1.0 - mu) / params.temperature;
    }
}
