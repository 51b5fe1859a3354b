//! Operations that treat a tensor as rows: biases, embeddings, rotary positions, gathering, packing.

use super::simd::{self, kernel};
use super::slab::Packed;
use half::slice::HalfFloatSliceExt;

pub(super) fn add_bias(y: &mut [f32], bias: &[f32]) {
    simd::for_row_chunks(y, bias.len(), |_, y| add_bias_rows(y, bias));
}

kernel! {
    fn add_bias_rows(y: &mut [f32], bias: &[f32]) {
        for row in y.chunks_exact_mut(bias.len()) {
            for (y, b) in row.iter_mut().zip(bias) {
                *y += b;
            }
        }
    }
}

kernel! {
    pub(super) fn column_sum(x: &[f32], out: &mut [f32], accumulate: bool) {
        if !accumulate {
            out.fill(0.0);
        }
        for row in x.chunks_exact(out.len()) {
            for (out, x) in out.iter_mut().zip(row) {
                *out += x;
            }
        }
    }
}

pub(super) fn embed(table: Packed<'_>, ids: &[u32], out: &mut [f32], width: usize, first_row: u32, table_rows: u32) {
    simd::for_row_chunks(out, width, |first, out| {
        for (out, id) in out.chunks_exact_mut(width).zip(&ids[first..]) {
            let row = id.wrapping_sub(first_row);
            if row >= table_rows {
                continue;
            }
            table.widen(row as usize * width, out);
        }
    });
}

kernel! {
    pub(super) fn embed_grad(dout: &[f32], ids: &[u32], dtable: &mut [f32], width: usize, first_row: u32, table_rows: u32) {
        for (dout, id) in dout.chunks_exact(width).zip(ids) {
            let row = id.wrapping_sub(first_row);
            if row < table_rows {
                let target = &mut dtable[row as usize * width..][..width];
                for (target, dout) in target.iter_mut().zip(dout) {
                    *target += dout;
                }
            }
        }
    }
}

pub(super) fn rope(x: &[f32], positions: &[u32], inv_freq: &[f32], out: &mut [f32], heads: usize, scale: f32, inverse: bool) {
    let (half, width) = (inv_freq.len(), heads * 2 * inv_freq.len());
    let fill = |position: u32, turn: &mut [f32]| {
        for (i, freq) in inv_freq.iter().enumerate() {
            let (sin, cos) = (position as f32 * freq).sin_cos();
            turn[i] = cos * scale;
            turn[half + i] = if inverse { -sin } else { sin } * scale;
        }
    };
    // Sequences laid end to end repeat their positions: those are worked out once. Far ones (decoding) as they come.
    let end = positions.iter().max().map_or(0, |last| *last as usize + 1);
    let table_rows = if 2 * end <= positions.len() { end } else { 0 };
    let mut table = vec![0f32; table_rows * 2 * half];
    table.chunks_exact_mut(2 * half).enumerate().for_each(|(position, turn)| fill(position as u32, turn));
    simd::for_row_chunks(out, width, |first, out| {
        let mut own = vec![0f32; if table_rows == 0 { 2 * half } else { 0 }];
        for (index, out) in out.chunks_exact_mut(width).enumerate() {
            let position = positions[first + index];
            let turn = if table_rows == 0 {
                fill(position, &mut own);
                &own
            } else {
                &table[position as usize * 2 * half..][..2 * half]
            };
            let (cos, sin) = turn.split_at(half);
            rope_token(&x[(first + index) * width..][..width], cos, sin, out);
        }
    });
}

kernel! {
    fn rope_token(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
        // Widths known when compiled: the heads of a side network, and the usual ones.
        match cos.len() {
            2 => turn_heads::<2>(x, cos, sin, out),
            4 => turn_heads::<4>(x, cos, sin, out),
            8 => turn_heads::<8>(x, cos, sin, out),
            32 => turn_heads::<32>(x, cos, sin, out),
            half => {
                for (x, out) in x.chunks_exact(2 * half).zip(out.chunks_exact_mut(2 * half)) {
                    turn_head(x.split_at(half), cos, sin, out.split_at_mut(half));
                }
            }
        }
    }
}

#[inline(always)]
fn turn_heads<const HALF: usize>(x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let (cos, sin) = (&cos[..HALF], &sin[..HALF]);
    for (x, out) in x.chunks_exact(2 * HALF).zip(out.chunks_exact_mut(2 * HALF)) {
        let ((x_low, x_high), (out_low, out_high)) = (x.split_at(HALF), out.split_at_mut(HALF));
        turn_head((&x_low[..HALF], &x_high[..HALF]), cos, sin, (&mut out_low[..HALF], &mut out_high[..HALF]));
    }
}

