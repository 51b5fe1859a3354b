//! The side network itself, from what a cache gives to what the head reads.

use super::config::SideV2Config;
use super::sentences::Sentences;
use crate::EngineError;
use crate::backbone::{Head, Linear};
use crate::op::{Activation, AttentionShape};
use crate::params::ParameterSet;
use crate::tape::{AttentionContext, Tape, Var, YieldHook};
use crate::tensor::{Device, Tensor};
use barycenter_model::{ModelConfig, RawTensor};
use std::collections::HashMap;

/// Added to the variance in every norm.
const NORM_EPS: f32 = 1e-5;

/// A side network of version 2 with its head, on a device.
pub struct SideV2 {
    /// Its sizes.
    pub config: SideV2Config,
    /// All of it, trained.
    pub parameters: ParameterSet,
    /// The linear layer to the outputs.
    pub head: Head,
    width: usize,
    down: Vec<Linear>,
    align: Option<Linear>,
    layers: Vec<Layer>,
    norm: Norm,
    up: Linear,
    mix: Var,
}

struct Norm {
    weight: Var,
    bias: Var,
}

struct Layer {
    attention: Option<Attention>,
    norm: Norm,
    up: Linear,
    down: Linear,
}

struct Attention {
    norm: Norm,
    qkv: Linear,
    output: Linear,
}

/// What the side network reads of a batch.
pub struct Encoded {
    /// z of each tap, `[tokens, p]`.
    pub components: Vec<Tensor>,
    /// e: the mean of each tap over each sentence, `[taps, sentences · d]`.
    pub means: Tensor,
    /// g − 0.5 of each token and tap, `[tokens, taps]`; of pairs only.
    pub alignment: Option<Tensor>,
}

/// What training leaves out: factors `[tokens, r]` for the n-th block of the network.
pub type Dropout<'a> = &'a dyn Fn(usize) -> Tensor;

impl SideV2 {
    /// One that starts from a seed; the sentences' means reach the head unchanged by it.
    pub fn fresh(device: &Device, model: &ModelConfig, config: SideV2Config, seed: u64) -> Result<Self, EngineError> {
        let parameters = Self::set(device, model, &config)?;
        let inner: HashMap<String, usize> =
            parameters.layout().iter().filter_map(|info| Some((info.name.strip_suffix(".weight")?.to_string(), *info.shape.last()?))).collect();
        let mut values = vec![0f32; parameters.flat_len()];
        for info in parameters.layout() {
            let stem = info.name.trim_end_matches(".weight").trim_end_matches(".bias");
            let target = &mut values[info.offset..info.offset + info.elements()];
            config.start(info, inner.get(stem).copied().unwrap_or(1), seed, target);
        }
        parameters.write_values(&values);
        Self::gather(model, config, parameters)
    }

    /// One whose values `find` gives by name.
    ///
    /// # Errors
    /// If one is missing or of another shape.
    pub fn load(device: &Device, model: &ModelConfig, config: SideV2Config, find: &mut dyn FnMut(&str) -> Option<RawTensor>) -> Result<Self, EngineError> {
        let parameters = Self::set(device, model, &config)?;
        let mut values = vec![0f32; parameters.flat_len()];
        for info in parameters.layout() {
            let tensor = find(&info.name).filter(|tensor| tensor.shape == info.shape);
            let tensor = tensor.ok_or_else(|| EngineError::BadAdapter { name: info.name.clone(), expected: info.shape.clone() })?;
            values[info.offset..info.offset + info.elements()].copy_from_slice(&tensor.to_f32());
        }
        parameters.write_values(&values);
        Self::gather(model, config, parameters)
    }

    fn set(device: &Device, model: &ModelConfig, config: &SideV2Config) -> Result<ParameterSet, EngineError> {
        config.check(model)?;
        Ok(ParameterSet::new(device, config.parameters(model, model.classes())?))
    }

    fn gather(model: &ModelConfig, config: SideV2Config, parameters: ParameterSet) -> Result<Self, EngineError> {
        let var = |name: &str| {
            let missing = || EngineError::BadAdapter { name: name.to_string(), expected: Vec::new() };
            parameters.var(name).ok_or_else(missing)
        };
        let linear = |name: String| -> Result<Linear, EngineError> { Ok(Linear::plain(var(&format!("{name}.weight"))?, var(&format!("{name}.bias"))?)) };
        let norm = |name: String| -> Result<Norm, EngineError> { Ok(Norm { weight: var(&format!("{name}.weight"))?, bias: var(&format!("{name}.bias"))? }) };
        let layer = |i: usize| -> Result<Layer, EngineError> {
            let name = |part: &str| format!("side.layers.{i}.{part}");
            let attention = match config.sentences {
                1 => Some(Attention { norm: norm(name("attention_norm"))?, qkv: linear(name("qkv"))?, output: linear(name("output"))? }),
                _ => None,
            };
            Ok(Layer { attention, norm: norm(name("norm"))?, up: linear(name("up"))?, down: linear(name("down"))? })
        };
        Ok(Self {
            width: config.width(model)?,
            head: Head::linear(var("head.weight")?, var("head.bias")?),
            down: (0..config.taps.len()).map(|i| linear(format!("side.down.{i}"))).collect::<Result<_, _>>()?,
            align: if config.sentences == 2 { Some(linear("side.align".into())?) } else { None },
            layers: (0..config.taps.len() - 1).map(layer).collect::<Result<_, _>>()?,
            norm: norm("side.norm".into())?,
            up: linear("side.up".into())?,
            mix: var("side.mix")?,
            parameters,
            config,
        })
    }

