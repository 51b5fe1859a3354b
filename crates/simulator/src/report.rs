//! What a simulated run came to: times, utilisation, bytes, energy; as numbers and as text.

use crate::meter::{JobKind, State};
use crate::world::World;
use barycenter_core::coordinator::RunProgress;
use barycenter_core::io::{Micros, SECOND};
use barycenter_protocol::control::PhaseKind;
use barycenter_protocol::plan::Plan;
use serde::Serialize;

/// A run, from the first device that joined to the end.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// How the run ended: `done`, or the state it was in when the time was up.
    pub state: String,
    /// Virtual time of the end.
    pub seconds: f64,
    /// Epochs that were closed.
    pub epochs: Vec<EpochReport>,
    /// Devices, in the order of the household.
    pub devices: Vec<DeviceReport>,
    /// Bytes over every link that carried any.
    pub links: Vec<LinkReport>,
    /// Weights and checkpoints that the server sent, bytes.
    pub server_sent_bytes: u64,
    /// Checkpoints that it received, bytes.
    pub server_received_bytes: u64,
    /// Energy of all devices, watt hours.
    pub watt_hours: f64,
    /// What happened when.
    pub timeline: Vec<TimelineEntry>,
}

/// An epoch.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EpochReport {
    /// Which.
    pub epoch: u32,
    /// `fill` or `train`.
    pub phase: String,
    /// Wall clock from its first step to its last, as the coordinator measures it.
    pub seconds: f64,
    /// What a device that took part spent it on, mean.
    pub spent: Spent,
}

/// Seconds of an epoch at one device, mean over those that took part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spent {
    /// Forward, backward, steps from the cache.
    pub compute: f64,
    /// What the busiest device computed beyond the mean: waiting that equal shares would save.
    pub imbalance: f64,
    /// Waiting for activations and side gradients: the bubble and the transfers.
    pub pipeline: f64,
    /// Reading, exchanging, summing and applying gradients, beyond the imbalance.
    pub all_reduce: f64,
    /// Anything else: checkpoints, preparations in between.
    pub other: f64,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeviceReport {
    /// Its name.
    pub name: String,
    /// Jobs ran, seconds.
    pub compute_seconds: f64,
    /// It got ready for a plan, downloads included.
    pub prepare_seconds: f64,
    /// It only sent.
    pub send_seconds: f64,
    /// It waited for others within a phase.
    pub wait_seconds: f64,
    /// It was there without a part.
    pub rest_seconds: f64,
    /// It was not there.
    pub away_seconds: f64,
    /// Bytes it sent to other devices.
    pub sent_bytes: u64,
    /// Energy, watt hours: power while computing or getting ready, idle power otherwise.
    pub watt_hours: f64,
}

/// One direction of a link.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct LinkReport {
    /// Sender.
    pub from: String,
    /// Receiver.
    pub to: String,
    /// Bytes by kind.
    pub activations_bytes: u64,
    /// See [`barycenter_protocol::control::LinkCounters`].
    pub side_gradients_bytes: u64,
    /// See there.
    pub adapter_gradients_bytes: u64,
    /// See there.
    pub cache_bytes: u64,
    /// See there.
    pub other_bytes: u64,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TimelineEntry {
    /// When.
    pub seconds: f64,
    /// What.
    pub text: String,
}

/// Reports what a world has seen so far.
pub fn report(world: &World) -> Report {
    let devices: Vec<_> = (0..world.devices()).map(|d| device_report(world, d)).collect();
    Report {
        state: world.state().map_or("not started".into(), |s| format!("{s:?}").to_lowercase()),
        seconds: seconds(world.now),
        epochs: epochs(world),
        watt_hours: devices.iter().map(|d| d.watt_hours).sum(),
        devices,
        links: links(world),
        server_sent_bytes: world.meter.server_bytes.0,
        server_received_bytes: world.meter.server_bytes.1,
        timeline: timeline(world),
    }
}

fn seconds(micros: Micros) -> f64 {
    micros as f64 / SECOND as f64
}

fn device_report(world: &World, device: usize) -> DeviceReport {
    let spec = world.spec(device);
    let mut of = [0.0; 6];
    for span in world.meter.timeline(device, world.now) {
        of[span.state as usize] += seconds(span.to - span.from);
    }
    let of = |state: State| of[state as usize];
    let busy = of(State::Compute) + of(State::Prepare);
    let idle = of(State::Send) + of(State::Wait) + of(State::Rest);
    DeviceReport {
        name: spec.name.clone(),
        compute_seconds: of(State::Compute),
        prepare_seconds: of(State::Prepare),
        send_seconds: of(State::Send),
        wait_seconds: of(State::Wait),
        rest_seconds: of(State::Rest),
        away_seconds: of(State::Away),
        sent_bytes: world.meter.bytes().iter().filter(|((from, ..), _)| *from == device).map(|(_, b)| b).sum(),
        watt_hours: (busy * spec.watts + idle * spec.idle_watts) / 3600.0,
    }
}

