//! How a tap of one sample is stored: scaled rows, real tokens only (docs/METHOD.md).
//!
//! An entry holds `[tokens, width]` values, row-major, little-endian, as a [`CacheDtype`] says. The entry of the last tap is
//! followed by ρ(b_L) of the labelled positions, f32, in the order of the labels.

use crate::op::Dtype;
use crate::tape::Tape;
use crate::tensor::{Device, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::ops::Range;

/// Number format of cached rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheDtype {
    /// As computed.
    F32,
    /// Half precision.
    #[default]
    F16,
    /// 8-bit integers of each row, the largest magnitude being 127; behind them the rows' scales in half precision.
    Int8,
}

impl CacheDtype {
    /// Length of an entry with `labels` values of ρ behind it, bytes.
    pub fn len_bytes(self, tokens: usize, width: usize, labels: usize) -> usize {
        let row = match self {
            Self::F32 => 4 * width,
            Self::F16 => 2 * width,
            Self::Int8 => integers_len_bytes(1, width),
        };
        tokens * row + 4 * labels
    }

    /// Encodes rows (`values`: tokens · width) and, for the last tap, `rho` of the labelled positions (else empty).
    pub fn encode(self, values: &[f32], width: usize, rho: &[f32]) -> Vec<u8> {
        // Numbers are little-endian wherever this runs, as entries are.
        const { assert!(cfg!(target_endian = "little")) };
        let mut bytes = Vec::with_capacity(self.len_bytes(values.len() / width.max(1), width, rho.len()));
        match self {
            Self::F32 => bytes.extend_from_slice(bytemuck::cast_slice(values)),
            Self::F16 => {
                let mut halves = vec![f16::ZERO; values.len()];
                halves.convert_from_f32_slice(values);
                bytes.extend_from_slice(bytemuck::cast_slice(&halves));
            }
            Self::Int8 => push_integers(&mut bytes, values, width),
        }
        bytes.extend(rho.iter().flat_map(|rho| rho.to_le_bytes()));
        bytes
    }

    /// A tap of several sequences `[tokens, width]` on the device, and the values of rho behind its entries, in order. For
    /// each sequence: its entry, the rows it stands at, and how many values of rho are wanted. Integers are widened to half
    /// precision here, halves on the device. `None` if an entry is missing or has another length.
    pub fn restore<'a>(
        self,
        device: &Device,
        (tokens, width): (usize, usize),
        entries: impl IntoIterator<Item = (Option<&'a [u8]>, Range<usize>, usize)>,
    ) -> Option<(Tensor, Vec<f32>)> {
        let bytes_each = if self == Self::F32 { 4 } else { 2 };
        // Packed halves come in pairs.
        let mut words = vec![0u32; (tokens * width * bytes_each).div_ceil(4)];
        let rows: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        let mut rho = Vec::new();
        for (bytes, segment, labels) in entries {
            let bytes = bytes.filter(|bytes| bytes.len() == self.len_bytes(segment.len(), width, labels))?;
            let (stored, behind) = bytes.split_at(bytes.len() - 4 * labels);
            let target = &mut rows[bytes_each * segment.start * width..bytes_each * segment.end * width];
            match self {
                Self::Int8 => widen(stored, width, target),
                Self::F32 | Self::F16 => target.copy_from_slice(stored),
            }
            rho.extend(behind.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)));
        }
        let tensor = match self {
            Self::F32 => Tensor::from_words(device, &[tokens, width], Dtype::F32, &words),
            _ => {
                let packed = Tensor::from_words(device, &[2 * words.len()], Dtype::F16, &words);
                Tape::computing(device).unpack(&packed).part(0, &[tokens, width])
            }
        };
        Some((tensor, rho))
    }
}

/// Largest integer of [`CacheDtype::Int8`].
const INT8_MAX: f32 = 127.0;

/// The bits of the nearest 8-bit integer, halves to even: added to 1.5 · 2²³ a value stands in the lowest bits of the sum, which
/// vectorises where `round` would call a function.
fn nearest_integer(value: f32) -> u8 {
    (value + 12_582_912.0).to_bits() as u8
}

/// Bytes of `rows` rows of 8-bit integers with their scales.
pub(crate) fn integers_len_bytes(rows: usize, width: usize) -> usize {
    rows * (width + 2)
}

/// Appends `values: [rows, width]` as 8-bit integers, row-major, and behind them the rows' scales in half precision.
pub(crate) fn push_integers(bytes: &mut Vec<u8>, values: &[f32], width: usize) {
    let mut scales = Vec::with_capacity(2 * values.len() / width.max(1));
    for row in values.chunks(width.max(1)) {
        let largest = row.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let scale = f16::from_f32(largest / INT8_MAX);
        let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        bytes.extend(row.iter().map(|value| nearest_integer((value * inverse).clamp(-INT8_MAX, INT8_MAX))));
        scales.extend(scale.to_le_bytes());
    }
    bytes.extend(scales);
}

