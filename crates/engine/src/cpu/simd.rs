//! Loops the compiler turns into vector instructions, and how they are spread over threads.

/// Defines a function compiled twice on x86-64: for the baseline, and for AVX2 and FMA, chosen when called.
///
/// Elsewhere (NEON, simd128) the target's own features are on from the start, and the function is what it says.
macro_rules! kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident : $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, reason = "an operation has as many operands as its formula")]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, reason = "an operation has as many operands as its formula")]
            fn portable($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments, reason = "an operation has as many operands as its formula")]
                fn wide($($arg: $ty),*) $(-> $ret)? {
                    portable($($arg),*)
                }
                if $crate::cpu::simd::is_wide() {
                    // SAFETY: the processor has AVX2 and FMA, as is_wide found.
                    return unsafe { wide($($arg),*) };
                }
            }
            portable($($arg),*)
        }
    };
}
pub(crate) use kernel;

/// [`kernel!`] whose body knows whether `x · y + z` is one instruction: `fn name[FUSED](…)`, and [`plus`] takes `FUSED`.
macro_rules! fused_kernel {
    ($(#[$meta:meta])* $vis:vis fn $name:ident[$fused:ident]($($arg:ident : $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) {
            #[inline(always)]
            fn portable<const $fused: bool>($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn wide($($arg: $ty),*) {
                    portable::<true>($($arg),*)
                }
                if $crate::cpu::simd::is_wide() {
                    // SAFETY: the processor has AVX2 and FMA, as is_wide found.
                    return unsafe { wide($($arg),*) };
                }
            }
            portable::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub(crate) use fused_kernel;

/// `x · y + z`, rounded once where `FUSED`.
#[inline(always)]
pub(crate) fn plus<const FUSED: bool>(x: f32, y: f32, z: f32) -> f32 {
    if FUSED { x.mul_add(y, z) } else { x * y + z }
}

/// Whether the processor has AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
pub(crate) fn is_wide() -> bool {
    std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
}

/// What the processor offers, for people.
pub(super) fn describe() -> String {
    #[cfg(target_arch = "x86_64")]
    let simd = if is_wide() { "AVX2" } else { "SSE2" };
    #[cfg(target_arch = "aarch64")]
    let simd = "NEON";
    #[cfg(target_arch = "wasm32")]
    let simd = if cfg!(target_feature = "simd128") { "WebAssembly SIMD" } else { "WebAssembly" };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "wasm32")))]
    let simd = std::env::consts::ARCH;
    let threads = threads();
    format!("CPU, {simd}, {threads} thread{}", if threads == 1 { "" } else { "s" })
}

/// Threads the loops are spread over.
pub(super) fn threads() -> usize {
    #[cfg(threads)]
    return rayon::current_num_threads();
    #[cfg(not(threads))]
    return 1;
}

/// Fewer elements than this are not worth waking another thread (about 10 µs of work).
pub(super) const PARALLEL_ELEMENTS: usize = 1 << 14;

/// How many rows one task gets: everything when the work is small, else a few tasks per thread.
pub(super) fn rows_per_task(rows: usize, elements: usize) -> usize {
    if elements < PARALLEL_ELEMENTS || threads() == 1 { rows.max(1) } else { rows.div_ceil(4 * threads()).max(1) }
}

/// Calls `f(first row, rows)` on pieces of `out` made of whole rows of `cols`, on several threads if that pays.
pub(super) fn for_row_chunks(out: &mut [f32], cols: usize, f: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let work = out.len();
    for_working_chunks(out, cols, work, f);
}

/// [`for_row_chunks`] where the work is that of so many elements.
pub(super) fn for_working_chunks(out: &mut [f32], cols: usize, work: usize, f: impl Fn(usize, &mut [f32]) + Sync + Send) {
    let rows = out.len() / cols.max(1);
    let chunk = rows_per_task(rows, work);
    if rows == 0 {
        return;
    }
    if chunk >= rows {
        return f(0, out);
    }
    #[cfg(threads)]
    {
        use rayon::prelude::*;
        out.par_chunks_mut(chunk * cols).enumerate().for_each(|(index, piece)| f(index * chunk, piece));
    }
    #[cfg(not(threads))]
    f(0, out);
}

/// Like [`for_row_chunks`] over two outputs with the same rows.
pub(super) fn for_row_chunks2(
    a: &mut [f32],
    a_cols: usize,
    b: &mut [f32],
    b_cols: usize,
    f: impl Fn(usize, &mut [f32], &mut [f32]) + Sync + Send,
) {
    let rows = a.len() / a_cols.max(1);
    let chunk = rows_per_task(rows, a.len());
    if rows == 0 {
        return;
    }
    if chunk >= rows {
        return f(0, a, b);
    }
    #[cfg(threads)]
    {
        use rayon::prelude::*;
        a.par_chunks_mut(chunk * a_cols)
            .zip(b.par_chunks_mut(chunk * b_cols))
            .enumerate()
            .for_each(|(index, (a, b))| f(index * chunk, a, b));
    }
    #[cfg(not(threads))]
    {
        let _ = b_cols;
        f(0, a, b);
    }
}

/// `f(0), f(1) … f(count − 1)`, on several threads if `elements` of work are enough.
pub(super) fn map_tasks<R: Send>(count: usize, elements: usize, f: impl Fn(usize) -> R + Sync + Send) -> Vec<R> {
    #[cfg(threads)]
    if elements >= PARALLEL_ELEMENTS && count > 1 {
        use rayon::prelude::*;
        return (0..count).into_par_iter().map(f).collect();
    }
    let _ = elements;
    (0..count).map(f).collect()
}

