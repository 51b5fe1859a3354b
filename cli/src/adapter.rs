//! Adapter folders: `adapter_model.safetensors` and `adapter_config.json`, of any method.

use crate::model::{ActivationFormat, WeightFormat, numbers};
use anyhow::{Context, Result, ensure};
use barycenter_engine::backbone::Backbone;
use barycenter_engine::bottleneck::{BottleneckConfig, Bottlenecks};
use barycenter_engine::chains::{Chains, ChainsConfig};
use barycenter_engine::lora::{Lora, LoraConfig, PeftConfig};
use barycenter_engine::side::{Fusion, Side, SideConfig, SideLayout, flat_from_named};
use barycenter_engine::Device;
use barycenter_model::names::Parts;
use barycenter_model::{FolderTensors, ModelConfig, RawTensor, TensorSource};
use std::path::Path;

/// What an `adapter_config.json` describes.
pub enum Adapter {
    /// A side network.
    Parallel(SideConfig),
    /// A side network for each stack of an encoder-decoder model.
    Chains(ChainsConfig),
    /// Products beside linear layers, in PEFT's form.
    Lora(LoraConfig),
    /// Bottleneck adapters.
    Bottlenecks(BottleneckConfig),
}

impl Adapter {
    /// Reads the text of an `adapter_config.json`.
    pub fn parse(text: &str) -> Result<Self> {
        let json: serde_json::Value = serde_json::from_str(text).context("adapter_config.json is not JSON")?;
        let numbers = |key: &str| json[key].as_array().map(|list| list.iter().filter_map(|number| Some(number.as_u64()? as usize)).collect::<Vec<_>>());
        let reduction = || json["reduction"].as_u64().map(|reduction| reduction as usize).context("adapter_config.json has no reduction");
        if json.get("peft_type").is_some() {
            return Ok(Self::Lora(PeftConfig::read(text)?));
        }
        match (json["method"].as_str().unwrap_or_default(), json["version"].as_u64()) {
            ("parallel_adapter", Some(1)) => {
                let taps = numbers("taps").context("adapter_config.json has no taps")?;
                let mut side = SideConfig::new(reduction()?, 0);
                side.taps = taps;
                side.fusion = Fusion::of_config(&json);
                if let Fusion::Gate { temperature } = side.fusion {
                    ensure!(temperature.is_finite() && temperature > 0.0, "adapter_config.json has a gate_temperature of {temperature}: expected a number above 0");
                }
                if let Some(encoder_taps) = numbers("encoder_taps") {
                    let SideConfig { reduction, fusion, taps, .. } = side;
                    return Ok(Self::Chains(ChainsConfig { reduction, fusion, taps: Some(taps), encoder_taps: Some(encoder_taps) }));
                }
                Ok(Self::Parallel(side))
            }
            ("adapters", Some(1)) => {
                let layers = numbers("layers").filter(|layers| !layers.is_empty()).context("adapter_config.json has no layers")?;
                Ok(Self::Bottlenecks(BottleneckConfig { reduction: reduction()?, layers: layers[0]..layers[layers.len() - 1] + 1 }))
            }
            ("parallel_adapter", Some(2)) => anyhow::bail!("adapter_config.json is of parallel adapters, version 2, which give classes or numbers and answer no prompts"),
            (method, version) => anyhow::bail!(
                "adapter_config.json is of method {method:?}, version {version:?}: expected parallel_adapter or adapters of version 1, or a LoRA of PEFT"
            ),
        }
    }

    /// Reads a folder's description, and opens its tensors.
    pub fn open(folder: &Path) -> Result<(Self, FolderTensors)> {
        let adapter = Self::parse(&config_text(folder)?).with_context(|| format!("the adapter in {} cannot be used", folder.display()))?;
        Ok((adapter, FolderTensors::open_file(&folder.join("adapter_model.safetensors"))?))
    }

    /// The whole model with this adapter's inserts in it (none for a side network, which stands beside it).
    pub fn whole_model(
        &self,
        device: &Device,
        config: &ModelConfig,
        weights: &mut dyn TensorSource,
        find: impl FnMut(&str) -> Option<RawTensor>,
    ) -> Result<Backbone> {
        let mut model = Backbone::load(device, config, weights, &Parts::all(config))?;
        match self {
            Self::Parallel(_) | Self::Chains(_) => {}
            Self::Lora(lora) => Lora::new(device, config, lora, find)?.attach(&mut model),
            Self::Bottlenecks(adapters) => Bottlenecks::load(device, config, adapters, find)?.attach(&mut model),
        }
        Ok(model)
    }

