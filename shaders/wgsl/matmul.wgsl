// c (+)= op(a) * op(b)
// LAYOUT 0 (Nn): c[m,n] = a[m,k] b[k,n]; 1 (Nt): c[m,n] = a[m,k] b[n,k]^T; 2 (Tn): c[m,n] = a[k,m]^T b[k,n].
// a, c: f32. b: f32, two f16 or bf16 to a word (B_DTYPE 1, 2), or blocks of 32 int8 or int4 along its rows (3, 4; rows
// and offset are whole blocks). Sums are f32. Accumulates when accumulate = 1.
// A_VEC4, B_VEC4: offset and row length are multiples of four, so whole vec4 are read; otherwise element by element.
//
// A workgroup of 64 invocations makes a tile of 8 MICRO x 8 MICRO, each invocation MICRO x MICRO of it:
// MICRO 8 for large products, 4 where that would leave a device idle. Tiles of a and b pass through workgroup
// memory [depth][outer] as vec4 along the outer dimension; an operand stored the other way is turned in 4 x 4 blocks
// while it is loaded, one block of each operand per invocation.
// Dispatch: (ceil(n / tile), ceil(m / tile), 1).

const LAYOUT: u32 = 0u;
const B_DTYPE: u32 = 0u;
const A_VEC4: u32 = 0u;
const B_VEC4: u32 = 0u;
const MICRO: u32 = 4u;

const TILE: u32 = 8u * MICRO;
const DEPTH: u32 = 128u / MICRO;
// One vec4 of padding keeps the turned stores off each other's banks.
const PITCH: u32 = TILE / 4u + 1u;

var<workgroup> tile_a: array<vec4<f32>, DEPTH * PITCH>;
var<workgroup> tile_b: array<vec4<f32>, DEPTH * PITCH>;

// Elements inner .. inner + 4 of row `outer` of a matrix [outers, inners], zero outside.
fn load_a(outer: u32, inner: u32, outers: u32, inners: u32) -> vec4<f32> {
    if outer < outers && inner < inners {
        return read_a(params.a_at + outer * inners + inner, inners - inner);
    }
    return vec4<f32>(0.0);
}

fn load_b(outer: u32, inner: u32, outers: u32, inners: u32) -> vec4<f32> {
    if outer < outers && inner < inners {
        return read_b(params.b_at + outer * inners + inner, inners - inner);
    }
    return vec4<f32>(0.0);
}

// The 4 x 4 block of an invocation. Rows of memory first, so that neighbours read neighbours.
fn block_along_depth(lane: u32) -> vec2<u32> {
    return vec2(lane / (DEPTH / 4u), lane % (DEPTH / 4u)) * 4u;
}

