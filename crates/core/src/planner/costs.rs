//! Seconds and bytes of one device, one stage, one step: what the search compares.

use super::PlanOptions;
use barycenter_protocol::NodeId;
use barycenter_protocol::control::Measurements;
use barycenter_protocol::plan::{DeviceProfile, LayerCost, ModelCost};
use std::collections::BTreeMap;

/// Fixed cost of starting a piece of work on a device and passing it on: what the engines need for an empty job, of
/// the order of a millisecond (kernel launches, one hand-over between threads).
pub(super) const JOB_SECONDS: f64 = 0.001;

/// A link that was not measured: a slow home network.
const UNKNOWN_LINK: Link = Link { latency: 0.01, bytes_per_second: 5e6 };

#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// One way, seconds.
    pub latency: f64,
    pub bytes_per_second: f64,
}

/// Everything the search asks, with sums over layers prepared.
pub(super) struct Costs<'a> {
    pub model: &'a ModelCost,
    pub devices: &'a [DeviceProfile],
    pub options: &'a PlanOptions,
    pub batch: u32,
    prefix: Vec<LayerCost>,
    links: BTreeMap<(NodeId, NodeId), Link>,
}

impl<'a> Costs<'a> {
    pub fn new(model: &'a ModelCost, measurements: &'a Measurements, batch: u32, options: &'a PlanOptions) -> Self {
        let mut prefix = vec![LayerCost::default()];
        for layer in &model.layers {
            prefix.push(add(prefix[prefix.len() - 1], *layer));
        }
        let links = measurements.links.iter().flat_map(|l| {
            let link = Link { latency: l.round_trip_millis.max(0.0) / 2000.0, bytes_per_second: l.bytes_per_second.max(1.0) };
            [((l.a, l.b), link), ((l.b, l.a), link)]
        });
        Self { model, devices: &measurements.devices, options, batch: batch.max(1), prefix, links: links.collect() }
    }

    pub fn layers(&self) -> usize {
        self.model.layers.len()
    }

    pub fn link(&self, a: usize, b: usize) -> Link {
        self.links.get(&(self.devices[a].node, self.devices[b].node)).copied().unwrap_or(UNKNOWN_LINK)
    }

    fn speed(&self, device: usize) -> f64 {
        self.devices[device].gflops.max(1e-3) * 1e9
    }

    /// Forward and backward seconds of `samples` samples through layers `from .. to` on a device.
    pub fn fill_seconds(&self, device: usize, from: usize, to: usize, samples: f64) -> (f64, f64) {
        if samples == 0.0 {
            return (0.0, 0.0);
        }
        let part = sub(self.prefix[to], self.prefix[from]);
        let mut forward = (part.forward_flops + part.side_forward_flops) * self.options.mean_tokens;
        let mut backward = part.side_backward_flops * self.options.mean_tokens;
        if from == 0 {
            let e = &self.model.embedding;
            forward += (e.forward_flops + e.side_forward_flops) * self.options.mean_tokens;
            backward += e.side_backward_flops * self.options.mean_tokens;
        }
        if to == self.layers() {
            let h = &self.model.head;
            forward += (h.forward_flops + h.side_forward_flops) * self.options.mean_labels;
            backward += h.side_backward_flops * self.options.mean_labels;
        }
        (JOB_SECONDS + samples * forward / self.speed(device), JOB_SECONDS + samples * backward / self.speed(device))
    }

    /// Bytes that do not depend on the samples: frozen weights, adapter with gradient and two moments.
    pub fn fill_fixed_bytes(&self, from: usize, to: usize) -> u64 {
        let part = sub(self.prefix[to], self.prefix[from]);
        let mut bytes = part.weight_bytes + 16 * part.adapter_parameters;
        let (first, last) = (from == 0, to == self.layers());
        if first {
            bytes += self.model.embedding.weight_bytes + 16 * self.model.embedding.adapter_parameters;
        }
        if last {
            let shared = if first && self.model.tied_head { self.model.embedding.weight_bytes } else { 0 };
            bytes += self.model.head.weight_bytes.saturating_sub(shared) + 16 * self.model.head.adapter_parameters;
        }
        bytes
    }

