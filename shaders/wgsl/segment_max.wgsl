// out[s,c] = max over the rows t of segment s of x[t,c], index[s,c] = the first t that has it
// x: [*, cols]. ranges: [segments, 2] u32, first and end row. out: [segments, cols]. index: [segments, cols] u32.
// len = segments * cols. out and index are overwritten.
// Dispatch: 256 invocations a workgroup, one element of out each, workgroups in x then y.

struct Params {
    x_at: u32,
    ranges_at: u32,
    out_at: u32,
    index_at: u32,
    len: u32,
    cols: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> ranges: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<storage, read_write> index: array<u32>;

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
    let segment = params.ranges_at + i / params.cols * 2u;
    let column = params.x_at + i % params.cols;
    var best = ranges[segment];
    var value = x[column + best * params.cols];
    for (var t = best + 1u; t < ranges[segment + 1u]; t += 1u) {
        let candidate = x[column + t * params.cols];
        if candidate > value {
            value = candidate;
            best = t;
        }
    }
    out[params.out_at + i] = value;
    index[params.index_at + i] = best;
}
