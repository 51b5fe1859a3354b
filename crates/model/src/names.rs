//! Which parameters a model has: names and shapes, layer by layer, from the tables of [`crate::families`].

use crate::config::{HeadKind, NormKind, Positions};
use crate::families::{AttentionNames, ProjectionNames, StackNames};
use crate::{Family, ModelConfig, ModelError, TensorSource};
use std::ops::Range;

/// A parameter's full name and shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// As in the weight file.
    pub name: String,
    /// Sizes, outermost first; a linear layer is `[out, in]`, where the family does not transpose it.
    pub shape: Vec<usize>,
}

impl Parameter {
    /// Number of values.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The full name of a layer's parameter, from its name within the layer.
pub fn layer_parameter(config: &ModelConfig, layer: usize, name: &str) -> String {
    format!("{}.{layer}.{name}", config.names().layers)
}

/// Names within a layer, and shapes, in the order they are computed with.
///
/// With the sizes of a side network in place of the backbone's, these are the names of its layers too.
pub fn layer_shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let names = config.names();
    let mut list = List { config, list: Vec::new() };
    list.attention(&names.attention, config.qk_norm);
    if let Some(cross) = &names.cross {
        list.attention(cross, false);
    }
    let (width, ffn, feed_forward) = (config.width, config.ffn_width, &names.feed_forward);
    list.norm(feed_forward.norms.before, width);
    let mut linears = vec![(feed_forward.up, ffn, width), (feed_forward.down, width, ffn)];
    if config.gated {
        linears.insert(0, (feed_forward.gate, ffn, width));
    }
    list.linears(&linears, config.mlp_bias);
    list.norm(feed_forward.norms.output, width);
    list.norm(feed_forward.norms.after, width);
    list.list
}

/// Collects names and shapes.
struct List<'a> {
    config: &'a ModelConfig,
    list: Vec<(String, Vec<usize>)>,
}

impl List<'_> {
    fn attention(&mut self, names: &AttentionNames, head_norms: bool) {
        let config = self.config;
        let (width, query, kv) = (config.width, config.query_width(), config.kv_width());
        self.norm(names.norms.before, width);
        match names.projections {
            ProjectionNames::Split { q, k, v } => self.linears(&[(q, query, width), (k, kv, width), (v, kv, width)], config.attention_bias),
            ProjectionNames::Fused(qkv) => self.linears(&[(qkv, query + 2 * kv, width)], config.attention_bias),
        }
        if head_norms {
            names.head_norms.iter().for_each(|name| self.norm(Some(name), config.head_dim));
        }
        self.linears(&[(names.output, width, query)], config.output_bias);
        self.norm(names.norms.output, width);
        self.norm(names.norms.after, width);
    }

    /// (name, outputs, inputs) each: all weights, then all biases.
    fn linears(&mut self, linears: &[(&str, usize, usize)], bias: bool) {
        let transposed = self.config.family.table().transposed;
        for &(name, outputs, inputs) in linears {
            let shape = if transposed { vec![inputs, outputs] } else { vec![outputs, inputs] };
            self.list.push((format!("{name}.weight"), shape));
        }
        for &(name, outputs, _) in linears.iter().filter(|_| bias) {
            self.list.push((format!("{name}.bias"), vec![outputs]));
        }
    }

    fn norm(&mut self, name: Option<&str>, width: usize) {
        self.list.extend(norm_shapes(self.config, name, width));
    }
}

/// A norm's weight, and its bias where the family's norm has one.
pub fn norm_shapes(config: &ModelConfig, name: Option<&str>, width: usize) -> Vec<(String, Vec<usize>)> {
    let Some(name) = name else { return Vec::new() };
    let mut list = vec![(format!("{name}.weight"), vec![width])];
    if config.norm == NormKind::Layer {
        list.push((format!("{name}.bias"), vec![width]));
    }
    list
}

/// Whether a parameter (of any family) is the weight of a norm: what starts at 1 instead of at random.
pub fn is_norm_weight(name: &str) -> bool {
    let module = name.strip_suffix(".weight").and_then(|module| module.rsplit('.').next());
    module.is_some_and(|module| ["norm", "LayerNorm", "layernorm_embedding"].iter().any(|end| module.ends_with(end)) || module.starts_with("ln_"))
}

