//! Weights on their way onto this device: for a job that needs them, or beside the jobs for a plan to come.

use super::{JobError, Progress};
use crate::meter::Meter;
use crate::weights::{PIECE_BYTES, WeightStore};
use barycenter_core::io::StagePart;
use barycenter_model::names::Parts;
use barycenter_model::{Manifest, ManifestTensor, ModelConfig};
use barycenter_protocol::control::RunSpec;
use barycenter_transport::Http;
use bytes::Bytes;
use std::cell::RefCell;
use std::rc::Rc;

/// A model and the weights of it that are on this device. The store has one writer at a time, and is not borrowed while bytes are awaited.
pub(crate) struct Model {
    pub manifest: Manifest,
    pub config: ModelConfig,
    pub weights: RefCell<WeightStore>,
}

/// The model last used, as worker and fetcher share it.
pub(super) type Shared = Rc<RefCell<Option<Rc<Model>>>>;

/// Fetches weights into the storage of the model in use. Clones share it.
#[derive(Clone)]
pub(crate) struct Fetcher {
    pub(super) http: Http,
    pub(super) meter: Rc<Meter>,
    pub(super) model: Shared,
}

impl Fetcher {
    /// The model in use.
    pub fn model(&self) -> Option<Rc<Model>> {
        self.model.borrow().clone()
    }

    /// What a later preparation will ask for. What cannot be had, it says; another model than the one in use is left to it too.
    pub async fn fetch_ahead(self, spec: Box<RunSpec>, part: Option<StagePart>, trains: bool) {
        let Some(model) = self.model().filter(|model| model.manifest.model_hash == spec.model_hash) else { return };
        let parts = wanted(&model.config, part.as_ref(), trains);
        if let Err(error) = self.fetch(&spec.model, &model, &parts, &|_, _| {}).await {
            log::warn!("weights for the next plan were not fetched: {error}");
        }
    }

    /// Fetches what this device lacks of the wanted parts, and checks it.
    pub async fn fetch(&self, name: &str, model: &Model, parts: &Parts, progress: Progress<'_>) -> Result<(), JobError> {
        let missing: Vec<String> = {
            let store = model.weights.borrow();
            model.manifest.entries(&model.config, parts)?.into_iter().map(|(name, _)| name).filter(|name| !store.holds(name)).collect()
        };
        // Neighbours come in one request; a tensor larger than a piece comes in several, so that memory stays bounded.
        let ranges = model.manifest.ranges(missing.iter().map(String::as_str), PIECE_BYTES)?;
        let total: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let mut done = 0;
        for range in ranges {
            let path = format!("/api/models/{name}/files/{}", range.file);
            let mut tensors: Vec<(&str, &ManifestTensor)> = range.tensors.iter().filter_map(|name| Some((name.as_str(), model.manifest.tensors.get(name)?))).collect();
            tensors.sort_by_key(|(_, tensor)| tensor.offset);
            let mut buffer = Bytes::new();
            let mut at = range.start;
            for (name, tensor) in tensors {
                let mut incoming = model.weights.borrow().begin(name, tensor.len_bytes);
                let mut left = tensor.len_bytes;
                while left > 0 {
                    if buffer.is_empty() {
                        let end = (at + PIECE_BYTES).min(range.end);
                        buffer = self.http.get_range(&path, at..end).await?;
                        done += end - at;
                        at = end;
                        self.meter.update(|c| c.weights_downloaded_bytes += buffer.len() as u64);
                        progress(format!("weights: {:.1} of {:.1} MB", done as f64 / 1e6, total as f64 / 1e6), done as f32 / total.max(1) as f32);
                    }
                    let piece = buffer.split_to(buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX)));
                    model.weights.borrow().push(&mut incoming, &piece)?;
                    left -= piece.len() as u64;
                }
                if !model.weights.borrow_mut().commit(incoming, &tensor.hash)? {
                    return Err(JobError::Other(format!("the weights of {name} arrived damaged: join again")));
                }
            }
            model.weights.borrow().flush()?;
        }
        Ok(())
    }
}

/// Parts of a model that a node needs: the frozen layers of its stage, and the head if it trains from the cache.
pub(super) fn wanted(config: &ModelConfig, part: Option<&StagePart>, trains: bool) -> Parts {
    match part {
        Some(part) => {
            let mut parts = Parts::stage(config, part.layers.start as usize..part.layers.end as usize);
            parts.head |= trains;
            parts
        }
        None => Parts::head_only(),
    }
}
