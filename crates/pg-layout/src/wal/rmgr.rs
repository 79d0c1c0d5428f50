//! Resource managers: which part of PostgreSQL wrote a record and would replay it.
//!
//! The numbers are the same in every supported major (`access/rmgrlist.h`).

use std::fmt;

use crate::version::VersionLayout;

/// The resource manager of a record (`xl_rmid`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceManager(pub u8);

/// Names as `pg_waldump` prints them; the place is the number.
const NAMES: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

#[allow(missing_docs, reason = "the names say all there is to say")]
impl ResourceManager {
    pub const XLOG: Self = Self(0);
    pub const TRANSACTION: Self = Self(1);
    pub const STORAGE: Self = Self(2);
    pub const CLOG: Self = Self(3);
    pub const DATABASE: Self = Self(4);
    pub const TABLESPACE: Self = Self(5);
    pub const MULTIXACT: Self = Self(6);
    pub const RELMAP: Self = Self(7);
    pub const STANDBY: Self = Self(8);
    pub const HEAP2: Self = Self(9);
    pub const HEAP: Self = Self(10);
    pub const BTREE: Self = Self(11);
    pub const HASH: Self = Self(12);
    pub const GIN: Self = Self(13);
    pub const GIST: Self = Self(14);
    pub const SEQUENCE: Self = Self(15);
    pub const SPGIST: Self = Self(16);
    pub const BRIN: Self = Self(17);
    pub const COMMIT_TS: Self = Self(18);
    pub const REPLICATION_ORIGIN: Self = Self(19);
    pub const GENERIC: Self = Self(20);
    pub const LOGICAL_MESSAGE: Self = Self(21);

    /// The name, or `None` for custom and unknown ones.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        NAMES.get(usize::from(self.0)).copied()
    }

    /// Whether an extension registered it (128 to 255; 15 and later).
    #[must_use]
    pub const fn is_custom(self) -> bool {
        self.0 >= 128
    }

    /// Whether a server of this major may write records of it.
    #[must_use]
    pub fn exists_in(self, layout: &VersionLayout) -> bool {
        usize::from(self.0) < NAMES.len() || (self.is_custom() && layout.has_custom_rmgrs)
    }
}

impl fmt::Display for ResourceManager {
    /// As `pg_waldump` prints it: the name, or `custom128`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "custom{:03}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::PgMajor;

    #[test]
    fn custom_managers_exist_from_15_on_and_unknown_ones_never() {
        for major in PgMajor::ALL {
            let layout = major.layout();
            assert!(ResourceManager::LOGICAL_MESSAGE.exists_in(layout));
            assert!(!ResourceManager(22).exists_in(layout));
            assert!(!ResourceManager(127).exists_in(layout));
            assert_eq!(
                ResourceManager(128).exists_in(layout),
                major >= PgMajor::V15
            );
        }
        assert_eq!(ResourceManager(128).to_string(), "custom128");
        assert_eq!(ResourceManager::SEQUENCE.to_string(), "Sequence");
    }
}
