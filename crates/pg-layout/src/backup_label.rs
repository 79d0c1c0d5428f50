//! `backup_label`, which tells recovery where a copy's log begins, and backup history files.
//!
//! The server checks the first two lines to the byte and gives the label to whoever stops a backup; it
//! must reach the copy unchanged. So what is read here is written back byte for byte, in the server's
//! order. Sources: `access/transam/xlogbackup.c` (before 15 `xlog.c`), `xlogrecovery.c`.

use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::segment::{SegmentName, WalFileName, WalSegmentSize, decimal};
use crate::timeline::TimelineId;

const LABEL: &str = "backup_label";
const HISTORY: &str = "backup history file";

/// The content of a `backup_label` file.
///
/// ```
/// use neon_pg_layout::{BackupLabel, Lsn};
/// let text = b"START WAL LOCATION: 0/E000028 (file 00000001000000000000000E)\n\
/// CHECKPOINT LOCATION: 0/E000080\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
/// START TIME: 2026-11-20 10:01:31 UTC\nLABEL: nightly\nSTART TIMELINE: 1\n";
/// let label = BackupLabel::parse(text)?;
/// assert_eq!(label.start, Lsn(0xE00_0028));
/// assert_eq!(label.to_bytes(), text);
/// # Ok::<(), neon_pg_layout::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupLabel {
    /// Where replay starts: the redo position of the checkpoint.
    pub start: Lsn,
    /// The segment that holds `start`.
    pub start_segment: SegmentName,
    /// Where the checkpoint's record is.
    pub checkpoint: Lsn,
    /// How the backup was made.
    pub method: BackupMethod,
    /// What it was taken from.
    pub from: BackupSource,
    /// When it was begun, in the server's `log_timezone` and words.
    pub start_time: String,
    /// The name the backup was given, in the encoding of whoever gave it; `pg_rewind` gives none.
    pub label: Option<Vec<u8>>,
    /// The timeline it was begun on; not recorded by old servers and `pg_rewind`, for which it is that of
    /// `start_segment`.
    pub start_timeline: Option<TimelineId>,
    /// For an incremental backup, the start of the backup it builds on. The server refuses to start
    /// from such a label; the backups must be combined first.
    pub incremental_from: Option<(Lsn, TimelineId)>,
}

/// The word after `BACKUP METHOD:`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackupMethod {
    /// Started and stopped by the server: recovery must meet the end-of-backup record.
    Streamed,
    /// Any other (`pg_rewind`, `pg_start_backup`), by its word.
    Other(String),
}

impl BackupMethod {
    /// The word.
    #[must_use]
    pub fn word(&self) -> &str {
        match self {
            Self::Streamed => "streamed",
            Self::Other(word) => word,
        }
    }
}

/// The word after `BACKUP FROM:`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackupSource {
    /// `master`: a primary of 13.
    Master,
    /// `primary`: a primary of 14 or later.
    Primary,
    /// `standby`: the end of the backup is the copied control file's minimum recovery point.
    Standby,
}

impl BackupSource {
    /// The word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        [Self::Master, Self::Primary, Self::Standby]
            .into_iter()
            .find(|source| source.word() == word)
    }
}

impl BackupLabel {
    /// Parses a label.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed) when a line is missing, out of order, not understood or not
    /// in the server's own form; [`Inconsistent`](ErrorKind::Inconsistent) when the start segment is of
    /// another timeline than `START TIMELINE`, which the server refuses too.
    pub fn parse(content: &[u8]) -> Result<Self> {
        let mut lines = Lines {
            subject: LABEL,
            content,
            rest: content,
        };
        let start = lines.place("START WAL LOCATION: ")?;
        let mut label = lines.common(start)?;
        label.incremental_from = lines.incremental()?;
        lines.end(&label.to_bytes())?;
        Ok(label)
    }

