//! A plan with its predictions, and a sentence per device.

use super::costs::Costs;
use super::objective::Choice;
use super::redistribute;
use super::search::Found;
use super::storage;
use super::train::{TrainChoice, train_choices};
use super::{WORTHWHILE, human_bytes};
use barycenter_protocol::plan::{DeviceReason, FillMode, LinkTraffic, Plan, PlanBound, ReduceAdvice, Stage, StageMember, layers_text};
use std::collections::BTreeMap;

/// AllReduce may take this part of a train step before accumulating over more mini-batches is advised.
const REDUCE_PART: f64 = 0.1;
/// Longest interval that is advised: beyond, the larger effective mini-batch is felt in the training.
const LONGEST_INTERVAL: u32 = 16;

pub(super) fn describe(costs: &Costs, found: &Found) -> Plan {
    let (fill, train) = (&found.choice.fill, &found.choice.train);
    let members = |list: &[(usize, u32)]| -> Vec<StageMember> {
        let mut start = 0;
        let member = |&(d, slots): &(usize, u32)| {
            start += slots;
            StageMember { node: costs.devices[d].node, slots: start - slots..start }
        };
        list.iter().map(member).collect()
    };
    let reference = found.reference.as_ref();
    Plan {
        stages: fill.stages.iter().map(|s| Stage { layers: s.from as u32..s.to as u32, members: members(&s.members) }).collect(),
        micro_batches: fill.micro_batches,
        fill: fill.mode,
        train: members(&train.members),
        stores: train.stores.iter().map(|(d, slots)| StageMember { node: costs.devices[*d].node, slots: slots.clone() }).collect(),
        fill_step_seconds: found.choice.first_epoch_step_seconds(),
        train_step_seconds: train.seconds,
        single_device_fill_step_seconds: reference.map_or(0.0, Choice::first_epoch_step_seconds),
        single_device_train_step_seconds: reference.map_or(0.0, |r| r.train.seconds),
        redistribution_seconds: found.choice.redistribution_seconds,
        bound: PlanBound { objective_seconds: found.choice.objective, lower_bound_seconds: found.lower_bound, is_exact: found.is_exact },
        links: links(costs, &found.choice),
        gradients: costs.gradients,
        advice: advice(costs, train),
        reasons: (0..costs.devices.len()).map(|d| reason(costs, found, d)).collect(),
    }
}

/// Bytes on every link that is used.
fn links(costs: &Costs, choice: &Choice) -> Vec<LinkTraffic> {
    let mut links: BTreeMap<(usize, usize), LinkTraffic> = BTreeMap::new();
    let mut on = |a: usize, b: usize, add: &dyn Fn(&mut LinkTraffic)| {
        let (a, b) = (a.min(b), a.max(b));
        let fresh = LinkTraffic { a: costs.devices[a].node, b: costs.devices[b].node, activation_bytes: 0, side_gradient_bytes: 0, fill_reduce_bytes: 0, train_reduce_bytes: 0, redistribution_bytes: 0, epoch_stream_bytes: 0 };
        add(links.entry((a, b)).or_insert(fresh));
    };
    let mode = choice.fill.mode;
    for pair in choice.fill.stages.windows(2) {
        let mut first = 0;
        for &(s, sent) in &pair[0].members {
            let mut start = 0;
            for &(d, taken) in &pair[1].members {
                let slots = (first + sent).min(start + taken).saturating_sub(first.max(start));
                start += taken;
                if slots > 0 {
                    let tokens = f64::from(slots) * costs.options.mean_tokens;
                    on(s, d, &|l| {
                        l.activation_bytes += (tokens * costs.forward_token_bytes(mode)) as u64;
                        l.side_gradient_bytes += if mode == FillMode::Hybrid { (tokens * costs.backward_token_bytes()) as u64 } else { 0 };
                    });
                }
            }
            first += sent;
        }
    }
    // each of n members exchanges with every other one, in both directions, its n-th part and the n-th part of the sum
    let reduce_bytes = |members: usize, parameters: u64| 4 * costs.gradients.wire_bytes(parameters) / members.max(1) as u64;
    let pairs = |members: &[(usize, u32)]| -> Vec<(usize, usize)> { members.iter().flat_map(|a| members.iter().filter(|b| a.0 < b.0).map(|b| (a.0, b.0))).collect() };
    if mode == FillMode::Hybrid {
        for stage in &choice.fill.stages {
            let bytes = reduce_bytes(stage.members.len(), costs.adapter_parameters(stage.from, stage.to));
            for (a, b) in pairs(&stage.members) {
                on(a, b, &|l| l.fill_reduce_bytes += bytes);
            }
        }
    }
    let bytes = reduce_bytes(choice.train.members.len(), costs.adapter_parameters(0, costs.layers()));
    for (a, b) in pairs(&choice.train.members) {
        on(a, b, &|l| l.train_reduce_bytes += bytes);
    }
    for (from, to, bytes) in redistribute::moves(costs, mode, &choice.fill.stages, &choice.train) {
        on(from, to, &|l| l.redistribution_bytes += bytes as u64);
    }
    for (from, to, slots) in storage::streamed(&choice.train) {
        on(from, to, &|l| l.epoch_stream_bytes += (f64::from(slots) * storage::epoch_slot_bytes(costs)) as u64);
    }
    links.into_values().collect()
}

