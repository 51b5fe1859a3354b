//! Slots of a mini-batch in proportion to speed.

/// Slots in proportion to speed, none above its cap, so that the slowest to finish finishes first; `None` if the caps do
/// not suffice or somebody would get nothing. `each`: everybody gets a slot first, even who is too slow to deserve one.
///
/// The next slot goes to whoever would finish it first (D'Hondt's rule). That never gives anyone less than the
/// proportional share rounded down, so that much is dealt at once.
pub(super) fn shares(speeds: &[f64], caps: &[u32], batch: u32, each: bool) -> Option<Vec<u32>> {
    let total: f64 = speeds.iter().sum();
    let quota = |i: usize| (f64::from(batch) * speeds[i] / total * (1.0 - 1e-12)).floor() as u32;
    let mut slots: Vec<u32> = (0..speeds.len()).map(|i| if each { 1 } else { quota(i) }.min(caps[i])).collect();
    for _ in slots.iter().sum::<u32>()..batch {
        let finish = |i: usize| f64::from(slots[i] + 1) / speeds[i];
        let next = (0..speeds.len()).filter(|&i| slots[i] < caps[i]).min_by(|&a, &b| finish(a).total_cmp(&finish(b)))?;
        slots[next] += 1;
    }
    (slots.iter().all(|s| *s > 0) && slots.iter().sum::<u32>() == batch).then_some(slots)
}
