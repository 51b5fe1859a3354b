
// Part of the tiled matrix products: operands in quads along a row (A_VEC4, B_VEC4), and the result's elements.

fn a_element(at: u32) -> f32 {
    return a[at >> 2u][at & 3u];
}

fn b_element(at: u32) -> f32 {
    if B_DTYPE == 0u {
        return bitcast<f32>(b[at >> 2u][at & 3u]);
    }
    if B_DTYPE >= 3u {
        return b_block_quad(at & 0xfffffffcu)[at & 3u];
    }
    let word = at >> 1u;
    return unpack_pair(b[word >> 2u][word & 3u])[at & 1u];
}

// Four elements from `at` on, of which `left` (at least one) belong to the row; zero behind it.
fn read_a(at: u32, left: u32) -> vec4<f32> {
    if A_VEC4 == 1u {
        return a[at >> 2u];
    }
    var y = vec4(a_element(at), 0.0, 0.0, 0.0);
    if left > 1u { y.y = a_element(at + 1u); }
    if left > 2u { y.z = a_element(at + 2u); }
    if left > 3u { y.w = a_element(at + 3u); }
    return y;
}

fn read_b(at: u32, left: u32) -> vec4<f32> {
    if B_VEC4 == 1u {
        return b_quad(at);
    }
    var y = vec4(b_element(at), 0.0, 0.0, 0.0);
    if left > 1u { y.y = b_element(at + 1u); }
    if left > 2u { y.z = b_element(at + 2u); }
    if left > 3u { y.w = b_element(at + 3u); }
    return y;
}

fn store_element(row: u32, col: u32, value: f32) {
    if col < params.n {
        let at = params.c_at + row * params.n + col;
        var y = value;
        if params.accumulate == 1u {
            y += c[at];
        }
        c[at] = y;
    }
}

fn store(row: u32, col: u32, values: vec4<f32>) {
    if row < params.m {
        store_element(row, col, values.x);
        store_element(row, col + 1u, values.y);
        store_element(row, col + 2u, values.z);
        store_element(row, col + 3u, values.w);
    }
}
