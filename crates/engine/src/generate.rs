//! Greedy decoding with a key/value cache, a batch of prompts at once, by the base model or with its side network.

mod targets;

pub use targets::generate_targets;

use crate::EngineError;
use crate::backbone::{Backbone, Keys};
use crate::loss::greedy;
use crate::packed::{MicroBatch, Sequence, attention_shape};
use crate::side::Side;
use crate::tape::{AttentionContext, Tape, Var, YieldHook};
use crate::tensor::{Device, Tensor};
use barycenter_model::ModelConfig;

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
    let max_positions = model.config.max_positions;
    if let Some(prompt) = prompts.iter().find(|prompt| prompt.len() > max_positions) {
        return Err(EngineError::BadBatch(format!("a prompt of {} tokens exceeds the model's {max_positions}", prompt.len())));
    }
    let mut results = Vec::new();
    for now in batches(prompts, options) {
        results.extend(Decoder::new(model, side, now, options)?.run(now, options, hook).await?);
    }
    Ok(results)
}

/// Prompts that are decoded at once.
fn batches<'a>(prompts: &'a [Vec<u32>], options: &GenerateOptions) -> Vec<&'a [Vec<u32>]> {
    let (mut list, mut rest) = (Vec::new(), prompts);
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = |prompt: &&Vec<u32>| {
            tokens += prompt.len() + options.max_new_tokens;
            tokens <= BATCH_TOKENS
        };
        let (now, later) = rest.split_at(rest.iter().take_while(fits).count().max(1));
        list.push(now);
        rest = later;
    }
    list
}

/// Caches of a batch of prompts.
struct Decoder<'a> {
    model: &'a Backbone,
    side: Option<&'a Side>,
    device: Device,
    layers: Vec<LayerCache>,
    steps: Vec<LayerCache>,
    /// First cache row of each prompt.
    starts: Vec<usize>,
    rows: usize,
}

/// Rotated keys and values of one layer, `[rows, kv_heads · head_dim]`.
struct LayerCache {
    k: Tensor,
    v: Tensor,
}

/// A prompt that is not finished.
struct Active {
    prompt: usize,
    /// Tokens in the cache.
    len: usize,
    last: u32,
}

impl<'a> Decoder<'a> {
    fn new(model: &'a Backbone, side: Option<&'a Side>, prompts: &[Vec<u32>], options: &GenerateOptions) -> Result<Self, EngineError> {
        Backbone::check_decoder(&model.config)?;
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
            LayerCache { k, v }
        };
        let layers = model.layers.iter().map(|_| cache(&model.config)).collect();
        let steps = side.iter().flat_map(|side| side.layout.steps().map(|_| cache(side.model()))).collect();
        Ok(Self { model, side, layers, steps, starts, rows, device })
    }

    async fn run(&self, prompts: &[Vec<u32>], options: &GenerateOptions, hook: &YieldHook) -> Result<Vec<Vec<u32>>, EngineError> {
        let mut results = vec![Vec::new(); prompts.len()];
        if options.max_new_tokens == 0 {
            return Ok(results);
        }
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
                if options.stop.contains(&token) {
                    return false;
                }
                let result = &mut results[active.prompt];
                result.push(token);
                active.last = token;
                result.len() < options.max_new_tokens && active.len < self.model.config.max_positions
            });
            if active.is_empty() {
                return Ok(results);
            }
            chosen = self.decode(&active).await?;
            active.iter_mut().for_each(|active| active.len += 1);
            hook().await;
        }
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
            segments: batch.segments.len(),
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
            segments: active.len(),
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
        for (index, cache) in self.layers.iter().enumerate() {
            let mut keys = pass.keys(cache, &self.model.config, index);
            x = self.model.layer_with(&tape, index, &x, &pass.positions, &mut keys)?;
            if let Some((side, a)) = &mut a
                && let Some(step) = side.layout.step_after_layer(index)
            {
                let tap = tape.tap_scale(&x.value).0;
                let mut keys = pass.keys(&self.steps[step - 1], side.model(), side.layout.layer(step));
                *a = side.step_with(&tape, step, a, &tap, &pass.positions, &mut keys)?;
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
    segments: usize,
    /// Key rows the table points into.
    keys: usize,
    /// Whether the table points into the cache, or (first pass) at the new tokens themselves.
    from_cache: bool,
}

impl Pass {
    fn keys<'a>(&'a self, cache: &'a LayerCache, config: &ModelConfig, layer: usize) -> CachedKeys<'a> {
        let shape = attention_shape(config, layer, self.segments, self.ids.len() as u32, self.keys as u32);
        CachedKeys { pass: self, cache, context: AttentionContext { table: self.table.clone(), bias: None, shape } }
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
}

fn not_whole() -> EngineError {
    EngineError::BadStage("decoding needs the whole model, and it holds a part".into())
}
