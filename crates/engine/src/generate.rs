//! Greedy decoding with a key/value cache, a batch of prompts at once, by the base model or with its side network.
//!
//! Of an encoder-decoder model the encoder runs once over its sources; the keys and values that each layer of the decoder
//! makes of its output are kept beside those of the answers.

use crate::EngineError;
use crate::backbone::{Backbone, Keys, Memory, bias_by_distance};
use crate::chains::{self, Chains};
use crate::loss::greedy;
use crate::op::AttentionShape;
use crate::packed::{DeviceBatch, MicroBatch, Sequence, attention_shape};
use crate::side::Side;
use crate::tape::{AttentionContext, Tape, Var, YieldHook};
use crate::tensor::{Device, Tensor};
use barycenter_model::ModelConfig;
use std::cell::OnceCell;
use std::ops::Range;

/// Prompts whose caches together hold at most this many tokens are decoded at once.
const BATCH_TOKENS: usize = 1 << 14;

/// When to stop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenerateOptions {
    /// Most tokens to add to a prompt.
    pub max_new_tokens: usize,
    /// Tokens that end the text; they are not part of the result.
    pub stop: Vec<u32>,
}

/// The tokens that follow each prompt. A prompt that leaves no room in the model's context gets fewer.
///
/// # Errors
/// If a prompt is empty, too long for the model, or has a token outside the vocabulary; if `model` is not whole; if
/// the device fails.
pub async fn generate(
    model: &Backbone,
    side: Option<&Side>,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    hook: &YieldHook,
) -> Result<Vec<Vec<u32>>, EngineError> {
    Backbone::check_decoder(&model.config)?;
    let max_positions = model.config.max_positions;
    if let Some(prompt) = prompts.iter().find(|prompt| prompt.len() > max_positions) {
        return Err(EngineError::BadBatch(format!("a prompt of {} tokens exceeds the model's {max_positions}", prompt.len())));
    }
    let mut results = Vec::new();
    for now in batches(prompts, options) {
        results.extend(Decoder::new(model, side, now, None, options).run(now, options, hook).await?);
    }
    Ok(results)
}

/// The tokens that an encoder-decoder model gives for each source, behind the decoder's start token. A first token that the
/// model's config forces is part of them.
///
/// # Errors
/// If a source is empty, too long for the model, or has a token outside the vocabulary; if `model` is not whole, has no
/// encoder or no start token; if the device fails.
pub async fn generate_from(
    model: &Backbone,
    chains: Option<&Chains>,
    sources: &[Vec<u32>],
    options: &GenerateOptions,
    hook: &YieldHook,
) -> Result<Vec<Vec<u32>>, EngineError> {
    let encoder = model.config.encoder.as_ref().ok_or_else(|| EngineError::BadStage("it holds no encoder".into()))?;
    let start = model.config.decoder_start.ok_or_else(|| EngineError::BadStage("config.json gives its decoder no start token".into()))?;
    let side = chains.map(Chains::last).transpose()?;
    let mut results = Vec::new();
    for now in batches(sources, options) {
        let sequences: Vec<_> = now.iter().map(|ids| Sequence { ids: ids.clone(), labels: Vec::new() }).collect();
        let batch = MicroBatch::pack(&sequences);
        batch.check(encoder)?;
        let (hidden, beside) = chains::encode(model, chains, &DeviceBatch::new(model.device(), &batch), hook).await?;
        let source = Source { hidden, beside, segments: batch.segments };
        let prompts = vec![vec![start]; now.len()];
        results.extend(Decoder::new(model, side, &prompts, Some(source), options).run(&prompts, options, hook).await?);
    }
    Ok(results)
}

/// Prompts in their order, as many at once as [`BATCH_TOKENS`] allows, at least one.
fn batches<'a>(prompts: &'a [Vec<u32>], options: &GenerateOptions) -> impl Iterator<Item = &'a [Vec<u32>]> {
    let mut rest = prompts;
    std::iter::from_fn(move || {
        let mut tokens = 0;
        let fits = |prompt: &&Vec<u32>| {
            tokens += prompt.len() + options.max_new_tokens;
            tokens <= BATCH_TOKENS
        };
        let count = rest.iter().take_while(fits).count().max(1).min(rest.len());
        let (now, later) = rest.split_at(count);
        rest = later;
        (!now.is_empty()).then_some(now)
    })
}

