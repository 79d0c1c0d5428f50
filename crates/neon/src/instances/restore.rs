//! New instances from snapshots.
//!
//! Everything is made in a folder that nobody sees, `pg/.new-<id>`: the files, the recovery to the snapshot's own end and
//! onto a timeline that nobody was on before, the first start in quarantine. Then the folder gets its name. A crash
//! leaves a record that says `creating`; the next verb on the name removes both.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use neon_cowfs::{Method, Wanted};
use neon_pagestore::restore::{RestoreOptions, restore};
use neon_pagestore::{Facts, read::Snapshot};
use neon_pg_layout::{ControlFile, TimelineHistory, TimelineId, WalFileName, WalLevel};
use neon_pgctl::{
    Installation, Instance, OsUser, PgMajor, RecoveryEnd, RecoveryPlan, RecoveryTarget, WalSource,
};
use neon_snapshot_format::pgdata::{
    DirectoryOptions, DirectoryWriter, Flush, Ownership, TablespacePlaces,
};
use neon_snapshot_format::{Owner, SnapshotKind};

use crate::background;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::all_at_once::AllAtOnce;
use crate::instances::archived::leave_to_others;
use crate::instances::checkout::handed_over;
use crate::instances::isolate::{as_it_is, ask, isolate};
use crate::instances::trees::{self, Way};
use crate::instances::unlogged::Aside;
use crate::instances::{Base, CreatePg, Instances, Pg, PgRecord, Stage, runs_here};
use crate::name::Name;
use crate::neon::Neon;
use crate::record::{self, Lock};
use crate::snapshots::room::{self, Place};
use crate::snapshots::{Found, redo};
use crate::storages::LOCAL;

/// How an instance is made from a snapshot.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct RestoreChoice {
    /// With the configuration of the origin as it is: archiving, upstreams, workers, who gets in. Without it a copy
    /// cannot act in its origin's name.
    pub as_is: bool,
    /// Although something it needs is missing here.
    pub force: bool,
    /// Whether it shares the blocks of its files with other instances of the same snapshot. The best, if not said: what costs
    /// nothing is shared, and nothing is stored twice for it.
    pub clone: Wanted,
}

/// Room that is left for what a server writes while it starts.
pub(super) const SPARE: u64 = 64 << 20;
/// More damaged pages than this are not told one by one.
const MOST_TOLD: usize = 10;

