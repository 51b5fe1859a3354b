// out[t,c] (+)= x[t,c] - mean_c x[t,c]
// x, out: [rows, cols]. Accumulates when accumulate = 1, else overwrites out.
// Dispatch: 64 invocations a workgroup, LANES of them to a row, workgroups in x then y.

struct Params {
    x_at: u32,
    out_at: u32,
    rows: u32,
    cols: u32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (group.y * groups.x + group.x) * (64u / LANES) + lane / LANES;
    let valid = row < params.rows;

    let x_row = params.x_at + row * params.cols;
    var sum = 0.0;
    if valid {
        for (var c = lane % LANES; c < params.cols; c += LANES) {
            sum += x[x_row + c];
        }
    }
    let mean = row_sum(lane, sum) / f32(params.cols);
    if !valid {
        return;
    }
    let out_row = params.out_at + row * params.cols;
    for (var c = lane % LANES; c < params.cols; c += LANES) {
        var y = x[x_row + c] - mean;
        if params.accumulate == 1u {
            y += out[out_row + c];
        }
        out[out_row + c] = y;
    }
}
