//! A bias on the scores by distance (T5), one row a head: neighbouring keys lie side by side.

use super::short::Segment;
use crate::op::AttentionShape;

/// Values before a head's first distance and behind its last that are read for queries that are not there, and never used.
const PAD: usize = super::narrow::QUERIES - 1;

/// The bias `[2 · bias_zero + 1, heads]` turned to `[heads, stride]`.
pub(super) struct HeadBias {
    values: Vec<f32>,
    sizes: BiasSizes,
}

#[derive(Clone, Copy)]
pub(super) struct BiasSizes {
    heads: usize,
    /// Row of distance 0.
    zero: usize,
    distances: usize,
    /// Elements from one head to the next.
    pub stride: usize,
}

impl BiasSizes {
    pub fn new(shape: &AttentionShape) -> Self {
        let (zero, distances) = (shape.bias_zero as usize, 2 * shape.bias_zero as usize + 1);
        Self { heads: shape.heads as usize, zero, distances, stride: distances + 2 * PAD }
    }

    /// Place in a head's row of query `i` and key `j`: key `j + 1` is one further, query `i + 1` one before.
    #[inline(always)]
    pub fn at(&self, segment: &Segment, i: usize, j: usize) -> usize {
        PAD + self.zero + segment.queries + j - segment.keys - i
    }

    /// Elements of a gradient of all heads.
    pub fn len(&self) -> usize {
        self.heads * self.stride
    }

    /// Adds gradients `[heads, stride]` of scaled scores to those of the bias, `[distances, heads]`.
    pub fn add_to(&self, gradients: &[f32], dbias: &mut [f32]) {
        for (head, gradients) in gradients.chunks_exact(self.stride).enumerate() {
            for (distance, gradient) in gradients[PAD..][..self.distances].iter().enumerate() {
                dbias[distance * self.heads + head] += gradient;
            }
        }
    }
}

impl HeadBias {
    pub fn new(bias: &[f32], shape: &AttentionShape) -> Self {
        let sizes = BiasSizes::new(shape);
        let mut values = vec![0f32; sizes.len()];
        for (head, row) in values.chunks_exact_mut(sizes.stride).enumerate() {
            for (to, distance) in row[PAD..].iter_mut().zip(bias.chunks_exact(sizes.heads)) {
                *to = distance[head];
            }
        }
        Self { values, sizes }
    }

    pub fn sizes(&self) -> &BiasSizes {
        &self.sizes
    }

    /// The biases of one head, by [`BiasSizes::at`].
    #[inline(always)]
    pub fn head(&self, head: usize) -> &[f32] {
        &self.values[head * self.sizes.stride..][..self.sizes.stride]
    }
}
