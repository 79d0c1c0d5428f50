//! What a base backup may be asked for, in the two grammars there are.
//!
//! Source: `repl_gram.y` of 13 to 18 and "BASE_BACKUP" in the protocol chapter. The keyword list of 13
//! and 14 is a syntax error from 15 on, and the other way round.

use neon_pg_layout::PgMajor;

use crate::error::{Error, Result};
use crate::quote::replication_literal;

const SUBJECT: &str = "BASE_BACKUP";

/// How the checkpoint that begins a backup is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checkpoint {
    /// At once, with a burst of writes.
    Fast,
    /// Spread over `checkpoint_completion_target` of `checkpoint_timeout`.
    #[default]
    Spread,
}

/// Whether a manifest is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ManifestOption {
    /// Not at all.
    No,
    /// With names as they are where they are UTF-8.
    #[default]
    Yes,
    /// With every name in hexadecimal.
    ForceEncode,
}

/// The checksums in a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ManifestChecksum {
    /// None.
    None,
    /// CRC-32C, the server's default.
    Crc32c,
    /// SHA-224.
    Sha224,
    /// SHA-256.
    Sha256,
    /// SHA-384.
    Sha384,
    /// SHA-512.
    Sha512,
}

/// Where the backup goes; other places than the client from 15 on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum BackupTarget {
    /// To us.
    #[default]
    Client,
    /// Into a directory on the server.
    Server(String),
    /// Nowhere.
    Blackhole,
    /// To a target that an extension of the server defines, with its detail.
    Other(String, Option<String>),
}

/// A method of compression on the server, from 15 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CompressionMethod {
    /// gzip; archives are named `.gz`.
    Gzip,
    /// LZ4 frames; `.lz4`.
    Lz4,
    /// Zstandard; `.zst`.
    Zstd,
}

impl CompressionMethod {
    const fn word(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    pub(super) const fn suffix(self) -> &'static str {
        match self {
            Self::Gzip => ".gz",
            Self::Lz4 => ".lz4",
            Self::Zstd => ".zst",
        }
    }
}

/// Compression on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compression {
    /// The method.
    pub method: CompressionMethod,
    /// The level; the method's default without.
    pub level: Option<i32>,
    /// Threads, for Zstandard.
    pub workers: Option<u32>,
    /// Long distance matching, for Zstandard on servers from 16 on.
    pub long: bool,
}

impl Compression {
    /// The method with its defaults.
    #[must_use]
    pub const fn new(method: CompressionMethod) -> Self {
        Self {
            method,
            level: None,
            workers: None,
            long: false,
        }
    }
}

/// What a base backup is asked for. The default asks for what the server does by itself: everything
/// but WAL, after a spread checkpoint, with a manifest, waiting for archiving.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BaseBackupOptions {
    /// The label, at most 1023 bytes, in one line.
    pub label: String,
    /// Estimate sizes first and report progress.
    pub progress: bool,
    /// How the checkpoint at the beginning is made.
    pub checkpoint: Checkpoint,
    /// Put the WAL that the backup needs into the base archive.
    pub wal: bool,
    /// Wait until the WAL of the backup is archived. Whoever streams it does not need to.
    pub wait: bool,
    /// The largest rate, in KiB per second: 32 to 1048576.
    pub max_rate: Option<u32>,
    /// Leave the links of tablespaces to a file `tablespace_map`.
    pub tablespace_map: bool,
    /// Verify page checksums on the way.
    pub verify_checksums: bool,
    /// Whether a manifest is made.
    pub manifest: ManifestOption,
    /// The checksums in it; the server's choice without.
    pub manifest_checksums: Option<ManifestChecksum>,
    /// Where the backup goes.
    pub target: BackupTarget,
    /// Compression on the server.
    pub compression: Option<Compression>,
    /// Only what changed since the backup whose manifest was
    /// [uploaded](crate::Client::upload_manifest). Servers from 17 on.
    pub incremental: bool,
}

