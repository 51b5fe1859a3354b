//! `barycenter plan`: who would do what in a household that a file describes.

use crate::model::Sized;
use anyhow::{Context, Result, ensure};
use barycenter_core::cost::cache_bytes;
use barycenter_core::household::Household;
use barycenter_core::planner::{FillWish, PlanOptions, human_bytes, plan};
use barycenter_model::ModelConfig;
use barycenter_model::names::parameter_count;
use barycenter_protocol::NodeId;
use barycenter_protocol::control::tapped;
use barycenter_protocol::plan::{FillMode, ModelCost, Plan, StageMember, layers_text};
use barycenter_server::side::model_cost;
use barycenter_server::{DEFAULT_CACHE, DEFAULT_TAP_EVERY};
use clap::ValueEnum;
use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `barycenter plan`.
#[derive(clap::Args)]
pub struct Options {
    /// Devices and links, as JSON (docs/PLANNER.md says how it is written).
    devices: PathBuf,
    /// Model folder (config.json, and the weights unless --weights says how they would be held), .gguf file, or name on the hub.
    #[arg(long)]
    model: PathBuf,
    /// Type of the frozen weights (default: as in the folder).
    #[arg(long)]
    weights: Option<Weights>,
    /// Mini-batch.
    #[arg(long, default_value_t = 16)]
    batch: u32,
    /// Mean tokens of a sample.
    #[arg(long, default_value_t = 128)]
    tokens: u32,
    /// Most tokens of a sample (default: twice the mean).
    #[arg(long)]
    max_tokens: Option<u32>,
    /// Mean labelled tokens of a sample (default: half of all).
    #[arg(long)]
    labels: Option<u32>,
    /// Samples of the data set.
    #[arg(long, default_value_t = 1000)]
    samples: u32,
    /// Epochs, the first one included.
    #[arg(long, default_value_t = 3)]
    epochs: u32,
    /// How many times narrower the adapter is than the model.
    #[arg(long, default_value_t = 8)]
    reduction: u32,
    /// How the cache is filled.
    #[arg(long, default_value = "fastest")]
    fill: Fill,
    /// Leave out a device, and show what changes; may be given several times.
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
    /// Print the plan as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Weights {
    F32,
    F16,
    Int8,
    Int4,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Fill {
    Fastest,
    Hybrid,
    ForwardOnly,
}

/// Plans and prints.
pub fn run(options: &Options) -> Result<ExitCode> {
    ensure!((1..=4096).contains(&options.batch), "the mini-batch is {}: choose 1 to 4096", options.batch);
    for (what, value) in [("tokens", options.tokens), ("samples", options.samples), ("epochs", options.epochs), ("reduction", options.reduction)] {
        ensure!((1..=1_000_000_000).contains(&value), "--{what} is {value}: choose a number from 1");
    }
    let max_tokens = options.max_tokens.unwrap_or(options.tokens.saturating_mul(2));
    ensure!(max_tokens >= options.tokens, "--max-tokens is {max_tokens}, less than the mean of {}: choose more", options.tokens);
    let labels = options.labels.unwrap_or(options.tokens.div_ceil(2));
    ensure!(labels <= options.tokens, "--labels is {labels}, more than the {} tokens of a sample: choose less", options.tokens);
    let path = options.devices.display();
    let household = crate::simulate::household::read(&options.devices)?;
    let Sized { config, name, bytes } = Sized::open(&options.model)?;
    let weights = weights(options, &config, bytes)?;
    let cost = model_cost(&config, options.reduction, DEFAULT_TAP_EVERY, weights.bytes, f64::from(options.tokens)).map_err(anyhow::Error::msg)?;
    let (layers, width, samples) = (config.layers as u32, config.width as u32, u64::from(options.samples));
    let wishes = PlanOptions {
        model: name,
        mean_tokens: f64::from(options.tokens),
        max_tokens,
        mean_labels: f64::from(labels),
        cache_bytes: cache_bytes(DEFAULT_CACHE, tapped(layers, DEFAULT_TAP_EVERY).count() as u32, width, samples * u64::from(options.tokens), samples * u64::from(labels)),
        fill: match options.fill {
            Fill::Fastest => FillWish::Fastest,
            Fill::Hybrid => FillWish::Hybrid,
            Fill::ForwardOnly => FillWish::ForwardOnly,
        },
        epochs: options.epochs,
        steps_per_epoch: options.samples.div_ceil(options.batch),
        weight_bits: weights.bits,
        gradients: None,
        ..PlanOptions::default()
    };
    let cost = weights.scaled(cost);
    let measured = household.measurements();
    let named = |name: &String| {
        let names: Vec<_> = household.devices.iter().map(|d| d.name.as_str()).collect();
        household.device_named(name).map(|d| household.node(d)).with_context(|| format!("--without: {path} has no device \"{name}\": it has {}", names.join(", ")))
    };
    let dropped: Vec<NodeId> = options.without.iter().map(named).collect::<Result<_>>()?;
    let chosen = plan(&cost, &measured, options.batch, &PlanOptions { without: dropped.clone(), ..wishes.clone() });
    let all = (!dropped.is_empty()).then(|| plan(&cost, &measured, options.batch, &wishes));
    let chosen = chosen?;
    if options.json {
        let with_all = all.and_then(Result::ok);
        let json = serde_json::json!({ "household": household.name, "plan": chosen, "seconds": seconds(&chosen, &wishes), "cache_bytes": wishes.cache_bytes, "plan_with_all": with_all });
        println!("{json:#}");
        return Ok(ExitCode::SUCCESS);
    }
    print!("{}", Page { household: &household, cost: &cost, wishes: &wishes, batch: options.batch, plan: &chosen }.text());
    match all {
        Some(Ok(all)) => print!("{}", changes(&household, &all, &chosen, &wishes, &options.without)),
        Some(Err(error)) => println!("\nWith {} there would be no plan: {error}", options.without.join(" and ")),
        None => {}
    }
    Ok(ExitCode::SUCCESS)
}

struct HeldWeights {
    /// As the planner's cost counts them, in whole bytes a weight.
    bytes: u64,
    bits: u32,
}

impl HeldWeights {
    /// Frozen weights of less than a byte.
    fn scaled(&self, mut cost: ModelCost) -> ModelCost {
        if self.bits < 8 {
            for part in cost.layers.iter_mut().chain([&mut cost.embedding, &mut cost.head]) {
                part.weight_bytes = part.weight_bytes * u64::from(self.bits) / 8;
            }
            cost.shared_bytes = cost.shared_bytes * u64::from(self.bits) / 8;
        }
        cost
    }
}

fn weights(options: &Options, config: &ModelConfig, stored: u64) -> Result<HeldWeights> {
    let parameters = parameter_count(config) as u64;
    let bits = match options.weights {
        Some(Weights::F32) => 32,
        Some(Weights::F16) => 16,
        Some(Weights::Int8) => 8,
        Some(Weights::Int4) => 4,
        None => {
            ensure!(stored > 0, "{} has no weights (*.safetensors): say with --weights how they would be held", options.model.display());
            (stored / parameters.max(1)).clamp(1, 4) as u32 * 8
        }
    };
    Ok(HeldWeights { bytes: parameters * u64::from(bits.div_ceil(8)), bits })
}

/// Seconds of the whole job.
fn seconds(plan: &Plan, wishes: &PlanOptions) -> f64 {
    let steps = f64::from(wishes.steps_per_epoch);
    steps * plan.fill_step_seconds + f64::from(wishes.epochs.saturating_sub(1)) * steps * plan.train_step_seconds + plan.redistribution_seconds
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 1.0 => format!("{:.0} ms", 1000.0 * s),
        s if s < 100.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

struct Page<'a> {
    household: &'a Household,
    cost: &'a ModelCost,
    wishes: &'a PlanOptions,
    batch: u32,
    plan: &'a Plan,
}

impl Page<'_> {
    fn name(&self, node: NodeId) -> &str {
        &self.household.devices[node.0 as usize - 1].name
    }

