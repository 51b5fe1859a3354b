//! Data sets: uploaded ones and the built-in one, split into train and held-out rows, and tokenised for a model.

use crate::data_dir::{DataDir, write_atomically};
use crate::error::{Answer, Refusal};
use crate::models::{Model, Models, clip, free_id};
use crate::store::{Store, StoredDataset};
use barycenter_model::TokenSample;
use barycenter_model::dataset::{DataError, DataFormat, Row, Statistics, TooLong, cut_plain_text, read_rows, split_held_out, tokenise};
use barycenter_protocol::api::{DatasetInfo, DatasetPreview, PreviewRow};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Id of the built-in data set.
pub const DEMO_DATASET: &str = "demo-home";
/// Largest upload.
pub const MAX_UPLOAD_BYTES: usize = 64 << 20;
/// Share of the rows that is held out of training, and the most of them.
const HELD_OUT_FRACTION: f64 = 0.1;
const MAX_HELD_OUT: usize = 200;
/// The split is the same whenever it is made.
const SPLIT_SEED: u64 = 1;
/// Plain text is cut into pieces of at most so many tokens (or the model's context).
const TEXT_WINDOW_TOKENS: usize = 512;
/// Rows shown in a preview.
const PREVIEW_ROWS: usize = 50;
/// Tokenised sets kept in memory.
const KEPT_SETS: usize = 4;

/// The rows of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// To train on.
    pub train: Vec<Row>,
    /// Held out.
    pub held_out: Vec<Row>,
}

/// A data set in the tokens of a model: training samples first, then held-out ones.
#[derive(Clone, Debug)]
pub struct TokenisedSet {
    /// All samples.
    pub samples: Vec<TokenSample>,
    /// Row of every sample.
    pub rows: Vec<Row>,
    /// How many are trained on.
    pub train_samples: u32,
    /// How many are held out.
    pub held_out_samples: u32,
    /// blake3 of the samples.
    pub hash: String,
    /// For people.
    pub statistics: Statistics,
    /// For people.
    pub warnings: Vec<String>,
}

impl TokenisedSet {
    /// Held-out rows, in the order of their samples.
    pub fn held_out_rows(&self) -> &[Row] {
        &self.rows[self.train_samples as usize..]
    }
}

/// A tokenised set and what it was made of: (data set, folder of the model).
type KeptSet = (String, PathBuf, Arc<TokenisedSet>);

/// All data sets, looked up by id.
pub struct Datasets {
    store: Arc<Store>,
    folder: PathBuf,
    demo: Option<PathBuf>,
    kept: Mutex<Vec<KeptSet>>,
}

impl Datasets {
    /// Uploaded ones lie in the data folder.
    pub fn new(store: Arc<Store>, data: &DataDir, models: &Models) -> Self {
        let demo = models.demo_folder().filter(|folder| folder.join("train.jsonl").is_file()).map(|folder| folder.to_owned());
        Self { store, folder: data.datasets(), demo, kept: Mutex::default() }
    }

    /// All of them.
    pub fn list(&self) -> Answer<Vec<DatasetInfo>> {
        let mut list = Vec::new();
        if self.demo.is_some() {
            let rows = self.rows(DEMO_DATASET)?;
            let (train_rows, held_out_rows) = (rows.train.len() as u32, rows.held_out.len() as u32);
            list.push(DatasetInfo { id: DEMO_DATASET.into(), name: "Demo: one home's commands".into(), train_rows, held_out_rows });
        }
        list.extend(self.store.datasets()?.into_iter().map(info));
        Ok(list)
    }

