//! Which snapshot is the newest state of a cluster.

use std::collections::BTreeMap;
use std::sync::Arc;

use neon_pagestore::{Listed, SnapshotName, Summary, Tag};
use neon_pg_layout::Lsn;

use super::SnapshotFirst;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::PgRecord;
use crate::name::Name;
use crate::neon::Neon;
use crate::repositories::StorageRepository;
use crate::snapshots::Found;

/// A snapshot that somebody named.
#[derive(Clone, Copy)]
struct Named<'a> {
    listed: &'a Listed,
    name: &'a SnapshotName,
    summary: &'a Summary,
}

impl Named<'_> {
    /// What is larger for the newer: the time, and within one second the place in the log.
    fn order(&self) -> (i64, Option<Lsn>) {
        let stop = self.summary.stop.as_deref();
        (self.summary.taken, stop.and_then(|stop| stop.parse().ok()))
    }
}

impl SnapshotFirst<'_> {
    /// The newest snapshot of an instance, and when it was taken. With the record of an instance whose directory is gone:
    /// the newest of the history that it was on.
    pub(super) async fn newest(
        &self,
        pg: &Name,
        storage: &Name,
        gone: Option<&PgRecord>,
    ) -> Result<(Found, i64)> {
        let repository = self.0.storages().existing_repository(storage).await?;
        let repository = repository.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("storage {storage}"),
                "has no snapshots to start from",
            )
            .hinted("make a cluster with neon init")
        })?;
        let label = repository.label();
        let listed = readable(&repository).await?;
        let all = named(&listed);
        let own: Vec<_> = all
            .iter()
            .copied()
            .filter(|one| one.name.instance() == Some(pg.as_str()))
            .collect();
        let chosen = match gone {
            Some(gone) => {
                let known = of_history(&own, gone).ok_or_else(|| {
                    Error::new(
                        ErrorKind::NotFound,
                        &*label,
                        format!("has no snapshots of the {pg} that was here"),
                    )
                    .hinted("neon pg create --snapshot makes an instance of another's")
                })?;
                if own.iter().any(|other| after(other, &known)) {
                    self.0.tell(Event::Warning(format!(
                        "{label} has snapshots of {pg} that are newer than {} but not of its history",
                        known.name
                    )));
                }
                known
            }
            None if own.is_empty() => only_cluster(self.0, &all, &label)?,
            None => only_cluster(self.0, &own, &label)?,
        };
        tell_of_checkouts(self.0, &listed, &chosen);
        Ok(found(repository, &chosen))
    }

    /// Says so when another instance of this name, made of the same cluster, has put snapshots into the storage since
    /// this one is there: two homes then keep theirs side by side.
    pub(super) async fn tell_of_rivals(&self, record: &PgRecord) -> Result<()> {
        let Some(repository) = self
            .0
            .storages()
            .existing_repository(&record.storage)
            .await?
        else {
            return Ok(());
        };
        let listed = repository.repository.list().await;
        let listed = listed.map_err(|error| Error::repository(repository.label(), error))?;
        let began = i64::try_from(record.created).unwrap_or(i64::MAX);
        let rival = newest(named(&listed).into_iter().filter(|one| {
            one.name.instance() == Some(record.name.as_str())
                && one.summary.instance.as_ref() != Some(&record.id)
                && one.summary.taken > began
        }));
        if let Some(rival) = rival {
            self.0.tell(Event::Warning(format!(
                "another home puts snapshots of its {} into {}, too ({}): from both together, neon start will not restore either by itself",
                record.name,
                repository.label(),
                rival.name
            )));
        }
        Ok(())
    }

    /// Says so when a storage has snapshots of this name already, which are those of another instance than this one.
    pub(super) async fn tell_of_others(
        &self,
        pg: &Name,
        storage: &Name,
        but: Option<&str>,
    ) -> Result<()> {
        let Some(repository) = self.0.storages().existing_repository(storage).await? else {
            return Ok(());
        };
        let listed = repository.repository.list().await;
        let listed = listed.map_err(|error| Error::repository(repository.label(), error))?;
        let others = listed.iter().filter(|listed| {
            let summary = listed.summary.as_ref().ok();
            let of = summary.and_then(|summary| summary.instance.as_deref());
            but.is_none() || of != but
        });
        let mut names = others.flat_map(|listed| &listed.names);
        if let Some(name) = names.find(|name| name.instance() == Some(pg.as_str())) {
            let label = repository.label();
            self.0.tell(Event::Warning(match but {
                None => format!(
                    "{label} has snapshots of another {pg} ({name}): from both together, neon start will not restore either by itself"
                ),
                Some(_) => format!(
                    "{label} has snapshots of another {pg} ({name}): if that one lives on beside this one, neon start will not restore either by itself"
                ),
            }));
        }
        Ok(())
    }
}

