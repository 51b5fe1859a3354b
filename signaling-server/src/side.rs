//! The side network of a model: names and shapes of its parameters, and what everything costs.

use barycenter_core::cost::{Dimensions, LayerParameters, Parameters, model_cost_of};
use barycenter_model::names::{self, Parameter, Parts};
use barycenter_model::{Manifest, ManifestTensor, ModelConfig, ModelError, WeightType};
use barycenter_protocol::control::{WeightFormat, tapped};
use barycenter_protocol::plan::ModelCost;

/// The side network's shapes: the family's own layers with sizes divided by k. An error is one sentence.
pub fn side_config(config: &ModelConfig, reduction: u32) -> Result<ModelConfig, String> {
    check_family(config)?;
    let k = reduction as usize;
    let divides = |size: usize| k > 0 && size.is_multiple_of(k);
    // Heads that are rotated are rotated in pairs.
    let pair = if config.rope(0).is_some() { 2 } else { 1 };
    let even_head = |size: usize| divides(size) && (size / k).is_multiple_of(pair);
    if !(divides(config.width) && even_head(config.head_dim) && divides(config.ffn_width)) {
        let possible: Vec<String> = (1..=64usize)
            .filter(|k| config.width.is_multiple_of(*k) && config.head_dim.is_multiple_of(pair * k) && config.ffn_width.is_multiple_of(*k))
            .map(|k| k.to_string())
            .collect();
        let (width, head, ffn) = (config.width, config.head_dim, config.ffn_width);
        return Err(format!(
            "the reduction {reduction} does not divide the model's width {width}, head size {head}{} and feed-forward size {ffn}: choose one of {}",
            if pair == 2 { " (into even parts)" } else { "" },
            possible.join(", ")
        ));
    }
    let mut side = config.clone();
    side.width /= k;
    side.head_dim /= k;
    side.ffn_width /= k;
    Ok(side)
}

/// Refuses families that the swarm does not train, in one sentence.
pub fn check_family(config: &ModelConfig) -> Result<(), String> {
    if config.is_decoder_only() {
        return Ok(());
    }
    let family = config.family.model_type();
    Err(format!("models of the family `{family}` are trained on one computer (`barycenter train`), not by the swarm yet: choose a decoder such as Llama, Qwen, Gemma 3 or GPT-2"))
}

/// Names and shapes of all adapter parameters, as in an adapter file; every `tap_every`-th layer is tapped.
pub fn adapter_parameters(config: &ModelConfig, reduction: u32, tap_every: u32) -> Result<Vec<Parameter>, String> {
    let side = side_config(config, reduction)?;
    let (width, r) = (config.width, side.width);
    let layers = tapped(config.layers as u32, tap_every).count() - 1;
    let mut list = Vec::new();
    let mut add = |name: String, shape: Vec<usize>| list.push(Parameter { name, shape });
    for tap in 0..=layers {
        add(format!("side.down.{tap}.weight"), vec![r, width]);
        add(format!("side.down.{tap}.bias"), vec![r]);
    }
    add("side.gate".into(), vec![layers]);
    for layer in 0..layers {
        for (name, shape) in names::layer_shapes(&side) {
            add(format!("side.layers.{layer}.{name}"), shape);
        }
    }
    for (name, shape) in names::norm_shapes(&side, Some("side.norm"), r) {
        add(name, shape);
    }
    add("side.up.weight".into(), vec![width, r]);
    add("side.up.bias".into(), vec![width]);
    Ok(list)
}

/// Number of values of the whole adapter.
pub fn adapter_parameter_count(config: &ModelConfig, reduction: u32, tap_every: u32) -> Result<u64, String> {
    Ok(adapter_parameters(config, reduction, tap_every)?.iter().map(|p| p.elements() as u64).sum())
}

/// Bytes of one frozen weight as stored, to the nearest: a few f32 vectors beside f16 matrices do not make it three.
pub fn weight_bytes(config: &ModelConfig, stored_bytes: u64) -> u32 {
    let count = (names::parameter_count(config) as u64).max(1);
    ((stored_bytes + count / 2) / count).max(1) as u32
}

/// Bits of one frozen weight in the format that a run holds them in, without the scales of integers.
pub fn weight_bits(config: &ModelConfig, stored_bytes: u64, format: WeightFormat) -> u32 {
    let stored = 8 * stored_bytes / (names::parameter_count(config) as u64).max(1);
    let most = match format {
        WeightFormat::Keep => 32,
        WeightFormat::F16 => 16,
        WeightFormat::Int8 => 8,
        WeightFormat::Int4 => 4,
    };
    stored.min(most) as u32
}

/// Memory that answering prompts takes, bytes: the weights as they are held, the whole adapter in f32, a quarter of both for keys and
/// values, and the logits of some tokens.
pub fn answering_memory_bytes(cost: &ModelCost, vocab: usize) -> u64 {
    let parts = cost.layers.iter().chain([&cost.embedding, &cost.head]);
    let held: u64 = parts.map(|part| part.weight_bytes + 4 * part.adapter_parameters).sum();
    held.saturating_sub(cost.shared_bytes) * 5 / 4 + 4 * vocab as u64 * 64
}