    /// Takes an upload in, after reading all of it. `name` is what the person's file is called.
    pub fn upload(&self, name: &str, content_type: Option<&str>, bytes: &[u8], now: u64) -> Answer<DatasetInfo> {
        let name = clip(name.rsplit(['/', '\\']).next().unwrap_or_default().trim());
        if name.is_empty() {
            return Err(Refusal::bad("the data set has no name: add ?name=… with the name of its file"));
        }
        let format = ending(&name, content_type)?;
        let rows = read(&name, bytes, format)?;
        if rows.len() < 2 {
            return Err(Refusal::bad(format!("{name} holds one row: at least two are needed, better some hundred")));
        }
        let rows = split(rows);
        let stored = self.store.datasets()?;
        let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem);
        let id = free_id(stem, |id| id == DEMO_DATASET || stored.iter().any(|dataset| dataset.id == id));
        let dataset =
            StoredDataset { id, name, format: format.to_owned(), train_rows: rows.train.len() as u32, held_out_rows: rows.held_out.len() as u32 };
        write_atomically(&self.path(&dataset), bytes)?;
        self.store.add_dataset(&dataset, now)?;
        Ok(info(dataset))
    }

    /// Rows of a data set. Reads files: call it where blocking is allowed.
    pub fn rows(&self, id: &str) -> Answer<Rows> {
        if let (DEMO_DATASET, Some(folder)) = (id, &self.demo) {
            let load = |name: &str| read(name, &std::fs::read(folder.join(name))?, "jsonl");
            let train = load("train.jsonl")?;
            return if folder.join("heldout.jsonl").is_file() { Ok(Rows { train, held_out: load("heldout.jsonl")? }) } else { Ok(split(train)) };
        }
        let stored = self.store.datasets()?.into_iter().find(|dataset| dataset.id == id);
        let stored = stored.ok_or_else(|| Refusal::missing(format!("there is no data set `{}`: choose one of the list", clip(id))))?;
        let bytes = std::fs::read(self.path(&stored)).map_err(|error| Refusal::conflict(format!("the data set {} can no longer be read ({error}): upload it again", stored.name)))?;
        Ok(split(read(&stored.name, &bytes, &stored.format)?))
    }

    /// Its samples in the tokens of a model; kept for the next call. Computes: call it where blocking is allowed.
    pub fn tokenised(&self, id: &str, model: &Model) -> Answer<Arc<TokenisedSet>> {
        let lock = || self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, _, set)) = lock().iter().find(|(dataset, folder, _)| dataset == id && *folder == model.folder) {
            return Ok(set.clone());
        }
        let set = Arc::new(tokenised(id, self.rows(id)?, model)?);
        let mut kept = lock();
        if kept.len() >= KEPT_SETS {
            kept.remove(0);
        }
        kept.push((id.to_owned(), model.folder.clone(), set.clone()));
        Ok(set)
    }

    /// First rows and token counts.
    pub fn preview(&self, id: &str, model: &Model) -> Answer<DatasetPreview> {
        let set = self.tokenised(id, model)?;
        let statistics = &set.statistics;
        let row = |at: usize| PreviewRow {
            prompt: set.rows[at].prompt.clone(),
            response: set.rows[at].response.clone(),
            tokens: set.samples[at].tokens() as u32,
            held_out: at >= set.train_samples as usize,
        };
        // Mostly training rows, and some held-out ones.
        let held_out = (set.held_out_samples as usize).min(PREVIEW_ROWS / 5);
        let train = (set.train_samples as usize).min(PREVIEW_ROWS - held_out);
        let first_held_out = set.train_samples as usize;
        Ok(DatasetPreview {
            rows: (0..train).chain(first_held_out..first_held_out + held_out).map(row).collect(),
            total_tokens: statistics.total_tokens,
            labelled_tokens: statistics.labelled_tokens,
            min_tokens: statistics.min_tokens,
            median_tokens: statistics.median_tokens,
            max_tokens: statistics.max_tokens,
            warnings: set.warnings.clone(),
        })
    }

    /// The path comes from the id that was made here, never from a name that was sent.
    fn path(&self, dataset: &StoredDataset) -> PathBuf {
        self.folder.join(format!("{}.{}", dataset.id, dataset.format))
    }
}

fn info(dataset: StoredDataset) -> DatasetInfo {
    DatasetInfo { id: dataset.id, name: dataset.name, train_rows: dataset.train_rows, held_out_rows: dataset.held_out_rows }
}

