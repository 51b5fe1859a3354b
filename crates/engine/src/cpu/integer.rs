//! Products of activations with frozen weights in blocks of integers, computed in integers.
//!
//! A row of activations is rounded to 8-bit integers in blocks of 32, as the weight's rows are stored: scale = max |x| / 127,
//! q = x · 127 / max |x| to the nearest, ties to even. Then
//!
//! ```text
//! c[i, j] = Σ over blocks b of (Σ over the 32 of b of q_a · q_w) · (scale_a[i, b] · scale_w[j, b])
//! ```
//!
//! The inner sums are exact (at most 32 · 127 · 128, which f32 holds too), the outer one is f32 in the order of the blocks. So
//! all forms of the kernel agree to the rounding of that outer sum. (The same numbers as ggml's `Q8_0 × Q8_0` and `Q8_0 × Q4_0`,
//! with the activations' scales in f32.)

mod few_rows;
mod panel;
mod rounded;
mod tile;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::blocks::{BLOCK, Blocks};
use super::shared::{Shared, share_out};
use super::simd;
use super::slab::Packed;
use panel::Panel;
use rounded::Rounded;
use std::cell::Cell;
use std::ops::Range;
use tile::Form;

/// Blocks of a packed panel at most: with 32 columns 20 KiB of integers and 2.5 KiB of scales, which stay in the first-level
/// cache.
const PANEL_BLOCKS: usize = 20;
/// Rounded activations that meet a panel before the next is packed: half of a second-level cache.
const ROWS_BYTES: usize = 1 << 19;
/// Rows are shared out in multiples of this, which suits tiles of 4 and of 6 rows.
const ROW_STEP: usize = 12;
/// Multiplications that are worth another thread (about 10 µs).
const PARALLEL_PRODUCTS: usize = 1 << 20;

/// A weight's rows, whole blocks each.
#[derive(Clone, Copy)]
pub(super) enum Weight<'a> {
    Q8(Blocks<'a>),
    Q4(Blocks<'a>),
}

impl Weight<'_> {
    /// Scale and integers of a block.
    #[inline(always)]
    fn block(&self, index: usize) -> (f32, [i8; BLOCK]) {
        match self {
            Weight::Q8(blocks) => {
                let (scale, bytes) = blocks.block::<BLOCK>(index);
                (scale, bytemuck::cast(*bytes))
            }
            Weight::Q4(blocks) => {
                let (scale, bytes) = blocks.block::<{ BLOCK / 2 }>(index);
                let mut integers = [0i8; BLOCK];
                for (i, byte) in bytes.iter().enumerate() {
                    integers[i] = (byte & 15) as i8 - 8;
                    integers[i + BLOCK / 2] = (byte >> 4) as i8 - 8;
                }
                (scale, integers)
            }
        }
    }
}

/// What multiplies, for people.
pub(super) fn describe() -> &'static str {
    Form::best().name()
}

thread_local! {
    // Taken while in use and put back: a thread that waits for others may meanwhile start another product.
    static ROOM: Cell<(Rounded, Panel)> = Cell::default();
}

/// `c (+)= round(a) · bᵀ`: a `[m, k]`, b `[n, k]`, c `[m, n]`, k whole blocks.
///
/// # Panics
/// If the weight is not of integers: back ends are asked for this only where it is.
pub(super) fn product(a: &[f32], b: Packed<'_>, c: &mut [f32], sizes: (usize, usize, usize), accumulate: bool) {
    let b = match b {
        Packed::Q8(blocks) => Weight::Q8(blocks),
        Packed::Q4(blocks) => Weight::Q4(blocks),
        Packed::F32(_) | Packed::F16(_) | Packed::Bf16(_) => unreachable!("a product in integers is asked of weights in blocks only"),
    };
    product_as(Form::best(), a, b, c, sizes, accumulate);
}

