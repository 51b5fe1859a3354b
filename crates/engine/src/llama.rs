//! The Llama family: embedding, layers, final norm and head, frozen or trained.

mod weights;

pub use weights::{SHARD_BYTES, upload, upload_f32, upload_shards};

use crate::EngineError;
use crate::packed::DeviceBatch;
use crate::params::ParameterSet;
use crate::tape::{AttentionContext, Tape, Var};
use crate::tensor::{Device, Tensor};
use barycenter_model::names::{self, Parts};
use barycenter_model::{ModelConfig, TensorSource};
use std::ops::Range;

/// A linear layer.
#[derive(Clone)]
pub struct Linear {
    /// `[out, in]`.
    pub weight: Var,
    /// `[out]`.
    pub bias: Option<Var>,
}

impl Linear {
    /// `x · weightᵀ + bias`.
    pub fn apply(&self, tape: &Tape, x: &Var) -> Var {
        tape.linear(x, &self.weight, self.bias.as_ref())
    }
}

/// The parameters of one layer, named as in `transformers`.
pub struct LayerWeights {
    input_norm: Var,
    q: Linear,
    k: Linear,
    v: Linear,
    q_norm: Option<Var>,
    k_norm: Option<Var>,
    o: Linear,
    post_norm: Var,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl LayerWeights {
    /// Takes the parameters from `get(name within the layer)`.
    pub fn gather<E>(config: &ModelConfig, mut get: impl FnMut(&str) -> Result<Var, E>) -> Result<Self, E> {
        let mut linear = |name: &str, bias: bool| -> Result<Linear, E> {
            let weight = get(&format!("{name}.weight"))?;
            let bias = if bias { Some(get(&format!("{name}.bias"))?) } else { None };
            Ok(Linear { weight, bias })
        };
        let (attention_bias, mlp_bias) = (config.attention_bias, config.mlp_bias);
        let [q, k, v] = ["q_proj", "k_proj", "v_proj"].map(|name| linear(&format!("self_attn.{name}"), attention_bias));
        let o = linear("self_attn.o_proj", config.output_bias)?;
        let [gate, up, down] = ["gate_proj", "up_proj", "down_proj"].map(|name| linear(&format!("mlp.{name}"), mlp_bias));
        let mut head_norm = |name| if config.qk_norm { get(name).map(Some) } else { Ok(None) };
        let q_norm = head_norm("self_attn.q_norm.weight")?;
        let k_norm = head_norm("self_attn.k_norm.weight")?;
        let (input_norm, post_norm) = (get("input_layernorm.weight")?, get("post_attention_layernorm.weight")?);
        Ok(Self { input_norm, q: q?, k: k?, v: v?, q_norm, k_norm, o, post_norm, gate: gate?, up: up?, down: down? })
    }
}

/// Where a layer's keys and values go before attention: nowhere for a packed batch, to a cache when decoding.
pub trait Keys {
    /// Gets the rotated keys and the values of the new tokens; returns what the queries attend to.
    fn extend(&mut self, k: Var, v: Var) -> (Var, Var, AttentionContext);
}

/// Each sequence of a packed batch attends to itself.
pub struct OwnKeys(pub AttentionContext);

impl Keys for OwnKeys {
    fn extend(&mut self, k: Var, v: Var) -> (Var, Var, AttentionContext) {
        (k, v, self.0.clone())
    }
}

/// One layer on `x: [tokens, width]`, by the config's sizes (the backbone's, or a side network's).
pub fn layer_forward(
    tape: &Tape,
    config: &ModelConfig,
    weights: &LayerWeights,
    x: &Var,
    positions: &Tensor,
    inv_freq: &Tensor,
    keys: &mut dyn Keys,
) -> Var {
    let eps = config.norm_eps as f32;
    let normed = tape.rms_norm(x, &weights.input_norm, eps);
    let heads = |linear: &Linear, norm: &Option<Var>| {
        let y = linear.apply(tape, &normed);
        let y = norm.as_ref().map_or_else(|| y.clone(), |norm| tape.rms_norm(&y, norm, eps));
        tape.rope(&y, positions, inv_freq)
    };
    let q = heads(&weights.q, &weights.q_norm);
    let k = heads(&weights.k, &weights.k_norm);
    let v = weights.v.apply(tape, &normed);
    drop(normed);
    let (k, v, context) = keys.extend(k, v);
    let attended = tape.attention(&q, &k, &v, &context);
    drop((q, k, v));
    let h = tape.add(x, &weights.o.apply(tape, &attended));
    drop(attended);
    let normed = tape.rms_norm(&h, &weights.post_norm, eps);
    let gate = weights.gate.apply(tape, &normed);
    let up = weights.up.apply(tape, &normed);
    drop(normed);
    let inner = tape.silu_mul(&gate, &up);
    drop((gate, up));
    tape.add(&h, &weights.down.apply(tape, &inner))
}

/// A table sharded by rows: (rows, first row).
pub type Shards = Vec<(Var, usize)>;

/// The final norm and the head.
pub struct Head {
    /// `[width]`.
    pub norm: Var,
    /// Row shards of `[vocab, width]`.
    pub shards: Shards,
    /// Epsilon of the norm.
    pub eps: f32,
}

/// Contiguous layers of a model, with the embedding on the first stage and norm and head on the last.
pub struct LlamaStage {
    /// The model's sizes.
    pub config: ModelConfig,
    /// Which layers, from 0.
    pub range: Range<usize>,
    /// On the first stage.
    pub embedding: Option<Shards>,
    /// The layers of `range`.
    pub layers: Vec<LayerWeights>,
    /// On the last stage.
    pub head: Option<Head>,
    inv_freq: Tensor,
}

impl LlamaStage {
    /// Loads frozen weights, one tensor at a time; f16 and bf16 stay packed.
    pub fn load(device: &Device, config: &ModelConfig, source: &mut dyn TensorSource, parts: &Parts) -> Result<Self, EngineError> {
        let load = |source: &mut dyn TensorSource, name: &str| -> Result<Var, EngineError> {
            Ok(Var::constant(upload(device, &source.load(name)?)))
        };
        let embedding = if parts.embedding { Some(upload_shards(device, config, source, names::EMBEDDING)?) } else { None };
        let mut layers = Vec::new();
        for index in parts.layers.clone() {
            for parameter in names::layer(config, index) {
                let entry = source.entry(&parameter.name);
                let missing = || barycenter_model::ModelError::MissingTensor { name: parameter.name.clone() };
                entry.ok_or_else(missing)?.check_weight(&parameter.name, &parameter.shape)?;
            }
            layers.push(LayerWeights::gather(config, |name| load(source, &names::layer_parameter(index, name)))?);
        }
        let head = if parts.head {
            let shards = match &embedding {
                Some(shards) if config.tied_head => shards.clone(),
                _ => upload_shards(device, config, source, &names::head(config).name)?,
            };
            Some(Head { norm: load(source, names::FINAL_NORM)?, shards, eps: config.norm_eps as f32 })
        } else {
            None
        };
        Ok(Self { config: config.clone(), range: parts.layers.clone(), embedding, layers, head, inv_freq: inv_freq(device, config) })
    }

