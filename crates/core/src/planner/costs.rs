//! Seconds and bytes of one device, one stage, one step: what the search compares.

use super::PlanOptions;
use super::shares::shares;
use barycenter_protocol::control::{GradientType, Measurements};
use barycenter_protocol::plan::{DeviceProfile, FillMode, LayerCost, ModelCost};

/// Fixed cost of starting a piece of work on a device and passing it on: what the engines need for an empty job, of
/// the order of a millisecond (kernel launches, one hand-over between threads).
pub(super) const JOB_SECONDS: f64 = 0.001;

/// Micro-batches a forward-only sender may be ahead of the next stage, as the nodes do it.
pub(super) const FORWARD_ONLY_AHEAD: u32 = 4;

/// A link that was not measured: a slow home network.
const UNKNOWN_LINK: Link = Link { latency: 0.01, bytes_per_second: 5e6 };

#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    /// One way, seconds.
    pub latency: f64,
    pub bytes_per_second: f64,
}

/// A stage of a candidate: layers and (device, slots) in rank order, that is by device.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StageChoice {
    pub from: usize,
    pub to: usize,
    pub members: Vec<(usize, u32)>,
}

/// Seconds of one micro-batch in a stage.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StageSeconds {
    pub forward: f64,
    pub backward: f64,
}

/// A micro-batch from one stage to the next, and its side gradients back.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Transfer {
    /// One way, seconds: any number of messages may be on their way.
    pub latency: f64,
    /// Seconds that the link is taken.
    pub forward: f64,
    pub backward: f64,
}

/// Everything the search asks, with sums over layers prepared.
#[derive(Clone)]
pub(super) struct Costs<'a> {
    pub model: &'a ModelCost,
    pub devices: &'a [DeviceProfile],
    pub options: &'a PlanOptions,
    pub batch: u32,
    /// How gradients travel.
    pub gradients: GradientType,
    /// Whether entries may be kept by other devices than those that compute and train with them (`storage.rs`).
    pub stores: bool,
    prefix: Vec<LayerCost>,
    /// From a to b at `a * devices + b`.
    links: Vec<Link>,
}

impl<'a> Costs<'a> {
    /// `measurements.devices` are sorted by node.
    pub fn new(model: &'a ModelCost, measurements: &'a Measurements, batch: u32, options: &'a PlanOptions) -> Self {
        let mut prefix = vec![LayerCost::default()];
        for layer in &model.layers {
            prefix.push(add(prefix[prefix.len() - 1], *layer));
        }
        let devices = &measurements.devices;
        let index = |node| devices.binary_search_by_key(&node, |d| d.node).ok();
        let mut links = vec![UNKNOWN_LINK; devices.len() * devices.len()];
        for l in &measurements.links {
            let (Some(a), Some(b)) = (index(l.a), index(l.b)) else { continue };
            let link = Link { latency: l.round_trip_millis.max(0.0) / 2000.0, bytes_per_second: l.bytes_per_second.max(1.0) };
            links[a * devices.len() + b] = link;
            links[b * devices.len() + a] = link;
        }
        Self { model, devices, options, batch: batch.max(1), gradients: options.gradients.unwrap_or_default(), stores: false, prefix, links }
    }

    /// The same with gradients that travel in another way.
    pub fn with_gradients(&self, gradients: GradientType) -> Self {
        Self { gradients, ..self.clone() }
    }

    /// The same where devices may keep entries for others.
    pub fn with_stores(&self) -> Self {
        Self { stores: true, ..self.clone() }
    }

    /// The same with other budgets of the same devices.
    pub fn with_devices<'b>(&'b self, devices: &'b [DeviceProfile]) -> Costs<'b> {
        Costs { devices, ..self.clone() }
    }

    pub fn layers(&self) -> usize {
        self.model.layers.len()
    }

    pub fn link(&self, a: usize, b: usize) -> Link {
        self.links[a * self.devices.len() + b]
    }

    /// FLOP per second.
    pub fn speed(&self, device: usize) -> f64 {
        self.devices[device].gflops.max(1e-3) * 1e9
    }

