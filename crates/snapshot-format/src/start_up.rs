//! What a server reads to start, and in which order files are best laid out.

use crate::path::SnapshotPath;

/// The first number that relations of users get (`FirstNormalObjectId`).
const FIRST_NORMAL: u64 = 16_384;

/// How early a file is needed. Formats that can be read in place lay files out by this rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StartUpRank {
    /// Needed before the server takes connections: maps, transaction status, shared catalogs,
    /// configuration, labels.
    First,
    /// The log that the start reads.
    Log,
    /// Catalogs of databases, read by every connection.
    Catalog,
    /// Everything else.
    Later,
}

impl StartUpRank {
    /// The rank of a file.
    #[must_use]
    pub fn of(path: &SnapshotPath) -> Self {
        let Some((directory, name)) = path.split() else {
            return Self::First;
        };
        let top = directory
            .split(|byte| *byte == b'/')
            .next()
            .unwrap_or_default();
        match top {
            b"pg_wal" => Self::Log,
            b"" | b"global" | b"pg_xact" | b"pg_multixact" | b"pg_commit_ts" | b"pg_twophase"
            | b"pg_logical" | b"pg_stat" => Self::First,
            b"base" | b"pg_tblspc" => {
                if name == b"PG_VERSION" || name == b"pg_filenode.map" {
                    return Self::First;
                }
                let digits = name
                    .split(|byte| !byte.is_ascii_digit())
                    .next()
                    .unwrap_or_default();
                let number: Option<u64> = std::str::from_utf8(digits)
                    .ok()
                    .and_then(|digits| digits.parse().ok());
                match number {
                    Some(number) if number < FIRST_NORMAL => Self::Catalog,
                    _ => Self::Later,
                }
            }
            _ => Self::Later,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn catalogs_come_before_tables_of_users() {
        let of = |path: &str| StartUpRank::of(&SnapshotPath::new(path).unwrap());
        assert_eq!(of("PG_VERSION"), StartUpRank::First);
        assert_eq!(of("global/pg_control"), StartUpRank::First);
        assert_eq!(of("base/5/pg_filenode.map"), StartUpRank::First);
        assert_eq!(of("pg_wal/000000010000000000000003"), StartUpRank::Log);
        assert_eq!(of("base/5/1259_fsm"), StartUpRank::Catalog);
        assert_eq!(of("base/5/16384.1"), StartUpRank::Later);
        assert_eq!(of("log/postgresql.log"), StartUpRank::Later);
        assert_eq!(
            of("pg_tblspc/16400/PG_15_202209061/5/16401"),
            StartUpRank::Later
        );
    }
}
