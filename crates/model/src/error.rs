//! What can be wrong with a model folder, in sentences a person can act on.

/// Why a model could not be read; each message is one sentence: what was expected, what came, what to do.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// `config.json` is not JSON.
    #[error("config.json is not valid JSON ({0}): copy the file again from where the model came")]
    ConfigNotJson(String),
    /// `generation_config.json` is not JSON.
    #[error("generation_config.json is not valid JSON ({0}): copy the file again from where the model came, or remove it")]
    GenerationConfigNotJson(String),
    /// `config.json` lacks a key that has no default.
    #[error("config.json has no `{key}`: copy the complete file from where the model came")]
    MissingKey {
        /// The key.
        key: &'static str,
    },
    /// `config.json` has a value that cannot be run.
    #[error("config.json says `{key}` is {got}, but it must be {expected}")]
    InvalidKey {
        /// The key.
        key: &'static str,
        /// What it holds.
        got: String,
        /// What could be run.
        expected: String,
    },
    /// A family this project does not run.
    #[error("the model family `{model_type}` is not supported: choose a model whose config.json says model_type {supported}")]
    UnknownFamily {
        /// What `model_type` says.
        model_type: String,
        /// The ones that run.
        supported: String,
    },
    /// A classification or regression head on a family that has none.
    #[error("models of the family `{model_type}` get no classification or regression head here: choose an encoder such as BERT")]
    NoClassifier {
        /// What `model_type` says.
        model_type: &'static str,
    },
    /// There is no such folder.
    #[error("the model folder {folder} does not exist: give a folder with config.json, model.safetensors (or its index and parts) and tokenizer.json")]
    NoFolder {
        /// The folder.
        folder: String,
    },
    /// The folder lacks a file.
    #[error("the model folder {folder} has no {file}: copy it there, a folder needs config.json, model.safetensors (or its index and parts) and tokenizer.json")]
    MissingFile {
        /// The folder.
        folder: String,
        /// The file.
        file: String,
    },
    /// The operating system refused.
    #[error("{file} could not be read ({reason}): check that it exists and may be read")]
    Io {
        /// Path.
        file: String,
        /// The system's words.
        reason: String,
    },
    /// A converted model that could not be stored.
    #[error("the model folder {folder} could not be written ({reason}): free some space or choose another place")]
    NotWritten {
        /// The folder.
        folder: String,
        /// The system's words.
        reason: String,
    },
    /// A safetensors file whose header cannot be understood.
    #[error("{file} is not a safetensors file ({reason}): copy it again from where the model came")]
    BadHeader {
        /// File name.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A GGUF file that cannot be understood, or holds what cannot be computed.
    #[error("{file} cannot be used as a GGUF file: {reason}")]
    BadGguf {
        /// File name.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A GGUF tensor in a format that is not read.
    #[error("the tensor `{name}` is stored as {dtype}, and of GGUF's types F32, F16, BF16, Q8_0, Q4_0, Q4_K and Q6_K can be read: take such a version of the model")]
    UnsupportedQuantisation {
        /// By the file's own name.
        name: String,
        /// As `ggml` names it.
        dtype: String,
    },
    /// A safetensors file whose length is not what its header says.
    #[error("{file} has {got_bytes} bytes where its header promises {expected_bytes}: it was cut off or damaged, copy it again")]
    WrongLength {
        /// File name.
        file: String,
        /// By the header.
        expected_bytes: u64,
        /// On disk.
        got_bytes: u64,
    },
    /// `model.safetensors.index.json` cannot be used.
    #[error("model.safetensors.index.json {reason}: copy it again from where the model came")]
    BadIndex {
        /// What is wrong with it.
        reason: String,
    },
    /// A parameter the config calls for is absent.
    #[error("the weights lack the tensor `{name}`: config.json and the weight files must come from the same model")]
    MissingTensor {
        /// The parameter.
        name: String,
    },
    /// A parameter has another shape than the config says.
    #[error("the tensor `{name}` has shape {got:?} where config.json calls for {expected:?}: config.json and the weight files must come from the same model")]
    WrongShape {
        /// The parameter.
        name: String,
        /// From the config.
        expected: Vec<usize>,
        /// In the file.
        got: Vec<usize>,
    },
    /// The file has a head of its own, the config says it has none.
    #[error("config.json says that the head is the embedding (`tie_word_embeddings`), but the weights hold a `{name}` that differs from `{embedding}`: set `tie_word_embeddings` to false, or take config.json and the weight files from the same model")]
    UntiedFile {
        /// The head.
        name: String,
        /// The embedding.
        embedding: String,
    },
    /// A parameter is stored in a number format that cannot be computed with.
    #[error("the tensor `{name}` is stored as {dtype}, but weights must be F32, F16 or BF16 (or Q8_0 or Q4_0 in whole blocks): take that version of the model")]
    WrongDtype {
        /// The parameter.
        name: String,
        /// As the file names it.
        dtype: String,
    },
    /// A weight that is not a number, or infinite.
    #[error("the tensor `{name}` holds a value that is not a finite number (element {element}): the file is damaged or the model broken, take another copy")]
    NotFinite {
        /// The parameter.
        name: String,
        /// The first such element (of a block of 32, its first).
        element: usize,
    },
    /// Rows were asked for that the tensor does not have.
    #[error("rows {start}..{end} of the tensor `{name}` were asked for, but it has {rows}")]
    NoSuchRows {
        /// The parameter.
        name: String,
        /// First row.
        start: usize,
        /// Row after the last.
        end: usize,
        /// Rows there are.
        rows: usize,
    },
    /// Bytes that are not what the manifest says.
    #[error("the bytes received for the tensor `{name}` are not the ones its hash names: fetch them again")]
    WrongContent {
        /// The parameter.
        name: String,
    },
    /// A tokenizer that cannot be used.
    #[error("tokenizer.json cannot be used ({reason}): copy it again from where the model came")]
    BadTokenizer {
        /// What is wrong with it.
        reason: String,
    },
    /// A model without a chat template.
    #[error("the model folder {folder} has no chat template (chat_template.jinja, or `chat_template` in tokenizer_config.json): choose a model made for chat, or give prompt and response columns")]
    NoChatTemplate {
        /// The folder.
        folder: String,
    },
    /// A chat template that cannot be read.
    #[error("the model's chat template cannot be used ({reason}): copy chat_template.jinja and tokenizer_config.json again from where the model came")]
    BadChatTemplate {
        /// What is wrong with it.
        reason: String,
    },
    /// A tokenizer of another model.
    #[error("tokenizer.json has token ids up to {largest}, but the model's embedding has {rows} rows: they must come from the same model")]
    VocabularyTooLarge {
        /// Largest id.
        largest: u32,
        /// Rows of the embedding.
        rows: usize,
    },
}