impl Instances<'_> {
    /// Makes an instance from a snapshot and starts it, unless told not to. It is on a timeline and in a lineage of its own,
    /// has none of the replication slots of its origin, and, unless asked otherwise, nothing in its configuration that
    /// reaches its origin's archive, upstream or standbys. What that changed is told as notes.
    ///
    /// Dropped: what is half made is taken back by the next verb on its name.
    ///
    /// # Errors
    /// [`Exists`](ErrorKind::Exists); [`Environment`](ErrorKind::Environment) without PostgreSQL of its major (with
    /// the command that installs it), without room, or without what it needs to run here; [`Damaged`](ErrorKind::Damaged)
    /// when the snapshot is; [`Cancelled`](ErrorKind::Cancelled). Nothing is left then.
    pub async fn create_from(
        &self,
        wanted: &CreatePg,
        from: &Found,
        how: &RestoreChoice,
    ) -> Result<Pg> {
        Box::pin(self.create_in_place_of(wanted, from, how, None)).await
    }

    /// As [`create_from`](Self::create_from), also in place of an instance whose directory is gone. That one is what it
    /// was if this fails.
    pub(crate) async fn create_in_place_of(
        &self,
        wanted: &CreatePg,
        from: &Found,
        how: &RestoreChoice,
        gone: Option<&PgRecord>,
    ) -> Result<Pg> {
        let storage = match &wanted.storage {
            Some(storage) => storage.clone(),
            None => LOCAL.parse()?,
        };
        self.0.storages().get(&storage)?;
        self.can_listen(wanted)?;
        let snapshot = from.open().await?;
        let installation = self
            .can_run(from, &snapshot, wanted.major, how.force)
            .await?;
        let user = self.0.os_user()?;
        if matches!(how.clone, Wanted::Best | Wanted::Only(Method::Copy)) {
            let home = self.0.home().path().join("pg");
            let place = wanted.pgdata.as_deref().and_then(Path::parent);
            has_room(place.unwrap_or(&home), snapshot.facts())?;
        }
        let (name, lock) = match gone {
            Some(gone) => self.claim_again(wanted, gone, &installation).await?,
            None => Box::pin(self.claim(wanted, storage, &installation)).await?,
        };
        let mut operation = self.0.begin_operation("pg create", name.as_str())?;
        let claimed = self.known(&name)?;
        operation.detail("id", claimed.id.clone());
        operation.detail("snapshot", from.id.to_string());
        let staging = self.staging(&claimed);
        let folder = self.0.home().instance_folder(name.as_str());
        let in_the_way = folder.exists();
        let created = async {
            if in_the_way {
                return Err(Error::new(
                    ErrorKind::Exists,
                    folder.display().to_string(),
                    "is in the way, and no instance is known there",
                )
                .hinted("look at it and move it away, or choose another name"));
            }
            self.needs_of(&name, from).await?;
            let used = self.used_timelines(snapshot.facts())?;
            self.0
                .tell(Event::Step(format!("Restoring snapshot {}.", from.asked)));
            let job = Fill {
                neon: self.0,
                snapshot: &snapshot,
                subject: from.subject(),
                installation: &installation,
                user: user.as_ref(),
                folder: &staging,
                lock: self.writing(&name),
            };
            self.0.step("create: begun");
            let method = match trees::choose(&job, from, how.clone).await? {
                Way::Restored(why) => {
                    job.write().await?;
                    if how.clone != Wanted::Best {
                        why.iter()
                            .for_each(|why| self.0.tell(Event::Note(why.clone())));
                    }
                    Method::Copy
                }
                Way::Cloned(tree) => {
                    let cloned = job.share(&tree, how.clone).await?;
                    let asked = how.clone != Wanted::Best;
                    for why in cloned.not_used.iter().filter(|_| asked) {
                        self.0.tell(Event::Note(why.to_string()));
                    }
                    cloned.method
                }
            };
            self.0.step("create: written");
            let instance = job.instance()?;
            let (neon, facts, user) = (self.0, snapshot.facts(), user.as_ref());
            let asked = Box::pin(async {
                let found = ask(neon, &instance, facts, &staging, user).await;
                neon.step("create: visited");
                found
            });
            let asked = Some(asked).filter(|_| !how.as_is);
            let (timelines, asked) = Box::pin(job.recover(used, true, asked)).await?;
            self.0.step("create: recovered");
            if how.as_is {
                as_it_is(&instance, user)?;
            } else {
                isolate(neon, &instance, &staging, facts, asked.transpose()?, user).await?;
            }
            turn_tablespaces(&staging, &self.tablespaces(&claimed), user)?;
            let handed_over = handed_over(instance.data_dir())?;
            self.0.step("create: isolated");
            self.0.go_on()?;
            self.update(&name, |record| {
                record.timelines = timelines.iter().map(|timeline| timeline.get()).collect();
                record.method = Some(method.to_string());
            })?;
            self.place(&claimed, user)?;
            self.0.step("create: named");
            self.done_with(&claimed, from).await;
            self.update(&name, |record| {
                record.stage = Stage::Ready;
                record.in_place_of = None;
                if let Some(base) = &mut record.base {
                    base.locator = None;
                    base.handed_over = handed_over;
                }
            })
        }
        .await;
        let named = !in_the_way && folder.exists();
        if created.is_err() && !named {
            // What cannot be removed now is removed by the next verb on the name.
            let left = [staging.clone(), self.0.home().new_folder(&claimed.id)];
            let lock = self.writing(&name);
            let removed = tokio::task::spawn_blocking(move || {
                let _lock = Lock::wait(&lock)?;
                left.iter().try_for_each(|left| record::remove_tree(left))
            });
            if matches!(removed.await, Ok(Ok(()))) {
                self.done_with(&claimed, from).await;
                // What keeps its record is settled by the next verb; why it failed is what counts.
                drop(self.unclaim(&claimed));
            }
        }
        operation.end(created)?;
        if !wanted.no_start {
            self.first_start(&name).await?;
        }
        drop(lock);
        self.get(&name).await
    }

    /// Writes down what an instance that is being made is made from, and keeps that where it is until it is made.
    async fn needs_of(&self, name: &Name, from: &Found) -> Result<()> {
        let storage = from.repository.name.clone();
        let attached = match &storage {
            Some(storage) => Some(self.0.storages().hold(storage).await?),
            None => None,
        };
        self.update(name, |record| {
            record.base = Some(Base {
                snapshot: from.id,
                locator: storage.is_none().then(|| from.repository.locator.clone()),
                storage,
                handed_over: None,
            });
        })?;
        drop(attached);
        let record = self.known(name)?;
        self.0
            .pin(&from.repository, from.id, &record, "it is made from it")
            .await
    }

    /// What an instance was made from is not needed any more. A pin that stays is found by the doctor.
    async fn done_with(&self, record: &PgRecord, from: &Found) {
        if let Err(error) = self.0.unpin(&from.repository, record, None).await
            && error.kind() != ErrorKind::Invalid
        {
            self.0.tell(Event::Warning(format!(
                "{} stays pinned ({error}); neon doctor --fix removes that",
                from.subject()
            )));
        }
    }

    /// Judges, before any data moves, whether a snapshot would run here, and with which programs.
    pub(crate) async fn can_run(
        &self,
        from: &Found,
        snapshot: &Snapshot,
        major: Option<PgMajor>,
        force: bool,
    ) -> Result<Installation> {
        let subject = from.subject();
        let facts = snapshot.facts();
        let is = facts.cluster.major;
        if let Some(major) = major.filter(|major| *major != is) {
            return Err(Error::new(
                ErrorKind::Invalid,
                subject,
                format!("is of PostgreSQL {is}, not {major}"),
            )
            .hinted("create it with its own version and upgrade it then"));
        }
        redo::can_be_replayed(snapshot, &subject).await?;
        redo::refuse(
            &redo::of_snapshot(snapshot, &subject).await?,
            None,
            &subject,
        )?;
        let installation = self.0.installation(Some(is)).await?;
        let platform = installation.platform_facts().await;
        runs_here::check(self.0, &subject, facts, platform, force)?;
        Ok(installation)
    }

    /// Whether the instance that a snapshot shows was only ever on timelines that this home knows.
    fn knows_all_timelines(&self, facts: &Facts) -> Result<bool> {
        let records = self.readable();
        Ok(records
            .iter()
            .flat_map(with_gone)
            .any(|record| facts.instance.as_ref() == Some(&record.id) && record.adopted.is_none()))
    }

    /// Every timeline that a snapshot, or the instance that it shows as far as it is known here, was on.
    pub(crate) fn used_timelines(&self, facts: &Facts) -> Result<BTreeSet<TimelineId>> {
        let mut used: BTreeSet<TimelineId> = facts
            .log
            .timelines
            .iter()
            .map(|step| step.timeline)
            .collect();
        if let Some(id) = &facts.instance {
            let records = self.readable();
            for record in records
                .iter()
                .flat_map(with_gone)
                .filter(|record| record.id == *id)
            {
                used.extend(
                    record
                        .timelines
                        .iter()
                        .filter_map(|n| TimelineId::new(*n).ok()),
                );
            }
        }
        Ok(used)
    }
}

