//! The k-quants of `ggml`: super-blocks of 256 elements whose blocks have small integers as scales.

use half::f16;

/// Elements of a super-block.
pub const SUPER_BLOCK: usize = 256;
/// Two f16, 12 bytes of 6-bit scales and minima, 256 nibbles.
pub const Q4_K_BYTES: usize = 2 + 2 + 12 + SUPER_BLOCK / 2;
/// 256 low nibbles, 256 high pairs of bits, 16 scales, an f16.
pub const Q6_K_BYTES: usize = SUPER_BLOCK / 2 + SUPER_BLOCK / 4 + SUPER_BLOCK / 16 + 2;

/// `Q4_K`: 8 blocks of 32, `value = d · scale · nibble − dmin · minimum`.
///
/// Layout: d f16, dmin f16, 12 bytes of packed 6-bit scales and minima, 128 bytes of nibbles; each 32 bytes of those
/// hold one block in their low halves and the next in their high ones.
pub fn dequantise_q4_k(bytes: &[u8]) -> Vec<f32> {
    let mut values = Vec::with_capacity(bytes.len() / Q4_K_BYTES * SUPER_BLOCK);
    for block in bytes.as_chunks::<Q4_K_BYTES>().0 {
        let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
        let d_min = f16::from_le_bytes([block[2], block[3]]).to_f32();
        let (packed, nibbles) = block[4..].split_at(12);
        for (pair, nibbles) in nibbles.chunks_exact(32).enumerate() {
            for (half, shift) in [(0, 0), (1, 4)] {
                let (scale, minimum) = q4_k_scale(packed, 2 * pair + half);
                let (scale, minimum) = (d * f32::from(scale), d_min * f32::from(minimum));
                values.extend(nibbles.iter().map(|byte| scale * f32::from((byte >> shift) & 15) - minimum));
            }
        }
    }
    values
}

/// Scale and minimum of block `j` of 8: the first four lie whole in bytes 0..4 and 4..8; the rest have their low four
/// bits in bytes 8..12 and their upper two in the upper bits of the first eight.
fn q4_k_scale(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        ((packed[j + 4] & 15) | ((packed[j - 4] >> 6) << 4), (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4))
    }
}

/// `Q6_K`: 16 blocks of 16, `value = d · scale · (q − 32)`.
///
/// Layout: 128 bytes of low nibbles, 64 bytes of high pairs of bits, 16 signed scales, d f16. Each half of 128 elements
/// uses 64 and 32 of those bytes; within a half, element `32·part + l` has its nibble in byte `l + 32·(part mod 2)`,
/// low for the first two parts, and its pair of bits in byte `l` at `2·part`.
pub fn dequantise_q6_k(bytes: &[u8]) -> Vec<f32> {
    let mut values = Vec::with_capacity(bytes.len() / Q6_K_BYTES * SUPER_BLOCK);
    for block in bytes.as_chunks::<Q6_K_BYTES>().0 {
        let (low, rest) = block.split_at(128);
        let (high, rest) = rest.split_at(64);
        let (scales, d) = rest.split_at(16);
        let d = f16::from_le_bytes([d[0], d[1]]).to_f32();
        for half in 0..2 {
            let (low, high, scales) = (&low[64 * half..][..64], &high[32 * half..][..32], &scales[8 * half..][..8]);
            for part in 0..4 {
                for l in 0..32 {
                    let nibble = (low[l + 32 * (part % 2)] >> (4 * (part / 2))) & 15;
                    let q = nibble | (((high[l] >> (2 * part)) & 3) << 4);
                    let scale = scales[2 * part + l / 16] as i8;
                    values.push(d * f32::from(scale) * (f32::from(q) - 32.0));
                }
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hand_made_q4_k_block_has_the_values_of_the_format() {
        let mut block = [0u8; Q4_K_BYTES];
        block[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        block[2..4].copy_from_slice(&f16::from_f32(0.25).to_le_bytes());
        // Block 0: scale 3, minimum 5. Block 5: scale 0x2d = 45 (low bits in byte 9, high in byte 1), minimum 0x1e = 30.
        block[4] = 3;
        block[4 + 4] = 5;
        block[4 + 1] = 0b10_000000;
        block[4 + 5] = 0b01_000000;
        block[4 + 9] = 0xd | (0xe << 4);
        block[16] = 7; // element 0 of block 0
        block[16 + 2 * 32 + 9] = 11 << 4; // element 9 of block 5
        let values = dequantise_q4_k(&block);
        assert_eq!(values.len(), 256);
        assert_eq!((values[0], values[1]), (0.5 * 3.0 * 7.0 - 0.25 * 5.0, -0.25 * 5.0));
        assert_eq!((values[5 * 32 + 9], values[5 * 32]), (0.5 * 45.0 * 11.0 - 0.25 * 30.0, -0.25 * 30.0));
        assert_eq!(values[64], 0.0);
    }

    #[test]
    fn a_hand_made_q6_k_block_has_the_values_of_the_format() {
        let mut block = [0u8; Q6_K_BYTES];
        block[208..].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        for (index, scale) in block[192..208].iter_mut().enumerate() {
            *scale = (index as i8 - 8) as u8;
        }
        // Element 128 + 2·32 + 20 (second half, part 2): nibble high of byte 64 + 20, bits 4..6 of byte 32 + 20.
        block[64 + 20] = 9 << 4;
        block[128 + 32 + 20] = 3 << 4;
        let values = dequantise_q6_k(&block);
        // q = 9 + 48 = 57, scale of block 8 + 4 + 1 = 13: 5.
        assert_eq!(values[128 + 64 + 20], 0.5 * 5.0 * (57.0 - 32.0));
        assert_eq!(values[0], 0.5 * -8.0 * -32.0);
        assert_eq!(values[255], 0.5 * 7.0 * -32.0);
    }
}
