//! One layer of any family: attention, attention to an encoder, feed-forward block, each with its norms.

use crate::EngineError;
use crate::bottleneck::Bottleneck;
use crate::lora::LoraPair;
use crate::tape::{AttentionContext, Tape, Var};
use crate::tensor::Tensor;
use barycenter_model::families::{AttentionNames, FeedForwardNames, ProjectionNames, SubLayerNorms};
use barycenter_model::{Activation, ModelConfig, NormKind};

/// A linear layer.
#[derive(Clone)]
pub struct Linear {
    /// Name within its layer, without `.weight`; empty outside of layers.
    pub name: String,
    /// `[out, in]`, or `[in, out]` where `transposed`.
    pub weight: Var,
    /// `[out]`.
    pub bias: Option<Var>,
    /// Whether the weight is stored `[in, out]`.
    pub transposed: bool,
    /// A trained product beside the weight.
    pub lora: Option<LoraPair>,
}

impl Linear {
    /// A linear layer of no family: `[out, in]`, with a bias.
    pub fn plain(weight: Var, bias: Var) -> Self {
        Self { name: String::new(), weight, bias: Some(bias), transposed: false, lora: None }
    }

    /// `x · weightᵀ + bias`, and what LoRA adds.
    pub fn apply(&self, tape: &Tape, x: &Var) -> Var {
        let y = tape.linear(x, &self.weight, self.bias.as_ref(), self.transposed);
        match &self.lora {
            Some(lora) => tape.add(&y, &lora.apply(tape, x)),
            None => y,
        }
    }
}

/// A norm of any kind.
#[derive(Clone)]
pub struct Norm {
    kind: NormKind,
    weight: Var,
    /// Of a LayerNorm only.
    bias: Option<Var>,
    eps: f32,
}

impl Norm {
    /// The config's norm of that name, from `get(full name)`.
    pub fn gather<E>(config: &ModelConfig, name: &str, mut get: impl FnMut(&str) -> Result<Var, E>) -> Result<Self, E> {
        let weight = get(&format!("{name}.weight"))?;
        let bias = if config.norm == NormKind::Layer { Some(get(&format!("{name}.bias"))?) } else { None };
        Ok(Self { kind: config.norm, weight, bias, eps: config.norm_eps as f32 })
    }

    /// Norms the last elements of `x`, as many as the weight has: rows may be tokens or heads.
    pub fn apply(&self, tape: &Tape, x: &Var) -> Var {
        match (self.kind, &self.bias) {
            (NormKind::Layer, Some(bias)) => tape.layer_norm(x, &self.weight, bias, self.eps),
            (NormKind::RmsOnePlus, _) => tape.rms_norm(x, &self.weight, self.eps, 1.0),
            _ => tape.rms_norm(x, &self.weight, self.eps, 0.0),
        }
    }
}

/// The parameters of one layer.
pub struct LayerWeights {
    attention: AttentionWeights,
    cross: Option<AttentionWeights>,
    feed_forward: FeedForwardWeights,
}

struct AttentionWeights {
    norms: Norms,
    adapter: Option<Bottleneck>,
    projections: Projections,
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    output: Linear,
}

enum Projections {
    /// Query, key, value.
    Split(Box<[Linear; 3]>),
    Fused(Box<Linear>),
}

struct FeedForwardWeights {
    norms: Norms,
    adapter: Option<Bottleneck>,
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
}

/// See [`SubLayerNorms`].
struct Norms {
    before: Option<Norm>,
    output: Option<Norm>,
    after: Option<Norm>,
}

impl Norms {
    /// `after(x + output(f(before(x))))`.
    fn around(&self, tape: &Tape, x: &Var, f: impl FnOnce(Var) -> Var) -> Var {
        let inner = self.before.as_ref().map_or_else(|| x.clone(), |norm| norm.apply(tape, x));
        let mut y = f(inner);
        if let Some(norm) = &self.output {
            y = norm.apply(tape, &y);
        }
        let sum = tape.add(x, &y);
        drop(y);
        self.after.as_ref().map_or_else(|| sum.clone(), |norm| norm.apply(tape, &sum))
    }
}

/// Takes parameters by their names within a layer.
struct Gatherer<'a, E> {
    config: &'a ModelConfig,
    get: &'a mut dyn FnMut(&str) -> Result<Var, E>,
}