impl Default for BaseBackupOptions {
    fn default() -> Self {
        Self {
            label: "neon".to_owned(),
            progress: false,
            checkpoint: Checkpoint::default(),
            wal: false,
            wait: true,
            max_rate: None,
            tablespace_map: false,
            verify_checksums: true,
            manifest: ManifestOption::default(),
            manifest_checksums: None,
            target: BackupTarget::default(),
            compression: None,
            incremental: false,
        }
    }
}

impl BaseBackupOptions {
    /// The command for a server of this major.
    ///
    /// # Errors
    /// [`Config`](crate::ErrorKind::Config) for values out of range,
    /// [`Unsupported`](crate::ErrorKind::Unsupported) for what this major cannot do.
    pub fn command(&self, major: PgMajor) -> Result<String> {
        self.check(major)?;
        let options = self.list(major)?;
        Ok(if major < PgMajor::V15 {
            let words: Vec<String> = options
                .into_iter()
                .map(|(name, value)| match value {
                    Some(value) => format!("{name} {value}"),
                    None => name.to_owned(),
                })
                .collect();
            format!("{SUBJECT} {}", words.join(" "))
        } else {
            let words: Vec<String> = options
                .into_iter()
                .map(|(name, value)| match value {
                    Some(value) => format!("{name} {value}"),
                    None => name.to_owned(),
                })
                .collect();
            format!("{SUBJECT} ({})", words.join(", "))
        })
    }

    fn check(&self, major: PgMajor) -> Result<()> {
        if self.label.len() > 1023 || self.label.contains(['\n', '\r']) {
            return Err(Error::config(
                SUBJECT,
                "the label is longer than 1023 bytes or more than a line",
            ));
        }
        if self
            .max_rate
            .is_some_and(|rate| !(32..=1_048_576).contains(&rate))
        {
            return Err(Error::config(
                SUBJECT,
                "the rate must be 32 to 1048576 KiB per second",
            ));
        }
        let too_old = |what: &str, since: u32| {
            let reason = format!("{what} needs a server from {since} on, this is {major}");
            Err(Error::unsupported(SUBJECT, reason))
        };
        match self {
            Self {
                compression: Some(_),
                ..
            } if major < PgMajor::V15 => too_old("compression", 15),
            Self { target, .. } if *target != BackupTarget::Client && major < PgMajor::V15 => {
                too_old("a target", 15)
            }
            Self {
                incremental: true, ..
            } if major < PgMajor::V17 => too_old("incremental", 17),
            Self {
                compression: Some(Compression { long: true, .. }),
                ..
            } if major < PgMajor::V16 => too_old("long distance matching", 16),
            Self {
                manifest: ManifestOption::No,
                manifest_checksums: Some(_),
                ..
            } => Err(Error::config(
                SUBJECT,
                "checksums of a manifest that is not made",
            )),
            _ => Ok(()),
        }
    }

