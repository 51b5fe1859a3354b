//! Rows of the other tasks: sentences with labels, windows of plain text, sources with targets.

#![cfg(feature = "tokenizers")]
#![allow(clippy::unwrap_used)]

use barycenter_model::dataset::{
    ClassNames, Columns, DataFormat, Goal, LabelledAt, Row, SentenceRow, Target, TooLong, pack_windows, read_rows, read_sentences,
    read_seq2seq, tokenise_apart, tokenise_sentences, tokenise_seq2seq,
};
use barycenter_model::{ModelConfig, TextTokenizer};

/// A tokenizer of single letters: `[CLS]` 0, `[SEP]` 1, a 2 … z 27. With `brackets` it puts `[CLS] … [SEP] … [SEP]`
/// around texts as BERT's does; the end token is `[SEP]`.
fn tokenizer(brackets: bool) -> TextTokenizer {
    let mut vocabulary = serde_json::Map::from_iter([("[CLS]".to_string(), 0.into()), ("[SEP]".to_string(), 1.into())]);
    vocabulary.extend(('a'..='z').enumerate().map(|(at, letter)| (letter.to_string(), (at + 2).into())));
    let special = |id: u32, content: &str| {
        serde_json::json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true})
    };
    let token = |id: &str, kind: u32| serde_json::json!({"SpecialToken": {"id": id, "type_id": kind}});
    let sequence = |id: &str, kind: u32| serde_json::json!({"Sequence": {"id": id, "type_id": kind}});
    let template = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [token("[CLS]", 0), sequence("A", 0), token("[SEP]", 0)],
        "pair": [token("[CLS]", 0), sequence("A", 0), token("[SEP]", 0), sequence("B", 1), token("[SEP]", 1)],
        "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [0], "tokens": ["[CLS]"]}, "[SEP]": {"id": "[SEP]", "ids": [1], "tokens": ["[SEP]"]}}
    });
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(0, "[CLS]"), special(1, "[SEP]")],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a-z]"}, "behavior": "Removed", "invert": true},
        "post_processor": if brackets { template } else { serde_json::Value::Null }, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "z"}
    });
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 12, "vocab_size": 28, "eos_token_id": 1
    });
    TextTokenizer::parse(json.to_string().as_bytes(), &ModelConfig::parse(&config.to_string()).unwrap()).unwrap()
}

fn sentences(name: &str, text: &str, columns: &Columns) -> Result<Vec<SentenceRow>, String> {
    read_sentences(name, text.as_bytes(), DataFormat::from_name(name).unwrap(), columns).map_err(|error| error.to_string())
}

