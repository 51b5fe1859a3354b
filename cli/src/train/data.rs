//! The rows a run trains on, in tokens, and the questions that are asked before and after.

use super::{Options, sentences, seq2seq};
use anyhow::{Result, anyhow, ensure};
use barycenter_engine::Sample;
use barycenter_model::dataset::{
    Chat, DataFormat, Goal, Row, Tokenised, TooLong, pack_windows, read_chats, read_rows, split_held_out, tokenise, tokenise_chats,
};
use crate::model::Model;
use barycenter_model::{ChatTemplate, ModelConfig, TextTokenizer};
use clap::ValueEnum;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Share of the rows that is held out if no file is given for them.
const HELD_OUT_FRACTION: f64 = 0.1;
/// Plain text is cut into windows of at most so many tokens (or the model's context).
const TEXT_WINDOW_TOKENS: usize = 512;

/// What the rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Task {
    /// Of decoders: `messages` rows are chats, .txt files are text, anything else is prompts. Encoders classify,
    /// encoder-decoder models learn targets.
    Auto,
    /// Prompt and response; the response is learnt.
    Prompt,
    /// Conversations in the model's own chat template; what the assistant says is learnt.
    Chat,
    /// Plain text, cut into windows and learnt throughout.
    Text,
    /// One sentence or two with the name of a class (encoders).
    Classify,
    /// One sentence or two with a number (encoders).
    Regress,
    /// Source and target; the target is learnt (encoder-decoder models).
    Seq2seq,
}

impl Task {
    /// The task for a kind of model.
    ///
    /// # Errors
    /// If the model is not made for the task asked for.
    fn for_model(self, config: &ModelConfig) -> Result<Self> {
        let (kind, tasks, usual) = match (&config.encoder, config.causal) {
            (Some(_), _) => ("an encoder-decoder model", &[Self::Seq2seq][..], Self::Seq2seq),
            (None, false) => ("an encoder", &[Self::Classify, Self::Regress][..], Self::Classify),
            (None, true) => ("a decoder", &[Self::Prompt, Self::Chat, Self::Text][..], Self::Auto),
        };
        if self == Self::Auto {
            return Ok(usual);
        }
        let name = |task: &Self| task.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default();
        let names: Vec<String> = tasks.iter().map(name).collect();
        ensure!(tasks.contains(&self), "--task {} is not for {kind} such as this {}: choose --task {}", name(&self), config.family.model_type(), names.join(" or "));
        Ok(self)
    }
}

/// Samples and questions: training samples first.
pub(crate) struct Data {
    pub(crate) samples: Vec<Sample>,
    pub(crate) train: usize,
    /// One for each held-out sample that has a question; plain text has none.
    pub(crate) questions: Vec<Question>,
    /// What labels of sentences are; other tasks have none.
    pub(crate) goal: Option<Goal>,
}

/// A held-out prompt.
pub(crate) struct Question {
    /// For people.
    pub(crate) text: String,
    /// In tokens.
    pub(crate) prompt: Vec<u32>,
    /// What should be answered.
    pub(crate) answer: String,
}

/// A file's bytes with the name used in messages.
pub(super) struct DataFile {
    pub(super) name: String,
    pub(super) bytes: Vec<u8>,
    pub(super) format: DataFormat,
}

impl DataFile {
    fn read(path: &Path) -> Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = std::fs::read(path).map_err(|error| anyhow!("{} cannot be read ({error}): give a .jsonl, .csv, .tsv or .txt file", path.display()))?;
        let format = DataFormat::from_name(&name)?;
        Ok(Self { name, bytes, format })
    }

    /// What `auto` stands for.
    fn task(&self, asked: Task) -> Task {
        let json = matches!(self.format, DataFormat::Jsonl | DataFormat::Json);
        // The first object of a file decides; a broken one is named by whoever reads it.
        let start = &self.bytes[..self.bytes.len().min(4096)];
        let has_messages = json && String::from_utf8_lossy(start).lines().find(|line| line.contains('{')).is_some_and(|line| line.contains("\"messages\""));
        match asked {
            Task::Auto if self.format == DataFormat::Text => Task::Text,
            Task::Auto if has_messages => Task::Chat,
            Task::Auto => Task::Prompt,
            asked => asked,
        }
    }
}

