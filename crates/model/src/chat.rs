//! The model's own chat template: messages to the text that the model was taught with.
//!
//! Templates are Jinja as `transformers` renders it: blocks trimmed, loop controls, Python's string methods, and the
//! functions `raise_exception`, `strftime_now` and `tojson`. `{% generation %}` blocks mark what the assistant says.

use crate::ModelError;
use chrono::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value};
use minijinja::{Environment, Error, ErrorKind};
use std::fmt::Write as _;

/// Stands at the start and at the end of a `{% generation %}` block while a text is rendered (private-use characters).
const GENERATION: [char; 2] = ['\u{F8F4}', '\u{F8F5}'];
/// Special tokens that `tokenizer_config.json` may name, and templates may write.
const SPECIAL_TOKENS: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A parsed chat template.
#[derive(Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    marks_generation: bool,
}

/// What a template gives for a conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Byte ranges of the `{% generation %}` blocks, ascending; empty where the template has none.
    pub generated: Vec<std::ops::Range<usize>>,
}

impl ChatTemplate {
    /// Takes the template's text, and `tokenizer_config.json` for the special tokens it writes (`{}` if there is none).
    /// `now_unix_seconds` is what `strftime_now` shows, in UTC.
    ///
    /// # Errors
    /// [`ModelError::BadChatTemplate`] if the template is not valid Jinja or the config is not JSON.
    pub fn parse(template: &str, tokenizer_config: &str, now_unix_seconds: i64) -> Result<Self, ModelError> {
        let bad = |reason: String| ModelError::BadChatTemplate { reason };
        let config: serde_json::Value = serde_json::from_str(tokenizer_config).map_err(|error| bad(format!("tokenizer_config.json is not JSON: {error}")))?;
        let (template, marks_generation) = mark_generation(template);
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| bad(describe(&error)))?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |text: String| -> Result<Value, Error> { Err(Error::new(ErrorKind::InvalidOperation, text)) });
        environment.add_function("strftime_now", move |format: String| strftime(now_unix_seconds, &format));
        environment.add_filter("tojson", to_json);
        for name in SPECIAL_TOKENS {
            // A token is its text, or an object with its text and how it is matched.
            let token = config[name].as_str().or_else(|| config[name]["content"].as_str());
            if let Some(token) = token {
                environment.add_global(name, token.to_string());
            }
        }
        environment.add_template_owned("chat", template).map_err(|error| bad(describe(&error)))?;
        Ok(Self { environment, marks_generation })
    }

    /// Reads `chat_template.jinja` of a folder, or `chat_template` in its `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`ModelError::NoChatTemplate`] if there is neither; those of [`ChatTemplate::parse`].
    #[cfg(not(target_arch = "wasm32"))]
    pub fn from_folder(folder: &std::path::Path, now_unix_seconds: i64) -> Result<Self, ModelError> {
        let read = |name: &str| if folder.join(name).is_file() { crate::folder::read_text(folder, name).map(Some) } else { Ok(None) };
        let config = read("tokenizer_config.json")?.unwrap_or_else(|| "{}".into());
        let template = match read("chat_template.jinja")? {
            Some(template) => Some(template),
            None => named_template(&config)?,
        };
        let template = template.ok_or_else(|| ModelError::NoChatTemplate { folder: folder.display().to_string() })?;
        Self::parse(&template, &config, now_unix_seconds)
    }

    /// Whether the template itself says what the assistant generates.
    pub fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// Renders messages (objects with `role` and `content`); with `add_generation_prompt`, ready for an answer. `tools`
    /// are handed through, `none` if the conversation has none.
    ///
    /// # Errors
    /// What the template says against the messages (`raise_exception`), or why it cannot be rendered: one line.
    pub fn render(&self, messages: &[Value], tools: &Value, add_generation_prompt: bool) -> Result<Rendered, String> {
        let template = self.environment.get_template("chat").map_err(|error| describe(&error))?;
        let tools = if tools.is_undefined() { Value::from(()) } else { tools.clone() };
        let context = minijinja::context! { messages => messages, tools => tools, documents => Value::from(()), add_generation_prompt };
        let text = template.render(context).map_err(|error| describe(&error))?;
        Ok(if self.marks_generation { take_marks(&text) } else { Rendered { text, generated: Vec::new() } })
    }
}

