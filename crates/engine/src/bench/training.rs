//! A training of every weight whose start other libraries can be given, so that they compute the same steps.

use crate::error::EngineError;
use crate::optim::{AdamWConfig, LinearSchedule};
use crate::packed::{MicroBatch, Sequence};
use crate::params::ParameterInfo;
use crate::tape::no_yield;
use crate::tensor::Device;
use crate::train_full::{FullTrainer, FullTraining};
use barycenter_model::ModelConfig;

/// A model of random weights that is trained step by step: torch's AdamW with its defaults, a learning rate that stays,
/// nothing clipped.
pub struct Training {
    trainer: FullTrainer,
}

impl Training {
    /// Weights from a seed, for a model as its `config.json` says.
    ///
    /// # Errors
    /// If the config cannot be read.
    pub fn start(device: &Device, config_json: &str, seed: u64, learning_rate: f32) -> Result<Self, EngineError> {
        let schedule = LinearSchedule { warmup_steps: 0, total_steps: u32::MAX - 1, peak_lr: learning_rate };
        let training = FullTraining { schedule, optimiser: AdamWConfig::default(), max_norm: 0.0 };
        Ok(Self { trainer: FullTrainer::fresh(device, &ModelConfig::parse(config_json)?, seed, training)? })
    }

    /// Names, as in a weight file, shapes and places of the weights.
    pub fn layout(&self) -> &[ParameterInfo] {
        self.trainer.parameters.layout()
    }

    /// The weights as they are now, one behind the other as [`Training::layout`] says.
    ///
    /// # Errors
    /// If the device went away.
    pub async fn flat_weights(&self) -> Result<Vec<f32>, EngineError> {
        Ok(self.trainer.parameters.read_values().await?)
    }

    /// One step on sequences of `tokens` ids each, laid end to end; `classes[t]` is what the model has to predict from `ids[t]`
    /// and those before it. Gives the mean loss before the step.
    ///
    /// # Errors
    /// If the ids are not whole sequences or not as many as the classes, or outside the vocabulary; if the device went away.
    pub async fn step(&mut self, ids: &[u32], classes: &[u32], tokens: usize) -> Result<f32, EngineError> {
        if tokens == 0 || ids.is_empty() || !ids.len().is_multiple_of(tokens) || ids.len() != classes.len() {
            let text = format!("{} ids with {} classes are no sequences of {tokens} tokens with a class each", ids.len(), classes.len());
            return Err(EngineError::BadBatch(text));
        }
        let sequence = |(ids, classes): (&[u32], &[u32])| Sequence { ids: ids.to_vec(), labels: (0..).zip(classes.iter().copied()).collect() };
        let sequences: Vec<Sequence> = ids.chunks(tokens).zip(classes.chunks(tokens)).map(sequence).collect();
        Ok(self.trainer.step(&[MicroBatch::pack(&sequences)], &no_yield()).await?.loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CpuBackend;
    use futures::executor::block_on;
    use std::rc::Rc;

    const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 48, "vocab_size": 40, "tie_word_embeddings": true}"#;

    fn training(seed: u64) -> Training {
        let device: Device = Rc::new(CpuBackend::default());
        Training::start(&device, CONFIG, seed, 1e-2).expect("it starts")
    }

    #[test]
    fn a_step_lowers_the_loss_of_its_batch_from_the_weights_of_the_seed() {
        let mut one = training(3);
        let start = block_on(one.flat_weights()).expect("they are read");
        assert_eq!(one.layout().len(), 2 + 2 * 9);
        assert_eq!(one.layout().iter().map(ParameterInfo::elements).sum::<usize>(), start.len());
        assert_eq!(start, block_on(training(3).flat_weights()).expect("they are read"));
        assert_ne!(start, block_on(training(4).flat_weights()).expect("they are read"));
        let (ids, classes): (Vec<u32>, Vec<u32>) = (0..12).map(|t| (t * 7 % 40, (t * 7 + 7) % 40)).unzip();
        let losses: Vec<f32> = (0..8).map(|_| block_on(one.step(&ids, &classes, 6)).expect("it runs")).collect();
        assert!((losses[0] - 40f32.ln()).abs() < 0.1, "fresh weights know nothing: {losses:?}");
        assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
    }

    #[test]
    fn sequences_that_do_not_fill_the_batch_are_refused() {
        let mut one = training(3);
        for (ids, classes, tokens) in [(5, 5, 2), (4, 3, 2), (4, 4, 0), (0, 0, 2)] {
            let step = block_on(one.step(&vec![1; ids], &vec![1; classes], tokens));
            assert!(matches!(step, Err(EngineError::BadBatch(_))), "{ids} {classes} {tokens}");
        }
    }
}