fn epochs(world: &World) -> Vec<EpochReport> {
    let closed = world.progress.iter().filter_map(|(at, p)| if let RunProgress::Epoch(view) = p { Some((*at, view)) } else { None });
    let mut epochs: Vec<_> = closed
        .map(|(at, view)| {
            let began = at.saturating_sub((view.seconds * SECOND as f64) as Micros);
            EpochReport { epoch: view.epoch, phase: phase_name(view.phase).into(), seconds: view.seconds, spent: spent(world, began, at) }
        })
        .collect();
    // an epoch that was closed again after a restart overwrites
    epochs.reverse();
    epochs.sort_by_key(|e| e.epoch);
    epochs.dedup_by_key(|e| e.epoch);
    epochs
}

/// What devices that took part spent the time between two moments on. Waiting is put down to the job before it.
pub(crate) fn spent(world: &World, from: Micros, to: Micros) -> Spent {
    let (mut total, mut most, mut count) = (Spent::default(), 0.0f64, 0.0);
    for device in 0..world.devices() {
        let jobs: Vec<_> = world.meter.jobs(device).iter().filter(|j| j.to > from && j.from < to).collect();
        if !jobs.iter().any(|j| matches!(j.kind, JobKind::Train | JobKind::Reduce)) {
            continue;
        }
        count += 1.0;
        let (mut compute, mut before, mut last) = (0.0, from, JobKind::Train);
        for job in &jobs {
            let gap = seconds(job.from.max(from).saturating_sub(before));
            let took = seconds(job.to.min(to) - job.from.max(from));
            match last {
                JobKind::Train => total.pipeline += gap,
                JobKind::Reduce => total.all_reduce += gap,
                _ => total.other += gap,
            }
            match job.kind {
                JobKind::Train => compute += took,
                JobKind::Reduce => total.all_reduce += took,
                _ => total.other += took,
            }
            (before, last) = (job.to.min(to), job.kind);
        }
        total.other += seconds(to.saturating_sub(before));
        total.compute += compute;
        most = most.max(compute);
    }
    if count == 0.0 {
        return total;
    }
    let mean = |sum: f64| sum / count;
    let imbalance = (most - mean(total.compute)).min(mean(total.all_reduce));
    Spent { compute: mean(total.compute), imbalance, pipeline: mean(total.pipeline), all_reduce: mean(total.all_reduce) - imbalance, other: mean(total.other) }
}

fn links(world: &World) -> Vec<LinkReport> {
    let mut links: Vec<LinkReport> = Vec::new();
    let mut ends = None;
    for (&(from, to, kind), &bytes) in world.meter.bytes() {
        if ends != Some((from, to)) {
            ends = Some((from, to));
            links.push(LinkReport { from: world.spec(from).name.clone(), to: world.spec(to).name.clone(), ..LinkReport::default() });
        }
        let link = links.last_mut().expect("just pushed");
        match kind {
            "activations" => link.activations_bytes += bytes,
            "side gradients" => link.side_gradients_bytes += bytes,
            "adapter gradients" => link.adapter_gradients_bytes += bytes,
            "cache" => link.cache_bytes += bytes,
            _ => link.other_bytes += bytes,
        }
    }
    links
}

fn timeline(world: &World) -> Vec<TimelineEntry> {
    let mut entries: Vec<(Micros, String)> = world.events.iter().map(|(at, _, text)| (*at, text.clone())).collect();
    for (at, progress) in &world.progress {
        match progress {
            RunProgress::Planned { generation, plan } => entries.push((*at, format!("Plan {generation}: {}", describe(world, plan)))),
            RunProgress::Phase { phase, epoch, .. } => entries.push((*at, format!("Epoch {epoch}: {} begins.", phase_name(*phase)))),
            RunProgress::Epoch(view) => entries.push((*at, format!("Epoch {} is done: {:.2} s.", view.epoch, view.seconds))),
            RunProgress::State { state, note } if !note.is_empty() => entries.push((*at, format!("{state:?}: {note}."))),
            _ => {}
        }
    }
    entries.sort_by_key(|e| e.0);
    entries.into_iter().map(|(at, text)| TimelineEntry { seconds: seconds(at), text }).collect()
}

