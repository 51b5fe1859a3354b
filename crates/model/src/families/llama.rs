//! Llama and its relatives: the arithmetic is the same, biases, norms and defaults differ.

use super::{AttentionNames, FamilyTable, FeedForwardNames, HeadNames, ProjectionNames, StackNames, SubLayerNorms};
use crate::config::{Activation, Positions, Reader, RopeScaling, invalid};
use crate::{Family, ModelConfig, ModelError};
use serde_json::Value;

/// Names within a stack; Qwen 2 and 3 and Mistral have them too.
static NAMES: StackNames = StackNames {
    embedding: "model.embed_tokens",
    own_embedding: None,
    positions: None,
    token_types: None,
    embedding_norm: None,
    relative_bias: None,
    layers: "model.layers",
    attention: AttentionNames {
        norms: SubLayerNorms::pre("input_layernorm"),
        projections: ProjectionNames::Split { q: "self_attn.q_proj", k: "self_attn.k_proj", v: "self_attn.v_proj" },
        head_norms: ["self_attn.q_norm", "self_attn.k_norm"],
        output: "self_attn.o_proj",
    },
    cross: None,
    feed_forward: FeedForwardNames {
        norms: SubLayerNorms::pre("post_attention_layernorm"),
        gate: "mlp.gate_proj",
        up: "mlp.up_proj",
        down: "mlp.down_proj",
    },
    final_norm: Some("model.norm"),
};

const fn table(family: Family, model_type: &'static str) -> FamilyTable {
    FamilyTable { family, model_type, other_names: &[], read, stack: |_| &NAMES, head: HeadNames::PLAIN, transposed: false, file_ties_head: false }
}

/// Llama 1 to 3, SmolLM, TinyLlama.
pub static LLAMA: FamilyTable = table(Family::Llama, "llama");
/// Mistral.
pub static MISTRAL: FamilyTable = table(Family::Mistral, "mistral");
/// Qwen 2 and 2.5.
pub static QWEN2: FamilyTable = table(Family::Qwen2, "qwen2");
/// Qwen 3.
pub static QWEN3: FamilyTable = table(Family::Qwen3, "qwen3");

/// Sizes that transformers gives a config without them: width, feed-forward width, layers, vocabulary.
fn default_sizes(family: Family) -> [usize; 4] {
    match family {
        Family::Mistral => [4096, 14_336, 32, 32_000],
        Family::Qwen2 | Family::Qwen3 => [4096, 22_016, 32, 151_936],
        _ => [4096, 11_008, 32, 32_000],
    }
}

fn read(family: Family, json: &Reader<'_>) -> Result<ModelConfig, ModelError> {
    let [width, ffn_width, layers, vocab] = default_sizes(family);
    let width = json.size("hidden_size", width)?;
    let layers = json.size("num_hidden_layers", layers)?;
    let heads = json.size("num_attention_heads", 32)?;
    // transformers' defaults for an absent key; null means "as many as there are query heads".
    let absent_kv_heads = match family {
        Family::Mistral => 8,
        Family::Qwen2 | Family::Qwen3 => 32,
        _ => heads,
    };
    let kv_heads = match json.get("num_key_value_heads") {
        None if absent_kv_heads <= heads && heads.is_multiple_of(absent_kv_heads) => absent_kv_heads,
        None | Some(Value::Null) => heads,
        Some(_) => json.required("num_key_value_heads")?,
    };
    let head_dim = match json.optional("head_dim")? {
        Some(head_dim) => head_dim,
        None if family == Family::Qwen3 && json.get("head_dim").is_none() => 128,
        None => divided_width(width, heads)?,
    };
    let attention_bias = match family {
        Family::Qwen2 => true,
        Family::Mistral => false,
        _ => json.flag("attention_bias", false)?,
    };
    let max_positions = json.size("max_position_embeddings", match family {
        Family::Mistral => 131_072,
        Family::Qwen2 | Family::Qwen3 => 32_768,
        _ => 2048,
    })?;
    Ok(ModelConfig {
        width,
        layers,
        heads,
        kv_heads,
        head_dim,
        ffn_width: json.size("intermediate_size", ffn_width)?,
        vocab: json.size("vocab_size", vocab)?,
        norm_eps: json.number("rms_norm_eps")?.unwrap_or(1e-6),
        activation: json.activation("hidden_act", Activation::Silu)?,
        positions: json.rotary(max_positions)?,
        tied_head: json.flag("tie_word_embeddings", false)?,
        attention_bias,
        output_bias: attention_bias && family != Family::Qwen2,
        mlp_bias: family == Family::Llama && json.flag("mlp_bias", false)?,
        qk_norm: family == Family::Qwen3,
        windows: windows(family, json, layers)?,
        max_positions,
        bos: json.ids("bos_token_id")?.first().copied(),
        eos: json.ids("eos_token_id")?,
        ..ModelConfig::blank(family)
    })
}