    /// The whole model with every weight a trained leaf of `parameters` (named as in the weight file).
    pub fn trained(device: &Device, config: &ModelConfig, parameters: &ParameterSet) -> Result<Self, EngineError> {
        let var = |name: &str| {
            let missing = || barycenter_model::ModelError::MissingTensor { name: name.to_string() };
            parameters.var(name).ok_or_else(|| EngineError::from(missing()))
        };
        let shards = |name: &str| -> Shards {
            let shards = weights::shard_rows(config.vocab, 4 * config.width);
            shards.filter_map(|rows| Some((parameters.rows(name, rows.start, rows.len())?, rows.start))).collect()
        };
        let layer = |index| LayerWeights::gather(config, |name| var(&names::layer_parameter(index, name)));
        Ok(Self {
            config: config.clone(),
            range: 0..config.layers,
            embedding: Some(shards(names::EMBEDDING)),
            layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
            head: Some(Head { norm: var(names::FINAL_NORM)?, shards: shards(&names::head(config).name), eps: config.norm_eps as f32 }),
            inv_freq: inv_freq(device, config),
        })
    }

    /// The embedding output `b_0: [tokens, width]`; `None` where the stage does not hold the embedding.
    pub fn embed(&self, tape: &Tape, batch: &DeviceBatch) -> Option<Var> {
        Some(tape.embed(self.embedding.as_ref()?, &batch.ids))
    }

    /// Applies the stage's `index`-th layer.
    pub fn layer(&self, tape: &Tape, index: usize, x: &Var, batch: &DeviceBatch) -> Var {
        let window = self.config.window(self.range.start + index);
        let mut keys = OwnKeys(batch.attention(&self.config, window));
        self.layer_with(tape, index, x, &batch.positions, &mut keys)
    }

    /// Applies the stage's `index`-th layer with keys that may come from a cache.
    pub fn layer_with(&self, tape: &Tape, index: usize, x: &Var, positions: &Tensor, keys: &mut dyn Keys) -> Var {
        layer_forward(tape, &self.config, &self.layers[index], x, positions, &self.inv_freq, keys)
    }
}

/// The rotary frequencies on the device.
pub fn inv_freq(device: &Device, config: &ModelConfig) -> Tensor {
    let frequencies = config.rope.inv_freq(config.head_dim);
    Tensor::from_f32(device, &[frequencies.len()], &frequencies)
}