    /// Forward and backward FLOP of one sample through layers `from .. to`. A forward-only pass leaves out the side
    /// network and the head.
    pub fn sample_flops(&self, mode: FillMode, from: usize, to: usize) -> (f64, f64) {
        let part = sub(self.prefix[to], self.prefix[from]);
        let (e, h) = (&self.model.embedding, &self.model.head);
        let (first, last) = (from == 0, to == self.layers());
        let (tokens, labels) = (self.options.mean_tokens, self.options.mean_labels);
        let frozen = part.forward_flops + if first { e.forward_flops } else { 0.0 };
        if mode == FillMode::ForwardOnly {
            return (frozen * tokens, 0.0);
        }
        let side = part.side_forward_flops + if first { e.side_forward_flops } else { 0.0 };
        let back = part.side_backward_flops + if first { e.side_backward_flops } else { 0.0 };
        let head = if last { (h.forward_flops + h.side_forward_flops, h.side_backward_flops) } else { (0.0, 0.0) };
        ((frozen + side) * tokens + head.0 * labels, back * tokens + head.1 * labels)
    }

    /// Seconds of FLOP (forward, backward) at so many seconds per FLOP.
    pub fn seconds_of(&self, mode: FillMode, flops: (f64, f64), seconds_per_flop: f64) -> StageSeconds {
        let backward = if mode == FillMode::ForwardOnly { 0.0 } else { JOB_SECONDS + flops.1 * seconds_per_flop };
        StageSeconds { forward: JOB_SECONDS + flops.0 * seconds_per_flop, backward }
    }

    /// Slowest member's seconds for one micro-batch.
    pub fn stage_seconds(&self, mode: FillMode, stage: &StageChoice, micro_batches: u32) -> StageSeconds {
        let slowest = stage.members.iter().map(|&(d, slots)| f64::from(slots) / self.speed(d)).fold(0.0, f64::max);
        self.seconds_of(mode, self.sample_flops(mode, stage.from, stage.to), slowest / f64::from(micro_batches))
    }

    /// Bytes that do not depend on the samples: frozen weights, and where the stage trains its adapter with gradient and
    /// two moments (a forward-only fill is a generation of its own, without adapters).
    pub fn fill_fixed_bytes(&self, mode: FillMode, from: usize, to: usize) -> u64 {
        let part = sub(self.prefix[to], self.prefix[from]);
        let (first, last) = (from == 0, to == self.layers());
        let embedding = if first { self.model.embedding.weight_bytes } else { 0 };
        let shared = if first { self.model.shared_bytes } else { 0 };
        let head = if last { self.model.head.weight_bytes.saturating_sub(shared) } else { 0 };
        let adapter = if mode == FillMode::ForwardOnly { 0 } else { self.adapter_parameters(from, to) };
        part.weight_bytes + embedding + head + 16 * adapter
    }

    /// Bytes one sample keeps between forward and backward, by its longest length; and in and out of the stage. Nothing
    /// but the latter is kept for a sample of a forward-only pass.
    pub fn fill_sample_bytes(&self, mode: FillMode, from: usize, to: usize) -> u64 {
        let streams = 8 * u64::from(self.model.width + self.model.side_width);
        let part = sub(self.prefix[to], self.prefix[from]);
        let mut per_token = streams;
        if mode == FillMode::Hybrid {
            per_token += part.activation_bytes;
            if from == 0 {
                per_token += self.model.embedding.activation_bytes;
            }
            if to == self.layers() {
                per_token += self.model.head.activation_bytes;
            }
        }
        per_token * u64::from(self.options.max_tokens.max(1)) + if self.stores { self.entries_bytes(from, to) } else { 0 }
    }

    /// Bytes that the cache entries of one sample from layers `from .. to` take at most, by its longest length: half precision,
    /// and a value for every position.
    pub fn entries_bytes(&self, from: usize, to: usize) -> u64 {
        (2 * u64::from(self.model.width) * u64::from(self.taps(from, to)) + 4) * u64::from(self.options.max_tokens.max(1))
    }

    /// Micro-batches kept at once by a stage with `behind` stages from it to the end, itself included.
    pub fn in_flight(&self, mode: FillMode, behind: usize, micro_batches: u32) -> u32 {
        let most = if mode == FillMode::ForwardOnly { FORWARD_ONLY_AHEAD + 1 } else { behind as u32 };
        most.min(micro_batches).max(1)
    }

    /// Bytes of a device with `slots` of the mini-batch in a stage that keeps `in_flight` of `micro_batches` micro-batches.
    pub fn fill_bytes(&self, mode: FillMode, (from, to): (usize, usize), slots: u32, in_flight: u32, micro_batches: u32) -> u64 {
        let samples = slots.div_ceil(micro_batches.max(1)) * in_flight;
        self.fill_fixed_bytes(mode, from, to).saturating_add(u64::from(samples) * self.fill_sample_bytes(mode, from, to))
    }

