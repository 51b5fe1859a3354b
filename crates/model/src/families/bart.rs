//! BART: encoder and decoder, normed behind the residual sums, learned positions that start at row 2.

use super::llama::divided_width;
use super::{AttentionNames, FamilyTable, FeedForwardNames, HeadNames, ProjectionNames, StackNames, SubLayerNorms};
use crate::config::{Activation, HeadKind, NormKind, Positions, Reader};
use crate::{Family, ModelConfig, ModelError};

const ATTENTION: AttentionNames = AttentionNames {
    norms: SubLayerNorms::post("self_attn_layer_norm"),
    projections: ProjectionNames::Split { q: "self_attn.q_proj", k: "self_attn.k_proj", v: "self_attn.v_proj" },
    head_norms: ["", ""],
    output: "self_attn.out_proj",
};

const FEED_FORWARD: FeedForwardNames = FeedForwardNames { norms: SubLayerNorms::post("final_layer_norm"), gate: "", up: "fc1", down: "fc2" };

static ENCODER: StackNames = StackNames {
    embedding: "model.shared",
    own_embedding: Some("model.encoder.embed_tokens"),
    positions: Some("model.encoder.embed_positions"),
    token_types: None,
    embedding_norm: Some("model.encoder.layernorm_embedding"),
    relative_bias: None,
    layers: "model.encoder.layers",
    attention: ATTENTION,
    cross: None,
    feed_forward: FEED_FORWARD,
    final_norm: None,
};

static DECODER: StackNames = StackNames {
    embedding: "model.shared",
    own_embedding: Some("model.decoder.embed_tokens"),
    positions: Some("model.decoder.embed_positions"),
    token_types: None,
    embedding_norm: Some("model.decoder.layernorm_embedding"),
    relative_bias: None,
    layers: "model.decoder.layers",
    attention: ATTENTION,
    cross: Some(AttentionNames {
        norms: SubLayerNorms::post("encoder_attn_layer_norm"),
        projections: ProjectionNames::Split { q: "encoder_attn.q_proj", k: "encoder_attn.k_proj", v: "encoder_attn.v_proj" },
        head_norms: ["", ""],
        output: "encoder_attn.out_proj",
    }),
    feed_forward: FEED_FORWARD,
    final_norm: None,
};

/// `model_type` bart.
pub static TABLE: FamilyTable = FamilyTable {
    family: Family::Bart,
    model_type: "bart",
    other_names: &[("hidden_size", "d_model"), ("num_attention_heads", "encoder_attention_heads"), ("num_hidden_layers", "encoder_layers")],
    read,
    stack: |config| if config.causal { &DECODER } else { &ENCODER },
    head: HeadNames { bias: Some(("final_logits_bias", 1)), bias_is_buffer: true, ..HeadNames::PLAIN },
    transposed: false,
    file_ties_head: false,
};

/// Rows of the position table before that of position 0, in every BART.
const POSITION_OFFSET: usize = 2;

fn read(family: Family, json: &Reader<'_>) -> Result<ModelConfig, ModelError> {
    let width = json.size("d_model", 1024)?;
    let ids = |key, default: u32| if json.get(key).is_none() { Ok(vec![default]) } else { json.ids(key) };
    let stack = |layers, heads: usize, ffn_width| -> Result<ModelConfig, ModelError> {
        Ok(ModelConfig {
            width,
            layers,
            heads,
            kv_heads: heads,
            head_dim: divided_width(width, heads)?,
            ffn_width,
            vocab: json.size("vocab_size", 50_265)?,
            norm: NormKind::Layer,
            // torch's default; BART's config does not name it.
            norm_eps: 1e-5,
            activation: json.activation("activation_function", Activation::Gelu)?,
            gated: false,
            positions: Positions::Learned { offset: POSITION_OFFSET },
            embedding_scale: if json.flag("scale_embedding", false)? { (width as f64).sqrt() } else { 1.0 },
            attention_bias: true,
            output_bias: true,
            mlp_bias: true,
            windows: vec![0; layers],
            max_positions: json.size("max_position_embeddings", 1024)?,
            ..ModelConfig::blank(family)
        })
    };
    let encoder = stack(json.size("encoder_layers", 12)?, json.size("encoder_attention_heads", 16)?, json.size("encoder_ffn_dim", 4096)?)?;
    let decoder = stack(json.size("decoder_layers", 12)?, json.size("decoder_attention_heads", 16)?, json.size("decoder_ffn_dim", 4096)?)?;
    Ok(ModelConfig {
        head_bias: true,
        tied_head: json.flag("tie_word_embeddings", true)?,
        bos: ids("bos_token_id", 0)?.first().copied(),
        eos: ids("eos_token_id", 2)?,
        decoder_start: ids("decoder_start_token_id", 2)?.first().copied(),
        forced_first: json.ids("forced_bos_token_id")?.first().copied(),
        forced_last: ids("forced_eos_token_id", 2)?.first().copied(),
        encoder: Some(Box::new(ModelConfig { causal: false, head: HeadKind::None, ..encoder })),
        ..decoder
    })
}
