//! The journal of a checkout, and how one that was interrupted ends: finished, or taken back.

use neon_pagestore::CommitId;
use neon_pagestore::read::Snapshot;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::checkout::CheckoutChoice;
use crate::instances::heads::head_name;
use crate::instances::{Instances, PgRecord};
use crate::name::Name;
use crate::operation::{Operation, Outcome};

/// How far a checkout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Phase {
    Saving,
    Changing,
    Starting,
}

/// A checkout that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnderWay {
    pub(crate) phase: Phase,
    pub(crate) snapshot: CommitId,
    pub(crate) storage: Name,
    pub(crate) head: u32,
    pub(crate) head_id: Option<CommitId>,
    /// Where that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) head_storage: Option<Name>,
    /// Whether the server is to run afterwards.
    pub(crate) start: bool,
    /// Whether it was told to stop: it may do so though it is up.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) stopping: bool,
    pub(crate) choice: CheckoutChoice,
    /// What the control file was at each step of ours. With another one, a server of somebody else ran meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) marks: Vec<String>,
    /// What the operation log says of it, to be ended by who finishes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) operation: Option<Operation>,
}

impl UnderWay {
    /// How the operation ends when this is at its end: a way back to the state before comes after a failure.
    fn outcome(&self) -> Outcome {
        match self.head_id == Some(self.snapshot) {
            true => Outcome::Failed,
            false => Outcome::Done,
        }
    }

    /// The storage that `HEAD{i}` is in: that of the instance when it was taken.
    pub(crate) fn kept_in(&self, record: &PgRecord) -> Name {
        self.head_storage
            .as_ref()
            .unwrap_or(&record.storage)
            .clone()
    }
}

