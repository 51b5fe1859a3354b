//! Tokenizer and data sets together: from a file's rows to token samples.

#![cfg(feature = "tokenizers")]
#![allow(clippy::unwrap_used)]

use barycenter_model::dataset::{
    DataFormat, Statistics, TooLong, cut_plain_text, read_rows, tokenise,
};
use barycenter_model::{ModelConfig, TextTokenizer};

fn config(vocab: usize) -> ModelConfig {
    let json = serde_json::json!({
        "model_type": "llama", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 12, "vocab_size": vocab, "eos_token_id": 0
    });
    ModelConfig::parse(&json.to_string()).unwrap()
}

/// A tokenizer of single words: `<|end|>` 0, "\n" 1, a 2, b 3, c 4, `<unk>` 5.
fn tokenizer_json() -> String {
    serde_json::json!({
        "version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "normalizer": null,
        "added_tokens": [{
            "id": 0, "content": "<|end|>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true
        }],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a-z]|\\n"}, "behavior": "Removed", "invert": true},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"<|end|>": 0, "\n": 1, "a": 2, "b": 3, "c": 4, "<unk>": 5}, "unk_token": "<unk>"}
    })
    .to_string()
}

fn tokenizer() -> TextTokenizer {
    TextTokenizer::parse(tokenizer_json().as_bytes(), &config(6)).unwrap()
}

#[test]
fn a_pair_is_learnt_on_its_response_and_end_only() {
    let rows = read_rows("x.jsonl", br#"{"prompt":"a b","response":"c a"}"#, DataFormat::Jsonl).unwrap();
    let tokenised = tokenise("x.jsonl", &rows, &tokenizer(), 16, TooLong::Refuse).unwrap();
    let sample = &tokenised.samples[0];
    assert_eq!(sample.ids, vec![2, 3, 1, 4, 2, 0], "a file's truncation setting is not applied");
    assert_eq!(sample.labels, vec![(2, 4), (3, 2), (4, 0)]);
    assert_eq!(tokenizer().encode_prompt("a b").unwrap(), sample.ids[..3]);
    assert_eq!(tokenizer().decode_response(&[4, 2, 0, 3]).unwrap(), tokenizer().decode(&[4, 2]).unwrap());
}

#[test]
fn rows_beyond_the_context_are_refused_or_left_out() {
    let text = "{\"prompt\":\"a\",\"response\":\"b\"}\n{\"prompt\":\"a b c\",\"response\":\"c a\"}\n";
    let rows = read_rows("x.jsonl", text.as_bytes(), DataFormat::Jsonl).unwrap();
    let refusal = tokenise("x.jsonl", &rows, &tokenizer(), 5, TooLong::Refuse).unwrap_err().to_string();
    assert!(refusal.starts_with("line 2 of x.jsonl is 7 tokens long, the model's context is 5"), "{refusal}");
    let left = tokenise("x.jsonl", &rows, &tokenizer(), 5, TooLong::LeaveOut).unwrap();
    assert_eq!((left.rows.clone(), left.left_out_lines.clone()), (vec![0], vec![2]));
    let statistics = Statistics::of(&left);
    assert_eq!((statistics.rows, statistics.left_out, statistics.max_tokens, statistics.labelled_tokens), (1, 1, 4, 2));
    assert!(statistics.warnings()[0].contains("1 row longer"));
    let none = tokenise("x.jsonl", &rows, &tokenizer(), 2, TooLong::LeaveOut).unwrap_err().to_string();
    assert!(none.starts_with("all 2 rows of x.jsonl"), "{none}");
}

#[test]
fn plain_text_is_learnt_throughout_and_cut_to_windows() {
    let rows = read_rows("x.txt", b"a b c a b c a\n\nb", DataFormat::Text).unwrap();
    let cut = cut_plain_text(rows, &tokenizer(), 5).unwrap();
    assert_eq!(cut.iter().map(|row| row.response.as_str()).collect::<Vec<_>>(), ["a b c", "a b c", "a", "b"]);
    assert_eq!(cut.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 1, 1, 3]);
    let tokenised = tokenise("x.txt", &cut, &tokenizer(), 5, TooLong::Refuse).unwrap();
    assert_eq!(tokenised.samples[0].labels.len(), tokenised.samples[0].ids.len() - 1);
    assert_eq!(Statistics::of(&tokenised).duplicates, 1);
}

#[test]
fn a_row_without_labels_is_named() {
    let mut silent = config(6);
    silent.eos.clear();
    let tokenizer = TextTokenizer::parse(tokenizer_json().as_bytes(), &silent).unwrap();
    let rows = read_rows("x.txt", b"a b\n\nc", DataFormat::Text).unwrap();
    let refusal = tokenise("x.txt", &rows, &tokenizer, 8, TooLong::Refuse).unwrap_err().to_string();
    assert!(refusal.starts_with("line 3 of x.txt has nothing to learn"), "{refusal}");
}

#[test]
fn a_bad_tokenizer_is_refused_in_one_sentence() {
    let broken = TextTokenizer::parse(b"{", &config(6)).err().unwrap().to_string();
    assert!(broken.starts_with("tokenizer.json cannot be used"), "{broken}");
    let foreign = TextTokenizer::parse(tokenizer_json().as_bytes(), &config(5)).err().unwrap().to_string();
    assert!(foreign.contains("token ids up to 5") && foreign.contains("5 rows"), "{foreign}");
}
