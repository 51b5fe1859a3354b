//! Conversations (`messages` rows) in the model's own chat template, learnt on what the assistant says.
//!
//! What the assistant says is what the template's `{% generation %}` blocks hold. A template without such blocks is
//! rendered once more with private-use characters around every content: an assistant's turn begins where the template
//! asks for an answer (`add_generation_prompt`), or at its content, and ends with the special token behind its content.

use super::records::{broken, utf8};
use super::{DataError, DataFormat, TooLong, Tokenised};
use crate::batch::TokenSample;
use crate::chat::{ChatTemplate, Rendered};
use crate::tokenizer::TextTokenizer;
use minijinja::value::{Value, ValueKind};
use std::ops::Range;

/// What a row looks like.
const EXPECTED: &str = "{\"messages\": [{\"role\": \"user\", \"content\": …}, {\"role\": \"assistant\", \"content\": …}]}";
/// The first of the private-use characters that stand around contents: two for each message.
const FIRST_MARK: u32 = 0xF_0000;
/// As many messages as there are private-use characters for in their plane.
const MAX_MESSAGES: usize = 0x7FFE;

/// A conversation.
#[derive(Clone, Debug, PartialEq)]
pub struct Chat {
    /// Objects with `role` and `content`; contents are trimmed texts.
    pub messages: Vec<Value>,
    /// What the row says of tools, undefined without.
    pub tools: Value,
    /// Where it stands in its file, from 1.
    pub line: usize,
    contents: Vec<String>,
}

impl Chat {
    /// What the last assistant message says, which is what an answer is compared with.
    pub fn answer(&self) -> &str {
        self.last_answer().map_or("", |index| &self.contents[index])
    }

    /// What stands before the last assistant message, as text for people.
    pub fn question(&self) -> &str {
        self.last_answer().and_then(|index| index.checked_sub(1)).map_or("", |index| &self.contents[index])
    }

    /// The ids that ask for the last assistant message.
    pub fn prompt(&self, file: &str, template: &ChatTemplate, tokenizer: &TextTokenizer) -> Result<Vec<u32>, DataError> {
        let before = &self.messages[..self.last_answer().unwrap_or(0)];
        let rendered = self.render(file, template, before, true)?;
        Ok(tokenizer.encode_placed(&rendered.text)?.into_iter().map(|(id, _)| id).collect())
    }

    fn last_answer(&self) -> Option<usize> {
        self.messages.iter().rposition(is_assistant)
    }

    fn render(&self, file: &str, template: &ChatTemplate, messages: &[Value], prompt: bool) -> Result<Rendered, DataError> {
        let refused = |words: String| broken(file, self.line, format!("is refused by the model's chat template: {words}"));
        template.render(messages, &self.tools, prompt).map_err(refused)
    }
}

/// Reads conversations from JSONL or a JSON array.
///
/// # Errors
/// If a row has no list of messages with roles and text contents, or none of the assistant.
pub fn read_chats(file: &str, bytes: &[u8], format: DataFormat) -> Result<Vec<Chat>, DataError> {
    let text = utf8(file, bytes)?;
    // Parsed without a detour over sorted maps: templates print tools in the order they are written in.
    let parse = |line: usize, text: &str| -> Result<Value, DataError> {
        serde_json::from_str(text).map_err(|error| broken(file, line, format!("is not valid JSON ({error}): expected {EXPECTED}")))
    };
    let rows: Vec<(usize, Value)> = match format {
        DataFormat::Jsonl => {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            lines.map(|(index, line)| Ok((index + 1, parse(index + 1, line)?))).collect::<Result<_, DataError>>()?
        }
        DataFormat::Json if !text.trim().is_empty() => {
            let list = parse(1, text)?;
            if list.kind() != ValueKind::Seq {
                return Err(broken(file, 1, format!("is not a list: expected a list of {EXPECTED}")));
            }
            list.try_iter().into_iter().flatten().enumerate().map(|(index, row)| (index + 1, row)).collect()
        }
        DataFormat::Json => Vec::new(),
        _ => return Err(broken(file, 1, format!("is not JSON: conversations come as .jsonl or .json, each {EXPECTED}"))),
    };
    if rows.is_empty() {
        return Err(DataError::Empty { file: file.to_string() });
    }
    rows.into_iter().map(|(line, row)| chat(file, line, &row)).collect()
}

