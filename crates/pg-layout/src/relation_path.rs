//! Paths of relation files below a data directory.
//!
//! `<directory>/<number>[_fork][.segment]`, where the directory is `base/<database>`, `global`, or
//! `pg_tblspc/<tablespace>/PG_<major>_<catalog version>/<database>`; temporary relations put
//! `t<backend>_` in front of the number. Source: `common/relpath.c` and `storage/smgr/md.c`.

use std::fmt;

use crate::relation::{
    BlockNumber, DEFAULT_TABLESPACE, Fork, GLOBAL_TABLESPACE, Oid, RelFileLocator,
};
use crate::segment::decimal;
use crate::version::VersionLayout;

/// One file of a relation.
///
/// ```
/// use neon_pg_layout::{Fork, PgMajor, RelationPath};
/// let layout = PgMajor::V17.layout();
/// let path = RelationPath::parse("base/5/16384_vm.1", layout).ok_or("no relation")?;
/// assert_eq!((path.locator.number, path.fork, path.segment), (16384, Fork::VisibilityMap, 1));
/// assert_eq!(path.to_path(layout), "base/5/16384_vm.1");
/// # Ok::<(), &str>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelationPath {
    /// The relation.
    pub locator: RelFileLocator,
    /// Which of its forks.
    pub fork: Fork,
    /// Which segment file of the fork; the first is 0 and has no suffix.
    pub segment: u32,
    /// For a temporary relation, the backend that owns it.
    pub backend: Option<u32>,
}

impl RelationPath {
    /// The first segment of a permanent relation's fork.
    #[must_use]
    pub const fn new(locator: RelFileLocator, fork: Fork) -> Self {
        Self {
            locator,
            fork,
            segment: 0,
            backend: None,
        }
    }

    /// The segment file that holds a block, and the block's place in it.
    ///
    /// `segment_blocks` is the cluster's (`BuildFacts::segment_blocks`); zero counts as one.
    #[must_use]
    pub const fn holding(
        locator: RelFileLocator,
        fork: Fork,
        block: BlockNumber,
        segment_blocks: u32,
    ) -> (Self, BlockNumber) {
        let segment_blocks = if segment_blocks == 0 {
            1
        } else {
            segment_blocks
        };
        let path = Self {
            segment: block / segment_blocks,
            ..Self::new(locator, fork)
        };
        (path, block % segment_blocks)
    }

    /// The number of the file's first block, counted over the fork; `None` beyond what a relation can
    /// hold.
    #[must_use]
    pub const fn first_block(&self, segment_blocks: u32) -> Option<BlockNumber> {
        self.segment.checked_mul(segment_blocks)
    }

    /// Reads a path relative to the data directory, in exactly the form the server gives it.
    ///
    /// `None` for every other file: this asks what a file is, and not being a relation is an answer.
    /// Directories of other majors in a tablespace are not this cluster's.
    #[must_use]
    pub fn parse(path: &str, layout: &VersionLayout) -> Option<Self> {
        let (directory, file) = path.rsplit_once('/')?;
        let (tablespace, database) = parse_directory(directory, layout)?;
        Self::parse_file(tablespace, database, file)
    }

    pub(crate) fn parse_file(tablespace: Oid, database: Oid, file: &str) -> Option<Self> {
        let (stem, segment) = match file.split_once('.') {
            Some((stem, segment)) => (stem, number(segment)?),
            None => (file, 0),
        };
        let (backend, stem) = match stem.strip_prefix('t') {
            Some(rest) => {
                let (backend, rest) = rest.split_once('_')?;
                (Some(number_or_zero(backend)?), rest)
            }
            None => (None, stem),
        };
        let (stem, fork) = match stem.split_once('_') {
            Some((_, "main")) => return None,
            Some((stem, fork)) => (stem, fork.parse().ok()?),
            None => (stem, Fork::Main),
        };
        let locator = RelFileLocator {
            tablespace,
            database,
            number: number(stem)?,
        };
        Some(Self {
            locator,
            fork,
            segment,
            backend,
        })
    }

    /// The file's name without its directory.
    #[must_use]
    pub fn file_name(&self) -> String {
        FileName(self).to_string()
    }

    /// The path relative to the data directory.
    #[must_use]
    pub fn to_path(&self, layout: &VersionLayout) -> String {
        let RelFileLocator {
            tablespace,
            database,
            ..
        } = self.locator;
        format!(
            "{}/{}",
            database_directory(tablespace, database, layout),
            FileName(self)
        )
    }
}

struct FileName<'a>(&'a RelationPath);