    /// Bytes one sample keeps between forward and backward, by its longest length; and in and out of the stage.
    pub fn fill_sample_bytes(&self, from: usize, to: usize) -> u64 {
        let part = sub(self.prefix[to], self.prefix[from]);
        let mut per_token = part.activation_bytes + 8 * u64::from(self.model.width + self.model.side_width);
        if from == 0 {
            per_token += self.model.embedding.activation_bytes;
        }
        if to == self.layers() {
            per_token += self.model.head.activation_bytes;
        }
        per_token * u64::from(self.options.max_tokens.max(1))
    }

    /// Bytes of a device with `slots` of the mini-batch in a stage that keeps `in_flight` of `micro_batches` micro-batches.
    pub fn fill_bytes(&self, from: usize, to: usize, slots: u32, in_flight: u32, micro_batches: u32) -> u64 {
        let samples = slots.div_ceil(micro_batches.max(1)) * in_flight.min(micro_batches);
        self.fill_fixed_bytes(from, to) + u64::from(samples) * self.fill_sample_bytes(from, to)
    }

    /// Cache bytes that one slot of a stage with layers `from .. to` writes while filling: one row per tap, the embedding's too.
    pub fn cache_slot_bytes(&self, from: usize, to: usize) -> u64 {
        let taps = (to - from + usize::from(from == 0)) as u64;
        (self.options.cache_bytes.saturating_mul(taps) / (self.layers() as u64 + 1)).div_ceil(u64::from(self.batch)).max(1)
    }

    /// Slots of the mini-batch whose whole cache and activations a device takes in the train phase.
    pub fn train_slots(&self, device: usize) -> u32 {
        let device = &self.devices[device];
        let by_memory = device.memory_budget_bytes.checked_sub(self.train_fixed_bytes()).map_or(0, |free| free / self.train_sample_bytes().max(1));
        u32::try_from(by_memory.min(device.storage_budget_bytes / self.cache_slot_bytes(0, self.layers()))).unwrap_or(u32::MAX)
    }

    /// Adapter parameters of layers `from .. to` with what belongs to the ends.
    pub fn adapter_parameters(&self, from: usize, to: usize) -> u64 {
        let mut n = sub(self.prefix[to], self.prefix[from]).adapter_parameters;
        if from == 0 {
            n += self.model.embedding.adapter_parameters;
        }
        if to == self.layers() {
            n += self.model.head.adapter_parameters;
        }
        n
    }

    /// Seconds of one sample of a cached step.
    pub fn train_seconds(&self, device: usize, samples: f64) -> f64 {
        let all = self.prefix[self.layers()];
        let (e, h) = (&self.model.embedding, &self.model.head);
        let side = all.side_forward_flops + all.side_backward_flops + e.side_forward_flops + e.side_backward_flops;
        let head = h.forward_flops + h.side_forward_flops + h.side_backward_flops;
        3.0 * JOB_SECONDS + samples * (side * self.options.mean_tokens + head * self.options.mean_labels) / self.speed(device)
    }

    /// Bytes of a device in the train phase that do not depend on its share: the adapter, and the frozen head for the loss.
    pub fn train_fixed_bytes(&self) -> u64 {
        16 * self.adapter_parameters(0, self.layers()) + self.model.head.weight_bytes
    }

    /// Bytes of one sample in the train phase (its taps are counted in the activations).
    pub fn train_sample_bytes(&self) -> u64 {
        let per_token = self.prefix[self.layers()].activation_bytes + self.model.embedding.activation_bytes + self.model.head.activation_bytes;
        per_token * u64::from(self.options.max_tokens.max(1))
    }

