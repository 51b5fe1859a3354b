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
    // Halves are little-endian wherever this runs, as entries are.
    const { assert!(cfg!(target_endian = "little")) };
    bytes.extend_from_slice(bytemuck::cast_slice(&halves));
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
    // Packed halves come in pairs.
    let even = (tokens * width).next_multiple_of(2);
    let mut words = vec![0u32; even / 2];
    // Words and halves are little-endian on every platform WebGPU runs on, as entries are.
    const { assert!(cfg!(target_endian = "little")) };
    let rows: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
    let mut rho = Vec::new();
    for (bytes, segment, labels) in entries {
        let (halves, behind) = split(bytes?, segment.len(), width, labels)?;
        rows[2 * segment.start * width..][..halves.len()].copy_from_slice(halves);
        rho.extend(floats(behind));
    }
    let packed = Tensor::from_words(device, &[even], Dtype::F16, &words);
    Some((Tape::computing(device).unpack(&packed).part(0, &[tokens, width]), rho))
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
        let device: Device = std::rc::Rc::new(crate::CpuBackend::default());
        for lengths in [&[3usize, 6][..], &[1, 1, 1], &[4, 2], &[5, 1, 3, 2]] {
            let mut start = 0;
            let mut entries = Vec::new();
            for &len in lengths {
                let values: Vec<f32> = (start..start + len).map(|i| i as f32).collect();
                entries.push((encode(&values, &[]), start..start + len));
                start += len;
            }
            let of_sequences = entries.iter().map(|(bytes, segment)| (Some(&bytes[..]), segment.clone(), 0));
            let (tensor, _) = restore(&device, (start, 1), of_sequences).expect("restores");
            let want: Vec<f32> = (0..start).map(|i| i as f32).collect();
            assert_eq!(pollster::block_on(tensor.read()).expect("reads"), want, "{lengths:?}");
        }
    }
}