/// The newest snapshot of a repository, which must be one cluster's.
pub(super) async fn of_any(neon: &Neon, repository: StorageRepository) -> Result<(Found, i64)> {
    let listed = readable(&repository).await?;
    let chosen = only_cluster(neon, &named(&listed), &repository.label())?;
    Ok(found(repository, &chosen))
}

fn found(repository: StorageRepository, chosen: &Named<'_>) -> (Found, i64) {
    let found = Found {
        id: chosen.listed.id,
        asked: chosen.name.to_string(),
        repository: Arc::new(repository),
    };
    (found, chosen.summary.taken)
}

/// All snapshots, if they can be read: of one that cannot, nobody can tell its name or its age.
async fn readable(repository: &StorageRepository) -> Result<Vec<Listed>> {
    let label = repository.label();
    let listed = repository.repository.list().await;
    let listed = listed.map_err(|error| Error::repository(&*label, error))?;
    let unreadable: Vec<_> = listed
        .iter()
        .filter(|listed| listed.summary.is_err())
        .map(|listed| listed.id.to_string())
        .collect();
    if unreadable.is_empty() {
        return Ok(listed);
    }
    let readable = named(&listed);
    let hint = match newest(readable.into_iter()) {
        Some(one) => format!(
            "restore one by name: neon pg create --snapshot {}, the newest that can be read",
            one.name
        ),
        None => "none can be read: neon storage check says why".to_owned(),
    };
    Err(Error::new(
        ErrorKind::Damaged,
        label,
        format!(
            "has snapshots that cannot be read, and one may be the newest: {}",
            unreadable.join(", ")
        ),
    )
    .hinted(hint))
}

/// Those that somebody named: no states before checkouts.
fn named(listed: &[Listed]) -> Vec<Named<'_>> {
    let mut named = Vec::new();
    for one in listed {
        let Ok(summary) = &one.summary else { continue };
        let given = one.names.iter().filter(|name| match name {
            SnapshotName::Bare(_) => true,
            SnapshotName::Tagged { tag, .. } => matches!(tag, Tag::Given(_)),
        });
        named.extend(given.map(|name| Named {
            listed: one,
            name,
            summary,
        }));
    }
    named
}

fn newest<'a>(candidates: impl Iterator<Item = Named<'a>>) -> Option<Named<'a>> {
    candidates.max_by_key(|one| one.order())
}

/// The newest of what an instance was on: of its lineage, or what that began with, or of the instance at all.
fn of_history<'a>(own: &[Named<'a>], gone: &PgRecord) -> Option<Named<'a>> {
    let of = |wanted: &dyn Fn(&Named<'_>) -> bool| newest(own.iter().copied().filter(wanted));
    let base = gone.base.as_ref().map(|base| base.snapshot);
    of(&|one| one.summary.lineage == Some(gone.lineage))
        .or_else(|| of(&|one| Some(one.listed.id) == base))
        .or_else(|| of(&|one| one.summary.instance.as_ref() == Some(&gone.id)))
}

/// Whether a snapshot is newer than the chosen one, and another.
fn after(other: &Named<'_>, chosen: &Named<'_>) -> bool {
    other.listed.id != chosen.listed.id && other.order() > chosen.order()
}

/// The snapshots of one instance: its first and its newest.
struct Span<'a> {
    first: Named<'a>,
    newest: Named<'a>,
}