/// The costs of a model whose weights are held in this format instead of the stored one: each part takes as much less memory
/// as its tensors do.
pub fn held_as(mut cost: ModelCost, config: &ModelConfig, manifest: &Manifest, format: WeightFormat) -> Result<ModelCost, ModelError> {
    let weight_type = weight_type(format);
    let scale = |bytes: &mut u64, parts: Parts| -> Result<(), ModelError> {
        let entries = manifest.entries(config, &parts)?;
        let held = |(name, tensor): &(String, &ManifestTensor)| {
            let dtype = weight_type.dtype_of(name, &tensor.shape, tensor.dtype);
            dtype.len_bytes(tensor.shape.iter().product()).map_or(tensor.len_bytes, |bytes| bytes as u64)
        };
        let stored: u64 = entries.iter().map(|(_, tensor)| tensor.len_bytes).sum();
        *bytes = (u128::from(*bytes) * u128::from(entries.iter().map(held).sum::<u64>()) / u128::from(stored.max(1))) as u64;
        Ok(())
    };
    let part = |layers, embedding, head| Parts { layers, embedding, head };
    for (layer, layer_cost) in cost.layers.iter_mut().enumerate() {
        scale(&mut layer_cost.weight_bytes, part(layer..layer + 1, false, false))?;
    }
    scale(&mut cost.embedding.weight_bytes, part(0..0, true, false))?;
    scale(&mut cost.head.weight_bytes, part(0..0, false, true))?;
    scale(&mut cost.shared_bytes, part(0..0, true, false))?;
    Ok(cost)
}

/// Twin of `WeightStore::held_as` in `crates/node/src/weights.rs`.
fn weight_type(format: WeightFormat) -> WeightType {
    match format {
        WeightFormat::Keep => WeightType::Keep,
        WeightFormat::F16 => WeightType::F16,
        WeightFormat::Int8 => WeightType::Int8,
        WeightFormat::Int4 => WeightType::Int4,
    }
}

/// What the planner needs to know, as [`barycenter_core::cost`] counts it. An error is one sentence.
pub fn model_cost(config: &ModelConfig, reduction: u32, tap_every: u32, stored_bytes: u64, mean_tokens: f64) -> Result<ModelCost, String> {
    let side = side_config(config, reduction)?;
    let dimensions = Dimensions {
        layers: config.layers as u32,
        width: config.width as u32,
        heads: config.heads as u32,
        kv_heads: config.kv_heads as u32,
        head_dim: config.head_dim as u32,
        ffn_width: config.ffn_width as u32,
        vocab: config.vocab as u32,
        reduction,
        weight_bytes: weight_bytes(config, stored_bytes),
        mean_tokens: mean_tokens.ceil() as u32,
        tied_head: config.tied_head,
        gated: config.gated,
        tap_every,
    };
    Ok(model_cost_of(&dimensions, &parameters(config, &side)))
}

