// dweight[c] += sum_t dy[t,c] * x[t,c] * inv[t]
// x, dy: [rows, cols]. inv: [rows]. dweight: [cols], accumulated.
// Dispatch: 16 columns a workgroup, 16 invocations to a column, each taking every 16th row; a fixed tree adds them.

struct Params {
    x_at: u32,
    inv_at: u32,
    dy_at: u32,
    dweight_at: u32,
    rows: u32,
    cols: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> inv: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dweight: array<f32>;

var<workgroup> partial: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = group.x * 16u + lane % 16u;
    let strip = lane / 16u;
    var sum = 0.0;
    if column < params.cols {
        for (var t = strip; t < params.rows; t += 16u) {
            let at = t * params.cols + column;
            sum += dy[params.dy_at + at] * x[params.x_at + at] * inv[params.inv_at + t];
        }
    }
    partial[lane] = sum;
    workgroupBarrier();
    for (var s = 8u; s > 0u; s = s / 2u) {
        if strip < s {
            partial[lane] += partial[lane + s * 16u];
        }
        workgroupBarrier();
    }
    if strip == 0u && column < params.cols {
        let at = params.dweight_at + column;
        dweight[at] = dweight[at] + partial[lane];
    }
}
