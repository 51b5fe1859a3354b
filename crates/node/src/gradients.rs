//! Gradients as they travel in an AllReduce.
//!
//! f16: blocks of [`GRADIENT_BLOCK`] values (the last may be shorter), each `f32 scale · f16 values`, little-endian. A block
//! is scaled so that its largest magnitude becomes 2¹⁵: gradients of small layers do not vanish beside those of large ones.

use crate::blobs::{float_bytes, floats};
use barycenter_protocol::control::{GRADIENT_BLOCK, GradientType};
use bytes::Bytes;
use half::f16;

/// What the largest magnitude of a block becomes; the largest f16 is just below twice as much.
const LARGEST: f32 = 32_768.0;

/// Bytes for the wire.
pub(crate) fn encode(values: &[f32], kind: GradientType) -> Bytes {
    if kind == GradientType::F32 {
        return float_bytes(values);
    }
    let mut bytes = Vec::with_capacity(kind.wire_bytes(values.len() as u64) as usize);
    for block in values.chunks(GRADIENT_BLOCK) {
        // A value that is not finite makes the scale NaN, and with it the block: nobody trains on it unseen.
        let is_finite = block.iter().all(|v| v.is_finite());
        let scale = if is_finite { block.iter().fold(0.0, |most: f32, v| most.max(v.abs())) / LARGEST } else { f32::NAN };
        let scale = if scale < f32::MIN_POSITIVE { 1.0 } else { scale };
        bytes.extend(scale.to_le_bytes());
        bytes.extend(block.iter().flat_map(|v| f16::from_f32(v / scale).to_le_bytes()));
    }
    bytes.into()
}

/// Values of bytes from the wire; `None` if these cannot be their bytes.
pub(crate) fn decode(bytes: &[u8], kind: GradientType) -> Option<Vec<f32>> {
    if kind == GradientType::F32 {
        return floats(bytes);
    }
    let mut values = Vec::with_capacity(bytes.len() / 2);
    for block in bytes.chunks(4 + 2 * GRADIENT_BLOCK) {
        let (scale, halves) = block.split_first_chunk::<4>()?;
        let scale = f32::from_le_bytes(*scale);
        let (pairs, rest) = halves.as_chunks::<2>();
        if pairs.is_empty() || !rest.is_empty() {
            return None;
        }
        values.extend(pairs.iter().map(|pair| f16::from_le_bytes(*pair).to_f32() * scale));
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(values: &[f32], kind: GradientType) -> Vec<f32> {
        let bytes = encode(values, kind);
        assert_eq!(bytes.len() as u64, kind.wire_bytes(values.len() as u64));
        decode(&bytes, kind).expect("what was encoded is decoded")
    }

    #[test]
    fn single_precision_travels_unchanged() {
        let values = [1.0e-30, -3.5, f32::MAX];
        assert_eq!(there_and_back(&values, GradientType::F32), values);
    }

    #[test]
    fn half_precision_keeps_eleven_bits_over_nine_decades() {
        // Powers of ten from 1e-8 to 10 in one block, a second block of small values, an odd length.
        let values: Vec<f32> = (0..GRADIENT_BLOCK + 77).map(|i| if i < GRADIENT_BLOCK { 0.7 * 10f32.powi(1 - (i % 9) as i32) } else { 3e-21 * (i as f32).sin() }).collect();
        for (value, back) in values.iter().zip(there_and_back(&values, GradientType::F16)) {
            assert!((value - back).abs() <= value.abs() / 2048.0, "{value} came back as {back}");
        }
    }

    #[test]
    fn zeros_stay_zeros_and_what_is_not_finite_is_seen() {
        assert_eq!(there_and_back(&[0.0; 300], GradientType::F16), [0.0; 300]);
        assert!(there_and_back(&[1.0, f32::INFINITY, 2.0], GradientType::F16).iter().all(|v| v.is_nan()));
    }

    #[test]
    fn bytes_that_cannot_be_gradients_are_refused() {
        for length in [1, 3, 4, 5, 4 + 2 * GRADIENT_BLOCK + 4] {
            assert_eq!(decode(&vec![0; length], GradientType::F16), None, "{length} bytes");
        }
        assert_eq!(decode(&[], GradientType::F16), Some(Vec::new()));
    }
}
