
// Part of the matrix products: their bindings, and b as it is stored (B_DTYPE), four elements at a time.

struct Params {
    a_at: u32,
    b_at: u32,
    c_at: u32,
    m: u32,
    n: u32,
    k: u32,
    accumulate: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read_write> c: array<f32>;

fn unpack_pair(word: u32) -> vec2<f32> {
    if B_DTYPE == 1u {
        return unpack2x16float(word);
    }
    return vec2(bitcast<f32>(word << 16u), bitcast<f32>(word & 0xffff0000u));
}

fn b_word(at: u32) -> u32 {
    return b[at >> 2u][at & 3u];
}

// Four neighbours out of blocks of 32, two blocks to 17 words (int8) or 9 (int4), the last of them the two scales.
fn b_block_quad(at: u32) -> vec4<f32> {
    let block = at >> 5u;
    if B_DTYPE == 3u {
        let base = (block >> 1u) * 17u;
        let scale = half_to_float((b_word(base + 16u) >> ((block & 1u) * 16u)) & 0xffffu);
        let word = bitcast<i32>(b_word(base + ((at & 63u) >> 2u)));
        return scale * vec4<f32>((vec4<i32>(word) << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
    }
    let base = (block >> 1u) * 9u;
    let scale = half_to_float((b_word(base + 8u) >> ((block & 1u) * 16u)) & 0xffffu);
    // Byte j of a block has element j in its low and j + 16 in its high half.
    let word = b_word(base + (block & 1u) * 4u + ((at & 15u) >> 2u)) >> ((at & 16u) >> 2u);
    return scale * (vec4<f32>((vec4<u32>(word) >> vec4<u32>(0u, 8u, 16u, 24u)) & vec4<u32>(15u)) - 8.0);
}

// Four neighbours from element `at` on; at is a multiple of four.
fn b_quad(at: u32) -> vec4<f32> {
    if B_DTYPE == 0u {
        return bitcast<vec4<f32>>(b[at >> 2u]);
    }
    if B_DTYPE >= 3u {
        return b_block_quad(at);
    }
    let words = b[at >> 3u];
    let pair = select(words.xy, words.zw, (at & 4u) != 0u);
    return vec4(unpack_pair(pair.x), unpack_pair(pair.y));
}
