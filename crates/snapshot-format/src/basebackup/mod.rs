//! What `pg_basebackup -Ft` writes: `base.tar`, a tar per tablespace, perhaps `pg_wal.tar`, and a manifest.
//!
//! Source: `backup/basebackup.c`, `port/tar.c`. Members are POSIX ustar without extensions.

mod header;
mod member;
mod read;
mod write;

pub use header::member_header;
pub use read::{Archive, ArchiveKind, BaseBackup, Limits};
pub use write::{BaseBackupWriter, TarOptions};

pub(crate) use member::is_tar;