fn product_as(form: Form, a: &[f32], b: Weight<'_>, c: &mut [f32], (m, n, k): (usize, usize, usize), accumulate: bool) {
    assert!(k.is_multiple_of(BLOCK) && a.len() == m * k && c.len() == m * n, "the product fits its operands");
    if m == 0 || n == 0 {
        return;
    }
    let threads = if m * n * k >= PARALLEL_PRODUCTS { simd::threads() } else { 1 };
    let c = Shared::new(c, m, n);
    if m <= few_rows::MOST {
        let (mut rounded, panel) = ROOM.take();
        rounded.round(a, k, few_rows::PER_WORD);
        share_out(n, 1, threads, |columns| {
            // SAFETY: the ranges of columns are disjoint.
            let mut c = unsafe { c.part(0..m, columns.clone()) };
            few_rows::product(&rounded, b, &mut c, columns, accumulate);
        });
        return ROOM.set((rounded, panel));
    }
    let at_once = (ROWS_BYTES * form.per_word() / 4 / k.max(1)).next_multiple_of(ROW_STEP);
    let run = |rows: Range<usize>, columns: Range<usize>| {
        let (mut rounded, mut panel) = ROOM.take();
        for first in rows.clone().step_by(at_once) {
            let rows = first..rows.end.min(first + at_once);
            rounded.round(&a[rows.start * k..rows.end * k], k, form.per_word());
            for (index, blocks) in parts(k / BLOCK, PANEL_BLOCKS).enumerate() {
                for first in columns.clone().step_by(form.columns()) {
                    let columns = first..columns.end.min(first + form.columns());
                    panel.pack(b, form, blocks.clone(), columns.clone(), k / BLOCK);
                    // SAFETY: threads work on disjoint rows, or on disjoint columns.
                    let mut c = unsafe { c.part(rows.clone(), columns.clone()) };
                    form.tiles(&rounded, &panel, &mut c, accumulate || index > 0);
                }
            }
        }
        ROOM.set((rounded, panel));
    };
    if m >= 4 * threads * ROW_STEP {
        share_out(m, ROW_STEP, threads, |rows| run(rows, 0..n));
    } else {
        share_out(n, form.columns(), threads, |columns| run(0..m, columns));
    }
}

