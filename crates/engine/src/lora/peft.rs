//! PEFT's files: `adapter_config.json` and the names in `adapter_model.safetensors`.

use super::{LoraConfig, Patterns};
use crate::EngineError;
use barycenter_model::{HeadKind, ModelConfig, RawTensor, names};
use serde_json::Value;

/// What PEFT puts before a module's name.
pub(crate) const PREFIX: &str = "base_model.model.";

/// PEFT's name of the `A` or `B` of a module.
pub fn peft_name(module: &str, part: char) -> String {
    format!("{PREFIX}{module}.lora_{part}.weight")
}

/// PEFT's name of a parameter that is saved whole beside the products (`modules_to_save`).
pub fn peft_saved_name(parameter: &str) -> String {
    format!("{PREFIX}{parameter}")
}

/// Looks a tensor up by PEFT's name; a model saved from its base class has shorter names.
pub(crate) fn find_stored(name: &str, find: &mut impl FnMut(&str) -> Option<RawTensor>) -> Option<RawTensor> {
    let module = name.strip_prefix(PREFIX)?;
    let mut found = None;
    barycenter_model::names::stored_name(module, |module| {
        found = found.take().or_else(|| find(&format!("{PREFIX}{module}")));
        found.is_some()
    });
    found
}

/// What PEFT should know of the model around the products.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeftTask {
    /// `CAUSAL_LM`, `SEQ_CLS`, `SEQ_2_SEQ_LM`.
    pub task_type: &'static str,
    /// Modules that are trained and saved whole.
    pub modules_to_save: Vec<String>,
}

impl PeftTask {
    /// What a model is for, by its stacks and its head.
    pub fn of(model: &ModelConfig) -> Self {
        let task_type = match (model.head, &model.encoder) {
            (HeadKind::Classifier { .. }, _) => "SEQ_CLS",
            (_, Some(_)) => "SEQ_2_SEQ_LM",
            _ => "CAUSAL_LM",
        };
        // `bert.pooler.dense` belongs to the module `pooler`.
        let module = |name: &str| name.strip_suffix(".weight").map(|module| module.trim_end_matches(".dense").rsplit('.').next().unwrap_or(module).to_string());
        Self { task_type, modules_to_save: names::classifier(model).iter().filter_map(|parameter| module(&parameter.name)).collect() }
    }
}

/// What PEFT may add to, or do otherwise than, a product beside a linear layer.
const NOT_COMPUTED: [&str; 12] = [
    "use_dora",
    "use_qalora",
    "lora_bias",
    "use_bdlora",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "arrow_config",
    "alora_invocation_tokens",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
];

/// `adapter_config.json` of PEFT.
pub struct PeftConfig;

impl PeftConfig {
    /// Reads the text of an `adapter_config.json`.
    ///
    /// # Errors
    /// If it is not JSON, not of LoRA, or asks for what is not computed here.
    pub fn read(text: &str) -> Result<LoraConfig, EngineError> {
        let bad = |text: String| EngineError::BadLora(format!("adapter_config.json {text}"));
        let json: Value = serde_json::from_str(text).map_err(|error| bad(format!("is not valid JSON ({error})")))?;
        if json["peft_type"].as_str().is_some_and(|kind| kind != "LORA") {
            return Err(bad(format!("is of {}, only LORA is read", json["peft_type"])));
        }
        for key in NOT_COMPUTED {
            let is_said = match &json[key] {
                Value::Null | Value::Bool(false) => false,
                Value::Array(list) => !list.is_empty(),
                Value::Object(object) => !object.is_empty(),
                _ => true,
            };
            if is_said {
                return Err(bad(format!("sets `{key}`, which is not computed here")));
            }
        }
        if let Some(bias) = json["bias"].as_str().filter(|&bias| bias != "none") {
            return Err(bad(format!("sets `bias` to {bias}: biases are not trained beside products here, only `none` is read")));
        }
        // These take the start of the products away from the frozen weights.
        let start = json["init_lora_weights"].as_str().unwrap_or_default();
        if ["pissa", "olora", "corda", "loftq", "lora_ga"].iter().any(|kind| start.starts_with(kind)) {
            return Err(bad(format!("sets `init_lora_weights` to {start}, which changes the weights beneath: save the adapter converted to a plain LoRA (`path_initial_model_for_weight_conversion`)")));
        }
        let rank = json["r"].as_u64().filter(|&rank| rank > 0).ok_or_else(|| bad("has no rank `r`".into()))? as usize;
        let texts = |value: &Value| -> Vec<String> {
            match value {
                Value::String(text) => vec![text.clone()],
                Value::Array(list) => list.iter().filter_map(|text| text.as_str().map(str::to_string)).collect(),
                _ => Vec::new(),
            }
        };
        let by_pattern = |key: &str| -> Vec<(String, Value)> {
            json[key].as_object().into_iter().flatten().map(|(pattern, value)| (pattern.clone(), value.clone())).collect()
        };
        let ranks = by_pattern("rank_pattern").into_iter().map(|(pattern, rank)| match rank.as_u64() {
            Some(rank) => Ok((pattern, rank as usize)),
            None => Err(bad(format!("gives {pattern} the rank {rank}, which is no whole number"))),
        });
        let alphas = by_pattern("alpha_pattern").into_iter().map(|(pattern, alpha)| match alpha.as_f64() {
            Some(alpha) => Ok((pattern, alpha)),
            None => Err(bad(format!("gives {pattern} the alpha {alpha}, which is no number"))),
        });
        let patterns = Patterns {
            // The one word that PEFT takes for more than a pattern.
            targets: json["target_modules"].as_str().filter(|&text| text != "all-linear").map(str::to_string),
            excluded: match &json["exclude_modules"] {
                Value::String(pattern) => Some(pattern.clone()),
                names => Some(texts(names)).filter(|names| !names.is_empty()).map(|names| ends_of(&names)),
            },
            ranks: ranks.collect::<Result<_, _>>()?,
            alphas: alphas.collect::<Result<_, _>>()?,
            layers: texts(&json["layers_pattern"]),
            saved: texts(&json["modules_to_save"]),
        };
        let layers = match json.get("layers_to_transform").filter(|layers| !layers.is_null()).or_else(|| json.get("layers")) {
            Some(Value::Array(list)) if list.is_empty() => None,
            Some(Value::Array(list)) => Some(list.iter().filter_map(|layer| Some(layer.as_u64()? as usize)).collect()),
            Some(Value::Number(layer)) => layer.as_u64().map(|layer| vec![layer as usize]),
            _ => None,
        };
        Ok(LoraConfig {
            rank,
            alpha: json["lora_alpha"].as_f64().unwrap_or(8.0),
            rank_stabilised: json["use_rslora"].as_bool().unwrap_or(false),
            targets: if patterns.targets.is_some() { Vec::new() } else { texts(&json["target_modules"]) },
            layers,
            patterns,
        })
    }

