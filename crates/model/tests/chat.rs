//! Chat templates against what `transformers` renders (tests/chat/make_expected.py), and what is learnt of a chat.

#![cfg(feature = "tokenizers")]
#![allow(clippy::unwrap_used)]

use barycenter_model::chat::ChatTemplate;
use barycenter_model::dataset::{Chat, DataFormat, TooLong, read_chats, tokenise_chats};
use barycenter_model::{ModelConfig, TextTokenizer};
use minijinja::value::{Serde, Value};

/// What the script's clock shows: 2026-03-01 12:00:00 UTC.
const NOW: i64 = 1_772_366_400;
const TOKENS: &str = r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}}"#;

fn template(name: &str) -> ChatTemplate {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat").join(name);
    ChatTemplate::parse(&std::fs::read_to_string(path).unwrap(), TOKENS, NOW).unwrap()
}

#[test]
fn every_template_renders_as_in_transformers() {
    // Read without sorting keys: a template prints tools in the order they have.
    let cases: Value = serde_json::from_str(include_str!("chat/expected.json")).unwrap();
    let mut compared = 0;
    for case in cases.try_iter().unwrap() {
        let field = |name: &str| case.get_attr(name).unwrap();
        let name = field("template").to_string();
        let messages: Vec<Value> = field("messages").try_iter().unwrap().collect();
        let rendered = template(&name).render(&messages, &field("tools"), field("add_generation_prompt").is_true());
        match (rendered, field("refused").as_str()) {
            (Ok(rendered), None) => {
                let expected = field("text");
                assert_eq!(rendered.text, expected.as_str().unwrap(), "{name} {messages:?}");
                // The script counts characters.
                let count = |bytes: usize| rendered.text[..bytes].chars().count() as u64;
                let spans: Vec<[u64; 2]> = rendered.generated.iter().map(|span| [count(span.start), count(span.end)]).collect();
                assert_eq!(serde_json::to_value(spans).unwrap(), serde_json::to_value(field("generated")).unwrap(), "{name} {messages:?}");
            }
            (Err(words), Some(expected)) => assert_eq!(words, expected, "{name}"),
            (rendered, expected) => panic!("{name}: {rendered:?} where transformers gives {expected:?}"),
        }
        compared += 1;
    }
    assert_eq!(compared, 38);
}

/// Every character is a token, and `<|end|>` and `</s>` are special ones.
fn tokenizer() -> TextTokenizer {
    let characters = (' '..='~').chain(['\n', 'ü']);
    let mut vocabulary = serde_json::Map::from_iter([("<|end|>".to_string(), 0.into()), ("</s>".to_string(), 1.into())]);
    vocabulary.extend(characters.enumerate().map(|(at, character)| (character.to_string(), (at + 2).into())));
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
    };
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(0, "<|end|>"), special(1, "</s>")],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?s)."}, "behavior": "Isolated", "invert": false},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "?"}
    });
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 12, "vocab_size": 128, "eos_token_id": 1
    });
    TextTokenizer::parse(json.to_string().as_bytes(), &ModelConfig::parse(&config.to_string()).unwrap()).unwrap()
}

fn text_of(id: u32) -> String {
    match id {
        0 => "<|end|>".into(),
        1 => "</s>".into(),
        id => (' '..='~').chain(['\n', 'ü']).nth(id as usize - 2).unwrap().to_string(),
    }
}

fn chat(messages: serde_json::Value) -> Chat {
    let row = serde_json::json!({"messages": messages}).to_string();
    read_chats("x.jsonl", row.as_bytes(), DataFormat::Jsonl).unwrap().remove(0)
}

