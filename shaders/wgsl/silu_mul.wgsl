// out[i] = silu(gate[i]) * up[i], silu(x) = x / (1 + exp(-x))
// gate, up, out: [len]. out is overwritten.
// Dispatch: 256 invocations a workgroup, one element each, workgroups in x then y.

struct Params {
    gate_at: u32,
    up_at: u32,
    out_at: u32,
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate: array<f32>;
@group(0) @binding(2) var<storage, read> up: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

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
    // The exponent is clamped because WGSL leaves infinities undefined.
    let s = 1.0 / (1.0 + exp(-clamp(x, -80.0, 80.0)));
    out[params.out_at + i] = x * s * up[params.up_at + i];
}
