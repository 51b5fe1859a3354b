//! A forward pass, and a step of training by each method, of a model whose weights are made on the spot.

mod runs;

use super::{RandomWeights, Shape};
use crate::error::EngineError;
use crate::packed::Sequence;
use crate::sample::Sample;
use crate::side::named_rng;
use crate::stage::Clock;
use crate::tensor::Device;
use barycenter_model::names::parameter_count;
use barycenter_model::{ModelConfig, WeightType, Weights};
use rand::{Rng, RngExt};

/// Reduction k of side networks and bottleneck adapters.
pub(super) const REDUCTION: usize = 8;
/// Every so many-th layer is tapped, and cached as 8-bit integers: what `train` and the swarm do unless told otherwise.
pub(super) const TAP_EVERY: usize = 2;
/// Rank of LoRA on query and value projections.
const RANK: usize = 8;
/// Layers that are trained over one cached activation.
const LAST_LAYERS: usize = 2;
/// f32 values a layer keeps for its gradients: so many rows of the model's width, and of the width of queries, keys and
/// values, and of the feed-forward block. Rounded up; only to refuse what cannot fit.
const KEPT_ROWS: (usize, usize, usize) = (6, 2, 4);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// The frozen model, with the loss at labelled positions.
    Forward,
    /// A step that changes every weight.
    Full,
    /// A step of LoRA on query and value projections of all layers.
    Lora,
    /// A step of bottleneck adapters in all layers.
    Adapters,
    /// A step of parallel adapters that runs the model and encodes its cache entries.
    ParallelFill,
    /// A step of parallel adapters from cache entries.
    ParallelCached,
    /// A step of LoRA in the last two layers from one cached activation.
    LoraLastCached,
}

impl Method {
    /// All, in the order of the table.
    pub const ALL: [Method; 7] = [
        Method::Forward,
        Method::Full,
        Method::Lora,
        Method::Adapters,
        Method::ParallelFill,
        Method::ParallelCached,
        Method::LoraLastCached,
    ];

    /// What a table calls it.
    pub fn label(self) -> &'static str {
        match self {
            Method::Forward => "forward",
            Method::Full => "full",
            Method::Lora => "lora (r 8: query, value)",
            Method::Adapters => "adapters (width / 8)",
            Method::ParallelFill => "parallel_adapter (k 8), fill",
            Method::ParallelCached => "parallel_adapter (k 8), cached",
            Method::LoraLastCached => "lora --last-layers 2, cached",
        }
    }

    /// Whether gradients flow through every layer of the model.
    fn is_deep(self) -> bool {
        matches!(self, Method::Full | Method::Lora | Method::Adapters)
    }
}

/// How much a step does, and how often it is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Load {
    /// Sequences of a mini-batch.
    pub batch: usize,
    /// Sequences that parallel adapters take at once; gradients add up over the mini-batch.
    pub micro_batch: usize,
    /// Tokens of each; of an encoder-decoder model those of the encoder.
    pub sequence: usize,
    /// Labelled tokens at the end of each; of an encoder-decoder model all the decoder has.
    pub labels: usize,
    /// Number format of the frozen weights.
    pub weights: WeightType,
    /// Steps that are timed, after one that is not.
    pub steps: usize,
    /// Memory in bytes beyond which a method is left out.
    pub memory_bytes: u64,
    /// Of weights and tokens.
    pub seed: u64,
}

/// What was measured of a method.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct StepTimes {
    /// Of each step.
    pub seconds: Vec<f64>,
    /// Tokens of a step.
    pub tokens: usize,
    /// The most the back end held, from before the weights were loaded; of a cached step, after they were dropped.
    pub peak_bytes: u64,
    /// Cache entries of the mini-batch, where the method has some.
    pub cache_bytes: usize,
}

impl StepTimes {
    /// The median of the steps.
    pub fn median_seconds(&self) -> f64 {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match sorted.len() {
            0 => f64::NAN,
            even if even % 2 == 0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
            _ => sorted[middle],
        }
    }
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was timed.
    Measured(StepTimes),
    /// It was not, and why.
    LeftOut(String),
}

/// Everything a run needs.
struct Run<'a> {
    device: &'a Device,
    shape: &'a Shape,
    config: ModelConfig,
    load: &'a Load,
    clock: &'a Clock,
}

impl Run<'_> {
    fn weights(&self) -> Weights<RandomWeights> {
        Weights::new(RandomWeights::new(&self.config, self.load.seed), self.load.weights)
    }
}