/// An instance, and the one that it is made in place of.
fn with_gone(record: &PgRecord) -> impl Iterator<Item = &PgRecord> {
    std::iter::once(record).chain(record.in_place_of.as_deref())
}

/// How far to leap over timelines that may have been used elsewhere.
const LEAP: u32 = 16;

/// The last timeline before the next multiple of [`LEAP`]: what somebody else used since, in the archive of a cluster that
/// is not only ours, is likely below. That archive cannot be asked: its command is not ours to run.
fn before_leap(used: &BTreeSet<TimelineId>) -> Option<TimelineId> {
    let last = used.last()?.get();
    let next = last.checked_add(1)?.checked_next_multiple_of(LEAP)?;
    TimelineId::new(next.checked_sub(1)?).ok()
}

/// Refuses a restore that would not fit.
pub(crate) fn has_room(place: &Path, facts: &Facts) -> Result<()> {
    room_for(place, facts.cost.bytes)
}

pub(crate) fn room_for(place: &Path, bytes: u64) -> Result<()> {
    room::require(&[place_for(place, bytes)])
}

/// What an instance of so many bytes takes.
pub(crate) fn place_for(place: &Path, bytes: u64) -> Place {
    Place {
        spare: SPARE,
        ..Place::new(place, bytes)
    }
}

/// A snapshot on its way into a folder of its own: `data`, `log`, `run`, and `tablespaces` if it has any.
pub(crate) struct Fill<'a> {
    pub(crate) neon: &'a Neon,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) subject: String,
    pub(crate) installation: &'a Installation,
    pub(crate) user: Option<&'a OsUser>,
    /// Not there yet.
    pub(crate) folder: &'a Path,
    /// A lock that is held as long as anything is written, also when nobody waits any more.
    pub(crate) lock: PathBuf,
}

