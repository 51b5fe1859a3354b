//! LoRA (Hu et al. 2021): trained products of low rank beside frozen linear layers, in PEFT's names.
//!
//! ```text
//! y = W x + b + s · B (A x)      A: [rank, in], B: [out, rank], s = alpha / rank (alpha / √rank if rank-stabilised)
//! ```

mod gguf;
mod peft;

pub(crate) use peft::find_stored;
pub use gguf::to_gguf;
pub use peft::{PeftConfig, PeftTask, peft_name, peft_saved_name};

use crate::EngineError;
use crate::backbone::Backbone;
use crate::params::ParameterSet;
use crate::tape::{Tape, Var};
use crate::tensor::Device;
use barycenter_model::{ModelConfig, RawTensor, check_finite, names};
use std::collections::BTreeMap;

/// Which linear layers get a trained product, and how large.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Inner width of the product.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Whether the scale divides by √rank instead of rank (`use_rslora`).
    pub rank_stabilised: bool,
    /// Linear layers by the end of their names (`q_proj`, `mlp.c_proj`), as PEFT's `target_modules`; `all-linear` for all.
    pub targets: Vec<String>,
    /// Layers by number (from 0); all if not given.
    pub layers: Option<Vec<usize>>,
}

impl LoraConfig {
    /// What multiplies the product.
    pub fn scale(&self) -> f64 {
        let rank = self.rank.max(1) as f64;
        self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }

    fn takes(&self, layer: usize, module: &str) -> bool {
        let named = |target: &String| target == "all-linear" || module == target || module.ends_with(&format!(".{target}"));
        self.layers.as_ref().is_none_or(|layers| layers.contains(&layer)) && self.targets.iter().any(named)
    }
}

/// A linear layer that gets a product.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoraModule {
    /// Whether it stands in the encoder of an encoder-decoder model.
    pub in_encoder: bool,
    /// Its layer, from 0.
    pub layer: usize,
    /// Its name within the layer.
    pub name: String,
    /// Its full name in the model.
    pub full_name: String,
    /// Columns of A.
    pub inputs: usize,
    /// Rows of B.
    pub outputs: usize,
}

/// The linear layers of a model that a configuration names, in the order of computing.
///
/// # Errors
/// If it names none, a layer that the model does not have, or a rank of 0.
pub fn lora_modules(model: &ModelConfig, config: &LoraConfig) -> Result<Vec<LoraModule>, EngineError> {
    if config.rank == 0 {
        return Err(EngineError::BadLora("a rank of 0 trains nothing: choose 1 or more".into()));
    }
    let most = names::stacks(model).map(|(stack, _)| stack.layers).max().unwrap_or(0);
    if let Some(layer) = config.layers.iter().flatten().find(|&&layer| layer >= most) {
        return Err(EngineError::BadLora(format!("layer {layer} was named, the model has layers 0 to {}", most.saturating_sub(1))));
    }
    let transposed = model.family.table().transposed;
    let mut modules = Vec::new();
    for (stack, _) in names::stacks(model) {
        let in_encoder = model.encoder.is_some() && !stack.causal;
        let shapes = names::layer_shapes(stack);
        for layer in 0..stack.layers {
            for (parameter, shape) in &shapes {
                let (Some(name), [rows, cols]) = (parameter.strip_suffix(".weight"), shape.as_slice()) else { continue };
                let full_name = names::layer_parameter(stack, layer, name);
                if config.takes(layer, &full_name) {
                    let (outputs, inputs) = if transposed { (*cols, *rows) } else { (*rows, *cols) };
                    modules.push(LoraModule { in_encoder, layer, name: name.to_string(), full_name, inputs, outputs });
                }
            }
        }
    }
    if modules.is_empty() {
        let targets = config.targets.join(", ");
        let ends = names::layer_shapes(model).into_iter().filter(|(_, shape)| shape.len() == 2);
        let ends: Vec<_> = ends.filter_map(|(name, _)| Some(name.strip_suffix(".weight")?.rsplit('.').next()?.to_string())).collect();
        return Err(EngineError::BadLora(format!("no linear layer is named {targets}: this model has {}", ends.join(", "))));
    }
    Ok(modules)
}

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
    pub config: LoraConfig,
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
            let a = (peft_name(&module.full_name, 'A'), vec![config.rank, module.inputs]);
            [a, (peft_name(&module.full_name, 'B'), vec![module.outputs, config.rank])]
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
        Ok(Self { config: config.clone(), parameters, modules })
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
                linears.for_each(|linear| linear.lora = Some(LoraPair { a: a.clone(), b: b.clone(), scale: self.config.scale() as f32 }));
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
        let mut values = vec![0f32; config.rank * module.inputs];
        crate::side::uniform(&name, seed, module.inputs, &mut values);
        tensors.insert(name, RawTensor::from_f32(&[config.rank, module.inputs], &values));
        let zeros = vec![0f32; module.outputs * config.rank];
        tensors.insert(peft_name(&module.full_name, 'B'), RawTensor::from_f32(&[module.outputs, config.rank], &zeros));
    }
    Ok(tensors)
}