    /// Seconds for a micro-batch of `samples` from one group to the next: the slowest pair, each receiver's share.
    pub fn forward_transfer(&self, from: &[(usize, u32)], to: &[(usize, u32)], samples: f64) -> f64 {
        self.transfer(from, to, samples, 4.0 * f64::from(self.model.width + self.model.side_width))
    }

    /// Seconds for its side gradients back.
    pub fn backward_transfer(&self, from: &[(usize, u32)], to: &[(usize, u32)], samples: f64) -> f64 {
        self.transfer(to, from, samples, 4.0 * f64::from(self.model.side_width))
    }

    fn transfer(&self, from: &[(usize, u32)], to: &[(usize, u32)], samples: f64, bytes_per_token: f64) -> f64 {
        let bytes = samples * self.options.mean_tokens * bytes_per_token;
        let share = |to_slots: u32| bytes * f64::from(to_slots) / f64::from(self.batch);
        to.iter()
            .flat_map(|&(d, slots)| from.iter().map(move |&(s, _)| (s, d, slots)))
            .map(|(s, d, slots)| {
                let link = self.link(s, d);
                link.latency + share(slots) / link.bytes_per_second
            })
            .fold(0.0, f64::max)
    }

    /// Seconds of an all-to-all sum and broadcast of `parameters` f32 values in a group.
    pub fn all_reduce(&self, group: &[usize], parameters: u64) -> f64 {
        let n = group.len() as f64;
        if group.len() < 2 {
            return 0.0;
        }
        let pairs = || group.iter().flat_map(|a| group.iter().filter(move |b| a != *b).map(move |b| self.link(*a, *b)));
        let slowest = pairs().map(|l| l.bytes_per_second).fold(f64::INFINITY, f64::min);
        let latency = pairs().map(|l| l.latency).fold(0.0, f64::max);
        2.0 * (latency + (n - 1.0) / n * 4.0 * parameters as f64 / slowest + JOB_SECONDS)
    }
}

/// Slots in proportion to speed, none above its cap; `None` if the caps do not suffice or somebody would get nothing.
/// `each`: everybody gets a slot first, even who is too slow to deserve one.
pub(super) fn shares(speeds: &[f64], caps: &[u32], batch: u32, each: bool) -> Option<Vec<u32>> {
    let mut slots: Vec<u32> = caps.iter().map(|cap| u32::from(each).min(*cap)).collect();
    for _ in slots.iter().sum::<u32>()..batch {
        // the next slot goes to whoever would finish it first
        let next = (0..speeds.len()).filter(|&i| slots[i] < caps[i]).min_by(|&a, &b| {
            let finish = |i: usize| f64::from(slots[i] + 1) / speeds[i].max(1e-9);
            finish(a).total_cmp(&finish(b))
        })?;
        slots[next] += 1;
    }
    (slots.iter().all(|s| *s > 0) && slots.iter().sum::<u32>() == batch).then_some(slots)
}

fn add(a: LayerCost, b: LayerCost) -> LayerCost {
    LayerCost {
        forward_flops: a.forward_flops + b.forward_flops,
        side_forward_flops: a.side_forward_flops + b.side_forward_flops,
        side_backward_flops: a.side_backward_flops + b.side_backward_flops,
        weight_bytes: a.weight_bytes + b.weight_bytes,
        adapter_parameters: a.adapter_parameters + b.adapter_parameters,
        activation_bytes: a.activation_bytes + b.activation_bytes,
    }
}

fn sub(a: LayerCost, b: LayerCost) -> LayerCost {
    LayerCost {
        forward_flops: a.forward_flops - b.forward_flops,
        side_forward_flops: a.side_forward_flops - b.side_forward_flops,
        side_backward_flops: a.side_backward_flops - b.side_backward_flops,
        weight_bytes: a.weight_bytes - b.weight_bytes,
        adapter_parameters: a.adapter_parameters - b.adapter_parameters,
        activation_bytes: a.activation_bytes - b.activation_bytes,
    }
}
