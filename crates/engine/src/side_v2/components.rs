//! The principal components of a tap: what of it is kept.

use super::eigen::symmetric_eigen;
use crate::EngineError;
use crate::op::{Layout, Op};
use crate::tape::{Tape, Var, product};
use crate::tensor::Tensor;
use barycenter_model::RawTensor;

/// Sums of a tap over tokens, from which its components follow.
pub struct Moments {
    tokens: u64,
    /// `[d]`.
    sums: Vec<f64>,
    /// `[d, d]`.
    squares: Vec<f64>,
}

/// Mean and scaled principal components of one tap; `z = (x − mean) · basis`.
#[derive(Clone, Debug, PartialEq)]
pub struct Components {
    /// m: `[d]`.
    pub mean: Vec<f32>,
    /// c V: `[d, p]`, row-major; what it gives has unit mean square.
    pub basis: Vec<f32>,
}

impl Moments {
    /// Of no tokens yet; `width` is d.
    pub fn new(width: usize) -> Self {
        Self { tokens: 0, sums: vec![0.0; width], squares: vec![0.0; width * width] }
    }

    /// Adds the rows of a tap `[tokens, d]`: products on its device, their sum in f64.
    pub async fn add(&mut self, tap: &Tensor) -> Result<(), EngineError> {
        let (tokens, width) = (tap.rows(), tap.cols());
        let device = tap.device();
        let (sums, squares) = (Tensor::empty(device, &[width]), Tensor::empty(device, &[width, width]));
        tap.run(Op::ColumnSum { x: tap.slice(), out: sums.slice(), rows: tokens as u32, cols: width as u32, accumulate: false });
        product(tap, tap, &squares, tokens, Layout::Tn, false);
        for (total, part) in [(&mut self.sums, sums), (&mut self.squares, squares)] {
            total.iter_mut().zip(part.read().await?).for_each(|(total, part)| *total += f64::from(part));
        }
        self.tokens += tokens as u64;
        Ok(())
    }

    /// The `count` components of largest variance, scaled so that they have unit mean square together.
    ///
    /// # Errors
    /// If there were fewer tokens than components, or the tap never varies.
    pub fn components(&self, count: usize) -> Result<Components, EngineError> {
        let bad = |text: String| Err(EngineError::BadSideNetwork(text));
        let (width, tokens) = (self.sums.len(), self.tokens as f64);
        if self.tokens <= count as u64 {
            return bad(format!("{} tokens give no {count} principal components: train on more rows, or choose a larger reduction", self.tokens));
        }
        let mean: Vec<f64> = self.sums.iter().map(|sum| sum / tokens).collect();
        let covariance: Vec<f64> = self.squares.iter().enumerate().map(|(at, sum)| sum / tokens - mean[at / width] * mean[at % width]).collect();
        let Some((values, vectors)) = symmetric_eigen(&covariance, width) else {
            return bad("a tap holds what is not a number, so it has no principal components".into());
        };
        let variance = values[..count].iter().sum::<f64>() / count as f64;
        if variance <= 0.0 {
            return bad("a tap is the same for all tokens, so it has no principal components".into());
        }
        let scale = variance.sqrt().recip();
        let basis = (0..width * count).map(|at| (scale * vectors[at % count][at / count]) as f32).collect();
        Ok(Components { mean: mean.into_iter().map(|value| value as f32).collect(), basis })
    }
}

impl Components {
    /// Names and shapes in an adapter's file of what belongs to the `i`-th tap: basis, mean.
    pub fn parameters(i: usize, width: usize, count: usize) -> [(String, Vec<usize>); 2] {
        [(format!("cache.components.{i}"), vec![width, count]), (format!("cache.mean.{i}"), vec![width])]
    }

    /// Takes those of the `i`-th tap from a file.
    pub fn load(i: usize, width: usize, count: usize, find: &mut dyn FnMut(&str) -> Option<RawTensor>) -> Result<Self, EngineError> {
        let mut values = |(name, expected): (String, Vec<usize>)| match find(&name) {
            Some(tensor) if tensor.shape == expected => Ok(tensor.to_f32()),
            _ => Err(EngineError::BadAdapter { name, expected }),
        };
        let [basis, mean] = Self::parameters(i, width, count);
        Ok(Self { basis: values(basis)?, mean: values(mean)? })
    }

    /// The tensors of the `i`-th tap for a file.
    pub fn tensors(&self, i: usize) -> [(String, RawTensor); 2] {
        let width = self.mean.len();
        let [(basis, basis_shape), (mean, mean_shape)] = Self::parameters(i, width, self.basis.len() / width);
        [(basis, RawTensor::from_f32(&basis_shape, &self.basis)), (mean, RawTensor::from_f32(&mean_shape, &self.mean))]
    }

    /// `z: [tokens, p]` of a tap `[tokens, d]`.
    pub fn apply(&self, tape: &Tape, tap: &Tensor) -> Tensor {
        let (device, width) = (tape.device(), self.mean.len());
        let count = self.basis.len() / width;
        let mut shift = vec![0f64; count];
        for (mean, row) in self.mean.iter().zip(self.basis.chunks_exact(count)) {
            shift.iter_mut().zip(row).for_each(|(shift, value)| *shift -= f64::from(*mean) * f64::from(*value));
        }
        let shift: Vec<f32> = shift.into_iter().map(|value| value as f32).collect();
        let constant = |shape: &[usize], values: &[f32]| Var::constant(Tensor::from_f32(device, shape, values));
        let basis = constant(&[width, count], &self.basis);
        tape.linear(&Var::constant(tap.clone()), &basis, Some(&constant(&[count], &shift)), true).value
    }
}