    /// Names and values, in the order in which stock clients send them.
    fn list(&self, major: PgMajor) -> Result<Vec<(&'static str, Option<String>)>> {
        let new = major >= PgMajor::V15;
        let word = |text: &str| Some(format!("'{text}'"));
        let mut list = Vec::new();
        if self.incremental {
            list.push(("INCREMENTAL", None));
        }
        list.push(("LABEL", Some(replication_literal(&self.label)?)));
        if self.progress {
            list.push(("PROGRESS", None));
        }
        if self.wal {
            list.push(("WAL", None));
        }
        match (self.checkpoint, new) {
            (Checkpoint::Fast, true) => list.push(("CHECKPOINT", word("fast"))),
            (Checkpoint::Fast, false) => list.push(("FAST", None)),
            (Checkpoint::Spread, _) => {}
        }
        match (self.wait, new) {
            (true, _) => {}
            (false, true) => list.push(("WAIT", Some("0".to_owned()))),
            (false, false) => list.push(("NOWAIT", None)),
        }
        if let Some(rate) = self.max_rate {
            list.push(("MAX_RATE", Some(rate.to_string())));
        }
        if self.tablespace_map {
            list.push(("TABLESPACE_MAP", None));
        }
        match (self.verify_checksums, new) {
            (true, _) => {}
            (false, true) => list.push(("VERIFY_CHECKSUMS", Some("0".to_owned()))),
            (false, false) => list.push(("NOVERIFY_CHECKSUMS", None)),
        }
        match self.manifest {
            ManifestOption::No => {}
            ManifestOption::Yes => list.push(("MANIFEST", word("yes"))),
            ManifestOption::ForceEncode => list.push(("MANIFEST", word("force-encode"))),
        }
        if let Some(checksums) = self.manifest_checksums {
            list.push((
                "MANIFEST_CHECKSUMS",
                word(match checksums {
                    ManifestChecksum::None => "NONE",
                    ManifestChecksum::Crc32c => "CRC32C",
                    ManifestChecksum::Sha224 => "SHA224",
                    ManifestChecksum::Sha256 => "SHA256",
                    ManifestChecksum::Sha384 => "SHA384",
                    ManifestChecksum::Sha512 => "SHA512",
                }),
            ));
        }
        match &self.target {
            BackupTarget::Client => {}
            BackupTarget::Server(path) => {
                list.push(("TARGET", word("server")));
                list.push(("TARGET_DETAIL", Some(replication_literal(path)?)));
            }
            BackupTarget::Blackhole => list.push(("TARGET", word("blackhole"))),
            BackupTarget::Other(name, detail) => {
                list.push(("TARGET", Some(replication_literal(name)?)));
                if let Some(detail) = detail {
                    list.push(("TARGET_DETAIL", Some(replication_literal(detail)?)));
                }
            }
        }
        if let Some(compression) = self.compression {
            list.push(("COMPRESSION", word(compression.method.word())));
            let mut detail = Vec::new();
            detail.extend(compression.level.map(|level| format!("level={level}")));
            detail.extend(
                compression
                    .workers
                    .map(|workers| format!("workers={workers}")),
            );
            detail.extend(compression.long.then(|| "long".to_owned()));
            if !detail.is_empty() {
                list.push((
                    "COMPRESSION_DETAIL",
                    Some(replication_literal(&detail.join(","))?),
                ));
            }
        }
        Ok(list)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> BaseBackupOptions {
        BaseBackupOptions {
            label: "it's".to_owned(),
            progress: true,
            checkpoint: Checkpoint::Fast,
            wait: false,
            max_rate: Some(32),
            verify_checksums: false,
            ..BaseBackupOptions::default()
        }
    }

    #[test]
    fn each_major_gets_its_own_grammar() {
        assert_eq!(
            options().command(PgMajor::V14).unwrap(),
            "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT MAX_RATE 32 NOVERIFY_CHECKSUMS MANIFEST 'yes'"
        );
        assert_eq!(
            options().command(PgMajor::V15).unwrap(),
            "BASE_BACKUP (LABEL 'it''s', PROGRESS, CHECKPOINT 'fast', WAIT 0, MAX_RATE 32, \
             VERIFY_CHECKSUMS 0, MANIFEST 'yes')"
        );
    }

    #[test]
    fn what_a_major_cannot_do_is_refused_before_it_is_sent() {
        let mut asked = options();
        asked.incremental = true;
        assert!(asked.command(PgMajor::V16).is_err() && asked.command(PgMajor::V17).is_ok());
        asked = options();
        asked.compression = Some(Compression::new(CompressionMethod::Gzip));
        assert!(asked.command(PgMajor::V14).is_err() && asked.command(PgMajor::V15).is_ok());
        asked = options();
        asked.label = "two\nlines".to_owned();
        assert!(asked.command(PgMajor::V18).is_err());
        asked = options();
        asked.max_rate = Some(31);
        assert!(asked.command(PgMajor::V18).is_err());
    }
}