/// The stretches of a chat that are learnt.
fn learnt(name: &str, chat: &Chat) -> Vec<String> {
    let tokenised = tokenise_chats("x.jsonl", std::slice::from_ref(chat), &template(name), &tokenizer(), 1_000, TooLong::Refuse).unwrap();
    let sample = &tokenised.samples[0];
    let mut stretches: Vec<String> = Vec::new();
    let mut last = None;
    for &(t, class) in &sample.labels {
        assert_eq!(sample.ids[t as usize + 1], class);
        if last != t.checked_sub(1) || stretches.is_empty() {
            stretches.push(String::new());
        }
        stretches.last_mut().unwrap().push_str(&text_of(class));
        last = Some(t);
    }
    stretches
}

#[test]
fn only_what_the_assistant_says_is_learnt_with_the_token_that_ends_it() {
    let two = serde_json::json!([
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "a"},
        {"role": "user", "content": "assistant"}, {"role": "assistant", "content": " ü, b\n"}
    ]);
    for (name, end) in [("marks.jinja", "<|end|>"), ("headers.jinja", "</s>"), ("silent.jinja", "<|end|>"), ("marked.jinja", "<|end|>")] {
        assert_eq!(learnt(name, &chat(two.clone())), [format!("a{end}"), format!("ü, b{end}")], "{name}");
    }
    // Here the space before an answer comes with the answer.
    assert_eq!(learnt("brackets.jinja", &chat(two)), [" a</s>", " ü, b</s>"]);
}

#[test]
fn thoughts_that_a_template_drops_are_not_learnt_and_those_it_keeps_are() {
    let thinking = serde_json::json!([
        {"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\nfirst\n</think>\n\nb"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "<think>\nthen\n</think>\n\nd"}
    ]);
    assert_eq!(learnt("thoughts.jinja", &chat(thinking)), ["b<|end|>", "<think>\nthen\n</think>\n\nd<|end|>"]);
}

#[test]
fn the_prompt_of_a_chat_is_where_its_last_answer_begins() {
    let chat = chat(serde_json::json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]));
    assert_eq!((chat.question(), chat.answer()), ("a", "b"));
    let prompt = chat.prompt("x.jsonl", &template("silent.jinja"), &tokenizer()).unwrap();
    assert_eq!(prompt.into_iter().map(text_of).collect::<String>(), "<|user|>\na<|end|>\n");
}

#[test]
fn bad_chats_are_named_with_their_line() {
    let good = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    let refused = |second: &str| {
        let read = read_chats("x.jsonl", format!("{good}\n{second}\n").as_bytes(), DataFormat::Jsonl);
        let message = read.and_then(|chats| tokenise_chats("x.jsonl", &chats, &template("brackets.jinja"), &tokenizer(), 40, TooLong::Refuse));
        let message = message.unwrap_err().to_string();
        assert!(message.starts_with("line 2 of x.jsonl "), "{message}");
        message
    };
    assert!(refused("{").contains("is not valid JSON"));
    assert!(refused(r#"{"prompt": "a"}"#).contains("has no `messages`"));
    assert!(refused(r#"{"messages": "a"}"#).contains("not a list"));
    assert!(refused(r#"{"messages": [{"content": "a"}]}"#).contains("has no `role` in message 1"));
    assert!(refused(r#"{"messages": [{"role": "user", "content": 5}]}"#).contains("not a text in message 1"));
    assert!(refused(r#"{"messages": [{"role": "user", "content": "a"}]}"#).contains("no message of the assistant"));
    let order = r#"{"messages": [{"role": "assistant", "content": "a"}]}"#;
    assert!(refused(order).contains("refused by the model's chat template: Roles must alternate"));
    let long = good.replace("\"b\"", &format!("\"{}\"", "b ".repeat(40)));
    assert!(refused(&long).contains("the model's context is 40"));
    let parts = good.replace("\"b\"", r#"[{"type": "text", "text": "b"}]"#);
    let chats = read_chats("x.json", format!("[{parts}]").as_bytes(), DataFormat::Json).unwrap();
    assert_eq!((chats.len(), chats[0].answer()), (1, "b"));
    let tools = Value::from(Serde(serde_json::json!({"a": 1})));
    assert!(template("marks.jinja").render(&chats[0].messages, &tools, false).is_ok());
}