fn chat(file: &str, line: usize, row: &Value) -> Result<Chat, DataError> {
    let bad = |reason: String| broken(file, line, format!("{reason}: expected {EXPECTED}"));
    let field = |value: &Value, name: &str| value.get_attr(name).unwrap_or_default();
    let listed = field(row, "messages");
    if listed.is_undefined() {
        return Err(bad("has no `messages`".into()));
    }
    if listed.kind() != ValueKind::Seq {
        return Err(bad("has `messages` that are not a list".into()));
    }
    let listed: Vec<Value> = listed.try_iter().map(Iterator::collect).unwrap_or_default();
    if listed.len() > MAX_MESSAGES {
        return Err(bad(format!("has {} messages, more than {MAX_MESSAGES}", listed.len())));
    }
    let (mut messages, mut contents) = (Vec::new(), Vec::new());
    for (index, message) in listed.iter().enumerate() {
        let role = field(message, "role");
        if role.as_str().is_none_or(str::is_empty) {
            return Err(bad(format!("has no `role` in message {}", index + 1)));
        }
        let content = content_text(&field(message, "content")).ok_or_else(|| bad(format!("has a `content` that is not a text in message {}", index + 1)))?;
        messages.push(with_content(message, &content));
        contents.push(content);
    }
    if !messages.iter().any(is_assistant) {
        return Err(bad("has no message of the assistant, so there is nothing to learn from it".into()));
    }
    Ok(Chat { messages, tools: field(row, "tools"), line, contents })
}

/// A text, or a list of parts that are all texts; nothing (a tool call) is the empty text.
fn content_text(content: &Value) -> Option<String> {
    if content.is_undefined() || content.is_none() {
        return Some(String::new());
    }
    if let Some(text) = content.as_str() {
        return Some(text.trim().to_string());
    }
    let part = |part: Value| part.get_attr("text").ok()?.as_str().map(str::to_string);
    let parts: Option<Vec<String>> = content.try_iter().ok()?.map(part).collect();
    Some(parts?.concat().trim().to_string())
}

/// The message with another content, its other fields kept.
fn with_content(message: &Value, content: &str) -> Value {
    let keys: Vec<Value> = message.try_iter().map(Iterator::collect).unwrap_or_default();
    let had_content = message.get_attr("content").is_ok_and(|content| !content.is_undefined() && !content.is_none());
    let pair = |key: Value| {
        let value = if had_content && key.as_str() == Some("content") { Value::from(content) } else { message.get_item(&key).unwrap_or_default() };
        (key, value)
    };
    Value::from_pairs(keys.into_iter().map(pair))
}

fn is_assistant(message: &Value) -> bool {
    message.get_attr("role").is_ok_and(|role| role.as_str() == Some("assistant"))
}

/// Turns conversations into samples; `rows` of the result holds each sample's conversation.
///
/// # Errors
/// If the template refuses a conversation or changes contents beyond recognition; if nothing of it is labelled; if it is
/// longer than `context` and those are not to be left out.
pub fn tokenise_chats(
    file: &str,
    chats: &[Chat],
    template: &ChatTemplate,
    tokenizer: &TextTokenizer,
    context: usize,
    too_long: TooLong,
) -> Result<Tokenised, DataError> {
    let mut tokenised = Tokenised::default();
    for (index, chat) in chats.iter().enumerate() {
        let sample = sample(file, chat, template, tokenizer)?;
        let tokens = sample.tokens();
        if tokens > context {
            if too_long == TooLong::Refuse {
                return Err(DataError::TooLong { file: file.to_string(), line: chat.line, tokens, context });
            }
            tokenised.left_out_lines.push(chat.line);
            continue;
        }
        if sample.labels.is_empty() {
            return Err(DataError::NoLabels { file: file.to_string(), line: chat.line });
        }
        tokenised.samples.push(sample);
        tokenised.rows.push(index);
    }
    if tokenised.samples.is_empty() {
        return Err(DataError::AllTooLong { file: file.to_string(), rows: chats.len(), context });
    }
    Ok(tokenised)
}

