//! Tensors laid over a weight file: a fresh or trained head on a base model.

use crate::{MemoryTensors, ModelError, RawTensor, TensorEntry, TensorSource};
use std::collections::BTreeMap;
use std::ops::Range;

/// A source whose tensors come first from memory, then from another source.
pub struct Overlay<S> {
    over: MemoryTensors,
    below: S,
}

impl<S: TensorSource> Overlay<S> {
    /// Lays `tensors` over `below`: a name that both have is the upper one's.
    pub fn new(tensors: BTreeMap<String, RawTensor>, below: S) -> Self {
        Self { over: MemoryTensors { tensors }, below }
    }
}

impl<S: TensorSource> TensorSource for Overlay<S> {
    fn load(&mut self, name: &str) -> Result<RawTensor, ModelError> {
        if self.over.has(name) { self.over.load(name) } else { self.below.load(name) }
    }

    fn load_rows(&mut self, name: &str, rows: Range<usize>) -> Result<RawTensor, ModelError> {
        if self.over.has(name) { self.over.load_rows(name, rows) } else { self.below.load_rows(name, rows) }
    }

    fn entry(&self, name: &str) -> Option<TensorEntry> {
        self.over.entry(name).or_else(|| self.below.entry(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_upper_tensors_hide_those_below() {
        let tensor = |value: f32| RawTensor::from_f32(&[2, 1], &[value, value + 1.0]);
        let map = |list: &[(&str, f32)]| list.iter().map(|(name, value)| (name.to_string(), tensor(*value))).collect();
        let mut source = Overlay::new(map(&[("b", 5.0)]), MemoryTensors { tensors: map(&[("a", 1.0), ("b", 2.0)]) });
        assert_eq!(source.load("a").unwrap(), tensor(1.0));
        assert_eq!(source.load("b").unwrap(), tensor(5.0));
        assert_eq!(source.load_rows("b", 1..2).unwrap().to_f32(), [6.0]);
        assert!(source.has("a") && !source.has("c"));
        assert!(source.load("c").unwrap_err().to_string().contains("`c`"));
    }
}