impl<E> Gatherer<'_, E> {
    fn linear(&mut self, name: &str, bias: bool) -> Result<Linear, E> {
        let weight = (self.get)(&format!("{name}.weight"))?;
        let bias = if bias { Some((self.get)(&format!("{name}.bias"))?) } else { None };
        Ok(Linear { name: name.to_string(), weight, bias, transposed: self.config.family.table().transposed, lora: None })
    }

    fn norm(&mut self, name: Option<&str>) -> Result<Option<Norm>, E> {
        name.map(|name| Norm::gather(self.config, name, &mut self.get)).transpose()
    }

    fn norms(&mut self, names: &SubLayerNorms) -> Result<Norms, E> {
        Ok(Norms { before: self.norm(names.before)?, output: self.norm(names.output)?, after: self.norm(names.after)? })
    }

    fn attention(&mut self, names: &AttentionNames, head_norms: bool) -> Result<AttentionWeights, E> {
        let bias = self.config.attention_bias;
        let projections = match names.projections {
            ProjectionNames::Split { q, k, v } => {
                Projections::Split(Box::new([self.linear(q, bias)?, self.linear(k, bias)?, self.linear(v, bias)?]))
            }
            ProjectionNames::Fused(qkv) => Projections::Fused(Box::new(self.linear(qkv, bias)?)),
        };
        let [q_norm, k_norm] = names.head_norms.map(|name| head_norms.then_some(name));
        Ok(AttentionWeights {
            norms: self.norms(&names.norms)?,
            adapter: None,
            projections,
            q_norm: self.norm(q_norm)?,
            k_norm: self.norm(k_norm)?,
            output: self.linear(names.output, self.config.output_bias)?,
        })
    }

    fn feed_forward(&mut self, names: &FeedForwardNames) -> Result<FeedForwardWeights, E> {
        let bias = self.config.mlp_bias;
        let gate = if self.config.gated { Some(self.linear(names.gate, bias)?) } else { None };
        Ok(FeedForwardWeights {
            norms: self.norms(&names.norms)?,
            adapter: None,
            gate,
            up: self.linear(names.up, bias)?,
            down: self.linear(names.down, bias)?,
        })
    }
}

impl LayerWeights {
    /// Takes the parameters from `get(name within the layer)`.
    pub fn gather<E>(config: &ModelConfig, mut get: impl FnMut(&str) -> Result<Var, E>) -> Result<Self, E> {
        let names = config.names();
        let mut gatherer = Gatherer { config, get: &mut get };
        Ok(Self {
            attention: gatherer.attention(&names.attention, config.qk_norm)?,
            cross: names.cross.as_ref().map(|cross| gatherer.attention(cross, false)).transpose()?,
            feed_forward: gatherer.feed_forward(&names.feed_forward)?,
        })
    }

    /// Puts bottleneck adapters behind the attention and the feed-forward block.
    pub fn set_adapters(&mut self, attention: Bottleneck, feed_forward: Bottleneck) {
        self.attention.adapter = Some(attention);
        self.feed_forward.adapter = Some(feed_forward);
    }

    /// Every linear layer, in the order of computing.
    pub fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut list = Vec::new();
        for attention in [Some(&mut self.attention), self.cross.as_mut()].into_iter().flatten() {
            match &mut attention.projections {
                Projections::Split(three) => list.extend(three.iter_mut()),
                Projections::Fused(qkv) => list.push(qkv),
            }
            list.push(&mut attention.output);
        }
        list.extend(&mut self.feed_forward.gate);
        list.extend([&mut self.feed_forward.up, &mut self.feed_forward.down]);
        list
    }
}

/// Where a layer's keys and values go before attention: nowhere for a packed batch, to a cache when decoding.
pub trait Keys {
    /// Gets the rotated keys and the values of the new tokens; returns what the queries attend to.
    fn extend(&mut self, k: Var, v: Var) -> (Var, Var, AttentionContext);

    /// Keys and values of the encoder's output, made by `project`: where several passes see the same output, by the first.
    fn across(&mut self, project: &dyn Fn() -> (Var, Var)) -> (Var, Var) {
        project()
    }
}

/// Each sequence of a packed batch attends to itself.
pub struct OwnKeys(pub AttentionContext);

impl Keys for OwnKeys {
    fn extend(&mut self, k: Var, v: Var) -> (Var, Var, AttentionContext) {
        (k, v, self.0.clone())
    }
}

/// What a decoder attends to: the encoder's output.
#[derive(Clone)]
pub struct Memory {
    /// `[encoder tokens, width]`, final norm applied.
    pub hidden: Var,
    /// Which of its rows each token sees.
    pub context: AttentionContext,
}

