//! Operations on corresponding elements, and sums over them.

use super::simd::{self, LANES, kernel, lane_sum, sigmoid};

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

pub(super) fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    simd::for_row_chunks(out, 1, |first, out| silu_mul_chunk(&gate[first..], &up[first..], out));
}

kernel! {
    fn silu_mul_chunk(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, &gate), up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(gate) * up;
        }
    }
}

pub(super) fn silu_mul_grad(gate: &[f32], up: &[f32], dout: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    simd::for_row_chunks2(dgate, 1, dup, 1, |first, dgate, dup| {
        silu_mul_grad_chunk(&gate[first..], &up[first..], &dout[first..], dgate, dup);
    });
}

kernel! {
    fn silu_mul_grad_chunk(gate: &[f32], up: &[f32], dout: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
        let inputs = gate.iter().zip(up).zip(dout);
        for ((dgate, dup), ((&gate, up), dout)) in dgate.iter_mut().zip(dup).zip(inputs) {
            let s = sigmoid(gate);
            *dgate = dout * up * s * (1.0 + gate * (1.0 - s));
            *dup = dout * gate * s;
        }
    }
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
