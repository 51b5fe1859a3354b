//! Fields of a JSON object with its place in the file.

use super::HouseholdError;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Most that a number may be: far above any device, and far below where sums would lose precision.
const MOST: f64 = 1e9;

/// What a number may be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Range {
    AboveZero,
    FromZero,
}

/// An object in which only known fields occur.
pub(super) struct Fields<'a> {
    place: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub fn of(place: String, value: &'a Value, known: &[&str]) -> Result<Self, HouseholdError> {
        let Value::Object(map) = value else {
            let place = if place.is_empty() { "the file".into() } else { place };
            return Err(HouseholdError::content(place, format!("an object {{…}} is expected, and this is {}", described(value))));
        };
        let fields = Self { place, map };
        match map.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => Err(HouseholdError::content(fields.place(key), format!("there is no such field: known are {}", known.join(", ")))),
            None => Ok(fields),
        }
    }

    /// Path of a field.
    pub fn place(&self, field: &str) -> String {
        if self.place.is_empty() { field.to_owned() } else { format!("{}.{field}", self.place) }
    }

    pub fn get(&self, field: &str) -> Option<&'a Value> {
        self.map.get(field)
    }

    pub fn text(&self, field: &str, default: Option<&str>) -> Result<String, HouseholdError> {
        match (self.get(field), default) {
            (Some(Value::String(text)), _) => Ok(text.clone()),
            (None, Some(default)) => Ok(default.to_owned()),
            (found, _) => Err(self.wrong(field, "text", found)),
        }
    }

    pub fn flag(&self, field: &str, default: bool) -> Result<bool, HouseholdError> {
        match self.get(field) {
            Some(Value::Bool(flag)) => Ok(*flag),
            None => Ok(default),
            found => Err(self.wrong(field, "true or false", found)),
        }
    }

    pub fn number(&self, field: &str, range: Range, default: Option<f64>) -> Result<f64, HouseholdError> {
        let expected = if range == Range::AboveZero { "a number above 0" } else { "a number from 0" };
        match (self.get(field), default) {
            (None, Some(default)) => Ok(default),
            (Some(value @ Value::Number(number)), _) => {
                let number = number.as_f64().unwrap_or(f64::NAN);
                let fits = number <= MOST && if range == Range::AboveZero { number > 0.0 } else { number >= 0.0 };
                if fits { Ok(number) } else { Err(self.wrong(field, &format!("{expected} to {MOST}"), Some(value))) }
            }
            (found, _) => Err(self.wrong(field, expected, found)),
        }
    }

    /// Entries of a list, each with its place; a list that is absent is empty.
    pub fn list(&self, field: &str) -> Result<Vec<(String, &'a Value)>, HouseholdError> {
        match self.get(field) {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => Ok(list.iter().enumerate().map(|(i, value)| (format!("{}[{i}]", self.place(field)), value)).collect()),
            found => Err(self.wrong(field, "a list […]", found)),
        }
    }

    /// Indices of the devices that a list names.
    pub fn names(&self, field: &str, names: &BTreeMap<&str, usize>) -> Result<Vec<usize>, HouseholdError> {
        if self.get(field).is_none() {
            return Err(self.wrong(field, "a list of names", None));
        }
        let index = |(place, value): (String, &Value)| match value {
            Value::String(name) => names.get(name.as_str()).copied().ok_or_else(|| HouseholdError::content(place, format!("there is no device \"{name}\" in this household"))),
            other => Err(HouseholdError::content(place, format!("the name of a device is expected, and this is {}", described(other)))),
        };
        self.list(field)?.into_iter().map(index).collect()
    }

    fn wrong(&self, field: &str, expected: &str, found: Option<&Value>) -> HouseholdError {
        let problem = match found {
            None => format!("this field is missing: {expected} is expected"),
            Some(value) => format!("{expected} is expected, and this is {}", described(value)),
        };
        HouseholdError::content(self.place(field), problem)
    }
}

fn described(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("the text \"{text}\""),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}
