//! Root-mean-square normalisation, centring and tap scaling, per row.

use super::simd::{self, LANES, dot, kernel, lane_sum};

/// Added to the mean square of a tap (docs/METHOD.md).
const TAP_EPS: f32 = 1e-6;

pub(super) fn rms_norm(x: &[f32], weight: &[f32], out: &mut [f32], inv: &mut [f32], eps: f32, weight_shift: f32) {
    let cols = weight.len();
    simd::for_row_chunks2(out, cols, inv, 1, |first, out, inv| {
        rms_norm_rows(&x[first * cols..][..out.len()], weight, out, inv, eps, weight_shift);
    });
}

kernel! {
    fn rms_norm_rows(x: &[f32], weight: &[f32], out: &mut [f32], inv: &mut [f32], eps: f32, weight_shift: f32) {
        let cols = weight.len();
        for ((x, out), inv) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)).zip(inv) {
            *inv = 1.0 / (dot(x, x) / cols as f32 + eps).sqrt();
            for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
                *out = x * *inv * (w + weight_shift);
            }
        }
    }
}

pub(super) fn rms_norm_grad(x: &[f32], weight: &[f32], inv: &[f32], dy: &[f32], dx: &mut [f32], weight_shift: f32, accumulate: bool) {
    let cols = weight.len();
    simd::for_row_chunks(dx, cols, |first, dx| {
        let range = first * cols..first * cols + dx.len();
        rms_norm_grad_rows(&x[range.clone()], weight, &inv[first..], &dy[range], dx, weight_shift, accumulate);
    });
}

kernel! {
    fn rms_norm_grad_rows(x: &[f32], weight: &[f32], inv: &[f32], dy: &[f32], dx: &mut [f32], weight_shift: f32, accumulate: bool) {
        let cols = weight.len();
        for (((x, dy), dx), &inv) in x.chunks_exact(cols).zip(dy.chunks_exact(cols)).zip(dx.chunks_exact_mut(cols)).zip(inv) {
            let mut lanes = [0f32; LANES];
            let ((xs, x_rest), (ds, d_rest), (ws, w_rest)) = (x.as_chunks::<LANES>(), dy.as_chunks::<LANES>(), weight.as_chunks::<LANES>());
            for ((x, d), w) in xs.iter().zip(ds).zip(ws) {
                for i in 0..LANES {
                    lanes[i] += x[i] * d[i] * (w[i] + weight_shift);
                }
            }
            let rest: f32 = x_rest.iter().zip(d_rest).zip(w_rest).map(|((x, d), w)| x * d * (w + weight_shift)).sum();
            let mean = (lane_sum(lanes) + rest) / cols as f32;
            let factor = inv * inv * mean;
            for (((dx, x), dy), w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
                let grad = inv * (dy * (w + weight_shift) - x * factor);
                *dx = if accumulate { *dx + grad } else { grad };
            }
        }
    }
}

pub(super) fn rms_norm_weight_grad(x: &[f32], inv: &[f32], dy: &[f32], dweight: &mut [f32]) {
    let cols = dweight.len();
    let rows_per_task = simd::rows_per_task(inv.len(), x.len());
    let tasks = inv.len().div_ceil(rows_per_task);
    let parts = simd::map_tasks(tasks, x.len(), |task| {
        let rows = task * rows_per_task..((task + 1) * rows_per_task).min(inv.len());
        let mut part = vec![0f32; cols];
        weight_grad_rows(&x[rows.start * cols..rows.end * cols], &inv[rows.clone()], &dy[rows.start * cols..rows.end * cols], &mut part);
        part
    });
    for part in parts {
        for (total, part) in dweight.iter_mut().zip(part) {
            *total += part;
        }
    }
}

kernel! {
    fn weight_grad_rows(x: &[f32], inv: &[f32], dy: &[f32], dweight: &mut [f32]) {
        let cols = dweight.len();
        for ((x, dy), inv) in x.chunks_exact(cols).zip(dy.chunks_exact(cols)).zip(inv) {
            for ((dw, x), dy) in dweight.iter_mut().zip(x).zip(dy) {
                *dw += dy * x * inv;
            }
        }
    }
}

pub(super) fn center_rows(x: &[f32], out: &mut [f32], cols: usize, accumulate: bool) {
    simd::for_row_chunks(out, cols, |first, out| center_rows_chunk(&x[first * cols..][..out.len()], out, cols, accumulate));
}

kernel! {
    fn center_rows_chunk(x: &[f32], out: &mut [f32], cols: usize, accumulate: bool) {
        for (x, out) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)) {
            let mean = simd::sum(x) / cols as f32;
            for (out, x) in out.iter_mut().zip(x) {
                *out = if accumulate { *out + (x - mean) } else { x - mean };
            }
        }
    }
}

pub(super) fn tap_scale(x: &[f32], out: &mut [f32], rho: &mut [f32]) {
    let cols = x.len() / rho.len().max(1);
    simd::for_row_chunks2(out, cols, rho, 1, |first, out, rho| {
        tap_scale_rows(&x[first * cols..][..out.len()], out, rho, cols);
    });
}

kernel! {
    fn tap_scale_rows(x: &[f32], out: &mut [f32], rho: &mut [f32], cols: usize) {
        for ((x, out), rho) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)).zip(rho) {
            *rho = (dot(x, x) / cols as f32 + TAP_EPS).sqrt();
            let inverse = 1.0 / *rho;
            for (out, x) in out.iter_mut().zip(x) {
                *out = x * inverse;
            }
        }
    }
}
