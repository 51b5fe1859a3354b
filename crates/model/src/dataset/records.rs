//! Reads a data file into records: named fields with the line they stand on, before a task makes sense of them.

use super::DataError;
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

/// A data file's records.
#[derive(Clone, Debug, PartialEq)]
pub struct Records {
    /// The file's name, for messages.
    pub file: String,
    /// Names of a table's columns; `None` for JSON, where every row names its own.
    pub header: Option<Vec<String>>,
    /// The rows.
    pub rows: Vec<Record>,
}

/// One row.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Where it stands in its file, from 1.
    pub line: usize,
    fields: Vec<(String, Value)>,
}

impl Record {
    /// The first of `names` that the row has with something in it: which of them, and its value.
    pub fn find<N: AsRef<str>>(&self, names: &[N]) -> Option<(usize, &Value)> {
        names.iter().enumerate().find_map(|(place, name)| self.get(name.as_ref()).map(|value| (place, value)))
    }

    /// A field that is not null; upper and lower case are the same where no field has exactly the name.
    pub fn get(&self, name: &str) -> Option<&Value> {
        let exact = self.fields.iter().find(|(field, _)| field == name);
        let found = exact.or_else(|| self.fields.iter().find(|(field, _)| field.eq_ignore_ascii_case(name)));
        found.map(|(_, value)| value).filter(|value| !value.is_null())
    }
}

impl Records {
    /// Refuses a table whose header has none of `names`; `expected` says what header there should be.
    pub fn require_column<N: AsRef<str>>(&self, names: &[N], expected: &str) -> Result<(), DataError> {
        let Some(header) = &self.header else { return Ok(()) };
        let has = |name: &N| header.iter().any(|column| column.eq_ignore_ascii_case(name.as_ref()));
        if names.iter().any(has) {
            return Ok(());
        }
        Err(broken(&self.file, 1, format!("names the columns {}: expected a header with {expected}", header.join(", "))))
    }
}

/// Reads all rows of a JSON or table file. `expected` says what a row should look like, for messages; a table without a
/// `header` has columns 1, 2, 3 …
///
/// # Errors
/// If the file is not UTF-8, a row cannot be parsed, or there is none.
pub fn read_records(file: &str, bytes: &[u8], format: DataFormat, header: bool, expected: &str) -> Result<Records, DataError> {
    let text = utf8(file, bytes)?;
    let mut records = Records { file: file.to_string(), header: None, rows: Vec::new() };
    match format {
        DataFormat::Jsonl => records.rows = jsonl(file, text, expected)?,
        DataFormat::Json => records.rows = json(file, text, expected)?,
        DataFormat::Csv => table(&mut records, text, b',', true, header)?,
        DataFormat::Tsv => table(&mut records, text, b'\t', !is_plain_tsv(text), header)?,
        DataFormat::Text => return Err(broken(file, 1, format!("is plain text: expected a .jsonl, .csv or .tsv file with {expected}"))),
    }
    if records.rows.is_empty() {
        return Err(DataError::Empty { file: file.to_string() });
    }
    Ok(records)
}

/// The text of a file, without a byte-order mark.
pub(super) fn utf8<'a>(file: &str, bytes: &'a [u8]) -> Result<&'a str, DataError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
        broken(file, line, "is not UTF-8 text: save the file as UTF-8".into())
    })
}

fn jsonl(file: &str, text: &str, expected: &str) -> Result<Vec<Record>, DataError> {
    let mut rows = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let value = serde_json::from_str(line)
            .map_err(|error| broken(file, index + 1, format!("is not valid JSON ({error}): expected {expected}")))?;
        rows.push(object(file, index + 1, value, expected)?);
    }
    Ok(rows)
}

fn json(file: &str, text: &str, expected: &str) -> Result<Vec<Record>, DataError> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let values: Vec<Value> = serde_json::from_str(text).map_err(|error| {
        broken(file, error.line().max(1), format!("is not valid JSON ({error}): expected a list of objects, each {expected}"))
    })?;
    values.into_iter().enumerate().map(|(index, value)| object(file, index + 1, value, expected)).collect()
}

fn object(file: &str, line: usize, value: Value, expected: &str) -> Result<Record, DataError> {
    match value {
        Value::Object(object) => Ok(Record { line, fields: object.into_iter().collect() }),
        _ => Err(broken(file, line, format!("is not a JSON object: expected {expected}"))),
    }
}

fn table(records: &mut Records, text: &str, delimiter: u8, quoting: bool, header: bool) -> Result<(), DataError> {
    let file = records.file.clone();
    let mut builder = csv::ReaderBuilder::new();
    let mut reader = builder.delimiter(delimiter).quoting(quoting).has_headers(header).flexible(false).from_reader(text.as_bytes());
    let csv_error = |error: csv::Error| {
        let line = error.position().map_or(1, |position| position.line() as usize);
        let reason = match error.kind() {
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                format!("has {len} columns where the first line has {expected_len}: quote texts that hold the separator")
            }
            _ => format!("cannot be read ({error}): expected a header and rows like it"),
        };
        broken(&file, line, reason)
    };
    let first = reader.headers().map_err(csv_error)?;
    let name = |(at, column): (usize, &str)| if header { column.trim().to_string() } else { (at + 1).to_string() };
    let names: Vec<String> = first.iter().enumerate().map(name).collect();
    for record in reader.records() {
        let record = record.map_err(csv_error)?;
        let line = record.position().map_or(0, |position| position.line() as usize);
        let value = |cell: &str| Value::String(if quoting { cell.to_string() } else { unquoted(cell) });
        let fields = names.iter().cloned().zip(record.iter().map(value)).collect();
        records.rows.push(Record { line, fields });
    }
    records.header = Some(names);
    Ok(())
}

/// Whether every line has as many tabs as the first: then quotation marks are part of the texts, as in the corpora that
/// are given out as TSV, and not what a spreadsheet puts around cells with tabs or line ends in them.
fn is_plain_tsv(text: &str) -> bool {
    let mut counts = text.lines().filter(|line| !line.is_empty()).map(|line| line.matches('\t').count());
    let first = counts.next().unwrap_or(0);
    first > 0 && counts.all(|count| count == first)
}

/// A cell that is wholly in quotation marks, those within it doubled, is what stands between them.
fn unquoted(cell: &str) -> String {
    let inner = cell.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    match inner {
        Some(inner) if !inner.replace("\"\"", "").contains('"') => inner.replace("\"\"", "\""),
        _ => cell.to_string(),
    }
}

pub(super) fn broken(file: &str, line: usize, reason: String) -> DataError {
    DataError::BrokenLine { file: file.to_string(), line, reason }
}
