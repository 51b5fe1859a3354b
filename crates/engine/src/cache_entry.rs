//! How a tap of one sample is stored: scaled rows in half precision, real tokens only (DESIGN §5).
//!
//! An entry is `[tokens, width]` f16, row-major, little-endian. The entry of the last tap is followed by ρ(b_L) of the
//! labelled positions, f32, in the order of the labels.

use crate::op::Dtype;
use crate::tape::Tape;
use crate::tensor::{Device, Tensor};
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::ops::Range;

/// Encodes rows (`values`: tokens · width) and, for the last tap, `rho` of the labelled positions (else empty).
pub fn encode(values: &[f32], rho: &[f32]) -> Vec<u8> {
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    let mut bytes = Vec::with_capacity(2 * values.len() + 4 * rho.len());
    bytes.extend(halves.iter().flat_map(|h| h.to_le_bytes()));
    bytes.extend(rho.iter().flat_map(|r| r.to_le_bytes()));
    bytes
}

/// The halves of an entry of `tokens` rows of `width`, and the `labels` values of rho behind them, both as stored; `None`
/// if the length is another.
fn split(bytes: &[u8], tokens: usize, width: usize, labels: usize) -> Option<(&[u8], &[u8])> {
    (bytes.len() == len_bytes(tokens, width, labels)).then(|| bytes.split_at(2 * tokens * width))
}

/// Stored f32 values.
fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk))
}

/// A tap of several sequences `[tokens, width]` on the device, widened there, and the values of rho behind its entries, in
/// order. For each sequence: its entry, the rows it stands at, and how many values of rho are wanted. `None` if an entry is
/// missing or has another length.
pub fn restore<'a>(
    device: &Device,
    (tokens, width): (usize, usize),
    entries: impl IntoIterator<Item = (Option<&'a [u8]>, Range<usize>, usize)>,
) -> Option<(Tensor, Vec<f32>)> {
    let mut rows = Rows::new(tokens * width);
    let mut rho = Vec::new();
    for (bytes, segment, labels) in entries {
        let (halves, behind) = split(bytes?, segment.len(), width, labels)?;
        rows.put(segment.start * width, halves);
        rho.extend(floats(behind));
    }
    // Packed halves come in pairs.
    let packed = Tensor::from_words(device, &[(tokens * width).next_multiple_of(2)], Dtype::F16, &rows.words);
    Some((Tape::computing(device).unpack(&packed).part(0, &[tokens, width]), rho))
}

/// Rows of several entries behind one another, as a device takes packed halves: two a word, the lower index low.
struct Rows {
    words: Vec<u32>,
}

impl Rows {
    /// Room for so many values, all 0.
    fn new(values: usize) -> Self {
        Self { words: vec![0; values.div_ceil(2)] }
    }

    /// Puts stored halves where element `first` is.
    fn put(&mut self, first: usize, halves: &[u8]) {
        // Words and halves are little-endian on every platform WebGPU runs on, as entries are.
        const { assert!(cfg!(target_endian = "little")) };
        bytemuck::cast_slice_mut::<u32, u8>(&mut self.words)[2 * first..][..halves.len()].copy_from_slice(halves);
    }
}

/// Length of an entry, bytes.
pub fn len_bytes(tokens: usize, width: usize, labels: usize) -> usize {
    2 * tokens * width + 4 * labels
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_keep_eleven_bits_and_rho_exactly() {
        let values: Vec<f32> = (0..12).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let rho = [1.0e6, 0.1];
        let bytes = encode(&values, &rho);
        assert_eq!(bytes.len(), len_bytes(3, 4, 2));
        let device: Device = std::rc::Rc::new(crate::CpuBackend::default());
        let (back, back_rho) = restore(&device, (3, 4), [(Some(&bytes[..]), 0..3, 2)]).expect("restores");
        let back = pollster::block_on(back.read()).expect("reads");
        assert_eq!(back_rho, rho);
        for (x, y) in values.iter().zip(&back) {
            assert!((x - y).abs() <= x.abs() * f32::powi(2.0, -11), "{x} {y}");
        }
        assert!(restore(&device, (3, 4), [(Some(&bytes[1..]), 0..3, 2)]).is_none());
        assert!(restore(&device, (3, 4), [(None, 0..3, 2)]).is_none());
    }

    #[test]
    fn rows_of_odd_entries_lie_behind_one_another() {
        let mut rows = Rows::new(9);
        for (first, values) in [(0, &[1.0f32, 2.0, 3.0][..]), (3, &[4.0, 5.0, 6.0, 7.0, 8.0, 9.0])] {
            let bytes = encode(values, &[]);
            let (halves, _) = split(&bytes, values.len(), 1, 0).expect("splits");
            rows.put(first, halves);
        }
        let halves: &[f16] = bytemuck::cast_slice(&rows.words);
        assert_eq!(halves.iter().map(|half| half.to_f32()).collect::<Vec<_>>(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 0.0]);
    }
}