    /// Splits the mini-batch among devices (ascending) that hold layers `from .. to`: in proportion to speed, as far as
    /// memory and storage allow. `None`: it cannot be, or somebody would get nothing.
    pub fn group(&self, mode: FillMode, devices: &[usize], from: usize, to: usize, in_flight: u32, micro_batches: u32) -> Option<Vec<(usize, u32)>> {
        let fixed = self.fill_fixed_bytes(mode, from, to);
        let per_sample = self.fill_sample_bytes(mode, from, to).max(1) * u64::from(in_flight);
        let per_slot = self.cache_slot_bytes(from, to);
        let mut caps = Vec::with_capacity(devices.len());
        for &d in devices {
            let device = &self.devices[d];
            let free = device.memory_budget_bytes.checked_sub(fixed)?;
            let by_memory = u32::try_from(free / per_sample).unwrap_or(u32::MAX).saturating_mul(micro_batches);
            let by_storage = u32::try_from(device.storage_budget_bytes / per_slot).unwrap_or(u32::MAX);
            let cap = if self.stores { by_memory } else { by_memory.min(by_storage) };
            if cap == 0 {
                return None;
            }
            caps.push(cap);
        }
        let speeds: Vec<_> = devices.iter().map(|d| self.speed(*d)).collect();
        Some(devices.iter().copied().zip(shares(&speeds, &caps, self.batch, self.options.use_all_nodes)?).collect())
    }

    /// Cache bytes that one slot of a stage with layers `from .. to` writes while filling: one row per tap, the embedding's too.
    pub fn cache_slot_bytes(&self, from: usize, to: usize) -> u64 {
        let all = u64::from(self.taps(0, self.layers())).max(1);
        (self.options.cache_bytes.saturating_mul(u64::from(self.taps(from, to))) / all).div_ceil(u64::from(self.batch)).max(1)
    }

    /// Taps that layers `from .. to` give, the embedding's too.
    pub fn taps(&self, from: usize, to: usize) -> u32 {
        self.prefix[to].taps - self.prefix[from].taps + if from == 0 { self.model.embedding.taps } else { 0 }
    }

    /// Slots of the mini-batch whose activations a device has memory for in the train phase.
    pub fn train_slots_by_memory(&self, device: usize) -> u32 {
        let free = self.devices[device].memory_budget_bytes.checked_sub(self.train_fixed_bytes());
        let streamed = if self.stores { self.stream_slot_bytes() } else { 0 };
        u32::try_from(free.map_or(0, |free| free / (self.train_sample_bytes() + streamed).max(1))).unwrap_or(u32::MAX)
    }

    /// Slots of the mini-batch whose whole cache and activations a device takes in the train phase; whose activations and
    /// streamed entries, where others may keep them.
    pub fn train_slots(&self, device: usize) -> u32 {
        if self.stores { self.train_slots_by_memory(device) } else { self.train_slots_by_memory(device).min(self.storage_slots(device)) }
    }

