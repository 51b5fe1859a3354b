// Greedy choice over a chunk of classes, keeping the running best; ties keep the lower index.
// logits: [rows, cols]. best_value: [rows] and best_index: [rows] u32, updated in place (index = first_class + column).
// Dispatch: one workgroup of 256 invocations to a row, workgroups in x then y.

struct Params {
    logits_at: u32,
    best_value_at: u32,
    best_index_at: u32,
    rows: u32,
    cols: u32,
    first_class: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;
@group(0) @binding(2) var<storage, read_write> best_value: array<f32>;
@group(0) @binding(3) var<storage, read_write> best_index: array<u32>;

var<workgroup> values: array<f32, 256>;
var<workgroup> columns: array<u32, 256>;

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
    var value = -3.4e38;
    var column = 0xffffffffu;
    for (var c = lane; c < params.cols; c += 256u) {
        let candidate = logits[first + c];
        if candidate > value {
            value = candidate;
            column = c;
        }
    }
    values[lane] = value;
    columns[lane] = column;
    workgroupBarrier();
    for (var s = 128u; s > 0u; s = s / 2u) {
        if lane < s {
            let other = values[lane + s];
            let other_column = columns[lane + s];
            if other > values[lane] || (other == values[lane] && other_column < columns[lane]) {
                values[lane] = other;
                columns[lane] = other_column;
            }
        }
        workgroupBarrier();
    }
    if lane == 0u && columns[0] != 0xffffffffu && values[0] > best_value[params.best_value_at + row] {
        best_value[params.best_value_at + row] = values[0];
        best_index[params.best_index_at + row] = params.first_class + columns[0];
    }
}
