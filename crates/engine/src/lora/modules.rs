//! Which linear layers of a model get a product, of which rank and scale.

use crate::EngineError;
use barycenter_model::{HeadKind, ModelConfig, names};
use fancy_regex::Regex;

/// Which linear layers get a trained product, and how large.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Inner width of the product.
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f64,
    /// Whether the scale divides by √rank instead of rank (`use_rslora`).
    pub rank_stabilised: bool,
    /// Linear layers by the end of their names (`q_proj`, `mlp.c_proj`), as PEFT's `target_modules`; `all-linear` for all.
    pub targets: Vec<String>,
    /// Layers by number (from 0); all if not given.
    pub layers: Option<Vec<usize>>,
    /// What PEFT's files may say of single modules.
    pub patterns: Patterns,
}

/// Regular expressions over the full names of modules, in Python's dialect, as PEFT's files have them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Patterns {
    /// `target_modules` where it is one text: whole names that match are taken, whatever `targets` and `layers` say.
    pub targets: Option<String>,
    /// `exclude_modules`: whole names that match are left out.
    pub excluded: Option<String>,
    /// `rank_pattern`: ends of names, and their rank.
    pub ranks: Vec<(String, usize)>,
    /// `alpha_pattern`: ends of names, and their alpha.
    pub alphas: Vec<(String, f64)>,
    /// `layers_pattern`: what stands before the number that `layers` counts by; the first number in a name if none is given.
    pub layers: Vec<String>,
    /// `modules_to_save`: what is saved whole, so that nothing in it is taken.
    pub saved: Vec<String>,
}

impl LoraConfig {
    /// The same in the last `count` layers of an encoder-decoder model's decoder, and nothing in its encoder: as a pattern of
    /// whole names, since PEFT counts the layers of both stacks alike.
    ///
    /// # Errors
    /// If no linear layer there is named; those of [`lora_modules`].
    pub fn in_last_of_decoder(&self, model: &ModelConfig, count: usize) -> Result<Self, EngineError> {
        let first = model.layers.saturating_sub(count);
        let modules = lora_modules(model, &Self { layers: None, ..self.clone() })?;
        let mut names: Vec<String> = Vec::new();
        for module in modules.iter().filter(|module| !module.in_encoder && module.layer >= first) {
            let name = fancy_regex::escape(&module.name).into_owned();
            if !names.contains(&name) {
                names.push(name);
            }
        }
        if names.is_empty() {
            return Err(EngineError::BadLora(format!("no linear layer of the decoder is named {}", self.targets.join(", "))));
        }
        let layers: Vec<String> = (first..model.layers).map(|layer| fancy_regex::escape(&names::layer_parameter(model, layer, "")).into_owned()).collect();
        let targets = format!("(?:{})(?:{})", layers.join("|"), names.join("|"));
        Ok(Self { targets: Vec::new(), layers: None, patterns: Patterns { targets: Some(targets), ..self.patterns.clone() }, ..self.clone() })
    }
}

/// A linear layer that gets a product.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraModule {
    /// Whether it stands in the encoder of an encoder-decoder model.
    pub in_encoder: bool,
    /// Its layer, from 0.
    pub layer: usize,
    /// Its name within the layer.
    pub name: String,
    /// Its full name in the model.
    pub full_name: String,
    /// Columns of A.
    pub inputs: usize,
    /// Rows of B.
    pub outputs: usize,
    /// Rows of A.
    pub rank: usize,
    /// What multiplies the product.
    pub scale: f64,
}