/// What AllReduce after several mini-batches would bring: the set of devices, and the shortest interval at which AllReduce
/// is at most a tenth of the time.
fn advice(costs: &Costs, train: &TrainChoice) -> Option<ReduceAdvice> {
    // where entries are streamed, summing less often leaves the stream as it is
    if costs.devices.len() < 2 || costs.stores {
        return None;
    }
    let choices = train_choices(costs);
    let best_at = |interval: u32| {
        let seconds = |c: &TrainChoice| c.seconds - c.reduce_seconds * (1.0 - 1.0 / f64::from(interval));
        choices.iter().map(|c| (seconds(c), c)).min_by(|a, b| a.0.total_cmp(&b.0))
    };
    let intervals = (0..).map(|i| 1u32 << i).take_while(|k| *k <= LONGEST_INTERVAL);
    let enough = |k: &u32| best_at(*k).is_some_and(|(seconds, c)| c.reduce_seconds / f64::from(*k) <= REDUCE_PART * seconds);
    let accumulate = intervals.clone().find(enough).unwrap_or(LONGEST_INTERVAL);
    let (accumulated_step_seconds, set) = best_at(accumulate)?;
    if accumulate == 1 || accumulated_step_seconds > WORTHWHILE * train.seconds {
        return None;
    }
    let sentence = format!(
        "With gradients summed once per {accumulate} mini-batches (a {accumulate} times larger effective mini-batch), {} would train a mini-batch in {:.3} s instead of {:.3} s; the devices do not do that yet, a larger mini-batch does the same.",
        people(set.members.len()),
        accumulated_step_seconds,
        train.seconds
    );
    Some(ReduceAdvice { reduce_seconds: train.reduce_seconds, accumulate, accumulated_step_seconds, sentence })
}

fn people(devices: usize) -> String {
    if devices == 1 { "one device".into() } else { format!("{devices} devices") }
}

