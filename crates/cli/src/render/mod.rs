//! Results, as people and as programs read them.

mod quantity;
mod table;

use std::io::Write;

use serde_json::{Map, Value};

use crate::args::Format;
use crate::failure::{Failure, Outcome};

pub(crate) use neon_pg::bytes_in_words as bytes;
pub(crate) use quantity::{age, duration, rate};
pub(crate) use table::{Align, Table};

/// The version of the JSON that is printed: docs/cli-json.md.
const SCHEMA: u64 = 1;

/// What a verb came to.
#[derive(Debug, Default)]
pub(crate) struct Answer {
    /// For people.
    pub(crate) text: String,
    /// For programs.
    pub(crate) data: Map<String, Value>,
    /// The key in `data` whose elements are the lines of `ndjson`.
    pub(crate) rows: Option<&'static str>,
    /// The exit code: 0, or 7 when a part is missing.
    pub(crate) exit: u8,
}

impl Answer {
    /// What was to be printed was printed already.
    pub(crate) fn nothing() -> Self {
        Self {
            rows: Some(""),
            ..Self::default()
        }
    }

    /// One thing.
    pub(crate) fn of(text: impl Into<String>, data: impl Into<Value>) -> Self {
        let data = match data.into() {
            Value::Object(data) => data,
            other => Map::from_iter([("result".to_owned(), other)]),
        };
        Self {
            text: text.into(),
            data,
            ..Self::default()
        }
    }

    /// A list under `key`.
    pub(crate) fn list(table: &Table, key: &'static str, rows: Vec<Value>) -> Self {
        Self {
            text: table.to_string(),
            data: Map::from_iter([(key.to_owned(), Value::Array(rows))]),
            rows: Some(key),
            exit: 0,
        }
    }

    /// Prints it.
    pub(crate) fn print(&self, format: Format) -> Outcome<()> {
        let mut whole = String::new();
        if self.rows == Some("") {
            return Ok(());
        }
        match format {
            Format::Table => {
                whole.push_str(&self.text);
                if !whole.is_empty() && !whole.ends_with('\n') {
                    whole.push('\n');
                }
            }
            Format::Json => {
                let text = serde_json::to_string_pretty(&self.versioned());
                whole.push_str(&text.unwrap_or_default());
                whole.push('\n');
            }
            Format::Ndjson => match self.rows.and_then(|key| self.data.get(key)) {
                Some(Value::Array(rows)) => {
                    for row in rows {
                        whole.push_str(&row.to_string());
                        whole.push('\n');
                    }
                }
                _ => {
                    whole.push_str(&Value::Object(self.versioned()).to_string());
                    whole.push('\n');
                }
            },
        }
        write(whole.as_bytes())
    }

    fn versioned(&self) -> Map<String, Value> {
        let mut whole = Map::from_iter([("schema".to_owned(), Value::from(SCHEMA))]);
        whole.extend(self.data.clone());
        whole
    }
}

/// Writes to the result stream.
pub(crate) fn write(bytes: &[u8]) -> Outcome<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)
        .and_then(|()| out.flush())
        .map_err(|error| Failure::io("the result cannot be written", &error))
}
