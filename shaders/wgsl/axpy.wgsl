// dst[i] += factor * src[i]
// src, dst: [len]. Accumulates into dst.
// Dispatch: 256 invocations a workgroup, one element each, workgroups in x then y.

struct Params {
    src_at: u32,
    dst_at: u32,
    len: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> src: array<f32>;
@group(0) @binding(2) var<storage, read_write> dst: array<f32>;

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
    let at = params.dst_at + i;
    dst[at] = dst[at] + params.factor * src[params.src_at + i];
}
