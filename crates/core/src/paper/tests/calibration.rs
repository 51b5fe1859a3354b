use crate::paper::calibration::*;
use crate::paper::experiments::{Cell, Run, eco_fl_figure_9_step, scaling_cell, testbed};
use crate::paper::published::{self, DEVICE_COUNTS, TABLE_2_ROWS};
use crate::paper::{Model, System, Task, Technique};

fn squares(cells: &[Cell]) -> f64 {
    cells.iter().map(|c| c.difference().map_or(f64::INFINITY, |d| d * d)).sum()
}

/// The candidate with the smallest error.
fn best<T: Copy>(candidates: impl Iterator<Item = T>, error: impl Fn(T) -> f64) -> T {
    let errors = candidates.map(|c| (c, error(c)));
    errors.min_by(|a, b| a.1.total_cmp(&b.1)).expect("there are candidates").0
}

#[test]
fn hidden_reduce_share_is_the_least_squares_of_the_eddl_cells() {
    let model = Model::T5Base;
    let error = |percent: u32| {
        let assumptions = Assumptions { hidden_reduce_share: f64::from(percent) / 100.0, ..Assumptions::default() };
        let rows = [Technique::Adapters, Technique::Lora].into_iter().flat_map(|technique| {
            let run = Run::of(model, technique, System::Eddl, &assumptions);
            Task::ALL.map(|task| Cell { published: published::table_2(technique, System::Eddl, model, task), computed: run.map(|r| r.task_hours(task, false)) })
        });
        let bars = (0..DEVICE_COUNTS.len()).map(|index| scaling_cell(model, index, System::Eddl, &assumptions).throughput);
        squares(&rows.chain(bars).collect::<Vec<_>>())
    };
    assert_eq!(f64::from(best(50..=90, error)) / 100.0, HIDDEN_REDUCE_SHARE);
}

#[test]
fn eco_fl_micro_batches_of_table_2_are_the_least_squares_of_their_rows() {
    let assumptions = Assumptions::default();
    for (technique, _) in TABLE_2_ROWS.into_iter().filter(|r| r.1 == System::EcoFl) {
        for model in Model::ALL {
            if published::table_2(technique, System::EcoFl, model, Task::Mrpc).is_none() {
                continue;
            }
            let error = |micro_batches: usize| {
                let run = Run::eco_fl(model, technique, micro_batches, &assumptions);
                squares(&Task::ALL.map(|task| Cell { published: published::table_2(technique, System::EcoFl, model, task), computed: run.map(|r| r.task_hours(task, false)) }))
            };
            assert_eq!(best(1..=16, error), eco_fl_table_2_micro_batches(model, technique), "{} {}", model.name(), technique.name());
        }
    }
}

#[test]
fn eco_fl_micro_batches_of_figure_9_are_the_least_squares_of_their_bars() {
    let assumptions = Assumptions::default();
    for model in Model::ALL {
        let error = |most: usize| {
            let cells = DEVICE_COUNTS.into_iter().enumerate().map(|(index, devices)| {
                let step = eco_fl_figure_9_step(&testbed(model, Technique::ParallelAdapters, devices, &assumptions), most);
                Cell { published: published::figure_9(model, System::EcoFl, index).throughput, computed: step.map(|s| devices as f64 / s) }
            });
            squares(&cells.filter(|c| c.published.is_some()).collect::<Vec<_>>())
        };
        assert_eq!(best(1..=8, error), eco_fl_figure_9_micro_batches(model), "{}", model.name());
    }
    assert_eq!(eco_fl_figure_9_micro_batches(Model::T5Large), PIPELINE_MICRO_BATCHES);
}
