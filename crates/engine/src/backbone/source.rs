//! Where the parameters of a stack come from: a weight file (frozen) or a parameter set (trained).

use super::ends::Shards;
use super::weights::{shard_rows, upload, upload_f32};
use crate::EngineError;
use crate::params::ParameterSet;
use crate::tape::Var;
use crate::tensor::Device;
use barycenter_model::names::Parameter;
use barycenter_model::{ModelError, RawTensor, TensorSource, check_finite};

/// Gives parameters by their full names.
pub(super) trait ParameterSource {
    /// A whole parameter.
    fn get(&mut self, name: &str) -> Result<Var, EngineError>;
    /// A table as row shards, without its first `skip` rows.
    fn table(&mut self, parameter: &Parameter, skip: usize) -> Result<Shards, EngineError>;
}

/// Uploads frozen weights; f16 and bf16 matrices stay packed.
pub(super) struct Frozen<'a> {
    pub device: &'a Device,
    pub source: &'a mut dyn TensorSource,
}

impl ParameterSource for Frozen<'_> {
    fn get(&mut self, name: &str) -> Result<Var, EngineError> {
        let tensor = finite(name, self.source.load(name)?)?;
        // A bias that is stored as a matrix of one row is added as f32, as every vector is.
        let matrix = tensor.shape.len() == 2 && tensor.shape[0] > 1;
        Ok(Var::constant(if matrix { upload(self.device, &tensor) } else { upload_f32(self.device, &tensor) }))
    }

    fn table(&mut self, parameter: &Parameter, skip: usize) -> Result<Shards, EngineError> {
        let (name, shape) = (&parameter.name, &parameter.shape);
        let entry = self.source.entry(name).ok_or_else(|| missing(name))?;
        entry.check_weight(name, shape)?;
        let row_bytes = entry.dtype.len_bytes(shape[1]).unwrap_or(4 * shape[1]);
        let rows = shard_rows(shape[0] - skip, row_bytes);
        let shard = |rows: std::ops::Range<usize>| {
            let tensor = finite(name, self.source.load_rows(name, rows.start + skip..rows.end + skip)?)?;
            Ok((Var::constant(upload(self.device, &tensor)), rows.start))
        };
        rows.map(shard).collect()
    }
}

impl ParameterSource for &ParameterSet {
    fn get(&mut self, name: &str) -> Result<Var, EngineError> {
        self.var(name).ok_or_else(|| missing(name).into())
    }

    fn table(&mut self, parameter: &Parameter, skip: usize) -> Result<Shards, EngineError> {
        let (name, shape) = (&parameter.name, &parameter.shape);
        let shard = |rows: std::ops::Range<usize>| {
            let var = self.rows(name, rows.start + skip, rows.len()).ok_or_else(|| missing(name))?;
            Ok((var, rows.start))
        };
        shard_rows(shape[0] - skip, 4 * shape[1]).map(shard).collect()
    }
}

/// Parameters that are trained where a set names them, and frozen otherwise.
pub(super) struct PartlyTrained<'a> {
    pub trained: &'a ParameterSet,
    pub frozen: Frozen<'a>,
}

impl ParameterSource for PartlyTrained<'_> {
    fn get(&mut self, name: &str) -> Result<Var, EngineError> {
        self.trained.var(name).map_or_else(|| self.frozen.get(name), Ok)
    }

    fn table(&mut self, parameter: &Parameter, skip: usize) -> Result<Shards, EngineError> {
        if self.trained.has(&parameter.name) { (&mut &*self.trained).table(parameter, skip) } else { self.frozen.table(parameter, skip) }
    }
}

fn missing(name: &str) -> ModelError {
    ModelError::MissingTensor { name: name.to_string() }
}

fn finite(name: &str, tensor: RawTensor) -> Result<RawTensor, ModelError> {
    check_finite(name, tensor.dtype, &tensor.bytes)?;
    Ok(tensor)
}
