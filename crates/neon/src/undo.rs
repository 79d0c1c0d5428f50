//! Undo: the last thing that was done in a home and can be taken back.
//!
//! | done | taken back by |
//! |---|---|
//! | `pg create`, `pg start --replica` | the instance goes to the trash |
//! | `pg destroy` | it comes back from the trash, and is started if it ran |
//! | `pg checkout` | a checkout of the `HEAD{i}` that it left |
//! | `snapshot destroy` | the snapshot is there again, until a collection has taken it |
//! | `storage detach` | it is attached as it was |
//!
//! Operations that cannot be taken back (a start, a push) are passed over. What was taken back is not taken back
//! again: a second undo goes one further. One whose need is gone (the trash keeps things for a while only) is an error that
//! says so; any other can be taken back by its id.

use std::collections::BTreeSet;

use neon_pagestore::CommitId;
use serde::Serialize;

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::CheckoutChoice;
use crate::instances::checkout::{CONFIGURATION, started};
use crate::name::Name;
use crate::neon::Neon;
use crate::operation::{Begun, Operation, Outcome};
use crate::snapshots::Found;

const VERB: &str = "undo";
const UNDOES: &str = "undoes";
/// The instance that taking back its creation put into the trash.
const IN_TRASH: &str = "in-trash";

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
    /// What can be taken back, the last first. Of some of it the need may be gone: that is told when it is tried.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn undoables(&self) -> Result<Vec<Operation>> {
        let operations = self.operations()?;
        let undone: BTreeSet<String> = operations
            .iter()
            .filter(|operation| operation.outcome == Outcome::Done && operation.verb == VERB)
            .filter_map(|operation| operation.details.get(UNDOES).cloned())
            .collect();
        let operations = operations.into_iter().rev();
        Ok(operations
            .filter(|operation| operation.outcome == Outcome::Done)
            .filter(|operation| operation.verb != VERB && Step::of(operation).is_some())
            .filter(|operation| !undone.contains(&operation.id))
            .collect())
    }

    /// The operation that [`undo`](Self::undo) would take back.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when nothing is left to take back; when the log cannot be read.
    pub fn undoable(&self) -> Result<Operation> {
        let mut undoables = self.undoables()?.into_iter();
        undoables.next().ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                "operation log",
                "has nothing that could be undone",
            )
            .hinted("see `neon op log`")
        })
    }

    /// The operation with this id, or with one that begins so, that [`undo_of`](Self::undo_of) would take back.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when there is no such operation; [`Invalid`](ErrorKind::Invalid) when there are
    /// several, or it is none that can be taken back.
    pub fn undoable_of(&self, id: &str) -> Result<Operation> {
        let subject = || format!("operation {id}");
        let mut all = self.operations()?;
        all.retain(|operation| !id.is_empty() && operation.id.starts_with(id));
        let operation = match (all.pop(), all.is_empty()) {
            (Some(operation), true) => operation,
            (None, _) => {
                return Err(
                    Error::new(ErrorKind::NotFound, subject(), "is not in the log")
                        .hinted("see `neon op log`"),
                );
            }
            _ => {
                return Err(
                    Error::new(ErrorKind::Invalid, subject(), "is more than one")
                        .hinted("give more of its id"),
                );
            }
        };
        let undoables = self.undoables()?;
        if undoables.iter().any(|one| one.id == operation.id) || self.is_in_trash(&operation) {
            return Ok(operation);
        }
        let why = match operation.outcome {
            Outcome::Begun => "is under way, or was killed",
            Outcome::Failed => "failed, and left nothing to take back",
            Outcome::Done if Step::of(&operation).is_none() => {
                "is of a kind that is not taken back"
            }
            Outcome::Done => "was taken back already",
        };
        let error = Error::new(
            ErrorKind::Invalid,
            subject(),
            format!("({} {}) {why}", operation.verb, operation.subject),
        );
        Err(match others(&undoables, &operation.id) {
            Some(others) => error.hinted(others),
            None => error,
        })
    }

    /// Takes back the last operation of the log that can be.
    ///
    /// Dropped, or killed: as the verb that takes it back.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound) when nothing is left to take back, or what is needed for it is gone; then the hint
    /// names others, for [`undo_of`](Self::undo_of). [`Partial`](ErrorKind::Partial) when it is taken back, and a server that
    /// ran before does not start. As the verb that takes it back.
    pub async fn undo(&self) -> Result<Undone> {
        let operation = self.undoable()?;
        Box::pin(self.undo_one(operation)).await
    }

    /// Takes back one operation, though others came after it.
    ///
    /// Dropped, or killed: as the verb that takes it back.
    ///
    /// # Errors
    /// As [`undoable_of`](Self::undoable_of) and [`undo`](Self::undo).
    pub async fn undo_of(&self, id: &str) -> Result<Undone> {
        let operation = self.undoable_of(id)?;
        Box::pin(self.undo_one(operation)).await
    }

    /// Whether an operation took back a creation, and what it put into the trash is there still. Only who asks for it gets
    /// that back: to take back a second operation is to go one further.
    fn is_in_trash(&self, operation: &Operation) -> bool {
        let id = operation.details.get(IN_TRASH);
        operation.outcome == Outcome::Done
            && operation.verb == VERB
            && id.is_some_and(|id| self.home().trash().join(format!("{id}.json")).exists())
    }

    async fn undo_one(&self, operation: Operation) -> Result<Undone> {
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
        if let Step::Create { id, .. } = &step {
            begun.detail(IN_TRASH, *id);
        }
        let created = matches!(step, Step::Create { .. });
        let again = begun.operation().id.clone();
        let done = Box::pin(self.take_back(step, &begun)).await;
        match begun.end(done) {
            Ok((what, None)) => {
                if created {
                    self.tell(Event::Note(format!(
                        "`neon undo {again}` brings it back, as long as the trash has it"
                    )));
                }
                Ok(Undone { operation, what })
            }
            Ok((_, Some(trouble))) => Err(trouble),
            Err(error) => Err(self.not_taken_back(&operation, error)),
        }
    }

    /// Why an operation could not be taken back, and what else could.
    fn not_taken_back(&self, operation: &Operation, error: Error) -> Error {
        if matches!(error.kind(), ErrorKind::Cancelled | ErrorKind::Partial) {
            return error;
        }
        let subject = format!(
            "{} {} (operation {})",
            operation.verb, operation.subject, operation.id
        );
        let undoables = self.undoables().unwrap_or_default();
        let hint = match (error.hint(), others(&undoables, &operation.id)) {
            (Some(hint), Some(others)) => Some(format!("{hint}; or {others}")),
            (hint, others) => others.or_else(|| hint.map(str::to_owned)),
        };
        let whole = Error::new(error.kind(), subject, "cannot be taken back").caused_by(error);
        match hint {
            Some(hint) => whole.hinted(hint),
            None => whole,
        }
    }

    /// Takes it back; beside what was done why a server that ran before does not start.
    async fn take_back(
        &self,
        step: Step<'_>,
        begun: &Begun<'_>,
    ) -> Result<(String, Option<Error>)> {
        match step {
            Step::Create { name, id } => {
                let name: Name = name.parse()?;
                Box::pin(self.pg().destroy_of(&name, Some(id), false)).await?;
                Ok((format!("pg {name} is in the trash"), None))
            }
            Step::Destroy { id } => {
                let (back, trouble) = Box::pin(self.pg().undo_destroy_unlogged(id)).await?;
                let runs = if back.wanted {
                    ", and its server runs"
                } else {
                    ""
                };
                Ok((format!("pg {} is back{runs}", back.name), trouble))
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
                let id = commit(head_id)?;
                let mut heads = record.heads.iter();
                let known = heads.find(|head| head.snapshot == id);
                let storage = known.map_or(&record.storage, |head| &head.storage);
                let found = self.head(storage, head, head_id).await?;
                let choice = CheckoutChoice {
                    configuration,
                    ..CheckoutChoice::default()
                };
                let plan = Box::pin(self.pg().plan_checkout(&name, &found, choice)).await?;
                let (done, trouble) = Box::pin(self.pg().checkout_unlogged(&plan, begun)).await?;
                let what = format!("pg {name} is at {head}; what it was is {}", done.head);
                Ok((what, started(done, trouble).err()))
            }
            Step::DestroySnapshot { name, id, storage } => {
                let storage: Name = storage.parse()?;
                let repository = self.storages().repository(&storage).await?;
                let id = commit(id)?;
                let back = repository.repository.undo_destroy(id).await;
                back.map_err(|error| Error::repository(format!("snapshot {name}"), error))?;
                Ok((format!("snapshot {name} is back"), None))
            }
            Step::Detach { name, record } => {
                let name: Name = name.parse()?;
                self.storages().undo_detach(&name, record).await?;
                Ok((format!("storage {name} is attached"), None))
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

/// How many others are named.
const OTHERS: usize = 3;

/// What could be taken back instead.
fn others(undoables: &[Operation], but: &str) -> Option<String> {
    let others = undoables.iter().filter(|operation| operation.id != but);
    let others: Vec<String> = others
        .take(OTHERS)
        .map(|one| format!("`neon undo {}` ({} {})", one.id, one.verb, one.subject))
        .collect();
    (!others.is_empty()).then(|| format!("take back another: {}", others.join(", ")))
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
            VERB => Self::Destroy {
                id: detail(IN_TRASH)?,
            },
            "storage detach" => Self::Detach {
                name,
                record: detail("record")?,
            },
            _ => return None,
        })
    }
}
