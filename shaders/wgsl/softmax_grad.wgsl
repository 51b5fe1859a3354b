// logits[t,c] = (exp(logits[t,c] - lse[t]) - [first_class + c == labels[t]]) * factor
// logits: [rows, cols], in place. labels: [rows] u32. lse: [rows]. len = rows * cols.
// Dispatch: 256 invocations a workgroup, one element each, workgroups in x then y.

struct Params {
    labels_at: u32,
    lse_at: u32,
    logits_at: u32,
    len: u32,
    cols: u32,
    first_class: u32,
    factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> labels: array<u32>;
@group(0) @binding(2) var<storage, read> lse: array<f32>;
@group(0) @binding(3) var<storage, read_write> logits: array<f32>;

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
    let class_index = params.first_class + i % params.cols;
    let at = params.logits_at + i;
    var y = exp(logits[at] - lse[params.lse_at + row]);
    if labels[params.labels_at + row] == class_index {
        y -= 1.0;
    }
    logits[at] = y * params.factor;
}
