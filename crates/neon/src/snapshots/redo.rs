//! Tablespaces that the log of a snapshot makes.
//!
//! Where a restored tablespace lies is decided by its link, which is ours to turn. One that was created behind the point where
//! replay begins is in the log, with the path it had: replay links it to there again and writes its pages into
//! that folder, which on this machine may be that of the cluster the snapshot was taken of. No setting of any server turns that
//! elsewhere, so such a log is found before a server reads it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use neon_pagestore::read::Snapshot;
use neon_pg_layout::wal::changes::Change;
use neon_pg_layout::wal::{ResourceManager, Step, WalFormat, WalReader};
use neon_pg_layout::{
    BackupLabel, ControlFile, Lsn, SegmentName, TimelineHistory, TimelineId, WalLevel,
};

use crate::error::{Error, ErrorKind, Result};
use crate::snapshots::catalogue::Files;

/// The label of a snapshot whose log makes tablespaces.
pub(crate) const LABEL: &str = "log-creates-tablespaces";

/// Which tablespaces a log makes, and where.
pub(crate) type Created = BTreeMap<u32, PathBuf>;

/// A part of a log.
pub(crate) struct Log<'a> {
    pub(crate) files: &'a Files,
    pub(crate) control: &'a ControlFile,
    /// Where replay begins.
    pub(crate) start: Lsn,
    /// Records from here on do not count.
    pub(crate) stop: Lsn,
}

/// The tablespaces that replay of a snapshot would make, out of the snapshot itself.
pub(crate) async fn of_snapshot(snapshot: &Snapshot, subject: &str) -> Result<Created> {
    let files = Files::Snapshot(snapshot.clone(), subject.to_owned());
    let control = control_of(snapshot, subject).await?;
    let damaged = |error| {
        Error::new(
            ErrorKind::Damaged,
            subject,
            "does not say where its log begins",
        )
        .caused_by(error)
    };
    let label = match files.read("backup_label", 0).await? {
        Some(label) => Some(BackupLabel::parse(&label).map_err(damaged)?),
        None => None,
    };
    let log = Log {
        files: &files,
        control: &control,
        start: label
            .as_ref()
            .map_or(control.checkpoint.redo, |label| label.start),
        stop: Lsn::MAX,
    };
    let known = snapshot.facts().log.timelines.iter();
    let mut tops: Vec<TimelineId> = known.map(|step| step.timeline).collect();
    tops.extend(label.map(|label| label.start_segment.timeline()));
    created(&log, tops).await
}

async fn control_of(snapshot: &Snapshot, subject: &str) -> Result<ControlFile> {
    let files = Files::Snapshot(snapshot.clone(), subject.to_owned());
    let control = files.read("global/pg_control", 0).await?;
    ControlFile::decode(&control.unwrap_or_default()).map_err(|error| {
        Error::new(ErrorKind::Damaged, subject, "has no control file of use").caused_by(error)
    })
}

/// Whether it was written with `wal_level=minimal`.
pub(crate) async fn is_minimal(snapshot: &Snapshot, subject: &str) -> Result<bool> {
    Ok(control_of(snapshot, subject).await?.settings.wal_level == WalLevel::Minimal)
}

/// Refuses a snapshot that no recovery takes to its end: what was written with `wal_level=minimal` is replayed by nothing
/// but the start of its own server, which stays on its timeline.
pub(crate) async fn can_be_replayed(snapshot: &Snapshot, subject: &str) -> Result<()> {
    let control = control_of(snapshot, subject).await?;
    if control.settings.wal_level != WalLevel::Minimal || control.state.is_clean() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Failed,
        subject,
        "was taken of a server that was not shut down, with wal_level=minimal: no recovery replays its log",
    )
    .hinted("export it and start a server on that directory, or take a snapshot of the stopped cluster"))
}

/// The tablespaces that replay would make along any of these timelines, and those of the control file.
pub(crate) async fn created(log: &Log<'_>, mut tops: Vec<TimelineId>) -> Result<Created> {
    tops.push(log.control.checkpoint.timeline);
    tops.extend(log.control.min_recovery_timeline);
    tops.sort_unstable();
    tops.dedup();
    let mut found = Created::new();
    for top in tops {
        let root = TimelineHistory::root(top);
        let name = format!("pg_wal/{}", root.file_name());
        let history = match log.files.read(&name, 0).await? {
            Some(text) => TimelineHistory::parse(top, &text).unwrap_or(root),
            None => root,
        };
        along(log, &history, &mut found).await?;
    }
    Ok(found)
}