/// What [`push_integers`] wrote, row after row: `put` gets each row's number and its values.
pub(crate) fn for_integer_rows(stored: &[u8], width: usize, mut put: impl FnMut(usize, &[f32])) {
    let rows = stored.len() / integers_len_bytes(1, width);
    let (integers, scales) = stored.split_at(rows * width);
    let mut row = vec![0f32; width];
    for (at, (integers, scale)) in integers.chunks(width.max(1)).zip(scales.as_chunks().0).enumerate() {
        let scale = f16::from_le_bytes(*scale).to_f32();
        row.iter_mut().zip(integers).for_each(|(value, integer)| *value = f32::from(*integer as i8) * scale);
        put(at, &row);
    }
}

/// Rows of integers and their scales, as halves.
fn widen(stored: &[u8], width: usize, target: &mut [u8]) {
    let mut halves = vec![f16::ZERO; width];
    for_integer_rows(stored, width, |at, row| {
        halves.convert_from_f32_slice(row);
        let target = &mut target[2 * at * width..2 * (at + 1) * width];
        target.as_chunks_mut().0.iter_mut().zip(&halves).for_each(|(bytes, half)| *bytes = half.to_le_bytes());
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_what_their_format_can_and_rho_exactly() {
        let values: Vec<f32> = (0..12).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let rho = [1.0e6, 0.1];
        let device: Device = std::rc::Rc::new(crate::CpuBackend::default());
        let largest = |at: usize| values[at / 4 * 4..at / 4 * 4 + 4].iter().fold(0f32, |most, value| most.max(value.abs()));
        for dtype in [CacheDtype::F32, CacheDtype::F16, CacheDtype::Int8] {
            let bytes = dtype.encode(&values, 4, &rho);
            assert_eq!(bytes.len(), dtype.len_bytes(3, 4, 2));
            let (back, back_rho) = dtype.restore(&device, (3, 4), [(Some(&bytes[..]), 0..3, 2)]).expect("restores");
            let back = pollster::block_on(back.read()).expect("reads");
            assert_eq!(back_rho, rho);
            for (at, (x, y)) in values.iter().zip(&back).enumerate() {
                let allowed = match dtype {
                    CacheDtype::F32 => 0.0,
                    CacheDtype::F16 => x.abs() * f32::powi(2.0, -11),
                    // Half a step, what the scale lost in half precision, and the product's rounding to it.
                    CacheDtype::Int8 => largest(at) * (0.5 / 127.0 + 3.0 * f32::powi(2.0, -11)),
                };
                assert!((x - y).abs() <= allowed, "{dtype:?}: {x} {y}");
            }
            assert!(dtype.restore(&device, (3, 4), [(Some(&bytes[1..]), 0..3, 2)]).is_none());
            assert!(dtype.restore(&device, (3, 4), [(None, 0..3, 2)]).is_none());
        }
        for (value, integer) in [(0.0, 0i8), (0.5, 0), (1.5, 2), (-0.6, -1), (126.5, 126), (-127.0, -127), (127.0, 127)] {
            assert_eq!(nearest_integer(value) as i8, integer, "{value}");
        }
        let zeros = CacheDtype::Int8.encode(&[0.0; 4], 2, &[]);
        assert_eq!(zeros, [0; 8], "a row of zeros has no scale");
    }

    #[test]
    fn rows_of_odd_entries_lie_behind_one_another() {
        let device: Device = std::rc::Rc::new(crate::CpuBackend::default());
        for (lengths, dtype) in [&[3usize, 6][..], &[1, 1, 1], &[4, 2], &[5, 1, 3, 2]].into_iter().flat_map(|lengths| [(lengths, CacheDtype::F32), (lengths, CacheDtype::F16)]) {
            let mut start = 0;
            let mut entries = Vec::new();
            for &len in lengths {
                let values: Vec<f32> = (start..start + len).map(|i| i as f32).collect();
                entries.push((dtype.encode(&values, 1, &[]), start..start + len));
                start += len;
            }
            let of_sequences = entries.iter().map(|(bytes, segment)| (Some(&bytes[..]), segment.clone(), 0));
            let (tensor, _) = dtype.restore(&device, (start, 1), of_sequences).expect("restores");
            let want: Vec<f32> = (0..start).map(|i| i as f32).collect();
            assert_eq!(pollster::block_on(tensor.read()).expect("reads"), want, "{lengths:?}");
        }
    }
}
