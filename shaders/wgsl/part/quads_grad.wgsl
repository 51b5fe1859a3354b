
// Beside `quads`: params.v_at, dout_at; v and dout as vec4.

// Elements d .. d + 4 of the head at `row` of v, zero beyond the head.
fn v_quad(row: u32, d: u32) -> vec4<f32> {
    let at = params.v_at + row + d;
    if VEC4 == 1u {
        return v[at >> 2u];
    }
    var y = vec4<f32>(0.0);
    y.x = v[at >> 2u][at & 3u];
    if d + 1u < params.head_dim { y.y = v[(at + 1u) >> 2u][(at + 1u) & 3u]; }
    if d + 2u < params.head_dim { y.z = v[(at + 2u) >> 2u][(at + 2u) & 3u]; }
    if d + 3u < params.head_dim { y.w = v[(at + 3u) >> 2u][(at + 3u) & 3u]; }
    return y;
}

// Elements d .. d + 4 of the head at `row` of dout, zero beyond the head.
fn dout_quad(row: u32, d: u32) -> vec4<f32> {
    let at = params.dout_at + row + d;
    if VEC4 == 1u {
        return dout[at >> 2u];
    }
    var y = vec4<f32>(0.0);
    y.x = dout[at >> 2u][at & 3u];
    if d + 1u < params.head_dim { y.y = dout[(at + 1u) >> 2u][(at + 1u) & 3u]; }
    if d + 2u < params.head_dim { y.z = dout[(at + 2u) >> 2u][(at + 2u) & 3u]; }
    if d + 3u < params.head_dim { y.w = dout[(at + 3u) >> 2u][(at + 3u) & 3u]; }
    return y;
}