/// Times the methods, one after the other; each row goes to `progress` as soon as it is there.
///
/// # Errors
/// If the load has no tokens or no labels, or more labels than tokens; those of the engine.
pub async fn measure(
    device: &Device,
    shape: &Shape,
    load: &Load,
    methods: &[Method],
    clock: &Clock,
    progress: &mut dyn FnMut(Method, &Outcome),
) -> Result<Vec<(Method, Outcome)>, EngineError> {
    let run = Run { device, shape, config: shape.config()?, load, clock };
    if load.batch == 0 || load.micro_batch == 0 || load.steps == 0 || load.labels == 0 || load.labels > load.sequence {
        return Err(EngineError::BadBatch(format!("{} sequences of {} tokens with {} labels each in {} steps cannot be measured: give 1 or more of each, and no more labels than tokens", load.batch, load.sequence, load.labels, load.steps)));
    }
    let mut rows = Vec::new();
    for &method in methods {
        let outcome = match left_out(&run, method) {
            Some(reason) => Outcome::LeftOut(reason),
            None => Outcome::Measured(runs::times(&run, method).await?),
        };
        progress(method, &outcome);
        rows.push((method, outcome));
    }
    Ok(rows)
}

/// Why a method is not measured.
fn left_out(run: &Run<'_>, method: Method) -> Option<String> {
    if method == Method::Full && run.load.weights != WeightType::Keep {
        return Some("full fine-tuning changes every weight and holds it as f32".into());
    }
    let (needed, allowed) = (least_bytes(&run.config, run.load, method), run.load.memory_bytes);
    (needed > allowed).then(|| format!("needs about {:.1} GB, {:.1} GB are allowed", needed as f64 / 1e9, allowed as f64 / 1e9))
}

/// A rough account of what a method holds: weights, their gradients and moments, and what the layers keep.
fn least_bytes(config: &ModelConfig, load: &Load, method: Method) -> u64 {
    let tensors = if method == Method::Full { 4 } else { 1 };
    let bits = match load.weights {
        WeightType::Keep => 32,
        WeightType::F16 => 16,
        WeightType::Int8 => 9,
        WeightType::Int4 => 5,
    };
    let (wide, projections, inner) = KEPT_ROWS;
    let kept = wide * config.width + projections * (config.query_width() + config.kv_width()) + inner * config.ffn_width;
    let activations = if method.is_deep() { 4 * load.batch * load.sequence * config.layers * kept } else { 0 };
    (tensors * bits * parameter_count(config) / 8 + activations) as u64
}

/// The samples of a mini-batch, of random tokens.
fn samples(config: &ModelConfig, load: &Load) -> Vec<Sample> {
    let mut rng = named_rng("tokens", load.seed);
    let mut sample = |_| match &config.encoder {
        Some(encoder) => {
            let source = Some(sequence(&mut rng, encoder, load.sequence, 0).ids);
            Sample { source, ..sequence(&mut rng, config, load.labels, load.labels).into() }
        }
        None => sequence(&mut rng, config, load.sequence, load.labels).into(),
    };
    (0..load.batch).map(&mut sample).collect()
}

