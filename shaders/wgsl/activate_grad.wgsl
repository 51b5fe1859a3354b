// dx[i] = dout[i] * up[i] * act'(x[i]), dup[i] = dout[i] * act(x[i]); without up it is 1 and dup is not written
// All: [len]. dx and dup are overwritten.
// Dispatch: 256 invocations a workgroup, one element each, workgroups in x then y.

struct Params {
    x_at: u32,
    up_at: u32,
    dout_at: u32,
    dx_at: u32,
    dup_at: u32,
    len: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> up: array<f32>;
@group(0) @binding(3) var<storage, read> dout: array<f32>;
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;
@group(0) @binding(5) var<storage, read_write> dup: array<f32>;

// The activation: 0 silu, 1 gelu, 2 gelu in its tanh form, 3 quick gelu, 4 relu, 5 tanh.
const ACTIVATION: u32 = 0u;
// Whether up is bound.
const GATED: u32 = 1u;

// The exponent is clamped because WGSL leaves infinities undefined.
fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-clamp(x, -80.0, 80.0)));
}

// The normal distribution function, its erf by Abramowitz and Stegun 7.1.26.
fn normal_distribution(x: f32) -> f32 {
    let z = abs(x) * 0.70710678;
    let t = 1.0 / (1.0 + 0.3275911 * z);
    let poly = ((((1.0614054 * t - 1.453152) * t + 1.4214138) * t - 0.28449674) * t + 0.2548296) * t;
    let tail = 0.5 * poly * exp(-min(z * z, 80.0));
    return select(1.0 - tail, tail, x < 0.0);
}

// 2 sqrt(2/pi) (x + 0.044715 x^3)
fn tanh_argument(x: f32) -> f32 {
    return 1.5957691 * (x + 0.044715 * x * x * x);
}

fn activated(x: f32) -> f32 {
    switch ACTIVATION {
        case 1u: { return x * normal_distribution(x); }
        case 2u: { return x * sigmoid(tanh_argument(x)); }
        case 3u: { return x * sigmoid(1.702 * x); }
        case 4u: { return max(x, 0.0); }
        case 5u: { return 2.0 * sigmoid(2.0 * x) - 1.0; }
        default: { return x * sigmoid(x); }
    }
}

// The slope of x * sigmoid(z), where dz is that of z.
fn swish_slope(x: f32, z: f32, dz: f32) -> f32 {
    let s = sigmoid(z);
    return s * (1.0 + x * dz * (1.0 - s));
}

fn slope(x: f32) -> f32 {
    switch ACTIVATION {
        case 1u: { return normal_distribution(x) + x * exp(-min(0.5 * x * x, 80.0)) * 0.3989423; }
        case 2u: { return swish_slope(x, tanh_argument(x), 1.5957691 * (1.0 + 0.134145 * x * x)); }
        case 3u: { return swish_slope(x, 1.702 * x, 1.702); }
        case 4u: { return select(0.0, 1.0, x > 0.0); }
        case 5u: {
            let s = sigmoid(2.0 * x);
            return 4.0 * s * (1.0 - s);
        }
        default: { return swish_slope(x, x, 1.0); }
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
    let value = x[params.x_at + i];
    var d = dout[params.dout_at + i];
    if GATED == 1u {
        dup[params.dup_at + i] = d * activated(value);
        d *= up[params.up_at + i];
    }
    dx[params.dx_at + i] = d * slope(value);
}
