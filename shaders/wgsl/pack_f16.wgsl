// word i of out = f16(x[2i]) | f16(x[2i+1]) << 16, to nearest even, saturating at +-65504
// x: [2 len]. out: [len] words, overwritten.
// Rounding is done in integers: pack2x16float promises neither the rounding nor the saturation.
// Dispatch: 256 invocations a workgroup, one word each, workgroups in x then y.

struct Params {
    x_at: u32,
    out_at: u32,
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<u32>;
@group(0) @binding(2) var<storage, read_write> out: array<u32>;

fn float_to_half(bits: u32) -> u32 {
    let sign = (bits >> 16u) & 0x8000u;
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u {
        return sign | 0x7e00u; // not a number
    }
    if magnitude >= 0x477fe000u {
        return sign | 0x7bffu; // 65504 and above
    }
    if magnitude >= 0x38800000u {
        // Normal: round at bit 13, then rebias the exponent from 127 to 15.
        let rounded = magnitude + 0xfffu + ((magnitude >> 13u) & 1u);
        return sign | ((rounded >> 13u) - (112u << 10u));
    }
    let exponent = magnitude >> 23u;
    if exponent < 102u {
        return sign; // below half of the smallest subnormal
    }
    // Subnormal: units of 2^-24.
    let mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    let shift = 126u - exponent;
    let rest = mantissa & ((1u << shift) - 1u);
    let half = 1u << (shift - 1u);
    var units = mantissa >> shift;
    if rest > half || (rest == half && (units & 1u) == 1u) {
        units += 1u;
    }
    return sign | units;
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
    let low = float_to_half(x[params.x_at + 2u * i]);
    let high = float_to_half(x[params.x_at + 2u * i + 1u]);
    out[params.out_at + i] = low | (high << 16u);
}