/// The linear layers of a model that a configuration names, in the order of computing.
///
/// # Errors
/// If it names none, a layer that the model does not have, something outside of the layers, a rank of 0, two ranks or alphas for
/// one module, or a pattern that is no regular expression; if something is saved whole that is no part of a classifier.
pub fn lora_modules(model: &ModelConfig, config: &LoraConfig) -> Result<Vec<LoraModule>, EngineError> {
    let bad = |text: String| Err(EngineError::BadLora(text));
    let most = names::stacks(model).map(|(stack, _)| stack.layers).max().unwrap_or(0);
    if let Some(layer) = config.layers.iter().flatten().find(|&&layer| layer >= most) {
        return bad(format!("layer {layer} was named, the model has layers 0 to {}", most.saturating_sub(1)));
    }
    let chosen = Chosen::compile(config)?;
    for module in modules_outside_layers(model) {
        if chosen.takes_outside(&module)? {
            return bad(format!("target_modules names {module}, and only linear layers within the model's layers get a product here"));
        }
    }
    chosen.check_saved(model)?;
    let transposed = model.family.table().transposed;
    let mut modules = Vec::new();
    for (stack, _) in names::stacks(model) {
        let in_encoder = model.encoder.is_some() && !stack.causal;
        let shapes = names::layer_shapes(stack);
        for layer in 0..stack.layers {
            for (parameter, shape) in &shapes {
                let (Some(name), [rows, cols]) = (parameter.strip_suffix(".weight"), shape.as_slice()) else { continue };
                let full_name = names::layer_parameter(stack, layer, name);
                if !chosen.takes(Some(layer), &full_name)? {
                    continue;
                }
                let (rank, scale) = chosen.size(&full_name)?;
                if rank == 0 {
                    return bad("a rank of 0 trains nothing: choose 1 or more".into());
                }
                let (outputs, inputs) = if transposed { (*cols, *rows) } else { (*rows, *cols) };
                modules.push(LoraModule { in_encoder, layer, name: name.to_string(), full_name, inputs, outputs, rank, scale });
            }
        }
    }
    if modules.is_empty() {
        let targets = config.patterns.targets.clone().unwrap_or_else(|| config.targets.join(", "));
        let ends = names::layer_shapes(model).into_iter().filter(|(_, shape)| shape.len() == 2);
        let ends: Vec<_> = ends.filter_map(|(name, _)| Some(name.strip_suffix(".weight")?.rsplit('.').next()?.to_string())).collect();
        return bad(format!("no linear layer is named {targets}: this model has {}", ends.join(", ")));
    }
    Ok(modules)
}

/// Names of what else has a matrix: embeddings, tables of positions, what stands on the last layer.
fn modules_outside_layers(model: &ModelConfig) -> Vec<String> {
    let tables = |(stack, _): (&ModelConfig, _)| {
        let list = [Some(names::embedding(stack)), names::position_table(stack), names::token_type_table(stack), names::relative_bias(stack)];
        list.into_iter().flatten()
    };
    let mut list: Vec<_> = names::stacks(model).flat_map(tables).chain(names::head_transform(model)).chain(names::head(model)).collect();
    list.retain(|parameter| parameter.shape.len() == 2);
    let mut modules: Vec<_> = list.iter().filter_map(|parameter| Some(parameter.name.strip_suffix(".weight")?.to_string())).collect();
    // It is a module of its own also where its matrix is the embedding's.
    if matches!(model.head, HeadKind::Language | HeadKind::Masked) {
        modules.push(model.family.table().head.weight.to_string());
    }
    modules
}

/// A configuration with its patterns compiled.
struct Chosen<'a> {
    config: &'a LoraConfig,
    targets: Option<Regex>,
    excluded: Option<Regex>,
    ranks: Vec<(Regex, usize)>,
    alphas: Vec<(Regex, f64)>,
    layers: Vec<Regex>,
    saved: Vec<Regex>,
}

impl<'a> Chosen<'a> {
    fn compile(config: &'a LoraConfig) -> Result<Self, EngineError> {
        let Patterns { targets, excluded, ranks, alphas, layers, saved } = &config.patterns;
        let whole = |pattern: &String| regex(pattern, &format!("^(?:{pattern})$"));
        let end = |pattern: &String| regex(pattern, &format!(r"^(?:.*\.)?(?:{pattern})$"));
        let numbered = |pattern: &String| regex(pattern, &format!(r"^(?:.*?\.)?{pattern}\.(?P<number>\d+)\."));
        let part = |pattern: &String| regex(pattern, &format!(r"^(?:.*\.)?{pattern}(?:\.|$)"));
        Ok(Self {
            config,
            targets: targets.as_ref().map(whole).transpose()?,
            excluded: excluded.as_ref().map(whole).transpose()?,
            ranks: ranks.iter().map(|(pattern, rank)| Ok((end(pattern)?, *rank))).collect::<Result<_, EngineError>>()?,
            alphas: alphas.iter().map(|(pattern, alpha)| Ok((end(pattern)?, *alpha))).collect::<Result<_, EngineError>>()?,
            layers: layers.iter().map(numbered).collect::<Result<_, _>>()?,
            saved: saved.iter().map(part).collect::<Result<_, _>>()?,
        })
    }

    /// Whether a module of a layer (from 0), or of none, gets a product.
    fn takes(&self, layer: Option<usize>, module: &str) -> Result<bool, EngineError> {
        if let Some(excluded) = &self.excluded
            && matches(excluded, module)?
        {
            return Ok(false);
        }
        for saved in &self.saved {
            if matches(saved, module)? {
                return Ok(false);
            }
        }
        if let Some(targets) = &self.targets {
            return matches(targets, module);
        }
        // A whole name is taken whatever the layers say.
        if self.config.targets.iter().any(|target| module == target) {
            return Ok(true);
        }
        let named = |target: &String| target == "all-linear" || module.ends_with(&format!(".{target}"));
        Ok(self.config.targets.iter().any(named) && self.is_in_layers(layer, module)?)
    }