impl fmt::Display for FileName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(backend) = self.0.backend {
            write!(f, "t{backend}_")?;
        }
        write!(f, "{}", self.0.locator.number)?;
        if self.0.fork != Fork::Main {
            write!(f, "_{}", self.0.fork)?;
        }
        match self.0.segment {
            0 => Ok(()),
            segment => write!(f, ".{segment}"),
        }
    }
}

/// The directory of a database's files in a tablespace, relative to the data directory.
///
/// For [`GLOBAL_TABLESPACE`] there is one directory, whatever the database.
#[must_use]
pub fn database_directory(tablespace: Oid, database: Oid, layout: &VersionLayout) -> String {
    match tablespace {
        GLOBAL_TABLESPACE => "global".to_owned(),
        DEFAULT_TABLESPACE => format!("base/{database}"),
        _ => format!(
            "pg_tblspc/{tablespace}/{}/{database}",
            tablespace_version_directory(layout)
        ),
    }
}

/// The directory that a major makes inside each tablespace, for example `PG_15_202209061`.
#[must_use]
pub fn tablespace_version_directory(layout: &VersionLayout) -> String {
    format!("PG_{}_{}", layout.major, layout.catalog_version)
}

/// The tablespace and database of a directory that holds relation files; database 0 for `global`.
pub(crate) fn parse_directory(directory: &str, layout: &VersionLayout) -> Option<(Oid, Oid)> {
    let mut parts = directory.split('/');
    let place = match parts.next()? {
        "global" => (GLOBAL_TABLESPACE, 0),
        "base" => (DEFAULT_TABLESPACE, number(parts.next()?)?),
        "pg_tblspc" => {
            let tablespace = number(parts.next()?)?;
            let reserved = [DEFAULT_TABLESPACE, GLOBAL_TABLESPACE].contains(&tablespace);
            let own = parts.next()? == tablespace_version_directory(layout);
            (!reserved && own).then_some(())?;
            (tablespace, number(parts.next()?)?)
        }
        _ => return None,
    };
    parts.next().is_none().then_some(place)
}

/// A positive number without leading zeros, as the server writes identifiers.
pub(crate) fn number(text: &str) -> Option<u32> {
    number_or_zero(text).filter(|number| *number != 0)
}

fn number_or_zero(text: &str) -> Option<u32> {
    let padded = text.len() > 1 && text.starts_with('0');
    (!padded).then(|| decimal(text)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::PgMajor;

    #[test]
    fn paths_of_every_kind_round_trip() {
        let layout = PgMajor::V15.layout();
        for path in [
            "base/5/16384",
            "base/5/16384.1",
            "base/5/16384_fsm",
            "base/5/16384_vm.2",
            "base/5/16384_init",
            "base/5/t3_16385",
            "base/5/t0_16385_fsm.1",
            "global/1262",
            "global/1262_vm",
            "pg_tblspc/16400/PG_15_202209061/5/16401",
            "base/4294967295/4294967295.4294967295",
        ] {
            let parsed = RelationPath::parse(path, layout).unwrap();
            assert_eq!(parsed.to_path(layout), path);
            assert!(path.ends_with(&parsed.file_name()));
        }
    }

    #[test]
    fn what_is_no_relation_file_is_not_taken_for_one() {
        let layout = PgMajor::V15.layout();
        for path in [
            "16384",
            "base/16384",
            "base/5/016384",
            "base/5/0",
            "base/0/16384",
            "base/5/16384.0",
            "base/5/16384.01",
            "base/5/16384_main",
            "base/5/16384_vm_fsm",
            "base/5/16384.1_vm",
            "base/5/t_1",
            "base/5/t3",
            "base/5/4294967296",
            "base/5/sub/16384",
            "./base/5/16384",
            "/base/5/16384",
            "base//16384",
            "global/5/16384",
            "global/pg_control",
            "base/5/pg_filenode.map",
            "base/5/+1",
            "pg_tblspc/16400/PG_14_202107181/5/16401",
            "pg_tblspc/1663/PG_15_202209061/5/16401",
            "pg_tblspc/16400/5/16401",
        ] {
            assert_eq!(RelationPath::parse(path, layout), None, "{path}");
        }
    }

    #[test]
    fn blocks_are_counted_over_segment_files() {
        let locator = RelFileLocator {
            tablespace: DEFAULT_TABLESPACE,
            database: 5,
            number: 16384,
        };
        let (path, block) = RelationPath::holding(locator, Fork::Main, 131_073, 131_072);
        assert_eq!((path.segment, block), (1, 1));
        assert_eq!(path.first_block(131_072), Some(131_072));
        let last = RelationPath {
            segment: 40_000,
            ..path
        };
        assert_eq!(last.first_block(131_072), None);
    }
}