/// `f` on every job, on several threads if `elements` of work are enough.
pub(super) fn for_jobs<J: Send>(jobs: Vec<J>, elements: usize, f: impl Fn(J) + Sync + Send) {
    #[cfg(threads)]
    if elements >= PARALLEL_ELEMENTS && jobs.len() > 1 && threads() > 1 {
        use rayon::prelude::*;
        return jobs.into_par_iter().for_each(f);
    }
    let _ = elements;
    jobs.into_iter().for_each(f);
}

/// Sums are taken in this many lanes: two AVX2 registers, four of simd128.
pub(crate) const LANES: usize = 16;

/// e^x to about 1e-7 relative; 1e-38 at the lower end, where f32 runs out of exponents.
///
/// Cephes' expf: x = n·ln 2 + r, a polynomial of degree 6 in r, and n put into the exponent.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer
    let x = if x > 88.0 { 88.0 } else { x };
    let x = if x < -87.0 { -87.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let p = 1.987_569_1e-4 * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let e = p * (r * r) + r + 1.0;
    let exponent = (shifted.to_bits() as i32).wrapping_sub(SHIFT.to_bits() as i32).wrapping_add(127);
    e * f32::from_bits((exponent as u32) << 23)
}

/// Natural logarithm of a positive normal number to about 1e-7, absolute near 1 and relative elsewhere (Cephes' logf):
/// x = 2^n · m, m in [√½, √2), and a polynomial of degree 9 in m − 1.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    const ROOT_HALF: u32 = 0x3f35_04f3;
    let bits = x.to_bits().wrapping_sub(ROOT_HALF);
    let n = ((bits as i32) >> 23) as f32;
    let r = f32::from_bits((bits & 0x007f_ffff) + ROOT_HALF) - 1.0;
    let p = 7.037_683_6e-2 * r - 1.151_461e-1;
    let p = p * r + 1.167_699_9e-1;
    let p = p * r - 1.242_014_1e-1;
    let p = p * r + 1.424_932_3e-1;
    let p = p * r - 1.666_805_7e-1;
    let p = p * r + 2.000_071_5e-1;
    let p = p * r - 2.499_999_4e-1;
    let p = p * r + 0.333_333_3;
    let square = r * r;
    let tail = p * r * square - 2.121_944_4e-4 * n - 0.5 * square;
    r + tail + 0.693_359_4 * n
}

/// 1 / (1 + e^−x).
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Σ a·b in [`LANES`] lanes.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for i in 0..LANES {
            lanes[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lane_sum(lanes) + rest
}

/// Σ x in [`LANES`] lanes.
#[inline(always)]
pub(crate) fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] += chunk[i];
        }
    }
    lane_sum(lanes) + rest.iter().sum::<f32>()
}

/// The lanes added as a tree.
#[inline(always)]
pub(crate) fn lane_sum(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest value, −3.4e38 of none.
#[inline(always)]
pub(crate) fn largest(x: &[f32]) -> f32 {
    let mut lanes = [f32::MIN; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
        }
    }
    lanes.iter().chain(rest).fold(f32::MIN, |best, &x| if x > best { x } else { best })
}

/// Half precision to f32, exactly, without a table or a branch.
#[inline(always)]
pub(crate) fn f16_to_f32(half: u16) -> f32 {
    let bits = u32::from(half);
    let magnitude = (bits & 0x7fff) << 13;
    // 2^112 moves the exponent's bias from 15 to 127 and turns subnormal halves into normal floats.
    let value = f32::from_bits(magnitude) * f32::from_bits((112 + 127) << 23);
    let special = if magnitude >= 0x0f80_0000 { magnitude | 0x7f80_0000 } else { value.to_bits() };
    f32::from_bits(special | ((bits & 0x8000) << 16))
}

kernel! {
    /// f16 halves to f32.
    pub(crate) fn widen_f16(x: &[u16], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = f16_to_f32(x);
        }
    }
}

kernel! {
    /// bfloat16 to f32.
    pub(crate) fn widen_bf16(x: &[u16], out: &mut [f32]) {
        for (out, &x) in out.iter_mut().zip(x) {
            *out = f32::from_bits(u32::from(x) << 16);
        }
    }
}

/// Words of two halves, the lower index low, to f32.
pub(super) fn unpack_f16(words: &[u32], out: &mut [f32]) {
    widen_f16(bytemuck::cast_slice(words), out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_to_2e_7() {
        for i in -8600..8700 {
            let x = i as f32 * 0.01;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(((got - want) / want).abs() < 2e-7, "exp({x}) = {got}, expected {want}");
        }
    }

    #[test]
    fn ln_is_accurate_to_2e_7() {
        for i in -3700..3800 {
            let x = (f64::from(i) * 0.01).exp2() as f32;
            let (got, want) = (f64::from(ln(x)), f64::from(x).ln());
            assert!((got - want).abs() < 2e-7 * want.abs().max(1.0), "ln({x}) = {got}, expected {want}");
        }
    }

    #[test]
    fn every_half_widens_exactly() {
        for bits in 0..=u16::MAX {
            let want = half::f16::from_bits(bits).to_f32();
            let got = f16_to_f32(bits);
            assert!(got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan()), "{bits:#x}: {got} {want}");
        }
    }
}