/// Caches of a batch of prompts.
struct Decoder<'a> {
    model: &'a Backbone,
    side: Option<&'a Side>,
    device: Device,
    layers: Vec<LayerCache>,
    steps: Vec<LayerCache>,
    /// Biases by distance of the model and of the side network ([`bias_by_distance`]).
    biases: [Option<(Var, u32)>; 2],
    /// First cache row of each prompt.
    starts: Vec<usize>,
    rows: usize,
    source: Option<Source>,
}

/// Rotated keys and values of one layer, `[rows, kv_heads · head_dim]`.
struct LayerCache {
    k: Tensor,
    v: Tensor,
    /// Those of the sources, `[source tokens, kv_heads · head_dim]`, from the first pass on.
    across: OnceCell<(Var, Var)>,
}

/// What the encoder made of the sources.
struct Source {
    /// Its normed end, `[source tokens, width]`.
    hidden: Var,
    /// That of the side encoder.
    beside: Option<Var>,
    /// The rows of each source.
    segments: Vec<Range<usize>>,
}

impl Source {
    /// What the queries at these rows attend to, each with the number of its prompt.
    fn memories(&self, device: &Device, model: &ModelConfig, side: Option<&Side>, queries: &[(usize, Range<usize>)]) -> [Option<Memory>; 2] {
        let words = |(prompt, rows): &(usize, Range<usize>)| {
            let source = &self.segments[*prompt];
            [rows.start, rows.end, source.start, source.end].map(|x| x as u32)
        };
        let table = Tensor::from_u32(device, &queries.iter().flat_map(words).collect::<Vec<_>>());
        let rows = queries.iter().map(|(_, rows)| rows.len() as u32).sum();
        let memory = |config: &ModelConfig, hidden: &Var| {
            let shape = attention_shape(config, 0, queries.len(), rows, hidden.value.rows() as u32);
            let shape = AttentionShape { causal: false, window: 0, ..shape };
            Memory { hidden: hidden.clone(), context: AttentionContext { table: table.clone(), bias: None, shape } }
        };
        let beside = self.beside.as_ref().zip(side).map(|(hidden, side)| memory(side.model(), hidden));
        [Some(memory(model, &self.hidden)), beside]
    }
}

/// A prompt that is not finished.
struct Active {
    prompt: usize,
    /// Tokens in the cache.
    len: usize,
    last: u32,
}

impl<'a> Decoder<'a> {
    fn new(model: &'a Backbone, side: Option<&'a Side>, prompts: &[Vec<u32>], source: Option<Source>, options: &GenerateOptions) -> Self {
        let device = model.device().clone();
        let mut rows = 0;
        let starts = prompts.iter().map(|prompt| {
            let start = rows;
            rows += prompt.len() + options.max_new_tokens;
            start
        });
        let starts = starts.collect();
        let cache = |config: &ModelConfig| {
            let [k, v] = [(); 2].map(|()| Tensor::zeros(&device, &[rows, config.kv_width()]));
            LayerCache { k, v, across: OnceCell::new() }
        };
        let layers = model.layers.iter().map(|_| cache(&model.config)).collect();
        let steps = side.iter().flat_map(|side| side.layout.steps().map(|_| cache(side.model()))).collect();
        let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + options.max_new_tokens;
        let tape = Tape::computing(&device);
        let bias = |config: &ModelConfig, table: Option<&Var>| table.and_then(|table| bias_by_distance(&tape, config, table, longest));
        let biases = [bias(&model.config, model.relative_bias()), side.and_then(|side| bias(side.model(), side.relative_bias()))];
        Self { model, side, layers, steps, biases, starts, rows, source, device }
    }

