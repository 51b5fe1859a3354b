//! How fast the swarm really is: step times against what was expected, and every node's speed against what it claims.

use barycenter_protocol::NodeId;
use std::collections::{BTreeMap, VecDeque};

/// Steps that are "a while": the median of so many decides, so that single slow steps say nothing.
const WINDOW: usize = 8;
/// Drift: the median step is off by more than this part of what was expected.
const TOLERANCE: f64 = 0.15;

#[derive(Clone, Debug, Default)]
struct Window(VecDeque<f64>);

impl Window {
    fn push(&mut self, value: f64) {
        self.0.push_back(value);
        if self.0.len() > WINDOW {
            self.0.pop_front();
        }
    }

    fn median(&self) -> Option<f64> {
        median(self.0.iter().copied())
    }

    fn is_full(&self) -> bool {
        self.0.len() == WINDOW
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<_> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied()
}

/// Measurements of one phase (fill or train), from all plans of the run.
#[derive(Debug, Default)]
pub(super) struct Pace {
    expected: f64,
    steps: Window,
    /// Seconds of the engine's work over those it takes at the claimed speed.
    slowness: BTreeMap<NodeId, Window>,
}

impl Pace {
    /// Another plan is at work, of which steps of `seconds` are expected.
    pub fn expect(&mut self, seconds: f64) {
        self.expected = seconds;
        self.steps = Window::default();
    }

    /// A step took so long; true if the steps have drifted. What is measured then is what is expected from now on.
    pub fn step(&mut self, seconds: f64) -> bool {
        self.steps.push(seconds);
        let Some(median) = self.steps.median().filter(|_| self.steps.is_full()) else { return false };
        let has_drifted = (median - self.expected).abs() > TOLERANCE * self.expected;
        if has_drifted {
            self.expected = median;
        }
        has_drifted
    }

    /// A node did work that a node of its claimed speed does in `claimed_seconds`.
    pub fn worked(&mut self, node: NodeId, claimed_seconds: f64, seconds: f64) {
        if claimed_seconds > 0.0 && seconds > 0.0 {
            self.slowness.entry(node).or_default().push(seconds / claimed_seconds);
        }
    }

    pub fn forget(&mut self, node: NodeId) {
        self.slowness.remove(&node);
    }

    /// Whether any node's work was measured.
    pub fn has_measured(&self) -> bool {
        !self.slowness.is_empty()
    }

    /// Median step under the plan at work, seconds.
    pub fn step_seconds(&self) -> Option<f64> {
        self.steps.median()
    }

    /// What to multiply a node's claimed speed by. One that was not measured is as far off as the others.
    pub fn ratio(&self, node: NodeId) -> f64 {
        let own = self.slowness.get(&node).and_then(Window::median);
        1.0 / own.or_else(|| median(self.slowness.values().filter_map(Window::median))).unwrap_or(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_slow_steps_are_no_drift_and_a_while_of_them_is_one() {
        let mut pace = Pace::default();
        pace.expect(1.0);
        for seconds in [1.0, 9.0, 1.1, 0.9, 9.0, 1.0, 9.0, 1.1, 1.0] {
            assert!(!pace.step(seconds));
        }
        let drifts = (0..20).filter(|_| pace.step(1.3)).count();
        assert_eq!(drifts, 1, "said once, and expected from then on");
        assert!((0..20).all(|_| !pace.step(1.2)));
        assert_eq!((0..20).filter(|_| pace.step(1.0)).count(), 1, "faster is drift too");
    }

    #[test]
    fn who_was_not_measured_is_as_far_off_as_the_others() {
        let mut pace = Pace::default();
        assert_eq!(pace.ratio(NodeId(1)), 1.0);
        pace.worked(NodeId(1), 1.0, 2.0);
        pace.worked(NodeId(2), 1.0, 4.0);
        pace.worked(NodeId(3), 1.0, 4.0);
        assert_eq!((pace.ratio(NodeId(1)), pace.ratio(NodeId(9))), (0.5, 0.25));
    }
}