    /// The same of a module outside of the layers, where the word for all linear layers of the model does not mean it.
    fn takes_outside(&self, module: &str) -> Result<bool, EngineError> {
        Ok(!self.config.targets.iter().any(|target| target == "all-linear") && self.takes(None, module)?)
    }

    fn is_in_layers(&self, layer: Option<usize>, module: &str) -> Result<bool, EngineError> {
        let Some(layers) = &self.config.layers else { return Ok(true) };
        let mut number = layer.filter(|_| self.layers.is_empty());
        for pattern in &self.layers {
            let found = pattern.captures(module).map_err(|error| untried(module, error))?;
            if let Some(found) = found.and_then(|found| found.name("number")?.as_str().parse().ok()) {
                number = Some(found);
                break;
            }
        }
        Ok(number.is_some_and(|number| layers.contains(&number)))
    }

    /// Refuses what is saved whole and is not trained here.
    fn check_saved(&self, model: &ModelConfig) -> Result<(), EngineError> {
        let classifier: Vec<_> = names::classifier(model).into_iter().map(|parameter| parameter.name).collect();
        let parameters = names::Parts::all(model).parameters(model).into_iter().map(|parameter| parameter.name);
        for name in parameters.chain(modules_outside_layers(model)).filter(|name| !classifier.contains(name)) {
            let module = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias")).unwrap_or(&name);
            for saved in &self.saved {
                if !classifier.iter().any(|parameter| parameter.starts_with(module)) && matches(saved, module)? {
                    return Err(EngineError::BadLora(format!("modules_to_save names {module}, and only a classifier is trained whole beside products")));
                }
            }
        }
        Ok(())
    }

    /// Rank and scale of a module.
    fn size(&self, module: &str) -> Result<(usize, f64), EngineError> {
        let rank = single(&self.ranks, module, "ranks")?.unwrap_or(self.config.rank);
        let alpha = single(&self.alphas, module, "alphas")?.unwrap_or(self.config.alpha);
        let divisor = rank.max(1) as f64;
        Ok((rank, alpha / if self.config.rank_stabilised { divisor.sqrt() } else { divisor }))
    }
}

/// What the patterns that match a module say. PEFT takes the first of its file; files in which that matters are refused.
fn single<T: Copy + PartialEq>(patterns: &[(Regex, T)], module: &str, what: &str) -> Result<Option<T>, EngineError> {
    let mut found = None;
    for (pattern, value) in patterns {
        if matches(pattern, module)? && found.replace(*value).is_some_and(|before| before != *value) {
            return Err(EngineError::BadLora(format!("two patterns give {module} different {what}")));
        }
    }
    Ok(found)
}

fn regex(pattern: &str, anchored: &str) -> Result<Regex, EngineError> {
    Regex::new(anchored).map_err(|error| EngineError::BadLora(format!("the pattern {pattern} is no regular expression ({error})")))
}

fn matches(pattern: &Regex, module: &str) -> Result<bool, EngineError> {
    pattern.is_match(module).map_err(|error| untried(module, error))
}

