// dq[i,h,:] = scale * sum_j ds[i,j] k[j], with p = exp(scale q.k - lse), ds = p (dout.v - delta)
// q, dout, dq: [queries, heads, head_dim]. k, v: [keys, kv_heads, head_dim]. stats: [queries, heads, 2] = (lse, delta).
// table, causal, window: see attention. dq is overwritten.
// A workgroup of 64 invocations takes QUERIES neighbouring queries of one head and walks over 64 keys at a time.
// Dispatch: (ceil(queries / QUERIES) from first_block on, heads, 1).

struct Params {
    q_at: u32,
    k_at: u32,
    v_at: u32,
    table_at: u32,
    dout_at: u32,
    stats_at: u32,
    dq_at: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    scale: f32,
    causal: u32,
    window: u32,
    segments: u32,
    queries: u32,
    keys: u32,
    first_block: u32,
    bias_zero: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> table: array<u32>;
@group(0) @binding(5) var<storage, read> dout: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> stats: array<f32>;
@group(0) @binding(7) var<storage, read_write> dq: array<f32>;

// head_dim rounded up to a power of two, 8 .. 256.
const HEAD_PAD: u32 = 64u;
// Whether stats goes on with the bias [2 * bias_zero + 1, heads].
const BIAS: u32 = 0u;
// 8, or 4 where HEAD_PAD = 256 would overflow workgroup memory.
const QUERIES: u32 = 8u;
// While rows of values are summed, LANES invocations stand side by side on the columns of a head (COLS columns each);
// the GROUPS of them take PER queries each.
const LANES: u32 = min(64u, HEAD_PAD);
const GROUPS: u32 = 64u / LANES;
const PER: u32 = QUERIES / GROUPS;
const COLS: u32 = HEAD_PAD / LANES;

var<workgroup> q_tile: array<vec4<f32>, QUERIES * HEAD_PAD / 4u>;
var<workgroup> dout_tile: array<vec4<f32>, QUERIES * HEAD_PAD / 4u>;
var<workgroup> ds_tile: array<f32, QUERIES * 64u>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = group.y;
    let kv_head = head / (params.heads / params.kv_heads);
    let first = (group.x + params.first_block) * QUERIES;
    let last = min(first + QUERIES, params.queries);
    let depth = (params.head_dim + 3u) / 4u;

    for (var i = lane; i < QUERIES * depth; i += 64u) {
        let query = first + i / depth;
        var y = vec4<f32>(0.0);
        var z = vec4<f32>(0.0);
        if query < last {
            let row = (query * params.heads + head) * params.head_dim;
            y = q_quad(row, (i % depth) * 4u) * params.scale;
            z = dout_quad(row, (i % depth) * 4u);
        }
        q_tile[(i / depth) * (HEAD_PAD / 4u) + i % depth] = y;
        dout_tile[(i / depth) * (HEAD_PAD / 4u) + i % depth] = z;
    }
    workgroupBarrier();

    var acc: array<f32, PER * COLS>;
    for (var i = 0u; i < PER * COLS; i++) {
        acc[i] = 0.0;
    }
    let side = lane / LANES;

    for (var segment = 0u; segment < params.segments; segment++) {
        let entry = params.table_at + segment * 4u;
        let q_start = table[entry];
        let q_end = table[entry + 1u];
        let k_start = table[entry + 2u];
        let k_end = table[entry + 3u];
        if q_end <= first || q_start >= last {
            continue;
        }
        // Keys that any query of the block may see.
        let keys = i32(k_end - k_start);
        let shift = keys - i32(q_end - q_start);
        let low_query = i32(max(first, q_start) - q_start);
        let high_query = i32(min(last, q_end) - q_start) - 1;
        var begin = 0;
        var end = keys;
        if params.causal == 1u {
            end = min(end, high_query + shift + 1);
        }
        if params.window != 0u {
            let low_end = select(keys, low_query + shift + 1, params.causal == 1u);
            begin = max(begin, low_end - i32(params.window));
        }
        for (var block = begin; block < end; block += 64) {
            let j = block + i32(lane);
            var scores: array<f32, QUERIES>;
            var slopes: array<f32, QUERIES>;
            for (var i = 0u; i < QUERIES; i++) {
                scores[i] = 0.0;
                slopes[i] = 0.0;
            }
            if j < end {
                let row = ((k_start + u32(j)) * params.kv_heads + kv_head) * params.head_dim;
                for (var d = 0u; d < depth; d++) {
                    let key = k_quad(row, d * 4u);
                    let value = v_quad(row, d * 4u);
                    for (var i = 0u; i < QUERIES; i++) {
                        scores[i] += dot(q_tile[i * (HEAD_PAD / 4u) + d], key);
                        slopes[i] += dot(dout_tile[i * (HEAD_PAD / 4u) + d], value);
                    }
                }
            }
            for (var i = 0u; i < QUERIES; i++) {
                let query = first + i;
                var ds = 0.0;
                if j < end && query >= q_start && query < min(q_end, last)
                    && sees(i32(query) - i32(q_start), j, shift, keys) {
                    let at = params.stats_at + (query * params.heads + head) * 2u;
                    var score = scores[i];
                    if BIAS == 1u {
                        let distance = i32(params.bias_zero) + j - shift - i32(query - q_start);
                        score += stats[params.stats_at + 2u * params.queries * params.heads + u32(distance) * params.heads + head];
                    }
                    ds = exp(score - stats[at]) * (slopes[i] - stats[at + 1u]) * params.scale;
                }
                ds_tile[i * 64u + lane] = ds;
            }
            workgroupBarrier();

            let count = u32(min(64, end - block));
            for (var cc = 0u; cc < COLS; cc++) {
                let column = lane % LANES + cc * LANES;
                if column < params.head_dim {
                    var at = params.k_at + ((k_start + u32(block)) * params.kv_heads + kv_head) * params.head_dim + column;
                    for (var key = 0u; key < count; key++) {
                        let value = k[at >> 2u][at & 3u];
                        for (var i = 0u; i < PER; i++) {
                            acc[i * COLS + cc] += ds_tile[(side * PER + i) * 64u + key] * value;
                        }
                        at += params.kv_heads * params.head_dim;
                    }
                }
            }
            workgroupBarrier();
        }
    }

    for (var i = 0u; i < PER; i++) {
        let query = first + side * PER + i;
        if query < last {
            for (var cc = 0u; cc < COLS; cc++) {
                let column = lane % LANES + cc * LANES;
                if column < params.head_dim {
                    dq[params.dq_at + (query * params.heads + head) * params.head_dim + column] = acc[i * COLS + cc];
                }
            }
        }
    }
}
