//! Checkout: an instance goes back to a snapshot, in place.
//!
//! The record carries the journal, so that one write says both how far it is and what holds afterwards:
//! 1. *saving*: the number of `HEAD{i}` is taken, the server stops, `HEAD{i}` is taken of the stopped cluster.
//!    A crash until here is taken back: the directory was not touched.
//! 2. *changing*: every timeline that was ever used, and the one that recovery will end on, are written down; then every
//!    file is compared by content and what differs is rewritten, `pg_wal` among it; then recovery to the snapshot's
//!    own end, onto that timeline. A crash anywhere in it is finished by doing all of it again, on one timeline
//!    further.
//! 3. *starting*: one write of the record says that it has a new lineage, based on the snapshot. The server starts, if it
//!    ran before, and the journal goes.
//!
//! Pages are always compared by content, never by the maps of two snapshots. Without checksums or `wal_log_hints` nothing
//! else is right (a hint that is newer than the target shows rows of transactions that never committed), and with
//! them it is what also finds files that no snapshot holds: slots, and log that a recovery would read on into.

use std::collections::BTreeSet;
use std::path::Path;

use neon_pagestore::read::Snapshot;
use neon_pagestore::restore::{RestoreOptions, RestorePlan};
use neon_pagestore::{CommitId, LineageId, SnapshotName, Tag};
use neon_pg_layout::{Lsn, TimelineId};
use neon_pgctl::{Instance, OsUser, RecoveryPlan, ServerState, WalSource};
use neon_snapshot_format::Owner;
use neon_snapshot_format::SnapshotPath;
use neon_snapshot_format::pgdata::{
    DirectoryOptions, ExistingDirectory, Flush, Ownership, TablespacePlaces,
};
use serde::{Deserialize, Serialize};

use crate::background;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::isolate::{include, keep_password};
use crate::instances::restore::{Ending, read_control, recover, target, timelines_in};
use crate::instances::{Base, Instances, PgRecord};
use crate::instances::{archived, between};
use crate::name::Name;
use crate::operation::{Begun, Operation, Outcome, seconds};
use crate::snapshots::create::{CreateSnapshot, take_locked};
use crate::snapshots::{Found, redo};

/// How an instance goes back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CheckoutChoice {
    /// With the configuration and the certificates of the snapshot. Without it those of today stay.
    #[serde(default)]
    pub configuration: bool,
}

/// What a checkout would do, and what would be lost. Nothing is changed by making one.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct CheckoutPlan {
    /// The instance.
    pub pg: Name,
    /// The id of the instance, which an execution insists on.
    pub id: String,
    /// What the snapshot was asked for as.
    pub asked: String,
    /// The snapshot.
    pub snapshot: CommitId,
    /// The storage that it is read from.
    pub storage: Name,
    /// When it was taken, in seconds since 1970.
    pub taken: i64,
    /// Whether it shows another instance of the same cluster: a clone, or what this one was cloned from.
    pub of_another: bool,
    /// What the present state will be called.
    pub head: SnapshotName,
    /// Whether its server runs; it is started again then.
    pub running: bool,
    /// Sessions that will be ended.
    pub sessions: u64,
    /// Replication slots, all of which go: a snapshot has none.
    pub slots: Vec<String>,
    /// Subscriptions of today. Those that the snapshot has too go on from where they were then; what their publishers
    /// have dropped since does not come back.
    pub subscriptions: Vec<String>,
    /// Transactions that are prepared and not ended.
    pub prepared: Vec<String>,
    /// Segments of log that were not archived yet. They are kept beside the instance, in `wal-kept`.
    pub unarchived: u64,
    /// Replicas that follow it now and cannot afterwards.
    pub replicas: Vec<String>,
    /// Bytes of log that were written since the snapshot, where both are of one history.
    pub log_since: Option<u64>,
    /// Bytes that will be rewritten; known only of a stopped instance.
    pub rewrite: Option<u64>,
    /// Bytes of the snapshot: no more than this is compared, or rewritten.
    pub size: u64,
    #[serde(skip)]
    choice: CheckoutChoice,
    #[serde(skip)]
    found: Found,
}

