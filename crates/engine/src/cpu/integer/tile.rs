//! Tiles of the result whose integer sums stay in registers, in the forms that processors multiply integers in.

use super::super::blocks::BLOCK;
use super::super::shared::Part;
use super::panel::Panel;
use super::rounded::Rounded;
use std::hint::black_box;

/// How a processor multiplies integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// AVX-512 VNNI: four products of unsigned and signed bytes are added to a sum.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    /// AVX2: two products of 16-bit integers make a sum.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// WebAssembly's simd128: likewise.
    #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
    Simd128,
    /// What the compiler makes of it.
    Portable,
}

impl Form {
    /// All that this processor has, the best first.
    #[cfg(test)]
    pub fn available() -> Vec<Form> {
        let mut forms = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            forms.extend(super::x86::has_vnni().then_some(Form::Vnni));
            forms.extend(super::super::simd::is_wide().then_some(Form::Avx2));
        }
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        forms.push(Form::Simd128);
        forms.push(Form::Portable);
        forms
    }

    /// The best that this processor has.
    pub fn best() -> Form {
        #[cfg(target_arch = "x86_64")]
        if super::x86::has_vnni() {
            return Form::Vnni;
        } else if super::super::simd::is_wide() {
            return Form::Avx2;
        }
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        return Form::Simd128;
        #[allow(unreachable_code, reason = "some targets have a form of their own always")]
        Form::Portable
    }

    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Form::Vnni => "AVX-512 VNNI",
            #[cfg(target_arch = "x86_64")]
            Form::Avx2 => "AVX2",
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Form::Simd128 => "simd128",
            Form::Portable => "plain loops",
        }
    }

    /// Columns of a panel.
    pub fn columns(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Form::Vnni => 32,
            #[cfg(target_arch = "x86_64")]
            Form::Avx2 => 16,
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Form::Simd128 => 8,
            Form::Portable => 8,
        }
    }

    /// Integers in a word.
    pub fn per_word(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Form::Vnni => 4,
            _ => 2,
        }
    }

    /// Whether sums over blocks are made with fused multiplications and additions.
    #[cfg(test)]
    pub fn is_fused(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Form::Vnni | Form::Avx2 => true,
            _ => false,
        }
    }

    /// Overwrites the panel's columns of all rows of `c`, or adds to them; `rows` are those of `c`.
    pub fn tiles(self, rows: &Rounded, panel: &Panel, c: &mut Part<'_>, adds: bool) {
        match self {
            // SAFETY: the processor has what the form asks for, as available and best found.
            #[cfg(target_arch = "x86_64")]
            Form::Vnni => unsafe { super::x86::vnni(rows, panel, c, adds) },
            // SAFETY: likewise.
            #[cfg(target_arch = "x86_64")]
            Form::Avx2 => unsafe { super::x86::avx2(rows, panel, c, adds) },
            // SAFETY: this module is compiled for processors that have it.
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
            Form::Simd128 => unsafe { all_rows::<super::wasm::Simd128, 2, 8>(rows, panel, c, adds) },
            // SAFETY: it asks for nothing.
            Form::Portable => unsafe { all_rows::<Portable, 1, 8>(rows, panel, c, adds) },
        }
    }
}

/// One vector's worth of a form's arithmetic.
///
/// # Safety
/// Its functions are called on processors that have the form, with pointers to whole vectors.
pub(super) trait Lanes {
    /// Integers of a word, and words of a vector.
    const PER_WORD: usize;
    const COUNT: usize;
    /// 32-bit sums, and words that are multiplied.
    type Integers: Copy;
    type Floats: Copy;
    /// Zeros, and a block's first sums.
    unsafe fn zero() -> Self::Floats;
    unsafe fn start(offset: i32) -> Self::Integers;
    unsafe fn load(from: *const u32) -> Self::Integers;
    /// The same word in all lanes.
    unsafe fn splat(word: u32) -> Self::Integers;
    /// `sums + Σ right · left`, the products of a word added up.
    unsafe fn add_products(sums: Self::Integers, right: Self::Integers, left: Self::Integers) -> Self::Integers;
    unsafe fn load_floats(from: *const f32) -> Self::Floats;
    /// `sums + integers · (scales · scale)`.
    unsafe fn add_scaled(sums: Self::Floats, integers: Self::Integers, scales: Self::Floats, scale: f32) -> Self::Floats;
    unsafe fn store(sums: Self::Floats, to: *mut f32);
}