/// The parameters of layer `layer` (from 0).
pub fn layer(config: &ModelConfig, layer: usize) -> Vec<Parameter> {
    let full = |(name, shape): (String, _)| Parameter { name: layer_parameter(config, layer, &name), shape };
    layer_shapes(config).into_iter().map(full).collect()
}

/// The embedding's matrix: `[vocab, width]`.
pub fn embedding(config: &ModelConfig) -> Parameter {
    let names = config.names();
    let own = names.own_embedding.filter(|_| config.own_embedding);
    Parameter { name: format!("{}.weight", own.unwrap_or(names.embedding)), shape: vec![config.vocab, config.width] }
}

/// The table of learned positions, its unused first rows included.
pub fn position_table(config: &ModelConfig) -> Option<Parameter> {
    let Positions::Learned { offset } = config.positions else { return None };
    let name = format!("{}.weight", config.names().positions?);
    Some(Parameter { name, shape: vec![config.max_positions + offset, config.width] })
}

/// The table of token types.
pub fn token_type_table(config: &ModelConfig) -> Option<Parameter> {
    let name = format!("{}.weight", config.names().token_types.filter(|_| config.token_types > 0)?);
    Some(Parameter { name, shape: vec![config.token_types, config.width] })
}

/// What the embedding consists of beside its matrix.
fn embedding_extras(config: &ModelConfig) -> Vec<Parameter> {
    let mut list: Vec<_> = position_table(config).into_iter().chain(token_type_table(config)).collect();
    list.extend(parameters(norm_shapes(config, config.names().embedding_norm, config.width)));
    list
}

/// The table of the relative position bias, `[buckets, heads]`: every layer reads it.
pub fn relative_bias(config: &ModelConfig) -> Option<Parameter> {
    let Positions::Relative { buckets, .. } = config.positions else { return None };
    Some(Parameter { name: format!("{}.weight", config.names().relative_bias?), shape: vec![buckets, config.heads] })
}

/// The norm behind the last layer.
pub fn final_norm(config: &ModelConfig) -> Vec<Parameter> {
    parameters(norm_shapes(config, config.names().final_norm, config.width)).collect()
}

/// The head's matrix: `[classes, width]`; a tied head is the embedding.
pub fn head(config: &ModelConfig) -> Option<Parameter> {
    let names = &config.family.table().head;
    let name = match config.head {
        HeadKind::None => return None,
        HeadKind::Classifier { .. } => names.classifier?[1],
        HeadKind::Language | HeadKind::Masked if config.tied_head => return Some(embedding(config)),
        HeadKind::Language | HeadKind::Masked => names.weight,
    };
    Some(Parameter { name: format!("{name}.weight"), shape: vec![config.classes(), config.width] })
}

/// The bias on the logits.
pub fn head_bias(config: &ModelConfig) -> Option<Parameter> {
    let names = &config.family.table().head;
    match config.head {
        HeadKind::None => None,
        HeadKind::Classifier { labels, .. } => Some(Parameter { name: format!("{}.bias", names.classifier?[1]), shape: vec![labels] }),
        HeadKind::Language | HeadKind::Masked => names.bias.filter(|_| config.head_bias).map(|(name, ones)| {
            let mut shape = vec![1; ones];
            shape.push(config.vocab);
            Parameter { name: name.to_string(), shape }
        }),
    }
}

/// What lies between the last layer and the head's matrix, beside the final norm: a linear layer and perhaps a norm.
pub fn head_transform(config: &ModelConfig) -> Vec<Parameter> {
    let names = &config.family.table().head;
    let dense = |name: &str| {
        let square = Parameter { name: format!("{name}.weight"), shape: vec![config.width, config.width] };
        vec![square, Parameter { name: format!("{name}.bias"), shape: vec![config.width] }]
    };
    match (config.head, names.transform, names.classifier) {
        (HeadKind::Masked, Some([linear, norm]), _) => {
            let mut list = dense(linear);
            list.extend(parameters(norm_shapes(config, Some(norm), config.width)));
            list
        }
        (HeadKind::Classifier { pooled: true, .. }, _, Some([pooler, _])) => dense(pooler),
        _ => Vec::new(),
    }
}

/// Names of what a model keeps beside its weights and no method trains: the bias on BART's logits, a buffer in `transformers`.
pub fn constants(config: &ModelConfig) -> Vec<String> {
    let is_buffer = !matches!(config.head, HeadKind::Classifier { .. }) && config.family.table().head.bias_is_buffer;
    head_bias(config).into_iter().filter(|_| is_buffer).map(|bias| bias.name).collect()
}