    fn text(&self) -> String {
        let (plan, wishes) = (self.plan, self.wishes);
        let weights: u64 = self.cost.layers.iter().map(|l| l.weight_bytes).sum::<u64>() + self.cost.embedding.weight_bytes + self.cost.head.weight_bytes - self.cost.shared_bytes;
        let mut lines = vec![
            format!("{} on {}: {} layers, {} of frozen weights, {} of cache", wishes.model, self.household.name, self.cost.layers.len(), human_bytes(weights), human_bytes(wishes.cache_bytes)),
            format!("{} epochs of {} steps with {} samples: {}", wishes.epochs, wishes.steps_per_epoch, self.batch, duration(seconds(plan, wishes))),
            String::new(),
        ];
        let fill = match plan.fill {
            FillMode::Hybrid => "the first epoch fills the cache while it trains",
            FillMode::ForwardOnly => "forward passes fill the cache, then all epochs are trained from it",
        };
        let alone = |single: f64| if single > 0.0 { format!("best device alone {}", duration(single)) } else { "no device could do it alone".into() };
        let mut table = vec![
            vec!["first epoch".into(), format!("{} a step", duration(plan.fill_step_seconds)), format!("{fill}, {} micro-batches; {}", plan.micro_batches, alone(plan.single_device_fill_step_seconds))],
            vec!["later epochs".into(), format!("{} a step", duration(plan.train_step_seconds)), alone(plan.single_device_train_step_seconds)],
            vec!["between".into(), duration(plan.redistribution_seconds), "for cache entries to reach their owners".into()],
        ];
        let bound = &plan.bound;
        let certainty = if bound.is_exact { "no plan is better".into() } else { format!("no plan is below {} s", number(bound.lower_bound_seconds)) };
        table.push(vec!["objective".into(), format!("{} s a step", number(bound.objective_seconds)), certainty]);
        lines.extend(aligned(&table));
        lines.push(String::new());
        let mut table = vec![["device", "layers", "fill samples", "train samples", "keeps samples", "fill memory", "train memory"].map(String::from).to_vec()];
        let slots = |members: &[StageMember], node| members.iter().find(|m| m.node == node).map(|m| (m.slots.end - m.slots.start).to_string());
        let none = || "–".to_owned();
        for reason in &plan.reasons {
            let stage = plan.stages.iter().find(|s| s.members.iter().any(|m| m.node == reason.node));
            table.push(vec![
                self.name(reason.node).into(),
                stage.map_or_else(none, |s| format!("{}–{}", s.layers.start + 1, s.layers.end)),
                stage.and_then(|s| slots(&s.members, reason.node)).unwrap_or_else(none),
                slots(&plan.train, reason.node).unwrap_or_else(none),
                kept(plan, reason.node).map_or_else(none, |kept| kept.to_string()),
                human_bytes(reason.fill_memory_bytes),
                human_bytes(reason.train_memory_bytes),
            ]);
        }
        lines.extend(aligned(&table));
        if !plan.links.is_empty() {
            lines.push(String::new());
            let mut table = vec![["link", "activations", "side gradients", "AllReduce, fill", "AllReduce, train", "cache entries, once", "streamed an epoch"].map(String::from).to_vec()];
            for link in &plan.links {
                let bytes = [link.activation_bytes, link.side_gradient_bytes, link.fill_reduce_bytes, link.train_reduce_bytes, link.redistribution_bytes, link.epoch_stream_bytes];
                let ends = format!("{} – {}", self.name(link.a), self.name(link.b));
                table.push([ends].into_iter().chain(bytes.map(|b| if b == 0 { "–".into() } else { human_bytes(b) })).collect());
            }
            lines.extend(aligned(&table));
        }
        lines.push(String::new());
        lines.extend(plan.reasons.iter().map(|r| r.reason.clone()));
        lines.extend(plan.advice.iter().map(|a| a.sentence.clone()));
        lines.join("\n") + "\n"
    }
}

