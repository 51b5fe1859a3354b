// out[t,:] = table[ids[t] - first_row, :] where first_row <= ids[t] < first_row + table_rows
// table: [table_rows, width] in DTYPE (0 f32; 1 f16, 2 bf16, packed two per word; 3 int8, 4 int4 in blocks of 32 along
// its rows, two blocks to 17 or 9 words, the last of them the two scales as f16). ids: [tokens] u32.
// out: [tokens, width]; rows whose id lies outside the shard are left as they are. len = tokens * width.
// Dispatch: 256 invocations a workgroup, one element each, workgroups in x then y.

struct Params {
    table_at: u32,
    ids_at: u32,
    out_at: u32,
    len: u32,
    width: u32,
    first_row: u32,
    table_rows: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> table: array<u32>;
@group(0) @binding(2) var<storage, read> ids: array<u32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

const DTYPE: u32 = 0u;

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
    let row = ids[params.ids_at + i / params.width] - params.first_row; // wraps below first_row: then too large
    if row >= params.table_rows {
        return;
    }
    let at = params.table_at + row * params.width + i % params.width;
    var y: f32;
    if DTYPE == 0u {
        y = bitcast<f32>(table[at]);
    } else if DTYPE >= 3u {
        let block = at >> 5u;
        let words = select(9u, 17u, DTYPE == 3u);
        let base = (block >> 1u) * words;
        let scale = half_to_float((table[base + words - 1u] >> ((block & 1u) * 16u)) & 0xffffu);
        if DTYPE == 3u {
            let word = bitcast<i32>(table[base + ((at & 63u) >> 2u)]);
            y = scale * f32((word << (24u - (at & 3u) * 8u)) >> 24u);
        } else {
            // Byte j of a block has element j in its low and j + 16 in its high half.
            let word = table[base + (block & 1u) * 4u + ((at & 15u) >> 2u)];
            y = scale * (f32((word >> ((at & 3u) * 8u + ((at & 16u) >> 2u))) & 15u) - 8.0);
        }
    } else {
        let half = (table[at >> 1u] >> ((at & 1u) * 16u)) & 0xffffu;
        if DTYPE == 1u {
            y = half_to_float(half);
        } else {
            y = bitcast<f32>(half << 16u);
        }
    }
    out[params.out_at + i] = y;
}