    /// Slots of the mini-batch whose whole cache a device has storage for. Where it is used to the last slot, an eighth is left
    /// free: the samples of some slots are longer than those of others.
    pub fn storage_slots(&self, device: usize) -> u32 {
        let storage = self.devices[device].storage_budget_bytes;
        let storage = if self.stores { storage - storage / 8 } else { storage };
        u32::try_from(storage / self.cache_slot_bytes(0, self.layers())).unwrap_or(u32::MAX)
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

    /// FLOP of one sample of a cached step.
    pub fn train_sample_flops(&self) -> f64 {
        let all = self.prefix[self.layers()];
        let (e, h) = (&self.model.embedding, &self.model.head);
        let side = all.side_forward_flops + all.side_backward_flops + e.side_forward_flops + e.side_backward_flops;
        let head = h.forward_flops + h.side_forward_flops + h.side_backward_flops;
        side * self.options.mean_tokens + head * self.options.mean_labels
    }

    /// Seconds of `samples` samples of a cached step.
    pub fn train_seconds(&self, device: usize, samples: f64) -> f64 {
        3.0 * JOB_SECONDS + samples * self.train_sample_flops() / self.speed(device)
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

    /// Bytes of one slot's streamed entries, at who sends them as at who trains with them: the step's at work and the next one's.
    pub fn stream_slot_bytes(&self) -> u64 {
        2 * self.entries_bytes(0, self.layers())
    }

    /// Bytes of one token from a stage to the next.
    pub fn forward_token_bytes(&self, mode: FillMode) -> f64 {
        let side = if mode == FillMode::Hybrid { self.model.side_width } else { 0 };
        4.0 * f64::from(self.model.width + side)
    }

    /// Bytes of one token's side gradient back.
    pub fn backward_token_bytes(&self) -> f64 {
        4.0 * f64::from(self.model.side_width)
    }

    /// Seconds for a micro-batch from one group to the next, and for its side gradients back. Every member sends and
    /// receives one after another, rows go straight to who computes them next.
    pub fn transfers(&self, mode: FillMode, from: &[(usize, u32)], to: &[(usize, u32)], micro_batches: u32) -> Transfer {
        let tokens = self.options.mean_tokens / f64::from(micro_batches);
        let (mut latency, mut slowest) = (0.0f64, 0.0f64);
        let mut receiving = vec![0.0f64; to.len()];
        let mut start = 0;
        for &(s, slots) in from {
            let range = start..start + slots;
            start += slots;
            let (mut sending, mut first) = (0.0, 0);
            for (r, &(d, slots)) in to.iter().enumerate() {
                let overlap = range.end.min(first + slots).saturating_sub(range.start.max(first));
                first += slots;
                if overlap > 0 {
                    let link = self.link(s, d);
                    let seconds = f64::from(overlap) / link.bytes_per_second;
                    sending += seconds;
                    receiving[r] += seconds;
                    latency = latency.max(link.latency);
                }
            }
            slowest = slowest.max(sending);
        }
        let per_byte = receiving.into_iter().fold(slowest, f64::max) * tokens;
        self.transfer(mode, latency, per_byte)
    }

    /// The same between two devices that compute the whole mini-batch.
    pub fn pair_transfer(&self, mode: FillMode, a: usize, b: usize, micro_batches: u32) -> Transfer {
        let link = self.link(a, b);
        self.transfer(mode, link.latency, self.options.mean_tokens * f64::from(self.batch) / f64::from(micro_batches) / link.bytes_per_second)
    }

    fn transfer(&self, mode: FillMode, latency: f64, seconds_per_token_byte: f64) -> Transfer {
        let backward = if mode == FillMode::Hybrid { self.backward_token_bytes() } else { 0.0 };
        Transfer { latency, forward: seconds_per_token_byte * self.forward_token_bytes(mode), backward: seconds_per_token_byte * backward }
    }

    /// Seconds of the sum of `parameters` gradients over a group, as the nodes do it: each of n members sends every other
    /// one its n-th part, sums its own, and sends the sum to all.
    pub fn all_reduce(&self, group: impl Iterator<Item = usize> + Clone, parameters: u64) -> f64 {
        let n = group.clone().count();
        if n < 2 {
            return 0.0;
        }
        let (mut latency, mut busiest) = (0.0f64, 0.0f64);
        for a in group.clone() {
            let mut per_byte = 0.0;
            for b in group.clone().filter(|b| *b != a) {
                let link = self.link(a, b);
                latency = latency.max(link.latency);
                per_byte += 1.0 / link.bytes_per_second;
            }
            busiest = busiest.max(per_byte);
        }
        2.0 * (latency + busiest * self.gradients.wire_bytes(parameters) as f64 / n as f64 + JOB_SECONDS)
    }

    /// AllReduce of a stage's adapter part.
    pub fn stage_reduce(&self, stage: &StageChoice) -> f64 {
        self.all_reduce(stage.members.iter().map(|m| m.0), self.adapter_parameters(stage.from, stage.to))
    }
}

fn add(a: LayerCost, b: LayerCost) -> LayerCost {
    LayerCost {
        forward_flops: a.forward_flops + b.forward_flops,
        side_forward_flops: a.side_forward_flops + b.side_forward_flops,
        side_backward_flops: a.side_backward_flops + b.side_backward_flops,
        weight_bytes: a.weight_bytes + b.weight_bytes,
        adapter_parameters: a.adapter_parameters + b.adapter_parameters,
        activation_bytes: a.activation_bytes + b.activation_bytes,
        taps: a.taps + b.taps,
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
        taps: a.taps - b.taps,
    }
}