#[inline(always)]
fn turn_head(x: (&[f32], &[f32]), cos: &[f32], sin: &[f32], out: (&mut [f32], &mut [f32])) {
    for i in 0..cos.len() {
        out.0[i] = x.0[i] * cos[i] - x.1[i] * sin[i];
        out.1[i] = x.1[i] * cos[i] + x.0[i] * sin[i];
    }
}

pub(super) fn scaled_add(base: &[f32], rho: &[f32], u: &[f32], out: &mut [f32]) {
    let cols = out.len() / rho.len().max(1);
    simd::for_row_chunks(out, cols, |first, out| {
        let range = first * cols..first * cols + out.len();
        scaled_add_rows(&base[range.clone()], &rho[first..], &u[range], out, cols);
    });
}

kernel! {
    fn scaled_add_rows(base: &[f32], rho: &[f32], u: &[f32], out: &mut [f32], cols: usize) {
        for (((base, u), out), rho) in base.chunks_exact(cols).zip(u.chunks_exact(cols)).zip(out.chunks_exact_mut(cols)).zip(rho) {
            for ((out, base), u) in out.iter_mut().zip(base).zip(u) {
                *out = base + rho * u;
            }
        }
    }
}

pub(super) fn scale_rows(x: &[f32], rho: &[f32], out: &mut [f32], accumulate: bool) {
    let cols = out.len() / rho.len().max(1);
    simd::for_row_chunks(out, cols, |first, out| {
        scale_rows_chunk(&x[first * cols..][..out.len()], &rho[first..], out, cols, accumulate);
    });
}

kernel! {
    fn scale_rows_chunk(x: &[f32], rho: &[f32], out: &mut [f32], cols: usize, accumulate: bool) {
        for ((x, out), rho) in x.chunks_exact(cols).zip(out.chunks_exact_mut(cols)).zip(rho) {
            for (out, x) in out.iter_mut().zip(x) {
                *out = if accumulate { *out + rho * x } else { rho * x };
            }
        }
    }
}

/// `src` and `dst` begin at the first column of the first row.
pub(super) fn copy_columns(src: &[f32], dst: &mut [f32], (rows, cols): (usize, usize), (src_stride, dst_stride): (usize, usize), accumulate: bool) {
    for row in 0..rows {
        let (src, dst) = (&src[row * src_stride..][..cols], &mut dst[row * dst_stride..][..cols]);
        if accumulate {
            dst.iter_mut().zip(src).for_each(|(dst, src)| *dst += src);
        } else {
            dst.copy_from_slice(src);
        }
    }
}

pub(super) fn gather_rows(x: &[f32], indices: &[u32], out: &mut [f32], cols: usize) {
    for (out, &index) in out.chunks_exact_mut(cols).zip(indices) {
        out.copy_from_slice(&x[index as usize * cols..][..cols]);
    }
}

pub(super) fn scatter_rows(dy: &[f32], indices: &[u32], dx: &mut [f32], cols: usize) {
    for (dy, &index) in dy.chunks_exact(cols).zip(indices) {
        for (dx, dy) in dx[index as usize * cols..][..cols].iter_mut().zip(dy) {
            *dx += dy;
        }
    }
}

pub(super) fn segment_max(x: &[f32], ranges: &[u32], out: &mut [f32], index: &mut [u32], cols: usize) {
    for ((range, out), index) in ranges.as_chunks::<2>().0.iter().zip(out.chunks_exact_mut(cols)).zip(index.chunks_exact_mut(cols)) {
        let first = range[0] as usize;
        out.copy_from_slice(&x[first * cols..][..cols]);
        index.fill(range[0]);
        for row in range[0] + 1..range[1] {
            let x = &x[row as usize * cols..][..cols];
            for ((x, out), index) in x.iter().zip(out.iter_mut()).zip(index.iter_mut()) {
                if x > out {
                    (*out, *index) = (*x, row);
                }
            }
        }
    }
}

pub(super) fn segment_max_grad(dy: &[f32], index: &[u32], dx: &mut [f32], cols: usize) {
    for (at, (dy, row)) in dy.iter().zip(index).enumerate() {
        dx[*row as usize * cols + at % cols] += dy;
    }
}

pub(super) fn pack_f16(x: &[f32], out: &mut [u32]) {
    const LARGEST: f32 = 65504.0;
    /// Values that are clamped before they are converted, by the processor's own instruction where it has one.
    const PIECE: usize = 256;
    let halves: &mut [half::f16] = bytemuck::cast_slice_mut(out);
    let mut clamped = [0f32; PIECE];
    for (x, halves) in x.chunks(PIECE).zip(halves.chunks_mut(PIECE)) {
        let clamped = &mut clamped[..x.len()];
        clamped.iter_mut().zip(x).for_each(|(to, x)| *to = x.clamp(-LARGEST, LARGEST));
        halves.convert_from_f32_slice(clamped);
    }
}
