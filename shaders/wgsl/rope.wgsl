// Rotary embedding, "rotate half": with angle = positions[t] * inv_freq[j], pair (j, j + head_dim/2) of every head:
//     out[j]        = (x[j] * cos - x[j + half] * sin) * scale
//     out[j + half] = (x[j + half] * cos + x[j] * sin) * scale
// and with inverse = 1 the sine is negated (the gradient).
// x, out: [tokens, heads, head_dim]. positions: [tokens] u32. inv_freq: [half]. out is overwritten.
// IN_PLACE = 1: x is not read, out holds the input. len = tokens * heads * half.
// WGSL promises sin and cos to 2^-11 only within one period, so both are computed here (Cody-Waite, Cephes).
// Dispatch: 256 invocations a workgroup, one pair each, workgroups in x then y.

struct Params {
    x_at: u32,
    positions_at: u32,
    inv_freq_at: u32,
    out_at: u32,
    len: u32,
    heads: u32,
    half: u32,
    scale: f32,
    inverse: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> positions: array<u32>;
@group(0) @binding(3) var<storage, read> inv_freq: array<f32>;
@group(0) @binding(4) var<storage, read_write> out: array<f32>;

const IN_PLACE: u32 = 0u;

// (cos, sin) of an angle up to about 1e5, to 1e-7.
fn cos_sin(angle: f32) -> vec2<f32> {
    let n = round(angle * 0.63661977236758134);
    // pi/2 in three parts, the first two with few enough bits that n times them is exact.
    let r = ((angle - n * 1.5703125) - n * 4.837512969970703e-4) - n * 7.549789948768648e-8;
    let z = r * r;
    let sine = r + r * z * (-1.6666654611e-1 + z * (8.3321608736e-3 - z * 1.9515295891e-4));
    let cosine = 1.0 - 0.5 * z + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5));
    let quadrant = u32(i32(n)) & 3u;
    switch quadrant {
        case 0u: { return vec2(cosine, sine); }
        case 1u: { return vec2(-sine, cosine); }
        case 2u: { return vec2(-cosine, -sine); }
        default: { return vec2(sine, -cosine); }
    }
}

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
    let j = i % params.half;
    let head = i / params.half; // token * heads + head
    let angle = f32(positions[params.positions_at + head / params.heads]) * inv_freq[params.inv_freq_at + j];
    let turn = cos_sin(angle);
    let c = turn.x;
    let s = select(turn.y, -turn.y, params.inverse == 1u);
    let low = head * 2u * params.half + j;
    let high = low + params.half;
    var p: f32;
    var q: f32;
    if IN_PLACE == 1u {
        p = out[params.out_at + low];
        q = out[params.out_at + high];
    } else {
        p = x[params.x_at + low];
        q = x[params.x_at + high];
    }
    out[params.out_at + low] = (p * c - q * s) * params.scale;
    out[params.out_at + high] = (q * c + p * s) * params.scale;
}
