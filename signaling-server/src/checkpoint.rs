//! Checkpoints: parts of several devices become one file, whole or not at all.

use crate::side;
use barycenter_core::coordinator::RunSnapshot;
use barycenter_model::names::Parameter;
use barycenter_model::{MemoryTensors, ModelConfig, RawTensor, SafetensorsHeader, TensorDtype, write_safetensors};
use barycenter_protocol::control::{CheckpointRef, RunSpec};
use barycenter_protocol::{Generation, RunId};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Prefixes of value and the two moments of AdamW.
const KINDS: [&str; 3] = ["", "m.", "v."];
const GATE: &str = "side.gate";

/// Which checkpoint a part belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CheckpointKey {
    /// Run.
    pub run: RunId,
    /// Generation that uploads it.
    pub generation: Generation,
    /// Epoch of the next step.
    pub epoch: u32,
    /// The next step.
    pub step: u32,
}

/// What a complete checkpoint of a run consists of.
#[derive(Clone, Debug)]
pub struct Expected {
    shapes: BTreeMap<String, Vec<usize>>,
    steps_per_epoch: u32,
}

impl Expected {
    /// By the model's config and the run's reduction.
    pub fn of(config: &ModelConfig, spec: &RunSpec) -> Result<Self, String> {
        let parameters = side::adapter_parameters(config, spec.reduction, spec.tap_every)?;
        let shapes = KINDS.iter().flat_map(|kind| parameters.iter().map(move |Parameter { name, shape }| (format!("{kind}{name}"), shape.clone())));
        Ok(Self { shapes: shapes.collect(), steps_per_epoch: barycenter_core::schedule::steps_per_epoch(spec) })
    }

    /// Most bytes that a part can have.
    pub fn max_bytes(&self) -> usize {
        let values: usize = self.shapes.values().map(|shape| shape.iter().product::<usize>()).sum();
        4 * values + 256 * self.shapes.len() + (64 << 10)
    }

    /// Reads a part and checks every name, shape and format. A gate that holds only the entries of the part's own
    /// layers is spread over `side.gate.{layer}`.
    pub fn read_part(&self, bytes: &[u8]) -> Result<BTreeMap<String, RawTensor>, String> {
        let mut tensors = MemoryTensors::from_safetensors("the checkpoint part", bytes).map_err(|error| error.to_string())?.tensors;
        for kind in KINDS {
            let name = format!("{kind}{GATE}");
            if let Some(gate) = tensors.remove(&name) {
                let layers = self.layers_of_gate(kind, &gate, &tensors)?;
                for (at, layer) in layers.enumerate() {
                    let bytes = gate.bytes[4 * at..4 * at + 4].to_vec();
                    tensors.insert(format!("{name}.{layer}"), RawTensor { dtype: TensorDtype::F32, shape: vec![1], bytes });
                }
            }
        }
        for (name, tensor) in &tensors {
            let expected = self.pieces(name);
            match expected {
                Some(shape) if shape == tensor.shape && tensor.dtype == TensorDtype::F32 => {}
                Some(shape) => return Err(format!("the checkpoint's tensor `{name}` is {:?} {:?}, expected F32 {shape:?}: the device runs another version, reload it", tensor.dtype, tensor.shape)),
                None => return Err(format!("the checkpoint holds `{}`, which this run's adapter does not have: the device runs another version, reload it", crate::models::clip(name))),
            }
        }
        Ok(tensors)
    }

    fn layers_of_gate(&self, kind: &str, gate: &RawTensor, others: &BTreeMap<String, RawTensor>) -> Result<std::ops::Range<usize>, String> {
        let layers = self.shapes[GATE][0];
        let count = gate.elements();
        if gate.dtype != TensorDtype::F32 || gate.shape.len() != 1 || count > layers {
            return Err(format!("the checkpoint's `{kind}{GATE}` is {:?} {:?}, expected F32 [{layers}]: the device runs another version, reload it", gate.dtype, gate.shape));
        }
        if count == layers {
            return Ok(0..layers);
        }
        let prefix = format!("{kind}side.layers.");
        let held: std::collections::BTreeSet<usize> =
            others.keys().filter_map(|name| name.strip_prefix(&prefix)?.split('.').next()?.parse().ok()).collect();
        match (held.first(), held.last()) {
            (Some(&first), Some(&last)) if last < layers && last + 1 - first == count && held.len() == count => Ok(first..last + 1),
            _ => Err(format!("the checkpoint's `{kind}{GATE}` has {count} entries for {} layers: the device runs another version, reload it", held.len())),
        }
    }