    async fn run(&self, prompts: &[Vec<u32>], options: &GenerateOptions, hook: &YieldHook) -> Result<Vec<Vec<u32>>, EngineError> {
        let mut results = vec![Vec::new(); prompts.len()];
        if options.max_new_tokens == 0 {
            return Ok(results);
        }
        let config = &self.model.config;
        // A bias by distance has no end; other decoders have a context.
        let max_positions = if config.encoder.is_some() { config.position_limit().unwrap_or(usize::MAX) } else { config.max_positions };
        let sequences: Vec<_> = prompts.iter().map(|ids| Sequence { ids: ids.clone(), labels: Vec::new() }).collect();
        let batch = MicroBatch::pack(&sequences);
        batch.check(&self.model.config)?;
        let mut chosen = self.prefill(&batch, hook).await?;
        let start = |(prompt, ids): (usize, &Vec<u32>)| Active { prompt, len: ids.len(), last: 0 };
        let mut active: Vec<_> = prompts.iter().enumerate().map(start).collect();
        loop {
            let mut chosen_now = chosen.into_iter();
            active.retain_mut(|active| {
                let Some(token) = chosen_now.next() else { return false };
                let token = self.forced(results[active.prompt].len(), options).unwrap_or(token);
                if options.stop.contains(&token) {
                    return false;
                }
                let result = &mut results[active.prompt];
                result.push(token);
                active.last = token;
                result.len() < options.max_new_tokens && active.len < max_positions
            });
            if active.is_empty() {
                return Ok(results);
            }
            chosen = self.decode(&active).await?;
            active.iter_mut().for_each(|active| active.len += 1);
            hook().await;
        }
    }

    /// The token that must stand behind `count` others, where the model's config forces one.
    fn forced(&self, count: usize, options: &GenerateOptions) -> Option<u32> {
        let config = &self.model.config;
        let last = config.forced_last.filter(|_| count + 1 == options.max_new_tokens);
        last.or(config.forced_first.filter(|_| count == 0))
    }

    /// All prompts at once; returns the token that follows each.
    async fn prefill(&self, batch: &MicroBatch, hook: &YieldHook) -> Result<Vec<u32>, EngineError> {
        let u32s = |values: &[u32]| Tensor::from_u32(&self.device, values);
        let rows = batch.segments.iter().zip(&self.starts).flat_map(|(segment, &start)| start..start + segment.len());
        let table = batch.segments.iter().flat_map(|s| [s.start, s.end, s.start, s.end]).map(|x| x as u32);
        let pass = Pass {
            ids: u32s(&batch.ids),
            positions: u32s(&batch.positions),
            cache_rows: u32s(&rows.map(|row| row as u32).collect::<Vec<_>>()),
            table: u32s(&table.collect::<Vec<_>>()),
            queries: batch.segments.iter().cloned().enumerate().collect(),
            keys: batch.tokens(),
            from_cache: false,
        };
        hook().await;
        let last: Vec<u32> = batch.segments.iter().map(|segment| segment.end as u32 - 1).collect();
        self.pass(&pass, Some(&u32s(&last))).await
    }

    /// One more token of each active prompt; returns the token that follows it.
    async fn decode(&self, active: &[Active]) -> Result<Vec<u32>, EngineError> {
        let u32s = |values: Vec<usize>| Tensor::from_u32(&self.device, &values.into_iter().map(|x| x as u32).collect::<Vec<_>>());
        let start = |active: &Active| self.starts[active.prompt];
        let row = |(at, active): (usize, &Active)| [at, at + 1, start(active), start(active) + active.len + 1];
        let pass = Pass {
            ids: Tensor::from_u32(&self.device, &active.iter().map(|active| active.last).collect::<Vec<_>>()),
            positions: u32s(active.iter().map(|active| active.len).collect()),
            cache_rows: u32s(active.iter().map(|active| start(active) + active.len).collect()),
            table: u32s(active.iter().enumerate().flat_map(row).collect()),
            queries: active.iter().enumerate().map(|(at, active)| (active.prompt, at..at + 1)).collect(),
            keys: self.rows,
            from_cache: true,
        };
        self.pass(&pass, None).await
    }