fn describe(world: &World, plan: &Plan) -> String {
    let name = |node| world.device_of(node).map_or_else(|| format!("device {node}"), |d| world.spec(d).name.clone());
    let names = |members: &[barycenter_protocol::plan::StageMember]| members.iter().map(|m| name(m.node)).collect::<Vec<_>>().join(" + ");
    let stages: Vec<_> = plan.stages.iter().map(|s| format!("layers {}–{} on {}", s.layers.start + 1, s.layers.end, names(&s.members))).collect();
    let shares: Vec<_> = plan.train.iter().map(|m| format!("{} {}", name(m.node), m.slots.end - m.slots.start)).collect();
    format!(
        "{} in {} micro-batches ({:.3} s a step); from the cache: {} samples ({:.3} s a step).",
        stages.join(", "),
        plan.micro_batches,
        plan.fill_step_seconds,
        shares.join(", "),
        plan.train_step_seconds
    )
}

fn phase_name(phase: PhaseKind) -> &'static str {
    match phase {
        PhaseKind::Fill => "fill",
        PhaseKind::Refill => "refill",
        PhaseKind::Redistribute => "redistribution",
        PhaseKind::Train => "train",
    }
}

impl Report {
    /// The report for a terminal.
    pub fn text(&self) -> String {
        let mut out = String::from("Timeline\n");
        for entry in &self.timeline {
            out += &format!("{:>9.2} s  {}\n", entry.seconds, entry.text);
        }
        out += "\nEpoch  phase   seconds  compute  imbalance  pipeline  AllReduce  other  (seconds at a device, mean)\n";
        for e in &self.epochs {
            let s = &e.spent;
            out += &format!("{:>5}  {:<6} {:>8.2} {:>8.2} {:>10.2} {:>9.2} {:>10.2} {:>6.2}\n", e.epoch, e.phase, e.seconds, s.compute, s.imbalance, s.pipeline, s.all_reduce, s.other);
        }
        let width = self.devices.iter().map(|d| d.name.chars().count()).max().unwrap_or(6).max(6);
        out += &format!("\n{:<width$}  compute  prepare    send    wait    rest    away  (per cent of the time)  sent MB      Wh\n", "Device");
        for d in &self.devices {
            let all = (d.compute_seconds + d.prepare_seconds + d.send_seconds + d.wait_seconds + d.rest_seconds + d.away_seconds).max(1e-9);
            let percent = |s: f64| 100.0 * s / all;
            out += &format!(
                "{:<width$} {:>8.1} {:>8.1} {:>7.1} {:>7.1} {:>7.1} {:>7.1} {:>32.2} {:>7.2}\n",
                d.name,
                percent(d.compute_seconds),
                percent(d.prepare_seconds),
                percent(d.send_seconds),
                percent(d.wait_seconds),
                percent(d.rest_seconds),
                percent(d.away_seconds),
                d.sent_bytes as f64 / 1e6,
                d.watt_hours
            );
        }
        out += &self.links_text();
        out += &format!("\nThe server sent {:.2} MB (weights, checkpoints) and received {:.2} MB.\n", self.server_sent_bytes as f64 / 1e6, self.server_received_bytes as f64 / 1e6);
        out += &format!("The run is {} after {:.1} s; {:.2} Wh in all (watts × seconds, an estimate).\n", self.state, self.seconds, self.watt_hours);
        out
    }

    /// The busiest links; a classroom has hundreds.
    fn links_text(&self) -> String {
        const SHOWN: usize = 24;
        let total = |l: &LinkReport| l.activations_bytes + l.side_gradients_bytes + l.adapter_gradients_bytes + l.cache_bytes + l.other_bytes;
        let mut busiest: Vec<_> = self.links.iter().collect();
        busiest.sort_by_key(|l| std::cmp::Reverse(total(l)));
        let mut out = String::from("\nLinks, MB                          activations  side grad.  adapter grad.    cache\n");
        for link in busiest.iter().take(SHOWN) {
            let mb = |bytes: u64| bytes as f64 / 1e6;
            out += &format!(
                "{:<34} {:>11.2} {:>11.2} {:>14.2} {:>8.2}\n",
                format!("{} → {}", link.from, link.to),
                mb(link.activations_bytes),
                mb(link.side_gradients_bytes),
                mb(link.adapter_gradients_bytes),
                mb(link.cache_bytes)
            );
        }
        if busiest.len() > SHOWN {
            let rest: u64 = busiest[SHOWN..].iter().map(|l| total(l)).sum();
            out += &format!("{} more links: {:.2} MB\n", busiest.len() - SHOWN, rest as f64 / 1e6);
        }
        out
    }
}