/// A checkout that was done.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct CheckedOut {
    /// The instance.
    pub pg: Name,
    /// The snapshot that it shows now.
    pub snapshot: CommitId,
    /// What the state before is called.
    pub head: SnapshotName,
    /// Its id.
    pub head_id: CommitId,
    /// Bytes that were compared.
    pub compared: u64,
    /// Bytes that were rewritten.
    pub rewritten: u64,
    /// The timeline that it is on.
    pub timeline: Option<u32>,
    /// Whether the server runs.
    pub running: bool,
}

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
    /// Whether the server is to run afterwards.
    pub(crate) start: bool,
    pub(crate) choice: CheckoutChoice,
    /// What the control file was at each step of ours. With another one, a server of somebody else ran meanwhile.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) marks: Vec<String>,
    /// What the operation log says of it, to be ended by who finishes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) operation: Option<Operation>,
}

/// The state before a checkout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The number in its name.
    pub number: u32,
    /// Its id.
    pub snapshot: CommitId,
    /// The storage that it is in.
    pub storage: Name,
    /// When it was taken, in seconds since 1970.
    pub taken: u64,
}

/// In the operation log: with the configuration of the snapshot.
pub(crate) const CONFIGURATION: &str = "configuration";
/// At most so many states before checkouts are kept, and none but the newest for longer.
const MOST_HEADS: usize = 5;
const OLDEST_HEAD: u64 = 7 * 24 * 60 * 60;