    /// Shape of a tensor of a part, the gate's entries apart.
    fn pieces(&self, name: &str) -> Option<Vec<usize>> {
        if let Some((gate, layer)) = name.rsplit_once('.')
            && KINDS.iter().any(|kind| gate == format!("{kind}{GATE}"))
        {
            return layer.parse::<usize>().ok().filter(|layer| *layer < self.shapes[GATE][0]).map(|_| vec![1]);
        }
        self.shapes.get(name).filter(|_| !name.ends_with(GATE)).cloned()
    }

    /// The whole, if every parameter is there.
    fn unite(&self, pieces: &BTreeMap<String, RawTensor>) -> Option<BTreeMap<String, RawTensor>> {
        let mut whole = BTreeMap::new();
        for (name, shape) in &self.shapes {
            let tensor = if name.ends_with(GATE) {
                let mut bytes = Vec::with_capacity(4 * shape[0]);
                for layer in 0..shape[0] {
                    bytes.extend_from_slice(&pieces.get(&format!("{name}.{layer}"))?.bytes);
                }
                RawTensor { dtype: TensorDtype::F32, shape: shape.clone(), bytes }
            } else {
                pieces.get(name)?.clone()
            };
            whole.insert(name.clone(), tensor);
        }
        Some(whole)
    }
}

/// A checkpoint whose parts are all there, as a file's bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Complete {
    /// Which.
    pub key: CheckpointKey,
    /// For the coordinator.
    pub reference: CheckpointRef,
    /// safetensors.
    pub bytes: Vec<u8>,
}

/// The parts that have arrived. Only the newest checkpoint is collected: steps only go forward within a generation.
#[derive(Debug, Default)]
pub struct Collector {
    current: Option<(CheckpointKey, BTreeMap<String, RawTensor>)>,
}

impl Collector {
    /// Adds a part; gives the whole when it was the last one.
    pub fn add(&mut self, key: CheckpointKey, part: BTreeMap<String, RawTensor>, expected: &Expected) -> Option<Complete> {
        match &mut self.current {
            Some((current, pieces)) if *current == key => pieces.extend(part),
            Some((current, _)) if current.run == key.run && *current > key => return None,
            _ => self.current = Some((key, part)),
        }
        let whole = expected.unite(&self.current.as_ref()?.1)?;
        self.current = None;
        let optimiser_steps = key.epoch * expected.steps_per_epoch + key.step;
        let reference = CheckpointRef { epoch: key.epoch, step: key.step, optimiser_steps };
        let metadata = [("format", "pt".to_owned()), ("epoch", key.epoch.to_string()), ("step", key.step.to_string()), ("optimiser_steps", optimiser_steps.to_string())];
        let metadata = metadata.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let bytes = write_safetensors(whole.iter().map(|(name, tensor)| (name.as_str(), tensor)), &metadata);
        Some(Complete { key, reference, bytes })
    }
}

/// Where a run's newest complete checkpoint lies.
pub fn path(run_folder: &Path) -> PathBuf {
    run_folder.join("checkpoint.safetensors")
}

/// What the newest complete checkpoint of a run is, by its own header; `None` if there is none or it is damaged.
pub fn reference(run_folder: &Path) -> Option<CheckpointRef> {
    let bytes = std::fs::read(path(run_folder)).ok()?;
    let metadata = SafetensorsHeader::parse(&bytes).ok()?.metadata;
    let number = |name: &str| metadata.get(name)?.parse().ok();
    Some(CheckpointRef { epoch: number("epoch")?, step: number("step")?, optimiser_steps: number("optimiser_steps")? })
}

/// Brings what is kept of a run into step with the file: the server may have stopped between the two.
pub fn catch_up(snapshot: &mut RunSnapshot, run_folder: &Path) {
    let in_file = reference(run_folder);
    let kept = snapshot.checkpoint;
    let newer = in_file.is_some_and(|file| kept.is_none_or(|kept| file.optimiser_steps > kept.optimiser_steps));
    if newer || in_file.is_none() {
        if in_file.map(|file| file.epoch) != kept.map(|kept| kept.epoch) {
            snapshot.steps.clear();
            snapshot.epoch_seconds = 0.0;
        }
        snapshot.checkpoint = in_file;
    }
}