/// The ending that stands for a format, by the name or else by the content type.
fn ending(name: &str, content_type: Option<&str>) -> Answer<&'static str> {
    let by_name = DataFormat::from_name(name);
    let by_type = || match content_type?.split(';').next()?.trim() {
        "application/x-ndjson" | "application/jsonl" | "application/x-jsonlines" => Some(DataFormat::Jsonl),
        "application/json" => Some(DataFormat::Json),
        "text/csv" => Some(DataFormat::Csv),
        "text/tab-separated-values" => Some(DataFormat::Tsv),
        "text/plain" => Some(DataFormat::Text),
        _ => None,
    };
    let format = match by_name {
        Ok(format) => format,
        Err(error) => by_type().ok_or_else(|| refuse(error))?,
    };
    Ok(match format {
        DataFormat::Jsonl => "jsonl",
        DataFormat::Json => "json",
        DataFormat::Csv => "csv",
        DataFormat::Tsv => "tsv",
        DataFormat::Text => "txt",
    })
}

fn read(name: &str, bytes: &[u8], ending: &str) -> Answer<Vec<Row>> {
    let format = DataFormat::from_name(&format!("x.{ending}")).map_err(refuse)?;
    read_rows(name, bytes, format).map_err(refuse)
}

fn refuse(error: DataError) -> Refusal {
    Refusal::bad(error.to_string())
}

fn split(rows: Vec<Row>) -> Rows {
    let fraction = HELD_OUT_FRACTION.min(MAX_HELD_OUT as f64 / rows.len().max(1) as f64);
    let (train, held_out) = split_held_out(&rows, fraction, SPLIT_SEED);
    let take = |indices: Vec<usize>| indices.into_iter().map(|index| rows[index].clone()).collect();
    Rows { train: take(train), held_out: take(held_out) }
}

fn tokenised(name: &str, rows: Rows, model: &Model) -> Answer<TokenisedSet> {
    let tokenizer = model.tokenizer()?;
    let context = model.config()?.max_positions;
    let window = context.min(TEXT_WINDOW_TOKENS);
    let cut = |rows| cut_plain_text(rows, &tokenizer, window).map_err(refuse);
    let (train_rows, held_out_rows) = (cut(rows.train)?, cut(rows.held_out)?);
    let train = tokenise(name, &train_rows, &tokenizer, context, TooLong::LeaveOut).map_err(refuse)?;
    let held_out = match tokenise(name, &held_out_rows, &tokenizer, context, TooLong::LeaveOut) {
        // Nothing is held out: the run has no held-out loss then.
        Err(DataError::Empty { .. } | DataError::AllTooLong { .. }) => Default::default(),
        other => other.map_err(refuse)?,
    };
    let (train_samples, held_out_samples) = (train.samples.len() as u32, held_out.samples.len() as u32);
    let rows = train.rows.iter().map(|&row| train_rows[row].clone()).chain(held_out.rows.iter().map(|&row| held_out_rows[row].clone())).collect();
    let mut all = train;
    all.samples.extend(held_out.samples);
    all.left_out_lines.extend(held_out.left_out_lines);
    let statistics = Statistics::of(&all);
    let mut warnings = statistics.warnings();
    if held_out_samples == 0 {
        warnings.push("No row is held out: the run will show no held-out loss.".into());
    }
    Ok(TokenisedSet { hash: hash(&all.samples), samples: all.samples, rows, train_samples, held_out_samples, statistics, warnings })
}

fn hash(samples: &[TokenSample]) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut put = |value: u32| {
        hasher.update(&value.to_le_bytes());
    };
    for sample in samples {
        put(sample.ids.len() as u32);
        sample.ids.iter().for_each(|id| put(*id));
        put(sample.labels.len() as u32);
        sample.labels.iter().for_each(|(position, class)| {
            put(*position);
            put(*class);
        });
    }
    hasher.finalize().to_hex().to_string()
}
