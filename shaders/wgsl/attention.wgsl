// out[i,h,:] = sum_j softmax_j(scale q[i,h] . k[j,h/g]) v[j,h/g,:], lse[i,h] = log sum_j exp(scale q . k), g = heads / kv_heads
// q, out: [queries, heads, head_dim]. k, v: [keys, kv_heads, head_dim]. lse: [queries, heads].
// table: [segments, 4] u32 (q_start, q_end, k_start, k_end): a query sees keys of its own segment only.
// causal: query i of a segment stands at key position i + (keys - queries of the segment).
// window: only the last so many of the keys it could see, 0 = all.
// BIAS: the score gets bias[bias_zero + j - i, h] besides, i and j being positions of the segment.
// out and lse are overwritten.
//
// Online softmax, no scores stored: a workgroup of 64 invocations takes 8 neighbouring queries of one head and walks
// over 64 keys at a time: one key per invocation for the scores, one column (or more) per invocation for the values.
// Dispatch: (ceil(queries / 8) from first_block on, heads, 1).

struct Params {
    q_at: u32,
    k_at: u32,
    v_at: u32,
    table_at: u32,
    bias_at: u32,
    out_at: u32,
    lse_at: u32,
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
@group(0) @binding(3) var<storage, read> v: array<f32>;
@group(0) @binding(4) var<storage, read> table: array<u32>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
@group(0) @binding(6) var<storage, read_write> out: array<f32>;
@group(0) @binding(7) var<storage, read_write> lse: array<f32>;

// head_dim rounded up to a power of two, 8 .. 256.
const HEAD_PAD: u32 = 64u;
// Whether bias is bound.
const BIAS: u32 = 0u;
// While rows of values are summed, LANES invocations stand side by side on the columns of a head (COLS columns each);
// the GROUPS of them take PER queries each.
const LANES: u32 = min(64u, HEAD_PAD);
const GROUPS: u32 = 64u / LANES;
const PER: u32 = 8u / GROUPS;
const COLS: u32 = HEAD_PAD / LANES;
const NOTHING: f32 = -3.4e38;

var<workgroup> q_tile: array<vec4<f32>, 2u * HEAD_PAD>;
var<workgroup> p_tile: array<f32, 512>;
var<workgroup> reduced: array<f32, 64>;
var<workgroup> shrink: array<f32, 8>;
var<workgroup> total: array<f32, 8>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let head = group.y;
    let kv_head = head / (params.heads / params.kv_heads);
    let first = (group.x + params.first_block) * 8u;
    let last = min(first + 8u, params.queries);
    let depth = (params.head_dim + 3u) / 4u;

    for (var i = lane; i < 8u * depth; i += 64u) {
        let query = first + i / depth;
        var y = vec4<f32>(0.0);
        if query < last {
            y = q_quad((query * params.heads + head) * params.head_dim, (i % depth) * 4u) * params.scale;
        }
        q_tile[(i / depth) * (HEAD_PAD / 4u) + i % depth] = y;
    }
    workgroupBarrier();

    // Running maximum and sum of query lane / 8, the same in its 8 invocations.
    let mine = lane / 8u;
    var peak = NOTHING;
    var sum = 0.0;
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
            // Scores of one key with the eight queries.
            let j = block + i32(lane);
            var scores: array<f32, 8>;
            for (var i = 0u; i < 8u; i++) {
                scores[i] = 0.0;
            }
            if j < end {
                let row = ((k_start + u32(j)) * params.kv_heads + kv_head) * params.head_dim;
                for (var d = 0u; d < depth; d++) {
                    let key = k_quad(row, d * 4u);
                    for (var i = 0u; i < 8u; i++) {
                        scores[i] += dot(q_tile[i * (HEAD_PAD / 4u) + d], key);
                    }
                }
            }
            for (var i = 0u; i < 8u; i++) {
                let query = first + i;
                let seen = j < end && query >= q_start && query < min(q_end, last)
                    && sees(i32(query) - i32(q_start), j, shift, keys);
                var score = scores[i];
                if BIAS == 1u && seen {
                    let distance = i32(params.bias_zero) + j - shift - i32(query - q_start);
                    score += bias[params.bias_at + u32(distance) * params.heads + head];
                }
                p_tile[i * 64u + lane] = select(NOTHING, score, seen);
            }
            workgroupBarrier();

            // Maximum of the block for each query.
            let strip = mine * 64u + (lane % 8u) * 8u;
            var top = NOTHING;
            for (var i = 0u; i < 8u; i++) {
                top = max(top, p_tile[strip + i]);
            }
            reduced[lane] = top;
            workgroupBarrier();
            for (var i = 0u; i < 8u; i++) {
                top = max(top, reduced[mine * 8u + i]);
            }
            let new_peak = max(peak, top);
            workgroupBarrier();

            // Probabilities relative to the new maximum.
            var part = 0.0;
            for (var i = 0u; i < 8u; i++) {
                let score = p_tile[strip + i];
                var p = 0.0;
                if score > -3.0e38 {
                    p = exp(score - new_peak);
                }
                p_tile[strip + i] = p;
                part += p;
            }
            reduced[lane] = part;
            let factor = exp(max(peak - new_peak, -200.0));
            if lane % 8u == 0u {
                shrink[mine] = factor;
            }
            workgroupBarrier();
            var block_sum = 0.0;
            for (var i = 0u; i < 8u; i++) {
                block_sum += reduced[mine * 8u + i];
            }
            sum = sum * factor + block_sum;
            peak = new_peak;

            // Values.
            let count = u32(min(64, end - block));
            for (var i = 0u; i < PER; i++) {
                for (var cc = 0u; cc < COLS; cc++) {
                    acc[i * COLS + cc] *= shrink[side * PER + i];
                }
            }
            for (var cc = 0u; cc < COLS; cc++) {
                let column = lane % LANES + cc * LANES;
                if column < params.head_dim {
                    var at = params.v_at + ((k_start + u32(block)) * params.kv_heads + kv_head) * params.head_dim + column;
                    for (var key = 0u; key < count; key++) {
                        let value = v[at];
                        for (var i = 0u; i < PER; i++) {
                            acc[i * COLS + cc] += p_tile[(side * PER + i) * 64u + key] * value;
                        }
                        at += params.kv_heads * params.head_dim;
                    }
                }
            }
            workgroupBarrier();
        }
    }

    if lane % 8u == 0u {
        total[mine] = sum;
        if first + mine < last {
            lse[params.lse_at + (first + mine) * params.heads + head] = peak + log(max(sum, 1e-37));
        }
    }
    workgroupBarrier();
    for (var i = 0u; i < PER; i++) {
        let query = first + side * PER + i;
        if query < last {
            let divisor = max(total[side * PER + i], 1e-37);
            for (var cc = 0u; cc < COLS; cc++) {
                let column = lane % LANES + cc * LANES;
                if column < params.head_dim {
                    out[params.out_at + (query * params.heads + head) * params.head_dim + column] = acc[i * COLS + cc] / divisor;
                }
            }
        }
    }
}
