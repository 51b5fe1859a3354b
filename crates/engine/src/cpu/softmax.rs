//! Cross-entropy over chunks of the vocabulary, and the greedy choice.

use super::simd::{self, LANES, exp, kernel, lane_sum, largest};

pub(super) fn softmax_stats(logits: &[f32], labels: &[u32], max: &mut [f32], sum: &mut [f32], target: &mut [f32], cols: usize, first_class: u32) {
    let rows = simd::map_tasks(max.len(), logits.len(), |row| row_stats(&logits[row * cols..][..cols], max[row], sum[row]));
    for (row, (new_max, new_sum)) in rows.into_iter().enumerate() {
        (max[row], sum[row]) = (new_max, new_sum);
        let class = labels[row].wrapping_sub(first_class) as usize;
        if class < cols {
            target[row] = logits[row * cols + class];
        }
    }
}

kernel! {
    fn row_stats(logits: &[f32], old_max: f32, old_sum: f32) -> (f32, f32) {
        let here = largest(logits);
        let max = if here > old_max { here } else { old_max };
        let mut lanes = [0f32; LANES];
        let (chunks, rest) = logits.as_chunks::<LANES>();
        for chunk in chunks {
            for i in 0..LANES {
                lanes[i] += exp(chunk[i] - max);
            }
        }
        let rest: f32 = rest.iter().map(|x| exp(x - max)).sum();
        (max, old_sum * exp(old_max - max) + lane_sum(lanes) + rest)
    }
}

pub(super) fn softmax_grad(logits: &mut [f32], labels: &[u32], lse: &[f32], cols: usize, first_class: u32, factor: f32) {
    simd::for_row_chunks(logits, cols, |first, logits| {
        for (index, row) in logits.chunks_exact_mut(cols).enumerate() {
            row_grad(row, lse[first + index], factor);
            let class = labels[first + index].wrapping_sub(first_class) as usize;
            if class < cols {
                row[class] -= factor;
            }
        }
    });
}

kernel! {
    fn row_grad(logits: &mut [f32], lse: f32, factor: f32) {
        for x in logits {
            *x = exp(*x - lse) * factor;
        }
    }
}

pub(super) fn softmax_loss(max: &[f32], sum: &[f32], target: &[f32], lse: &mut [f32], loss: &mut [f32]) {
    for row in 0..lse.len() {
        lse[row] = max[row] + sum[row].ln();
        loss[row] = lse[row] - target[row];
    }
}

pub(super) fn arg_max(logits: &[f32], best_value: &mut [f32], best_index: &mut [u32], cols: usize, first_class: u32) {
    let found = simd::map_tasks(best_value.len(), logits.len(), |row| row_arg_max(&logits[row * cols..][..cols]));
    for (row, (value, index)) in found.into_iter().enumerate() {
        if value > best_value[row] {
            (best_value[row], best_index[row]) = (value, first_class + index as u32);
        }
    }
}

kernel! {
    fn row_arg_max(logits: &[f32]) -> (f32, usize) {
        let value = largest(logits);
        (value, logits.iter().position(|&x| x == value).unwrap_or(0))
    }
}
