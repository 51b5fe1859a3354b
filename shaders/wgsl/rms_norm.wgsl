// inv[t] = 1 / sqrt(mean_c x[t,c]^2 + eps), out[t,c] = x[t,c] * inv[t] * (weight[c] + weight_shift)
// x, out: [rows, cols]. weight: [cols]. inv: [rows]. out and inv are overwritten.
// Dispatch: 64 invocations a workgroup, LANES of them to a row, workgroups in x then y.

struct Params {
    x_at: u32,
    weight_at: u32,
    out_at: u32,
    inv_at: u32,
    rows: u32,
    cols: u32,
    eps: f32,
    weight_shift: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<storage, read_write> inv: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (group.y * groups.x + group.x) * (64u / LANES) + lane / LANES;
    let valid = row < params.rows;

    let x_row = params.x_at + row * params.cols;
    var squares = 0.0;
    if valid {
        for (var c = lane % LANES; c < params.cols; c += LANES) {
            let value = x[x_row + c];
            squares += value * value;
        }
    }
    let total = row_sum(lane, squares);
    if !valid {
        return;
    }
    let scale = 1.0 / sqrt(total / f32(params.cols) + params.eps);
    if lane % LANES == 0u {
        inv[params.inv_at + row] = scale;
    }
    let out_row = params.out_at + row * params.cols;
    for (var c = lane % LANES; c < params.cols; c += LANES) {
        out[out_row + c] = x[x_row + c] * scale * (weight[params.weight_at + c] + params.weight_shift);
    }
}