fn untried(module: &str, error: fancy_regex::Error) -> EngineError {
    EngineError::BadLora(format!("a pattern could not be tried on {module} ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lora::PeftConfig;

    fn chosen(settings: &str) -> Result<Vec<(String, usize, f64)>, EngineError> {
        let model = ModelConfig::parse(r#"{"model_type":"llama","num_hidden_layers":12,"hidden_size":8,"num_attention_heads":2,"intermediate_size":12,"vocab_size":9}"#).unwrap();
        let modules = lora_modules(&model, &PeftConfig::read(settings)?)?;
        Ok(modules.into_iter().map(|module| (module.full_name.trim_start_matches("model.layers.").to_string(), module.rank, module.scale)).collect())
    }

    /// What peft 0.21 makes of the same settings on the same model (`named_modules()` with a `lora_A`, `scaling`).
    #[test]
    fn patterns_choose_what_peft_chooses() {
        let ranks = chosen(r#"{"r":4,"lora_alpha":8,"target_modules":["q_proj","o_proj"],"layers_to_transform":[1,11],"rank_pattern":{"layers.1.self_attn.q_proj":2,"o_proj":8},"alpha_pattern":{"layers\\.\\d+\\.self_attn\\.o_proj":3}}"#);
        let named = |names: [(&str, usize, f64); 4]| names.map(|(name, rank, scale)| (name.to_string(), rank, scale)).to_vec();
        assert_eq!(ranks.unwrap(), named([
            ("1.self_attn.q_proj", 2, 4.0),
            ("1.self_attn.o_proj", 8, 0.375),
            ("11.self_attn.q_proj", 4, 2.0),
            ("11.self_attn.o_proj", 8, 0.375),
        ]));
        let whole = chosen(r#"{"r":2,"lora_alpha":2,"use_rslora":true,"target_modules":"(?:.*?(?:layers).*?(?:mlp).*?(?:gate_proj|down_proj)).*?","exclude_modules":".*\\.(?!3\\.|10\\.)\\d+\\.mlp.*"}"#);
        let scale = 2.0 / 2f64.sqrt();
        assert_eq!(whole.unwrap(), named([
            ("3.mlp.gate_proj", 2, scale),
            ("3.mlp.down_proj", 2, scale),
            ("10.mlp.gate_proj", 2, scale),
            ("10.mlp.down_proj", 2, scale),
        ]));
        let excluded = chosen(r#"{"r":2,"target_modules":["q_proj","v_proj","k_proj","o_proj"],"layers_to_transform":0,"exclude_modules":["self_attn.q_proj","v_proj"]}"#);
        assert_eq!(excluded.unwrap().into_iter().map(|(name, ..)| name).collect::<Vec<_>>(), ["0.self_attn.k_proj", "0.self_attn.o_proj"]);
    }

    /// Again of peft 0.21: whole names are taken whatever the layers say, an empty list of layers is none, the number is the
    /// one behind `layers_pattern`, and nothing is taken of what is saved whole.
    #[test]
    fn layers_and_names_are_read_as_peft_reads_them() {
        let names = |settings: &str| chosen(settings).unwrap().into_iter().map(|(name, ..)| name).collect::<Vec<_>>();
        let whole = names(r#"{"r":2,"target_modules":["k_proj","model.layers.3.self_attn.q_proj"],"layers_to_transform":[1]}"#);
        assert_eq!(whole, ["1.self_attn.k_proj", "3.self_attn.q_proj"]);
        assert_eq!(names(r#"{"r":2,"target_modules":["q_proj"],"layers_to_transform":[]}"#).len(), 12);
        assert_eq!(names(r#"{"r":2,"target_modules":["q_proj"],"layers_to_transform":[2],"layers_pattern":"layers"}"#), ["2.self_attn.q_proj"]);
        assert!(chosen(r#"{"r":2,"target_modules":["q_proj"],"layers_to_transform":[2],"layers_pattern":["h"]}"#).is_err());
    }

    /// What PEFT does and these products do not is never left out in silence.
    #[test]
    fn what_is_not_computed_is_named() {
        let text = |settings: &str| chosen(settings).unwrap_err().to_string();
        assert!(text(r#"{"r":2,"target_modules":["q_proj","lm_head"]}"#).contains("target_modules names lm_head"));
        assert!(text(r#"{"r":2,"target_modules":["embed_tokens"]}"#).contains("model.embed_tokens"));
        assert!(text(r#"{"r":2,"target_modules":["q_proj"],"modules_to_save":["lm_head"]}"#).contains("modules_to_save names lm_head"));
        assert!(text(r#"{"r":2,"target_modules":["q_proj"],"bias":"all"}"#).contains("`bias`"));
        assert!(text(r#"{"r":2,"target_modules":["q_proj"],"layer_replication":[[0,1]]}"#).contains("layer_replication"));
        assert!(text(r#"{"r":2,"target_modules":["q_proj"],"init_lora_weights":"pissa_niter_4"}"#).contains("pissa_niter_4"));
        assert!(chosen(r#"{"r":2,"target_modules":["q_proj"],"bias":"none","layer_replication":null,"trainable_token_indices":null,"loftq_config":{}}"#).is_ok());
    }

    #[test]
    fn a_pattern_that_cannot_be_used_is_named() {
        let text = |settings: &str| chosen(settings).unwrap_err().to_string();
        assert!(text(r#"{"r":2,"target_modules":"(q_proj"}"#).contains("the pattern (q_proj is no regular expression"));
        assert!(text(r#"{"r":2,"target_modules":["q_proj"],"rank_pattern":{"q_proj":0}}"#).contains("rank of 0"));
        let two = text(r#"{"r":2,"target_modules":["q_proj"],"rank_pattern":{"q_proj":4,"self_attn.q_proj":5}}"#);
        assert!(two.contains("model.layers.0.self_attn.q_proj different ranks"), "{two}");
    }
}