    /// The bytes of the file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut content = self.head(String::new());
        content.extend_from_slice(self.incremental().as_bytes());
        content
    }

    /// Everything but the incremental lines, with `stop` as the second line.
    fn head(&self, stop: String) -> Vec<u8> {
        let mut content = format!(
            "START WAL LOCATION: {} (file {})\n{stop}CHECKPOINT LOCATION: {}\nBACKUP METHOD: {}\n\
             BACKUP FROM: {}\nSTART TIME: {}\n",
            self.start,
            self.start_segment,
            self.checkpoint,
            self.method.word(),
            self.from.word(),
            self.start_time
        )
        .into_bytes();
        if let Some(label) = &self.label {
            content.extend_from_slice(b"LABEL: ");
            content.extend_from_slice(label);
            content.push(b'\n');
        }
        if let Some(timeline) = self.start_timeline {
            content.extend_from_slice(format!("START TIMELINE: {timeline}\n").as_bytes());
        }
        content
    }

    fn incremental(&self) -> String {
        self.incremental_from
            .map(|(lsn, timeline)| {
                format!("INCREMENTAL FROM LSN: {lsn}\nINCREMENTAL FROM TLI: {timeline}\n")
            })
            .unwrap_or_default()
    }

    /// The name of the history file that the server writes when this backup ends.
    #[must_use]
    pub fn history_file_name(&self, size: WalSegmentSize) -> WalFileName {
        WalFileName::backup(self.start_segment.timeline(), self.start, size)
    }
}

/// The content of a backup history file (`<segment>.<offset>.backup`), which a primary archives when a
/// backup ends. Log older than its first segment is not needed by this or later backups.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupHistory {
    /// What the backup's label said.
    pub label: BackupLabel,
    /// Where the backup ended: the log up to here makes it consistent.
    pub stop: Lsn,
    /// The segment named beside the stop position. When `stop` is the start of a segment, 13 and 14 name
    /// the one before it and later majors the one it starts.
    pub stop_segment: SegmentName,
    /// When it ended, in the server's `log_timezone` and words.
    pub stop_time: String,
    /// The timeline it ended on.
    pub stop_timeline: TimelineId,
}

impl BackupHistory {
    /// Parses the content of a backup history file.
    ///
    /// # Errors
    /// As [`BackupLabel::parse`].
    pub fn parse(content: &[u8]) -> Result<Self> {
        let mut lines = Lines {
            subject: HISTORY,
            content,
            rest: content,
        };
        let start = lines.place("START WAL LOCATION: ")?;
        let (stop, stop_segment) = lines.place("STOP WAL LOCATION: ")?;
        let mut label = lines.common(start)?;
        let stop_time = lines.text("STOP TIME: ")?;
        let stop_timeline = lines.timeline("STOP TIMELINE: ")?;
        label.incremental_from = lines.incremental()?;
        let history = Self {
            label,
            stop,
            stop_segment,
            stop_time,
            stop_timeline,
        };
        lines.end(&history.to_bytes())?;
        Ok(history)
    }

    /// The bytes of the file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let stop = format!(
            "STOP WAL LOCATION: {} (file {})\n",
            self.stop, self.stop_segment
        );
        let mut content = self.label.head(stop);
        let tail = format!(
            "STOP TIME: {}\nSTOP TIMELINE: {}\n{}",
            self.stop_time,
            self.stop_timeline,
            self.label.incremental()
        );
        content.extend_from_slice(tail.as_bytes());
        content
    }
}