    /// The side network of a model of one stack, if it is one.
    pub fn side(&self, device: &Device, config: &ModelConfig, find: impl FnMut(&str) -> Option<RawTensor>) -> Result<Option<Side>> {
        let Self::Parallel(side) = self else { return Ok(None) };
        let layout = SideLayout::whole(config, side)?;
        let flat = flat_from_named(&layout, find)?;
        Ok(Some(Side::new(device, layout, &flat)?))
    }

    /// The side networks beside the stacks of an encoder-decoder model, if it is them.
    pub fn chains(&self, device: &Device, model: &Backbone, find: impl FnMut(&str) -> Option<RawTensor>) -> Result<Option<Chains>> {
        let Self::Chains(config) = self else { return Ok(None) };
        let mut chains = Chains::load(device, &model.config, config, find)?;
        chains.share_bias(model);
        Ok(Some(chains))
    }

    /// Refuses side networks that were trained beside a model of other stacks.
    pub fn check_stacks(&self, config: &ModelConfig) -> Result<()> {
        let (beside, stands) = match self {
            Self::Parallel(_) => ("one stack", config.encoder.is_none()),
            Self::Chains(_) => ("an encoder and a decoder", config.encoder.is_some()),
            Self::Lora(_) | Self::Bottlenecks(_) => return Ok(()),
        };
        ensure!(stands, "the adapter was trained beside a model of {beside}, and this {} is another kind: give the model it was trained with", config.family.model_type());
        Ok(())
    }
}

/// What a model is held in that is not what it was held in when this folder's adapter was trained, in a sentence; adapters of PEFT
/// do not say.
pub fn other_numbers(folder: &Path, weights: WeightFormat, activations: ActivationFormat) -> Result<Option<String>> {
    let config: serde_json::Value = serde_json::from_str(&config_text(folder)?).context("adapter_config.json is not JSON")?;
    let other = |(key, held): (&str, String)| config[key].as_str().filter(|trained| *trained != held).map(|trained| format!("--{key} {trained}"));
    let others: Vec<String> = numbers(weights, activations).into_iter().filter_map(other).collect();
    Ok((!others.is_empty()).then(|| format!("the adapter was trained with {}: it gives what it learnt with the same", others.join(" "))))
}

fn config_text(folder: &Path) -> Result<String> {
    let path = folder.join("adapter_config.json");
    std::fs::read_to_string(&path).map_err(|error| anyhow::anyhow!("{} cannot be read ({error}): give a folder with adapter_config.json and adapter_model.safetensors", path.display()))
}

/// A folder that must hold a LoRA adapter.
pub fn read_lora(folder: &Path) -> Result<(LoraConfig, FolderTensors)> {
    match Adapter::open(folder)? {
        (Adapter::Lora(lora), tensors) => Ok((lora, tensors)),
        _ => anyhow::bail!("{} holds an adapter of another method: expected a LoRA adapter (adapter_config.json with peft_type)", folder.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_that_divides_by_nothing_is_refused() {
        let parse = |temperature: &str| Adapter::parse(&format!(r#"{{"method":"parallel_adapter","version":1,"reduction":4,"taps":[0,2],"gate_temperature":{temperature}}}"#));
        assert!(matches!(parse("0.1"), Ok(Adapter::Parallel(SideConfig { fusion: Fusion::Gate { .. }, .. }))));
        for bad in ["0", "-1", "1e300"] {
            assert!(parse(bad).is_err_and(|error| error.to_string().contains("gate_temperature")), "{bad}");
        }
    }

    #[test]
    fn numbers_other_than_those_of_training_are_named() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let said = |config: &str, weights, activations| {
            std::fs::write(folder.path().join("adapter_config.json"), config).expect("written");
            other_numbers(folder.path(), weights, activations).expect("it is JSON")
        };
        let trained = r#"{"weights":"int8","activations":"int8"}"#;
        assert_eq!(said(trained, WeightFormat::Int8, ActivationFormat::Int8), None);
        assert!(said(trained, WeightFormat::Keep, ActivationFormat::F32).is_some_and(|said| said.contains("with --weights int8 --activations int8:")));
        assert!(said(r#"{"weights":"keep"}"#, WeightFormat::F16, ActivationFormat::Int8).is_some_and(|said| said.contains("with --weights keep:")));
        assert_eq!(said(r#"{"peft_type":"LORA"}"#, WeightFormat::Int4, ActivationFormat::Int8), None);
    }
}
