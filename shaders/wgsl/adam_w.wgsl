// torch's AdamW on one element each; g = grad * grad_factor
//     p -= decay * p                                      decay = lr * weight_decay
//     m = beta1 * m + (1 - beta1) * g
//     v = beta2 * v + (1 - beta2) * g * g
//     p -= rate * m / (sqrt(v * correction2) + eps)       rate = lr / (1 - beta1^t), correction2 = 1 / (1 - beta2^t)
// grad: [len], read. param, m, v: [len], updated in place.
// Dispatch: 256 invocations a workgroup, one element each, workgroups in x then y.

struct Params {
    grad_at: u32,
    param_at: u32,
    m_at: u32,
    v_at: u32,
    len: u32,
    decay: f32,
    beta1: f32,
    beta2: f32,
    one_minus_beta1: f32,
    one_minus_beta2: f32,
    rate: f32,
    correction2: f32,
    eps: f32,
    grad_factor: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> grad: array<f32>;
@group(0) @binding(2) var<storage, read_write> param: array<f32>;
@group(0) @binding(3) var<storage, read_write> m: array<f32>;
@group(0) @binding(4) var<storage, read_write> v: array<f32>;

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
    let g = grad[params.grad_at + i] * params.grad_factor;
    let p = param[params.param_at + i];
    let first = params.beta1 * m[params.m_at + i] + params.one_minus_beta1 * g;
    let second = params.beta2 * v[params.v_at + i] + params.one_minus_beta2 * g * g;
    m[params.m_at + i] = first;
    v[params.v_at + i] = second;
    let decayed = p - params.decay * p;
    param[params.param_at + i] = decayed - params.rate * first / (sqrt(second * params.correction2) + params.eps);
}