    /// h of each sample, `[samples, width of h]`: what the head is applied to.
    pub async fn features(&self, tape: &Tape, encoded: &Encoded, sentences: &Sentences, dropout: Option<Dropout<'_>>, hook: &YieldHook) -> Result<Var, EngineError> {
        let device = tape.device();
        let read = |i: usize| self.down[i].apply(tape, &Var::constant(encoded.components[i].clone()));
        let mut a = read(0);
        if let (Some(align), Some(alignment)) = (&self.align, &encoded.alignment) {
            a = tape.add(&a, &align.apply(tape, &Var::constant(alignment.clone())));
        }
        let context = self.attention_context(device, sentences);
        let mut blocks = 0;
        let mut behind = |block: Var| {
            let Some(dropout) = dropout else { return block };
            blocks += 1;
            tape.multiply(&block, &Var::constant(dropout(blocks - 1)))
        };
        for (i, layer) in self.layers.iter().enumerate() {
            let mut s = tape.add(&a, &read(i + 1));
            if let Some(attention) = &layer.attention {
                s = tape.add(&s, &behind(attention.apply(tape, &s, self.width, &context)));
            }
            let inner = tape.activate(Activation::Gelu, &layer.up.apply(tape, &layer.norm.apply(tape, &s)), None);
            a = tape.add(&s, &behind(layer.down.apply(tape, &inner)));
            device.submit();
            hook().await;
        }
        let y = self.norm.apply(tape, &a);
        drop(a);
        let mean = |ranges: Tensor| tape.linear(&Var::constant(ranges), &y, None, true);
        let of_sentences = mean(sentences.mean_of(device, sentences.segments.iter().cloned()));
        let raised = self.up.apply(tape, &of_sentences);
        let mut mixed = tape.linear(&tape.softmax(&self.mix), &Var::constant(encoded.means.clone()), None, true);
        mixed.value = mixed.value.reshaped(raised.value.shape());
        let u = tape.add(&mixed, &raised);
        let rows: Vec<_> = sentences.sample_rows().collect();
        let of_samples = [mean(sentences.mean_of(device, rows.into_iter())), tape.segment_max(&y, &sentences.ranges(device))];
        let mut parts = match self.config.sentences {
            1 => vec![u],
            _ => {
                let [first, second] = [0, 1].map(|j| tape.gather_rows(&u, &sentences.numbers(device, j)));
                let difference = tape.add(&first, &tape.scale(&second, -1.0));
                vec![tape.absolute(&difference), tape.multiply(&first, &second)]
            }
        };
        parts.extend(of_samples);
        Ok(tape.beside(&parts))
    }

    /// Each sentence attends to itself.
    fn attention_context(&self, device: &Device, sentences: &Sentences) -> AttentionContext {
        let heads = SideV2Config::heads(self.width);
        let table: Vec<u32> = sentences.segments.iter().flat_map(|rows| [rows.start, rows.end, rows.start, rows.end].map(|at| at as u32)).collect();
        let (head_dim, tokens) = ((self.width / heads) as u32, sentences.tokens() as u32);
        let shape = AttentionShape {
            heads: heads as u32,
            kv_heads: heads as u32,
            head_dim,
            scale: (head_dim as f32).sqrt().recip(),
            bias_zero: 0,
            causal: false,
            window: 0,
            segments: sentences.segments.len() as u32,
            queries: tokens,
            keys: tokens,
        };
        AttentionContext { table: Tensor::from_u32(device, &table), bias: None, shape }
    }
}

impl Norm {
    fn apply(&self, tape: &Tape, x: &Var) -> Var {
        tape.layer_norm(x, &self.weight, &self.bias, NORM_EPS)
    }
}

impl Attention {
    fn apply(&self, tape: &Tape, s: &Var, width: usize, context: &AttentionContext) -> Var {
        let all = self.qkv.apply(tape, &self.norm.apply(tape, s));
        let [q, k, v] = [0, 1, 2].map(|part| tape.columns(&all, part * width, width));
        self.output.apply(tape, &tape.attention(&q, &k, &v, context))
    }
}