/// The newest, if all are of one cluster and one instance name, and of instances that followed one another: what was
/// restored has an id of its own, and while two of one history live side by side nobody knows which of them is meant.
fn only_cluster<'a>(neon: &Neon, candidates: &[Named<'a>], label: &str) -> Result<Named<'a>> {
    let mut clusters: BTreeMap<_, BTreeMap<_, Span<'a>>> = BTreeMap::new();
    for one in candidates {
        let of = (one.summary.system.as_str(), one.name.instance());
        let span = clusters
            .entry(of)
            .or_default()
            .entry(one.summary.instance.as_deref())
            .or_insert(Span {
                first: *one,
                newest: *one,
            });
        if after(one, &span.newest) {
            span.newest = *one;
        }
        if after(&span.first, one) {
            span.first = *one;
        }
    }
    let hint = "restore one by name: neon pg create --snapshot";
    let mut each = clusters.values();
    let spans = match (each.next(), each.next()) {
        (Some(only), None) => only,
        (None, _) => {
            return Err(Error::new(
                ErrorKind::NotFound,
                label,
                "has no snapshots to start from",
            ));
        }
        (Some(_), Some(_)) => {
            let spans = clusters.values().flat_map(BTreeMap::values);
            let names: Vec<_> = spans
                .map(|span| {
                    let newest = &span.newest;
                    format!("{} (cluster {})", newest.name, newest.summary.system)
                })
                .collect();
            return Err(Error::new(
                ErrorKind::Invalid,
                label,
                format!("has snapshots of several instances: {}", names.join(", ")),
            )
            .hinted(hint));
        }
    };
    let mut spans: Vec<_> = spans.values().collect();
    spans.sort_by_key(|span| span.newest.order());
    let beside = spans
        .windows(2)
        .any(|pair| matches!(pair, [one, next] if after(&one.newest, &next.first)));
    let names: Vec<_> = spans
        .iter()
        .map(|span| span.newest.name.to_string())
        .collect();
    if beside {
        return Err(Error::new(
            ErrorKind::Invalid,
            label,
            format!(
                "has snapshots of instances that lived side by side, made of one another; their newest are {}",
                names.join(", ")
            ),
        )
        .hinted(hint));
    }
    match spans.as_slice() {
        [.., before, last] => {
            neon.tell(Event::Warning(format!(
                "{} is of an instance that was made of another's snapshots; the newest of that one is {}",
                last.newest.name, before.newest.name
            )));
            Ok(last.newest)
        }
        [only] => Ok(only.newest),
        [] => Err(Error::new(
            ErrorKind::NotFound,
            label,
            "has no snapshots to start from",
        )),
    }
}

/// Nobody but the lost home knows which state a checkout went back to.
fn tell_of_checkouts(neon: &Neon, listed: &[Listed], chosen: &Named<'_>) {
    let later = listed.iter().find_map(|listed| {
        let summary = listed.summary.as_ref().ok()?;
        let head = listed.names.iter().find(|name| {
            let head = matches!(
                name,
                SnapshotName::Tagged {
                    tag: Tag::Head(_),
                    ..
                }
            );
            head && name.instance() == chosen.name.instance()
        })?;
        (summary.taken >= chosen.summary.taken && summary.system == chosen.summary.system)
            .then_some(head)
    });
    if let Some(head) = later {
        neon.tell(Event::Warning(format!(
            "after {} there was a checkout ({head} is the state before it), and no snapshot since: if it went back to another state than {}, make an instance of that",
            chosen.name, chosen.name
        )));
    }
}

/// A time in words, as coarse as people say it.
pub(super) fn words(seconds: i64) -> String {
    let (number, unit) = match seconds {
        ..120 => (seconds, "second"),
        120..7200 => (seconds / 60, "minute"),
        7200..172_800 => (seconds / 3600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    match number {
        1 => format!("1 {unit}"),
        _ => format!("{number} {unit}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_said_as_people_say_them() {
        for (seconds, said) in [
            (0, "0 seconds"),
            (1, "1 second"),
            (119, "119 seconds"),
            (120, "2 minutes"),
            (7200, "2 hours"),
            (200_000, "2 days"),
        ] {
            assert_eq!(words(seconds), said);
        }
    }
}
