// y[t,c] += bias[c]
// y: [rows, cols], in place. bias: [cols]. len = rows * cols.
// Dispatch: 256 invocations a workgroup, one element each, workgroups in x then y.

struct Params {
    bias_at: u32,
    y_at: u32,
    len: u32,
    cols: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> bias: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

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
    let at = params.y_at + i;
    y[at] = y[at] + bias[params.bias_at + i % params.cols];
}
