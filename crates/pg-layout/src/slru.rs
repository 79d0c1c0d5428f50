//! Logs of transaction states: files of pages without header or checksum, each a small
//! least-recently-used cache of the server.
//!
//! Source: `access/slru.c` and those who use it.

/// The files that hold "simple least-recently-used" pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slru {
    /// `pg_xact`: the outcome of transactions.
    Transactions,
    /// `pg_multixact/offsets`: where the members of a multixact begin.
    MultiXactOffsets,
    /// `pg_multixact/members`: the members.
    MultiXactMembers,
    /// `pg_commit_ts`: when transactions were committed. Whether `track_commit_timestamp` is on the log
    /// does not say at each commit; assume it unless [`Parameters`](crate::wal::changes::Parameters) or
    /// `pg_control` say otherwise.
    CommitTimestamps,
    /// `pg_subtrans`: rebuilt at start.
    Subtransactions,
    /// `pg_serial`: rebuilt at start.
    Serializable,
    /// `pg_notify`: emptied at start.
    Notifications,
}

impl Slru {
    /// Every one.
    pub const ALL: [Self; 7] = [
        Self::Transactions,
        Self::MultiXactOffsets,
        Self::MultiXactMembers,
        Self::CommitTimestamps,
        Self::Subtransactions,
        Self::Serializable,
        Self::Notifications,
    ];

    /// Pages of one file.
    pub const PAGES_PER_FILE: u64 = 32;

    /// The directory below the data directory.
    #[must_use]
    pub const fn directory(self) -> &'static str {
        match self {
            Self::Transactions => "pg_xact",
            Self::MultiXactOffsets => "pg_multixact/offsets",
            Self::MultiXactMembers => "pg_multixact/members",
            Self::CommitTimestamps => "pg_commit_ts",
            Self::Subtransactions => "pg_subtrans",
            Self::Serializable => "pg_serial",
            Self::Notifications => "pg_notify",
        }
    }

    /// Whether it is part of a copy: the others a server empties or builds anew when it starts, and logs
    /// nothing about.
    #[must_use]
    pub const fn outlives_a_start(self) -> bool {
        matches!(
            self,
            Self::Transactions
                | Self::MultiXactOffsets
                | Self::MultiXactMembers
                | Self::CommitTimestamps
        )
    }
}
