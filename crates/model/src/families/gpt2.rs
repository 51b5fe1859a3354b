//! GPT-2: LayerNorm before each sub-layer, learned positions, query, key and value from one projection, and linear
//! weights stored `[in, out]`.

use super::llama::divided_width;
use super::{AttentionNames, FamilyTable, FeedForwardNames, HeadNames, ProjectionNames, StackNames, SubLayerNorms};
use crate::config::{Activation, NormKind, Positions, Reader};
use crate::{Family, ModelConfig, ModelError};

static NAMES: StackNames = StackNames {
    embedding: "transformer.wte",
    own_embedding: None,
    positions: Some("transformer.wpe"),
    token_types: None,
    embedding_norm: None,
    relative_bias: None,
    layers: "transformer.h",
    attention: AttentionNames {
        norms: SubLayerNorms::pre("ln_1"),
        projections: ProjectionNames::Fused("attn.c_attn"),
        head_norms: ["", ""],
        output: "attn.c_proj",
    },
    cross: None,
    feed_forward: FeedForwardNames { norms: SubLayerNorms::pre("ln_2"), gate: "", up: "mlp.c_fc", down: "mlp.c_proj" },
    final_norm: Some("transformer.ln_f"),
};

/// `model_type` gpt2.
pub static TABLE: FamilyTable = FamilyTable {
    family: Family::Gpt2,
    model_type: "gpt2",
    other_names: &[("hidden_size", "n_embd"), ("max_position_embeddings", "n_positions"), ("num_attention_heads", "n_head"), ("num_hidden_layers", "n_layer")],
    read,
    stack: |_| &NAMES,
    head: HeadNames::PLAIN,
    transposed: true,
    file_ties_head: false,
};

fn read(family: Family, json: &Reader<'_>) -> Result<ModelConfig, ModelError> {
    json.only("add_cross_attention", false)?;
    let width = json.size("n_embd", 768)?;
    let heads = json.size("n_head", 12)?;
    let layers = json.size("n_layer", 12)?;
    let max_positions = json.size("n_positions", 1024)?;
    let ids = |key, default: u32| if json.get(key).is_none() { Ok(vec![default]) } else { json.ids(key) };
    Ok(ModelConfig {
        width,
        layers,
        heads,
        kv_heads: heads,
        head_dim: divided_width(width, heads)?,
        ffn_width: json.optional("n_inner")?.unwrap_or(4 * width),
        vocab: json.size("vocab_size", 50_257)?,
        norm: NormKind::Layer,
        norm_eps: json.number("layer_norm_epsilon")?.unwrap_or(1e-5),
        activation: json.activation("activation_function", Activation::GeluTanh)?,
        gated: false,
        positions: Positions::Learned { offset: 0 },
        attention_scale: if json.flag("scale_attn_weights", true)? { None } else { Some(1.0) },
        scale_by_layer: json.flag("scale_attn_by_inverse_layer_idx", false)?,
        tied_head: json.flag("tie_word_embeddings", true)?,
        attention_bias: true,
        output_bias: true,
        mlp_bias: true,
        windows: vec![0; layers],
        max_positions,
        bos: ids("bos_token_id", 50_256)?.first().copied(),
        eos: ids("eos_token_id", 50_256)?,
        ..ModelConfig::blank(family)
    })
}
