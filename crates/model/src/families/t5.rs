//! T5 v1.0, v1.1 and FLAN: encoder and decoder, RMSNorm before each sub-layer, positions as a bias on the scores that
//! the first layer holds for all, no scaling of the scores.

use super::{AttentionNames, FamilyTable, FeedForwardNames, HeadNames, ProjectionNames, StackNames, SubLayerNorms};
use crate::config::{Activation, HeadKind, Positions, Reader, invalid};
use crate::{Family, ModelConfig, ModelError};
use serde_json::Value;

const ATTENTION: AttentionNames = AttentionNames {
    norms: SubLayerNorms::pre("layer.0.layer_norm"),
    projections: ProjectionNames::Split { q: "layer.0.SelfAttention.q", k: "layer.0.SelfAttention.k", v: "layer.0.SelfAttention.v" },
    head_norms: ["", ""],
    output: "layer.0.SelfAttention.o",
};

const CROSS: AttentionNames = AttentionNames {
    norms: SubLayerNorms::pre("layer.1.layer_norm"),
    projections: ProjectionNames::Split { q: "layer.1.EncDecAttention.q", k: "layer.1.EncDecAttention.k", v: "layer.1.EncDecAttention.v" },
    head_norms: ["", ""],
    output: "layer.1.EncDecAttention.o",
};

const fn encoder(up: &'static str) -> StackNames {
    StackNames {
        embedding: "shared",
        own_embedding: None,
        positions: None,
        token_types: None,
        embedding_norm: None,
        relative_bias: Some("encoder.block.0.layer.0.SelfAttention.relative_attention_bias"),
        layers: "encoder.block",
        attention: ATTENTION,
        cross: None,
        feed_forward: FeedForwardNames {
            norms: SubLayerNorms::pre("layer.1.layer_norm"),
            gate: "layer.1.DenseReluDense.wi_0",
            up,
            down: "layer.1.DenseReluDense.wo",
        },
        final_norm: Some("encoder.final_layer_norm"),
    }
}

const fn decoder(up: &'static str) -> StackNames {
    StackNames {
        embedding: "shared",
        own_embedding: None,
        positions: None,
        token_types: None,
        embedding_norm: None,
        relative_bias: Some("decoder.block.0.layer.0.SelfAttention.relative_attention_bias"),
        layers: "decoder.block",
        attention: ATTENTION,
        cross: Some(CROSS),
        feed_forward: FeedForwardNames {
            norms: SubLayerNorms::pre("layer.2.layer_norm"),
            gate: "layer.2.DenseReluDense.wi_0",
            up,
            down: "layer.2.DenseReluDense.wo",
        },
        final_norm: Some("decoder.final_layer_norm"),
    }
}

// A gate comes with another name for the other projection.
static ENCODER: StackNames = encoder("layer.1.DenseReluDense.wi");
static ENCODER_GATED: StackNames = encoder("layer.1.DenseReluDense.wi_1");
static DECODER: StackNames = decoder("layer.2.DenseReluDense.wi");
static DECODER_GATED: StackNames = decoder("layer.2.DenseReluDense.wi_1");

/// `model_type` t5.
pub static TABLE: FamilyTable = FamilyTable {
    family: Family::T5,
    model_type: "t5",
    other_names: &[("hidden_size", "d_model"), ("num_attention_heads", "num_heads"), ("num_hidden_layers", "num_layers"), ("head_dim", "d_kv")],
    read,
    stack: |config| match (config.causal, config.gated) {
        (false, false) => &ENCODER,
        (false, true) => &ENCODER_GATED,
        (true, false) => &DECODER,
        (true, true) => &DECODER_GATED,
    },
    head: HeadNames::PLAIN,
    transposed: false,
    file_ties_head: true,
};

fn read(family: Family, json: &Reader<'_>) -> Result<ModelConfig, ModelError> {
    let width = json.size("d_model", 512)?;
    let heads = json.size("num_heads", 8)?;
    let layers = json.size("num_layers", 6)?;
    let (gated, activation) = feed_forward(json)?;
    let buckets = json.size("relative_attention_num_buckets", 32)?;
    let max_distance = json.size("relative_attention_max_distance", 128)?;
    if buckets < 4 || max_distance <= buckets / 2 {
        let expected = format!("more than half of relative_attention_num_buckets ({buckets}, at least 4)");
        return Err(invalid("relative_attention_max_distance", max_distance.to_string(), expected));
    }
    let tied = json.flag("tie_word_embeddings", true)?;
    let ids = |key, default: u32| if json.get(key).is_none() { Ok(vec![default]) } else { json.ids(key) };
    let stack = |layers| -> Result<ModelConfig, ModelError> {
        Ok(ModelConfig {
            width,
            layers,
            heads,
            kv_heads: heads,
            head_dim: json.size("d_kv", 64)?,
            ffn_width: json.size("d_ff", 2048)?,
            vocab: json.size("vocab_size", 32_128)?,
            norm_eps: json.number("layer_norm_epsilon")?.unwrap_or(1e-6),
            activation,
            gated,
            positions: Positions::Relative { buckets, max_distance },
            attention_scale: Some(1.0),
            windows: vec![0; layers],
            // What it was trained at; the bias has no limit.
            max_positions: json.size("n_positions", 512)?,
            ..ModelConfig::blank(family)
        })
    };
    Ok(ModelConfig {
        // transformers: configs of v1.1 say "not tied" and mean "not scaled"; newer ones say so.
        head_scale: if json.flag("scale_decoder_outputs", tied)? { 1.0 / (width as f64).sqrt() } else { 1.0 },
        tied_head: tied,
        eos: ids("eos_token_id", 1)?,
        bos: json.ids("bos_token_id")?.first().copied(),
        decoder_start: ids("decoder_start_token_id", 0)?.first().copied(),
        forced_first: json.ids("forced_bos_token_id")?.first().copied(),
        forced_last: json.ids("forced_eos_token_id")?.first().copied(),
        encoder: Some(Box::new(ModelConfig { causal: false, head: HeadKind::None, ..stack(layers)? })),
        ..stack(json.optional("num_decoder_layers")?.unwrap_or(layers))?
    })
}

/// `relu`, `gated-gelu` and the like: whether there is a gate, and the activation. Files also say each by a key of its own,
/// which wins, as in transformers.
fn feed_forward(json: &Reader<'_>) -> Result<(bool, Activation), ModelError> {
    let kind = json.text("feed_forward_proj").unwrap_or("relu");
    let (gated, name) = kind.strip_prefix("gated-").map_or((false, kind), |name| (true, name));
    // The one exception of transformers.
    let name = if kind == "gated-gelu" { "gelu_new" } else { name };
    let bad = || invalid("feed_forward_proj", format!("`{kind}`"), "`relu`, `gated-gelu`, `gated-silu` or another activation that runs here".into());
    let activation = match json.get("dense_act_fn") {
        None | Some(Value::Null) => Activation::from_name(name).ok_or_else(bad)?,
        Some(_) => json.activation("dense_act_fn", Activation::Relu)?,
    };
    Ok((json.flag("is_gated_act", gated)?, activation))
}