/// The width of a head where only the width of all is given.
pub(super) fn divided_width(width: usize, heads: usize) -> Result<usize, ModelError> {
    match width.is_multiple_of(heads) {
        true => Ok(width / heads),
        false => Err(invalid("hidden_size", width.to_string(), format!("a multiple of num_attention_heads ({heads})"))),
    }
}

/// transformers' rules: Mistral slides everywhere (4096 when the key is absent) whatever `layer_types` says, Qwen only when
/// told to and only from `max_window_layers` on, unless `layer_types` says otherwise.
fn windows(family: Family, json: &Reader<'_>, layers: usize) -> Result<Vec<usize>, ModelError> {
    let window = match (family, json.get("sliding_window")) {
        (Family::Llama, _) | (_, Some(Value::Null)) => 0,
        (Family::Mistral, None) => 4096,
        (Family::Mistral, Some(_)) => json.required("sliding_window")?,
        _ if !json.flag("use_sliding_window", false)? => 0,
        (_, None) => 4096,
        _ => json.required("sliding_window")?,
    };
    if !matches!(family, Family::Qwen2 | Family::Qwen3) {
        return Ok(vec![window; layers]);
    }
    // A kind without a window is told apart here from one that has all.
    if let Some(windows) = json.layer_types(layers, window.max(1))? {
        return match window == 0 && windows.contains(&1) {
            true => Err(invalid("layer_types", "`sliding_attention` in a layer".into(), "`full_attention` where there is no window (`use_sliding_window`, `sliding_window`)".into())),
            false => Ok(windows),
        };
    }
    let first_sliding = json.number("max_window_layers")?.unwrap_or(28.0) as usize;
    Ok((0..layers).map(|layer| if layer >= first_sliding { window } else { 0 }).collect())
}

/// The inverse of [`read`], in the new style.
pub(crate) fn to_config_json(config: &ModelConfig, dtype: &str) -> String {
    let Positions::Rotary { rope: rotary, .. } = &config.positions else { panic!("{:?} is not one of Llama's relatives", config.family) };
    let mut rope = serde_json::json!({ "rope_theta": rotary.theta, "rope_type": "default" });
    match rotary.scaling {
        RopeScaling::Default => {}
        RopeScaling::Dynamic => {
            // Up to `max_position_embeddings`, all that is computed here, each factor means the same.
            rope["rope_type"] = "dynamic".into();
            rope["factor"] = 1.0.into();
        }
        RopeScaling::Linear { factor } => {
            rope["rope_type"] = "linear".into();
            rope["factor"] = factor.into();
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            rope["rope_type"] = "llama3".into();
            rope["factor"] = factor.into();
            rope["low_freq_factor"] = low_freq_factor.into();
            rope["high_freq_factor"] = high_freq_factor.into();
            rope["original_max_position_embeddings"] = (original_max_positions as u64).into();
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_max_positions, attention_factor } => {
            rope["rope_type"] = "yarn".into();
            rope["factor"] = factor.into();
            rope["beta_fast"] = beta_fast.into();
            rope["beta_slow"] = beta_slow.into();
            rope["truncate"] = truncate.into();
            rope["original_max_position_embeddings"] = (original_max_positions as u64).into();
            rope["attention_factor"] = attention_factor.into();
        }
    }
    let class = match config.family {
        Family::Llama => "LlamaForCausalLM",
        Family::Mistral => "MistralForCausalLM",
        Family::Qwen2 => "Qwen2ForCausalLM",
        Family::Qwen3 => "Qwen3ForCausalLM",
        other => panic!("{other:?} is not one of Llama's relatives"),
    };
    let activation = match config.activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu_pytorch_tanh",
        Activation::QuickGelu => "quick_gelu",
        Activation::Relu => "relu",
        Activation::Tanh => "tanh",
    };
    let eos = match config.eos.as_slice() {
        [] => Value::Null,
        [one] => (*one).into(),
        many => many.to_vec().into(),
    };
    let mut json = serde_json::json!({
        "architectures": [class],
        "model_type": config.family.model_type(),
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn_width,
        "vocab_size": config.vocab,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": activation,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tied_head,
        "attention_bias": config.attention_bias,
        "mlp_bias": config.mlp_bias,
        "max_position_embeddings": config.max_positions,
        "bos_token_id": config.bos,
        "eos_token_id": eos,
        "dtype": dtype,
    });
    if let Some(&window) = config.windows.iter().find(|&&window| window > 0) {
        json["sliding_window"] = window.into();
        json["use_sliding_window"] = true.into();
        json["layer_types"] = config
            .windows
            .iter()
            .map(|&window| if window > 0 { "sliding_attention" } else { "full_attention" })
            .collect::<Vec<_>>()
            .into();
    } else if config.family == Family::Mistral {
        json["sliding_window"] = Value::Null;
    }
    serde_json::to_string_pretty(&json).expect("a JSON value serialises")
}