#[test]
fn sentences_are_read_from_every_format_and_by_any_column_names() {
    let row = |first: &str, second: Option<&str>, label: &str, line| SentenceRow { first: first.into(), second: second.map(Into::into), label: label.into(), line };
    let usual = Columns::default();
    let single = vec![row("a b", None, "1", 2)];
    assert_eq!(sentences("x.csv", "Sentence,Label\na b,1\n", &usual).unwrap(), single);
    assert_eq!(sentences("x.jsonl", "\n{\"text\": \" a b \", \"label\": 1}\n", &usual).unwrap(), single);
    let headless = Columns { text: Some("1".into()), label: Some("2".into()), header: false, ..Columns::default() };
    assert_eq!(sentences("x.tsv", "a \"b\t0\nc\t1\n", &headless).unwrap(), vec![row("a \"b", None, "0", 1), row("c", None, "1", 2)]);
    // As the paraphrase corpus is given out: byte-order mark, quotation marks that do not pair up.
    let corpus = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t7\t8\t\"a\" b\tc \"d\n";
    assert_eq!(sentences("x.tsv", corpus, &usual).unwrap(), vec![row("\"a\" b", Some("c \"d"), "1", 2)]);
    let named = Columns { text: Some("q".into()), pair: Some("r".into()), label: Some("s".into()), header: true };
    assert_eq!(sentences("x.jsonl", r#"{"q":"a","r":"b","s":true,"label":"no"}"#, &named).unwrap(), vec![row("a", Some("b"), "true", 1)]);
}

#[test]
fn bad_sentence_rows_are_named_with_their_line() {
    let usual = Columns::default();
    let refused = |name: &str, text: &str, columns: &Columns| sentences(name, text, columns).unwrap_err();
    assert!(refused("x.csv", "a,b\nc,d\n", &usual).starts_with("line 1 of x.csv names the columns a, b: expected a header with a text and a label column"));
    assert!(refused("x.csv", "text,label\na,1\n,1\n", &usual).starts_with("line 3 of x.csv has an empty `text`"));
    assert!(refused("x.csv", "text,label\na,\n", &usual).starts_with("line 2 of x.csv has an empty label"));
    assert!(refused("x.csv", "text,label\na,1,2\n", &usual).starts_with("line 2 of x.csv has 3 columns"));
    assert!(refused("x.jsonl", "{\"text\":\"a\",\"label\":1}\n{\"text\":\"a\"}", &usual).starts_with("line 2 of x.jsonl has no `label`"));
    assert!(refused("x.jsonl", "{\"text\":\"a\",\"label\":[1]}", &usual).contains("neither text nor number"));
    assert!(refused("x.jsonl", "{\"text\":7,\"label\":1}", &usual).contains("not a text"));
    let other = Columns { label: Some("mood".into()), ..Columns::default() };
    assert!(refused("x.csv", "text,label\na,1\n", &other).contains("names the columns text, label"));
    let pair = Columns { text: Some("text".into()), pair: Some("other".into()), ..Columns::default() };
    assert!(refused("x.csv", "text,label\na,1\n", &pair).contains("a column `other`"));
    assert!(refused("x.txt", "a", &usual).contains("is plain text"));
}

fn rows(labels: &[&str]) -> Vec<SentenceRow> {
    labels.iter().enumerate().map(|(at, label)| SentenceRow { first: "a b".into(), second: None, label: label.to_string(), line: at + 1 }).collect()
}

#[test]
fn classes_are_ordered_by_value_or_alphabet() {
    let names = |labels: &[&str]| ClassNames::of("x.csv", &rows(labels)).map(|classes| classes.0).map_err(|error| error.to_string());
    assert_eq!(names(&["10", "9", "-1", "9"]).unwrap(), ["-1", "9", "10"]);
    assert_eq!(names(&["yes", "no", "10"]).unwrap(), ["10", "no", "yes"]);
    assert!(names(&["a", "a"]).unwrap_err().starts_with("x.csv has 1 class (a): expected 2 to"));
    let many: Vec<String> = (0..1_001).map(|i| i.to_string()).collect();
    assert!(names(&many.iter().map(String::as_str).collect::<Vec<_>>()).unwrap_err().contains("choose regression"));
}

#[test]
fn sentences_become_samples_with_one_target() {
    let classes = Goal::Classes(ClassNames(vec!["no".into(), "yes".into()]));
    let row = |first: &str, second: Option<&str>, label: &str| SentenceRow { first: first.into(), second: second.map(Into::into), label: label.into(), line: 4 };
    let pair = [row("a b c", Some("d"), "yes")];
    let first = tokenise_sentences("x.csv", &pair, &classes, &tokenizer(true), LabelledAt::First, 16).unwrap();
    assert_eq!((first.samples[0].ids.as_slice(), first.cut), ([0, 2, 3, 4, 1, 5, 1].as_slice(), 0));
    assert_eq!(first.samples[0].types, [0, 0, 0, 0, 0, 1, 1]);
    assert_eq!((first.samples[0].position, first.samples[0].target), (0, Target::Class(1)));
    let cut = tokenise_sentences("x.csv", &pair, &classes, &tokenizer(true), LabelledAt::Last, 6).unwrap();
    assert_eq!((cut.samples[0].ids.as_slice(), cut.cut), ([0, 2, 3, 1, 5, 1].as_slice(), 1), "the longer sentence is cut");
    assert_eq!(cut.samples[0].position, 5);
    let number = tokenise_sentences("x.csv", &[row("a", None, "-2.5")], &Goal::Number, &tokenizer(false), LabelledAt::Last, 16).unwrap();
    assert_eq!(number.samples[0].target, Target::Number(-2.5));
    let refused = |goal: &Goal, label: &str| tokenise_sentences("x.csv", &[row("a", None, label)], goal, &tokenizer(false), LabelledAt::Last, 16).unwrap_err().to_string();
    assert!(refused(&classes, "maybe").starts_with("line 4 of x.csv has the label `maybe`, which is none of the classes no, yes"));
    assert!(refused(&Goal::Number, "big").starts_with("line 4 of x.csv has the label `big`, which is not a number"));
    assert!(refused(&Goal::Number, "NaN").contains("not a number"));
    let empty = tokenise_sentences("x.csv", &[row("1", None, "no")], &classes, &tokenizer(false), LabelledAt::Last, 16).unwrap_err().to_string();
    assert!(empty.contains("gives no token"), "{empty}");
}

#[test]
fn every_token_of_a_text_is_learnt_once() {
    let rows = read_rows("x.txt", b"a b c d\n\ne f g\n\nh", DataFormat::Text).unwrap();
    // a b c d [SEP] e f g [SEP] h [SEP]
    let stream = [2, 3, 4, 5, 1, 6, 7, 8, 1, 9, 1];
    for window in [2, 3, 4, 11, 50] {
        let packed = pack_windows("x.txt", &rows, &tokenizer(false), window).unwrap();
        let learnt: Vec<u32> = packed.samples.iter().flat_map(|sample| sample.labels.iter().map(|(_, class)| *class)).collect();
        assert_eq!(learnt, stream[1..], "window {window}");
        assert!(packed.samples.iter().all(|sample| sample.tokens() <= window && sample.tokens() > 1));
        assert_eq!(packed.samples.len(), 10usize.div_ceil(window - 1));
    }
    assert_eq!(pack_windows("x.txt", &rows, &tokenizer(false), 4).unwrap().rows, [0, 0, 1, 2]);
    // With a start token, which every window gets, even the first token is learnt.
    let started = pack_windows("x.txt", &rows, &tokenizer(true), 4).unwrap();
    assert_eq!(started.samples[1].ids, [0, 5, 1, 6]);
    let learnt: Vec<u32> = started.samples.iter().flat_map(|sample| sample.labels.iter().map(|(_, class)| *class)).collect();
    assert_eq!(learnt, stream);
    assert!(pack_windows("x.txt", &rows, &tokenizer(true), 1).unwrap_err().to_string().contains("nothing to learn"));
}

#[test]
fn sources_and_targets_become_shifted_samples() {
    let read = |name: &str, text: &str| read_seq2seq(name, text.as_bytes(), DataFormat::from_name(name).unwrap()).map_err(|error| error.to_string());
    let rows = read("x.tsv", "document\tsummary\na b c\td e\n").unwrap();
    assert_eq!(rows, [Row { prompt: "a b c".into(), response: "d e".into(), line: 2 }]);
    let (samples, kept) = tokenise_seq2seq("x.tsv", &rows, &tokenizer(false), 0, 16, TooLong::Refuse).unwrap();
    assert_eq!((samples[0].source.as_slice(), kept.as_slice()), ([2, 3, 4].as_slice(), [0].as_slice()));
    assert_eq!(samples[0].target.ids, [0, 5, 6]);
    assert_eq!(samples[0].target.labels, [(0, 5), (1, 6), (2, 1)]);
    let refused = tokenise_seq2seq("x.tsv", &rows, &tokenizer(false), 0, 2, TooLong::Refuse).unwrap_err().to_string();
    assert!(refused.starts_with("line 2 of x.tsv is 3 tokens long"), "{refused}");
    assert!(tokenise_seq2seq("x.tsv", &rows, &tokenizer(false), 0, 2, TooLong::LeaveOut).unwrap_err().to_string().starts_with("all 1 rows"));
    assert!(read("x.csv", "source,other\na,b\n").unwrap_err().starts_with("line 1 of x.csv names the columns source, other"));
    assert!(read("x.jsonl", r#"{"source":"a"}"#).unwrap_err().starts_with("line 1 of x.jsonl has no `target`"));
    assert!(read("x.jsonl", r#"{"source":" ","target":"b"}"#).unwrap_err().contains("empty source"));
}

#[test]
fn sentences_that_are_read_apart_have_special_tokens_of_their_own() {
    let classes = Goal::Classes(ClassNames(vec!["no".into(), "yes".into()]));
    let apart = |rows: &[SentenceRow], max_tokens| tokenise_apart("x.csv", rows, &classes, &tokenizer(true), max_tokens);
    let row = |first: &str, second: Option<&str>, label: &str| SentenceRow { first: first.into(), second: second.map(Into::into), label: label.into(), line: 4 };
    let alone = |text: &str| tokenizer(true).encode_sentences(text, None).unwrap().0;
    let (long, short) = ("a b c b", "c");
    let pair = [row(long, Some(short), "yes")];
    let whole = apart(&pair, 16).unwrap();
    assert_eq!((&whole.samples[0].ids, whole.samples[0].starts.as_slice(), whole.cut), (&[alone(long), alone(short)].concat(), [6].as_slice(), 0));
    assert!(whole.samples[0].types.is_empty());
    let cut = apart(&pair, 7).unwrap();
    assert_eq!((&cut.samples[0].ids, cut.cut), (&[alone("a b"), alone(short)].concat(), 1), "the longer one is cut");
    let one = apart(&[row(short, None, "no")], 16).unwrap();
    assert_eq!((&one.samples[0].ids, one.samples[0].starts.len()), (&alone(short), 0));
    assert!(apart(&pair, 5).unwrap_err().to_string().contains("does not fit into 5 tokens"));
    let mixed = apart(&[pair[0].clone(), row(short, None, "no")], 16).unwrap_err().to_string();
    assert!(mixed.contains("has one sentence where the rows before have two"), "{mixed}");
}
