//! Reads rows of prompt and response, and the paragraphs of plain text.

use super::records::{broken, read_records, utf8};
use super::{DataError, DataFormat, Record, Records, Row};
use serde_json::Value;

/// Names of the column that is asked, the first that is there counts.
const PROMPT_NAMES: [&str; 4] = ["prompt", "instruction", "question", "input"];
/// Names of the column that is learnt.
const RESPONSE_NAMES: [&str; 4] = ["response", "output", "completion", "answer"];
/// What a row looks like.
const EXPECTED: &str = "{\"prompt\": …, \"response\": …}";

/// Reads all rows of a file; `file` is its name for messages.
pub fn read_rows(file: &str, bytes: &[u8], format: DataFormat) -> Result<Vec<Row>, DataError> {
    if format == DataFormat::Text {
        return read_paragraphs(file, bytes);
    }
    let records = read_records(file, bytes, format, true, EXPECTED)?;
    records.require_column(&PROMPT_NAMES, "prompt and response")?;
    records.require_column(&RESPONSE_NAMES, "prompt and response")?;
    records.rows.iter().map(|record| row(&records, record)).collect()
}

fn row(records: &Records, record: &Record) -> Result<Row, DataError> {
    let (file, line) = (records.file.as_str(), record.line);
    let (place, mut prompt) = text_field(file, record, &PROMPT_NAMES, EXPECTED)?;
    let (_, response) = text_field(file, record, &RESPONSE_NAMES, EXPECTED)?;
    // "instruction" with an "input" it works on.
    if PROMPT_NAMES[place] == "instruction"
        && let Some(Value::String(input)) = record.get("input")
        && !input.trim().is_empty()
    {
        prompt = format!("{prompt}\n{input}");
    }
    let (prompt, response) = (prompt.trim().to_string(), response.trim().to_string());
    if prompt.is_empty() {
        return Err(broken(file, line, "has an empty prompt: write what is asked".into()));
    }
    if response.is_empty() {
        return Err(broken(file, line, "has an empty response, so there is nothing to learn from it".into()));
    }
    Ok(Row { prompt, response, line })
}

/// The text of the first of `names` that a row has, and which that is; a structured value is its compact JSON.
pub(super) fn text_field(file: &str, record: &Record, names: &[&str], expected: &str) -> Result<(usize, String), DataError> {
    match record.find(names) {
        Some((place, Value::String(text))) => Ok((place, text.clone())),
        Some((place, value @ (Value::Object(_) | Value::Array(_) | Value::Number(_)))) => Ok((place, value.to_string())),
        Some((place, _)) => Err(broken(file, record.line, format!("has a `{}` that is not a text: expected {expected}", names[place]))),
        None => Err(broken(file, record.line, format!("has no `{}`: expected {expected}", names[0]))),
    }
}

