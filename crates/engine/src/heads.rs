//! Classification and regression heads that are trained beside or within a model.
//!
//! BERT's is what `BertForSequenceClassification` has: the pooler (a linear layer and tanh on the first token), then a
//! linear layer to the labels. Where the folder has no pooler the linear layer reads the first token as it is. All of it
//! is trained; the pooler starts from the folder's.

use crate::EngineError;
use crate::params::ParameterSet;
use crate::side::named_rng;
use crate::tensor::Device;
use crate::train_full::{INITIAL_DEVIATION, normal};
use barycenter_model::{ModelConfig, RawTensor, TensorSource, check_finite, names};
use std::collections::BTreeMap;

/// The parameters of a head that `source` does not have in their shape, from the seed: matrices as `transformers` starts
/// them, biases 0.
pub fn fresh_parts(config: &ModelConfig, source: &dyn TensorSource, seed: u64) -> BTreeMap<String, RawTensor> {
    let missing = names::classifier(config).into_iter().filter(|parameter| source.shape(&parameter.name).as_ref() != Some(&parameter.shape));
    let start = |parameter: names::Parameter| {
        let mut rng = named_rng(&parameter.name, seed);
        let matrix = parameter.shape.len() > 1;
        let values: Vec<f32> = (0..parameter.elements()).map(|_| if matrix { normal(&mut rng) * INITIAL_DEVIATION } else { 0.0 }).collect();
        let tensor = RawTensor::from_f32(&parameter.shape, &values);
        (parameter.name, tensor)
    };
    missing.map(start).collect()
}

/// The parameters of a model's head as a trained set, with the values of `source`: all of them, or those that `is_trained`
/// names.
///
/// # Errors
/// If one is missing, of another shape or not a number; if there is none.
pub fn trained_head(
    device: &Device,
    config: &ModelConfig,
    source: &mut dyn TensorSource,
    mut is_trained: impl FnMut(&str) -> bool,
) -> Result<ParameterSet, EngineError> {
    let list: Vec<_> = names::classifier(config).into_iter().filter(|parameter| is_trained(&parameter.name)).collect();
    if list.is_empty() {
        return Err(EngineError::BadStage("its head is not a classifier, so nothing of it is trained".into()));
    }
    let set = ParameterSet::new(device, list.iter().map(|parameter| (parameter.name.clone(), parameter.shape.clone())));
    let mut values = vec![0f32; set.flat_len()];
    for info in set.layout() {
        let tensor = source.load_weight(&info.name, &info.shape)?;
        check_finite(&info.name, tensor.dtype, &tensor.bytes)?;
        values[info.offset..info.offset + info.elements()].copy_from_slice(&tensor.to_f32());
    }
    set.write_values(&values);
    Ok(set)
}