    /// Writes an `adapter_config.json` that PEFT reads; `base_model` is a folder or a hub name.
    pub fn write(config: &LoraConfig, base_model: &str, model: &ModelConfig) -> String {
        let PeftTask { task_type, modules_to_save } = PeftTask::of(model);
        let transposed = model.family.table().transposed;
        let modules_to_save = (!modules_to_save.is_empty()).then_some(modules_to_save);
        let json = serde_json::json!({
            "peft_type": "LORA",
            "task_type": task_type,
            "modules_to_save": modules_to_save,
            "base_model_name_or_path": base_model,
            "r": config.rank,
            "lora_alpha": config.alpha,
            "use_rslora": config.rank_stabilised,
            "target_modules": match &config.patterns.targets {
                Some(pattern) => serde_json::json!(pattern),
                None => serde_json::json!(config.targets),
            },
            "exclude_modules": config.patterns.excluded,
            "rank_pattern": Value::Object(config.patterns.ranks.iter().map(|(pattern, rank)| (pattern.clone(), (*rank).into())).collect()),
            "alpha_pattern": Value::Object(config.patterns.alphas.iter().map(|(pattern, alpha)| (pattern.clone(), (*alpha).into())).collect()),
            "layers_to_transform": config.layers,
            "layers_pattern": (!config.patterns.layers.is_empty()).then_some(&config.patterns.layers),
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": transposed,
            "inference_mode": true,
        });
        serde_json::to_string_pretty(&json).expect("a JSON value serialises")
    }
}

/// The pattern of names that are, or end behind a dot in, one of `names`.
fn ends_of(names: &[String]) -> String {
    let names: Vec<_> = names.iter().map(|name| fancy_regex::escape(name)).collect();
    format!(r"(?:.*\.)?(?:{})", names.join("|"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let config = LoraConfig { rank: 4, alpha: 8.0, rank_stabilised: true, targets: vec!["q_proj".into()], layers: Some(vec![1, 2]), patterns: Patterns::default() };
        let model = |model_type: &str| ModelConfig::parse(&format!(r#"{{"model_type":"{model_type}"}}"#)).unwrap();
        let llama = ModelConfig::blank(barycenter_model::Family::Llama);
        assert_eq!(PeftConfig::read(&PeftConfig::write(&config, "org/model", &llama)).unwrap(), config);
        let classifier = PeftTask::of(&model("bert").with_classifier(2, |_| true).unwrap());
        assert_eq!((classifier.task_type, classifier.modules_to_save), ("SEQ_CLS", vec!["pooler".to_string(), "classifier".into()]));
        assert_eq!(PeftTask::of(&model("t5")), PeftTask { task_type: "SEQ_2_SEQ_LM", modules_to_save: Vec::new() });
        let patterns = Patterns {
            targets: Some(r".*\.(?!mlp)\w+\.[qv]_proj".into()),
            excluded: Some(r".*\.0\..*".into()),
            ranks: vec![("q_proj".into(), 3)],
            alphas: vec![(r"layers\.1\..*".into(), 2.5)],
            ..Patterns::default()
        };
        let config = LoraConfig { targets: Vec::new(), layers: None, patterns, ..config };
        assert_eq!(PeftConfig::read(&PeftConfig::write(&config, "org/model", &llama)).unwrap(), config);
        assert!(PeftConfig::read("{}").unwrap_err().to_string().contains("`r`"));
        assert!(PeftConfig::read(r#"{"r":2,"use_dora":true}"#).unwrap_err().to_string().contains("use_dora"));
        assert!(PeftConfig::read(r#"{"r":2,"rank_pattern":{"q_proj":1.5}}"#).unwrap_err().to_string().contains("q_proj the rank 1.5"));
    }
}