/// Plain text: paragraphs are separated by empty lines.
fn read_paragraphs(file: &str, bytes: &[u8]) -> Result<Vec<Row>, DataError> {
    let mut rows: Vec<Row> = Vec::new();
    let mut inside = false;
    for (index, line) in utf8(file, bytes)?.lines().enumerate() {
        let line_text = line.trim_end();
        if line_text.trim().is_empty() {
            inside = false;
            continue;
        }
        match rows.last_mut() {
            Some(row) if inside => {
                row.response.push('\n');
                row.response.push_str(line_text);
            }
            _ => rows.push(Row { prompt: String::new(), response: line_text.to_string(), line: index + 1 }),
        }
        inside = true;
    }
    if rows.is_empty() {
        return Err(DataError::Empty { file: file.to_string() });
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, text: &str) -> Result<Vec<Row>, DataError> {
        read_rows(name, text.as_bytes(), DataFormat::from_name(name)?)
    }

    fn message(name: &str, text: &str) -> String {
        read(name, text).unwrap_err().to_string()
    }

    fn pairs(name: &str, text: &str) -> Vec<(String, String, usize)> {
        read(name, text).unwrap().into_iter().map(|row| (row.prompt, row.response, row.line)).collect()
    }

    #[test]
    fn all_formats_give_the_same_rows() {
        let expected = vec![("a, b".to_string(), "c".to_string(), 1), ("d".to_string(), "e".to_string(), 2)];
        let jsonl = "{\"prompt\":\"a, b\",\"response\":\"c\"}\n{\"input\":\"d\",\"output\":\"e\"}\r\n\n";
        assert_eq!(pairs("x.jsonl", jsonl), expected);
        let json = r#"[{"question":"a, b","answer":"c"},{"instruction":"d","completion":"e"}]"#;
        assert_eq!(pairs("x.json", json), expected);
        let shifted: Vec<_> = expected.iter().map(|(p, r, line)| (p.clone(), r.clone(), line + 1)).collect();
        assert_eq!(pairs("x.CSV", "\u{feff}Prompt,Response\n\"a, b\",c\nd,e\n"), shifted);
        assert_eq!(pairs("x.tsv", "id\tprompt\tresponse\n1\ta, b\tc\n2\td\te\n"), shifted);
        assert_eq!(
            pairs("x.txt", "\none\ntwo\n\nthree\n"),
            vec![(String::new(), "one\ntwo".to_string(), 2), (String::new(), "three".to_string(), 5)]
        );
    }

    #[test]
    fn an_instruction_may_have_an_input_and_a_response_may_be_structured() {
        let rows = pairs("x.jsonl", r#"{"instruction":"Add.","input":"1 2","output":{"sum":3}}"#);
        assert_eq!(rows, vec![("Add.\n1 2".to_string(), "{\"sum\":3}".to_string(), 1)]);
    }

    #[test]
    fn broken_files_name_the_line() {
        let good = "{\"prompt\":\"a\",\"response\":\"b\"}\n";
        assert!(message("x.jsonl", &format!("{good}{{\"prompt\":")).starts_with("line 2 of x.jsonl is not valid JSON"));
        assert!(message("x.jsonl", &format!("{good}{good}[1]")).starts_with("line 3 of x.jsonl is not a JSON object"));
        assert!(message("x.jsonl", r#"{"prompt":"a"}"#).contains("has no `response`"));
        assert!(message("x.jsonl", r#"{"response":"a"}"#).contains("has no `prompt`"));
        assert!(message("x.jsonl", r#"{"prompt":true,"response":"a"}"#).contains("not a text"));
        assert!(message("x.jsonl", r#"{"prompt":"a","response":" "}"#).contains("empty response"));
        assert!(message("x.json", "[\n{,}]").starts_with("line 2 of x.json"));
        assert!(message("x.csv", "prompt,response\na,b\nc,d,e\n").starts_with("line 3 of x.csv has 3 columns"));
        assert!(message("x.csv", "text,label\na,b\n").starts_with("line 1 of x.csv names the columns text, label"));
        assert!(message("x.parquet", "").contains("kind that is not read"));
        let bad = read_rows("x.txt", b"ok\n\xff\xfe", DataFormat::Text).unwrap_err().to_string();
        assert!(bad.starts_with("line 2 of x.txt is not UTF-8"), "{bad}");
        // Every line has as many tabs: quotation marks are words of the text. Otherwise they hold a cell together.
        assert_eq!(pairs("x.tsv", "prompt\tresponse\n\"a\" b\t\"c\n\"d \"\"e\"\"\"\tf\n"), vec![("\"a\" b".into(), "\"c".into(), 2), ("d \"e\"".into(), "f".into(), 3)]);
        assert_eq!(pairs("x.tsv", "prompt\tresponse\n\"a\tb\"\tc\n"), vec![("a\tb".into(), "c".into(), 2)]);
        for name in ["x.jsonl", "x.json", "x.csv", "x.txt"] {
            assert!(message(name, "").contains("holds no rows"), "{name}");
        }
        assert!(message("x.csv", "prompt,response\n").contains("holds no rows"));
    }
}