impl Fill<'_> {
    pub(super) fn folders(&self) -> Result<()> {
        record::folder_of(self.folder, 0o700, self.user)?;
        for name in ["log", "run", "tablespaces"] {
            record::folder_of(&self.folder.join(name), 0o700, self.user)?;
        }
        Ok(())
    }

    /// Writes the files. Durable when it returns.
    pub(crate) async fn write(&self) -> Result<()> {
        self.folders()?;
        let data = self.folder.join("data");
        neon_cowfs::create_dir(&data, 0o700).map_err(|error| {
            Error::new(
                ErrorKind::Failed,
                data.display().to_string(),
                "cannot be made",
            )
            .caused_by(error)
        })?;
        let writer = DirectoryWriter::create(
            &data,
            DirectoryOptions {
                ownership: ownership(self.user),
                tablespaces: TablespacePlaces::Below(self.folder.join("tablespaces")),
                manifest: false,
                flush: Flush::FileSystem,
                ..DirectoryOptions::default()
            },
        );
        let writer = Arc::new(writer.map_err(|error| Error::format(self.subject.clone(), error))?);
        let total = self.snapshot.facts().cost.bytes;
        let progress = || {
            self.neon.tell(Event::Progress {
                subject: self.subject.clone(),
                done: writer.written().bytes,
                total,
            });
        };
        let (snapshot, subject) = (self.snapshot.clone(), self.subject.clone());
        let sink = Arc::clone(&writer);
        let mut options = RestoreOptions::default();
        options.threads = self.neon.options().threads;
        let restored = background::run(
            self.neon,
            &self.subject,
            self.lock.clone(),
            progress,
            move |cancel| {
                options.cancel = cancel;
                restore(&snapshot, &*sink, &options)
                    .map_err(|error| Error::repository(subject, error))
            },
        )
        .await?;
        // Those of its facts included.
        for bad in restored.bad_pages.iter().take(MOST_TOLD) {
            self.neon.tell(Event::Warning(format!(
                "{}: page {} of {} is damaged: {}",
                self.subject, bad.block, bad.path, bad.reason
            )));
        }
        if let Some(more) = restored.bad_pages.len().checked_sub(MOST_TOLD + 1) {
            let text = format!("{}: {} more pages are damaged", self.subject, more + 1);
            self.neon.tell(Event::Warning(text));
        }
        // A folder that is not needed.
        drop(fs::remove_dir(self.folder.join("tablespaces")));
        Ok(())
    }

    pub(crate) fn instance(&self) -> Result<Instance> {
        Instance::open(self.installation, self.folder)
            .map_err(|error| Error::server(self.subject.clone(), error))
    }

    /// Recovers to the snapshot's own end, onto a timeline that none of `used` is, and returns all of them with the new
    /// one; and what somebody came to who visited its server, if a server was needed.
    pub(crate) async fn recover<T: Send>(
        &self,
        used: BTreeSet<TimelineId>,
        durable: bool,
        visit: Option<impl Future<Output = T> + Send>,
    ) -> Result<(BTreeSet<TimelineId>, Option<T>)> {
        let instance = self.instance()?;
        let everything = AllAtOnce::of(self.folder, durable)?;
        let plan = RecoveryPlan::new(
            WalSource::Command("exit 1".to_owned()),
            target(self.snapshot),
        )
        .with_durability(durable && everything.is_none());
        let ending = Ending {
            neon: self.neon,
            snapshot: self.snapshot,
            subject: &self.subject,
            instance: &instance,
        };
        let recovered = recover(&ending, plan, used, visit).await?;
        if let Some(everything) = everything {
            everything.flush().await?;
        }
        Ok(recovered)
    }
}

pub(super) fn ownership(user: Option<&OsUser>) -> Ownership {
    user.map_or(Ownership::Process, |user| {
        Ownership::Fixed(Owner {
            uid: user.uid(),
            gid: user.gid(),
        })
    })
}

/// Where recovery of a snapshot ends: at its end, whatever of the log came with it.
pub(super) fn target(snapshot: &Snapshot) -> RecoveryTarget {
    match snapshot.facts().kind {
        SnapshotKind::Cold | SnapshotKind::Crashed => RecoveryTarget::Latest,
        _ => RecoveryTarget::Immediate,
    }
}

/// A directory that was just restored.
pub(super) struct Ending<'a> {
    pub(super) neon: &'a Neon,
    pub(super) snapshot: &'a Snapshot,
    pub(super) subject: &'a str,
    pub(super) instance: &'a Instance,
}

/// Nobody has anything to say to the server of a recovery.
pub(crate) const NOBODY: Option<std::future::Ready<()>> = None;