/// The lines that are left.
struct Lines<'a> {
    subject: &'static str,
    content: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Lines<'a> {
    fn error(&self, reason: String) -> Error {
        let offset = self.content.len() - self.rest.len();
        Error::malformed(self.subject, reason).at(offset as u64)
    }

    /// What stands behind `name` in the next line, if that is the next line.
    fn optional(&mut self, name: &str) -> Option<&'a [u8]> {
        let behind = self.rest.strip_prefix(name.as_bytes())?;
        let end = behind.iter().position(|byte| *byte == b'\n')?;
        let (value, rest) = behind.split_at_checked(end)?;
        self.rest = rest.strip_prefix(b"\n")?;
        Some(value)
    }

    fn text(&mut self, name: &str) -> Result<String> {
        let error = self.error(format!("no line {name:?} with a value"));
        let value = self.optional(name);
        let text = value.and_then(|value| std::str::from_utf8(value).ok());
        text.map(ToOwned::to_owned).ok_or(error)
    }

    fn timeline(&mut self, name: &str) -> Result<TimelineId> {
        let error = self.error(format!("no line {name:?} with a timeline"));
        let number = decimal(&self.text(name)?);
        number
            .and_then(|number| TimelineId::new(number).ok())
            .ok_or(error)
    }

    /// A position and the name of a segment file.
    fn place(&mut self, name: &str) -> Result<(Lsn, SegmentName)> {
        let error = self.error(format!("no line {name:?} with a position and a file"));
        let text = self.text(name)?;
        let parts = text
            .strip_suffix(')')
            .and_then(|text| text.split_once(" (file "));
        parts
            .and_then(|(lsn, file)| Some((lsn.parse().ok()?, file.parse().ok()?)))
            .ok_or(error)
    }

    /// The lines that both kinds of file have.
    fn common(&mut self, (start, start_segment): (Lsn, SegmentName)) -> Result<BackupLabel> {
        let checkpoint = self.text("CHECKPOINT LOCATION: ")?.parse()?;
        let method = match self.text("BACKUP METHOD: ")? {
            word if word == "streamed" => BackupMethod::Streamed,
            word => BackupMethod::Other(word),
        };
        let unknown = self.error("backup from an unknown kind of server".to_owned());
        let from = BackupSource::from_word(&self.text("BACKUP FROM: ")?).ok_or(unknown)?;
        let start_time = self.text("START TIME: ")?;
        let (label, start_timeline) = self.label()?;
        if start_timeline.is_some_and(|timeline| timeline != start_segment.timeline()) {
            return Err(Error::new(
                ErrorKind::Inconsistent,
                self.subject,
                format!("START TIMELINE is not that of {start_segment}"),
            ));
        }
        Ok(BackupLabel {
            start,
            start_segment,
            checkpoint,
            method,
            from,
            start_time,
            label,
            start_timeline,
            incremental_from: None,
        })
    }

    /// The label and the start timeline; either may be missing. The server puts whatever it was given into
    /// the file, newlines too: the label ends where the last `START TIMELINE` line begins.
    fn label(&mut self) -> Result<(Option<Vec<u8>>, Option<TimelineId>)> {
        const NEXT: &[u8] = b"\nSTART TIMELINE: ";
        let mut label = None;
        if let Some(text) = self.rest.strip_prefix(b"LABEL: ") {
            let end = text.windows(NEXT.len()).rposition(|found| found == NEXT);
            let Some((found, rest)) = end.and_then(|end| text.split_at_checked(end)) else {
                let missing = self.error("the line \"LABEL: \" has no end".to_owned());
                let label = self.optional("LABEL: ").ok_or(missing)?;
                return Ok((Some(label.to_vec()), None));
            };
            self.rest = rest.strip_prefix(b"\n").unwrap_or(rest);
            label = Some(found.to_vec());
        }
        if !self.rest.starts_with(b"START TIMELINE: ") {
            return Ok((label, None));
        }
        Ok((label, Some(self.timeline("START TIMELINE: ")?)))
    }

    fn incremental(&mut self) -> Result<Option<(Lsn, TimelineId)>> {
        if !self.rest.starts_with(b"INCREMENTAL FROM LSN: ") {
            return Ok(None);
        }
        let lsn = self.text("INCREMENTAL FROM LSN: ")?.parse()?;
        Ok(Some((lsn, self.timeline("INCREMENTAL FROM TLI: ")?)))
    }

    /// Nothing may be left, and what was read must be all there was: numbers written otherwise than
    /// the server writes them would be lost.
    fn end(&self, rewritten: &[u8]) -> Result<()> {
        if !self.rest.is_empty() {
            return Err(self.error("a line that is not understood".to_owned()));
        }
        if rewritten != self.content {
            return Err(Error::malformed(
                self.subject,
                "a number is not in the server's own form",
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIMARY: &str = "START WAL LOCATION: 0/E000028 (file 00000001000000000000000E)\n\
        CHECKPOINT LOCATION: 0/E000080\n\
        BACKUP METHOD: streamed\n\
        BACKUP FROM: primary\n\
        START TIME: 2026-11-20 10:01:31 UTC\n\
        LABEL: lbl\n\
        START TIMELINE: 1\n";

    #[test]
    fn labels_of_every_source_are_rewritten_byte_for_byte() {
        for text in [
            PRIMARY.to_owned(),
            PRIMARY.replace("primary", "master"),
            PRIMARY.replace("primary", "standby"),
            PRIMARY.replace("streamed", "pg_rewind"),
            PRIMARY.replace("START TIMELINE: 1\n", ""),
            PRIMARY.replace("LABEL: lbl\n", ""),
            // As `pg_rewind` writes it.
            PRIMARY
                .replace("streamed", "pg_rewind")
                .replace("primary", "standby")
                .replace("LABEL: lbl\nSTART TIMELINE: 1\n", ""),
            PRIMARY.replace("lbl", ""),
            PRIMARY.replace("lbl", "two\nlines"),
            PRIMARY.replace("lbl", "a trap\nSTART TIMELINE: 9\nand more"),
            format!("{PRIMARY}INCREMENTAL FROM LSN: 0/B000028\nINCREMENTAL FROM TLI: 1\n"),
        ] {
            let label = BackupLabel::parse(text.as_bytes()).unwrap();
            assert_eq!(label.to_bytes(), text.as_bytes(), "{text}");
        }
        let foreign = PRIMARY.replace("lbl", "caf\u{e9}").replace('\u{e9}', "~");
        let mut bytes = foreign.into_bytes();
        let at = bytes.iter().position(|byte| *byte == b'~').unwrap();
        bytes[at] = 0xE9;
        let label = BackupLabel::parse(&bytes).unwrap();
        assert_eq!(
            (label.label.as_deref(), label.to_bytes()),
            (Some(&b"caf\xE9"[..]), bytes)
        );
    }

    #[test]
    fn what_is_missing_or_strange_is_named() {
        for (from, to) in [
            ("START WAL", "BEGIN WAL"),
            ("(file 00000001000000000000000E)", ""),
            ("0/E000028 ", "0/0E000028 "),
            ("CHECKPOINT LOCATION: 0/E000080\n", ""),
            ("primary", "nowhere"),
            ("START TIMELINE: 1\n", "START TIMELINE: 1\nmore\n"),
            ("START TIMELINE: 1\n", "START TIMELINE: 1"),
            ("START TIMELINE: 1\n", "START TIMELINE: 01\n"),
            ("LABEL: lbl\n", "LABEL lbl\n"),
            ("\n", "\r\n"),
        ] {
            let error = BackupLabel::parse(PRIMARY.replace(from, to).as_bytes()).unwrap_err();
            assert_eq!(
                error.kind(),
                ErrorKind::Malformed,
                "{from} -> {to}: {error}"
            );
        }
        let other = PRIMARY.replace("TIMELINE: 1", "TIMELINE: 2");
        let error = BackupLabel::parse(other.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Inconsistent);
        assert!(BackupLabel::parse(b"").is_err());
    }

    #[test]
    fn a_history_file_adds_where_the_backup_stopped() {
        let text = PRIMARY.replace(
            "CHECKPOINT",
            "STOP WAL LOCATION: 0/F000000 (file 00000001000000000000000F)\nCHECKPOINT",
        );
        let text = format!("{text}STOP TIME: 2026-11-20 10:02:00 UTC\nSTOP TIMELINE: 1\n");
        for text in [
            text.clone(),
            format!("{text}INCREMENTAL FROM LSN: 0/B000028\nINCREMENTAL FROM TLI: 1\n"),
        ] {
            let history = BackupHistory::parse(text.as_bytes()).unwrap();
            assert_eq!(history.stop, Lsn(0xF00_0000));
            assert_eq!(history.to_bytes(), text.as_bytes());
            assert!(BackupLabel::parse(text.as_bytes()).is_err());
        }
        assert!(BackupHistory::parse(PRIMARY.as_bytes()).is_err());
        let label = BackupLabel::parse(PRIMARY.as_bytes()).unwrap();
        assert_eq!(
            label.history_file_name(WalSegmentSize::DEFAULT).to_string(),
            "00000001000000000000000E.00000028.backup"
        );
    }
}