/// All of a classification or regression head: the pooler where it has one, then matrix and bias. None of other heads.
pub fn classifier(config: &ModelConfig) -> Vec<Parameter> {
    match config.head {
        HeadKind::Classifier { .. } => head_transform(config).into_iter().chain(head(config)).chain(head_bias(config)).collect(),
        _ => Vec::new(),
    }
}

/// The name of the relative position bias within the layer that holds it, the first.
pub fn relative_bias_in_layer(config: &ModelConfig) -> Option<(String, Vec<usize>)> {
    let table = relative_bias(config)?;
    let name = table.name.strip_prefix(&format!("{}.0.", config.names().layers))?.to_string();
    Some((name, table.shape))
}

fn parameters(list: Vec<(String, Vec<usize>)>) -> impl Iterator<Item = Parameter> {
    list.into_iter().map(|(name, shape)| Parameter { name, shape })
}

/// Which parts of a model somebody holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Layers, from 0.
    pub layers: Range<usize>,
    /// Whether the embedding is among them, and with it the encoder where the model has one.
    pub embedding: bool,
    /// Whether the final norm and the head are among them.
    pub head: bool,
}

impl Parts {
    /// The whole model.
    pub fn all(config: &ModelConfig) -> Self {
        Self { layers: 0..config.layers, embedding: true, head: true }
    }

    /// What a pipeline stage of these layers needs: the first has the embedding, the last norm and head.
    pub fn stage(config: &ModelConfig, layers: Range<usize>) -> Self {
        Self { embedding: layers.start == 0, head: layers.end == config.layers, layers }
    }

    /// What the train phase needs of the backbone: final norm and head only.
    pub fn head_only() -> Self {
        Self { layers: 0..0, embedding: false, head: true }
    }

    /// The parameters, in the order they are computed with; a tied embedding is named once.
    pub fn parameters(&self, config: &ModelConfig) -> Vec<Parameter> {
        let mut list = Vec::new();
        if self.embedding {
            list.push(embedding(config));
            if let Some(encoder) = &config.encoder {
                let shared = usize::from(embedding(encoder) == embedding(config));
                list.extend(Parts::all(encoder).parameters(encoder).into_iter().skip(shared));
            }
            list.extend(embedding_extras(config));
        }
        if !self.layers.is_empty() {
            list.extend(relative_bias(config));
        }
        for index in self.layers.clone() {
            list.extend(layer(config, index));
        }
        if self.head {
            list.extend(final_norm(config));
            list.extend(head_transform(config));
            list.extend(head(config).filter(|head| !(self.embedding && *head == embedding(config))));
            list.extend(head_bias(config));
        }
        list
    }
}

/// Number of values of the whole model.
pub fn parameter_count(config: &ModelConfig) -> usize {
    Parts::all(config).parameters(config).iter().map(Parameter::elements).sum()
}

/// Checks that every parameter of these parts is there, with its shape and a number format that can be computed with.
pub fn check(config: &ModelConfig, parts: &Parts, source: &dyn TensorSource) -> Result<(), ModelError> {
    for Parameter { name, shape } in parts.parameters(config) {
        match source.entry(&name) {
            None => return Err(ModelError::MissingTensor { name }),
            Some(entry) => entry.check_weight(&name, &shape)?,
        }
    }
    Ok(())
}

impl ModelConfig {
    /// Settles what a family leaves to the weight file; `has` says whether the file holds a tensor: whether there is a head at
    /// all (base classes), whether it is the embedding (T5), whether untied stacks have embeddings of their own and logits a bias (BART).
    pub fn settled_by(mut self, has: impl Fn(&str) -> bool) -> Self {
        let table = self.family.table();
        // A file of a base class has no head, and some say so that have one.
        if self.head == HeadKind::None && !matches!(self.family, Family::Bert) && has(&format!("{}.weight", table.head.weight)) {
            self.head = HeadKind::Language;
        }
        if table.file_ties_head && self.head == HeadKind::Language {
            self.tied_head = !has(&format!("{}.weight", table.head.weight));
        }
        if self.head == HeadKind::Language {
            self.head_bias &= table.head.bias.is_some_and(|(name, _)| has(name));
        }
        let untied = !self.tied_head;
        let own = |stack: &ModelConfig| untied && stack.names().own_embedding.is_some_and(|name| has(&format!("{name}.weight")));
        self.own_embedding = own(&self);
        if let Some(encoder) = &mut self.encoder {
            encoder.own_embedding = own(encoder);
        }
        self
    }
}

