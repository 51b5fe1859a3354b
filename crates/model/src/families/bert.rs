//! BERT: an encoder whose sub-layers are normed behind the residual sum, with learned positions and token types.

use super::llama::divided_width;
use super::{AttentionNames, FamilyTable, FeedForwardNames, HeadNames, ProjectionNames, StackNames, SubLayerNorms};
use crate::config::{Activation, HeadKind, NormKind, Positions, Reader, invalid};
use crate::{Family, ModelConfig, ModelError};
use serde_json::Value;

static NAMES: StackNames = StackNames {
    embedding: "bert.embeddings.word_embeddings",
    own_embedding: None,
    positions: Some("bert.embeddings.position_embeddings"),
    token_types: Some("bert.embeddings.token_type_embeddings"),
    embedding_norm: Some("bert.embeddings.LayerNorm"),
    relative_bias: None,
    layers: "bert.encoder.layer",
    attention: AttentionNames {
        norms: SubLayerNorms::post("attention.output.LayerNorm"),
        projections: ProjectionNames::Split { q: "attention.self.query", k: "attention.self.key", v: "attention.self.value" },
        head_norms: ["", ""],
        output: "attention.output.dense",
    },
    cross: None,
    feed_forward: FeedForwardNames {
        norms: SubLayerNorms::post("output.LayerNorm"),
        gate: "",
        up: "intermediate.dense",
        down: "output.dense",
    },
    final_norm: None,
};

/// `model_type` bert.
pub static TABLE: FamilyTable = FamilyTable {
    family: Family::Bert,
    model_type: "bert",
    other_names: &[],
    read,
    stack: |_| &NAMES,
    head: HeadNames {
        weight: "cls.predictions.decoder",
        bias: Some(("cls.predictions.decoder.bias", 0)),
        bias_is_buffer: false,
        transform: Some(["cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm"]),
        classifier: Some(["bert.pooler.dense", "classifier"]),
    },
    transposed: false,
    file_ties_head: false,
};

fn read(family: Family, json: &Reader<'_>) -> Result<ModelConfig, ModelError> {
    json.only("is_decoder", false)?;
    json.only("add_cross_attention", false)?;
    if let Some(kind) = json.text("position_embedding_type")
        && kind != "absolute"
    {
        return Err(invalid("position_embedding_type", format!("`{kind}`"), "`absolute`".into()));
    }
    let width = json.size("hidden_size", 768)?;
    let heads = json.size("num_attention_heads", 12)?;
    let layers = json.size("num_hidden_layers", 12)?;
    Ok(ModelConfig {
        width,
        layers,
        heads,
        kv_heads: heads,
        head_dim: divided_width(width, heads)?,
        ffn_width: json.size("intermediate_size", 3072)?,
        vocab: json.size("vocab_size", 30_522)?,
        norm: NormKind::Layer,
        norm_eps: json.number("layer_norm_eps")?.unwrap_or(1e-12),
        activation: json.activation("hidden_act", Activation::Gelu)?,
        gated: false,
        positions: Positions::Learned { offset: 0 },
        causal: false,
        token_types: json.size("type_vocab_size", 2)?,
        head: head(json)?,
        head_bias: true,
        tied_head: json.flag("tie_word_embeddings", true)?,
        attention_bias: true,
        output_bias: true,
        mlp_bias: true,
        windows: vec![0; layers],
        max_positions: json.size("max_position_embeddings", 512)?,
        bos: json.ids("bos_token_id")?.first().copied(),
        eos: json.ids("eos_token_id")?,
        ..ModelConfig::blank(family)
    })
}

/// The class of `transformers` with the head that classifies.
pub const CLASSIFIER_CLASS: &str = "BertForSequenceClassification";

/// By the class the weights were saved from.
fn head(json: &Reader<'_>) -> Result<HeadKind, ModelError> {
    Ok(match json.architecture() {
        "BertForMaskedLM" | "BertForPreTraining" | "BertLMHeadModel" => HeadKind::Masked,
        CLASSIFIER_CLASS => {
            let named = json.get("id2label").and_then(Value::as_object).map(|labels| labels.len());
            HeadKind::Classifier { labels: named.map_or_else(|| json.optional("num_labels"), |named| Ok(Some(named)))?.unwrap_or(2).max(1), pooled: true }
        }
        _ => HeadKind::None,
    })
}
