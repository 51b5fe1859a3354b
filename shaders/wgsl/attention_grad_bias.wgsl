// dbias[d,h] = sum over queries i and keys j of a segment with j - i = d - bias_zero of p (dout.v - delta),
// with p = exp(scale q.k + bias[d,h] - lse)
// q, dout: [queries, heads, head_dim]. k, v: [keys, kv_heads, head_dim]. stats: [queries, heads, 2] = (lse, delta), then
// bias [distances, heads], distances = 2 * bias_zero + 1. table, causal, window: see attention. dbias is overwritten.
// Dispatch: (distances, heads, 1): a workgroup of 64 invocations owns one element and takes every 64th query.

struct Params {
    q_at: u32,
    k_at: u32,
    v_at: u32,
    table_at: u32,
    dout_at: u32,
    stats_at: u32,
    dbias_at: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    scale: f32,
    causal: u32,
    window: u32,
    segments: u32,
    queries: u32,
    bias_zero: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<f32>;
@group(0) @binding(2) var<storage, read> k: array<f32>;
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> table: array<u32>;
@group(0) @binding(5) var<storage, read> dout: array<f32>;
@group(0) @binding(6) var<storage, read> stats: array<f32>;
@group(0) @binding(7) var<storage, read_write> dbias: array<f32>;

var<workgroup> partial: array<f32, 64>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let distance = group.x;
    let head = group.y;
    let kv_head = head / (params.heads / params.kv_heads);
    let bias = stats[params.stats_at + 2u * params.queries * params.heads + distance * params.heads + head];
    var sum = 0.0;
    for (var segment = 0u; segment < params.segments; segment++) {
        let entry = params.table_at + segment * 4u;
        let q_start = table[entry];
        let queries = i32(table[entry + 1u] - q_start);
        let k_start = table[entry + 2u];
        let keys = i32(table[entry + 3u] - k_start);
        let shift = keys - queries;
        for (var i = i32(lane); i < queries; i += 64) {
            let j = i + shift + i32(distance) - i32(params.bias_zero);
            if j < 0 || j >= keys || !sees(i, j, shift, keys) {
                continue;
            }
            let row = (q_start + u32(i)) * params.heads + head;
            let q_row = row * params.head_dim;
            let k_row = ((k_start + u32(j)) * params.kv_heads + kv_head) * params.head_dim;
            var score = 0.0;
            var slope = 0.0;
            for (var c = 0u; c < params.head_dim; c++) {
                score += q[params.q_at + q_row + c] * k[params.k_at + k_row + c];
                slope += dout[params.dout_at + q_row + c] * v[params.v_at + k_row + c];
            }
            let at = params.stats_at + row * 2u;
            sum += exp(score * params.scale + bias - stats[at]) * (slope - stats[at + 1u]);
        }
    }
    partial[lane] = sum;
    workgroupBarrier();
    for (var s = 32u; s > 0u; s = s / 2u) {
        if lane < s {
            partial[lane] += partial[lane + s];
        }
        workgroupBarrier();
    }
    if lane == 0u {
        dbias[params.dbias_at + distance * params.heads + head] = partial[0];
    }
}
