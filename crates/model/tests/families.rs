//! Configs of the families: what keys that are left out mean, both styles, and what the weight file decides.

use barycenter_model::names::{self, Parts};
use barycenter_model::{Activation, HeadKind, ModelConfig, NormKind, Positions};
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
    assert!(message(json!({"model_type": "gemma3_text", "final_logit_softcapping": 30.0})).contains("final_logit_softcapping"));
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