fn sequence(rng: &mut impl Rng, config: &ModelConfig, tokens: usize, labels: usize) -> Sequence {
    let mut id = || rng.random_range(0..config.vocab as u32);
    let ids = (0..tokens).map(|_| id()).collect();
    let labels = (tokens - labels..tokens).map(|t| (t as u32, id())).collect();
    Sequence { ids, labels }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuBackend;
    use crate::bench::shapes::TINY;
    use std::rc::Rc;

    const LOAD: Load = Load { batch: 2, micro_batch: 2, sequence: 8, labels: 3, weights: WeightType::Keep, steps: 2, memory_bytes: 1 << 30, seed: 1 };

    fn rows_of(shape: &Shape, load: &Load) -> Result<Vec<(Method, Outcome)>, EngineError> {
        let device: Device = Rc::new(CpuBackend::default());
        let ticks = std::cell::Cell::new(0.0);
        let clock: Clock = Rc::new(move || {
            ticks.set(ticks.get() + 1.0);
            ticks.get()
        });
        let mut seen = Vec::new();
        let rows = futures::executor::block_on(measure(&device, shape, load, &Method::ALL, &clock, &mut |method, _| seen.push(method)))?;
        assert_eq!(seen, Method::ALL, "every row is announced");
        device.reset_peak();
        assert_eq!(device.memory().current_bytes, 0, "nothing is left on the device");
        Ok(rows)
    }

    #[test]
    fn a_decoder_is_measured_by_every_method_and_its_cache_counted() {
        let rows = rows_of(&TINY[0], &LOAD).expect("it runs");
        let times = |wanted: Method| match &rows.iter().find(|(method, _)| *method == wanted).expect("it is there").1 {
            Outcome::Measured(times) => times.clone(),
            Outcome::LeftOut(reason) => panic!("{wanted:?}: {reason}"),
        };
        for method in Method::ALL {
            let times = times(method);
            assert_eq!((times.seconds.len(), times.tokens), (2, 16), "{method:?}");
            assert!(times.seconds.iter().all(|&seconds| seconds >= 1.0) && times.peak_bytes > 0, "{method:?}");
        }
        // Of three layers the embedding, the first and the third: 16 tokens as integers with a scale each, and ρ of the labelled ones;
        // one boundary in half precision with a scale a token.
        let taps = 3 * 16 * (64 + 2) + 4 * 6;
        assert_eq!((times(Method::ParallelFill).cache_bytes, times(Method::ParallelCached).cache_bytes), (taps, taps));
        assert_eq!((times(Method::LoraLastCached).cache_bytes, times(Method::Lora).cache_bytes), (16 * 64 * 2 + 4 * 16, 0));
        assert!(times(Method::ParallelCached).peak_bytes < times(Method::ParallelFill).peak_bytes, "the backbone is gone");
    }

    #[test]
    fn micro_batches_need_less_memory_and_cache_the_same() {
        let long = Load { sequence: 64, batch: 4, ..LOAD };
        let [whole, parts] = [4, 1].map(|micro_batch| rows_of(&TINY[0], &Load { micro_batch, ..long }).expect("it runs"));
        for method in [Method::ParallelFill, Method::ParallelCached] {
            let [whole, parts] = [&whole, &parts].map(|rows| rows.iter().find_map(|row| match row {
                (of, Outcome::Measured(times)) if *of == method => Some(times.clone()),
                _ => None,
            }).expect("it is there"));
            assert_eq!((whole.tokens, whole.cache_bytes), (parts.tokens, parts.cache_bytes), "{method:?}");
            assert!(parts.peak_bytes < whole.peak_bytes, "{method:?}: {} {}", parts.peak_bytes, whole.peak_bytes);
        }
    }

    #[test]
    fn an_encoder_decoder_model_is_measured_by_every_method() {
        let mut caches = Vec::new();
        for (method, outcome) in rows_of(&TINY[1], &LOAD).expect("it runs") {
            match outcome {
                Outcome::Measured(times) => {
                    assert_eq!((times.seconds.len(), times.tokens), (2, 2 * (8 + 3)), "{method:?}");
                    caches.push((method, times.cache_bytes));
                }
                Outcome::LeftOut(reason) => panic!("{method:?}: {reason}"),
            }
        }
        let cache = |wanted| caches.iter().find(|(method, _)| *method == wanted).map_or(0, |(_, bytes)| *bytes);
        assert_eq!((caches.len(), cache(Method::Lora)), (Method::ALL.len(), 0));
        // The encoder's end and the decoder's boundary, in half precision with a scale a token.
        assert_eq!(cache(Method::LoraLastCached), 2 * (8 + 3) * (2 * TINY[1].config().expect("it is read").width + 4));
        assert!(cache(Method::ParallelFill) > 0 && cache(Method::ParallelFill) == cache(Method::ParallelCached));
    }

    #[test]
    fn loads_without_tokens_labels_or_steps_are_refused() {
        for load in [Load { batch: 0, ..LOAD }, Load { micro_batch: 0, ..LOAD }, Load { labels: 0, ..LOAD }, Load { labels: 9, ..LOAD }, Load { steps: 0, ..LOAD }] {
            assert!(matches!(rows_of(&TINY[0], &load), Err(EngineError::BadBatch(_))), "{load:?}");
        }
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        let times = |seconds: &[f64]| StepTimes { seconds: seconds.to_vec(), tokens: 1, peak_bytes: 0, cache_bytes: 0 }.median_seconds();
        assert_eq!((times(&[3.0, 1.0, 2.0]), times(&[4.0, 1.0, 2.0, 10.0])), (2.0, 3.0));
    }

    #[test]
    fn what_cannot_fit_is_left_out_before_anything_is_allocated() {
        let load = Load { batch: 16, sequence: 128, memory_bytes: 6_000_000_000, ..LOAD };
        let config = |name: &str| Shape::named(name).expect("it is there").config().expect("it is read");
        let fits = |name: &str, method| least_bytes(&config(name), &load, method) <= load.memory_bytes;
        assert!(Method::ALL.into_iter().all(|method| fits("smollm2-135m", method)));
        assert!(!fits("qwen3-0.6b", Method::Full) && fits("qwen3-0.6b", Method::ParallelFill));
    }

    #[test]
    fn an_encoder_gets_the_tokens_and_its_decoder_the_labels() {
        let samples = samples(&Shape::named("t5-base").expect("it is there").config().expect("it is read"), &LOAD);
        let size = |sample: &Sample| (sample.source.as_ref().map(Vec::len), sample.sequence.ids.len(), sample.sequence.labels.len());
        assert_eq!(samples.iter().map(size).collect::<Vec<_>>(), [(Some(8), 3, 3); 2]);
    }
}