impl Instances<'_> {
    /// What going back to a snapshot would do to an instance, and what would be lost.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Invalid`](ErrorKind::Invalid) for a snapshot of another cluster, or an instance
    /// that is a replica; [`Busy`](ErrorKind::Busy).
    pub async fn plan_checkout(
        &self,
        name: &Name,
        to: &Found,
        choice: CheckoutChoice,
    ) -> Result<CheckoutPlan> {
        let _lock = self.lock(name).await?;
        Box::pin(self.settle(name)).await?;
        let record = self.known(name)?;
        if record.adopted.is_some() {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("pg {name}"),
                "was adopted, and what is adopted is not changed",
            )
            .hinted("make an instance of the snapshot: `neon pg create --snapshot`"));
        }
        let snapshot = to.repository.snapshot(to.id).await?;
        let instance = self.open(&record).await?;
        let facts = snapshot.facts();
        let control = read_control(instance.data_dir())?;
        let subject = format!("snapshot {}", to.asked);
        if facts.cluster.system != control.system_identifier {
            return Err(Error::new(
                ErrorKind::Invalid,
                subject,
                format!("is of another cluster than pg {name}"),
            )
            .hinted(format!("neon pg create --snapshot {}", to.asked)));
        }
        if choice.configuration && facts.instance.as_ref() != Some(&record.id) {
            return Err(Error::new(
                ErrorKind::Invalid,
                subject,
                format!("is of another instance, in whose name pg {name} would act with its configuration"),
            )
            .hinted("go back to it without its configuration"));
        }
        if facts.cluster.major != instance.major() {
            return Err(Error::new(
                ErrorKind::Invalid,
                subject,
                format!("is of PostgreSQL {}", facts.cluster.major),
            ));
        }
        let Some(storage) = to.repository.name.clone() else {
            return Err(Error::new(
                ErrorKind::Invalid,
                subject,
                "is in a storage that is not attached",
            )
            .hinted("attach the storage, or pull the snapshot, first"));
        };
        let status = instance.status().await;
        let status = status.map_err(|error| Error::server(format!("pg {name}"), error))?;
        if status.state == ServerState::Standby
            || instance.data_dir().join("standby.signal").exists()
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("pg {name}"),
                "is a replica, which shows what its primary shows",
            )
            .hinted("check out its primary, or promote it first"));
        }
        if status.is_up() {
            self.refuse_managed(&record, "stop")?;
        }
        redo::can_be_replayed(&snapshot, &subject).await?;
        if redo::is_minimal(&snapshot).await? {
            return Err(Error::new(
                ErrorKind::Invalid,
                subject,
                "was taken with wal_level=minimal: nothing takes it to a new timeline",
            )
            .hinted("make an instance of it: `neon pg create --snapshot`"));
        }
        let created = redo::of_snapshot(&snapshot).await?;
        redo::refuse(&created, Some(instance.data_dir()), &subject)?;
        let mut plan = CheckoutPlan {
            pg: name.clone(),
            id: record.id.clone(),
            asked: to.asked.clone(),
            snapshot: to.id,
            storage,
            taken: facts.taken,
            of_another: facts.instance.as_ref().is_some_and(|id| *id != record.id),
            head: head_name(name, self.next_head(&record).await?),
            running: status.is_up(),
            sessions: 0,
            slots: Vec::new(),
            subscriptions: Vec::new(),
            prepared: Vec::new(),
            unarchived: archived::missing(instance.data_dir()).len() as u64,
            replicas: Vec::new(),
            log_since: None,
            rewrite: None,
            size: facts.cost.bytes,
            choice,
            found: to.clone(),
        };
        let known = facts
            .log
            .timelines
            .iter()
            .any(|step| step.timeline == control.checkpoint.timeline);
        if plan.running {
            let now = ask(&instance, name, &mut plan).await?;
            plan.log_since = now
                .zip(facts.log.stop)
                .filter(|_| known)
                .and_then(|(now, then)| now.0.checked_sub(then.0));
        } else {
            plan.slots = stored_slots(instance.data_dir());
            let now = control.checkpoint_location;
            plan.log_since = facts
                .log
                .stop
                .filter(|_| known)
                .and_then(|then| now.0.checked_sub(then.0));
            if control.state.is_clean() {
                let (_, compared) = self.compare(&record, &instance, &snapshot, choice).await?;
                plan.rewrite = Some(compared.bytes);
            }
        }
        Ok(plan)
    }

    /// Takes an instance back to a snapshot, as planned. Its state before is in `HEAD{i}`; it ends on a timeline that it was
    /// never on, in a new lineage, with its configuration of before unless asked otherwise.
    ///
    /// Dropped, or killed at any point: the next verb on the instance takes it back or finishes it.
    ///
    /// # Errors
    /// [`Busy`](ErrorKind::Busy) when the instance is another by now; [`Environment`](ErrorKind::Environment) without room;
    /// [`Damaged`](ErrorKind::Damaged) when the snapshot is: the instance then shows its state before, as far as a
    /// checkout of `HEAD{i}` brings it back.
    pub async fn checkout(&self, plan: &CheckoutPlan) -> Result<CheckedOut> {
        let mut operation = self.0.begin_operation("pg checkout", plan.pg.as_str())?;
        operation.detail("id", plan.id.clone());
        operation.detail("snapshot", plan.snapshot.to_string());
        operation.detail("storage", plan.storage.to_string());
        if plan.choice.configuration {
            operation.detail(CONFIGURATION, "true");
        }
        let done = Box::pin(self.checkout_unlogged(plan, &operation)).await;
        if let Ok((done, _)) = &done {
            operation.detail("head", done.head.to_string());
            operation.detail("head-id", done.head_id.to_string());
        }
        let (done, trouble) = operation.end(done)?;
        started(done, trouble)
    }

    /// Takes an instance back; beside the result why its server did not start.
    pub(crate) async fn checkout_unlogged(
        &self,
        plan: &CheckoutPlan,
        operation: &Begun<'_>,
    ) -> Result<(CheckedOut, Option<Error>)> {
        let name = &plan.pg;
        let _lock = self.lock(name).await?;
        Box::pin(self.settle(name)).await?;
        let record = self.known(name)?;
        if record.id != plan.id {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("pg {name}"),
                "is another instance by now",
            )
            .hinted("plan again"));
        }
        let instance = self.open(&record).await?;
        let status = instance.status().await;
        let status = status.map_err(|error| Error::server(format!("pg {name}"), error))?;
        let snapshot = plan.found.repository.snapshot(plan.snapshot).await?;
        let under_way = UnderWay {
            phase: Phase::Saving,
            snapshot: plan.snapshot,
            storage: plan.storage.clone(),
            head: self.next_head(&record).await?,
            head_id: None,
            start: status.is_up(),
            choice: plan.choice,
            marks: Vec::new(),
            operation: Some(operation.operation().clone()),
        };
        self.update(name, |record| {
            record.checkouts = under_way.head.saturating_add(1);
            record.checkout = Some(under_way.clone());
        })?;
        self.0.step("checkout: begun");
        let saved = Box::pin(async {
            if status.is_up() {
                self.0
                    .tell(Event::Step(format!("Stopping postgres on {name}.")));
                self.stop_locked(name, false).await?;
            }
            self.nobody_runs(&instance, name).await?;
            self.0.step("checkout: stopped");
            let head = Box::pin(self.save(name, &under_way)).await?;
            self.0.step("checkout: saved");
            self.0.tell(Event::Step(format!(
                "Rolling back {name}@CURRENT to {}.",
                plan.asked
            )));
            let (directory, compared) = self
                .compare(&record, &instance, &snapshot, plan.choice)
                .await?;
            has_room(&instance, &directory, &snapshot)?;
            let kept = self
                .0
                .home()
                .instance_folder(name.as_str())
                .join("wal-kept");
            let kept = kept.join(record.lineage.to_string());
            if archived::keep(instance.data_dir(), &kept)? {
                self.0.tell(Event::Warning(format!(
                    "Log of {name} that was not archived yet is kept in {}.",
                    kept.display()
                )));
            }
            let created = redo::of_snapshot(&snapshot).await?;
            redo::refuse(&created, Some(instance.data_dir()), &plan.asked)?;
            self.0.step("checkout: compared");
            self.0.go_on()?;
            Ok((head, directory, compared))
        })
        .await;
        let (head, directory, compared) = match saved {
            Ok(saved) => saved,
            Err(error) => return Err(self.give_up(name, &under_way, error).await),
        };
        let under_way = UnderWay {
            phase: Phase::Changing,
            head_id: Some(head),
            ..under_way
        };
        let (total, rewritten) = (compared.compared, compared.bytes);
        let mut touched = false;
        let changed = Box::pin(self.change(
            &record,
            &instance,
            &snapshot,
            &under_way,
            Some((directory, compared)),
            &mut touched,
        ))
        .await;
        if let Err(error) = changed {
            if !touched {
                return Err(self.give_up(name, &under_way, error).await);
            }
            return Err(Box::pin(self.back_to_head(name, &under_way, error)).await);
        }
        let timeline = self.known(name)?.timelines.iter().max().copied();
        let mut trouble = None;
        if under_way.start {
            self.0
                .tell(Event::Step(format!("Starting postgres on {name}.")));
            trouble = self.start_after(name).await.err();
        }
        self.trim_heads(name).await;
        let done = CheckedOut {
            pg: name.clone(),
            snapshot: plan.snapshot,
            head: head_name(name, under_way.head),
            head_id: head,
            compared: total,
            rewritten,
            timeline,
            running: under_way.start && trouble.is_none(),
        };
        Ok((done, trouble))
    }

    /// The first number that neither this instance nor one that had its name before gave.
    pub(super) async fn next_head(&self, record: &PgRecord) -> Result<u32> {
        let mut number = record.checkouts;
        let repository = self.0.storages().repository(&record.storage).await?;
        loop {
            let name = head_name(&record.name, number);
            match repository.repository.resolve_name(&name).await {
                Ok(_) => number = number.saturating_add(1),
                Err(error) if error.kind() == neon_pagestore::ErrorKind::NotFound => {
                    return Ok(number);
                }
                Err(error) => return Err(Error::repository(repository.label(), error)),
            }
        }
    }

    /// Takes `HEAD{i}` of the stopped instance.
    async fn save(&self, name: &Name, under_way: &UnderWay) -> Result<CommitId> {
        let head = CreateSnapshot {
            // What is damaged now is damaged in it, too; that is no reason not to go back.
            allow_bad_pages: true,
            ..CreateSnapshot::new(head_name(name, under_way.head))
        };
        let taken = Box::pin(take_locked(self.0, &self.known(name)?, &head)).await?;
        if taken.name.is_some() {
            return Ok(taken.id);
        }
        // Another home has an instance of this name and keeps its snapshots in the same storage.
        let target = self.0.storages().repository(&taken.storage).await?;
        drop(target.repository.destroy(taken.id).await);
        let subject = format!("snapshot {}", head.name);
        Err(Error::new(
            ErrorKind::Busy,
            subject,
            "was taken by another home meanwhile",
        )
        .hinted("try again: the next number is used then"))
    }

    /// Finishes or takes back a checkout that a crash interrupted. Starts the server if it was running before and this is
    /// wanted.
    pub(super) async fn settle_checkout(
        &self,
        record: &PgRecord,
        under_way: &UnderWay,
        start: bool,
    ) -> Result<()> {
        let name = &record.name;
        match under_way.phase {
            Phase::Saving => {
                self.say_end(name, under_way, Outcome::Failed);
                self.take_back_with(name, under_way, start).await?;
            }
            Phase::Changing => {
                self.0.tell(Event::Note(format!(
                    "finishing the checkout of pg {name} that was interrupted"
                )));
                let instance = self.open(record).await?;
                if record.adopted.is_some() {
                    // For the log of its recovery.
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
                let outcome = if under_way.head_id == Some(under_way.snapshot) {
                    // The state before, after a snapshot that was damaged.
                    Outcome::Failed
                } else {
                    Outcome::Done
                };
                self.say_end(name, under_way, outcome);
                self.settle_start(name, start).await?;
            }
            Phase::Starting => {
                self.say_end(name, under_way, Outcome::Done);
                self.settle_start(name, start).await?;
            }
        }
        Ok(())
    }

    /// The snapshot that a checkout was interrupted on its way to.
    async fn half_done(&self, under_way: &UnderWay) -> Result<Snapshot> {
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
    fn say_end(&self, name: &Name, under_way: &UnderWay, outcome: Outcome) {
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

    async fn settle_start(&self, name: &Name, start: bool) -> Result<()> {
        if start && self.known(name)?.checkout.is_some() {
            return self.start_after(name).await;
        }
        self.update(name, |record| record.checkout = None)
    }

    /// Starts the server that ran before, and forgets the checkout, whatever becomes of it.
    async fn start_after(&self, name: &Name) -> Result<()> {
        let instance = self.instance(name).await?;
        let status = instance.status().await;
        let up = status.map_err(|error| Error::server(format!("pg {name}"), error))?;
        let started = if up.is_up() {
            Ok(())
        } else {
            self.start_locked(name).await.map(drop)
        };
        self.update(name, |record| record.checkout = None)?;
        started
    }

    /// Nothing was changed: all is as it was. Returns why.
    async fn give_up(&self, name: &Name, under_way: &UnderWay, error: Error) -> Error {
        if let Err(second) = self.take_back_with(name, under_way, true).await {
            self.0.tell(Event::Warning(format!(
                "pg {name} is as it was, but not all of that could be said or started ({second})"
            )));
        }
        error
    }

    /// As if nobody had asked: the directory is as it was.
    async fn take_back_with(&self, name: &Name, under_way: &UnderWay, start: bool) -> Result<()> {
        self.drop_head(name, under_way).await;
        self.update(name, |record| record.checkout = None)?;
        if !start || !under_way.start {
            return Ok(());
        }
        let instance = self.instance(name).await?;
        let status = instance.status().await;
        let status = status.map_err(|error| Error::server(format!("pg {name}"), error))?;
        if !status.is_up() {
            self.start_locked(name).await?;
        }
        Ok(())
    }

    /// Removes a `HEAD{i}` of a checkout that is not done. What cannot be reached stays, and shows in listings.
    async fn drop_head(&self, name: &Name, under_way: &UnderWay) {
        let Ok(record) = self.known(name) else { return };
        let repository = self.0.storages().existing_repository(&record.storage).await;
        let Ok(Some(repository)) = repository else {
            return;
        };
        let head = head_name(name, under_way.head);
        if let Ok(id) = repository.repository.resolve_name(&head).await
            && let Ok(snapshot) = repository.snapshot(id).await
            && snapshot.facts().instance.as_ref() == Some(&record.id)
        {
            drop(repository.repository.destroy(id).await);
        }
    }

    /// The snapshot could not be reached or is damaged: the state before is put back.
    async fn back_to_head(&self, name: &Name, under_way: &UnderWay, error: Error) -> Error {
        // Somebody asked to stop: the next verb goes on.
        let (Some(head), false) = (under_way.head_id, error.kind() == ErrorKind::Cancelled) else {
            return error;
        };
        if head == under_way.snapshot {
            return error;
        }
        let back = Box::pin(async {
            let mut record = self.known(name)?;
            let back = UnderWay {
                snapshot: head,
                storage: record.storage.clone(),
                ..under_way.clone()
            };
            self.update(name, |record| record.checkout = Some(back.clone()))?;
            record.checkout = Some(back.clone());
            let repository = self.0.storages().repository(&record.storage).await?;
            let snapshot = repository.snapshot(head).await?;
            let instance = self.open(&record).await?;
            Box::pin(self.change(&record, &instance, &snapshot, &back, None, &mut true)).await?;
            if under_way.start {
                self.start_after(name).await?;
            }
            Ok::<_, Error>(())
        })
        .await;
        match back {
            Ok(()) => {
                self.0.tell(Event::Warning(format!(
                    "pg {name} is back at its state before the checkout; its replication slots are gone"
                )));
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

    /// Compares what is there with a snapshot, page by page. Changes nothing.
    async fn compare(
        &self,
        record: &PgRecord,
        instance: &Instance,
        snapshot: &Snapshot,
        choice: CheckoutChoice,
    ) -> Result<(ExistingDirectory, RestorePlan)> {
        let subject = format!("pg {}", record.name);
        let name = &record.name;
        let keep = Keep::of(instance, choice);
        let (data, major) = (instance.data_dir().to_owned(), instance.major());
        let snapshot = snapshot.clone();
        let mut options = RestoreOptions::default();
        options.threads = self.0.options().threads;
        let about = subject.clone();
        background::run(
            self.0,
            &subject,
            self.writing(name),
            || (),
            move |cancel| {
                options.cancel = cancel;
                let directory = ExistingDirectory::open(&data, major)
                    .map_err(|error| Error::format(about.clone(), error))?;
                let mut plan = RestorePlan::by_content(
                    &snapshot,
                    &directory,
                    &|path| keep.keeps(path),
                    &options,
                )
                .map_err(|error| Error::repository(about, error))?;
                // Those that are not here any more do not come back.
                plan.files.retain(|path, _| !keep.is_log(path));
                Ok((directory, plan))
            },
        )
        .await
    }

    /// Everything that touches the directory, from the first change to the record that says it is done.
    async fn change(
        &self,
        record: &PgRecord,
        instance: &Instance,
        snapshot: &Snapshot,
        under_way: &UnderWay,
        compared: Option<(ExistingDirectory, RestorePlan)>,
        touched: &mut bool,
    ) -> Result<()> {
        let name = &record.name;
        let subject = format!("pg {name}");
        let data = instance.data_dir();
        if compared.is_none() {
            self.nobody_runs(instance, name).await?;
            Box::pin(self.save_strangers(record, instance, under_way)).await?;
        }
        let snapshots = between::mark_of(snapshot).await;
        let mut marks = under_way.marks.clone();
        marks.extend(between::mark_in(data));
        marks.extend(snapshots.clone());
        let under_way = &UnderWay {
            marks,
            ..under_way.clone()
        };
        let mut used = self.used_timelines(snapshot.facts())?;
        let record = self.known(name)?;
        used.extend(
            record
                .timelines
                .iter()
                .filter_map(|n| TimelineId::new(*n).ok()),
        );
        // Those of the log that will be replaced. After a crash the control file may be missing.
        if let Ok(control) = read_control(data) {
            used.extend(timelines_in(data, &control)?);
        }
        let next = used.last().map_or(2, |last| last.get().saturating_add(1));
        self.update(name, |record| {
            record
                .timelines
                .extend(used.iter().map(|timeline| timeline.get()));
            record.timelines.insert(next);
            record.checkout = Some(under_way.clone());
        })?;
        self.0.step("checkout: changing");
        let (directory, plan) = match compared {
            Some(compared) => compared,
            None => {
                self.compare(&record, instance, snapshot, under_way.choice)
                    .await?
            }
        };
        let writing = DirectoryOptions {
            ownership: ownership(instance.os_user()),
            tablespaces: TablespacePlaces::Below(self.tablespaces(&record)),
            manifest: false,
            flush: Flush::FileSystem,
            ..DirectoryOptions::default()
        };
        let mut options = RestoreOptions::default();
        options.threads = self.0.options().threads;
        let (to, about) = (snapshot.clone(), subject.clone());
        let executed = background::run(
            self.0,
            &subject,
            self.writing(name),
            || (),
            move |cancel| {
                options.cancel = cancel;
                plan.execute(&to, directory, writing, &options)
                    .map_err(|error| Error::repository(about, error))
            },
        )
        .await;
        // The control file goes before the first change and comes back, as the snapshot's, with the last.
        let left = between::mark_in(data);
        *touched |= executed.is_ok() || left.is_none() || snapshots.is_none() || left == snapshots;
        executed?;
        self.0.step("checkout: rewritten");
        let plan =
            RecoveryPlan::new(WalSource::Command("exit 1".to_owned()), target(snapshot)).in_place();
        let ending = Ending {
            neon: self.0,
            snapshot,
            subject: &subject,
            instance,
        };
        let timelines = recover(&ending, plan, used).await?;
        if under_way.choice.configuration && record.adopted.is_none() {
            include(instance, self.0.os_user()?.as_ref())?;
        }
        let left = between::mark_in(data);
        self.update(name, |record| {
            if let Some(under_way) = &mut record.checkout {
                under_way.marks.extend(left);
            }
        })?;
        self.0.step("checkout: recovered");
        // Another instance's superuser has another password than our pass file.
        if snapshot.facts().instance.as_ref() != Some(&record.id) && record.adopted.is_none() {
            keep_password(instance, self.0.os_user()?.as_ref()).await?;
        }
        let lineage =
            LineageId::random().map_err(|error| Error::repository(subject.as_str(), error))?;
        let now = seconds(self.0.now());
        self.update(name, |record| {
            record
                .timelines
                .extend(timelines.iter().map(|timeline| timeline.get()));
            record.lineage = lineage;
            record.base = Some(Base {
                snapshot: under_way.snapshot,
                storage: Some(under_way.storage.clone()),
            });
            record.checkout = under_way.start.then(|| UnderWay {
                phase: Phase::Starting,
                ..under_way.clone()
            });
            if let Some(head) = under_way.head_id {
                record.heads.push(Head {
                    number: under_way.head,
                    snapshot: head,
                    storage: record.storage.clone(),
                    taken: now,
                });
            }
        })?;
        self.0.step("checkout: done");
        Ok(())
    }

    /// Removes states before checkouts that are beyond the limits. What cannot be removed now is tried again.
    async fn trim_heads(&self, name: &Name) {
        let Ok(record) = self.known(name) else { return };
        let now = seconds(self.0.now());
        let mut heads = record.heads.clone();
        heads.sort_by_key(|head| std::cmp::Reverse(head.number));
        for (place, head) in heads.iter().enumerate() {
            let old = place > 0 && now.saturating_sub(head.taken) > OLDEST_HEAD;
            let based = record.base.as_ref().map(|base| base.snapshot) == Some(head.snapshot);
            if based || (place < MOST_HEADS && !old) {
                continue;
            }
            let repository = self.0.storages().existing_repository(&head.storage).await;
            let gone = match repository {
                Ok(Some(repository)) => match repository.repository.destroy(head.snapshot).await {
                    Ok(()) => true,
                    Err(error) => error.kind() == neon_pagestore::ErrorKind::NotFound,
                },
                _ => false,
            };
            if gone {
                let forgotten = self.update(name, |record| {
                    record.heads.retain(|known| known.number != head.number);
                });
                if forgotten.is_err() {
                    return;
                }
            }
        }
    }
}

/// A checkout that is done is done, also when the server does not come up on what it left.
pub(crate) fn started(done: CheckedOut, trouble: Option<Error>) -> Result<CheckedOut> {
    let Some(error) = trouble else {
        return Ok(done);
    };
    Err(Error::new(
        ErrorKind::Partial,
        format!("pg {}", done.pg),
        "was rolled back, and its server does not start",
    )
    .hinted(format!(
        "`neon undo` takes it back to {}; or repair its configuration and start it",
        done.head
    ))
    .caused_by(error))
}

/// `PG@HEAD{i}`
pub(super) fn head_name(pg: &Name, number: u32) -> SnapshotName {
    SnapshotName::Tagged {
        instance: pg.as_str().to_owned(),
        tag: Tag::Head(number),
    }
}

fn ownership(user: &OsUser) -> Ownership {
    if OsUser::current().is_root() {
        Ownership::Fixed(Owner {
            uid: user.uid(),
            gid: user.gid(),
        })
    } else {
        Ownership::Process
    }
}

fn has_room(instance: &Instance, directory: &ExistingDirectory, to: &Snapshot) -> Result<()> {
    let present: u64 = directory.entries().iter().map(|entry| entry.size()).sum();
    let more = to.facts().cost.bytes.saturating_sub(present);
    super::restore::room_for(instance.data_dir(), more)
}

/// What only the server can tell of what would be lost, and how far its log is.
async fn ask(instance: &Instance, name: &Name, plan: &mut CheckoutPlan) -> Result<Option<Lsn>> {
    let failed = |error| {
        Error::new(ErrorKind::Failed, format!("pg {name}"), "cannot be asked").caused_by(error)
    };
    let client = instance.connect("postgres").await;
    let mut client = client.map_err(|error| Error::server(format!("pg {name}"), error))?;
    let asked = client
        .simple_query(
            "select count(*) from pg_catalog.pg_stat_activity \
             where backend_type = 'client backend' and pid <> pg_backend_pid(); \
             select slot_name from pg_catalog.pg_replication_slots where not temporary order by 1; \
             select subname from pg_catalog.pg_subscription order by 1; \
             select gid from pg_catalog.pg_prepared_xacts order by 1; \
             select application_name from pg_catalog.pg_stat_replication order by 1; \
             select pg_catalog.pg_current_wal_insert_lsn()",
        )
        .await
        .map_err(failed)?;
    client.close().await;
    let column = |place: usize| -> Vec<String> {
        let rows = asked.get(place).map_or(&[][..], |set| set.rows());
        rows.iter()
            .filter_map(|row| row.get(0).map(str::to_owned))
            .collect()
    };
    plan.sessions = column(0).first().and_then(|n| n.parse().ok()).unwrap_or(0);
    plan.slots = column(1);
    plan.subscriptions = column(2);
    plan.prepared = column(3);
    plan.replicas = column(4);
    Ok(column(5).first().and_then(|text| text.parse().ok()))
}

/// The slots of a stopped cluster: a folder each.
fn stored_slots(data: &Path) -> Vec<String> {
    let mut found: Vec<String> = std::fs::read_dir(data.join("pg_replslot"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    found.sort_unstable();
    found
}

/// What stays as it is on disk.
struct Keep {
    configuration: bool,
    /// Files of certificates and configuration that settings name, relative to the data directory.
    named: BTreeSet<Vec<u8>>,
    /// Folders of logs.
    logs: Vec<Vec<u8>>,
}

impl Keep {
    fn of(instance: &Instance, choice: CheckoutChoice) -> Self {
        let settings = instance.file_settings();
        let data = instance.data_dir();
        let inside = |text: &str| -> Option<Vec<u8>> {
            use std::os::unix::ffi::OsStrExt;
            let whole = data.join(text);
            let relative = whole.strip_prefix(data).ok()?;
            Some(relative.as_os_str().as_bytes().to_vec())
        };
        let mut named = BTreeSet::new();
        for name in [
            "ssl_cert_file",
            "ssl_key_file",
            "ssl_ca_file",
            "ssl_crl_file",
            "ssl_dh_params_file",
            "krb_server_keyfile",
            "hba_file",
            "ident_file",
        ] {
            named.extend(settings.value(name).and_then(inside));
        }
        // Included ones.
        for setting in settings.iter() {
            named.extend(setting.file.to_str().and_then(inside));
        }
        let mut logs = vec![b"log".to_vec(), b"pg_log".to_vec()];
        logs.extend(settings.value("log_directory").and_then(inside));
        logs.retain(|folder| !folder.is_empty());
        Self {
            configuration: choice.configuration,
            named,
            logs,
        }
    }

    fn is_log(&self, path: &SnapshotPath) -> bool {
        let path = path.as_bytes();
        path == b"current_logfiles"
            || self.logs.iter().any(|folder| {
                path.strip_prefix(folder.as_slice())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
            })
    }

    fn keeps(&self, path: &SnapshotPath) -> bool {
        if self.is_log(path) {
            return true;
        }
        // How to reach the instance, and where it logs, is never a matter of a snapshot.
        if path.as_bytes() == b"neon.conf" {
            return true;
        }
        if self.configuration {
            return false;
        }
        let bytes = path.as_bytes();
        let top = !bytes.contains(&b'/');
        let ends = [".conf", ".crt", ".key", ".pem", ".crl", ".origin"];
        (top && ends.iter().any(|end| bytes.ends_with(end.as_bytes())))
            || bytes.starts_with(b"conf.d/")
            || bytes == b"conf.d"
            || self.named.contains(bytes)
    }
}
