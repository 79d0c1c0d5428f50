//! Checkout: an instance goes back to a snapshot, in place.
//!
//! The record carries the journal, so that one write says both how far it is and what holds afterwards:
//! 1. *saving*: the number of `HEAD{i}` is taken, the server stops, `HEAD{i}` is taken of the stopped cluster.
//!    Then the directory is compared with the snapshot. A crash until here is taken back: the directory was not touched.
//! 2. *changing*: every timeline that was ever used, and the one that recovery will end on, are written down; then
//!    what differs is rewritten, `pg_wal` among it; then recovery to the snapshot's own end, onto that timeline. A crash
//!    anywhere in it is finished by doing all of it again, on one timeline further, after a comparison by content.
//! 3. *starting*: one write of the record says that it has a new lineage, based on the snapshot. The server starts, if it
//!    ran before, and the journal goes.
//!
//! The snapshot, and `HEAD{i}` as soon as it is taken, are [pinned](crate::pins) until then: nobody destroys or collects them.
//!
//! Which pages differ is told by the maps of `HEAD{i}` and of the snapshot where that is proven to be enough, and else by reading
//! all of them: [`compare`] says when and why. What is no page of a logged relation is always compared by content: that also
//! finds files that no snapshot holds, such as slots, and log that a recovery would read on into.

mod compare;
mod keep;
mod places;
mod plan;
mod settle;

use std::collections::BTreeSet;

use neon_pagestore::read::Snapshot;
use neon_pagestore::restore::{RestoreOptions, RestorePlan};
use neon_pagestore::{CommitId, Facts, LineageId, SnapshotName};
use neon_pg_layout::TimelineId;
use neon_pgctl::{Instance, OsUser, RecoveryPlan, WalSource};
use neon_snapshot_format::EntryKind;
use neon_snapshot_format::pgdata::{DirectoryOptions, Flush, TablespacePlaces};
use serde::Serialize;

use crate::background;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::checkout::compare::{Compared, Grounds, seen_running};
use crate::instances::checkout::places::own_places;
use crate::instances::heads::head_name;
use crate::instances::isolate::{give_password, include, keep_password, put_login, roles};
use crate::instances::restore::{Ending, ownership, read_control, recover, target, timelines_in};
use crate::instances::{Base, Instances, PgRecord, between};
use crate::name::Name;
use crate::operation::{Begun, seconds};
use crate::snapshots::redo;
use crate::snapshots::room;

pub use compare::Compare;
pub(crate) use compare::handed_over;
pub use plan::{CheckoutChoice, CheckoutPlan};
pub(crate) use settle::{Phase, UnderWay};

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
    /// How it was found out which pages to rewrite: `map` or `content`.
    pub compared_by: &'static str,
    /// Why not by maps, where nobody asked for a comparison by content.
    pub not_by_map: Option<String>,
    /// Bytes of the instance that were read and compared.
    pub compared: u64,
    /// Bytes that were rewritten.
    pub rewritten: u64,
    /// The timeline that it is on.
    pub timeline: Option<u32>,
    /// Whether the server runs.
    pub running: bool,
}

/// In the operation log: with the configuration of the snapshot.
pub(crate) const CONFIGURATION: &str = "configuration";