fn sample(file: &str, chat: &Chat, template: &ChatTemplate, tokenizer: &TextTokenizer) -> Result<TokenSample, DataError> {
    let rendered = chat.render(file, template, &chat.messages, false)?;
    let tokens = tokenizer.encode_placed(&rendered.text)?;
    let mut learnt = vec![false; tokens.len()];
    let mut learn = |range: &Range<usize>| {
        for (learnt, (_, place)) in learnt.iter_mut().zip(&tokens) {
            *learnt |= range.contains(&place.start) && !place.is_empty();
        }
    };
    if template.marks_generation() {
        rendered.generated.iter().for_each(&mut learn);
    } else {
        for turn in turns(file, chat, template, &rendered.text)? {
            // The token that ends the turn is special, or else there is none to learn.
            let ends = |(id, place): &&(u32, Range<usize>)| tokenizer.is_special(*id) && place.start >= turn.content.end && place.start < turn.next;
            let end = tokens.iter().find(ends).map_or(turn.content.end, |(_, place)| place.end);
            learn(&(turn.start..end));
        }
    }
    let labels = (1..tokens.len()).filter(|&t| learnt[t]).map(|t| (t as u32 - 1, tokens[t].0)).collect();
    Ok(TokenSample { ids: tokens.into_iter().map(|(id, _)| id).collect(), labels })
}

/// A turn of the assistant within a rendered conversation, in bytes.
struct Turn {
    /// Where the template asks for the answer.
    start: usize,
    /// What is said.
    content: Range<usize>,
    /// Where the next message's content begins, or the text ends.
    next: usize,
}

fn turns(file: &str, chat: &Chat, template: &ChatTemplate, text: &str) -> Result<Vec<Turn>, DataError> {
    let mark = |index: usize, side: u32| char::from_u32(FIRST_MARK + 2 * index as u32 + side).unwrap_or_default();
    let around = |(index, (message, content)): (usize, (&Value, &String))| with_content(message, &format!("{}{content}{}", mark(index, 0), mark(index, 1)));
    let marked: Vec<Value> = chat.messages.iter().zip(&chat.contents).enumerate().map(around).collect();
    let marked = chat.render(file, template, &marked, false)?.text;
    // Where the marks stand, counted without them.
    let mut starts = vec![None; chat.messages.len()];
    let mut ends = starts.clone();
    let mut plain = String::with_capacity(text.len());
    for character in marked.chars() {
        match (character as u32).checked_sub(FIRST_MARK).map(|at| (at as usize / 2, at % 2)) {
            Some((index, 0)) if index < starts.len() => starts[index] = Some(plain.len()),
            Some((index, _)) if index < ends.len() => ends[index] = Some(plain.len()),
            _ => plain.push(character),
        }
    }
    let unclear = || broken(file, chat.line, "is changed by the model's chat template so that what the assistant says cannot be told: add {% generation %} blocks to the template".into());
    if plain != text {
        return Err(unclear());
    }
    let mut turns = Vec::new();
    for (index, _) in chat.messages.iter().enumerate().filter(|(_, message)| is_assistant(message)) {
        let asked = chat.render(file, template, &chat.messages[..index], true).ok().map(|rendered| rendered.text);
        let asked = asked.filter(|asked| text.starts_with(asked.as_str())).map(|asked| asked.len());
        let Some(end) = ends[index] else { continue };
        let from = starts[index].or(asked).ok_or_else(unclear)?;
        // A template without a generation prompt asks before the assistant is even named: that name is not learnt.
        let plain = chat.render(file, template, &chat.messages[..index], false).ok().map(|rendered| rendered.text.len());
        let names_assistant = |asked: usize| plain == Some(asked) && text.get(asked..from).is_some_and(|between| !between.trim().is_empty());
        let start = asked.filter(|&asked| asked <= from && !names_assistant(asked)).unwrap_or(from);
        let next = starts[index + 1..].iter().flatten().copied().find(|&next| next >= end).unwrap_or(text.len());
        turns.push(Turn { start, content: start.max(from).min(end)..end, next });
    }
    Ok(turns)
}
