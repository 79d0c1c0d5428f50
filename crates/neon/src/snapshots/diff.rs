//! What differs between two states of a cluster, by relation.
//!
//! Two snapshots are compared by their maps, and where these differ by the digests of pages: no page is read. The live state
//! is compared with a snapshot by the log since then, or, where that does not tell, by reading it.

mod compare;
mod gathered;

use neon_pagestore::SnapshotName;
use neon_pagestore::read::Snapshot;
use serde::Serialize;

use crate::background::beside;
use crate::error::{Error, ErrorKind, Result};
use crate::instances::PgRecord;
use crate::name::Name;
use crate::snapshots::catalogue::Files;
use crate::snapshots::watch::Wanting;
use crate::snapshots::{Found, Snapshots};
use compare::{by_content, by_digests, by_log, by_maps};
use gathered::Gathered;

/// What differs between two states of a cluster.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct SnapshotDiff {
    /// The earlier one, as it was asked for.
    pub before: String,
    /// The later one.
    pub after: String,
    /// How it is known: `maps` of two snapshots of one repository, `digests` of two repositories, the `log`, or the `content` of
    /// the live state.
    pub by: &'static str,
    /// Why something better did not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub because: Option<String>,
    /// Pages that differ, or that only one of the two has.
    pub pages: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Relations, the one with the most bytes first.
    pub relations: Vec<RelationDiff>,
    /// Files that are no relation's, by path. Unknown where the log tells.
    pub files: Vec<OtherDiff>,
}

/// A relation that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RelationDiff {
    /// The database; absent for shared relations, and where its name was not found.
    pub database: Option<String>,
    /// Its schema, where that was found.
    pub schema: Option<String>,
    /// Its name, where that was found in the catalogue of either state.
    pub name: Option<String>,
    /// Of a TOAST table or its index: whose values it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toast_of: Option<String>,
    /// Its file: `tablespace/database/number`.
    pub file: String,
    /// Pages that differ, in all its forks.
    pub pages: u64,
    /// Bytes in them.
    pub bytes: u64,
    /// Of these, pages of free space maps and visibility maps.
    pub map_pages: u64,
    /// `added`, `removed` or `changed`.
    pub what: &'static str,
}

/// Another file that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct OtherDiff {
    /// Its path.
    pub path: String,
    /// Bytes in the pages that differ.
    pub bytes: u64,
    /// `added`, `removed` or `changed`.
    pub what: &'static str,
}

/// One of the two states.
enum Side {
    Snapshot(Found, Snapshot),
    Live(Box<PgRecord>),
}

impl Snapshots<'_> {
    /// What differs between two snapshots, or between one and the live state of an instance (`PG@CURRENT`).
    ///
    /// # Errors
    /// As [`find`](Self::find); [`Invalid`](ErrorKind::Invalid) for two live states, and for clusters with
    /// pages of other sizes.
    pub async fn diff(
        &self,
        before: &str,
        after: &str,
        storage: Option<&Name>,
    ) -> Result<SnapshotDiff> {
        let first = self.side(before, storage).await?;
        let second = self.side(after, storage).await?;
        let (layout, page_size) = match (&first, &second) {
            (Side::Snapshot(_, snapshot), _) | (_, Side::Snapshot(_, snapshot)) => {
                let cluster = &snapshot.facts().cluster;
                (cluster.major.layout(), cluster.block_size)
            }
            _ => {
                return Err(Error::new(
                    ErrorKind::Invalid,
                    format!("{before} and {after}"),
                    "are both live states",
                )
                .hinted("take a snapshot of one of them"));
            }
        };
        let mut gathered = Gathered::new(layout, page_size);
        let (by, because) = match (&first, &second) {
            (Side::Snapshot(found, first), Side::Snapshot(other, second)) => {
                let (one, two) = (
                    &first.facts().cluster.system,
                    &second.facts().cluster.system,
                );
                if first.facts().cluster.block_size != second.facts().cluster.block_size {
                    return Err(Error::new(
                        ErrorKind::Invalid,
                        format!("{before} and {after}"),
                        format!("are of clusters with pages of other sizes ({one}, {two})"),
                    ));
                }
                let same = found.repository.repository.id() == other.repository.repository.id();
                if same {
                    by_maps(found, first, second, &mut gathered).await?;
                    ("maps", None)
                } else {
                    by_digests((found, first), (other, second), &mut gathered).await?;
                    ("digests", None)
                }
            }
            (Side::Snapshot(found, snapshot), Side::Live(record))
            | (Side::Live(record), Side::Snapshot(found, snapshot)) => {
                self.live(record, (found, snapshot), &mut gathered).await?
            }
            _ => ("content", None),
        };
        if matches!(first, Side::Live(_)) {
            gathered.turn();
        }
        let files = |side: &Side| match side {
            Side::Snapshot(found, snapshot) => Files::Snapshot(snapshot.clone(), found.subject()),
            Side::Live(record) => Files::Live(self.0.pg().data_dir(record)),
        };
        let named = [files(&second), files(&first)];
        let (relations, files) = gathered.finish(&named).await?;
        let sum = |each: fn(&RelationDiff) -> u64| relations.iter().map(each).sum::<u64>();
        let other_bytes: u64 = files.iter().map(|file| file.bytes).sum();
        Ok(SnapshotDiff {
            before: before.to_owned(),
            after: after.to_owned(),
            by,
            because,
            pages: sum(|relation| relation.pages)
                .saturating_add(other_bytes.div_ceil(page_size.into())),
            bytes: sum(|relation| relation.bytes).saturating_add(other_bytes),
            relations,
            files,
        })
    }

    async fn side(&self, text: &str, storage: Option<&Name>) -> Result<Side> {
        let live = text
            .parse::<SnapshotName>()
            .ok()
            .filter(SnapshotName::is_current);
        if let Some(name) = live {
            let name: Name = name.instance().unwrap_or_default().parse()?;
            return Ok(Side::Live(Box::new(self.0.pg().record_of(&name)?)));
        }
        let found = self.find(text, storage).await?;
        let snapshot = found.open().await?;
        Ok(Side::Snapshot(found, snapshot))
    }

    /// The live state, compared with a snapshot.
    async fn live(
        &self,
        record: &PgRecord,
        (found, snapshot): (&Found, &Snapshot),
        gathered: &mut Gathered,
    ) -> Result<(&'static str, Option<String>)> {
        let data = self.0.pg().data_dir(record);
        let instance = self.0.pg().open(record).await?;
        let subject = format!("pg {}", record.name);
        let control = instance
            .control_file()
            .map_err(|error| Error::server(subject.as_str(), error))?;
        let (_wanting, go_on) = Wanting::new(self.0);
        let pg_wal = data.join("pg_wal");
        let (parent, record, asked) = (snapshot.clone(), record.clone(), go_on.clone());
        let told = beside(move || Ok(by_log(&parent, &record, &control, &pg_wal, &asked))).await?;
        self.0.go_on()?;
        match told {
            Ok(blocks) => {
                gathered.blocks(&blocks);
                Ok(("log", None))
            }
            Err(reason) => {
                let why = reason.to_string();
                by_content(self.0, (found, snapshot), &data, &go_on, gathered).await?;
                Ok(("content", Some(why)))
            }
        }
    }
}