    /// The likeliest next token behind `rows` (all rows if not given).
    async fn pass(&self, pass: &Pass, rows: Option<&Tensor>) -> Result<Vec<u32>, EngineError> {
        let tape = Tape::computing(&self.device);
        let mut x = self.model.embeddings.as_ref().ok_or_else(not_whole)?.apply(&tape, &pass.ids, &pass.positions, None);
        let gather = |x: &Var| rows.map_or_else(|| x.clone(), |rows| tape.gather_rows(x, rows));
        let mut a = match self.side {
            Some(side) => Some((side, side.start(&tape, &tape.tap_scale(&x.value).0)?)),
            None => None,
        };
        let memories = self.source.as_ref().map(|source| source.memories(&self.device, &self.model.config, self.side, &pass.queries));
        let [memory, beside] = memories.unwrap_or_default();
        let [bias, side_bias] = &self.biases;
        for (index, cache) in self.layers.iter().enumerate() {
            let mut keys = pass.keys(cache, &self.model.config, index, bias.as_ref());
            x = self.model.layer_with(&tape, index, &x, &pass.positions, &mut keys, memory.as_ref())?;
            if let Some((side, a)) = &mut a
                && let Some(step) = side.layout.step_after_layer(index)
            {
                let tap = tape.tap_scale(&x.value).0;
                let mut keys = pass.keys(&self.steps[step - 1], side.model(), side.layout.layer(step), side_bias.as_ref());
                *a = side.step_with(&tape, step, a, &tap, &pass.positions, &mut keys, beside.as_ref())?;
            }
            self.device.submit();
        }
        let mut out = gather(&x);
        if let Some((side, a)) = a {
            let rho = tape.tap_scale(&out.value).1;
            out = side.finish(&tape, &gather(&a), &out.value, &rho)?;
        }
        let head = self.model.head.as_ref().ok_or_else(not_whole)?;
        Ok(greedy(&tape, head, &out).read_words().await?)
    }
}

/// One forward pass over new tokens.
struct Pass {
    ids: Tensor,
    positions: Tensor,
    /// Where each new token's key and value go.
    cache_rows: Tensor,
    table: Tensor,
    /// The new tokens of each prompt, with its number.
    queries: Vec<(usize, Range<usize>)>,
    /// Key rows the table points into.
    keys: usize,
    /// Whether the table points into the cache, or (first pass) at the new tokens themselves.
    from_cache: bool,
}

impl Pass {
    fn keys<'a>(&'a self, cache: &'a LayerCache, config: &ModelConfig, layer: usize, bias: Option<&(Var, u32)>) -> CachedKeys<'a> {
        let shape = attention_shape(config, layer, self.queries.len(), self.ids.len() as u32, self.keys as u32);
        let shape = AttentionShape { bias_zero: bias.map_or(0, |(_, zero)| *zero), ..shape };
        CachedKeys { pass: self, cache, context: AttentionContext { table: self.table.clone(), bias: bias.map(|(bias, _)| bias.clone()), shape } }
    }
}

/// Puts the new keys and values into the cache.
struct CachedKeys<'a> {
    pass: &'a Pass,
    cache: &'a LayerCache,
    context: AttentionContext,
}

impl Keys for CachedKeys<'_> {
    fn extend(&mut self, k: Var, v: Var) -> (Var, Var, AttentionContext) {
        for (new, cache) in [(&k, &self.cache.k), (&v, &self.cache.v)] {
            // The rows are still 0: adding stores.
            new.value.run(crate::op::Op::ScatterRows {
                dy: new.value.slice(),
                indices: self.pass.cache_rows.buffer(),
                dx: cache.slice(),
                rows: new.value.rows() as u32,
                cols: cache.cols() as u32,
            });
        }
        if self.pass.from_cache {
            let [k, v] = [&self.cache.k, &self.cache.v].map(|x| Var::constant(x.clone()));
            return (k, v, self.context.clone());
        }
        (k, v, self.context.clone())
    }

    fn across(&mut self, project: &dyn Fn() -> (Var, Var)) -> (Var, Var) {
        self.cache.across.get_or_init(project).clone()
    }
}

fn not_whole() -> EngineError {
    EngineError::BadStage("decoding needs the whole model, and it holds a part".into())
}