/// What a layer needs beside its weights and its input rows.
pub struct LayerInput<'a> {
    /// u32 `[tokens]`.
    pub positions: &'a Tensor,
    /// Rotary frequencies, where the stack rotates.
    pub inv_freq: Option<&'a Tensor>,
    /// Where keys and values go.
    pub keys: &'a mut dyn Keys,
    /// The encoder's output, where the family has one.
    pub memory: Option<&'a Memory>,
}

/// One layer on `x: [tokens, width]`, by the config's sizes (the backbone's, or a side network's).
///
/// # Errors
/// If the layer attends to an encoder and there is no memory.
pub fn layer_forward(tape: &Tape, config: &ModelConfig, weights: &LayerWeights, x: &Var, input: LayerInput<'_>) -> Result<Var, EngineError> {
    let LayerInput { positions, inv_freq, keys, memory } = input;
    let attention = &weights.attention;
    let mut x = attention.norms.around(tape, x, |x| {
        let (q, k, v) = attention.project(tape, config, &x);
        drop(x);
        let place = |x: Var, norm: &Option<Norm>| {
            let x = norm.as_ref().map_or_else(|| x.clone(), |norm| norm.apply(tape, &x));
            inv_freq.map_or_else(|| x.clone(), |inv_freq| tape.rope(&x, positions, inv_freq))
        };
        let (q, k) = (place(q, &attention.q_norm), place(k, &attention.k_norm));
        let (k, v, context) = keys.extend(k, v);
        let attended = tape.attention(&q, &k, &v, &context);
        drop((q, k, v));
        let y = attention.output.apply(tape, &attended);
        attention.adapter.as_ref().map_or_else(|| y.clone(), |adapter| adapter.apply(tape, &y))
    });
    if let Some(cross) = &weights.cross {
        let memory = memory.ok_or_else(|| EngineError::BadStage("its decoder got no encoder output".into()))?;
        x = cross.norms.around(tape, &x, |x| {
            let q = cross.project_query(tape, config, &x);
            let (k, v) = keys.across(&|| cross.project_memory(tape, config, &memory.hidden));
            let attended = tape.attention(&q, &k, &v, &memory.context);
            drop((q, k, v));
            cross.output.apply(tape, &attended)
        });
    }
    Ok(weights.feed_forward.apply(tape, config.activation, &x))
}

impl AttentionWeights {
    /// Query, key and value of the same rows.
    fn project(&self, tape: &Tape, config: &ModelConfig, x: &Var) -> (Var, Var, Var) {
        match &self.projections {
            Projections::Split(three) => {
                let [q, k, v] = &**three;
                (q.apply(tape, x), k.apply(tape, x), v.apply(tape, x))
            }
            Projections::Fused(qkv) => {
                let (query, kv) = (config.query_width(), config.kv_width());
                let all = qkv.apply(tape, x);
                (tape.columns(&all, 0, query), tape.columns(&all, query, kv), tape.columns(&all, query + kv, kv))
            }
        }
    }

    /// Queries alone.
    fn project_query(&self, tape: &Tape, config: &ModelConfig, x: &Var) -> Var {
        match &self.projections {
            Projections::Split(three) => three[0].apply(tape, x),
            Projections::Fused(_) => self.project(tape, config, x).0,
        }
    }

    /// Keys and values alone, of an encoder's output.
    fn project_memory(&self, tape: &Tape, config: &ModelConfig, memory: &Var) -> (Var, Var) {
        match &self.projections {
            Projections::Split(three) => {
                let [_, k, v] = &**three;
                (k.apply(tape, memory), v.apply(tape, memory))
            }
            Projections::Fused(_) => {
                let (_, k, v) = self.project(tape, config, memory);
                (k, v)
            }
        }
    }
}

impl FeedForwardWeights {
    fn apply(&self, tape: &Tape, activation: Activation, x: &Var) -> Var {
        self.norms.around(tape, x, |x| {
            let gate = self.gate.as_ref().map(|gate| gate.apply(tape, &x));
            let up = self.up.apply(tape, &x);
            drop(x);
            let inner = match &gate {
                Some(gate) => tape.activate(activation, gate, Some(&up)),
                None => tape.activate(activation, &up, None),
            };
            drop((gate, up));
            let y = self.down.apply(tape, &inner);
            self.adapter.as_ref().map_or_else(|| y.clone(), |adapter| adapter.apply(tape, &y))
        })
    }
}
