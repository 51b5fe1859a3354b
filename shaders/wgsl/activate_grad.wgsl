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

// Whether up is bound.
const GATED: u32 = 1u;

// The slope of x * sigmoid(z), where dz is that of z.
fn swish_slope(x: f32, z: f32, dz: f32) -> f32 {
    let s = sigmoid(z);
    return s * (1.0 + x * dz * (1.0 - s));
}

fn slope(x: f32) -> f32 {
    switch ACTIVATION {
        case 1u: { return normal_distribution(x) + x * exp(-min(0.5 * x * x, 80.0)) * 0.3989423; }
        case 2u: { return swish_slope(x, tanh_argument(x), 1.5957692 * (1.0 + 0.134145 * x * x)); }
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