/// Samples of a mini-batch whose cache entries a device keeps.
fn kept(plan: &Plan, node: NodeId) -> Option<u32> {
    let slots: u32 = plan.keepers().iter().filter(|m| m.node == node).map(|m| m.slots.end - m.slots.start).sum();
    (slots > 0).then_some(slots)
}

/// Three digits that matter.
fn number(seconds: f64) -> String {
    let digits = (2 - seconds.max(1e-9).log10().floor() as i32).clamp(0, 6) as usize;
    format!("{seconds:.digits$}")
}

/// What leaving out devices changes.
fn changes(household: &Household, all: &Plan, chosen: &Plan, wishes: &PlanOptions, without: &[String]) -> String {
    let mut table = vec![vec![format!("without {}", without.join(" and ")), "with all".into(), "without".into()]];
    let mut row = |what: &str, with_all: f64, without: f64| table.push(vec![what.into(), duration(with_all), duration(without)]);
    row("whole job", seconds(all, wishes), seconds(chosen, wishes));
    row("first epoch, a step", all.fill_step_seconds, chosen.fill_step_seconds);
    row("later epochs, a step", all.train_step_seconds, chosen.train_step_seconds);
    for (d, device) in household.devices.iter().enumerate() {
        let node = household.node(d);
        let part = |plan: &Plan| {
            let stage = plan.stages.iter().find(|s| s.members.iter().any(|m| m.node == node)).map(|s| layers_text(s.layers.start, s.layers.end));
            let train = plan.train.iter().find(|m| m.node == node).map(|m| format!("{} samples", m.slots.end - m.slots.start));
            let keeps = kept(plan, node).filter(|_| !plan.stores.is_empty()).map(|kept| format!("keeps {kept}"));
            let parts: Vec<_> = stage.into_iter().chain(train).chain(keeps).collect();
            if parts.is_empty() { "nothing".into() } else { parts.join(", ") }
        };
        table.push(vec![device.name.clone(), part(all), part(chosen)]);
    }
    format!("\n{}\n", aligned(&table).join("\n"))
}

/// Columns as wide as their widest entry.
fn aligned(table: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| table.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let row = |row: &Vec<String>| {
        let cells: Vec<_> = row.iter().enumerate().map(|(i, cell)| format!("{cell}{}", " ".repeat(width(i) - cell.chars().count()))).collect();
        cells.join("  ").trim_end().to_owned()
    };
    table.iter().map(row).collect()
}