/// Reads until the log ends, as a server does: at what is not there, and at damage.
async fn along(log: &Log<'_>, history: &TimelineHistory, found: &mut Created) -> Result<()> {
    let subject = "the log of the snapshot";
    let format = WalFormat::of_control(log.control).map_err(|error| {
        Error::new(ErrorKind::Damaged, subject, "is of no use").caused_by(error)
    })?;
    let mut reader = WalReader::at_record(format.clone(), log.start);
    while reader.position() < log.stop {
        let at = reader.position();
        // What lies behind the end, mostly all of the segment, is not read.
        let most = log.stop.0.saturating_sub(at.0);
        let Some(bytes) = piece(log.files, &format, history, at, most).await? else {
            return Ok(());
        };
        let mut input = bytes.as_slice();
        loop {
            match reader.read(&mut input) {
                Ok(Step::Record(record)) => {
                    if record.lsn() >= log.stop {
                        return Ok(());
                    }
                    if record.header().rmgr != ResourceManager::TABLESPACE {
                        continue;
                    }
                    let noted = record.changes(|change| {
                        if let Change::TablespaceCreated { tablespace, path } = change
                            && !path.is_empty()
                        {
                            found.insert(tablespace, PathBuf::from(OsStr::from_bytes(path)));
                        }
                    });
                    noted.map_err(|error| {
                        Error::new(ErrorKind::Damaged, subject, "makes a tablespace of no use")
                            .caused_by(error)
                    })?;
                }
                Ok(Step::NeedMore) => break,
                Ok(Step::End(_)) | Err(_) => return Ok(()),
            }
        }
        if reader.position() == at {
            return Ok(());
        }
    }
    Ok(())
}

/// So many bytes of the log at most from a position on, out of the segment of the newest timeline that has them.
async fn piece(
    files: &Files,
    format: &WalFormat,
    history: &TimelineHistory,
    at: Lsn,
    most: u64,
) -> Result<Option<Vec<u8>>> {
    let size = format.segment_size();
    let number = size.number_of(at);
    for range in history.ranges().rev() {
        if size.number_of(range.start) > number || at >= range.end {
            continue;
        }
        let name = SegmentName::containing(range.timeline, at, size);
        let path = format!("pg_wal/{name}");
        let Some(mut bytes) = files
            .read_some(&path, at.offset_in(size.bytes()), most)
            .await?
        else {
            continue;
        };
        let rest = range.end.0.saturating_sub(at.0);
        bytes.truncate(usize::try_from(rest).unwrap_or(usize::MAX));
        return Ok(Some(bytes));
    }
    Ok(None)
}

/// Refuses a log whose replay would write outside. In a directory that is there already, a tablespace whose link
/// leads where the log says is its own.
pub(crate) fn refuse(created: &Created, data: Option<&Path>, subject: &str) -> Result<()> {
    let own = |oid: u32, path: &Path| {
        let link = data.map(|data| data.join("pg_tblspc").join(oid.to_string()));
        link.and_then(|link| std::fs::read_link(link).ok())
            .is_some_and(|target| target == path)
    };
    let outside: Vec<String> = created
        .iter()
        .filter(|(oid, path)| !own(**oid, path))
        .map(|(oid, path)| format!("{} (pg_tblspc/{oid})", path.display()))
        .collect();
    if outside.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Failed,
        subject,
        format!(
            "was taken just after a tablespace was created: its log would write into {}",
            outside.join(", ")
        ),
    )
    .hinted(
        "take another snapshot of the instance after a checkpoint; its log then does not create the tablespace",
    ))
}

/// The links of tablespaces, to be compared after a recovery.
pub(crate) fn links(data: &Path) -> Result<BTreeMap<std::ffi::OsString, PathBuf>> {
    let folder = data.join("pg_tblspc");
    let failed = |error| Error::io(&folder, "cannot be listed", error);
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        if let Ok(target) = std::fs::read_link(entry.path()) {
            found.insert(entry.file_name(), target);
        }
    }
    Ok(found)
}