/// Refuses a file that holds a head of its own where the config says the head is the embedding, unless they agree.
pub fn check_tied_head(config: &ModelConfig, source: &mut dyn TensorSource) -> Result<(), ModelError> {
    let name = format!("{}.weight", config.family.table().head.weight);
    let is_matrix = matches!(config.head, HeadKind::Language | HeadKind::Masked);
    if !config.tied_head || !is_matrix || !source.has(&name) {
        return Ok(());
    }
    let embedding = embedding(config);
    match source.load(&name)? == source.load(&embedding.name)? {
        true => Ok(()),
        false => Err(ModelError::UntiedFile { name, embedding: embedding.name }),
    }
}

/// What the base class of a family puts before its names, and files saved from that class leave out.
const BASE_PREFIXES: [&str; 3] = ["model.", "transformer.", "bert."];

/// The name under which a file holds the parameter `name`: files saved from a family's base class lack its prefix,
/// Gemma's multimodal files have one more, and BERT's old ones call a LayerNorm's weight and bias gamma and beta.
pub fn stored_name(name: &str, mut has: impl FnMut(&str) -> bool) -> Option<String> {
    let base = BASE_PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
    let mut candidates = vec![name.to_string()];
    candidates.extend(base.map(str::to_string));
    if name.starts_with("model.") {
        candidates.push(format!("language_model.{name}"));
        candidates.extend(base.map(|base| format!("model.language_model.{base}")));
    }
    // The same parameter where BERT's head is tied.
    candidates.extend((name == "cls.predictions.decoder.bias").then(|| "cls.predictions.bias".to_string()));
    let old = |name: &String| {
        let module = name.strip_suffix("LayerNorm.weight").map(|module| (module, "gamma"));
        let module = module.or_else(|| name.strip_suffix("LayerNorm.bias").map(|module| (module, "beta")));
        module.map(|(module, end)| format!("{module}LayerNorm.{end}"))
    };
    let old: Vec<_> = candidates.iter().filter_map(old).collect();
    candidates.into_iter().chain(old).find(|candidate| has(candidate))
}

/// The names of a stack, and of the encoder before it.
pub fn stacks(config: &ModelConfig) -> impl Iterator<Item = (&ModelConfig, &'static StackNames)> {
    config.encoder.as_deref().into_iter().chain([config]).map(|config| (config, config.names()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(model_type: &str) -> ModelConfig {
        let json = serde_json::json!({
            "model_type": model_type, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 96, "vocab_size": 320
        });
        ModelConfig::parse(&json.to_string()).unwrap()
    }

    #[test]
    fn families_differ_in_biases_and_head_norms() {
        let names = |model_type| layer(&config(model_type), 1).into_iter().map(|p| p.name).collect::<Vec<_>>();
        assert_eq!(names("llama").len(), 9);
        assert_eq!(names("llama"), names("mistral"));
        assert!(names("qwen2").contains(&"model.layers.1.self_attn.k_proj.bias".to_string()));
        assert!(!names("qwen2").contains(&"model.layers.1.self_attn.o_proj.bias".to_string()));
        assert!(names("qwen3").contains(&"model.layers.1.self_attn.q_norm.weight".to_string()));
    }

    #[test]
    fn stages_cover_the_model_once() {
        let config = config("llama");
        let mut staged = Parts::stage(&config, 0..1).parameters(&config);
        staged.extend(Parts::stage(&config, 1..2).parameters(&config));
        assert_eq!(staged, Parts::all(&config).parameters(&config));
        assert_eq!(staged.last().unwrap().name, "lm_head.weight");
    }

    #[test]
    fn a_tied_head_is_the_embedding() {
        let mut config = config("llama");
        config.tied_head = true;
        let tied = embedding(&config);
        assert_eq!(head(&config), Some(tied.clone()));
        let all = Parts::all(&config).parameters(&config);
        assert_eq!(all.iter().filter(|p| **p == tied).count(), 1);
        assert_eq!(Parts::head_only().parameters(&config).len(), 2);
    }
}