/// The adapter in a checkpoint file: values only, no moments.
pub fn adapter(checkpoint: &[u8]) -> Result<Vec<u8>, String> {
    let tensors = MemoryTensors::from_safetensors("the checkpoint", checkpoint).map_err(|error| error.to_string())?.tensors;
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let values = tensors.iter().filter(|(name, _)| name.starts_with("side.")).map(|(name, tensor)| (name.as_str(), tensor));
    Ok(write_safetensors(values, &metadata))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> (ModelConfig, Expected) {
        let json = serde_json::json!({
            "model_type": "llama", "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
            "head_dim": 8, "intermediate_size": 32, "vocab_size": 32
        });
        let config = ModelConfig::parse(&json.to_string()).unwrap();
        let spec: RunSpec = serde_json::from_value(serde_json::json!({
            "model": "m", "model_hash": "h", "dataset": "d", "dataset_hash": "h", "train_samples": 10, "held_out_samples": 2,
            "sample_sizes": [], "layers": 3, "reduction": 4, "batch": 4, "epochs": 3, "learning_rate": 1e-3, "warmup_steps": 1,
            "weight_decay": 0.01, "clip_norm": 1.0, "seed": 7, "checkpoint_steps": 5
        }))
        .unwrap();
        let expected = Expected::of(&config, &spec).unwrap();
        (config, expected)
    }

    /// What a stage of these layers uploads, its gate short.
    fn part(config: &ModelConfig, layers: std::ops::Range<usize>) -> Vec<u8> {
        let mut tensors = BTreeMap::new();
        for Parameter { name, shape } in side::adapter_parameters(config, 4, 1).unwrap() {
            let number = |prefix: &str| name.strip_prefix(prefix).and_then(|rest| rest.split('.').next()).and_then(|n| n.parse::<usize>().ok());
            let own = match (number("side.down."), number("side.layers.")) {
                (Some(0), _) => layers.start == 0,
                (Some(tap), _) => layers.contains(&(tap - 1)),
                (_, Some(layer)) => layers.contains(&layer),
                _ if name == GATE => true,
                _ => layers.end == config.layers,
            };
            if own {
                let shape = if name == GATE { vec![layers.len()] } else { shape };
                let value = |at: usize| if name == GATE { (layers.start + at) as f32 } else { 1.0 };
                let values: Vec<f32> = (0..shape.iter().product()).map(value).collect();
                for kind in KINDS {
                    tensors.insert(format!("{kind}{name}"), RawTensor::from_f32(&shape, &values));
                }
            }
        }
        write_safetensors(tensors.iter().map(|(n, t)| (n.as_str(), t)), &BTreeMap::new())
    }

    fn key(step: u32) -> CheckpointKey {
        CheckpointKey { run: RunId(1), generation: Generation(2), epoch: 1, step }
    }

    #[test]
    fn parts_of_stages_unite_when_the_last_arrives() {
        let (config, expected) = expected();
        let mut collector = Collector::default();
        let read = |layers| expected.read_part(&part(&config, layers)).unwrap();
        assert!(collector.add(key(1), read(0..2), &expected).is_none());
        let complete = collector.add(key(1), read(2..3), &expected).unwrap();
        assert_eq!(complete.reference, CheckpointRef { epoch: 1, step: 1, optimiser_steps: 4 });
        let tensors = MemoryTensors::from_safetensors("x", &complete.bytes).unwrap().tensors;
        assert_eq!(tensors[GATE].to_f32(), [0.0, 1.0, 2.0]);
        assert_eq!(tensors.len(), 3 * side::adapter_parameters(&config, 4, 1).unwrap().len());
        let adapter = MemoryTensors::from_safetensors("x", &adapter(&complete.bytes).unwrap()).unwrap().tensors;
        assert!(adapter.keys().all(|name| name.starts_with("side.")) && adapter.len() * 3 == tensors.len());
    }

    #[test]
    fn a_newer_checkpoint_replaces_an_unfinished_one_and_older_parts_are_dropped() {
        let (config, expected) = expected();
        let mut collector = Collector::default();
        let read = |layers| expected.read_part(&part(&config, layers)).unwrap();
        assert!(collector.add(key(1), read(0..2), &expected).is_none());
        assert!(collector.add(key(2), read(0..2), &expected).is_none());
        assert!(collector.add(key(1), read(2..3), &expected).is_none());
        assert_eq!(collector.add(key(2), read(2..3), &expected).unwrap().reference.step, 2);
    }

    #[test]
    fn foreign_tensors_are_refused() {
        let (_, expected) = expected();
        let refuse = |name: &str, shape: &[usize]| {
            let tensor = RawTensor::from_f32(shape, &vec![0.0; shape.iter().product()]);
            expected.read_part(&write_safetensors([(name, &tensor)], &BTreeMap::new())).unwrap_err()
        };
        assert!(refuse("model.norm.weight", &[4]).contains("model.norm.weight"));
        assert!(refuse("side.norm.weight", &[5]).contains("[5]"));
        assert!(refuse("side.gate", &[2]).contains("2 entries"));
        assert!(refuse("side.gate.7", &[1]).contains("side.gate.7"));
        // Layers are what another device writes them to be.
        let one = RawTensor::from_f32(&[1], &[0.0]);
        let far = format!("side.layers.{}.mlp.up_proj.weight", usize::MAX);
        assert!(expected.read_part(&write_safetensors([(GATE, &one), (far.as_str(), &one)], &BTreeMap::new())).unwrap_err().contains("1 entries for 1 layers"));
        assert!(expected.read_part(b"nonsense").is_err());
    }
}
