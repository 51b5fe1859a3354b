//! Weights in blocks of 32 neighbours with one f16 scale: int8 (GGUF's `Q8_0`) and int4 (GGUF's `Q4_0`).
//!
//! A block is stored as `scale: f16` and its integers: 32 signed bytes, `value = scale · q`; or 16 bytes of two nibbles
//! (byte j has element j in its low and element j + 16 in its high half), `value = scale · (nibble − 8)`.

use half::f16;

/// Elements of a block.
pub const BLOCK: usize = 32;
/// Bytes of an int8 block.
pub const Q8_BYTES: usize = 2 + BLOCK;
/// Bytes of an int4 block.
pub const Q4_BYTES: usize = 2 + BLOCK / 2;

/// What the value of largest magnitude of an int4 block may become. −8 is `Q4_0`'s own choice; further out that value is
/// cut in favour of the other 31. The one with the least squared error is taken: 4 % less error on normal values, and
/// more candidates gain no more.
const Q4_PEAKS: [f32; 4] = [-8.0, -8.3, -8.6, -9.0];

/// Appends int8 blocks of `values` (a multiple of 32): the scale makes the largest magnitude 127.
pub fn quantise_q8(values: &[f32], out: &mut Vec<u8>) {
    for block in values.as_chunks::<BLOCK>().0 {
        let peak = block.iter().fold(0f32, |peak, x| peak.max(x.abs()));
        let scale = f16::from_f32(peak / 127.0);
        out.extend(scale.to_le_bytes());
        let inverse = inverse(scale);
        out.extend(block.map(|x| (x * inverse).round().clamp(-127.0, 127.0) as i8 as u8));
    }
}

/// Appends int4 blocks of `values` (a multiple of 32).
pub fn quantise_q4(values: &[f32], out: &mut Vec<u8>) {
    for block in values.as_chunks::<BLOCK>().0 {
        let peak = block.iter().fold(0f32, |peak, x| if x.abs() > peak.abs() { *x } else { peak });
        let (_, scale, nibbles) = Q4_PEAKS
            .map(|becomes| q4_block(block, f16::from_f32(peak / becomes)))
            .into_iter()
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .expect("there are several candidates");
        out.extend(scale.to_le_bytes());
        out.extend((0..BLOCK / 2).map(|j| nibbles[j] | (nibbles[j + BLOCK / 2] << 4)));
    }
}

/// (squared error, scale, nibbles) of a block.
fn q4_block(block: &[f32; BLOCK], scale: f16) -> (f32, f16, [u8; BLOCK]) {
    let inverse = inverse(scale);
    let nibbles = block.map(|x| (x * inverse + 8.0).round().clamp(0.0, 15.0) as u8);
    let scale_f32 = scale.to_f32();
    let error = block.iter().zip(nibbles).map(|(x, q)| (x - scale_f32 * (f32::from(q) - 8.0)).powi(2)).sum();
    (error, scale, nibbles)
}

fn inverse(scale: f16) -> f32 {
    if scale == f16::ZERO || scale == f16::NEG_ZERO { 0.0 } else { 1.0 / scale.to_f32() }
}

/// The values of int8 blocks.
pub fn dequantise_q8(bytes: &[u8]) -> Vec<f32> {
    let mut values = Vec::with_capacity(bytes.len() / Q8_BYTES * BLOCK);
    for block in bytes.as_chunks::<Q8_BYTES>().0 {
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        values.extend(block[2..].iter().map(|&q| scale * f32::from(q as i8)));
    }
    values
}

/// The values of int4 blocks.
pub fn dequantise_q4(bytes: &[u8]) -> Vec<f32> {
    let mut values = Vec::with_capacity(bytes.len() / Q4_BYTES * BLOCK);
    for block in bytes.as_chunks::<Q4_BYTES>().0 {
        let scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let value = |nibble: u8| scale * (f32::from(nibble) - 8.0);
        values.extend(block[2..].iter().map(|byte| value(byte & 15)));
        values.extend(block[2..].iter().map(|byte| value(byte >> 4)));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{RngExt, SeedableRng};

    fn values(seed: u64, blocks: usize) -> Vec<f32> {
        let mut rng = rand_pcg::Pcg64::seed_from_u64(seed);
        (0..blocks * BLOCK).map(|_| (0..4).map(|_| rng.random::<f32>() - 0.5).sum::<f32>() * 0.05).collect()
    }

    fn relative_error(a: &[f32], b: &[f32]) -> f32 {
        let differences: f32 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
        (differences / a.iter().map(|a| a * a).sum::<f32>()).sqrt()
    }

    #[test]
    fn int8_is_within_half_a_step_of_every_value() {
        let values = values(1, 40);
        let mut bytes = Vec::new();
        quantise_q8(&values, &mut bytes);
        assert_eq!(bytes.len(), 40 * Q8_BYTES);
        for ((values, back), bytes) in values.chunks(BLOCK).zip(dequantise_q8(&bytes).chunks(BLOCK)).zip(bytes.chunks(Q8_BYTES)) {
            let step = f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
            // The largest value may be cut by the rounding of the scale to f16: 127 · 2⁻¹¹ of a step.
            assert!(values.iter().zip(back).all(|(a, b)| (a - b).abs() <= step * 0.57), "{values:?} {back:?}");
        }
    }

    #[test]
    fn int4_is_closer_than_the_plain_rule() {
        let values = values(2, 200);
        let mut bytes = Vec::new();
        quantise_q4(&values, &mut bytes);
        let ours = relative_error(&values, &dequantise_q4(&bytes));
        let mut plain = Vec::new();
        for block in values.as_chunks::<BLOCK>().0 {
            let peak = block.iter().fold(0f32, |peak, x| if x.abs() > peak.abs() { *x } else { peak });
            let (_, scale, nibbles) = q4_block(block, f16::from_f32(peak / -8.0));
            plain.extend(nibbles.map(|q| scale.to_f32() * (f32::from(q) - 8.0)));
        }
        let plain = relative_error(&values, &plain);
        assert!(ours < 0.97 * plain && ours < 0.08, "{ours} against {plain}");
    }

    #[test]
    fn zeros_and_tiny_values_stay_finite() {
        for value in [0.0, 1e-9, -1e-7, 1e-5] {
            let values = [value; BLOCK];
            let (mut q8, mut q4) = (Vec::new(), Vec::new());
            quantise_q8(&values, &mut q8);
            quantise_q4(&values, &mut q4);
            for back in [dequantise_q8(&q8), dequantise_q4(&q4)] {
                assert!(back.iter().all(|x| x.is_finite() && x.abs() <= 2.0 * value.abs()), "{value}: {back:?}");
            }
        }
    }

    #[test]
    fn hand_made_blocks_have_the_values_of_the_format() {
        let mut q8 = f16::from_f32(0.5).to_le_bytes().to_vec();
        q8.extend((0..32u8).map(|j| if j == 3 { (-128i8) as u8 } else { j }));
        let values = dequantise_q8(&q8);
        assert_eq!((values[0], values[3], values[31]), (0.0, -64.0, 15.5));
        let mut q4 = f16::from_f32(-2.0).to_le_bytes().to_vec();
        q4.extend((0..16u8).map(|j| j | ((15 - j) << 4)));
        let values = dequantise_q4(&q4);
        assert_eq!((values[0], values[8], values[15]), (16.0, 0.0, -14.0));
        assert_eq!((values[16], values[31]), (-14.0, 16.0));
    }
}
