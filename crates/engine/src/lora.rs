//! LoRA (Hu et al. 2021): trained products of low rank beside frozen linear layers, in PEFT's names.
//!
//! ```text
//! y = W x + b + s · B (A x)      A: [rank, in], B: [out, rank], s = alpha / rank (alpha / √rank if rank-stabilised)
//! ```

mod gguf;
mod modules;
mod peft;

#[cfg(not(target_arch = "wasm32"))]
pub(crate) use peft::PREFIX as PEFT_PREFIX;
pub(crate) use peft::find_stored;
pub use gguf::to_gguf;
pub use modules::{LoraConfig, LoraModule, Patterns, lora_modules};
pub use peft::{PeftConfig, PeftTask, peft_name, peft_saved_name};

use crate::EngineError;
use crate::backbone::Backbone;
use crate::params::ParameterSet;
use crate::tape::{Tape, Var};
use crate::tensor::Device;
use barycenter_model::{ModelConfig, RawTensor, check_finite};
use std::collections::BTreeMap;

/// The trained product of one linear layer.
#[derive(Clone)]
pub struct LoraPair {
    a: Var,
    b: Var,
    scale: f32,
}

impl LoraPair {
    /// `s · B (A x)`.
    pub fn apply(&self, tape: &Tape, x: &Var) -> Var {
        let inner = tape.linear(x, &self.a, None, false);
        tape.scale(&tape.linear(&inner, &self.b, None, false), self.scale)
    }
}

/// The trained products of a model, on a device.
pub struct Lora {
    /// What they are.
    pub config: Box<LoraConfig>,
    /// A and B of each module, named as PEFT's files name them.
    pub parameters: ParameterSet,
    modules: Vec<LoraModule>,
}

impl Lora {
    /// Products whose values `find` gives by PEFT's names (`base_model.model.….lora_A.weight`).
    ///
    /// # Errors
    /// If the configuration does not fit the model, or a tensor is missing or of another shape.
    pub fn new(
        device: &Device,
        model: &ModelConfig,
        config: &LoraConfig,
        mut find: impl FnMut(&str) -> Option<RawTensor>,
    ) -> Result<Self, EngineError> {
        let modules = lora_modules(model, config)?;
        let shapes = modules.iter().flat_map(|module| {
            let a = (peft_name(&module.full_name, 'A'), vec![module.rank, module.inputs]);
            [a, (peft_name(&module.full_name, 'B'), vec![module.outputs, module.rank])]
        });
        let parameters = ParameterSet::new(device, shapes);
        let mut values = vec![0f32; parameters.flat_len()];
        for info in parameters.layout() {
            let bad = || EngineError::BadAdapter { name: info.name.clone(), expected: info.shape.clone() };
            let tensor = find_stored(&info.name, &mut find).filter(|tensor| tensor.shape == info.shape).ok_or_else(bad)?;
            check_finite(&info.name, tensor.dtype, &tensor.bytes)?;
            values[info.offset..info.offset + info.elements()].copy_from_slice(&tensor.to_f32());
        }
        parameters.write_values(&values);
        Ok(Self { config: Box::new(config.clone()), parameters, modules })
    }

    /// The linear layers that have a product.
    pub fn modules(&self) -> &[LoraModule] {
        &self.modules
    }

    /// Puts the products beside the linear layers of `backbone` that they belong to.
    pub fn attach(&self, backbone: &mut Backbone) {
        for module in &self.modules {
            let stack = match (module.in_encoder, &mut backbone.encoder) {
                (true, Some(encoder)) => &mut **encoder,
                (true, None) => continue,
                (false, _) => &mut *backbone,
            };
            let Some(index) = module.layer.checked_sub(stack.range.start) else { continue };
            let Some(layer) = stack.layers.get_mut(index) else { continue };
            let pair = ['A', 'B'].map(|part| self.parameters.var(&peft_name(&module.full_name, part)));
            if let [Some(a), Some(b)] = pair {
                let linears = layer.linears_mut().into_iter().filter(|linear| linear.name == module.name);
                linears.for_each(|linear| linear.lora = Some(LoraPair { a: a.clone(), b: b.clone(), scale: module.scale as f32 }));
            }
        }
    }

    /// The values by PEFT's names.
    pub async fn tensors(&self) -> Result<BTreeMap<String, RawTensor>, EngineError> {
        self.parameters.tensors().await
    }
}

/// The values LoRA starts from: A as torch starts a linear layer, B at 0; each by its own name and the seed.
pub fn lora_start(model: &ModelConfig, config: &LoraConfig, seed: u64) -> Result<BTreeMap<String, RawTensor>, EngineError> {
    let mut tensors = BTreeMap::new();
    for module in lora_modules(model, config)? {
        let name = peft_name(&module.full_name, 'A');
        let mut values = vec![0f32; module.rank * module.inputs];
        crate::side::uniform(&name, seed, module.inputs, &mut values);
        tensors.insert(name, RawTensor::from_f32(&[module.rank, module.inputs], &values));
        let zeros = vec![0f32; module.outputs * module.rank];
        tensors.insert(peft_name(&module.full_name, 'B'), RawTensor::from_f32(&[module.outputs, module.rank], &zeros));
    }
    Ok(tensors)
}
