//! The operation log: what was changed in a home, by which verb, and how it ended.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::events::Event;
use crate::home::random_id;
use crate::neon::Neon;
use crate::record;

/// How an operation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was begun; nothing was said since.
    Begun,
    /// It is done.
    Done,
    /// It failed and changed nothing, or took back what it changed.
    Failed,
}

/// One operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Operation {
    /// Its id.
    pub id: String,
    /// When this was written, in milliseconds since 1970.
    pub at: u64,
    /// The verb, as on the command line: `pg create`.
    pub verb: String,
    /// What it was done to.
    pub subject: String,
    /// How it stands.
    pub outcome: Outcome,
    /// What a person, or an undo, needs to know beside that. Never a secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub details: BTreeMap<String, String>,
}

/// An operation that was begun. Left without an end it stays begun in the log, as after a crash.
#[derive(Debug)]
pub(crate) struct Begun<'a> {
    neon: &'a Neon,
    operation: Operation,
}

impl Neon {
    pub(crate) fn begin_operation(&self, verb: &str, subject: &str) -> Result<Begun<'_>> {
        let begun = self.begun(verb, subject)?;
        begun.write(Outcome::Begun)?;
        Ok(begun)
    }

    /// As [`begin_operation`](Self::begin_operation), for what stops or frees something: a full disk does not keep it from that.
    pub(crate) fn begin_relief(&self, verb: &str, subject: &str) -> Result<Begun<'_>> {
        let begun = self.begun(verb, subject)?;
        begun.say(Outcome::Begun);
        Ok(begun)
    }

    fn begun(&self, verb: &str, subject: &str) -> Result<Begun<'_>> {
        Ok(Begun {
            neon: self,
            operation: Operation {
                id: random_id()?,
                at: 0,
                verb: verb.to_owned(),
                subject: subject.to_owned(),
                outcome: Outcome::Begun,
                details: BTreeMap::new(),
            },
        })
    }

    /// The operations of this home, oldest first, each as it stands.
    ///
    /// # Errors
    /// When the log cannot be read. A last line that was cut off by a crash is passed over.
    pub fn operations(&self) -> Result<Vec<Operation>> {
        let path = self.home().operations();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(&path, "cannot be read", error)),
        };
        let mut order = Vec::new();
        let mut known: BTreeMap<String, Operation> = BTreeMap::new();
        for line in text.lines() {
            let Ok(mut operation) = serde_json::from_str::<Operation>(line) else {
                continue;
            };
            match known.get(&operation.id) {
                None => order.push(operation.id.clone()),
                // When it was begun is when it was.
                Some(before) => operation.at = before.at,
            }
            known.insert(operation.id.clone(), operation);
        }
        Ok(order.iter().filter_map(|id| known.remove(id)).collect())
    }
}

impl Neon {
    /// Says how an operation ended whose command is gone.
    pub(crate) fn end_of_another(&self, operation: Operation, outcome: Outcome) {
        let begun = Begun {
            neon: self,
            operation,
        };
        begun.say(outcome);
    }
}

impl Begun<'_> {
    pub(crate) fn operation(&self) -> &Operation {
        &self.operation
    }

    /// It is as it is, also when nobody can say so.
    fn say(&self, outcome: Outcome) {
        if let Err(error) = self.write(outcome) {
            self.neon.tell(Event::Warning(format!(
                "what became of {} {} could not be written down ({error})",
                self.operation.verb, self.operation.subject
            )));
        }
    }

    /// Adds a detail, written with the end.
    pub(crate) fn detail(&mut self, name: &str, value: impl Into<String>) {
        self.operation.details.insert(name.to_owned(), value.into());
    }

    /// Says how it ended, and passes the result on. That it could not be said hides no result.
    pub(crate) fn end<T>(self, result: Result<T>) -> Result<T> {
        let outcome = match result {
            Ok(_) => Outcome::Done,
            Err(_) => Outcome::Failed,
        };
        self.say(outcome);
        result
    }

    fn write(&self, outcome: Outcome) -> Result<()> {
        let now = self
            .neon
            .now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let operation = Operation {
            outcome,
            at: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            ..self.operation.clone()
        };
        let line = serde_json::to_string(&operation).map_err(|error| {
            Error::new(
                crate::ErrorKind::Failed,
                "operation log",
                "cannot be written",
            )
            .caused_by(error)
        })?;
        record::append(&self.neon.home().operations(), &line)
    }
}

/// Seconds since 1970.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