/// Recovers along its own timeline, and ends on a new one. With what a visit of its server came to, if it needed one.
pub(super) async fn recover<T: Send>(
    ending: &Ending<'_>,
    plan: RecoveryPlan,
    mut used: BTreeSet<TimelineId>,
    visit: Option<impl Future<Output = T> + Send>,
) -> Result<(BTreeSet<TimelineId>, Option<T>)> {
    let Ending {
        neon,
        snapshot,
        subject,
        instance,
    } = ending;
    let data = instance.data_dir();
    let control = read_control(data)?;
    used.extend(timelines_in(data, &control)?);
    if control.settings.wal_level == WalLevel::Minimal && control.state.is_clean() {
        // No recovery takes such log; and no archive has any of it.
        neon.tell(Event::Warning(format!(
            "{subject} was taken with wal_level=minimal: it stays on timeline {}",
            control.checkpoint.timeline
        )));
        return Ok((used, None));
    }
    let mut taken = used.clone();
    if !neon.pg().knows_all_timelines(snapshot.facts())? {
        taken.extend(before_leap(&used));
    }
    let plan = plan
        .with_end(RecoveryEnd::Promoted)
        .with_used_timelines(taken);
    let whole = snapshot.facts().kind == SnapshotKind::Cold && control.state.is_clean();
    let links = redo::links(data)?;
    let aside = whole
        .then(|| Aside::step(data, control.major))
        .transpose()?;
    let failed = |error| Error::server(*subject, error);
    // Nobody comes while files are missing: what their server does meanwhile must not meet them.
    let all_there = aside.as_ref().is_none_or(Aside::is_empty);
    let (recovered, came) = match visit.filter(|_| all_there) {
        Some(visit) => instance.recover_and(&plan, |_| (), visit).await,
        None => instance
            .recover(&plan, |_| ())
            .await
            .map(|done| (done, None)),
    }
    .map_err(failed)?;
    // Replay that turned one wrote where it leads, and nobody may go on from that unnoticed.
    if redo::links(data)?
        .iter()
        .any(|(oid, target)| links.get(oid).is_some_and(|before| before != target))
    {
        return Err(Error::new(
            ErrorKind::Damaged,
            *subject,
            "has a log that led a tablespace outside of the copy",
        ));
    }
    if let Some(aside) = aside {
        aside.back()?;
    }
    leave_to_others(data, recovered.timeline, neon.os_user()?.as_ref())?;
    used.insert(recovered.timeline);
    Ok((used, came))
}

pub(super) fn read_control(data: &Path) -> Result<ControlFile> {
    let path = data.join("global/pg_control");
    let bytes = fs::read(&path).map_err(|error| Error::io(&path, "cannot be read", error))?;
    ControlFile::decode(&bytes).map_err(|error| {
        Error::new(
            ErrorKind::Damaged,
            path.display().to_string(),
            "is no control file",
        )
        .caused_by(error)
    })
}

/// The timelines that a directory knows of: its own, and those of the histories that came with it.
pub(super) fn timelines_in(data: &Path, control: &ControlFile) -> Result<BTreeSet<TimelineId>> {
    let mut found = BTreeSet::from([control.checkpoint.timeline]);
    found.extend(control.min_recovery_timeline);
    let wal = data.join("pg_wal");
    let failed = |error| Error::io(&wal, "cannot be listed", error);
    for entry in fs::read_dir(&wal).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let parsed = name.to_str().and_then(|name| name.parse().ok());
        match parsed {
            Some(WalFileName::History(timeline)) => {
                found.insert(timeline);
                let text = fs::read(wal.join(&name)).unwrap_or_default();
                if let Ok(history) = TimelineHistory::parse(timeline, &text) {
                    found.extend(history.ancestors().iter().map(|switch| switch.timeline));
                }
            }
            Some(WalFileName::Segment(segment)) => {
                found.insert(segment.timeline());
            }
            _ => {}
        }
    }
    Ok(found)
}

/// Turns the links of tablespaces to the folder that they will be in.
pub(super) fn turn_tablespaces(staging: &Path, folder: &Path, user: Option<&OsUser>) -> Result<()> {
    let links = staging.join("data/pg_tblspc");
    let failed = |error| Error::io(&links, "cannot be listed", error);
    for entry in fs::read_dir(&links).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if let Ok(target) = fs::read_link(&path)
            && let Ok(inside) = target.strip_prefix(staging.join("tablespaces"))
        {
            record::relink(&path, &folder.join(inside), user)?;
        }
    }
    Ok(())
}
