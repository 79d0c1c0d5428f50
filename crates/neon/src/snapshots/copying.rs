//! Copying the pages of a cluster into a repository, and what comes after them: label, log, the map.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use neon_pagestore::changes::LogEnd;
use neon_pagestore::read::Snapshot;
use neon_pagestore::write::{ChangedSince, Parent, SnapshotOptions, SnapshotWriter, Stored};
use neon_pagestore::{Commit, Facts, LogPlace, LogRange, Noted, SnapshotName};
use neon_pg_layout::{Lsn, TimelineId};
use neon_pgctl::facts::Facts as ServerFacts;
use neon_pgctl::{Backup, Instance};
use neon_snapshot_format::pgdata::{Bracket, Copied, PgData, Stop, StopWal};
use neon_snapshot_format::{Sequential, SnapshotKind};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::PgRecord;
use crate::neon::Neon;
use crate::repositories::StorageRepository;
use crate::snapshots::log_end::{Position, history};
use crate::snapshots::sources::{self, Copying, Told};
use crate::snapshots::watch::{Counted, Meter, Watched};
use crate::snapshots::{needs, room};

/// What is copied, from where to where.
pub(super) struct Job {
    pub(super) neon: Neon,
    pub(super) record: PgRecord,
    pub(super) instance: Instance,
    pub(super) target: StorageRepository,
    pub(super) kind: SnapshotKind,
    pub(super) parent: Option<Snapshot>,
    pub(super) allow_bad_pages: bool,
    pub(super) taken: i64,
    pub(super) name: SnapshotName,
    pub(super) meter: Arc<Meter>,
}

/// Pages that are stored, of a snapshot that is not complete.
pub(super) struct Copy {
    source: PgData,
    copied: Copied,
    sink: SnapshotWriter,
    facts: Facts,
    position: Option<Position>,
}

impl Job {
    fn pg_wal(&self) -> PathBuf {
        self.instance.data_dir().join("pg_wal")
    }

    fn subject(&self) -> String {
        format!("snapshot {}", self.name)
    }

