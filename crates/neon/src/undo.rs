//! Undo: the last thing that was done in a home and can be taken back.
//!
//! | done | taken back by |
//! |---|---|
//! | `pg create`, `pg start --replica` | the instance goes to the trash |
//! | `pg destroy` | it comes back from the trash |
//! | `pg checkout` | a checkout of the `HEAD{i}` that it left |
//! | `snapshot destroy` | the snapshot is there again, until a collection has taken it |
//! | `storage detach` | it is attached as it was |
//!
//! Operations that cannot be taken back (a start, a push) are passed over. What was taken back is not taken back
//! again: a second undo goes one further.

use std::collections::BTreeSet;

use neon_pagestore::CommitId;
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::instances::CheckoutChoice;
use crate::instances::checkout::{CONFIGURATION, started};
use crate::name::Name;
use crate::neon::Neon;
use crate::operation::{Begun, Operation, Outcome};
use crate::snapshots::Found;

const VERB: &str = "undo";
const UNDOES: &str = "undoes";

/// What was taken back.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Undone {
    /// The operation.
    pub operation: Operation,
    /// What was done, in words: `pg pgdata1 is in the trash`.
    pub what: String,
}

impl Neon {
    /// The operation that [`undo`](Self::undo) would take back; none when there is none.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn undoable(&self) -> Result<Option<Operation>> {
        let operations = self.operations()?;
        let done = |operation: &&Operation| operation.outcome == Outcome::Done;
        let undone: BTreeSet<&str> = operations
            .iter()
            .filter(done)
            .filter(|operation| operation.verb == VERB)
            .filter_map(|operation| operation.details.get(UNDOES).map(String::as_str))
            .collect();
        Ok(operations
            .iter()
            .rev()
            .filter(done)
            .find(|operation| {
                Step::of(operation).is_some() && !undone.contains(operation.id.as_str())
            })
            .cloned())
    }

    /// Takes back the last operation of the log that can be.
    ///
    /// Dropped, or killed: as the verb that takes it back.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when nothing is left to take back, or what is needed for it is gone; as the verb
    /// that takes it back.
    pub async fn undo(&self) -> Result<Undone> {
        let Some(operation) = self.undoable()? else {
            return Err(Error::new(
                ErrorKind::NotFound,
                "operation log",
                "has nothing that could be undone",
            )
            .hinted("see `neon op log`"));
        };
        let Some(step) = Step::of(&operation) else {
            return Err(Error::new(
                ErrorKind::Failed,
                operation.verb.clone(),
                "cannot be undone",
            ));
        };
        let mut begun = self.begin_operation(VERB, &operation.subject)?;
        begun.detail(UNDOES, operation.id.clone());
        begun.detail("verb", operation.verb.clone());
        let what = Box::pin(self.take_back(step, &begun)).await;
        let what = begun.end(what)?;
        Ok(Undone { operation, what })
    }

    async fn take_back(&self, step: Step<'_>, begun: &Begun<'_>) -> Result<String> {
        match step {
            Step::Create { name, id } => {
                let name: Name = name.parse()?;
                Box::pin(self.pg().destroy_of(&name, Some(id))).await?;
                Ok(format!("pg {name} is in the trash"))
            }
            Step::Destroy { id } => {
                let back = Box::pin(self.pg().undo_destroy_unlogged(id)).await?;
                Ok(format!("pg {} is back", back.name))
            }
            Step::Checkout {
                name,
                id,
                head,
                head_id,
                configuration,
            } => {
                let name: Name = name.parse()?;
                let record = self.pg().record_of(&name)?;
                if record.id != id {
                    return Err(Error::new(
                        ErrorKind::NotFound,
                        format!("pg {name}"),
                        "is another instance by now",
                    ));
                }
                let found = self.head(&record.storage, head, head_id).await?;
                let choice = CheckoutChoice { configuration };
                let plan = Box::pin(self.pg().plan_checkout(&name, &found, choice)).await?;
                let (done, trouble) = Box::pin(self.pg().checkout_unlogged(&plan, begun)).await?;
                let done = started(done, trouble)?;
                Ok(format!(
                    "pg {name} is at {head}; what it was is {}",
                    done.head
                ))
            }
            Step::DestroySnapshot { name, id, storage } => {
                let storage: Name = storage.parse()?;
                let repository = self.storages().repository(&storage).await?;
                let id = commit(id)?;
                let back = repository.repository.undo_destroy(id).await;
                back.map_err(|error| Error::repository(format!("snapshot {name}"), error))?;
                Ok(format!("snapshot {name} is back"))
            }
            Step::Detach { name, record } => {
                let name: Name = name.parse()?;
                self.storages().undo_detach(&name, record).await?;
                Ok(format!("storage {name} is attached"))
            }
        }
    }

    async fn head(&self, storage: &Name, head: &str, id: &str) -> Result<Found> {
        let found = self.snapshots().find(id, Some(storage)).await?;
        Ok(Found {
            asked: head.to_owned(),
            ..found
        })
    }
}

fn commit(text: &str) -> Result<CommitId> {
    text.parse()
        .map_err(|error| Error::repository(format!("snapshot {text}"), error))
}

/// What an operation needs to be taken back.
enum Step<'a> {
    Create {
        name: &'a str,
        id: &'a str,
    },
    Destroy {
        id: &'a str,
    },
    Checkout {
        name: &'a str,
        id: &'a str,
        head: &'a str,
        head_id: &'a str,
        configuration: bool,
    },
    DestroySnapshot {
        name: &'a str,
        id: &'a str,
        storage: &'a str,
    },
    Detach {
        name: &'a str,
        record: &'a str,
    },
}

impl<'a> Step<'a> {
    fn of(operation: &'a Operation) -> Option<Self> {
        let detail = |name: &str| operation.details.get(name).map(String::as_str);
        let name = operation.subject.as_str();
        Some(match operation.verb.as_str() {
            "pg create" | "pg replica" => Self::Create {
                name,
                id: detail("id")?,
            },
            "pg destroy" => Self::Destroy { id: detail("id")? },
            "pg checkout" => Self::Checkout {
                name,
                id: detail("id")?,
                head: detail("head")?,
                head_id: detail("head-id")?,
                configuration: detail(CONFIGURATION).is_some(),
            },
            "snapshot destroy" => Self::DestroySnapshot {
                name,
                id: detail("id")?,
                storage: detail("storage")?,
            },
            "storage detach" => Self::Detach {
                name,
                record: detail("record")?,
            },
            _ => return None,
        })
    }
}
