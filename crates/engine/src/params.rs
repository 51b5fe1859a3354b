//! Named trained parameters that lie behind one another in a few buffers, with their gradients.
//!
//! A flat order makes gradients one vector: for AllReduce, for clipping, for one optimiser operation per buffer.

use crate::EngineError;
use crate::backend::BackendError;
use crate::op::Op;
use crate::tape::Var;
use crate::tensor::{Device, Tensor};
use barycenter_model::RawTensor;
use std::collections::{BTreeMap, HashMap};

/// A buffer of parameters holds at most this many values (64 MiB, half of WebGPU's default binding limit), unless a
/// single parameter is larger.
const CHUNK_ELEMENTS: usize = 16 << 20;
/// Parameters start at multiples of this, so that kernels may read four values at a time.
const ALIGNMENT: usize = 4;

/// A parameter's name, shape and place in the flat order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterInfo {
    /// As in a weight file.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// First element in the flat vector.
    pub offset: usize,
}

impl ParameterInfo {
    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Trained parameters and their gradients.
pub struct ParameterSet {
    infos: Vec<ParameterInfo>,
    by_name: HashMap<String, usize>,
    chunks: Vec<Chunk>,
    len: usize,
}

struct Chunk {
    start: usize,
    values: Tensor,
    grads: Tensor,
}

/// The places of parameters in the flat order; between them are up to three unused elements, always 0.
pub fn flat_layout(parameters: impl IntoIterator<Item = (String, Vec<usize>)>) -> Vec<ParameterInfo> {
    let mut offset = 0;
    let place = |(name, shape): (String, Vec<usize>)| {
        let info = ParameterInfo { name, shape, offset };
        offset += info.elements().next_multiple_of(ALIGNMENT);
        info
    };
    parameters.into_iter().map(place).collect()
}

/// Length of the flat vector of a layout.
pub fn flat_len(infos: &[ParameterInfo]) -> usize {
    infos.last().map_or(0, |last| last.offset + last.elements().next_multiple_of(ALIGNMENT))
}

impl ParameterSet {
    /// Parameters of value 0, in the order given.
    pub fn new(device: &Device, parameters: impl IntoIterator<Item = (String, Vec<usize>)>) -> Self {
        let infos = flat_layout(parameters);
        let mut bounds = vec![0];
        let mut len = 0;
        for info in &infos {
            let end = info.offset + info.elements().next_multiple_of(ALIGNMENT);
            let start = bounds[bounds.len() - 1];
            if end - start > CHUNK_ELEMENTS && info.offset > start {
                bounds.push(info.offset);
            }
            len = end;
        }
        bounds.push(len);
        let zeros = |len: usize| Tensor::zeros(device, &[len]);
        let chunks = bounds.windows(2).filter(|pair| pair[0] < pair[1]);
        let chunks = chunks.map(|pair| Chunk { start: pair[0], values: zeros(pair[1] - pair[0]), grads: zeros(pair[1] - pair[0]) });
        let by_name = infos.iter().enumerate().map(|(index, info)| (info.name.clone(), index)).collect();
        Self { chunks: chunks.collect(), by_name, infos, len }
    }

    /// Names, shapes and places.
    pub fn layout(&self) -> &[ParameterInfo] {
        &self.infos
    }

    /// Length of the flat vector.
    pub fn flat_len(&self) -> usize {
        self.len
    }

    /// Whether there is such a parameter.
    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The parameter as a trained leaf.
    pub fn var(&self, name: &str) -> Option<Var> {
        let info = &self.infos[*self.by_name.get(name)?];
        let chunk = self.chunk_of(info)?;
        let at = info.offset - chunk.start;
        Some(Var::leaf(chunk.values.part(at, &info.shape), chunk.grads.part(at, &info.shape)))
    }

    /// Some rows of a parameter as a trained leaf.
    pub fn rows(&self, name: &str, first: usize, count: usize) -> Option<Var> {
        let info = &self.infos[*self.by_name.get(name)?];
        let chunk = self.chunk_of(info)?;
        let width = info.elements() / info.shape.first().copied().unwrap_or(1).max(1);
        let at = info.offset - chunk.start + first * width;
        let shape = [count, width];
        Some(Var::leaf(chunk.values.part(at, &shape), chunk.grads.part(at, &shape)))
    }

    fn chunk_of(&self, info: &ParameterInfo) -> Option<&Chunk> {
        self.chunks.iter().rev().find(|chunk| chunk.start <= info.offset)
    }

    /// The first buffer of parameters: something small to wait on.
    pub fn first_values(&self) -> Tensor {
        self.chunks[0].values.clone()
    }

    /// Sets all gradients to 0.
    pub fn zero_grads(&self) {
        for chunk in &self.chunks {
            chunk.grads.fill(0.0);
        }
    }

    /// Overwrites all parameters from a flat vector.
    pub fn write_values(&self, flat: &[f32]) {
        for chunk in &self.chunks {
            chunk.values.write(0, &flat[chunk.start..chunk.start + chunk.values.len()]);
        }
    }

    /// Overwrites all gradients from a flat vector.
    pub fn write_grads(&self, flat: &[f32]) {
        for chunk in &self.chunks {
            chunk.grads.write(0, &flat[chunk.start..chunk.start + chunk.grads.len()]);
        }
    }

    /// All parameters as a flat vector.
    pub async fn read_values(&self) -> Result<Vec<f32>, BackendError> {
        read_all(self.chunks.iter().map(|chunk| &chunk.values)).await
    }

    /// All parameters by name, in f32.
    pub async fn tensors(&self) -> Result<BTreeMap<String, RawTensor>, EngineError> {
        Ok(self.named(&self.read_values().await?))
    }

    /// A flat vector, of values or gradients, as tensors by name.
    pub fn named(&self, flat: &[f32]) -> BTreeMap<String, RawTensor> {
        let tensor = |info: &ParameterInfo| (info.name.clone(), RawTensor::from_f32(&info.shape, &flat[info.offset..info.offset + info.elements()]));
        self.infos.iter().map(tensor).collect()
    }

    /// All gradients as a flat vector.
    pub async fn read_grads(&self) -> Result<Vec<f32>, BackendError> {
        read_all(self.chunks.iter().map(|chunk| &chunk.grads)).await
    }

    /// Square root of the sum of all squared gradients.
    pub async fn grad_norm(&self) -> Result<f32, BackendError> {
        let Some(first) = self.chunks.first() else { return Ok(0.0) };
        let out = Tensor::zeros(first.grads.device(), &[1]);
        for chunk in &self.chunks {
            out.run(Op::SumSquares { x: chunk.grads.slice(), out: out.slice(), len: chunk.grads.len() as u32 });
        }
        Ok(out.read().await?.first().copied().unwrap_or(0.0).sqrt())
    }

    /// The buffers: (values, gradients), in flat order.
    pub(crate) fn buffers(&self) -> impl Iterator<Item = (&Tensor, &Tensor)> {
        self.chunks.iter().map(|chunk| (&chunk.values, &chunk.grads))
    }
}

/// The tensors behind one another.
pub(crate) async fn read_all<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<Vec<f32>, BackendError> {
    let mut flat = Vec::new();
    for tensor in tensors {
        flat.extend(tensor.read().await?);
    }
    Ok(flat)
}
