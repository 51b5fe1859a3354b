// dst[t,c] (+)= src[t,c] for the first cols columns of rows src_stride and dst_stride wide
// len = rows * cols. Accumulates when accumulate = 1, else overwrites.
// Dispatch: 256 invocations a workgroup, one element each, workgroups in x then y.

struct Params {
    src_at: u32,
    dst_at: u32,
    len: u32,
    cols: u32,
    src_stride: u32,
    dst_stride: u32,
    accumulate: u32,
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
    let row = i / params.cols;
    let column = i % params.cols;
    let to = params.dst_at + row * params.dst_stride + column;
    var y = src[params.src_at + row * params.src_stride + column];
    if params.accumulate == 1u {
        y += dst[to];
    }
    dst[to] = y;
}
