//! Operations on corresponding elements, and sums over them.

use super::simd::{self, LANES, exp, kernel, lane_sum, sigmoid};
use crate::op::Activation;

pub(super) fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
    simd::for_row_chunks(out, 1, |first, out| add_chunk(&a[first..], &b[first..], out));
}

kernel! {
    fn add_chunk(a: &[f32], b: &[f32], out: &mut [f32]) {
        for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
            *out = a + b;
        }
    }
}

pub(super) fn axpy(src: &[f32], dst: &mut [f32], factor: f32) {
    simd::for_row_chunks(dst, 1, |first, dst| axpy_chunk(&src[first..], dst, factor));
}

kernel! {
    fn axpy_chunk(src: &[f32], dst: &mut [f32], factor: f32) {
        for (dst, src) in dst.iter_mut().zip(src) {
            *dst += factor * src;
        }
    }
}

pub(super) fn activate(activation: Activation, x: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
    simd::for_row_chunks(out, 1, |first, out| match (activation, up) {
        (Activation::Silu, Some(up)) => silu_mul(&x[first..], &up[first..], out),
        _ => activate_chunk(activation, &x[first..], up.map(|up| &up[first..]), out),
    });
}

kernel! {
    /// The commonest activation with a gate, in one pass.
    fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, &gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(gate) * up;
        }
    }
}

kernel! {
    fn activate_chunk(activation: Activation, x: &[f32], up: Option<&[f32]>, out: &mut [f32]) {
        match activation {
            Activation::Silu => map(x, out, |x| x * sigmoid(x)),
            Activation::Gelu => map(x, out, |x| x * normal_distribution(x)),
            Activation::GeluTanh => map(x, out, |x| x * sigmoid(tanh_argument(x))),
            Activation::QuickGelu => map(x, out, |x| x * sigmoid(QUICK * x)),
            Activation::Relu => map(x, out, |x| x.max(0.0)),
            Activation::Tanh => map(x, out, |x| 2.0 * sigmoid(2.0 * x) - 1.0),
        }
        if let Some(up) = up {
            for (out, up) in out.iter_mut().zip(up) {
                *out *= up;
            }
        }
    }
}

/// Where `up` is not given, `dup` is empty.
pub(super) fn activate_grad(activation: Activation, x: &[f32], up: Option<&[f32]>, dout: &[f32], dx: &mut [f32], dup: &mut [f32]) {
    match up {
        Some(up) if activation == Activation::Silu => simd::for_row_chunks2(dx, 1, dup, 1, |first, dx, dup| {
            silu_mul_grad(&x[first..], &up[first..], &dout[first..], dx, dup);
        }),
        Some(up) => simd::for_row_chunks2(dx, 1, dup, 1, |first, dx, dup| {
            activate_grad_chunk(activation, &x[first..], &dout[first..], dx);
            activate_chunk(activation, &x[first..], Some(&dout[first..]), dup);
            multiply(dx, &up[first..]);
        }),
        None => simd::for_row_chunks(dx, 1, |first, dx| activate_grad_chunk(activation, &x[first..], &dout[first..], dx)),
    }
}

kernel! {
    fn silu_mul_grad(gate: &[f32], up: &[f32], dout: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        let inputs = gate.iter().zip(up).zip(dout);
        for ((dgate, dup), ((&gate, up), dout)) in dgate.iter_mut().zip(dup).zip(inputs) {
            let s = sigmoid(gate);
            *dgate = dout * up * s * (1.0 + gate * (1.0 - s));
            *dup = dout * gate * s;
        }
    }
}

kernel! {
    /// `dx = dout · act'(x)`.
    fn activate_grad_chunk(activation: Activation, x: &[f32], dout: &[f32], dx: &mut [f32]) {
        match activation {
            Activation::Silu => map(x, dx, |x| swish_slope(x, x, 1.0)),
            Activation::Gelu => map(x, dx, |x| normal_distribution(x) + x * exp(-0.5 * x * x) * INV_SQRT_2PI),
            Activation::GeluTanh => map(x, dx, |x| swish_slope(x, tanh_argument(x), TANH * (1.0 + 3.0 * CUBIC * x * x))),
            Activation::QuickGelu => map(x, dx, |x| swish_slope(x, QUICK * x, QUICK)),
            Activation::Relu => map(x, dx, |x| if x > 0.0 { 1.0 } else { 0.0 }),
            Activation::Tanh => map(x, dx, |x| {
                let s = sigmoid(2.0 * x);
                4.0 * s * (1.0 - s)
            }),
        }
        multiply(dx, dout);
    }
}

/// 2 √(2/π): `(1 + tanh u) / 2 = sigmoid(2u)`.
const TANH: f32 = 1.595_769_1;
/// The cubic term of GELU's tanh form.
const CUBIC: f32 = 0.044_715;
/// The factor of the quick GELU.
const QUICK: f32 = 1.702;
const INV_SQRT_2PI: f32 = 0.398_942_3;

#[inline(always)]
fn map(x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = f(x);
    }
}

