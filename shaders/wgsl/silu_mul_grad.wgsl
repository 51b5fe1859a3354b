// dgate[i] = dout[i] * up[i] * silu'(gate[i]), dup[i] = dout[i] * silu(gate[i])
// silu'(x) = s * (1 + x * (1 - s)), s = sigmoid(x)
// All: [len]. dgate and dup are overwritten.
// Dispatch: 256 invocations a workgroup, one element each, workgroups in x then y.

struct Params {
    gate_at: u32,
    up_at: u32,
    dout_at: u32,
    dgate_at: u32,
    dup_at: u32,
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate: array<f32>;
@group(0) @binding(2) var<storage, read> up: array<f32>;
@group(0) @binding(3) var<storage, read> dout: array<f32>;
@group(0) @binding(4) var<storage, read_write> dgate: array<f32>;
@group(0) @binding(5) var<storage, read_write> dup: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (group.y * groups.x + group.x) * 256u + lane;
    if i >= params.len {
        return;
    }
    let x = gate[params.gate_at + i];
    let s = 1.0 / (1.0 + exp(-clamp(x, -80.0, 80.0)));
    let d = dout[params.dout_at + i];
    dgate[params.dgate_at + i] = d * up[params.up_at + i] * (s * (1.0 + x * (1.0 - s)));
    dup[params.dup_at + i] = d * (x * s);
}
