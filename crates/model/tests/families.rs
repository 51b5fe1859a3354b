//! Configs of the families: what keys that are left out mean, both styles, and what the weight file decides.

use barycenter_model::names::{self, Parts};
use barycenter_model::{Activation, HeadKind, ModelConfig, NormKind, Positions, RopeConfig, RopeScaling};
use serde_json::{Value, json};

fn parse(value: Value) -> ModelConfig {
    ModelConfig::parse(&value.to_string()).expect("a config that runs")
}

fn message(value: Value) -> String {
    ModelConfig::parse(&value.to_string()).expect_err("a config that does not run").to_string()
}

/// Numbers of parameters that the models are known to have, from nothing but `model_type`: every default counts.
#[test]
fn defaults_give_models_of_the_known_size() {
    let count = |config: Value| names::parameter_count(&parse(config));
    assert_eq!(count(json!({"model_type": "gpt2"})), 124_439_808, "GPT-2 small");
    // The pooler is not computed with where there is no head.
    assert_eq!(count(json!({"model_type": "bert"})) + 768 * 769, 109_482_240, "BERT base");
    assert_eq!(count(json!({"model_type": "t5"})), 60_506_624, "T5 small");
    assert_eq!(count(json!({"model_type": "bart"})) - 50_265, 406_291_456, "BART large, without the bias on the logits");
}

#[test]
fn t5_scales_what_enters_the_head_unless_the_config_says_untied() {
    let t5 = parse(json!({"model_type": "t5", "d_model": 64}));
    assert_eq!((t5.head_scale, t5.gated, t5.activation), (0.125, false, Activation::Relu));
    assert_eq!(t5.attention_scale, Some(1.0));
    let old = parse(json!({"model_type": "t5", "tie_word_embeddings": false, "feed_forward_proj": "gated-gelu", "num_layers": 3}));
    assert_eq!((old.head_scale, old.gated, old.activation, old.layers), (1.0, true, Activation::GeluTanh, 3));
    let new = parse(json!({"model_type": "t5", "tie_word_embeddings": true, "scale_decoder_outputs": false}));
    assert_eq!(new.head_scale, 1.0);
    // Whether there is a matrix of its own is seen in the file alone.
    assert!(!new.clone().settled_by(|name| name == "lm_head.weight").tied_head);
    assert!(old.settled_by(|_| false).tied_head);
    let encoder = new.encoder.expect("T5 has an encoder");
    assert!(!encoder.causal && encoder.head == HeadKind::None);
    assert!(message(json!({"model_type": "t5", "feed_forward_proj": "gated-softplus"})).contains("gated-softplus"));
}

