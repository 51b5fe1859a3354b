// dx[t,c] (+)= inv[t] * (g[t,c] - x[t,c] * inv[t]^2 * mean_c(g * x)), g = dy * (weight + weight_shift)
// x, dy, dx: [rows, cols]. weight: [cols]. inv: [rows]. Accumulates when accumulate = 1, else overwrites dx.
// Dispatch: 64 invocations a workgroup, LANES of them to a row, workgroups in x then y.

struct Params {
    x_at: u32,
    weight_at: u32,
    inv_at: u32,
    dy_at: u32,
    dx_at: u32,
    rows: u32,
    cols: u32,
    weight_shift: f32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> weight: array<f32>;
@group(0) @binding(3) var<storage, read> inv: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = (group.y * groups.x + group.x) * (64u / LANES) + lane / LANES;
    let valid = row < params.rows;

    let x_row = params.x_at + row * params.cols;
    let dy_row = params.dy_at + row * params.cols;
    var products = 0.0;
    if valid {
        for (var c = lane % LANES; c < params.cols; c += LANES) {
            let g = dy[dy_row + c] * (weight[params.weight_at + c] + params.weight_shift);
            products += g * x[x_row + c];
        }
    }
    let total = row_sum(lane, products);
    if !valid {
        return;
    }
    let scale = inv[params.inv_at + row];
    let pull = scale * scale * (total / f32(params.cols));
    let dx_row = params.dx_at + row * params.cols;
    for (var c = lane % LANES; c < params.cols; c += LANES) {
        let g = dy[dy_row + c] * (weight[params.weight_at + c] + params.weight_shift);
        var y = scale * (g - x[x_row + c] * pull);
        if params.accumulate == 1u {
            y += dx[dx_row + c];
        }
        dx[dx_row + c] = y;
    }
}
