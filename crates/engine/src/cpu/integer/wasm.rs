//! The form of WebAssembly's simd128.

use super::tile::Lanes;
use std::arch::wasm32::*;

pub(super) struct Simd128;

// SAFETY of all blocks below: the module is compiled where simd128 is there, and the functions get pointers to whole vectors.
impl Lanes for Simd128 {
    const PER_WORD: usize = 2;
    const COUNT: usize = 4;
    type Integers = v128;
    type Floats = v128;

    #[inline(always)]
    unsafe fn zero() -> v128 {
        f32x4_splat(0.0)
    }

    #[inline(always)]
    unsafe fn start(offset: i32) -> v128 {
        i32x4_splat(offset)
    }

    #[inline(always)]
    unsafe fn load(from: *const u32) -> v128 {
        unsafe { v128_load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn splat(word: u32) -> v128 {
        i32x4_splat(word as i32)
    }

    #[inline(always)]
    unsafe fn add_products(sums: v128, right: v128, left: v128) -> v128 {
        i32x4_add(sums, i32x4_dot_i16x8(right, left))
    }

    #[inline(always)]
    unsafe fn load_floats(from: *const f32) -> v128 {
        unsafe { v128_load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn add_scaled(sums: v128, integers: v128, scales: v128, scale: f32) -> v128 {
        f32x4_add(sums, f32x4_mul(f32x4_convert_i32x4(integers), f32x4_mul(scales, f32x4_splat(scale))))
    }

    #[inline(always)]
    unsafe fn store(sums: v128, to: *mut f32) {
        unsafe { v128_store(to.cast(), sums) }
    }
}
