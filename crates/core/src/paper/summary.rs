//! What of the paper was reached: the figures that the tests hold and `barycenter simulate --paper` prints last.

use super::System;
use super::experiments::{Cell, EpochCell, ScalingCell, Table2Row};
use super::published::{self, DEVICE_COUNTS};

/// How well the reproduction agrees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// Cells of Table 2 and Fig. 9a where ours fits exactly if the paper's does, and all of them.
    pub memory_agrees: (usize, usize),
    /// Groupings of Fig. 10 that are the same, and all of them.
    pub groupings_agree: (usize, usize),
    /// Largest difference among PAC's cells of Table 2, as a share.
    pub worst_pac_table_2: f64,
    /// Largest difference among the other cells of Table 2.
    pub worst_baseline_table_2: f64,
    /// Largest difference among PAC's cells of Fig. 9a.
    pub worst_pac_figure_9: f64,
    /// Largest difference among all cells of Fig. 9a.
    pub worst_figure_9: f64,
    /// Largest difference in Fig. 11.
    pub worst_figure_11: f64,
}

impl Summary {
    /// Compares everything.
    pub fn of(table: &[Table2Row], scaling: &[ScalingCell], epochs: &[EpochCell]) -> Self {
        let hours = |pac: bool| table.iter().filter(move |r| (r.system == System::Pac) == pac).flat_map(|r| r.hours.iter().flatten());
        let all: Vec<&Cell> = hours(false).chain(hours(true)).chain(scaling.iter().map(|c| &c.throughput)).collect();
        let groupings: Vec<bool> = scaling.iter().filter(|c| c.system == System::Pac).map(grouping_agrees).collect();
        let worst = |cells: &mut dyn Iterator<Item = &Cell>| cells.filter_map(Cell::difference).map(f64::abs).fold(0.0, f64::max);
        Self {
            memory_agrees: (all.iter().filter(|c| c.memory_agrees()).count(), all.len()),
            groupings_agree: (groupings.iter().filter(|g| **g).count(), groupings.len()),
            worst_pac_table_2: worst(&mut hours(true)),
            worst_baseline_table_2: worst(&mut hours(false)),
            worst_pac_figure_9: worst(&mut scaling.iter().filter(|c| c.system == System::Pac).map(|c| &c.throughput)),
            worst_figure_9: worst(&mut scaling.iter().map(|c| &c.throughput)),
            worst_figure_11: worst(&mut epochs.iter().flat_map(|e| [&e.without_cache, &e.with_cache])),
        }
    }
}

/// Whether ours is Fig. 10's grouping; where Fig. 9 says out of memory, whether ours is too.
pub fn grouping_agrees(cell: &ScalingCell) -> bool {
    let index = DEVICE_COUNTS.iter().position(|d| *d == cell.devices);
    let printed = index.map(|index| published::figure_10(cell.model, index));
    match (&cell.grouping, cell.throughput.published) {
        (Some(grouping), Some(_)) => printed == Some(grouping.as_slice()),
        (None, None) => true,
        _ => false,
    }
}
