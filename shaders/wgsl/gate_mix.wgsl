// out[i] = mu * a[i] + (1 - mu) * p[i], mu = sigmoid(gate[0] / temperature)
// a, p, out: [len]. gate: [1]. out is overwritten.
// Dispatch: 256 invocations a workgroup, one element each, workgroups in x then y.

struct Params {
    a_at: u32,
    p_at: u32,
    gate_at: u32,
    out_at: u32,
    len: u32,
    temperature: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> p: array<f32>;
@group(0) @binding(3) var<storage, read> gate: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

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
    let mu = 1.0 / (1.0 + exp(-clamp(gate[params.gate_at] / params.temperature, -80.0, 80.0)));
    out[params.out_at + i] = mu * a[params.a_at + i] + (1.0 - mu) * p[params.p_at + i];
}
