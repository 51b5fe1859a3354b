// dv[j] = sum_{i,h} p[i,j] dout[i,h], dk[j] = scale * sum_{i,h} ds[i,j] q[i,h], over the query heads h that share the kv head,
// with p = exp(scale q.k - lse), ds = p (dout.v - delta)
// q, dout: [queries, heads, head_dim]. k, v, dk, dv: [keys, kv_heads, head_dim]. stats: [queries, heads, 2] = (lse, delta).
// table, causal, window: see attention. dk and dv are overwritten.
// A workgroup of 64 invocations takes KEYS neighbouring keys of one kv head and walks over 64 queries at a time, head after
// head: one owner per key, so no atomics and one order of summation.
// Dispatch: (ceil(keys / KEYS) from first_block on, kv_heads, 1).

struct Params {
    q_at: u32,
    k_at: u32,
    v_at: u32,
    table_at: u32,
    dout_at: u32,
    stats_at: u32,
    dk_at: u32,
    dv_at: u32,
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
@group(0) @binding(7) var<storage, read_write> dk: array<f32>;
@group(0) @binding(8) var<storage, read_write> dv: array<f32>;

// head_dim rounded up to a power of two, 8 .. 256.
const HEAD_PAD: u32 = 64u;
// Whether stats goes on with the bias [2 * bias_zero + 1, heads].
const BIAS: u32 = 0u;
// 8, or 4 where HEAD_PAD = 256 would overflow workgroup memory.
const KEYS: u32 = 8u;
// While rows of values are summed, LANES invocations stand side by side on the columns of a head (COLS columns each);
// the GROUPS of them take PER keys each.
const LANES: u32 = min(64u, HEAD_PAD);
const GROUPS: u32 = 64u / LANES;
const PER: u32 = KEYS / GROUPS;
const COLS: u32 = HEAD_PAD / LANES;

var<workgroup> k_tile: array<vec4<f32>, KEYS * HEAD_PAD / 4u>;
var<workgroup> v_tile: array<vec4<f32>, KEYS * HEAD_PAD / 4u>;
var<workgroup> p_tile: array<f32, KEYS * 64u>;
var<workgroup> ds_tile: array<f32, KEYS * 64u>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let kv_head = group.y;
    let sharing = params.heads / params.kv_heads;
    let first = (group.x + params.first_block) * KEYS;
    let last = min(first + KEYS, params.keys);
    let depth = (params.head_dim + 3u) / 4u;

    for (var i = lane; i < KEYS * depth; i += 64u) {
        let key = first + i / depth;
        var y = vec4<f32>(0.0);
        var z = vec4<f32>(0.0);
        if key < last {
            let row = (key * params.kv_heads + kv_head) * params.head_dim;
            y = k_quad(row, (i % depth) * 4u) * params.scale;
            z = v_quad(row, (i % depth) * 4u);
        }
        k_tile[(i / depth) * (HEAD_PAD / 4u) + i % depth] = y;
        v_tile[(i / depth) * (HEAD_PAD / 4u) + i % depth] = z;
    }
    workgroupBarrier();

    var dk_acc: array<f32, PER * COLS>;
    var dv_acc: array<f32, PER * COLS>;
    for (var i = 0u; i < PER * COLS; i++) {
        dk_acc[i] = 0.0;
        dv_acc[i] = 0.0;
    }
    let side = lane / LANES;

    for (var segment = 0u; segment < params.segments; segment++) {
        let entry = params.table_at + segment * 4u;
        let q_start = table[entry];
        let q_end = table[entry + 1u];
        let k_start = table[entry + 2u];
        let k_end = table[entry + 3u];
        if k_end <= first || k_start >= last {
            continue;
        }
        // Queries that may see any key of the block.
        let keys = i32(k_end - k_start);
        let shift = keys - i32(q_end - q_start);
        let low_key = i32(max(first, k_start) - k_start);
        let high_key = i32(min(last, k_end) - k_start) - 1;
        var begin = 0;
        var end = i32(q_end - q_start);
        if params.causal == 1u {
            begin = max(begin, low_key - shift);
        }
        if params.window != 0u && params.causal == 1u {
            end = min(end, high_key - shift + i32(params.window));
        }
        for (var shared_head = 0u; shared_head < sharing; shared_head++) {
            let head = kv_head * sharing + shared_head;
            for (var block = begin; block < end; block += 64) {
                let i = block + i32(lane);
                let query = q_start + u32(i);
                var scores: array<f32, KEYS>;
                var slopes: array<f32, KEYS>;
                for (var j = 0u; j < KEYS; j++) {
                    scores[j] = 0.0;
                    slopes[j] = 0.0;
                }
                var lse = 0.0;
                var delta = 0.0;
                if i < end {
                    let row = (query * params.heads + head) * params.head_dim;
                    for (var d = 0u; d < depth; d++) {
                        let question = q_quad(row, d * 4u);
                        let slope = dout_quad(row, d * 4u);
                        for (var j = 0u; j < KEYS; j++) {
                            scores[j] += dot(k_tile[j * (HEAD_PAD / 4u) + d], question);
                            slopes[j] += dot(v_tile[j * (HEAD_PAD / 4u) + d], slope);
                        }
                    }
                    let at = params.stats_at + (query * params.heads + head) * 2u;
                    lse = stats[at];
                    delta = stats[at + 1u];
                }
                for (var j = 0u; j < KEYS; j++) {
                    let key = first + j;
                    var p = 0.0;
                    if i < end && key >= k_start && key < min(k_end, last)
                        && sees(i, i32(key) - i32(k_start), shift, keys) {
                        var score = scores[j];
                        if BIAS == 1u {
                            let distance = i32(params.bias_zero) + i32(key - k_start) - shift - i;
                            score += stats[params.stats_at + 2u * params.queries * params.heads + u32(distance) * params.heads + head];
                        }
                        p = exp(score - lse);
                    }
                    p_tile[j * 64u + lane] = p;
                    ds_tile[j * 64u + lane] = p * (slopes[j] - delta) * params.scale;
                }
                workgroupBarrier();

                let count = u32(min(64, end - block));
                for (var cc = 0u; cc < COLS; cc++) {
                    let column = lane % LANES + cc * LANES;
                    if column < params.head_dim {
                        var at = ((q_start + u32(block)) * params.heads + head) * params.head_dim + column;
                        for (var t = 0u; t < count; t++) {
                            let question = q[(params.q_at + at) >> 2u][(params.q_at + at) & 3u];
                            let slope = dout[(params.dout_at + at) >> 2u][(params.dout_at + at) & 3u];
                            for (var j = 0u; j < PER; j++) {
                                dk_acc[j * COLS + cc] += ds_tile[(side * PER + j) * 64u + t] * question;
                                dv_acc[j * COLS + cc] += p_tile[(side * PER + j) * 64u + t] * slope;
                            }
                            at += params.heads * params.head_dim;
                        }
                    }
                }
                workgroupBarrier();
            }
        }
    }

    for (var j = 0u; j < PER; j++) {
        let key = first + side * PER + j;
        if key < last {
            for (var cc = 0u; cc < COLS; cc++) {
                let column = lane % LANES + cc * LANES;
                if column < params.head_dim {
                    let at = (key * params.kv_heads + kv_head) * params.head_dim + column;
                    dk[params.dk_at + at] = dk_acc[j * COLS + cc];
                    dv[params.dv_at + at] = dv_acc[j * COLS + cc];
                }
            }
        }
    }
}
