//! A pipeline made better by small changes, judged by the true prediction.

use super::costs::Costs;
use super::objective::{Candidate, micro_batch_counts, realise_below};
use barycenter_protocol::plan::FillMode;

type Layout = Vec<(usize, usize, Vec<usize>)>;

/// Takes every change that makes a step faster until none does or `budget` pipelines were looked at: a border moved
/// by a layer; a device left out, taken in, moved to another stage or exchanged; two stages joined; other numbers of
/// micro-batches.
pub(super) fn polish(costs: &Costs, start: Candidate, pool: &[usize], min_stages: usize, leave_out: bool, budget: &mut usize) -> Candidate {
    let counts = micro_batch_counts(costs.batch);
    let mut best = start;
    loop {
        let layout: Layout = best.stages.iter().map(|s| (s.from, s.to, s.members.iter().map(|m| m.0).collect())).collect();
        let before = best.seconds;
        let mode = best.mode;
        let mut attempt = |layout: &Layout, micro_batches: u32, best: &mut Candidate| {
            *budget = budget.saturating_sub(1);
            if *budget > 0
                && work_bound(costs, mode, layout) < best.seconds
                && let Some(candidate) = realise_below(costs, mode, layout, micro_batches, best.seconds * (1.0 - 1e-9))
            {
                *best = candidate;
            }
        };
        let at = counts.iter().position(|c| *c == best.micro_batches).unwrap_or(0);
        for micro_batches in &counts[at.saturating_sub(2)..(at + 3).min(counts.len())] {
            attempt(&layout, *micro_batches, &mut best);
        }
        let micro_batches = best.micro_batches;
        for changed in changes(costs, &layout, pool, min_stages, leave_out) {
            attempt(&changed, micro_batches, &mut best);
        }
        if best.seconds >= before || *budget == 0 {
            return best;
        }
    }
}

/// Least seconds that the work of the slowest stage takes.
fn work_bound(costs: &Costs, mode: FillMode, layout: &Layout) -> f64 {
    let stage = |(from, to, devices): &(usize, usize, Vec<usize>)| {
        let (forward, backward) = costs.sample_flops(mode, *from, *to);
        (forward + backward) * f64::from(costs.batch) / devices.iter().map(|d| costs.speed(*d)).sum::<f64>()
    };
    layout.iter().map(stage).fold(0.0, f64::max)
}

fn changes(costs: &Costs, layout: &Layout, pool: &[usize], min_stages: usize, leave_out: bool) -> Vec<Layout> {
    let mut all = Vec::new();
    let mut add = |change: &dyn Fn(&mut Layout)| {
        let mut changed = layout.clone();
        change(&mut changed);
        all.push(changed);
    };
    for i in 1..layout.len() {
        if layout[i].1 - layout[i].0 > 1 {
            add(&|l| (l[i - 1].1, l[i].0) = (l[i].0 + 1, l[i].0 + 1));
        }
        if layout[i - 1].1 - layout[i - 1].0 > 1 {
            add(&|l| (l[i - 1].1, l[i].0) = (l[i].0 - 1, l[i].0 - 1));
        }
        if layout.len() > min_stages {
            add(&|l| {
                let (_, to, devices) = l.remove(i);
                l[i - 1].1 = to;
                l[i - 1].2.extend(devices);
                l[i - 1].2.sort();
            });
        }
    }
    let place = |d: usize| layout.iter().position(|stage| stage.2.contains(&d));
    let put = |l: &mut Layout, stage: usize, d: usize| {
        let at = l[stage].2.partition_point(|other| *other < d);
        l[stage].2.insert(at, d);
    };
    for &d in pool {
        let here = place(d);
        if let Some(from) = here.filter(|from| layout[*from].2.len() > 1) {
            if leave_out {
                add(&|l| l[from].2.retain(|other| *other != d));
            }
            for to in (0..layout.len()).filter(|to| *to != from) {
                add(&|l| {
                    l[from].2.retain(|other| *other != d);
                    put(l, to, d);
                });
            }
        }
        if here.is_none() {
            for to in 0..layout.len() {
                add(&|l| put(l, to, d));
            }
        }
        for &other in pool.iter().filter(|other| **other > d && costs.speed(**other) != costs.speed(d)) {
            let there = place(other);
            if here != there {
                add(&|l| {
                    for (stage, out, into) in [(here, d, other), (there, other, d)] {
                        if let Some(stage) = stage {
                            l[stage].2.retain(|x| *x != out);
                            put(l, stage, into);
                        }
                    }
                });
            }
        }
    }
    all
}
