// out[i] = a[i] + b[i]
// a, b, out: [len]. out is overwritten. (In place, out = a, is done by axpy with factor 1.)
// Dispatch: 256 invocations a workgroup, one element each, workgroups in x then y.

struct Params {
    a_at: u32,
    b_at: u32,
    out_at: u32,
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
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
    out[params.out_at + i] = a[params.a_at + i] + b[params.b_at + i];
}