kernel! {
    fn multiply(y: &mut [f32], factors: &[f32]) {
        for (y, factor) in y.iter_mut().zip(factors) {
            *y *= factor;
        }
    }
}

#[inline(always)]
fn tanh_argument(x: f32) -> f32 {
    TANH * (x + CUBIC * x * x * x)
}

/// The slope of `x · sigmoid(z)`, where `dz` is that of z.
#[inline(always)]
fn swish_slope(x: f32, z: f32, dz: f32) -> f32 {
    let s = sigmoid(z);
    s * (1.0 + x * dz * (1.0 - s))
}

/// Φ(x) = (1 + erf(x/√2)) / 2; erf by Abramowitz and Stegun 7.1.26, 1.5·10⁻⁷ off at most.
#[inline(always)]
fn normal_distribution(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let poly = ((((1.061_405_4 * t - 1.453_152) * t + 1.421_413_8) * t - 0.284_496_74) * t + 0.254_829_6) * t;
    let tail = 0.5 * poly * exp(-z * z);
    if x < 0.0 { tail } else { 1.0 - tail }
}

/// μ = sigmoid(gate / temperature).
pub(super) fn gate_mean(gate: f32, temperature: f32) -> f32 {
    1.0 / (1.0 + (-gate / temperature).exp())
}

pub(super) fn gate_mix(a: &[f32], p: &[f32], mu: f32, out: &mut [f32]) {
    simd::for_row_chunks(out, 1, |first, out| gate_mix_chunk(&a[first..], &p[first..], mu, out));
}

kernel! {
    fn gate_mix_chunk(a: &[f32], p: &[f32], mu: f32, out: &mut [f32]) {
        for ((out, a), p) in out.iter_mut().zip(a).zip(p) {
            *out = mu * a + (1.0 - mu) * p;
        }
    }
}

kernel! {
    /// Fills `da` and `dp`, returns Σ dout·(a − p).
    pub(super) fn gate_mix_grad(a: &[f32], p: &[f32], dout: &[f32], mu: f32, da: &mut [f32], dp: &mut [f32]) -> f32 {
        for ((da, dp), dout) in da.iter_mut().zip(dp).zip(dout) {
            *da = mu * dout;
            *dp = (1.0 - mu) * dout;
        }
        let mut lanes = [0f32; LANES];
        let ((a, a_rest), (p, p_rest), (d, d_rest)) = (a.as_chunks::<LANES>(), p.as_chunks::<LANES>(), dout.as_chunks::<LANES>());
        for ((a, p), d) in a.iter().zip(p).zip(d) {
            for i in 0..LANES {
                lanes[i] += d[i] * (a[i] - p[i]);
            }
        }
        let rest: f32 = a_rest.iter().zip(p_rest).zip(d_rest).map(|((a, p), d)| d * (a - p)).sum();
        lane_sum(lanes) + rest
    }
}

/// Σ x², in f64 over blocks so that millions of gradients add up exactly enough.
pub(super) fn sum_squares(x: &[f32]) -> f32 {
    let blocks = x.len().div_ceil(1 << 16);
    let sums = simd::map_tasks(blocks, x.len(), |block| {
        let start = block << 16;
        sum_squares_block(&x[start..x.len().min(start + (1 << 16))])
    });
    sums.into_iter().sum::<f64>() as f32
}

kernel! {
    fn sum_squares_block(x: &[f32]) -> f64 {
        x.chunks(1024).map(|chunk| f64::from(simd::dot(chunk, chunk))).sum()
    }
}

/// The constants of one AdamW step.
pub(super) struct AdamRule {
    pub step: u32,
    pub lr: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
    pub grad_factor: f32,
}

pub(super) fn adam_w(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], rule: &AdamRule) {
    let bias1 = 1.0 - f64::from(rule.beta1).powi(rule.step as i32);
    let bias2 = 1.0 - f64::from(rule.beta2).powi(rule.step as i32);
    let (rate, root) = ((f64::from(rule.lr) / bias1) as f32, (1.0 / bias2.sqrt()) as f32);
    simd::for_row_chunks2(m, 1, v, 1, |first, m, v| adam_moments(&grad[first..], m, v, rule));
    let (m, v) = (&*m, &*v);
    simd::for_row_chunks(param, 1, |first, param| adam_update(param, &m[first..], &v[first..], rate, root, rule));
}

kernel! {
    fn adam_moments(grad: &[f32], m: &mut [f32], v: &mut [f32], rule: &AdamRule) {
        for ((m, v), grad) in m.iter_mut().zip(v).zip(grad) {
            let g = grad * rule.grad_factor;
            *m = rule.beta1 * *m + (1.0 - rule.beta1) * g;
            *v = rule.beta2 * *v + (1.0 - rule.beta2) * g * g;
        }
    }
}

kernel! {
    fn adam_update(param: &mut [f32], m: &[f32], v: &[f32], rate: f32, root: f32, rule: &AdamRule) {
        let keep = 1.0 - rule.lr * rule.weight_decay;
        for ((p, m), v) in param.iter_mut().zip(m).zip(v) {
            *p = *p * keep - rate * m / (v.sqrt() * root + rule.eps);
        }
    }
}