impl Instances<'_> {
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
        plan::is_ours(&record)?;
        let instance = self.open(&record).await?;
        let status = self.settled_status(&instance, name).await?;
        let snapshot = plan.found.open().await?;
        // While it runs nobody turns checksums off or on.
        let running = status.is_up().then(|| seen_running(instance.data_dir()));
        let running = running.flatten();
        let under_way = UnderWay {
            phase: Phase::Saving,
            snapshot: plan.snapshot,
            storage: plan.storage.clone(),
            head: self.next_head(&record).await?,
            head_id: None,
            head_storage: Some(record.storage.clone()),
            start: status.is_up(),
            stopping: false,
            choice: plan.choice,
            marks: Vec::new(),
            operation: Some(operation.operation().clone()),
        };
        self.is_whole(&record)?;
        self.remember_disks(&record)?;
        let attached = self.0.storages().hold(&plan.storage).await?;
        self.update(name, |record| {
            record.checkouts = under_way.head.saturating_add(1);
            record.checkout = Some(under_way.clone());
        })?;
        drop(attached);
        let saved = Box::pin(async {
            let to = &plan.found.repository;
            let pinned = self.0.pin(to, plan.snapshot, &record, "it goes back to it");
            pinned.await?;
            self.0.step("checkout: begun");
            if status.is_up() {
                self.0
                    .tell(Event::Step(format!("Stopping postgres on {name}.")));
                self.update(name, |record| {
                    if let Some(under_way) = &mut record.checkout {
                        under_way.stopping = true;
                    }
                })?;
                self.stop_locked(name, false).await?;
            }
            self.nobody_runs(&instance, name).await?;
            self.0.step("checkout: stopped");
            let mark = between::mark_in(instance.data_dir());
            let head = Box::pin(self.save(name, &under_way)).await?;
            let own = self.0.storages().repository(&record.storage).await?;
            let pinned = self
                .0
                .pin(&own, head, &record, "it was that, and may be again");
            pinned.await?;
            self.0.step("checkout: saved");
            self.0.tell(Event::Step(format!(
                "Rolling back {name}@CURRENT to {}.",
                plan.asked
            )));
            let grounds = Grounds {
                record: record.clone(),
                target: snapshot.clone(),
                head: own.snapshot(head).await?,
                together: own.name == to.name,
                running,
                failures: plan.failures > 0,
            };
            let (compared, by) = self.compare_best(&instance, grounds, plan).await?;
            if between::mark_in(instance.data_dir()) != mark {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("pg {name}"),
                    "had a server that somebody started in the middle of a checkout",
                )
                .hinted("nothing was changed; try again"));
            }
            let wanted = room::by_tablespace(&snapshot, &plan.found.subject()).await?;
            let new = own_places(&record, &compared.plan, snapshot.facts());
            let mut places = self.places(&record, &instance, &compared.directory, wanted, &new);
            places.push(self.room_of_kept(&record, instance.data_dir()));
            room::require(&places)?;
            self.keep_log(&record, instance.data_dir())?;
            let subject = plan.found.subject();
            let created = redo::of_snapshot(&snapshot, &subject).await?;
            redo::refuse(&created, Some(instance.data_dir()), &subject)?;
            self.0.step("checkout: compared");
            self.0.go_on()?;
            Ok((head, compared, by))
        })
        .await;
        let (head, compared, by) = match saved {
            Ok(saved) => saved,
            Err(error) => return Err(self.give_up(name, &under_way, error).await),
        };
        let under_way = UnderWay {
            phase: Phase::Changing,
            head_id: Some(head),
            ..under_way
        };
        let (total, rewritten) = (compared.plan.compared, compared.plan.bytes);
        let mut touched = false;
        let changed = Box::pin(self.change(
            &record,
            &instance,
            &snapshot,
            &under_way,
            Some(compared),
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
        } else {
            self.forget_checkout(name).await?;
        }
        self.trim_heads(name).await;
        let done = CheckedOut {
            pg: name.clone(),
            snapshot: plan.snapshot,
            head: head_name(name, under_way.head),
            head_id: head,
            compared_by: if by.is_ok() { "map" } else { "content" },
            not_by_map: by.err().flatten(),
            compared: total,
            rewritten,
            timeline,
            running: under_way.start && trouble.is_none(),
        };
        Ok((done, trouble))
    }

    /// Where tablespaces go that are not there now: those of its own where they were, if nobody has the place.
    fn places_for(
        &self,
        record: &PgRecord,
        plan: &RestorePlan,
        facts: &Facts,
    ) -> Result<TablespacePlaces> {
        let below = self.tablespaces(record);
        let own = facts.instance.as_ref() == Some(&record.id);
        let mut places = own_places(record, plan, facts);
        let mut elsewhere = false;
        for entry in plan.new_tablespaces() {
            let EntryKind::Tablespace { oid, .. } = &entry.kind else {
                continue;
            };
            if places.contains_key(oid) {
                continue;
            }
            elsewhere = true;
            let place = below.join(oid.to_string());
            if own {
                self.0.tell(Event::Note(format!(
                    "tablespace {oid} is in {} now: where it was there is something else",
                    place.display()
                )));
            }
            places.insert(*oid, place);
        }
        if elsewhere {
            self.own_tablespaces(record)?;
        }
        if elsewhere && places.values().all(|place| place.starts_with(&below)) {
            return Ok(TablespacePlaces::Below(below));
        }
        if places.is_empty() {
            return Ok(TablespacePlaces::Below(below));
        }
        if elsewhere {
            crate::record::folder(&below, 0o700)?;
        }
        Ok(TablespacePlaces::Listed(places))
    }

    /// Everything that touches the directory, from the first change to the record that says it is done.
    pub(crate) async fn change(
        &self,
        record: &PgRecord,
        instance: &Instance,
        snapshot: &Snapshot,
        under_way: &UnderWay,
        compared: Option<Compared>,
        touched: &mut bool,
    ) -> Result<()> {
        let name = &record.name;
        // What was half rewritten tells nothing.
        let roles_before = compared.as_ref().and_then(|_| roles(instance));
        if compared.is_none() {
            self.nobody_runs(instance, name).await?;
            Box::pin(self.save_strangers(record, instance, under_way)).await?;
        }
        let theirs = between::mark_of(snapshot).await;
        let mut marks = under_way.marks.clone();
        marks.extend(between::mark_in(instance.data_dir()));
        marks.extend(theirs.clone());
        let under_way = &UnderWay {
            marks,
            ..under_way.clone()
        };
        let record = self.known(name)?;
        let used = self.say_changing(&record, instance, snapshot, under_way)?;
        self.0.step("checkout: changing");
        let compared = match compared {
            Some(compared) => compared,
            None => {
                // Half rewritten, it is no state that a map would tell of.
                self.compare(&record, instance, snapshot, under_way.choice, None)
                    .await?
            }
        };
        let exact = compared.exact;
        let tablespaces = self.places_for(&record, &compared.plan, snapshot.facts())?;
        let executed = self
            .rewrite(name, instance, snapshot, compared, tablespaces)
            .await;
        // The control file goes before the first change and comes back, as the snapshot's, with the last.
        let left = between::mark_in(instance.data_dir());
        *touched |= executed.is_ok() || left.is_none() || theirs.is_none() || left == theirs;
        executed?;
        self.0.step("checkout: rewritten");
        // The superuser of another instance, or of another time, may have another password than our pass file.
        let (facts, user) = (snapshot.facts(), self.0.os_user()?);
        let other = || {
            let same = facts.instance.as_ref() == Some(&record.id)
                && roles_before.is_some()
                && roles_before == roles(instance);
            !same && record.adopted.is_none()
        };
        let give = Box::pin(async {
            // Should we be killed from here on: what is left is of our own server.
            self.keep_mark(name, instance)?;
            let given = give_password(self.0, instance, facts).await;
            self.0.step("checkout: visited");
            given
        });
        let give = Some(give).filter(|_| other());
        let recovered = self.recover_in_place(&record, instance, snapshot, under_way, used, give);
        let (timelines, given) = Box::pin(recovered).await?;
        self.0.step("checkout: recovered");
        match given {
            Some(given) => put_login(instance, given?, user.as_ref())?,
            // Only replay brought other roles, or it was no time for a visit.
            None if other() => keep_password(self.0, instance, facts, user.as_ref()).await?,
            None => {}
        }
        // Without it the next way back is by content.
        let handed_over = handed_over(instance.data_dir()).ok().flatten();
        let handed_over = handed_over.filter(|_| exact);
        self.say_done(name, under_way, &timelines, handed_over)?;
        self.0.step("checkout: done");
        Ok(())
    }

    /// Writes down that the directory is being rewritten, with every timeline that was ever used and the one that recovery
    /// will end on. Returns those used.
    fn say_changing(
        &self,
        record: &PgRecord,
        instance: &Instance,
        snapshot: &Snapshot,
        under_way: &UnderWay,
    ) -> Result<BTreeSet<TimelineId>> {
        let data = instance.data_dir();
        let mut used = self.used_timelines(snapshot.facts())?;
        let known = record.timelines.iter();
        used.extend(known.filter_map(|n| TimelineId::new(*n).ok()));
        // Those of the log that will be replaced. After a crash the control file may be missing.
        if let Ok(control) = read_control(data) {
            used.extend(timelines_in(data, &control)?);
        }
        let next = used.last().map_or(2, |last| last.get().saturating_add(1));
        self.update(&record.name, |record| {
            record
                .timelines
                .extend(used.iter().map(|timeline| timeline.get()));
            record.timelines.insert(next);
            record.checkout = Some(under_way.clone());
        })?;
        Ok(used)
    }

    /// Makes the files those of the snapshot.
    async fn rewrite(
        &self,
        name: &Name,
        instance: &Instance,
        snapshot: &Snapshot,
        compared: Compared,
        tablespaces: TablespacePlaces,
    ) -> Result<()> {
        let subject = format!("pg {name}");
        let writing = DirectoryOptions {
            ownership: ownership(Some(instance.os_user()).filter(|_| OsUser::current().is_root())),
            tablespaces,
            manifest: false,
            flush: Flush::FileSystem,
            ..DirectoryOptions::default()
        };
        let mut options = RestoreOptions::default();
        options.threads = self.0.options().threads;
        let (to, about) = (snapshot.clone(), subject.clone());
        background::run(
            self.0,
            &subject,
            self.writing(name),
            || (),
            move |cancel| {
                options.cancel = cancel;
                let Compared {
                    directory, plan, ..
                } = compared;
                plan.execute(&to, directory, writing, &options)
                    .map_err(|error| Error::repository(about, error))
            },
        )
        .await
        .map(drop)
    }

    /// Recovers what was rewritten onto a timeline that was never used. Returns all that were, and what a visit came to.
    async fn recover_in_place<T: Send>(
        &self,
        record: &PgRecord,
        instance: &Instance,
        snapshot: &Snapshot,
        under_way: &UnderWay,
        used: BTreeSet<TimelineId>,
        visit: Option<impl Future<Output = T> + Send>,
    ) -> Result<(BTreeSet<TimelineId>, Option<T>)> {
        let plan =
            RecoveryPlan::new(WalSource::Command("exit 1".to_owned()), target(snapshot)).in_place();
        let subject = format!("pg {}", record.name);
        let ending = Ending {
            neon: self.0,
            snapshot,
            subject: &subject,
            instance,
        };
        let before = used.clone();
        let recovered = recover(&ending, plan, used, visit).await;
        if let Err(error) = &recovered
            && error.kind() != ErrorKind::Busy
            && let Ok(control) = read_control(instance.data_dir())
            && !before.contains(&control.checkpoint.timeline)
        {
            // Nobody but our own server was ever there.
            self.keep_mark(&record.name, instance)?;
        }
        let (timelines, came) = recovered?;
        if under_way.choice.configuration && record.adopted.is_none() {
            include(instance, self.0.os_user()?.as_ref())?;
        }
        self.keep_mark(&record.name, instance)?;
        Ok((timelines, came))
    }

    /// Writes down that the directory, as it is now, is what a server of ours left.
    fn keep_mark(&self, name: &Name, instance: &Instance) -> Result<()> {
        let left = between::mark_in(instance.data_dir());
        self.update(name, |record| {
            if let Some(under_way) = &mut record.checkout {
                under_way.marks.extend(left);
            }
        })
    }

    /// Writes down that the instance is the snapshot, in a lineage of its own.
    fn say_done(
        &self,
        name: &Name,
        under_way: &UnderWay,
        timelines: &BTreeSet<TimelineId>,
        handed_over: Option<String>,
    ) -> Result<()> {
        let lineage =
            LineageId::random().map_err(|error| Error::repository(format!("pg {name}"), error))?;
        let now = seconds(self.0.now());
        self.update(name, |record| {
            record
                .timelines
                .extend(timelines.iter().map(|timeline| timeline.get()));
            record.heads.extend(under_way.head_of(record, now));
            record.lineage = lineage;
            record.base = Some(Base {
                snapshot: under_way.snapshot,
                storage: Some(under_way.storage.clone()),
                locator: None,
                handed_over,
            });
            record.checkout = Some(UnderWay {
                phase: Phase::Starting,
                ..under_way.clone()
            });
        })
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
