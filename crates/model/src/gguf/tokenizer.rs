//! From a GGUF file's vocabulary to a `tokenizer.json` that makes the same tokens.
//!
//! Two kinds are read: byte-level BPE with merges (`gpt2`), whose way to cut a text into words has a name, and
//! SentencePiece's BPE (`llama`), whose merges follow from the scores of its pieces.

use super::header::GgufHeader;
use crate::ModelError;
use serde_json::{Value, json};
use std::collections::HashMap;

/// Where a piece has a space.
const SPACE: &str = "▁";

/// Words as Llama 3 cuts them: contractions, letters with one mark before them, up to three digits, marks, line ends, spaces.
const LLAMA3_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As Qwen 2 does: the same with single digits.
const QWEN2_WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// What a token is, by its number in `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl GgufHeader {
    /// The text of a `tokenizer.json` that makes the same tokens.
    pub fn tokenizer_json(&self) -> Result<String, ModelError> {
        let vocabulary = Vocabulary::read(self)?;
        let json = match self.text("tokenizer.ggml.model") {
            Some("gpt2") => byte_level(self, &vocabulary)?,
            Some("llama") => sentence_piece(self, &vocabulary)?,
            Some(other) => return Err(self.bad(format!("its tokenizer is of kind `{other}`, and `gpt2` and `llama` can be read"))),
            None => return Err(self.bad("it holds no tokenizer")),
        };
        Ok(json.to_string())
    }
}

struct Vocabulary<'a> {
    tokens: &'a [String],
    kinds: Vec<Kind>,
}

impl<'a> Vocabulary<'a> {
    fn read(header: &'a GgufHeader) -> Result<Self, ModelError> {
        let tokens = header.texts("tokenizer.ggml.tokens").ok_or_else(|| header.bad("it holds no tokenizer.ggml.tokens"))?;
        let kinds = match header.numbers("tokenizer.ggml.token_type") {
            None => vec![Kind::Normal; tokens.len()],
            Some(numbers) if numbers.len() == tokens.len() => numbers.iter().map(|number| kind(*number)).collect(),
            Some(numbers) => return Err(header.bad(format!("it has {} tokens and {} token types", tokens.len(), numbers.len()))),
        };
        Ok(Self { tokens, kinds })
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &'a str, Kind)> {
        self.tokens.iter().zip(&self.kinds).enumerate().map(|(id, (token, kind))| (id, token.as_str(), *kind))
    }

    /// Token to id; placeholders are left out, and of a token that is there twice the first counts.
    fn ids(&self) -> HashMap<&'a str, usize> {
        let mut ids = HashMap::new();
        for (id, token, kind) in self.iter() {
            if kind != Kind::Unused {
                ids.entry(token).or_insert(id);
            }
        }
        ids
    }

    /// Tokens that are found in a text before anything else is done with it.
    fn added(&self) -> Vec<Value> {
        self.iter()
            .filter(|(_, token, kind)| matches!(kind, Kind::Control | Kind::UserDefined | Kind::Unknown) && !token.is_empty())
            .map(|(id, token, kind)| {
                json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": kind != Kind::UserDefined })
            })
            .collect()
    }
}

fn kind(number: f64) -> Kind {
    match number as i64 {
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte,
        _ => Kind::Normal,
    }
}

fn byte_level(header: &GgufHeader, vocabulary: &Vocabulary) -> Result<Value, ModelError> {
    let pre = header.text("tokenizer.ggml.pre").unwrap_or("default");
    let split = |pattern: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
    let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
    let sequence = |steps: Vec<Value>| json!({ "type": "Sequence", "pretokenizers": steps });
    let (normalizer, pre_tokenizer, starts_text) = match pre {
        "default" | "gpt-2" => (Value::Null, bytes(true), false),
        "smollm" => (Value::Null, sequence(vec![json!({ "type": "Digits", "individual_digits": true }), bytes(true)]), false),
        "llama-bpe" | "llama3" | "llama-v3" => (Value::Null, sequence(vec![split(LLAMA3_WORDS), bytes(false)]), true),
        "qwen2" | "deepseek-r1-qwen" => (json!({ "type": "NFC" }), sequence(vec![split(QWEN2_WORDS), bytes(false)]), false),
        other => return Err(header.bad(format!("its tokenizer cuts words as `{other}`, and default, gpt-2, smollm, llama-bpe and qwen2 are known"))),
    };
    let merges = header.texts("tokenizer.ggml.merges").ok_or_else(|| header.bad("it holds no tokenizer.ggml.merges"))?;
    let merges: Vec<(&str, &str)> = merges
        .iter()
        .map(|merge| merge.split_once(' ').ok_or_else(|| header.bad(format!("its merge `{merge}` is not two tokens"))))
        .collect::<Result<_, _>>()?;
    Ok(json!({
        "version": "1.0",
        "added_tokens": vocabulary.added(),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": template(header, vocabulary, starts_text)?,
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary.ids(), "merges": merges,
            // Llama 3 takes a word whole where it is a token, whatever the merges say.
            "ignore_merges": matches!(pre, "llama-bpe" | "llama3" | "llama-v3"),
        },
    }))
}

