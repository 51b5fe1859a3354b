
// Of the including kernel: params.q_at, k_at, head_dim; q and k as vec4.

// Offsets and head_dim are multiples of four: whole vec4 are read.
const VEC4: u32 = 0u;

// Elements d .. d + 4 of the head at `row` of q, zero beyond the head.
fn q_quad(row: u32, d: u32) -> vec4<f32> {
    let at = params.q_at + row + d;
    if VEC4 == 1u {
        return q[at >> 2u];
    }
    var y = vec4<f32>(0.0);
    y.x = q[at >> 2u][at & 3u];
    if d + 1u < params.head_dim { y.y = q[(at + 1u) >> 2u][(at + 1u) & 3u]; }
    if d + 2u < params.head_dim { y.z = q[(at + 2u) >> 2u][(at + 2u) & 3u]; }
    if d + 3u < params.head_dim { y.w = q[(at + 3u) >> 2u][(at + 3u) & 3u]; }
    return y;
}

// Elements d .. d + 4 of the head at `row` of k, zero beyond the head.
fn k_quad(row: u32, d: u32) -> vec4<f32> {
    let at = params.k_at + row + d;
    if VEC4 == 1u {
        return k[at >> 2u];
    }
    var y = vec4<f32>(0.0);
    y.x = k[at >> 2u][at & 3u];
    if d + 1u < params.head_dim { y.y = k[(at + 1u) >> 2u][(at + 1u) & 3u]; }
    if d + 2u < params.head_dim { y.z = k[(at + 2u) >> 2u][(at + 2u) & 3u]; }
    if d + 3u < params.head_dim { y.w = k[(at + 3u) >> 2u][(at + 3u) & 3u]; }
    return y;
}