/// The template in `tokenizer_config.json`: a text, or a list of named ones of which `default` counts.
fn named_template(config: &str) -> Result<Option<String>, ModelError> {
    let bad = |error| ModelError::BadChatTemplate { reason: format!("tokenizer_config.json is not JSON: {error}") };
    let config: serde_json::Value = serde_json::from_str(config).map_err(bad)?;
    let template = match &config["chat_template"] {
        serde_json::Value::Array(list) => list.iter().find(|named| named["name"] == "default").map(|named| &named["template"]),
        template => Some(template),
    };
    Ok(template.and_then(|template| template.as_str()).map(str::to_string))
}

/// Turns `{% generation %}` and `{% endgeneration %}` into marks in the text, white-space control kept.
fn mark_generation(template: &str) -> (String, bool) {
    let mut marked = String::with_capacity(template.len());
    let mut rest = template;
    let mut found = false;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}").map(|end| end + 2) else { break };
        let tag = &rest[start..start + len];
        let inner = tag[2..len - 2].trim_matches(['-', '+']).trim();
        marked.push_str(&rest[..start]);
        match ["generation", "endgeneration"].iter().position(|name| *name == inner) {
            // An `if` is a block as the tag it stands for: white space around it is trimmed alike.
            Some(side) => {
                found = true;
                let open = if tag[2..].starts_with(['-', '+']) { &tag[..3] } else { "{%" };
                let close = if tag[..len - 2].ends_with(['-', '+']) { &tag[len - 3..] } else { "%}" };
                let mark = GENERATION[side];
                let _ = write!(marked, "{open} if true -%}}{{{{ \"{mark}\" }}}}{{%- endif {close}");
            }
            None => marked.push_str(tag),
        }
        rest = &rest[start + len..];
    }
    marked.push_str(rest);
    (marked, found)
}

/// Takes the marks of generation blocks out of a rendered text.
fn take_marks(marked: &str) -> Rendered {
    let mut text = String::with_capacity(marked.len());
    let (mut generated, mut open) = (Vec::new(), None);
    for character in marked.chars() {
        if character == GENERATION[0] {
            open = Some(text.len());
        } else if character == GENERATION[1] {
            generated.extend(open.take().map(|start| start..text.len()));
        } else {
            text.push(character);
        }
    }
    Rendered { text, generated }
}

/// The date and time as Python's `strftime` writes them.
fn strftime(now_unix_seconds: i64, format: &str) -> Result<String, Error> {
    let bad = || Error::new(ErrorKind::InvalidOperation, format!("strftime_now cannot write {format:?}"));
    let now = DateTime::from_timestamp(now_unix_seconds, 0).ok_or_else(bad)?;
    let mut text = String::new();
    write!(text, "{}", now.format(format)).map_err(|_| bad())?;
    Ok(text)
}

/// JSON as Python's `json.dumps(ensure_ascii=False)` writes it, not escaped for HTML as Jinja's own filter does.
fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut bytes = Vec::new();
    let value = Serde(value);
    let written = match indent {
        Some(width) => {
            let indent = " ".repeat(width);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            serde::Serialize::serialize(&value.0, &mut serde_json::Serializer::with_formatter(&mut bytes, formatter))
        }
        None => serde::Serialize::serialize(&value.0, &mut serde_json::Serializer::with_formatter(&mut bytes, PythonFormatter)),
    };
    let bad = |error: String| Error::new(ErrorKind::BadSerialization, error);
    written.map_err(|error| bad(error.to_string()))?;
    Ok(Value::from_safe_string(String::from_utf8(bytes).map_err(|error| bad(error.to_string()))?))
}

/// A space behind every comma and colon.
struct PythonFormatter;

