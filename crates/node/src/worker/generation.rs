//! What a node holds of the generation at work, and the rows of its samples as they travel.

use super::JobError;
use crate::blobs::{float_bytes, floats};
use crate::meter::MemoryPhase;
use barycenter_engine::packed::{MicroBatch, Sequence};
use barycenter_engine::stage::StageRuntime;
use barycenter_protocol::SampleId;
use barycenter_protocol::control::{Assignment, GradientType};
use barycenter_protocol::peer::MicroKey;
use bytes::Bytes;
use std::collections::HashMap;
use std::ops::Range;

/// What a generation needs.
pub(super) struct Generation {
    pub assignment: Box<Assignment>,
    pub samples: Vec<Sequence>,
    pub runtime: StageRuntime,
    /// Taps this node's stage produces.
    pub taps: Range<u32>,
    /// Micro-batches between forward and backward.
    pub keys: HashMap<MicroKey, u64>,
    pub next_key: u64,
    pub phase: MemoryPhase,
    /// Whether it takes part in the train phase.
    pub trains: bool,
}

impl Generation {
    pub fn gradients(&self) -> GradientType {
        self.assignment.spec.gradients
    }

    pub fn width(&self) -> usize {
        self.runtime.width()
    }

    fn sample(&self, id: SampleId) -> Result<&Sequence, JobError> {
        self.samples.get(id.0 as usize).ok_or_else(|| JobError::Other(format!("sample {id} is not in the data set")))
    }

    pub fn pack(&self, samples: &[SampleId]) -> Result<MicroBatch, JobError> {
        let sequences = samples.iter().map(|&id| self.sample(id)).collect::<Result<Vec<_>, _>>()?;
        Ok(MicroBatch::pack(sequences))
    }

    /// Rows of `samples` in their order, out of parts that each hold some of them. A part is blocks of rows one after
    /// the other; the wanted block is `width` wide and lies behind one of `width_before` (0: it is the first).
    pub fn gather(&self, samples: &[SampleId], parts: &[(Vec<SampleId>, Bytes)], width: usize, width_before: usize) -> Result<Vec<f32>, JobError> {
        let mut found: HashMap<SampleId, Vec<f32>> = HashMap::new();
        for (ids, bytes) in parts {
            let values = floats(bytes).ok_or_else(|| JobError::Other("a tensor message has a length that is not a multiple of 4".into()))?;
            let mut tokens = 0;
            for &id in ids {
                tokens += self.sample(id)?.ids.len();
            }
            let mut at = tokens * width_before;
            for &id in ids {
                let len = self.sample(id)?.ids.len() * width;
                let rows = values.get(at..at + len).ok_or_else(|| JobError::Other("a tensor message is shorter than its rows: all devices must run the same version".into()))?;
                found.insert(id, rows.to_vec());
                at += len;
            }
        }
        let mut all = Vec::new();
        for id in samples {
            all.extend(found.remove(id).ok_or_else(|| JobError::Other(format!("the rows of sample {id} did not come")))?);
        }
        Ok(all)
    }

    /// The inverse: blocks (values, width) over `samples`, cut to the rows of `wanted`, one block after the other.
    pub fn split(&self, samples: &[SampleId], wanted: &[SampleId], blocks: &[(&[f32], usize)]) -> Result<Bytes, JobError> {
        let mut starts = HashMap::new();
        let mut tokens = 0;
        for &id in samples {
            let len = self.sample(id)?.ids.len();
            starts.insert(id, (tokens, len));
            tokens += len;
        }
        let mut out = Vec::new();
        for (values, width) in blocks.iter().filter(|(values, _)| !values.is_empty()) {
            for id in wanted {
                let &(start, len) = starts.get(id).ok_or_else(|| JobError::Other(format!("sample {id} is not in the micro-batch")))?;
                out.extend_from_slice(&values[start * width..(start + len) * width]);
            }
        }
        Ok(float_bytes(&out))
    }
}
