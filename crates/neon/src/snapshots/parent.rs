//! Which snapshot a new one shares its pages with.

use neon_pagestore::{CommitId, Listed, Summary};
use neon_pg_layout::{ControlFile, Lsn};

use crate::instances::PgRecord;
use crate::neon::Neon;

/// Which snapshot a new one shares its pages with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum ParentChoice {
    /// The newest of the same lineage; else the one that the lineage began with; else any of the same cluster.
    #[default]
    Best,
    /// None: everything is stored anew.
    None,
    /// This one.
    Snapshot(CommitId),
}

/// The parent for a snapshot of this instance in a repository that lists these.
pub(crate) fn chosen(
    choice: &ParentChoice,
    listed: &[Listed],
    record: &PgRecord,
    control: &ControlFile,
) -> Option<CommitId> {
    match choice {
        ParentChoice::None => None,
        ParentChoice::Snapshot(id) => Some(*id),
        ParentChoice::Best => {
            let system = control.system_identifier.to_string();
            best(listed, record, Some(&system))
        }
    }
}

/// The parent of the next snapshot of an instance in a repository that lists these; nothing is known of the cluster's
/// identifier where its control file cannot be read.
pub(crate) fn best<'a>(
    listed: impl IntoIterator<Item = &'a Listed, IntoIter: Clone>,
    record: &PgRecord,
    system: Option<&str>,
) -> Option<CommitId> {
    let listed = listed.into_iter();
    of_history(listed.clone(), record, system).or_else(|| {
        system?;
        let fitting = fitting(listed, record, system);
        fitting
            .max_by_key(|(_, summary)| (summary.taken, position(&summary.stop)))
            .map(|(id, _)| id)
    })
}

/// As [`best`], only what the instance comes from: the newest of its lineage, or the one that this began with.
pub(crate) fn of_history<'a>(
    listed: impl IntoIterator<Item = &'a Listed, IntoIter: Clone>,
    record: &PgRecord,
    system: Option<&str>,
) -> Option<CommitId> {
    let listed = listed.into_iter();
    let newest_of_lineage = fitting(listed.clone(), record, system)
        .filter(|(_, summary)| summary.lineage == Some(record.lineage))
        .max_by_key(|(_, summary)| (summary.taken, position(&summary.stop)));
    let base = record.base.as_ref().map(|base| base.snapshot);
    newest_of_lineage
        .or_else(|| fitting(listed, record, system).find(|(id, _)| Some(*id) == base))
        .map(|(id, _)| id)
}

/// Those of the same cluster.
fn fitting<'a>(
    listed: impl Iterator<Item = &'a Listed>,
    record: &PgRecord,
    system: Option<&str>,
) -> impl Iterator<Item = (CommitId, &'a Summary)> {
    listed.filter_map(move |listed| {
        let summary = listed.summary.as_ref().ok()?;
        (system.is_none_or(|system| summary.system == system)
            && summary.major.to_string() == record.major)
            .then_some((listed.id, summary))
    })
}

fn position(text: &Option<String>) -> Option<Lsn> {
    text.as_ref()?.parse().ok()
}

/// The identifier of an instance's cluster, if its control file can be read.
pub(crate) fn system_of(neon: &Neon, record: &PgRecord) -> Option<String> {
    let path = neon.pg().data_dir(record).join("global/pg_control");
    let control = ControlFile::decode(&std::fs::read(path).ok()?).ok()?;
    Some(control.system_identifier.to_string())
}