    fn watched<'a>(&self, sink: &'a SnapshotWriter) -> Watched<'a> {
        Watched::new(sink, Arc::clone(&self.meter)).expecting()
    }

    /// Copies the pages. Blocks.
    pub(super) fn copy(
        &self,
        writer: neon_pagestore::WriterId,
        bracket: Option<(Lsn, TimelineId, InsertPosition)>,
    ) -> Result<Copy> {
        let of_copy = |error| self.failed(error);
        let of_target = |error| Error::repository(self.target.label(), error);
        let data = self.instance.data_dir();
        let pg_wal = self.pg_wal();
        let mut begun = None;
        let source = match (self.kind, bracket) {
            (kind, Some((start, timeline, asked))) => {
                begun = Some((start, timeline));
                let bracket = Bracket::new(start, asked);
                match kind {
                    SnapshotKind::Standby => PgData::standby(data, bracket),
                    _ => PgData::online(data, bracket),
                }
            }
            (SnapshotKind::Cold, None) => PgData::cold(data),
            (SnapshotKind::Recovery, None) => PgData::recovery(data),
            (_, None) => PgData::crashed(data),
        };
        let source = source
            .map_err(of_copy)?
            .allow_bad_pages(self.allow_bad_pages);
        let control = source.control();
        let position = match begun {
            None => Some(Position::of_stopped(self.kind, control, &pg_wal)?),
            Some(_) => None,
        };
        let (redo, timelines) = match (&position, begun) {
            (Some(position), _) => (position.redo, position.history.clone()),
            (None, Some((start, timeline))) => (start, history(&pg_wal, timeline)?),
            (None, None) => (
                control.checkpoint.redo,
                history(&pg_wal, control.checkpoint.timeline)?,
            ),
        };
        let told = match &self.parent {
            None => Told::everything(),
            Some(parent) => {
                let copying = Copying {
                    lineage: self.record.lineage,
                    base: self.record.base.as_ref().map(|base| base.snapshot),
                    control,
                    history: &timelines,
                    redo,
                    clean_stop: self.kind == SnapshotKind::Cold,
                    pg_wal: &pg_wal,
                };
                sources::tell(parent, &copying, &self.meter.go_on)?
            }
        };
        for passed in &told.passed_over {
            self.neon.tell(Event::Note(format!(
                "What changed could not be told by {}: {}.",
                passed.source, passed.reason
            )));
        }
        let mut facts = Facts::of_control(self.kind, self.taken, control);
        facts.names = vec![self.name.clone()];
        facts.instance = Some(self.record.id.clone());
        facts.lineage = Some(self.record.lineage);
        facts.parent = self.parent.as_ref().map(Snapshot::id);
        facts.log.start = begun.map(|(start, _)| start);
        facts
            .labels
            .insert(needs::PG.to_owned(), self.record.name.to_string());
        needs::record_configuration(&mut facts, &self.instance);
        facts.cost.source = told.used.map(|used| used.name().to_owned());
        facts.cost.refused_sources = told
            .passed_over
            .iter()
            .map(|passed| Noted {
                path: passed.source.name().to_owned(),
                reason: passed.reason.clone(),
            })
            .collect();
        let options = SnapshotOptions {
            codec: self.target.codec,
            page_size: facts.cluster.block_size,
            compare: told.is_scan(),
            scratch: Some(self.neon.home().path().to_owned()),
            ..SnapshotOptions::default()
        };
        let mut sink =
            SnapshotWriter::new(&self.target.repository, writer, options).map_err(of_target)?;
        let threads = self.neon.options().threads.max(1);
        let copied = match &self.parent {
            None => {
                room::check(&self.neon, &self.target, size_of(data))?;
                let watched = self.watched(&sink);
                source.copy_parallel(&watched, threads)
            }
            Some(parent) => {
                let named = told.set.named_pages().unwrap_or(0);
                let bytes = named.saturating_mul(facts.cluster.block_size.into());
                room::check(&self.neon, &self.target, bytes)?;
                sink = sink
                    .with_parent(Parent::of(parent))
                    .with_changes(&told.set)
                    .map_err(of_target)?;
                let select = ChangedSince::new(&told.set, Parent::of(parent)).map_err(of_target)?;
                let select = Counted::of(&select);
                let watched = self.watched(&sink);
                let copied = source.copy_selected(&select, &watched, threads);
                if !told.is_scan() {
                    facts.cost.read_changed = select.changed();
                }
                copied
            }
        };
        let copied = copied.map_err(of_copy)?;
        // What the log names and is gone meanwhile was not read.
        facts.cost.read_changed = facts.cost.read_changed.min(copied.bytes);
        facts.cost.read_other = copied.bytes.saturating_sub(facts.cost.read_changed);
        Ok(Copy {
            source,
            copied,
            sink,
            facts,
            position,
        })
    }

    /// Brings what comes at the end, and makes the map. Blocks.
    pub(super) fn finish(
        &self,
        copy: Copy,
        backup: Option<&Backup>,
        found: &ServerFacts,
    ) -> Result<(Stored, Facts)> {
        let Copy {
            source,
            copied,
            sink,
            mut facts,
            position,
        } = copy;
        needs::record(&mut facts, found, self.parent.as_ref().map(Snapshot::facts))?;
        facts.needs.install_user = self.record.superuser(&self.instance);
        let pg_wal = self.pg_wal();
        let control = source.control();
        let ended = match (position, backup) {
            (Some(position), _) => position,
            (None, Some(backup)) => self.end_of(backup, &pg_wal, &mut facts)?,
            (None, None) => Position::of_stopped(self.kind, control, &pg_wal)?,
        };
        let end = LogEnd {
            redo: ended.redo,
            stop: ended.stop,
            history: &ended.history,
            tail: ended.tail(control, &pg_wal),
        };
        facts
            .record_log(self.record.lineage, control, &end)
            .map_err(|error| Error::repository(self.subject(), error))?;
        let stop = backup.map(|backup| Stop {
            label: &backup.label_file,
            tablespace_map: &backup.tablespace_map_file,
            position: ended.stop,
            timeline: ended.history.timeline(),
            wal: StopWal::Directory(&pg_wal),
        });
        let watched = self.watched(&sink);
        let end = Sequential::new(&watched)
            .and_then(|mut rest| copied.finish(&mut rest, stop))
            .map_err(|error| self.failed(error))?;
        facts.log.ranges = end
            .wal
            .iter()
            .map(|range| LogRange {
                timeline: range.timeline,
                start: range.start,
                end: range.end,
                place: LogPlace::Snapshot,
            })
            .collect();
        let stored = sink
            .complete()
            .map_err(|error| Error::repository(self.target.label(), error))?;
        Ok((stored, facts))
    }

    /// Where a stopped backup ends. A standby's copy is consistent where its control file says, which was copied last.
    fn end_of(
        &self,
        backup: &Backup,
        pg_wal: &std::path::Path,
        facts: &mut Facts,
    ) -> Result<Position> {
        let (mut stop, mut timeline) = (backup.stop, backup.start.timeline);
        if self.kind == SnapshotKind::Standby {
            let control = self
                .instance
                .control_file()
                .map_err(|error| Error::server(format!("pg {}", self.record.name), error))?;
            stop = stop.max(control.min_recovery_point);
            timeline = control.min_recovery_timeline.unwrap_or(timeline);
            facts.log.min_recovery = Some(control.min_recovery_point);
        }
        Ok(Position {
            redo: backup.start.start,
            stop,
            history: history(pg_wal, timeline)?,
        })
    }

    fn failed(&self, error: neon_snapshot_format::Error) -> Error {
        if self.meter.go_on.stopped() {
            return Error::new(ErrorKind::Cancelled, self.subject(), "was stopped");
        }
        if error.kind() == neon_snapshot_format::ErrorKind::Inconsistent {
            let reason = "the cluster changed while it was copied";
            return Error::new(ErrorKind::Busy, self.subject(), reason)
                .caused_by(error)
                .hinted("see who started or stopped its server, and try again");
        }
        let damaged = error.kind() == neon_snapshot_format::ErrorKind::Damaged;
        let error = Error::format(self.subject(), error);
        if damaged {
            return error.hinted(
                "restore the page from an older snapshot, or take the snapshot with damaged pages allowed: it then says which",
            );
        }
        error
    }
}

