//! Weights that nobody trained: made when they are loaded, never stored.

use crate::side::{named_rng, norm_start};
use barycenter_model::names::{Parts, is_norm_weight};
use barycenter_model::{ModelConfig, ModelError, RawTensor, TensorDtype, TensorEntry, TensorSource};
use rand::RngExt;
use std::collections::BTreeMap;
use std::ops::Range;

/// Standard deviation of the values (`initializer_range` of `transformers`).
const DEVIATION: f32 = 0.02;

/// All tensors of a model as f32: norms that change nothing, biases of 0, everything else uniform around 0. A seed and a
/// name give the same values wherever and however often they are loaded.
pub struct RandomWeights {
    shapes: BTreeMap<String, Vec<usize>>,
    norm: f32,
    seed: u64,
}

impl RandomWeights {
    /// Those of a model.
    pub fn new(config: &ModelConfig, seed: u64) -> Self {
        let shapes = Parts::all(config).parameters(config).into_iter().map(|parameter| (parameter.name, parameter.shape)).collect();
        Self { shapes, norm: norm_start(config), seed }
    }

    fn shape_of(&self, name: &str) -> Result<&[usize], ModelError> {
        self.shapes.get(name).map(Vec::as_slice).ok_or_else(|| ModelError::MissingTensor { name: name.to_string() })
    }
}

impl TensorSource for RandomWeights {
    fn load(&mut self, name: &str) -> Result<RawTensor, ModelError> {
        let rows = self.shape_of(name)?.first().copied().unwrap_or(1);
        self.load_rows(name, 0..rows)
    }

    fn load_rows(&mut self, name: &str, rows: Range<usize>) -> Result<RawTensor, ModelError> {
        let mut shape = self.shape_of(name)?.to_vec();
        let there = shape.first().copied().unwrap_or(1);
        if rows.start > rows.end || rows.end > there {
            return Err(ModelError::NoSuchRows { name: name.to_string(), start: rows.start, end: rows.end, rows: there });
        }
        let row: usize = shape.get(1..).unwrap_or(&[]).iter().product();
        if let Some(outermost) = shape.first_mut() {
            *outermost = rows.len();
        }
        let mut values = vec![0f32; rows.len() * row];
        if is_norm_weight(name) {
            values.fill(self.norm);
        } else if name.ends_with(".weight") {
            // A uniform number of this bound has the standard deviation.
            let bound = DEVIATION * 3f32.sqrt();
            let mut rng = named_rng(name, self.seed);
            // One step of the generator a value.
            rng.advance((rows.start * row) as u128);
            values.iter_mut().for_each(|value| *value = (2.0 * rng.random::<f32>() - 1.0) * bound);
        }
        Ok(RawTensor::from_f32(&shape, &values))
    }

    fn entry(&self, name: &str) -> Option<TensorEntry> {
        let shape = self.shapes.get(name)?.clone();
        let end = 4 * shape.iter().product::<usize>() as u64;
        Some(TensorEntry { dtype: TensorDtype::F32, shape, start: 0, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::Shape;

    #[test]
    fn rows_are_those_of_the_whole_tensor_and_spread_as_they_should() {
        let config = Shape::named("smollm2-135m").expect("it is there").config().expect("it is read");
        let mut weights = RandomWeights::new(&config, 7);
        let name = "model.layers.0.self_attn.k_proj.weight";
        let whole = weights.load(name).expect("it is there").to_f32();
        let rows = weights.load_rows(name, 5..9).expect("they are there").to_f32();
        assert_eq!(rows, whole[5 * 576..9 * 576]);
        let deviation = (whole.iter().map(|x| x * x).sum::<f32>() / whole.len() as f32).sqrt();
        assert!((deviation / DEVIATION - 1.0).abs() < 0.02, "{deviation}");
        assert!(weights.load("model.norm.weight").expect("it is there").to_f32().iter().all(|&x| x == 1.0));
        assert!(matches!(weights.load_rows(name, 5..999), Err(ModelError::NoSuchRows { .. })));
        assert!(matches!(weights.load("lm_head.weight"), Err(ModelError::MissingTensor { .. })), "the head is tied");
    }
}
