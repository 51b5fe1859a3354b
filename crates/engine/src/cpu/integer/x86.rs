//! The forms of x86-64.

use super::super::blocks::BLOCK;
use super::super::shared::Part;
use super::Weight;
use super::few_rows;
use super::panel::Panel;
use super::rounded::Rounded;
use super::tile::{Lanes, all_rows};
use std::arch::x86_64::*;
use std::ops::Range;

/// Whether the processor has AVX-512 with its dot products of bytes, also for shorter vectors.
pub(super) fn has_vnni() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512f") && has!("avx512vl") && has!("avx512vnni") && has!("f16c")
}

#[target_feature(enable = "avx512f,avx512vl,avx512vnni,f16c")]
pub(super) fn vnni(rows: &Rounded, panel: &Panel, c: &mut Part<'_>, adds: bool) {
    // SAFETY: this function's features are those of the form.
    unsafe { all_rows::<Vnni, 2, 32>(rows, panel, c, adds) }
}

#[target_feature(enable = "avx2,fma")]
pub(super) fn avx2(rows: &Rounded, panel: &Panel, c: &mut Part<'_>, adds: bool) {
    // SAFETY: likewise.
    unsafe { all_rows::<Avx2, 2, 16>(rows, panel, c, adds) }
}

/// Some columns of a few rows, eight partial sums of each.
#[target_feature(enable = "avx512f,avx512vl,avx512vnni,f16c")]
pub(super) fn few_rows(rows: &Rounded, first: usize, count: usize, weight: Weight<'_>, c: &mut Part<'_>, columns: Range<usize>, accumulate: bool) {
    match count {
        1 => some_rows::<1>(rows, first, weight, c, columns, accumulate),
        2 => some_rows::<2>(rows, first, weight, c, columns, accumulate),
        3 => some_rows::<3>(rows, first, weight, c, columns, accumulate),
        _ => some_rows::<4>(rows, first, weight, c, columns, accumulate),
    }
}

#[target_feature(enable = "avx512f,avx512vl,avx512vnni,f16c")]
#[inline]
fn some_rows<const ROWS: usize>(rows: &Rounded, first: usize, weight: Weight<'_>, c: &mut Part<'_>, columns: Range<usize>, accumulate: bool) {
    let blocks = rows.blocks;
    let integers: &[[u8; BLOCK]] = bytemuck::cast_slice::<u32, u8>(&rows.words).as_chunks().0;
    let (integers, scales) = (&integers[first * blocks..], &rows.scales[first * blocks..]);
    assert!(integers.len() >= ROWS * blocks && scales.len() >= ROWS * blocks);
    for column in columns {
        let mut sums = [_mm256_setzero_ps(); ROWS];
        for block in 0..blocks {
            let (scale, right) = weight.block(column * blocks + block);
            // SAFETY: a block is the 32 bytes of a vector.
            let right = unsafe { _mm256_loadu_si256(right.as_ptr().cast()) };
            // Magnitudes are the unsigned factor, their signs go to the other one.
            let magnitudes = _mm256_abs_epi8(right);
            for (row, sums) in sums.iter_mut().enumerate() {
                let at = row * blocks + block;
                // SAFETY: the assertion above bounds the last row's last block.
                let (left, left_scale) = unsafe { (_mm256_loadu_si256(integers.as_ptr().add(at).cast()), *scales.get_unchecked(at)) };
                let products = _mm256_dpbusd_epi32(_mm256_setzero_si256(), magnitudes, _mm256_sign_epi8(left, right));
                *sums = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), _mm256_set1_ps(left_scale * scale), *sums);
            }
        }
        let mut totals = [0f32; ROWS];
        for (total, sums) in totals.iter_mut().zip(sums) {
            let mut lanes = [0f32; 8];
            // SAFETY: eight values.
            unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sums) };
            *total = ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
        }
        few_rows::put(&totals, first, column, c, accumulate);
    }
}

struct Vnni;

// SAFETY of all blocks below: the functions are inlined into one that has the features, and get pointers to whole vectors.
impl Lanes for Vnni {
    const PER_WORD: usize = 4;
    const COUNT: usize = 16;
    type Integers = __m512i;
    type Floats = __m512;

    #[inline(always)]
    unsafe fn zero() -> __m512 {
        unsafe { _mm512_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn start(offset: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(offset) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u32) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(word: u32) -> __m512i {
        unsafe { _mm512_set1_epi32(word as i32) }
    }

    #[inline(always)]
    unsafe fn add_products(sums: __m512i, right: __m512i, left: __m512i) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sums, right, left) }
    }

    #[inline(always)]
    unsafe fn load_floats(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn add_scaled(sums: __m512, integers: __m512i, scales: __m512, scale: f32) -> __m512 {
        unsafe { _mm512_fmadd_ps(_mm512_cvtepi32_ps(integers), _mm512_mul_ps(scales, _mm512_set1_ps(scale)), sums) }
    }

    #[inline(always)]
    unsafe fn store(sums: __m512, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, sums) }
    }
}

struct Avx2;

impl Lanes for Avx2 {
    const PER_WORD: usize = 2;
    const COUNT: usize = 8;
    type Integers = __m256i;
    type Floats = __m256;

    #[inline(always)]
    unsafe fn zero() -> __m256 {
        unsafe { _mm256_setzero_ps() }
    }

    #[inline(always)]
    unsafe fn start(offset: i32) -> __m256i {
        unsafe { _mm256_set1_epi32(offset) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u32) -> __m256i {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(word: u32) -> __m256i {
        unsafe { _mm256_set1_epi32(word as i32) }
    }

    #[inline(always)]
    unsafe fn add_products(sums: __m256i, right: __m256i, left: __m256i) -> __m256i {
        unsafe { _mm256_add_epi32(sums, _mm256_madd_epi16(right, left)) }
    }

    #[inline(always)]
    unsafe fn load_floats(from: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(from) }
    }

    #[inline(always)]
    unsafe fn add_scaled(sums: __m256, integers: __m256i, scales: __m256, scale: f32) -> __m256 {
        unsafe { _mm256_fmadd_ps(_mm256_cvtepi32_ps(integers), _mm256_mul_ps(scales, _mm256_set1_ps(scale)), sums) }
    }

    #[inline(always)]
    unsafe fn store(sums: __m256, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, sums) }
    }
}
