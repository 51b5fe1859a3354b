//! Reads the rows of a data file.

use super::{DataError, Row};
use serde_json::Value;

/// How a data file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFormat {
    /// One JSON object a line: `prompt` and `response` (or instruction/input/question and output/completion/answer).
    Jsonl,
    /// A JSON array of such objects.
    Json,
    /// Comma-separated with a header that names the two columns.
    Csv,
    /// The same with tabs.
    Tsv,
    /// Plain text; paragraphs are separated by empty lines.
    Text,
}

impl DataFormat {
    /// By the end of the file's name.
    pub fn from_name(name: &str) -> Result<Self, DataError> {
        let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
        match ending.as_deref() {
            Some("jsonl" | "ndjson") => Ok(DataFormat::Jsonl),
            Some("json") => Ok(DataFormat::Json),
            Some("csv") => Ok(DataFormat::Csv),
            Some("tsv" | "tab") => Ok(DataFormat::Tsv),
            Some("txt" | "text" | "md") => Ok(DataFormat::Text),
            _ => Err(DataError::UnknownFormat { file: name.to_string() }),
        }
    }
}

/// Names of the column that is asked, the first that is there counts.
const PROMPT_NAMES: [&str; 4] = ["prompt", "instruction", "question", "input"];
/// Names of the column that is learnt.
const RESPONSE_NAMES: [&str; 4] = ["response", "output", "completion", "answer"];

/// Reads all rows of a file; `file` is its name for messages.
pub fn read_rows(file: &str, bytes: &[u8], format: DataFormat) -> Result<Vec<Row>, DataError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
        broken(file, line, "is not UTF-8 text: save the file as UTF-8".into())
    })?;
    let rows = match format {
        DataFormat::Jsonl => jsonl(file, text)?,
        DataFormat::Json => json(file, text)?,
        DataFormat::Csv => table(file, text, b',')?,
        DataFormat::Tsv => table(file, text, b'\t')?,
        DataFormat::Text => paragraphs(text),
    };
    if rows.is_empty() {
        return Err(DataError::Empty { file: file.to_string() });
    }
    Ok(rows)
}

fn jsonl(file: &str, text: &str) -> Result<Vec<Row>, DataError> {
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let value = serde_json::from_str(line)
            .map_err(|error| broken(file, index + 1, format!("is not valid JSON ({error}): expected {{\"prompt\": …, \"response\": …}}")))?;
        rows.push(object(file, index + 1, &value)?);
    }
    Ok(rows)
}

fn json(file: &str, text: &str) -> Result<Vec<Row>, DataError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let values: Vec<Value> = serde_json::from_str(text).map_err(|error| {
        broken(file, error.line().max(1), format!("is not valid JSON ({error}): expected a list of objects with prompt and response"))
    })?;
    values.iter().enumerate().map(|(index, value)| object(file, index + 1, value)).collect()
}

fn object(file: &str, line: usize, value: &Value) -> Result<Row, DataError> {
    let expected = "expected {\"prompt\": …, \"response\": …}";
    let Value::Object(object) = value else {
        return Err(broken(file, line, format!("is not a JSON object: {expected}")));
    };
    let find = |names: &[&str]| -> Result<Option<(usize, String)>, DataError> {
        for (place, &name) in names.iter().enumerate() {
            match object.get(name) {
                None | Some(Value::Null) => {}
                Some(Value::String(text)) => return Ok(Some((place, text.clone()))),
                // A structured answer is learnt as its compact JSON.
                Some(value @ (Value::Object(_) | Value::Array(_) | Value::Number(_))) => return Ok(Some((place, value.to_string()))),
                Some(_) => return Err(broken(file, line, format!("has a `{name}` that is not a text: {expected}"))),
            }
        }
        Ok(None)
    };
    let missing = |what: &str| broken(file, line, format!("has no `{what}`: {expected}"));
    let (place, mut prompt) = find(&PROMPT_NAMES)?.ok_or_else(|| missing("prompt"))?;
    let (_, response) = find(&RESPONSE_NAMES)?.ok_or_else(|| missing("response"))?;
    // "instruction" with an "input" it works on.
    if PROMPT_NAMES[place] == "instruction"
        && let Some(Value::String(input)) = object.get("input")
        && !input.trim().is_empty()
    {
        prompt = format!("{prompt}\n{input}");
    }
    row(file, line, prompt, response)
}

fn table(file: &str, text: &str, delimiter: u8) -> Result<Vec<Row>, DataError> {
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).flexible(false).from_reader(text.as_bytes());
    let csv_error = |error: csv::Error| {
        let line = error.position().map_or(1, |position| position.line() as usize);
        let reason = match error.kind() {
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                format!("has {len} columns where the header has {expected_len}: quote texts that hold the separator")
            }
            _ => format!("cannot be read ({error}): expected a header `prompt,response` and rows like it"),
        };
        broken(file, line, reason)
    };
    let header = reader.headers().map_err(csv_error)?.clone();
    if header.is_empty() {
        return Ok(Vec::new());
    }
    let column = |names: &[&str]| {
        names.iter().find_map(|name| header.iter().position(|column| column.trim().eq_ignore_ascii_case(name)))
    };
    let (Some(prompt), Some(response)) = (column(&PROMPT_NAMES), column(&RESPONSE_NAMES)) else {
        let got = header.iter().collect::<Vec<_>>().join(", ");
        return Err(broken(file, 1, format!("names the columns {got}: expected a header with prompt and response")));
    };
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(csv_error)?;
        let line = record.position().map_or(0, |position| position.line() as usize);
        rows.push(row(file, line, record[prompt].to_string(), record[response].to_string())?);
    }
    Ok(rows)
}

fn row(file: &str, line: usize, prompt: String, response: String) -> Result<Row, DataError> {
    let (prompt, response) = (prompt.trim().to_string(), response.trim().to_string());
    if prompt.is_empty() {
        return Err(broken(file, line, "has an empty prompt: write what is asked".into()));
    }
    if response.is_empty() {
        return Err(broken(file, line, "has an empty response, so there is nothing to learn from it".into()));
    }
    Ok(Row { prompt, response, line })
}

fn paragraphs(text: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    let mut inside = false;
    for (index, line) in text.lines().enumerate() {
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
    rows
}

fn broken(file: &str, line: usize, reason: String) -> DataError {
    DataError::BrokenLine { file: file.to_string(), line, reason }
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
        for name in ["x.jsonl", "x.json", "x.csv", "x.txt"] {
            assert!(message(name, "").contains("holds no rows"), "{name}");
        }
        assert!(message("x.csv", "prompt,response\n").contains("holds no rows"));
    }
}
