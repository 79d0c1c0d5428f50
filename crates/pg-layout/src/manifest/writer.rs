//! Writing a manifest.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use super::ManifestFile;
use crate::system_identifier::SystemIdentifier;
use crate::timeline_history::TimelineRange;

/// Writes a manifest file by file, in the server's layout, and sums it on the way.
///
/// What has been written so far can be [taken](Self::take) at any time, so that memory does not grow
/// with the number of files.
///
/// ```
/// use neon_pg_layout::{Manifest, ManifestFile, ManifestWriter, gmt};
/// let mut writer = ManifestWriter::new(Some("7710187071172605999".parse()?));
/// let file = ManifestFile {
///     path: b"PG_VERSION".to_vec(),
///     size: 3,
///     modified: Some(gmt(1_795_167_818)),
///     checksum: None,
/// };
/// writer.file(&file);
/// let mut bytes = writer.take();
/// bytes.extend(writer.finish(&[]));
/// assert_eq!(Manifest::parse(&bytes)?.files, [file]);
/// # Ok::<(), neon_pg_layout::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct ManifestWriter {
    text: String,
    sha: Sha256,
    files: u64,
    encode_paths: bool,
}

impl ManifestWriter {
    /// A manifest of version 2 with this identifier, or of version 1 without. Tools of 17 and later read
    /// both, those before only version 1.
    #[must_use]
    pub fn new(system_identifier: Option<SystemIdentifier>) -> Self {
        let version = if system_identifier.is_some() { 2 } else { 1 };
        let mut text = format!("{{ \"PostgreSQL-Backup-Manifest-Version\": {version},\n");
        if let Some(identifier) = system_identifier {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "\"System-Identifier\": {identifier},");
        }
        text.push_str("\"Files\": [");
        Self {
            text,
            sha: Sha256::new(),
            files: 0,
            encode_paths: false,
        }
    }

    /// Encodes every path (`--manifest-force-encode`), not only those that are not UTF-8.
    #[must_use]
    pub const fn encode_paths(mut self) -> Self {
        self.encode_paths = true;
        self
    }

    /// Adds a file. Its path must be relative and must not have been added before; readers refuse
    /// others.
    pub fn file(&mut self, file: &ManifestFile) {
        self.text
            .push_str(if self.files == 0 { "\n" } else { ",\n" });
        self.files += 1;
        match std::str::from_utf8(&file.path) {
            Ok(path) if !self.encode_paths => {
                self.text.push_str("{ \"Path\": ");
                string(&mut self.text, path);
            }
            _ => {
                self.text.push_str("{ \"Encoded-Path\": \"");
                hex(&mut self.text, &file.path);
                self.text.push('"');
            }
        }
        // Writing to a string cannot fail.
        let _ = write!(self.text, ", \"Size\": {}", file.size);
        if let Some(modified) = &file.modified {
            self.text.push_str(", \"Last-Modified\": ");
            string(&mut self.text, modified);
        }
        if let Some(checksum) = &file.checksum {
            let _ = write!(
                self.text,
                ", \"Checksum-Algorithm\": \"{}\", \"Checksum\": \"{checksum}\"",
                checksum.algorithm()
            );
        }
        self.text.push_str(" }");
    }

    /// The bytes written since the last call; they follow those taken before.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        self.sha.update(&self.text);
        std::mem::take(&mut self.text).into_bytes()
    }

    /// Ends the manifest with the log that the backup needs, newest timeline first, and its checksum;
    /// returns the bytes that follow those taken before.
    #[must_use]
    pub fn finish(mut self, wal_ranges: &[TimelineRange]) -> Vec<u8> {
        self.text.push_str("\n],\n\"WAL-Ranges\": [");
        for (index, range) in wal_ranges.iter().enumerate() {
            self.text.push_str(if index == 0 { "\n" } else { ",\n" });
            // Writing to a string cannot fail.
            let _ = write!(
                self.text,
                "{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}",
                range.timeline, range.start, range.end
            );
        }
        self.text.push_str("\n],\n");
        let mut bytes = self.take();
        self.text.push_str("\"Manifest-Checksum\": \"");
        hex(&mut self.text, &self.sha.finalize());
        self.text.push_str("\"}\n");
        bytes.extend_from_slice(self.text.as_bytes());
        bytes
    }
}

/// A quoted string with the escapes of the server's `escape_json`.
fn string(text: &mut String, value: &str) {
    text.push('"');
    for character in value.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            '\0'..' ' => {
                // Writing to a string cannot fail.
                let _ = write!(text, "\\u{:04x}", u32::from(character));
            }
            _ => text.push(character),
        }
    }
    text.push('"');
}

fn hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
}

/// Writes a time, in seconds since 1970, as manifests do: `2026-11-20 09:54:27 GMT`.
#[must_use]
pub fn gmt(seconds: i64) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days since 0000-03-01, in eras of 400 years, years from March to February.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02} GMT",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}