impl Data {
    /// Reads the files of the options.
    pub(crate) fn read(options: &Options, model: &Model, context: usize) -> Result<Self> {
        let tokenizer = &model.tokenizer;
        let file = DataFile::read(&options.data)?;
        let held_out = options.held_out.as_deref().map(DataFile::read).transpose()?;
        let seed = options.seed.unwrap_or(1);
        let task = file.task(options.task.for_model(&model.config)?);
        options.check_adapter_version(task)?;
        options.check_combination(task)?;
        let mut data = match task {
            Task::Chat => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64);
                Self::chats(&file, held_out.as_ref(), &ChatTemplate::from_folder(&model.path, now)?, tokenizer, context, seed)?
            }
            Task::Text => Self::text(&file, held_out.as_ref(), tokenizer, context, seed)?,
            task @ (Task::Classify | Task::Regress) => sentences::read(options, &file, held_out.as_ref(), tokenizer, task, context)?,
            Task::Seq2seq => seq2seq::read(&file, held_out.as_ref(), tokenizer, &model.config, context, seed)?,
            Task::Auto | Task::Prompt => Self::prompts(&file, held_out.as_ref(), tokenizer, context, seed)?,
        };
        ensure!(data.train > 0, "{} has no training rows", options.data.display());
        data.questions.truncate(options.exact_match_rows);
        Ok(data)
    }

    fn prompts(file: &DataFile, held_out: Option<&DataFile>, tokenizer: &TextTokenizer, context: usize, seed: u64) -> Result<Self> {
        let read = |file: &DataFile| read_rows(&file.name, &file.bytes, file.format);
        let (train, held_out) = split(read(file)?, held_out.map(read).transpose()?, |rows| split_held_out(rows, HELD_OUT_FRACTION, seed));
        let tokenise = |rows: &[Row]| tokenise(&file.name, rows, tokenizer, context, TooLong::LeaveOut);
        let question = |row: &Row| {
            let prompt = tokenizer.encode_prompt(&row.prompt)?;
            Ok(Some(Question { text: row.prompt.clone(), prompt, answer: row.response.clone() }).filter(|question| !question.text.is_empty()))
        };
        Self::of(&train, &held_out, tokenise, question)
    }

    fn chats(file: &DataFile, held_out: Option<&DataFile>, template: &ChatTemplate, tokenizer: &TextTokenizer, context: usize, seed: u64) -> Result<Self> {
        let read = |file: &DataFile| read_chats(&file.name, &file.bytes, file.format);
        let as_rows = |chats: &[Chat]| -> Vec<Row> {
            let row = |chat: &Chat| Row { prompt: chat.question().to_string(), response: chat.answer().to_string(), line: chat.line };
            chats.iter().map(row).collect()
        };
        let (train, held_out) = split(read(file)?, held_out.map(read).transpose()?, |chats| split_held_out(&as_rows(chats), HELD_OUT_FRACTION, seed));
        let tokenise = |chats: &[Chat]| tokenise_chats(&file.name, chats, template, tokenizer, context, TooLong::LeaveOut);
        let question = |chat: &Chat| {
            let prompt = chat.prompt(&file.name, template, tokenizer)?;
            Ok(Some(Question { text: chat.question().to_string(), prompt, answer: chat.answer().to_string() }))
        };
        Self::of(&train, &held_out, tokenise, question)
    }

    fn text(file: &DataFile, held_out: Option<&DataFile>, tokenizer: &TextTokenizer, context: usize, seed: u64) -> Result<Self> {
        let read = |file: &DataFile| read_rows(&file.name, &file.bytes, DataFormat::Text);
        let (train, held_out) = split(read(file)?, held_out.map(read).transpose()?, |rows| split_held_out(rows, HELD_OUT_FRACTION, seed));
        let window = context.min(TEXT_WINDOW_TOKENS);
        Self::of(&train, &held_out, |rows: &[Row]| pack_windows(&file.name, rows, tokenizer, window), |_| Ok(None))
    }

    fn of<R>(
        train: &[R],
        held_out: &[R],
        tokenise: impl Fn(&[R]) -> Result<Tokenised, barycenter_model::dataset::DataError>,
        question: impl Fn(&R) -> Result<Option<Question>>,
    ) -> Result<Self> {
        let mut data = Self { samples: Vec::new(), train: 0, questions: Vec::new(), goal: None };
        if !train.is_empty() {
            data.samples.extend(tokenise(train)?.samples.into_iter().map(Sample::from));
        }
        data.train = data.samples.len();
        if !held_out.is_empty() {
            let tokenised = tokenise(held_out)?;
            data.samples.extend(tokenised.samples.into_iter().map(Sample::from));
            for &row in &tokenised.rows {
                data.questions.extend(question(&held_out[row])?);
            }
        }
        Ok(data)
    }
}

/// About a tenth of rows that are no [`Row`]s, by seed: (training, held out).
pub(super) fn split_rows<R: Clone>(rows: Vec<R>, held_out: Option<Vec<R>>, seed: u64, as_row: impl Fn(&R) -> Row) -> (Vec<R>, Vec<R>) {
    split(rows, held_out, |rows| split_held_out(&rows.iter().map(&as_row).collect::<Vec<_>>(), HELD_OUT_FRACTION, seed))
}

/// (training, held out): the second file's rows, or those that `choose` takes out of the first.
fn split<R: Clone>(rows: Vec<R>, held_out: Option<Vec<R>>, choose: impl Fn(&[R]) -> (Vec<usize>, Vec<usize>)) -> (Vec<R>, Vec<R>) {
    if let Some(held_out) = held_out {
        return (rows, held_out);
    }
    let (train, held_out) = choose(&rows);
    let pick = |indices: &[usize]| indices.iter().map(|&i| rows[i].clone()).collect();
    (pick(&train), pick(&held_out))
}
