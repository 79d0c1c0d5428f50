//! Tablespaces in which two servers would write.
//!
//! A replica has the tablespaces of its primary below its own folder. One that is created later comes to it by the log, with
//! the path it has on its primary; on the same machine that is the folder that the primary writes to. Replay makes a link to
//! it without a word, and from then on both write into the same files. No setting of any server turns that elsewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::instances::{Instances, PgRecord};

impl Instances<'_> {
    /// The folders of tablespaces that an instance shares with others of its major, each with who else has it.
    pub(crate) fn shared_places(&self, record: &PgRecord) -> Result<Vec<(PathBuf, String)>> {
        let own = places(&self.data_dir(record));
        if own.is_empty() {
            return Ok(Vec::new());
        }
        let mut shared = Vec::new();
        for other in self.records()? {
            // Each major has a folder of its own in the place of a tablespace.
            if other.id == record.id || other.major != record.major {
                continue;
            }
            let theirs = places(&self.data_dir(&other));
            let both = own.intersection(&theirs);
            shared.extend(both.map(|place| (place.clone(), other.name.to_string())));
        }
        Ok(shared)
    }

    /// Refuses to start a replica that would write into the tablespaces of another instance.
    pub(super) fn refuse_shared(&self, record: &PgRecord) -> Result<()> {
        if record.replica.is_none() {
            return Ok(());
        }
        let shared = self.shared_places(record)?;
        let Some((place, other)) = shared.first() else {
            return Ok(());
        };
        Err(Error::new(
            ErrorKind::Failed,
            format!("pg {}", record.name),
            format!(
                "has a tablespace in {}, where pg {other} writes",
                place.display()
            ),
        )
        .hinted(format!(
            "destroy it and make it again: neon pg destroy {}, which leaves that folder alone, \
             and neon pg start --replica",
            record.name
        )))
    }
}

/// Where the tablespaces of a cluster are, with nothing in between.
fn places(data: &Path) -> BTreeSet<PathBuf> {
    let links = fs::read_dir(data.join("pg_tblspc")).into_iter().flatten();
    links
        .flatten()
        .filter_map(|link| fs::canonicalize(fs::read_link(link.path()).ok()?).ok())
        .collect()
}
