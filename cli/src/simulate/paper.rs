//! `barycenter simulate --paper`: the paper's tables and figures, computed and printed beside its own numbers.

use anyhow::Result;
use barycenter_core::paper::accounting::Stack;
use barycenter_core::paper::calibration::{Assumptions, eco_fl_figure_9_micro_batches, eco_fl_table_2_micro_batches};
use barycenter_core::paper::experiments::{Cell, EpochCell, Run, ScalingCell, Table2Row, figure_11, scaling, table_2};
use barycenter_core::paper::profile::MINI_BATCH;
use barycenter_core::paper::published::{self, DEVICE_COUNTS, TABLE_2_DEVICES};
use barycenter_core::paper::summary::{Summary, grouping_agrees};
use barycenter_core::paper::{Model, System, Task, Technique};
use std::process::ExitCode;

/// Prints the whole report.
pub fn run() -> Result<ExitCode> {
    print!("{}", report());
    Ok(ExitCode::SUCCESS)
}

/// Everything, as plain text of at most 120 columns.
fn report() -> String {
    let assumptions = Assumptions::default();
    let (table, scaling, epochs) = (table_2(&assumptions), scaling(&assumptions), figure_11(&assumptions));
    let parts = [
        "Pluto and Charon (PAC, ICPP 2024) reproduced. Each cell: the paper's number, ours, the difference.\n\
         Rows of Standalone, Eco-FL and EDDL are calibrated; rows of PAC are predictions. OOM: out of memory.\n"
            .to_string(),
        accounting_text(),
        calibration_text(&assumptions),
        table_2_text(&table),
        figure_9_text(&scaling),
        figure_10_text(&scaling),
        figure_11_text(&epochs),
        every_technique_text(&assumptions),
        sensitivity_text(),
        summary_text(&Summary::of(&table, &scaling, &epochs), &table),
    ];
    parts.join("\n")
}

fn accounting_text() -> String {
    let mut text = format!("Accounting (exact counts; TFLOP of {MINI_BATCH} samples, 128 encoder tokens and one decoder token)\n");
    text += "              backbone  side network     %   forward  Fig. 3   layer: encoder    decoder  cached sample\n";
    for model in Model::ALL {
        let architecture = model.architecture();
        let (backbone, side) = (architecture.backbone_parameters(), architecture.side_parameters());
        text += &format!(
            "  {:<10} {backbone:>11}   {side:>10}  {:>4.2}    {:>6.4}   {:>5.3}       {:>10} {:>10}        {:>4.1} MB\n",
            model.name(),
            100.0 * side as f64 / backbone as f64,
            architecture.flops(Technique::Full, false).forward * MINI_BATCH / 1e12,
            published::figure_3(model, Technique::Full).map_or(0.0, |f| f.0),
            architecture.layer_parameters(Stack::Encoder),
            architecture.layer_parameters(Stack::Decoder),
            architecture.cached_sample_bytes() / 1e6,
        );
    }
    text
}

fn calibration_text(assumptions: &Assumptions) -> String {
    let figure_9 = Model::ALL.map(|m| format!("{} {}", m.name(), eco_fl_figure_9_micro_batches(m))).join(", ");
    let table_2 = Model::ALL.map(|model| {
        let row = [Technique::Full, Technique::Adapters, Technique::Lora].map(|t| match published::table_2(t, System::EcoFl, model, Task::Mrpc) {
            Some(_) => eco_fl_table_2_micro_batches(model, t).to_string(),
            None => "-".to_string(),
        });
        format!("{} {}", model.name(), row.join("/"))
    });
    [
        "Calibration (fitted to cells of Standalone, Eco-FL and EDDL only; docs/PAPER.md)".to_string(),
        format!("  share of an AllReduce that hides behind other work      {:>4.2}   12 EDDL cells", assumptions.hidden_reduce_share),
        format!("  seconds of a decoder layer over an encoder layer's      {:>4.2}   Eco-FL bars of Fig. 9", assumptions.decoder_layer_seconds),
        format!("  micro-batches in PAC's pipelines                        {:>4}   Eco-FL bars of T5-Large in Fig. 9", assumptions.pipeline_micro_batches),
        format!("  micro-batches of Eco-FL in Fig. 9, at most: {figure_9}; its own bars"),
        format!("  micro-batches of Eco-FL in Table 2 (Full/Ad./LoRA): {}; its own rows", table_2.join(", ")),
        format!("  assumed, not fitted: cache read at {:.0} MB/s", assumptions.storage_bytes_per_second / 1e6),
        String::new(),
    ]
    .join("\n")
}

