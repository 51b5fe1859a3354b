//! How layers know positions: rotary frequencies, and T5's bias by distance.

use crate::tape::{Tape, Var};
use crate::tensor::{Device, Tensor};
use barycenter_model::{ModelConfig, Positions, RopeConfig};

/// The rotary frequencies of a stack, on the device.
pub struct Rotary {
    whole: Option<Tensor>,
    /// Of layers with a sliding window, where theirs are others.
    local: Option<Tensor>,
}

impl Rotary {
    /// Those of the config; none where the stack does not rotate.
    pub fn new(device: &Device, config: &ModelConfig) -> Self {
        let upload = |rope: &RopeConfig| {
            let frequencies = rope.inv_freq(config.head_dim);
            Tensor::from_f32(device, &[frequencies.len()], &frequencies)
        };
        match &config.positions {
            Positions::Rotary { rope, local } => Self { whole: Some(upload(rope)), local: local.as_ref().map(upload) },
            _ => Self { whole: None, local: None },
        }
    }

    /// The frequencies of a layer (from 0) of the model.
    pub fn of(&self, config: &ModelConfig, layer: usize) -> Option<&Tensor> {
        self.local.as_ref().filter(|_| config.window(layer) > 0).or(self.whole.as_ref())
    }
}

/// The bias of each distance `−(longest − 1) ..= longest − 1` (key position − query position) and head, from the table
/// `[buckets, heads]`; the row of distance 0 is `longest − 1`.
pub(crate) fn bias_by_distance(tape: &Tape, config: &ModelConfig, table: &Var, longest: usize) -> Option<(Var, u32)> {
    let Positions::Relative { buckets, max_distance } = config.positions else { return None };
    let zero = longest.max(1) as i64 - 1;
    let ids: Vec<u32> = (-zero..=zero).map(|distance| bucket(distance, !config.causal, buckets, max_distance) as u32).collect();
    let ids = Tensor::from_u32(tape.device(), &ids);
    Some((tape.embed(&[(table.clone(), 0)], &ids), zero as u32))
}

/// T5's bucket of a distance: small distances have one each, larger ones share by the logarithm. In an encoder one
/// half of the buckets is for keys behind the query; in a decoder those are never seen.
fn bucket(distance: i64, both_sides: bool, buckets: usize, max_distance: usize) -> usize {
    let (buckets, first) = match both_sides {
        true => (buckets / 2, if distance > 0 { buckets / 2 } else { 0 }),
        false => (buckets, 0),
    };
    let distance = if both_sides { distance.unsigned_abs() } else { (-distance).max(0) as u64 } as usize;
    let exact = buckets / 2;
    if distance < exact {
        return first + distance;
    }
    // In f32, as torch does it, so that distances on the border of two buckets fall on the same side.
    let part = (distance as f32 / exact as f32).ln() / (max_distance as f64 / exact as f64).ln() as f32;
    first + (exact + (part * (buckets - exact) as f32) as usize).min(buckets - 1)
}

#[cfg(test)]
mod tests {
    use super::bucket;

    /// `T5Attention._relative_position_bucket` of transformers, for distances −20 … 20.
    #[test]
    fn buckets_are_those_of_transformers() {
        let all = |both_sides, buckets, max_distance| -> Vec<usize> {
            (-20..=20).map(|distance| bucket(distance, both_sides, buckets, max_distance)).collect()
        };
        let encoder = [
            6, 6, 6, 6, 6, 6, 6, 6, 5, 5, 5, 5, 5, 4, 4, 4, 4, 3, 2, 1, 0, 9, 10, 11, 12, 12, 12, 12, 13, 13, 13, 13, 13, 14, 14, 14, 14, 14,
            14, 14, 14,
        ];
        assert_eq!(all(true, 16, 40), encoder);
        let before = [12, 12, 12, 11, 11, 11, 10, 10, 10, 9, 9, 8, 8, 7, 6, 5, 4, 3, 2, 1, 0];
        assert_eq!(all(false, 16, 40), [before.to_vec(), vec![0; 20]].concat());
    }
}
