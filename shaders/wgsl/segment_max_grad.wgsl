// dx[index[s,c],c] += dy[s,c], segments having no row in common (so that no two invocations meet)
// dy: [segments, cols]. index: [segments, cols] u32. dx: [*, cols]. len = segments * cols. Accumulates into dx.
// Dispatch: 256 invocations a workgroup, one element of dy each, workgroups in x then y.

struct Params {
    dy_at: u32,
    index_at: u32,
    dx_at: u32,
    len: u32,
    cols: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> dy: array<f32>;
@group(0) @binding(2) var<storage, read> index: array<u32>;
@group(0) @binding(3) var<storage, read_write> dx: array<f32>;

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
    let at = params.dx_at + index[params.index_at + i] * params.cols + i % params.cols;
    dx[at] = dx[at] + dy[params.dy_at + i];
}
