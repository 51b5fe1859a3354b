// out[c] (+)= sum_t x[t,c]
// x: [rows, cols]. out: [cols]. Accumulates when accumulate = 1, else overwrites.
// Dispatch: 16 columns a workgroup, 16 invocations to a column, each taking every 16th row; a fixed tree adds them.

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

var<workgroup> partial: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let column = group.x * 16u + lane % 16u;
    let strip = lane / 16u;
    var sum = 0.0;
    if column < params.cols {
        for (var t = strip; t < params.rows; t += 16u) {
            sum += x[params.x_at + t * params.cols + column];
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
        let at = params.out_at + column;
        var y = partial[lane];
        if params.accumulate == 1u {
            y += out[at];
        }
        out[at] = y;
    }
}