fn table_2_text(table: &[Table2Row]) -> String {
    let mut text = format!("Table 2: hours on {TABLE_2_DEVICES} Nanos (MRPC and STS-B three epochs, SST-2 and QNLI one)\n");
    for (index, model) in Model::ALL.into_iter().enumerate() {
        let heads: String = Task::ALL.map(|t| format!("{:>23}", t.name())).concat();
        text += &format!("  {:<20}{heads}\n", model.name());
        for row in table {
            let label = format!("{} {}", row.technique.name(), row.system.name());
            text += &format!("  {label:<20}{}\n", row.hours[index].iter().map(|c| cell_text(c, 2)).collect::<String>());
        }
    }
    text
}

/// Paper, ours, difference: 23 columns.
fn cell_text(cell: &Cell, decimals: usize) -> String {
    let number = |n: Option<f64>| n.map_or("OOM".to_string(), |n| format!("{n:.decimals$}"));
    let difference = match cell.difference() {
        Some(d) => format!("{:+.1}%", 100.0 * d),
        None if cell.memory_agrees() => "=".to_string(),
        None => "WRONG".to_string(),
    };
    format!("{:>8}{:>7}{difference:>8}", number(cell.published), number(cell.computed))
}

fn figure_9_text(cells: &[ScalingCell]) -> String {
    let mut text = "Fig. 9: samples per second, and peak weights per device in GiB (parallel adapters, no cache)\n".to_string();
    let heads: String = DEVICE_COUNTS.map(|d| format!("{:>23}", format!("{d} Nanos"))).concat();
    let mut rows = |title: &str, decimals: usize, of: fn(&ScalingCell) -> Cell| {
        text += &format!("  {title:<20}{heads}\n");
        for model in Model::ALL {
            for system in [System::Eddl, System::EcoFl, System::Pac] {
                let label = format!("{} {}", model.name(), system.name());
                let row = cells.iter().filter(|c| c.model == model && c.system == system);
                text += &format!("  {label:<20}{}\n", row.map(|c| cell_text(&of(c), decimals)).collect::<String>());
            }
        }
    };
    rows("(a) samples/s", 2, |c| c.throughput);
    // the paper draws weights also where they do not fit
    rows("(b) weights, GiB", 3, |c| Cell { published: c.weights_gib.published.filter(|_| c.throughput.published.is_some()), ..c.weights_gib });
    text
}

fn figure_10_text(cells: &[ScalingCell]) -> String {
    let mut text = "Fig. 10: devices per stage; the paper's, then ours\n".to_string();
    let heads: String = DEVICE_COUNTS.map(|d| format!("{:>24}", format!("{d} Nanos"))).concat();
    text += &format!("  {:<12}{heads}\n", "");
    let name = |grouping: &[usize]| format!("[{}]", grouping.iter().map(usize::to_string).collect::<Vec<_>>().join("-"));
    for model in Model::ALL {
        let row = cells.iter().filter(|c| c.model == model && c.system == System::Pac).enumerate().map(|(index, cell)| {
            let printed = if cell.throughput.published.is_some() { name(published::figure_10(model, index)) } else { "OOM".to_string() };
            let ours = cell.grouping.as_deref().map_or("OOM".to_string(), name);
            format!("{printed:>12}{ours:>8} {:>3}", if grouping_agrees(cell) { "=" } else { "!" })
        });
        text += &format!("  {:<12}{}\n", model.name(), row.collect::<String>());
    }
    text
}

fn figure_11_text(cells: &[EpochCell]) -> String {
    let mut text = "Fig. 11: hours of MRPC against epochs\n".to_string();
    for model in Model::ALL {
        text += &format!("  {:<12}{:>27}{:>23}     saved by the cache\n", model.name(), "without cache", "with cache");
        for cell in cells.iter().filter(|c| c.model == model) {
            let saved = |of: fn(&Cell) -> Option<f64>| match (of(&cell.without_cache), of(&cell.with_cache)) {
                (Some(without), Some(with)) => format!("{:>3.0} %", 100.0 * (1.0 - with / without)),
                _ => "  - ".to_string(),
            };
            let (printed, ours) = (saved(|c| c.published), saved(|c| c.computed));
            text += &format!("    epochs: {:>2}   {}{}      {printed} {ours}\n", cell.epochs, cell_text(&cell.without_cache, 3), cell_text(&cell.with_cache, 3));
        }
    }
    text
}