fn sentence_piece(header: &GgufHeader, vocabulary: &Vocabulary) -> Result<Value, ModelError> {
    let scores = header.numbers("tokenizer.ggml.scores").ok_or_else(|| header.bad("it holds no tokenizer.ggml.scores"))?;
    if scores.len() != vocabulary.tokens.len() {
        return Err(header.bad(format!("it has {} tokens and {} scores", vocabulary.tokens.len(), scores.len())));
    }
    let ids = vocabulary.ids();
    let unknown = vocabulary.iter().find(|(_, _, kind)| *kind == Kind::Unknown).map(|(_, token, _)| token);
    let spaces = json!({ "type": "Replace", "pattern": { "String": " " }, "content": SPACE });
    let prefix = header.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let normalizer = if prefix { json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": SPACE }, spaces] }) } else { spaces };
    let mut decoders = vec![json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }), json!({ "type": "ByteFallback" }), json!({ "type": "Fuse" })];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    Ok(json!({
        "version": "1.0",
        "added_tokens": vocabulary.added(),
        "normalizer": normalizer,
        "pre_tokenizer": null,
        "post_processor": template(header, vocabulary, true)?,
        "decoder": { "type": "Sequence", "decoders": decoders },
        "model": {
            "type": "BPE", "unk_token": unknown, "fuse_unk": true, "byte_fallback": vocabulary.kinds.contains(&Kind::Byte),
            "merges": merges_from_scores(vocabulary, &ids, scores), "vocab": ids, "ignore_merges": false,
        },
    }))
}

/// The merges that build each piece from two others, the best-scored piece first: what SentencePiece does greedily.
fn merges_from_scores<'a>(vocabulary: &Vocabulary<'a>, ids: &HashMap<&'a str, usize>, scores: &[f64]) -> Vec<(&'a str, &'a str)> {
    let mut merges = Vec::new();
    for (id, piece, kind) in vocabulary.iter() {
        if !matches!(kind, Kind::Normal | Kind::UserDefined) {
            continue;
        }
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(&left_id), Some(&right_id)) = (ids.get(left), ids.get(right)) {
                merges.push((scores[id], id, left_id, right_id, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
    merges.into_iter().map(|merge| (merge.4, merge.5)).collect()
}

/// Puts the start token in front of a text and the end token behind it where the file says so.
fn template(header: &GgufHeader, vocabulary: &Vocabulary, starts_text: bool) -> Result<Value, ModelError> {
    let token = |kind: &str, default: bool| -> Result<Option<(&str, u64)>, ModelError> {
        if !header.flag(&format!("tokenizer.ggml.add_{kind}_token")).unwrap_or(default) {
            return Ok(None);
        }
        let Some(id) = header.natural(&format!("tokenizer.ggml.{kind}_token_id")) else { return Ok(None) };
        let token = usize::try_from(id).ok().and_then(|id| vocabulary.tokens.get(id));
        let token = token.ok_or_else(|| header.bad(format!("its {kind} token {id} is not in its vocabulary of {}", vocabulary.tokens.len())))?;
        Ok(Some((token, id)))
    };
    let (start, end) = (token("bos", starts_text)?, token("eos", false)?);
    if start.is_none() && end.is_none() {
        return Ok(json!({ "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true }));
    }
    let special = |token: &Option<(&str, u64)>| token.map(|(token, _)| json!({ "SpecialToken": { "id": token, "type_id": 0 } }));
    let text = |name: &str| Some(json!({ "Sequence": { "id": name, "type_id": 0 } }));
    let single: Vec<Value> = [special(&start), text("A"), special(&end)].into_iter().flatten().collect();
    let pair: Vec<Value> = [special(&start), text("A"), special(&end), special(&start), text("B"), special(&end)].into_iter().flatten().collect();
    let entry = |(token, id): (&str, u64)| (token.to_string(), json!({ "id": token, "ids": [id], "tokens": [token] }));
    let specials: serde_json::Map<String, Value> = start.into_iter().chain(end).map(entry).collect();
    Ok(json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": specials }))
}
