// out[t,c] (+)= rho[t] * x[t,c]
// x, out: [rows, cols]. rho: [rows]. len = rows * cols. Accumulates when accumulate = 1, else overwrites.
// Dispatch: 256 invocations a workgroup, one element each, workgroups in x then y.

struct Params {
    x_at: u32,
    rho_at: u32,
    out_at: u32,
    len: u32,
    cols: u32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> rho: array<f32>;
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
    let at = params.out_at + i;
    var y = rho[params.rho_at + i / params.cols] * x[params.x_at + i];
    if params.accumulate == 1u {
        y += out[at];
    }
    out[at] = y;
}