fn block_along_outer(lane: u32) -> vec2<u32> {
    return vec2(lane % (TILE / 4u), lane / (TILE / 4u)) * 4u;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row0 = group.y * TILE;
    let col0 = group.x * TILE;
    let tx = lane % 8u;
    let ty = lane / 8u;
    // Rows 0..4 and 4..8 of this invocation, left (c) and right (d) columns. Named rather than an array, so that no
    // compiler puts them in memory; with MICRO 4 only c0..c3 live.
    var c0 = vec4<f32>(0.0);
    var c1 = vec4<f32>(0.0);
    var c2 = vec4<f32>(0.0);
    var c3 = vec4<f32>(0.0);
    var c4 = vec4<f32>(0.0);
    var c5 = vec4<f32>(0.0);
    var c6 = vec4<f32>(0.0);
    var c7 = vec4<f32>(0.0);
    var d0 = vec4<f32>(0.0);
    var d1 = vec4<f32>(0.0);
    var d2 = vec4<f32>(0.0);
    var d3 = vec4<f32>(0.0);
    var d4 = vec4<f32>(0.0);
    var d5 = vec4<f32>(0.0);
    var d6 = vec4<f32>(0.0);
    var d7 = vec4<f32>(0.0);

    for (var k0 = 0u; k0 < params.k; k0 += DEPTH) {
        if LAYOUT == 2u {
            let block = block_along_outer(lane);
            let at = block.y * PITCH + block.x / 4u;
            let outer = row0 + block.x;
            let depth = k0 + block.y;
            tile_a[at] = load_a(depth, outer, params.k, params.m);
            tile_a[at + PITCH] = load_a(depth + 1u, outer, params.k, params.m);
            tile_a[at + 2u * PITCH] = load_a(depth + 2u, outer, params.k, params.m);
            tile_a[at + 3u * PITCH] = load_a(depth + 3u, outer, params.k, params.m);
        } else {
            let block = block_along_depth(lane);
            let at = block.y * PITCH + block.x / 4u;
            let outer = row0 + block.x;
            let depth = k0 + block.y;
            let turned = transpose(mat4x4<f32>(
                load_a(outer, depth, params.m, params.k),
                load_a(outer + 1u, depth, params.m, params.k),
                load_a(outer + 2u, depth, params.m, params.k),
                load_a(outer + 3u, depth, params.m, params.k),
            ));
            tile_a[at] = turned[0];
            tile_a[at + PITCH] = turned[1];
            tile_a[at + 2u * PITCH] = turned[2];
            tile_a[at + 3u * PITCH] = turned[3];
        }
        if LAYOUT == 1u {
            let block = block_along_depth(lane);
            let at = block.y * PITCH + block.x / 4u;
            let outer = col0 + block.x;
            let depth = k0 + block.y;
            let turned = transpose(mat4x4<f32>(
                load_b(outer, depth, params.n, params.k),
                load_b(outer + 1u, depth, params.n, params.k),
                load_b(outer + 2u, depth, params.n, params.k),
                load_b(outer + 3u, depth, params.n, params.k),
            ));
            tile_b[at] = turned[0];
            tile_b[at + PITCH] = turned[1];
            tile_b[at + 2u * PITCH] = turned[2];
            tile_b[at + 3u * PITCH] = turned[3];
        } else {
            let block = block_along_outer(lane);
            let at = block.y * PITCH + block.x / 4u;
            let outer = col0 + block.x;
            let depth = k0 + block.y;
            tile_b[at] = load_b(depth, outer, params.k, params.n);
            tile_b[at + PITCH] = load_b(depth + 1u, outer, params.k, params.n);
            tile_b[at + 2u * PITCH] = load_b(depth + 2u, outer, params.k, params.n);
            tile_b[at + 3u * PITCH] = load_b(depth + 3u, outer, params.k, params.n);
        }
        workgroupBarrier();

        for (var depth = 0u; depth < DEPTH; depth++) {
            let base = depth * PITCH;
            let rows = tile_a[base + ty];
            let cols = tile_b[base + tx];
            c0 = fma(vec4(rows.x), cols, c0);
            c1 = fma(vec4(rows.y), cols, c1);
            c2 = fma(vec4(rows.z), cols, c2);
            c3 = fma(vec4(rows.w), cols, c3);
            if MICRO == 8u {
                // Quads eight apart, so that the eight columns of invocations read one stretch of memory.
                let more_rows = tile_a[base + ty + 8u];
                let more_cols = tile_b[base + tx + 8u];
                c4 = fma(vec4(more_rows.x), cols, c4);
                c5 = fma(vec4(more_rows.y), cols, c5);
                c6 = fma(vec4(more_rows.z), cols, c6);
                c7 = fma(vec4(more_rows.w), cols, c7);
                d0 = fma(vec4(rows.x), more_cols, d0);
                d1 = fma(vec4(rows.y), more_cols, d1);
                d2 = fma(vec4(rows.z), more_cols, d2);
                d3 = fma(vec4(rows.w), more_cols, d3);
                d4 = fma(vec4(more_rows.x), more_cols, d4);
                d5 = fma(vec4(more_rows.y), more_cols, d5);
                d6 = fma(vec4(more_rows.z), more_cols, d6);
                d7 = fma(vec4(more_rows.w), more_cols, d7);
            }
        }
        workgroupBarrier();
    }

    let row = row0 + ty * 4u;
    let col = col0 + tx * 4u;
    store(row + 0u, col, c0);
    store(row + 1u, col, c1);
    store(row + 2u, col, c2);
    store(row + 3u, col, c3);
    if MICRO == 8u {
        store(row + 32u, col, c4);
        store(row + 33u, col, c5);
        store(row + 34u, col, c6);
        store(row + 35u, col, c7);
        store(row + 0u, col + 32u, d0);
        store(row + 1u, col + 32u, d1);
        store(row + 2u, col + 32u, d2);
        store(row + 3u, col + 32u, d3);
        store(row + 32u, col + 32u, d4);
        store(row + 33u, col + 32u, d5);
        store(row + 34u, col + 32u, d6);
        store(row + 35u, col + 32u, d7);
    }
}
