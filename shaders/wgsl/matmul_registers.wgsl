// c (+)= op(a) * op(b), for devices on which workgroup memory and barriers cost more than they save: twin of
// matmul.wgsl, whose layouts, element types and operands these are.
//
// Each invocation makes a tile of 4 ROW_QUADS x 4 COL_QUADS in its registers, four steps of the depth at a time, as
// products of 4 x 4 blocks that are read from where they are stored, and turned where the depth lies across. Loops
// marked "unroll" are written out before the kernel is compiled: arrays with constant indices become registers.
// A workgroup is GROUP_X x GROUP_Y such tiles.
// Dispatch: (ceil(n / (4 COL_QUADS GROUP_X)), ceil(m / (4 ROW_QUADS GROUP_Y)), 1).

const LAYOUT: u32 = 0u;
const B_DTYPE: u32 = 0u;
const A_VEC4: u32 = 0u;
const B_VEC4: u32 = 0u;
const ROW_QUADS: u32 = 2u;
const COL_QUADS: u32 = 2u;
const GROUP_X: u32 = 8u;
const GROUP_Y: u32 = 8u;

// Where four neighbouring rows of a (or columns of b), `first` and on, begin. Those past the last are made, not stored.
// Rows that lie along the depth: their starts. Rows that lie across it: the start of the first, and how many there are.
fn starts(first: u32, count: u32, at: u32, across: bool) -> vec4<u32> {
    if across {
        let inside = min(first, (count - 1u) & 0xfffffffcu);
        return vec4(at + inside, count - inside, 0u, 0u);
    }
    return vec4(at) + min(vec4(first) + vec4(0u, 1u, 2u, 3u), vec4(count - 1u)) * params.k;
}

// Four steps of the depth of four rows of a; zero past the depth's end.
fn block_a(rows: vec4<u32>, depth: u32) -> mat4x4<f32> {
    let left = params.k - depth;
    if LAYOUT == 2u {
        let at = rows.x + depth * params.m;
        return transpose(mat4x4<f32>(
            read_a(at, rows.y),
            select(vec4<f32>(), read_a(at + params.m, rows.y), left > 1u),
            select(vec4<f32>(), read_a(at + 2u * params.m, rows.y), left > 2u),
            select(vec4<f32>(), read_a(at + 3u * params.m, rows.y), left > 3u),
        ));
    }
    return mat4x4<f32>(
        read_a(rows.x + depth, left),
        read_a(rows.y + depth, left),
        read_a(rows.z + depth, left),
        read_a(rows.w + depth, left),
    );
}

// Four columns of b at four steps of the depth; zero past the depth's end.
fn block_b(cols: vec4<u32>, depth: u32) -> mat4x4<f32> {
    let left = params.k - depth;
    if LAYOUT == 1u {
        return transpose(mat4x4<f32>(
            read_b(cols.x + depth, left),
            read_b(cols.y + depth, left),
            read_b(cols.z + depth, left),
            read_b(cols.w + depth, left),
        ));
    }
    let at = cols.x + depth * params.n;
    return mat4x4<f32>(
        read_b(at, cols.y),
        select(vec4<f32>(), read_b(at + params.n, cols.y), left > 1u),
        select(vec4<f32>(), read_b(at + 2u * params.n, cols.y), left > 2u),
        select(vec4<f32>(), read_b(at + 3u * params.n, cols.y), left > 3u),
    );
}

@compute @workgroup_size(GROUP_X * GROUP_Y)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let row = (group.y * GROUP_Y + lane / GROUP_X) * 4u * ROW_QUADS;
    let col = (group.x * GROUP_X + lane % GROUP_X) * 4u * COL_QUADS;
    var rows: array<vec4<u32>, ROW_QUADS>;
    for (var i = 0u; i < ROW_QUADS; i++) { // unroll
        rows[i] = starts(row + 4u * i, params.m, params.a_at, LAYOUT == 2u);
    }
    var cols: array<vec4<u32>, COL_QUADS>;
    for (var j = 0u; j < COL_QUADS; j++) { // unroll
        cols[j] = starts(col + 4u * j, params.n, params.b_at, LAYOUT != 1u);
    }

    var sums: array<mat4x4<f32>, ROW_QUADS * COL_QUADS>;
    for (var depth = 0u; depth < params.k; depth += 4u) {
        var b_blocks: array<mat4x4<f32>, COL_QUADS>;
        for (var j = 0u; j < COL_QUADS; j++) { // unroll
            b_blocks[j] = block_b(cols[j], depth);
        }
        for (var i = 0u; i < ROW_QUADS; i++) { // unroll
            let a_block = block_a(rows[i], depth);
            for (var j = 0u; j < COL_QUADS; j++) { // unroll
                sums[i * COL_QUADS + j] += b_blocks[j] * a_block;
            }
        }
    }

    for (var i = 0u; i < ROW_QUADS; i++) { // unroll
        for (var j = 0u; j < COL_QUADS; j++) { // unroll
            store(row + 4u * i, col + 4u * j, sums[i * COL_QUADS + j][0]);
            store(row + 4u * i + 1u, col + 4u * j, sums[i * COL_QUADS + j][1]);
            store(row + 4u * i + 2u, col + 4u * j, sums[i * COL_QUADS + j][2]);
            store(row + 4u * i + 3u, col + 4u * j, sums[i * COL_QUADS + j][3]);
        }
    }
}