#[test]
fn gemma3_reads_both_styles_the_same() {
    let common = json!({"model_type": "gemma3_text", "hidden_size": 64, "num_hidden_layers": 6, "sliding_window": 8});
    let with = |changes: Value| {
        let mut config = common.clone();
        changes.as_object().expect("an object").iter().for_each(|(key, value)| config[key] = value.clone());
        parse(config)
    };
    let old = with(json!({
        "rope_theta": 2e5, "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 5e3, "sliding_window_pattern": 3
    }));
    let new = with(json!({
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 5e3}
        },
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    }));
    assert_eq!(old, new);
    assert_eq!((old.norm, old.embedding_scale, old.windows[..3].to_vec()), (NormKind::RmsOnePlus, 8.0, vec![8, 8, 0]));
    assert_eq!(old.rope(0).map(|rope| rope.theta), Some(5e3), "layers with a window have their own base");
    assert_eq!(with(json!({"final_logit_softcapping": 30.0})).logit_cap, Some(30.0));
    assert!(message(json!({"model_type": "gemma3_text", "attn_logit_softcapping": 30.0})).contains("attn_logit_softcapping"));
    // The old key is put over the new one; its window may be absent where no layer slides.
    let both = with(json!({"rope_scaling": {"rope_type": "linear", "factor": 4.0}, "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 3e2}}}));
    assert_eq!(both.rope(5), Some(&RopeConfig { theta: 3e2, scaling: RopeScaling::Linear { factor: 4.0 } }));
    assert_eq!(with(json!({"sliding_window": null, "layer_types": ["full_attention", "full_attention", "full_attention", "full_attention", "full_attention", "full_attention"]})).windows, [0; 6]);
    assert!(message(json!({"model_type": "gemma3_text", "sliding_window": null})).contains("sliding_window"));
}

/// What `from_pretrained` of transformers 5.24 makes of the same keys.
#[test]
fn keys_that_say_the_same_thing_twice_are_weighed_as_transformers_does() {
    let gpt2 = parse(json!({"model_type": "gpt2", "hidden_size": 24, "num_hidden_layers": 2, "n_head": 3, "num_attention_heads": 2, "n_positions": 9, "max_position_embeddings": 30}));
    assert_eq!((gpt2.width, gpt2.layers, gpt2.heads, gpt2.max_positions), (24, 2, 2, 30), "a key's other name wins");
    let t5 = parse(json!({"model_type": "t5", "hidden_size": 24, "num_attention_heads": 3, "head_dim": 5, "num_hidden_layers": 2}));
    assert_eq!((t5.width, t5.heads, t5.head_dim, t5.layers), (24, 3, 5, 2));
    let bart = parse(json!({"model_type": "bart", "hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "decoder_attention_heads": 4}));
    let encoder = bart.encoder.as_deref().expect("BART has an encoder");
    assert_eq!((bart.width, bart.heads, encoder.heads, encoder.layers, bart.layers), (24, 4, 3, 2, 12));
    let gated = parse(json!({"model_type": "t5", "dense_act_fn": "silu", "is_gated_act": true, "feed_forward_proj": "relu"}));
    assert_eq!((gated.gated, gated.activation), (true, Activation::Silu));
    let labels = parse(json!({"model_type": "bert", "architectures": ["BertForSequenceClassification"], "num_labels": 7, "id2label": {"0": "a", "1": "b", "2": "c"}}));
    assert_eq!(labels.classes(), 3);

    let scaling = |changes: Value| {
        let mut config = json!({"model_type": "llama", "max_position_embeddings": 64});
        changes.as_object().expect("an object").iter().for_each(|(key, value)| config[key] = value.clone());
        *parse(config).rope(0).expect("Llama rotates")
    };
    let linear = RopeConfig { theta: 500.0, scaling: RopeScaling::Linear { factor: 4.0 } };
    let new = json!({"rope_type": "default", "rope_theta": 7.0});
    assert_eq!(scaling(json!({"rope_parameters": new, "rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 500.0})), linear);
    assert_eq!(scaling(json!({"rope_parameters": new, "rope_scaling": {}})).theta, 7.0);
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32});
    let original = |config: RopeConfig| match config.scaling {
        RopeScaling::Llama3 { original_max_positions, .. } => original_max_positions,
        other => panic!("{other:?}"),
    };
    assert_eq!(original(scaling(json!({"rope_parameters": llama3, "original_max_position_embeddings": 16}))), 16.0);
    let yarn = json!({"rope_type": "yarn", "factor": null, "beta_fast": 0, "original_max_position_embeddings": 16});
    let RopeScaling::Yarn { factor, beta_fast, .. } = scaling(json!({"rope_parameters": yarn})).scaling else { panic!("YaRN") };
    assert_eq!((factor, beta_fast), (4.0, 32.0));
    assert!(message(json!({"model_type": "qwen2", "rope_parameters": {"full_attention": {"rope_type": "default"}}})).contains("rope_parameters"));
}

#[test]
fn windows_are_where_transformers_has_them() {
    let kinds = ["sliding_attention", "full_attention"];
    let mistral = parse(json!({"model_type": "mistral", "num_hidden_layers": 2, "sliding_window": 3, "layer_types": kinds}));
    assert_eq!(mistral.windows, [3, 3], "Mistral does not read layer_types");
    let qwen = json!({"model_type": "qwen3", "num_hidden_layers": 2, "sliding_window": 3, "use_sliding_window": true, "layer_types": kinds});
    assert_eq!(parse(qwen.clone()).windows, [3, 0]);
    let mut off = qwen;
    off["use_sliding_window"] = false.into();
    assert!(message(off.clone()).contains("layer_types"));
    off["layer_types"] = json!(["attention", "full_attention"]);
    assert_eq!(parse(off).windows, [0, 0]);
}

#[test]
fn a_dynamic_rotation_is_computed_up_to_the_models_context() {
    let llama = parse(json!({"model_type": "llama", "max_position_embeddings": 64, "rope_scaling": {"type": "dynamic", "factor": 2.0}}));
    assert_eq!(llama.position_limit(), Some(64));
    let plain = RopeConfig { theta: 1e4, scaling: RopeScaling::Default };
    assert_eq!(llama.rope(0).expect("Llama rotates").inv_freq(8), plain.inv_freq(8));
    assert!(message(json!({"model_type": "llama", "rope_scaling": {"type": "dynamic"}})).contains("factor"));
}

#[test]
fn a_class_says_which_head_there_is() {
    let with = |model_type: &str, class: &str, tied: bool| json!({"model_type": model_type, "architectures": [class], "tie_word_embeddings": tied});
    let base = parse(with("llama", "LlamaModel", false));
    assert_eq!(base.head, HeadKind::None);
    assert_eq!(base.clone().settled_by(|_| false).head, HeadKind::None);
    assert_eq!(base.settled_by(|name| name == "lm_head.weight").head, HeadKind::Language, "the file has one all the same");
    assert_eq!(parse(with("qwen2", "Qwen2Model", true)).head, HeadKind::Language);
    assert_eq!(parse(with("t5", "T5WithLMHeadModel", true)).head, HeadKind::Language);
    for (model_type, class) in [("llama", "LlamaForSequenceClassification"), ("gpt2", "GPT2ForTokenClassification"), ("bart", "BartForCausalLM"), ("t5", "T5EncoderModel")] {
        let said = message(with(model_type, class, true));
        assert!(said.contains("architectures") && said.contains(class), "{said}");
    }
    assert!(message(json!({"model_type": "llama", "per_layer_config": {"0": {"head_dim": 4}}})).contains("per_layer_config"));
}

#[test]
fn bert_gets_the_head_of_its_class() {
    let head = |class: &str| parse(json!({"model_type": "bert", "architectures": [class], "id2label": {"0": "a", "1": "b", "2": "c"}})).head;
    assert_eq!(head("BertModel"), HeadKind::None);
    assert_eq!(head("BertForMaskedLM"), HeadKind::Masked);
    assert_eq!(head("BertForSequenceClassification"), HeadKind::Classifier { labels: 3, pooled: true });
    let bert = parse(json!({"model_type": "bert", "hidden_size": 24, "num_attention_heads": 2}));
    let pooled = bert.clone().with_classifier(3, |_| true).expect("BERT classifies");
    let names = |config: &ModelConfig| names::classifier(config).into_iter().map(|parameter| parameter.name).collect::<Vec<_>>();
    assert_eq!(names(&pooled), ["bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"]);
    assert_eq!(names(&bert.with_classifier(3, |_| false).expect("BERT classifies")), ["classifier.weight", "classifier.bias"], "without a pooler in the file");
    let refused = parse(json!({"model_type": "t5"})).with_classifier(2, |_| true).expect_err("T5 does not").to_string();
    assert!(refused.contains("`t5`") && refused.contains("BERT"), "{refused}");
    assert!(message(json!({"model_type": "bert", "position_embedding_type": "relative_key"})).contains("relative_key"));
    assert!(message(json!({"model_type": "bert", "is_decoder": true})).contains("is_decoder"));
}

#[test]
fn bart_stacks_share_an_embedding_unless_the_file_holds_two() {
    let bart = parse(json!({"model_type": "bart", "d_model": 32, "scale_embedding": true, "tie_word_embeddings": false}));
    assert_eq!((bart.embedding_scale, bart.positions), (32f64.sqrt(), Positions::Learned { offset: 2 }));
    let shared = bart.clone().settled_by(|name| name == "model.shared.weight");
    assert_eq!(names::embedding(&shared).name, "model.shared.weight");
    assert!(names::head_bias(&shared).is_none(), "files of the base class have no bias on the logits");
    let own = bart.settled_by(|_| true);
    let list = Parts::all(&own).parameters(&own);
    for name in ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight", "final_logits_bias"] {
        assert_eq!(list.iter().filter(|parameter| parameter.name == name).count(), 1, "{name}");
    }
}

#[test]
fn names_are_found_as_files_store_them() {
    let stored = |name: &str, file: &str| names::stored_name(name, |candidate| candidate == file);
    for (name, file) in [
        ("transformer.h.0.ln_1.weight", "h.0.ln_1.weight"),
        ("bert.embeddings.LayerNorm.weight", "bert.embeddings.LayerNorm.gamma"),
        ("bert.embeddings.LayerNorm.bias", "embeddings.LayerNorm.beta"),
        ("model.layers.0.mlp.up_proj.weight", "language_model.model.layers.0.mlp.up_proj.weight"),
        ("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ] {
        assert_eq!(stored(name, file).as_deref(), Some(file));
    }
    assert_eq!(stored("model.norm.weight", "norm.bias"), None);
}
