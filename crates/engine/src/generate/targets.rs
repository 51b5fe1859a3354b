//! Greedy answers of encoder-decoder models: the encoder runs once, the decoder over the whole answer for every token.

use super::{GenerateOptions, batches};
use crate::EngineError;
use crate::backbone::{Backbone, Memory};
use crate::chains::Chains;
use crate::loss::greedy;
use crate::packed::{DeviceBatch, MicroBatch, Sequence, cross_attention};
use crate::tape::{Tape, Var, YieldHook};

/// The tokens that follow the decoder's start token for each source, by the model or with its side networks. Where the
/// config forces an answer's first or last token (BART), it is that one; learned positions may end an answer earlier.
///
/// # Errors
/// If a source is empty, too long for the model, or has a token outside the vocabulary; if `model` has no encoder, no start
/// token or is not whole; if the device fails.
pub async fn generate_targets(
    model: &Backbone,
    chains: Option<&Chains>,
    sources: &[Vec<u32>],
    options: &GenerateOptions,
    hook: &YieldHook,
) -> Result<Vec<Vec<u32>>, EngineError> {
    let mut results = Vec::new();
    for now in batches(sources, options) {
        results.extend(decode(model, chains, now, options, hook).await?);
    }
    Ok(results)
}

/// What the encoder gives: the model's alone, or with its chain's.
enum Encoded<'a> {
    Plain(Var),
    Beside(&'a Chains, (Var, Var)),
}

/// [`generate_targets`] of sources that fit at once.
async fn decode(
    model: &Backbone,
    chains: Option<&Chains>,
    sources: &[Vec<u32>],
    options: &GenerateOptions,
    hook: &YieldHook,
) -> Result<Vec<Vec<u32>>, EngineError> {
    let config = &model.config;
    let no_encoder = || EngineError::BadStage("it holds no encoder".into());
    let encoder = model.encoder.as_ref().ok_or_else(no_encoder)?;
    let start = config.decoder_start.ok_or_else(|| EngineError::BadStage("its config has no token for the decoder to start from".into()))?;
    let source = MicroBatch::pack(&sources.iter().map(|ids| Sequence { ids: ids.clone(), labels: Vec::new() }).collect::<Vec<_>>());
    source.check(&encoder.config)?;
    let source = DeviceBatch::new(model.device(), &source);
    let encoded = match chains {
        Some(chains) => Encoded::Beside(chains, chains.encode(model, &source, hook).await?),
        None => {
            let tape = Tape::computing(model.device());
            let hidden = encoder.run(&tape, &source, None, hook).await?;
            Encoded::Plain(encoder.head.as_ref().ok_or_else(no_encoder)?.normed(&tape, &hidden))
        }
    };
    let mut answers: Vec<Answer> = sources.iter().map(|_| Answer { ids: vec![start], has_ended: false }).collect();
    let most = options.max_new_tokens.min(config.position_limit().unwrap_or(usize::MAX));
    for step in 0..most {
        let forced = config.forced_eos.filter(|_| step + 1 == options.max_new_tokens).or(config.forced_bos.filter(|_| step == 0));
        let batch = MicroBatch::pack(&answers.iter().map(Answer::sequence).collect::<Vec<_>>());
        batch.check(config)?;
        let likeliest = next_tokens(model, &encoded, &DeviceBatch::new(model.device(), &batch), &source, hook).await?;
        for (answer, token) in answers.iter_mut().zip(likeliest) {
            let token = forced.unwrap_or(token);
            answer.has_ended |= options.stop.contains(&token);
            if !answer.has_ended {
                answer.ids.push(token);
            }
        }
        if answers.iter().all(|answer| answer.has_ended) {
            break;
        }
    }
    Ok(answers.into_iter().map(|answer| answer.ids[1..].to_vec()).collect())
}

/// The likeliest token behind each sequence, at its one labelled row.
async fn next_tokens(model: &Backbone, encoded: &Encoded<'_>, batch: &DeviceBatch, source: &DeviceBatch, hook: &YieldHook) -> Result<Vec<u32>, EngineError> {
    let tape = Tape::computing(model.device());
    let out = match encoded {
        Encoded::Beside(chains, encoded) => chains.decode(model, encoded, batch, source, hook).await?,
        Encoded::Plain(hidden) => {
            let memory = Memory { hidden: hidden.clone(), context: cross_attention(&model.config, batch, source) };
            let mut x = model.embed(&tape, batch).ok_or_else(super::not_whole)?;
            for index in 0..model.layers.len() {
                x = model.layer_across(&tape, index, &x, batch, Some(&memory))?;
                model.device().submit();
                hook().await;
            }
            tape.gather_rows(&x, &batch.labelled_rows)
        }
    };
    Ok(greedy(&tape, model.whole_head()?, &out).read_words().await?)
}

/// What was decoded of one source.
struct Answer {
    /// With the start token.
    ids: Vec<u32>,
    has_ended: bool,
}

impl Answer {
    /// What the decoder reads; one that has ended keeps its place among the sources with the start token alone.
    fn sequence(&self) -> Sequence {
        let ids = if self.has_ended { vec![self.ids[0]] } else { self.ids.clone() };
        Sequence { labels: vec![(ids.len() as u32 - 1, 0)], ids }
    }
}