impl Instances<'_> {
    /// Finishes or takes back a checkout that a crash interrupted. Starts the server if it was running before and this is
    /// wanted.
    pub(crate) async fn settle_checkout(
        &self,
        record: &PgRecord,
        under_way: &UnderWay,
        start: bool,
    ) -> Result<()> {
        let name = &record.name;
        match under_way.phase {
            Phase::Saving => {
                self.say_end(name, under_way, Outcome::Failed);
                if under_way.stopping {
                    self.stop_locked(name, false).await?;
                }
                self.take_back_with(name, under_way, start).await?;
            }
            Phase::Changing => {
                self.0.tell(Event::Note(format!(
                    "finishing the checkout of pg {name} that was interrupted"
                )));
                let instance = self.open(record).await?;
                if record.adopted.is_some() {
                    // For the log of its recovery.
                    self.0.home().is_mounted()?;
                    let folder = self.0.home().instance_folder(name.as_str());
                    crate::record::folder(&folder, 0o711)?;
                }
                let snapshot = match self.half_done(under_way).await {
                    Ok(snapshot) => snapshot,
                    // Gone for good, or out of reach: its state before is here.
                    Err(error) => {
                        return Err(Box::pin(self.back_to_head(name, under_way, error)).await);
                    }
                };
                let changed =
                    Box::pin(self.change(record, &instance, &snapshot, under_way, None, &mut true))
                        .await;
                if let Err(error) = changed {
                    if error.kind() == ErrorKind::Busy {
                        return Err(error);
                    }
                    return Err(Box::pin(self.back_to_head(name, under_way, error)).await);
                }
                self.say_end(name, under_way, under_way.outcome());
                self.settle_start(name, start).await?;
            }
            Phase::Starting => {
                self.say_end(name, under_way, under_way.outcome());
                self.settle_start(name, start).await?;
            }
        }
        Ok(())
    }

    /// The snapshot that a checkout was interrupted on its way to.
    pub(crate) async fn half_done(&self, under_way: &UnderWay) -> Result<Snapshot> {
        let storage = &under_way.storage;
        let repository = self.0.storages().existing_repository(storage).await?;
        let repository = repository.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("storage {storage}"),
                "has no snapshots any more",
            )
        })?;
        repository.snapshot(under_way.snapshot).await
    }

    /// Writes how the operation ended whose command did not live to say so.
    pub(crate) fn say_end(&self, name: &Name, under_way: &UnderWay, outcome: Outcome) {
        let Some(mut operation) = under_way.operation.clone() else {
            return;
        };
        if let (Some(head), Outcome::Done) = (under_way.head_id, outcome) {
            let details = &mut operation.details;
            details.insert(
                "head".to_owned(),
                head_name(name, under_way.head).to_string(),
            );
            details.insert("head-id".to_owned(), head.to_string());
        }
        self.0.end_of_another(operation, outcome);
    }

    pub(crate) async fn settle_start(&self, name: &Name, start: bool) -> Result<()> {
        let under_way = self.known(name)?.checkout;
        if start && under_way.is_some_and(|under_way| under_way.start) {
            return self.start_after(name).await;
        }
        self.forget_checkout(name).await
    }

    /// Ends the journal of a checkout, and with it the hold on what it names.
    pub(crate) async fn forget_checkout(&self, name: &Name) -> Result<()> {
        self.let_go(&self.known(name)?).await;
        self.update(name, |record| record.checkout = None)
    }

    /// Starts the server that ran before, and forgets the checkout, whatever becomes of it.
    pub(crate) async fn start_after(&self, name: &Name) -> Result<()> {
        let instance = self.instance(name).await?;
        self.nobody_gives_up(&instance).await;
        let up = self.settled_status(&instance, name).await?;
        let started = if up.is_up() {
            Ok(())
        } else {
            self.start_locked(name).await.map(drop)
        };
        self.forget_checkout(name).await?;
        started
    }

    /// Nothing was changed: all is as it was. Returns why.
    pub(crate) async fn give_up(&self, name: &Name, under_way: &UnderWay, error: Error) -> Error {
        if let Err(second) = self.take_back_with(name, under_way, true).await {
            self.0.tell(Event::Warning(format!(
                "pg {name} is as it was, but not all of that could be said or started ({second})"
            )));
        }
        error
    }

    /// As if nobody had asked: the directory is as it was.
    pub(crate) async fn take_back_with(
        &self,
        name: &Name,
        under_way: &UnderWay,
        start: bool,
    ) -> Result<()> {
        self.let_go(&self.known(name)?).await;
        let saved = self.drop_head(name, under_way).await;
        self.forget_log(&self.known(name)?);
        self.update(name, |record| {
            // A number that nobody saw is given again.
            if !saved && record.checkouts == under_way.head.saturating_add(1) {
                record.checkouts = under_way.head;
            }
            record.checkout = None;
        })?;
        if !start || !under_way.start {
            return Ok(());
        }
        let instance = self.instance(name).await?;
        self.nobody_gives_up(&instance).await;
        let status = self.settled_status(&instance, name).await?;
        if !status.is_up() {
            self.start_locked(name).await?;
        }
        Ok(())
    }

    /// Removes a `HEAD{i}` of a checkout that is not done. What cannot be reached stays, and shows in listings. Whether
    /// there was, or may have been, one.
    pub(crate) async fn drop_head(&self, name: &Name, under_way: &UnderWay) -> bool {
        let Ok(record) = self.known(name) else {
            return true;
        };
        let storage = under_way.kept_in(&record);
        let repository = self.0.storages().existing_repository(&storage).await;
        let repository = match repository {
            Ok(Some(repository)) => repository,
            Ok(None) => return false,
            Err(_) => return true,
        };
        let head = head_name(name, under_way.head);
        let id = match repository.repository.resolve_name(&head).await {
            Ok(id) => id,
            Err(error) => return error.kind() != neon_pagestore::ErrorKind::NotFound,
        };
        if let Ok(snapshot) = repository.snapshot(id).await
            && snapshot.facts().instance.as_ref() == Some(&record.id)
        {
            drop(repository.repository.destroy(id).await);
        }
        true
    }

    /// The snapshot could not be reached or is damaged: the state before is put back.
    pub(crate) async fn back_to_head(
        &self,
        name: &Name,
        under_way: &UnderWay,
        error: Error,
    ) -> Error {
        let (Some(head), false) = (under_way.head_id, error.kind() == ErrorKind::Cancelled) else {
            self.0.tell(Event::Warning(format!(
                "pg {name} is half rolled back, and its server is down; the next command on it goes on"
            )));
            return error;
        };
        if head == under_way.snapshot {
            return error;
        }
        let back = Box::pin(async {
            let mut record = self.known(name)?;
            self.let_go_but(&record, Some(head)).await;
            // The journal as it stands: it knows what the control file was at each step.
            let now = record.checkout.as_ref().unwrap_or(under_way);
            let storage = now.kept_in(&record);
            let back = UnderWay {
                snapshot: head,
                storage: storage.clone(),
                ..now.clone()
            };
            self.update(name, |record| record.checkout = Some(back.clone()))?;
            record.checkout = Some(back.clone());
            let repository = self.0.storages().repository(&storage).await?;
            let snapshot = repository.snapshot(head).await?;
            let instance = self.open(&record).await?;
            self.0.step("checkout: back");
            Box::pin(self.change(&record, &instance, &snapshot, &back, None, &mut true)).await
        })
        .await;
        match back {
            Ok(()) => {
                self.say_end(name, under_way, Outcome::Failed);
                self.0.tell(Event::Warning(format!(
                    "pg {name} is back at its state before the checkout; its replication slots are gone"
                )));
                if let Err(second) = self.settle_start(name, true).await {
                    self.0.tell(Event::Warning(format!(
                        "its server does not start ({second})"
                    )));
                }
                error
            }
            Err(second) => {
                self.0.tell(Event::Warning(format!(
                    "pg {name} is half rolled back; the next command on it tries again ({second})"
                )));
                error
            }
        }
    }
}