/// All rows of the panel's columns, in tiles of six rows (where the vectors are wide and many) or four, by `VECTORS`.
#[inline(always)]
pub(super) unsafe fn all_rows<L: Lanes, const VECTORS: usize, const WIDE: usize>(rows: &Rounded, panel: &Panel, c: &mut Part<'_>, adds: bool) {
    const { assert!(VECTORS * L::COUNT == WIDE) };
    let (blocks, stride, tall) = (panel.blocks.len(), rows.stride(), if WIDE >= 32 { 6 } else { 4 });
    assert!(rows.per_word == L::PER_WORD && panel.blocks.end <= rows.blocks && c.rows == rows.rows, "the rows are rounded for this form");
    assert!(rows.words.len() >= rows.rows * stride && rows.scales.len() >= rows.rows * rows.blocks && rows.offsets.len() >= rows.rows * rows.blocks);
    assert!(panel.words.len() >= blocks * (BLOCK / L::PER_WORD) * WIDE && panel.scales.len() >= blocks * WIDE && panel.columns.len() <= WIDE);
    for row in (0..rows.rows).step_by(tall) {
        let count = tall.min(rows.rows - row);
        if panel.columns.len() == WIDE {
            let (to, c_stride) = c.rows_from(row, count, panel.columns.clone());
            // SAFETY: the assertions above bound what tiles of rows that are there read, and `rows_from` what they write.
            unsafe { of_height::<L, VECTORS, WIDE>(count, Operands::new::<L>(rows, row, panel), to, c_stride, adds) };
            continue;
        }
        let mut whole = [[0f32; WIDE]; 6];
        for (index, whole) in whole[..count].iter_mut().enumerate() {
            whole[..panel.columns.len()].copy_from_slice(c.row(row + index, panel.columns.clone()));
        }
        // SAFETY: likewise; there are whole rows.
        unsafe { of_height::<L, VECTORS, WIDE>(count, Operands::new::<L>(rows, row, panel), whole.as_mut_ptr().cast(), WIDE, adds) };
        for (index, whole) in whole[..count].iter().enumerate() {
            c.row(row + index, panel.columns.clone()).copy_from_slice(&whole[..panel.columns.len()]);
        }
    }
}

/// What a tile reads, from its first row and the panel's first block on.
#[derive(Clone, Copy)]
struct Operands {
    left: *const u32,
    scales: *const f32,
    offsets: *const i32,
    /// Words, and blocks, from one row to the next.
    stride: usize,
    row_blocks: usize,
    right: *const u32,
    right_scales: *const f32,
    blocks: usize,
    /// Words of a block. Not known when compiled, on purpose: a loop written out eight times would not keep its sums in registers.
    steps: usize,
}

impl Operands {
    #[inline(always)]
    unsafe fn new<L: Lanes>(rows: &Rounded, row: usize, panel: &Panel) -> Self {
        let (steps, stride, first) = (BLOCK / L::PER_WORD, rows.stride(), panel.blocks.start);
        // SAFETY: the caller has checked that row and blocks are there.
        let (left, scales, offsets) = unsafe {
            let block = row * rows.blocks + first;
            (rows.words.as_ptr().add(row * stride + first * steps), rows.scales.as_ptr().add(block), rows.offsets.as_ptr().add(block))
        };
        let (right, right_scales) = (panel.words.as_ptr(), panel.scales.as_ptr());
        Self { left, scales, offsets, stride, row_blocks: rows.blocks, right, right_scales, blocks: panel.blocks.len(), steps: black_box(steps) }
    }
}

#[inline(always)]
unsafe fn of_height<L: Lanes, const VECTORS: usize, const WIDE: usize>(tall: usize, from: Operands, c: *mut f32, c_stride: usize, adds: bool) {
    // SAFETY: as the caller's.
    unsafe {
        match tall {
            1 => tile::<L, 1, VECTORS, WIDE>(from, c, c_stride, adds),
            2 => tile::<L, 2, VECTORS, WIDE>(from, c, c_stride, adds),
            3 => tile::<L, 3, VECTORS, WIDE>(from, c, c_stride, adds),
            5 if WIDE >= 32 => tile::<L, 5, VECTORS, WIDE>(from, c, c_stride, adds),
            6 if WIDE >= 32 => tile::<L, 6, VECTORS, WIDE>(from, c, c_stride, adds),
            _ => tile::<L, 4, VECTORS, WIDE>(from, c, c_stride, adds),
        }
    }
}

