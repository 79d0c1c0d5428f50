//! How a relation's files are identified: tablespace, database, file number, fork, block.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// An object identifier of PostgreSQL's catalogs.
pub type Oid = u32;

/// A block (page) number within one fork of a relation, counted over all its segment files.
pub type BlockNumber = u32;

/// The tablespace of databases that name no other: files under `base/`.
pub const DEFAULT_TABLESPACE: Oid = 1663;

/// The tablespace of the shared catalogs: files under `global/`.
pub const GLOBAL_TABLESPACE: Oid = 1664;

/// Which relation a file or a WAL block reference belongs to (`RelFileLocator`, before 16
/// `RelFileNode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelFileLocator {
    /// The tablespace's OID, never zero: [`DEFAULT_TABLESPACE`] and [`GLOBAL_TABLESPACE`] are named.
    pub tablespace: Oid,
    /// The database's OID; zero for shared relations.
    pub database: Oid,
    /// The file number (`relfilenode`), which is not the relation's OID.
    pub number: u32,
}

impl fmt::Display for RelFileLocator {
    /// `tablespace/database/number`, the form `pg_waldump` prints.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.number)
    }
}

/// One of the files kept for a relation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fork {
    /// The relation's own pages.
    Main,
    /// The free space map.
    FreeSpaceMap,
    /// The visibility map.
    VisibilityMap,
    /// The empty image that an unlogged relation is reset to.
    Init,
}

impl Fork {
    /// Every fork, in the order of their numbers.
    pub const ALL: [Self; 4] = [
        Self::Main,
        Self::FreeSpaceMap,
        Self::VisibilityMap,
        Self::Init,
    ];

    /// The number WAL and summaries use.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Main => 0,
            Self::FreeSpaceMap => 1,
            Self::VisibilityMap => 2,
            Self::Init => 3,
        }
    }

    /// The fork with this number.
    ///
    /// # Errors
    /// [`Malformed`](crate::ErrorKind::Malformed) for any number above 3.
    #[inline]
    pub fn from_number(number: u32) -> Result<Self> {
        match number {
            0 => Ok(Self::Main),
            1 => Ok(Self::FreeSpaceMap),
            2 => Ok(Self::VisibilityMap),
            3 => Ok(Self::Init),
            _ => Err(Error::malformed(
                "fork number",
                format!("{number} is not a fork"),
            )),
        }
    }

    /// The name as in file names and tools: `main`, `fsm`, `vm`, `init`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::FreeSpaceMap => "fsm",
            Self::VisibilityMap => "vm",
            Self::Init => "init",
        }
    }
}

impl fmt::Display for Fork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Fork {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|fork| fork.name() == text)
            .ok_or_else(|| {
                Error::malformed(
                    "fork name",
                    format!("{text:?} is not main, fsm, vm or init"),
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forks_round_trip_by_number_and_name() {
        for fork in Fork::ALL {
            assert_eq!(Fork::from_number(fork.number().into()).unwrap(), fork);
            assert_eq!(fork.name().parse::<Fork>().unwrap(), fork);
        }
        assert!(Fork::from_number(4).is_err());
    }
}
