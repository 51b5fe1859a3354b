//! How a tap of one sample is stored: scaled rows in half precision, real tokens only (DESIGN §5).
//!
//! An entry is `[tokens, width]` f16, row-major, little-endian. The entry of the last tap is followed by ρ(b_L) of the
//! labelled positions, f32, in the order of the labels.

use half::f16;
use half::slice::HalfFloatSliceExt;

/// Encodes rows (`values`: tokens · width) and, for the last tap, `rho` of the labelled positions (else empty).
pub fn encode(values: &[f32], rho: &[f32]) -> Vec<u8> {
    let mut halves = vec![f16::ZERO; values.len()];
    halves.convert_from_f32_slice(values);
    let mut bytes = Vec::with_capacity(2 * values.len() + 4 * rho.len());
    bytes.extend(halves.iter().flat_map(|h| h.to_le_bytes()));
    bytes.extend(rho.iter().flat_map(|r| r.to_le_bytes()));
    bytes
}

/// Decodes an entry of `tokens` rows of `width` with `labels` values of rho behind them; `None` if the length is another.
pub fn decode(bytes: &[u8], tokens: usize, width: usize, labels: usize) -> Option<(Vec<f32>, Vec<f32>)> {
    let split = 2 * tokens * width;
    if bytes.len() != split + 4 * labels {
        return None;
    }
    let halves: Vec<f16> = bytes[..split].chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]])).collect();
    let mut values = vec![0.0; halves.len()];
    halves.convert_to_f32_slice(&mut values);
    let rho = bytes[split..].chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Some((values, rho))
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
        let (back, back_rho) = decode(&bytes, 3, 4, 2).expect("decodes");
        assert_eq!(back_rho, rho);
        for (x, y) in values.iter().zip(&back) {
            assert!((x - y).abs() <= x.abs() * f32::powi(2.0, -11), "{x} {y}");
        }
        assert!(decode(&bytes[1..], 3, 4, 2).is_none());
    }
}