/// What the paper does not show: each technique under each system, and the cache where there are parallel adapters.
fn every_technique_text(assumptions: &Assumptions) -> String {
    let systems = [System::Standalone, System::EcoFl, System::Eddl, System::Pac];
    let mut text = format!("Beyond the paper: hours of three epochs of MRPC, every technique under every system ({TABLE_2_DEVICES} Nanos, ours only)\n");
    text += &format!("  {:<26}{}\n", "", Model::ALL.map(|m| format!("{:>30}", m.name())).concat());
    let heads = systems.map(|s| format!("{:>7}", if s == System::Standalone { "alone" } else { s.name() })).concat();
    text += &format!("  {:<26}{}\n", "", Model::ALL.map(|_| format!("  {heads}")).concat());
    for (technique, cache) in [(Technique::Full, false), (Technique::Adapters, false), (Technique::Lora, false), (Technique::ParallelAdapters, false), (Technique::ParallelAdapters, true)] {
        let label = if cache { "P.A. with cache" } else { technique.name() };
        let cells = Model::ALL.map(|model| {
            let row = systems.map(|system| {
                let hours = Run::of(model, technique, system, assumptions).map(|run| run.task_hours(Task::Mrpc, cache));
                format!("{:>7}", hours.map_or("OOM".to_string(), |h| format!("{h:.2}")))
            });
            format!("  {}", row.concat())
        });
        text += &format!("  {label:<26}{}\n", cells.concat());
    }
    text + "  Eco-FL runs with its fitted micro-batches, PAC with two: their columns differ by that as much as by the system.\n"
}

/// How far PAC's predictions hang on what the paper leaves open.
fn sensitivity_text() -> String {
    let standard = Assumptions::default();
    let variants = [
        ("as above", standard),
        ("3 micro-batches", Assumptions { pipeline_micro_batches: 3, ..standard }),
        ("4 micro-batches", Assumptions { pipeline_micro_batches: 4, ..standard }),
        ("6 micro-batches", Assumptions { pipeline_micro_batches: 6, ..standard }),
        ("whole micro-batches only", Assumptions { whole_micro_batches: true, ..standard }),
        ("AllReduce hides nothing", Assumptions { hidden_reduce_share: 0.0, ..standard }),
        ("decoder layer 1/6 as slow", Assumptions { decoder_layer_seconds: 1.0 / 6.0, ..standard }),
        ("cache read at 50 MB/s", Assumptions { storage_bytes_per_second: 50e6, ..standard }),
        ("cache read at 200 MB/s", Assumptions { storage_bytes_per_second: 200e6, ..standard }),
    ];
    let mut text = "Sensitivity: PAC's predictions under other assumptions; MRPC and QNLI of Table 2, worst of Fig. 9a, Fig. 10\n".to_string();
    text += &format!("  {:<26}{}{:>11}{:>10}\n", "", Model::ALL.map(|m| format!("{:>20}", m.name())).concat(), "Fig. 9 PAC", "Fig. 10");
    for (name, assumptions) in variants {
        let (table, scaling) = (table_2(&assumptions), scaling(&assumptions));
        let summary = Summary::of(&table, &scaling, &[]);
        let row = table.iter().find(|r| r.system == System::Pac);
        let difference = |cell: &Cell| cell.difference().map_or("OOM".to_string(), |d| format!("{:+.1}%", 100.0 * d));
        let cells = row.map(|row| row.hours.map(|h| format!("{:>11}{:>9}", difference(&h[0]), difference(&h[3]))).concat()).unwrap_or_default();
        let groupings = format!("{}/{}", summary.groupings_agree.0, summary.groupings_agree.1);
        text += &format!("  {name:<26}{cells}{:>10.1}%{groupings:>10}\n", 100.0 * summary.worst_pac_figure_9);
    }
    text
}

fn summary_text(summary: &Summary, table: &[Table2Row]) -> String {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let pac: Vec<_> = table.iter().filter(|r| r.system == System::Pac).flat_map(|r| r.hours.iter().flatten()).collect();
    let within = pac.iter().filter(|c| c.difference().is_some_and(|d| d.abs() <= 0.1)).count();
    [
        "Summary                                            reached      goal".to_string(),
        format!("  cells that fit or do not fit, right         {:>12}       all", format!("{} of {}", summary.memory_agrees.0, summary.memory_agrees.1)),
        format!("  groupings of Fig. 10 right                  {:>12}       all", format!("{} of {}", summary.groupings_agree.0, summary.groupings_agree.1)),
        format!("  PAC cells of Table 2 within 10 %            {:>12}       all", format!("{within} of {}", pac.len())),
        format!("  worst PAC cell of Table 2                   {:>12}      10 %", percent(summary.worst_pac_table_2)),
        format!("  worst PAC cell of Fig. 9a                   {:>12}      15 %", percent(summary.worst_pac_figure_9)),
        format!("  worst cell of Fig. 9a                       {:>12}      15 %", percent(summary.worst_figure_9)),
        format!("  worst calibrated cell of Table 2            {:>12}         -", percent(summary.worst_baseline_table_2)),
        format!("  worst cell of Fig. 11                       {:>12}         -", percent(summary.worst_figure_11)),
        String::new(),
    ]
    .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_at_most_120_columns_wide_and_ends_with_the_summary() {
        let report = report();
        for line in report.lines() {
            assert!(line.chars().count() <= 120, "{} columns: {line}", line.chars().count());
        }
        let summary = report.split("Summary").nth(1).expect("there is a summary");
        assert!(summary.contains("156 of 156") && summary.contains("12 of 12"), "{summary}");
    }
}