/// `0..length` in parts of about equal size, at most `most` each; one empty part where there is nothing.
fn parts(length: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let count = length.div_ceil(most).max(1);
    (0..count).map(move |part| length * part / count..length * (part + 1) / count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::Dtype;

    /// A weight of `rows` rows: words as they are uploaded, and (scale, integers) of each block.
    fn weight(dtype: Dtype, rows: usize, blocks: usize) -> (Vec<u32>, Vec<(f32, [i8; BLOCK])>) {
        let (mut bytes, mut list) = (Vec::new(), Vec::new());
        let random = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) as u8;
        for pair in 0..(rows * blocks).div_ceil(2) {
            let mut scales = 0u32;
            for odd in 0..2 {
                let block = 2 * pair + odd;
                let scale = half::f16::from_f32(0.01 + 0.001 * (block % 23) as f32);
                scales |= u32::from(scale.to_bits()) << (16 * odd);
                let mut integers = [0i8; BLOCK];
                if dtype == Dtype::Q8 {
                    // All 256 values, the lowest too, which files may hold.
                    integers = std::array::from_fn(|i| random(block * BLOCK + i) as i8);
                    bytes.extend(integers.map(|q| q as u8));
                } else {
                    for i in 0..BLOCK / 2 {
                        let byte = random(block * BLOCK + i);
                        (integers[i], integers[i + BLOCK / 2]) = ((byte & 15) as i8 - 8, (byte >> 4) as i8 - 8);
                        bytes.push(byte);
                    }
                }
                list.push((scale.to_f32(), integers));
            }
            bytes.extend(scales.to_le_bytes());
        }
        let words = bytes.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        (words, list)
    }

    fn activations(len: usize) -> Vec<f32> {
        let value = |i: usize| (((i * 7_919) % 2_003) as f32 / 1_001.0 - 1.0) * (1 + i / 32 % 5) as f32;
        // Some blocks are all 0, some have one large value.
        (0..len).map(|i| if i / 32 % 11 == 3 { 0.0 } else if i % 331 == 5 { 40.0 } else { value(i) }).collect()
    }

    /// The definition, in f64 but for the rounding of the activations; and the sum of all products' magnitudes.
    fn reference(a: &[f32], b: &[(f32, [i8; BLOCK])], (m, n, k): (usize, usize, usize)) -> Vec<(f64, f64)> {
        let of = |i: usize, j: usize| {
            let (mut sum, mut size) = (0.0, 0.0);
            for block in 0..k / BLOCK {
                let x = &a[i * k + block * BLOCK..][..BLOCK];
                let peak = x.iter().fold(0f32, |peak, x| peak.max(x.abs()));
                let (scale, factor) = if peak == 0.0 { (0.0, 0.0) } else { (peak / 127.0, 127.0 / peak) };
                let (w_scale, w) = &b[j * (k / BLOCK) + block];
                let integers: Vec<i64> = x.iter().zip(w).map(|(x, w)| (x * factor).round_ties_even() as i64 * i64::from(*w)).collect();
                let scale = f64::from(scale) * f64::from(*w_scale);
                sum += integers.iter().sum::<i64>() as f64 * scale;
                size += integers.iter().map(|x| x.abs()).sum::<i64>() as f64 * scale;
            }
            (sum, size)
        };
        (0..m * n).map(|at| of(at / n, at % n)).collect()
    }

    const SIZES: [(usize, usize, usize); 14] = [
        (1, 1, 32), (1, 9, 96), (2, 33, 64), (3, 70, 672), (5, 31, 160), (12, 64, 32), (13, 64, 96), (17, 33, 32), (19, 1, 64),
        (31, 100, 1_312), (65, 31, 640), (97, 17, 672), (200, 70, 96), (131, 129, 224),
    ];

    #[test]
    fn every_form_computes_the_definition() {
        for dtype in [Dtype::Q8, Dtype::Q4] {
            for sizes in SIZES {
                let (m, n, k) = sizes;
                // The weight lies behind another one's odd number of blocks.
                let (words, blocks) = weight(dtype, 1, 3 + n * k / BLOCK);
                let blocks = &blocks[3..];
                let of = Blocks::new(&words, dtype, 3 * BLOCK, n * k);
                let b = if dtype == Dtype::Q8 { Weight::Q8(of) } else { Weight::Q4(of) };
                let a = activations(m * k);
                let want = reference(&a, blocks, sizes);
                for form in Form::available() {
                    for accumulate in [false, true] {
                        let mut c = vec![0.5; m * n];
                        product_as(form, &a, b, &mut c, sizes, accumulate);
                        for (at, (got, (want, size))) in c.iter().zip(&want).enumerate() {
                            let want = want + if accumulate { 0.5 } else { 0.0 };
                            let close = (f64::from(*got) - want).abs() <= 2e-7 * (size + 0.5);
                            assert!(close, "{form:?} {dtype:?} {sizes:?} {accumulate}: {got} {want} at row {}, column {}", at / n, at % n);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn forms_of_fused_sums_have_the_same_bits() {
        let sizes = (40, 70, 480);
        let (words, _) = weight(Dtype::Q8, 70, 15);
        let (a, b) = (activations(40 * 480), Weight::Q8(Blocks::new(&words, Dtype::Q8, 0, 70 * 480)));
        let results: Vec<Vec<f32>> = Form::available().into_iter().filter(|form| form.is_fused()).map(|form| {
            let mut c = vec![0.0; 40 * 70];
            product_as(form, &a, b, &mut c, sizes, false);
            c
        }).collect();
        assert!(results.windows(2).all(|two| two[0] == two[1]));
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let (words, _) = weight(Dtype::Q8, 5, 2);
        let b = Weight::Q8(Blocks::new(&words, Dtype::Q8, 0, 5 * 64));
        for (m, value) in [(1, f32::NAN), (1, f32::INFINITY), (40, f32::NAN), (40, f32::NEG_INFINITY)] {
            let mut a = activations(m * 64);
            a[35] = value;
            for form in Form::available() {
                let mut c = vec![0.0; m * 5];
                product_as(form, &a, b, &mut c, (m, 5, 64), false);
                assert!(c[..5].iter().all(|x| !x.is_finite()) && c[5..].iter().all(|x| x.is_finite()), "{form:?}: {:?}", &c[..5]);
            }
        }
    }

    #[test]
    fn the_error_of_rounded_activations_is_what_eight_bits_allow() {
        let (m, n, k) = (50, 60, 576);
        let (words, blocks) = weight(Dtype::Q8, n, k / BLOCK);
        let a = activations(m * k);
        let mut c = vec![0.0; m * n];
        product(&a, Packed::Q8(Blocks::new(&words, Dtype::Q8, 0, n * k)), &mut c, (m, n, k), false);
        for (at, got) in c.iter().enumerate() {
            let (mut exact, mut bound) = (0f64, 0f64);
            for block in 0..k / BLOCK {
                let x = &a[at / n * k + block * BLOCK..][..BLOCK];
                let half_step = x.iter().fold(0f32, |peak, x| peak.max(x.abs())) / 254.0;
                let (scale, w) = &blocks[at % n * (k / BLOCK) + block];
                for (x, w) in x.iter().zip(w) {
                    exact += f64::from(*x) * f64::from(*scale) * f64::from(*w);
                    bound += f64::from(half_step) * f64::from(*scale) * f64::from(*w).abs();
                }
            }
            assert!((f64::from(*got) - exact).abs() <= 1.001 * bound, "{got} {exact} {bound}");
        }
    }
}