fn parameters(config: &ModelConfig, side: &ModelConfig) -> Parameters {
    let values = |list: Vec<Parameter>| list.iter().map(|p| p.elements() as u64).sum();
    let layer = |config: &ModelConfig| {
        let shapes: Vec<Vec<usize>> = names::layer_shapes(config).into_iter().map(|(_, shape)| shape).collect();
        let sum = |least_rank: usize| shapes.iter().filter(|shape| shape.len() >= least_rank).map(|shape| shape.iter().product::<usize>() as u64).sum();
        LayerParameters { matrices: sum(2), all: sum(0) }
    };
    let ends = |embedding, head| values(Parts { layers: 0..0, embedding, head }.parameters(config));
    Parameters {
        layer: layer(config),
        side_layer: layer(side),
        embedding: ends(true, false),
        head: ends(false, true),
        side_norm: names::norm_shapes(side, Some("side.norm"), side.width).iter().map(|(_, shape)| shape.iter().product::<usize>() as u64).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ModelConfig {
        let json = serde_json::json!({
            "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 8,
            "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 160, "vocab_size": 320
        });
        ModelConfig::parse(&json.to_string()).unwrap()
    }

    #[test]
    fn adapter_parameters_are_named_and_shaped_as_in_the_design() {
        let list = adapter_parameters(&config(), 4, 1).unwrap();
        let shape = |name: &str| list.iter().find(|p| p.name == name).unwrap_or_else(|| panic!("{name}")).shape.clone();
        assert_eq!(shape("side.gate"), [3]);
        assert_eq!(shape("side.down.3.weight"), [16, 64]);
        assert_eq!(shape("side.layers.2.mlp.gate_proj.weight"), [40, 16]);
        assert_eq!(shape("side.up.weight"), [64, 16]);
        // Of three layers the first and the third are tapped.
        let thinned = adapter_parameters(&config(), 4, 2).unwrap();
        let last = |start: &str| thinned.iter().filter(|p| p.name.starts_with(start)).map(|p| p.name.clone()).max().unwrap();
        assert!(last("side.down.").starts_with("side.down.2.") && last("side.layers.").starts_with("side.layers.1."));
    }

    #[test]
    fn a_family_that_is_no_decoder_is_refused() {
        let t5 = ModelConfig::parse(r#"{"model_type":"t5"}"#).unwrap();
        assert!(side_config(&t5, 8).unwrap_err().contains("`t5`"));
    }

    /// GPT-2's learned positions, biases and two feed-forward matrices; Qwen's biases on q, k and v and an untied head;
    /// Gemma 3's four norms a layer.
    #[test]
    fn costs_are_those_of_the_parameters_that_every_stage_holds() {
        let sizes = r#""hidden_size":64,"num_hidden_layers":3,"num_attention_heads":8,"num_key_value_heads":2,"head_dim":8,"intermediate_size":160,"vocab_size":320"#;
        let configs = [
            r#"{"model_type":"gpt2"}"#.to_owned(),
            format!(r#"{{"model_type":"llama",{sizes},"tie_word_embeddings":true}}"#),
            format!(r#"{{"model_type":"qwen2",{sizes},"tie_word_embeddings":false}}"#),
            format!(r#"{{"model_type":"gemma3_text",{sizes}}}"#),
        ];
        for json in configs {
            let config = ModelConfig::parse(&json).unwrap();
            let count = names::parameter_count(&config) as u64;
            for every in [1, 2] {
                let adapter = model_cost(&config, 4, every, 2 * count, 32.0).unwrap();
                let adapter = adapter.layers.iter().chain([&adapter.embedding, &adapter.head]).map(|part| part.adapter_parameters).sum::<u64>();
                assert_eq!(adapter, adapter_parameter_count(&config, 4, every).unwrap(), "{json}, every {every}");
            }
            let cost = model_cost(&config, 4, 1, 2 * count, 32.0).unwrap();
            for (from, to) in (0..config.layers).flat_map(|from| (from + 1..=config.layers).map(move |to| (from, to))) {
                let (first, last) = (from == 0, to == config.layers);
                let ends = [(first, cost.embedding.weight_bytes), (last, cost.head.weight_bytes)];
                let counted: u64 = cost.layers[from..to].iter().map(|l| l.weight_bytes).sum::<u64>() + ends.iter().filter(|(held, _)| *held).map(|(_, bytes)| bytes).sum::<u64>();
                let shared = if first && last { cost.shared_bytes } else { 0 };
                let held: usize = Parts::stage(&config, from..to).parameters(&config).iter().map(Parameter::elements).sum();
                assert_eq!(counted - shared, 2 * held as u64, "{json}, layers {from} .. {to}");
            }
            // a multiply-add is two FLOP: what is above the matrices is attention, quadratic in the tokens
            let matrices: usize = names::layer(&config, 0).iter().filter(|p| p.shape.len() > 1).map(Parameter::elements).sum();
            assert_eq!(model_cost(&config, 4, 1, 2 * count, 0.0).unwrap().layers[0].forward_flops, 2.0 * matrices as f64, "{json}");
        }
    }

    #[test]
    fn answering_takes_the_weights_once_and_the_adapter_in_f32() {
        let json = r#"{"model_type":"llama","hidden_size":64,"num_hidden_layers":3,"num_attention_heads":8,"num_key_value_heads":2,"head_dim":8,"intermediate_size":160,"vocab_size":320,"tie_word_embeddings":true}"#;
        let config = ModelConfig::parse(json).unwrap();
        let count = names::parameter_count(&config) as u64;
        let cost = model_cost(&config, 4, 2, 2 * count, 1.0).unwrap();
        let adapter = adapter_parameter_count(&config, 4, 2).unwrap();
        assert_eq!(answering_memory_bytes(&cost, 0), (2 * count + 4 * adapter) * 5 / 4);
        assert_eq!(answering_memory_bytes(&cost, 320) - answering_memory_bytes(&cost, 0), 4 * 320 * 64);
    }

    #[test]
    fn a_family_with_layer_norms_has_their_biases() {
        let gpt2 = ModelConfig::parse(r#"{"model_type":"gpt2"}"#).unwrap();
        let list = adapter_parameters(&gpt2, 8, 1).unwrap();
        assert!(list.contains(&Parameter { name: "side.norm.bias".into(), shape: vec![96] }));
        assert!(list.contains(&Parameter { name: "side.layers.11.attn.c_attn.weight".into(), shape: vec![96, 288] }));
    }

    #[test]
    fn a_reduction_that_does_not_divide_names_those_that_do() {
        assert!(side_config(&config(), 3).unwrap_err().ends_with("choose one of 1, 2, 4"));
        assert!(side_config(&config(), 0).is_err());
    }
}