fn reason(costs: &Costs, found: &Found, d: usize) -> DeviceReason {
    let (fill, train, device) = (&found.choice.fill, &found.choice.train, &costs.devices[d]);
    let count = fill.stages.len();
    let place = fill.stages.iter().enumerate().find_map(|(i, s)| s.members.iter().find(|m| m.0 == d).map(|m| (i, s, m.1)));
    let fill_memory_bytes = storage::fill_bytes(costs, fill, train, d);
    let in_train = train.members.iter().find(|m| m.0 == d).map(|m| m.1);
    let train_memory_bytes = storage::train_bytes(costs, train, d);
    let speed = format!("{:.0} GFLOP/s", device.gflops);
    let others_do_not_help = count == 1 && fill.stages[0].members.len() == 1 && costs.devices.len() > 1 && found.reference.is_some();
    let first = match place {
        Some(_) if others_do_not_help => format!("{} ({speed}) fills the cache alone: with the others a step would not be faster", device.name),
        Some((_, s, _)) if count == 1 && s.members.len() == 1 => format!("{} ({speed}) holds all {} layers", device.name, s.to),
        Some((i, s, slots)) => {
            let share = if s.members.len() > 1 { format!(" for {slots} of {} samples", costs.batch) } else { String::new() };
            let (used, budget) = (human_bytes(fill_memory_bytes), human_bytes(device.memory_budget_bytes));
            format!("{} ({speed}) holds {}{share} as stage {} of {count}, {used} of its {budget}", device.name, layers_text(s.from as u32, s.to as u32), i + 1)
        }
        None if !costs.stores && costs.cache_slot_bytes(costs.layers() - 1, costs.layers()) > device.storage_budget_bytes => {
            format!("{} holds no layers: the {} it offers to store are too few for a layer's part of the cache", device.name, human_bytes(device.storage_budget_bytes))
        }
        None if costs.holds_a_layer(d) => format!("{} ({speed}) holds no layers: it would slow the others down", device.name),
        None => format!("{} holds no layers: its {} of memory take none beside the others", device.name, human_bytes(device.memory_budget_bytes)),
    };
    let second = match in_train {
        Some(slots) => format!("then trains {slots} of {} samples from the cache", costs.batch),
        None if costs.train_slots(d) == 0 => "then rests: it has too little memory or storage for a share of the cache".to_owned(),
        None => "then rests: exchanging gradients with it would take longer than it saves".to_owned(),
    };
    let reason = match keeps_for_others(costs, train, d) {
        Some(keeps) if place.is_none() && in_train.is_none() => format!("{} keeps {keeps}, and computes nothing.", device.name),
        Some(keeps) if in_train.is_none() => format!("{first}; then keeps {keeps}."),
        Some(keeps) => format!("{first}; {second}{}, and keeps {keeps}.", fetches(costs, train, d)),
        None => format!("{first}; {second}{}.", fetches(costs, train, d)),
    };
    DeviceReason { node: device.node, name: device.name.clone(), reason, fill_memory_bytes, train_memory_bytes }
}

/// "the cache entries of 12 of 16 samples for phone 1 and phone 2 (68 MB an epoch)".
fn keeps_for_others(costs: &Costs, train: &TrainChoice, d: usize) -> Option<String> {
    let pieces: Vec<_> = storage::streamed(train).into_iter().filter(|(from, ..)| *from == d).collect();
    let slots: u32 = pieces.iter().map(|piece| piece.2).sum();
    let whom = names(costs, pieces.iter().map(|piece| piece.1));
    let bytes = human_bytes((f64::from(slots) * storage::epoch_slot_bytes(costs)) as u64);
    (slots > 0).then(|| format!("the cache entries of {slots} of {} samples for {whom} ({bytes} an epoch)", costs.batch))
}

/// ", 6 of them with entries that desktop keeps": what a device that trains has to fetch.
fn fetches(costs: &Costs, train: &TrainChoice, d: usize) -> String {
    let pieces: Vec<_> = storage::streamed(train).into_iter().filter(|(_, to, _)| *to == d).collect();
    let slots: u32 = pieces.iter().map(|piece| piece.2).sum();
    let keepers: std::collections::BTreeSet<_> = pieces.iter().map(|piece| piece.0).collect();
    let keep = if keepers.len() == 1 { "keeps and sends" } else { "keep and send" };
    if slots == 0 { String::new() } else { format!(", {slots} of them with entries that {} {keep} a step ahead", names(costs, keepers.into_iter())) }
}

fn names(costs: &Costs, devices: impl Iterator<Item = usize>) -> String {
    let names: Vec<_> = devices.map(|d| costs.devices[d].name.as_str()).collect();
    match &names[..] {
        [rest @ .., last] if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => names.concat(),
    }
}