pub(super) async fn connect(instance: &Instance) -> neon_pgctl::Result<neon_pgwire::Client> {
    match instance.connect("postgres").await {
        // It may have been dropped; this one cannot be.
        Err(error) if error.kind() == neon_pgctl::ErrorKind::Connection => {
            instance.connect("template1").await.map_err(|_| error)
        }
        connected => connected,
    }
}

/// Where the server is by now, asked from threads, and only about pages that look damaged.
pub(super) type InsertPosition =
    Box<dyn Fn() -> Result<Lsn, Box<dyn std::error::Error + Send + Sync>> + Send + Sync>;

pub(super) fn insert_position(instance: &Instance, kind: SnapshotKind) -> InsertPosition {
    let sql = match kind {
        SnapshotKind::Standby => "SELECT pg_catalog.pg_last_wal_replay_lsn()",
        _ => "SELECT pg_catalog.pg_current_wal_insert_lsn()",
    };
    let runtime = tokio::runtime::Handle::current();
    let session = Mutex::new(None);
    let instance = instance.clone();
    Box::new(move || {
        let mut session = session.lock().unwrap_or_else(PoisonError::into_inner);
        runtime.block_on(async {
            let mut client = match session.take() {
                Some(client) => client,
                None => connect(&instance).await?,
            };
            let results = client.simple_query(sql).await?;
            let position = results.first().and_then(|rows| rows.value(0, 0));
            let position = position.ok_or("the server says no position")?.parse()?;
            *session = Some(client);
            Ok(position)
        })
    })
}

/// Damaged pages of the parent that were not read again are damaged still.
pub(super) async fn carry_bad_pages(
    target: &StorageRepository,
    before: &Snapshot,
    mut commit: Commit,
    allow: bool,
    subject: &str,
) -> Result<Commit> {
    let of_target = |error| Error::repository(target.label(), error);
    let known: Vec<_> = before
        .facts()
        .bad_pages
        .iter()
        .filter(|bad| {
            let mut now = commit.facts.bad_pages.iter();
            !now.any(|page| page.path == bad.path && page.block == bad.block)
        })
        .cloned()
        .collect();
    if known.is_empty() {
        return Ok(commit);
    }
    let after = Snapshot::of(before.id(), commit.clone(), &target.maps).map_err(of_target)?;
    for bad in known {
        let Ok(path) = neon_snapshot_format::SnapshotPath::new(bad.path.as_str()) else {
            continue;
        };
        let Ok(block) = u32::try_from(bad.block) else {
            continue;
        };
        if after.stat(&path).await.map_err(of_target)?.is_none() {
            continue;
        }
        let now = after.read_page(&path, block).await.map_err(of_target)?;
        let then = before.read_page(&path, block).await.map_err(of_target)?;
        if now.is_some() && now == then {
            commit.facts.bad_pages.push(bad);
        }
    }
    if !allow && !commit.facts.bad_pages.is_empty() {
        return Err(Error::new(
            ErrorKind::Damaged,
            subject,
            format!(
                "{} pages are damaged, as in the snapshot it is built on",
                commit.facts.bad_pages.len()
            ),
        )
        .hinted("take it with damaged pages allowed: it then says which"));
    }
    Ok(commit)
}

/// Bytes of all files below a data directory and in its tablespaces, about.
pub(crate) fn size_of(data: &std::path::Path) -> u64 {
    let (spaces, log) = (data.join("pg_tblspc"), data.join("pg_wal"));
    let mut folders = vec![data.to_owned()];
    let mut bytes = 0_u64;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            // Links lead to tablespaces and to the log; any other may lead around in circles.
            let facts = match folder == spaces || path == log {
                true => std::fs::metadata(&path),
                false => std::fs::symlink_metadata(&path),
            };
            let Ok(facts) = facts else {
                continue;
            };
            if facts.is_dir() {
                folders.push(path);
            } else {
                bytes = bytes.saturating_add(facts.len());
            }
        }
    }
    bytes
}
