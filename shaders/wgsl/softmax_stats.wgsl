// One vocabulary chunk of the cross-entropy. With chunk maximum c and new = max(peak[t], c):
//     total[t] = total[t] * exp(peak[t] - new) + sum_c exp(logits[t,c] - new); peak[t] = new
//     goal[t] = logits[t, labels[t] - first_class] where the label lies in the chunk
// logits: [rows, cols]. labels: [rows] u32. peak, total, goal: [rows], updated in place.
// Dispatch: one workgroup of 256 invocations to a row, workgroups in x then y.

struct Params {
    logits_at: u32,
    labels_at: u32,
    peak_at: u32,
    total_at: u32,
    goal_at: u32,
    rows: u32,
    cols: u32,
    first_class: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read_write> peak: array<f32>;
@group(0) @binding(4) var<storage, read_write> total: array<f32>;
@group(0) @binding(5) var<storage, read_write> goal: array<f32>;

@compute @workgroup_size(256)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y * groups.x + group.x;
    if row >= params.rows {
        return;
    }
    let first = params.logits_at + row * params.cols;
    var top = -3.4e38;
    for (var c = lane; c < params.cols; c += 256u) {
        top = max(top, logits[first + c]);
    }
    partial[lane] = top;
    workgroupBarrier();
    for (var s = 128u; s > 0u; s = s / 2u) {
        if lane < s {
            partial[lane] = max(partial[lane], partial[lane + s]);
        }
        workgroupBarrier();
    }
    let old = peak[params.peak_at + row];
    let new_peak = max(old, partial[0]);
    workgroupBarrier();
    var sum = 0.0;
    for (var c = lane; c < params.cols; c += 256u) {
        sum += exp(logits[first + c] - new_peak);
    }
    let chunk = tree_sum(lane, sum);
    if lane == 0u {
        total[params.total_at + row] = total[params.total_at + row] * exp(max(old - new_peak, -200.0)) + chunk;
        peak[params.peak_at + row] = new_peak;
        let column = labels[params.labels_at + row] - params.first_class; // wraps below: then too large
        if column < params.cols {
            goal[params.goal_at + row] = logits[first + column];
        }
    }
}
