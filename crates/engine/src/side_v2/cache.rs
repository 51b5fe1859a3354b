//! A sample's cache entry of one tap: int8 components of its tokens, a scale for each token, the means of its sentences.
//!
//! An entry is `[tokens, p]` int8, row-major, then `[tokens]` scales in f16, then `[sentences, d]` means in f16, all
//! little-endian: (p + 2) bytes a token and 2 d bytes a sentence.

use crate::cache_entry::{for_integer_rows, integers_len_bytes, push_integers};
use half::f16;

/// Length of an entry, bytes.
pub fn len_bytes(tokens: usize, components: usize, means: usize) -> usize {
    integers_len_bytes(tokens, components) + 2 * means
}

/// Encodes `z: [tokens, components]` and the means of the sentences, one behind the other.
pub fn encode(z: &[f32], components: usize, means: &[f32]) -> Vec<u8> {
    let tokens = z.len() / components;
    let mut bytes = Vec::with_capacity(len_bytes(tokens, components, means.len()));
    push_integers(&mut bytes, z, components);
    bytes.extend(means.iter().flat_map(|mean| f16::from_f32(*mean).to_le_bytes()));
    bytes
}

/// Decodes an entry into `z: [tokens, components]` and `means`, which have the lengths that are expected. `None` if the
/// entry has another length.
pub fn decode(bytes: &[u8], components: usize, z: &mut [f32], means: &mut [f32]) -> Option<()> {
    let tokens = z.len() / components;
    if bytes.len() != len_bytes(tokens, components, means.len()) {
        return None;
    }
    let (integers, halves) = bytes.split_at(integers_len_bytes(tokens, components));
    for_integer_rows(integers, components, |at, row| z[at * components..(at + 1) * components].copy_from_slice(row));
    means.iter_mut().zip(halves.as_chunks().0).for_each(|(mean, half)| *mean = f16::from_le_bytes(*half).to_f32());
    Some(())
}

/// g of each token of two sentences: the largest cosine of its `z` with a token's of the other sentence.
/// `first` and `second`: `[tokens, components]`; `out` gets one value a token, those of the first sentence before.
pub fn alignment(first: &[f32], second: &[f32], components: usize, out: &mut [f32]) {
    let unit = |z: &[f32]| {
        let mut unit = z.to_vec();
        for row in unit.chunks_exact_mut(components) {
            let norm = row.iter().map(|value| value * value).sum::<f32>().sqrt().max(1e-12);
            row.iter_mut().for_each(|value| *value /= norm);
        }
        unit
    };
    let (first, second) = (unit(first), unit(second));
    let (of_first, of_second) = out.split_at_mut(first.len() / components);
    of_second.fill(-1.0);
    for (x, best) in first.chunks_exact(components).zip(of_first) {
        *best = -1.0;
        for (y, other) in second.chunks_exact(components).zip(of_second.iter_mut()) {
            let cosine = dot(x, y);
            *best = best.max(cosine);
            *other = other.max(cosine);
        }
    }
}

/// In eight sums, which the compiler turns into vectors.
fn dot(x: &[f32], y: &[f32]) -> f32 {
    let (x, x_rest) = x.as_chunks::<8>();
    let (y, y_rest) = y.as_chunks::<8>();
    let mut sums = [0f32; 8];
    for (x, y) in x.iter().zip(y) {
        for i in 0..8 {
            sums[i] += x[i] * y[i];
        }
    }
    sums.iter().sum::<f32>() + x_rest.iter().zip(y_rest).map(|(x, y)| x * y).sum::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_keeps_seven_bits_of_the_largest_component() {
        let z: Vec<f32> = (0..15).map(|i| (i as f32 * 1.7).sin() * if i < 5 { 3.0 } else { 0.01 }).collect();
        let z = [z, vec![0.0; 5]].concat();
        let means = [0.5, -1.25];
        let bytes = encode(&z, 5, &means);
        assert_eq!(bytes.len(), len_bytes(4, 5, 2));
        assert_eq!(bytes.len(), 4 * 7 + 4);
        let (mut back, mut back_means) = (vec![9.0; 20], [0.0; 2]);
        decode(&bytes, 5, &mut back, &mut back_means).expect("of the right length");
        assert_eq!(back_means, means);
        for (row, back) in z.chunks(5).zip(back.chunks(5)) {
            let most = row.iter().fold(0f32, |most, value| most.max(value.abs()));
            for (x, y) in row.iter().zip(back) {
                assert!((x - y).abs() <= most * 0.504 / 127.0, "{x} {y} of at most {most}");
            }
        }
        assert!(decode(&bytes[1..], 5, &mut back, &mut back_means).is_none());
    }

    #[test]
    fn tokens_know_their_best_match() {
        let first = [1.0, 0.0, 0.0, 2.0];
        let second = [3.0, 3.0, -1.0, 0.0, 0.0, -5.0];
        let mut g = [0.0; 5];
        alignment(&first, &second, 2, &mut g);
        let half = 0.5f32.sqrt();
        for (g, expected) in g.iter().zip([half, half, half, 0.0, 0.0]) {
            assert!((g - expected).abs() < 1e-6, "{g} {expected}");
        }
    }
}
