//! Gemma 3, the text part: norms on both sides of a sub-layer that multiply by 1 + w, a scaled embedding, layers with
//! a sliding window that rotate by a base of their own.

use super::{AttentionNames, FamilyTable, FeedForwardNames, HeadNames, ProjectionNames, StackNames, SubLayerNorms};
use crate::config::{Activation, NormKind, Positions, Reader, RopeConfig, invalid};
use crate::{Family, ModelConfig, ModelError};
use serde_json::Value;

static NAMES: StackNames = StackNames {
    embedding: "model.embed_tokens",
    own_embedding: None,
    positions: None,
    token_types: None,
    embedding_norm: None,
    relative_bias: None,
    layers: "model.layers",
    attention: AttentionNames {
        norms: SubLayerNorms::sandwich("input_layernorm", "post_attention_layernorm"),
        projections: ProjectionNames::Split { q: "self_attn.q_proj", k: "self_attn.k_proj", v: "self_attn.v_proj" },
        head_norms: ["self_attn.q_norm", "self_attn.k_norm"],
        output: "self_attn.o_proj",
    },
    cross: None,
    feed_forward: FeedForwardNames {
        norms: SubLayerNorms::sandwich("pre_feedforward_layernorm", "post_feedforward_layernorm"),
        gate: "mlp.gate_proj",
        up: "mlp.up_proj",
        down: "mlp.down_proj",
    },
    final_norm: Some("model.norm"),
};

/// `model_type` gemma3_text.
pub static TABLE: FamilyTable = FamilyTable {
    family: Family::Gemma3,
    model_type: "gemma3_text",
    other_names: &[],
    read,
    stack: |_| &NAMES,
    head: HeadNames::PLAIN,
    transposed: false,
    file_ties_head: false,
};

fn read(family: Family, json: &Reader<'_>) -> Result<ModelConfig, ModelError> {
    json.only_absent("attn_logit_softcapping")?;
    json.only("use_bidirectional_attention", false)?;
    let width = json.size("hidden_size", 2304)?;
    let layers = json.size("num_hidden_layers", 26)?;
    let max_positions = json.size("max_position_embeddings", 131_072)?;
    let attention_bias = json.flag("attention_bias", false)?;
    let query_scalar = json.number("query_pre_attn_scalar")?.unwrap_or(256.0);
    let ids = |key, default: u32| if json.get(key).is_none() { Ok(vec![default]) } else { json.ids(key) };
    Ok(ModelConfig {
        width,
        layers,
        heads: json.size("num_attention_heads", 8)?,
        kv_heads: json.size("num_key_value_heads", 4)?,
        head_dim: json.size("head_dim", 256)?,
        ffn_width: json.size("intermediate_size", 9216)?,
        vocab: json.size("vocab_size", 262_208)?,
        norm: NormKind::RmsOnePlus,
        norm_eps: json.number("rms_norm_eps")?.unwrap_or(1e-6),
        activation: json.activation("hidden_activation", Activation::GeluTanh)?,
        positions: positions(json, max_positions)?,
        attention_scale: Some(1.0 / query_scalar.sqrt()),
        embedding_scale: (width as f64).sqrt(),
        logit_cap: match json.number("final_logit_softcapping")? {
            Some(cap) if cap <= 0.0 => return Err(invalid("final_logit_softcapping", cap.to_string(), "a positive number or null".into())),
            cap => cap,
        },
        tied_head: json.flag("tie_word_embeddings", true)?,
        attention_bias,
        output_bias: attention_bias,
        qk_norm: true,
        windows: windows(json, layers)?,
        max_positions,
        bos: ids("bos_token_id", 2)?.first().copied(),
        eos: ids("eos_token_id", 1)?,
        ..ModelConfig::blank(family)
    })
}

/// New style: `rope_parameters` has an object for each kind of layer. Old style: `rope_theta` and `rope_scaling` for
/// the layers without a window, `rope_local_base_freq` for the others. Where both are there, `rope_scaling` is put over
/// the object, as transformers does; and as there, `truncate` counts only beside the objects.
fn positions(json: &Reader<'_>, max_positions: usize) -> Result<Positions, ModelError> {
    let outer = json.get("rope_parameters").and_then(Value::as_object);
    let of_kind = |kind| {
        let mut object = outer.and_then(|rope| rope.get(kind)?.as_object().cloned()).unwrap_or_default();
        object.remove("truncate");
        object.extend(outer.and_then(|rope| Some(("truncate".to_string(), rope.get("truncate")?.clone()))));
        object
    };
    let mut whole = of_kind("full_attention");
    if let Some(scaling) = json.get("rope_scaling").and_then(Value::as_object) {
        // A kind of the old name is meant, though another of the new name stands there.
        if scaling.contains_key("type") && !scaling.contains_key("rope_type") {
            whole.remove("rope_type");
        }
        whole.extend(scaling.clone());
    }
    let rope = json.rope(&Value::Object(whole), "rope_theta", 1_000_000.0, None, max_positions)?;
    let local: RopeConfig = json.rope(&Value::Object(of_kind("sliding_attention")), "rope_local_base_freq", 10_000.0, None, max_positions)?;
    Ok(Positions::Rotary { rope, local: Some(local) })
}

/// Every `sliding_window_pattern`-th layer (6) sees everything, unless `layer_types` says otherwise.
fn windows(json: &Reader<'_>, layers: usize) -> Result<Vec<usize>, ModelError> {
    let window = if matches!(json.get("sliding_window"), Some(Value::Null)) { None } else { Some(json.size("sliding_window", 4096)?) };
    let windows = match json.layer_types(layers, window.unwrap_or(1))? {
        Some(windows) => windows,
        None => {
            let pattern = json.optional("sliding_window_pattern")?.unwrap_or(6);
            (1..=layers).map(|layer| if layer.is_multiple_of(pattern) { 0 } else { window.unwrap_or(1) }).collect()
        }
    };
    match window.is_none() && windows.contains(&1) {
        true => Err(invalid("sliding_window", "null".into(), "a positive whole number where a layer slides (`layer_types`)".into())),
        false => Ok(windows),
    }
}