impl serde_json::ser::Formatter for PythonFormatter {
    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// What a template has to say, on one line, with its line number where it is a fault of the template.
fn describe(error: &Error) -> String {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_string);
    let detail = detail.split_whitespace().collect::<Vec<_>>().join(" ");
    match (error.kind(), error.line()) {
        (ErrorKind::InvalidOperation, _) | (_, None) => detail,
        (_, Some(line)) => format!("line {line}: {detail}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(json: serde_json::Value) -> Vec<Value> {
        json.as_array().unwrap().iter().map(|message| Value::from(Serde(message.clone()))).collect()
    }

    fn render(template: &str, json: serde_json::Value, prompt: bool) -> Result<Rendered, String> {
        let config = r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>"}"#;
        // 2026-03-01 12:00:00 UTC.
        ChatTemplate::parse(template, config, 1_772_366_400).unwrap().render(&messages(json), &Value::UNDEFINED, prompt)
    }

    /// What `transformers` 5 renders, `jinja2`'s white space included.
    #[test]
    fn templates_render_as_transformers_does() {
        let chat = serde_json::json!([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi <&> 'ü'"}, {"role": "assistant", "content": "Hello"}]);
        let chatml = "{% for message in messages %}\n    {{- '<|im_start|>' + message.role + '\n' + message['content'].strip() + '<|im_end|>\n' -}}\n{% endfor %}\n{% if add_generation_prompt %}\n    {{- '<|im_start|>assistant\n' }}\n{%- endif %}\n";
        assert_eq!(render(chatml, chat.clone(), true).unwrap().text, "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi <&> 'ü'<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>assistant\n");
        let loops = "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}[{{ loop.index0 }}:{{ m.content | tojson }}]{% if loop.index0 == 1 %}{% break %}{% endif %}{% endfor %}{{ strftime_now('%d %b %Y') }}{{ eos_token }}";
        assert_eq!(render(loops, chat.clone(), false).unwrap().text, "<s>[1:\"Hi <&> 'ü'\"]01 Mar 2026</s>");
        let json = "{{ messages[0] | tojson }}\n{{ messages[2] | tojson(indent=2) }}";
        assert_eq!(render(json, chat, false).unwrap().text, "{\"content\": \"Be kind.\", \"role\": \"system\"}\n{\n  \"content\": \"Hello\",\n  \"role\": \"assistant\"\n}");
    }

    #[test]
    fn generation_blocks_are_found_and_leave_no_trace() {
        let template = "{% for m in messages %}\n{% if m.role == 'assistant' %}\nA: {% generation %}{{ m.content }}{{ eos_token }}\n{% endgeneration %}\n{% else %}\nU: {{ m.content }}\n{% endif %}\n{% endfor %}";
        let chat = serde_json::json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]);
        let rendered = render(template, chat, false).unwrap();
        assert_eq!(rendered.text, "U: x\nA: y</s>\n");
        assert_eq!(rendered.generated.iter().map(|range| &rendered.text[range.clone()]).collect::<Vec<_>>(), ["y</s>\n"]);
    }

    #[test]
    fn what_a_template_refuses_is_said_in_its_words() {
        let refused = render("{{ raise_exception('Roles must\nalternate') }}", serde_json::json!([]), false).unwrap_err();
        assert_eq!(refused, "Roles must alternate");
        let broken = ChatTemplate::parse("{% for %}", "{}", 0).err().unwrap().to_string();
        assert!(broken.starts_with("the model's chat template cannot be used (line 1:"), "{broken}");
    }

    #[test]
    fn a_folder_gives_its_template_file_first_and_its_default_one_of_several() {
        let folder = tempfile::tempdir().unwrap();
        let none = ChatTemplate::from_folder(folder.path(), 0).err().unwrap().to_string();
        assert!(none.contains("has no chat template"), "{none}");
        let config = serde_json::json!({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]});
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        let text = || ChatTemplate::from_folder(folder.path(), 0).unwrap().render(&[], &Value::UNDEFINED, false).unwrap().text;
        assert_eq!(text(), "d");
        std::fs::write(folder.path().join("chat_template.jinja"), "file").unwrap();
        assert_eq!(text(), "file");
    }
}