/// `TALL` rows of the result, `c_stride` apart.
#[inline(always)]
unsafe fn tile<L: Lanes, const TALL: usize, const VECTORS: usize, const WIDE: usize>(from: Operands, c: *mut f32, c_stride: usize, adds: bool) {
    // SAFETY: `all_rows` has checked what is read and written here.
    unsafe {
        let mut sums = [[L::zero(); VECTORS]; TALL];
        if adds {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (vector, sums) in sums.iter_mut().enumerate() {
                    *sums = L::load_floats(c.add(row * c_stride + vector * L::COUNT));
                }
            }
        }
        for block in 0..from.blocks {
            let mut integers = [[L::start(0); VECTORS]; TALL];
            if L::PER_WORD == 4 {
                for (row, integers) in integers.iter_mut().enumerate() {
                    *integers = [L::start(*from.offsets.add(row * from.row_blocks + block)); VECTORS];
                }
            }
            for step in block * from.steps..(block + 1) * from.steps {
                let mut right = [L::start(0); VECTORS];
                for (vector, right) in right.iter_mut().enumerate() {
                    *right = L::load(from.right.add(step * WIDE + vector * L::COUNT));
                }
                for (row, integers) in integers.iter_mut().enumerate() {
                    let left = L::splat(*from.left.add(row * from.stride + step));
                    for (integers, right) in integers.iter_mut().zip(&right) {
                        *integers = L::add_products(*integers, *right, left);
                    }
                }
            }
            let mut right = [L::zero(); VECTORS];
            for (vector, right) in right.iter_mut().enumerate() {
                *right = L::load_floats(from.right_scales.add(block * WIDE + vector * L::COUNT));
            }
            for (row, (sums, integers)) in sums.iter_mut().zip(&integers).enumerate() {
                let scale = *from.scales.add(row * from.row_blocks + block);
                for ((sum, integers), right) in sums.iter_mut().zip(integers).zip(&right) {
                    *sum = L::add_scaled(*sum, *integers, *right, scale);
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (vector, sums) in sums.iter().enumerate() {
                L::store(*sums, c.add(row * c_stride + vector * L::COUNT));
            }
        }
    }
}

/// Plain loops over eight lanes.
pub(super) struct Portable;

impl Lanes for Portable {
    const PER_WORD: usize = 2;
    const COUNT: usize = 8;
    type Integers = [i32; 8];
    type Floats = [f32; 8];

    #[inline(always)]
    unsafe fn zero() -> [f32; 8] {
        [0.0; 8]
    }

    #[inline(always)]
    unsafe fn start(offset: i32) -> [i32; 8] {
        [offset; 8]
    }

    #[inline(always)]
    unsafe fn load(from: *const u32) -> [i32; 8] {
        // SAFETY: the caller gives a pointer to eight words.
        unsafe { from.cast::<[i32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn splat(word: u32) -> [i32; 8] {
        [word as i32; 8]
    }

    #[inline(always)]
    unsafe fn add_products(mut sums: [i32; 8], right: [i32; 8], left: [i32; 8]) -> [i32; 8] {
        for i in 0..8 {
            let low = i32::from(right[i] as i16) * i32::from(left[i] as i16);
            sums[i] += low + (right[i] >> 16) * (left[i] >> 16);
        }
        sums
    }

    #[inline(always)]
    unsafe fn load_floats(from: *const f32) -> [f32; 8] {
        // SAFETY: the caller gives a pointer to eight values.
        unsafe { from.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn add_scaled(mut sums: [f32; 8], integers: [i32; 8], scales: [f32; 8], scale: f32) -> [f32; 8] {
        for i in 0..8 {
            sums[i] += integers[i] as f32 * (scales[i] * scale);
        }
        sums
    }

    #[inline(always)]
    unsafe fn store(sums: [f32; 8], to: *mut f32) {
        // SAFETY: the caller gives a pointer to eight values.
        unsafe { to.cast::<[f32; 8]>().write_unaligned(sums) }
    }
}
