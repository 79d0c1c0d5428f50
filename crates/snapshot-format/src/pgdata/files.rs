//! The files of a data directory one by one, for who reads them without copying.

use std::fs::File;

use crate::error::Result;
use crate::pgdata::copied::Tally;
use crate::pgdata::plan::{self, Plan};
use crate::pgdata::read::PgData;
use crate::stream::{Entry, EntryKind};

/// The files that a copy of this kind would hold, in the order of their paths, without `global/pg_control`.
#[derive(Debug)]
pub struct DataFiles<'a> {
    source: &'a PgData,
    plan: Plan,
    next: usize,
}

/// A file of a data directory that is open.
#[derive(Debug)]
pub struct OpenDataFile {
    /// What it is by now.
    pub entry: Entry,
    /// Its content.
    pub file: File,
}

impl PgData {
    /// Lists the directory, to read its files one by one.
    ///
    /// # Errors
    /// [`Io`](crate::ErrorKind::Io).
    pub fn files(&self) -> Result<DataFiles<'_>> {
        let mut plan = self.plan()?;
        plan.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(DataFiles {
            source: self,
            plan,
            next: 0,
        })
    }
}

impl DataFiles<'_> {
    /// The next file; none after the last. Those of a running server that are gone, or turned out to be of an unlogged
    /// relation, are passed over.
    ///
    /// # Errors
    /// [`Inconsistent`](crate::ErrorKind::Inconsistent) when a file of a stopped cluster is gone or has another size
    /// than when it was listed; [`Io`](crate::ErrorKind::Io).
    pub fn next_file(&mut self) -> Result<Option<OpenDataFile>> {
        while let Some(planned) = self.plan.files.get(self.next) {
            self.next += 1;
            if self.source.became_unlogged(&self.plan.roots, planned) {
                continue;
            }
            let Some((file, stat)) = self.plan.roots.open_file(&planned.path)? else {
                self.source.vanished(planned, &mut Tally::default())?;
                continue;
            };
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            self.source.check_unchanged(planned, size)?;
            let kind = EntryKind::File { size };
            let entry = plan::entry(planned.path.clone(), kind, &stat);
            return Ok(Some(OpenDataFile { entry, file }));
        }
        Ok(None)
    }
}
