//! Reading a manifest.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::json::{Step, Token, Tokenizer};
use super::{ManifestFile, SUBJECT};
use crate::error::{Error, ErrorKind, Result};
use crate::file_checksum::{ChecksumAlgorithm, FileChecksum};
use crate::lsn::Lsn;
use crate::segment::decimal;
use crate::system_identifier::SystemIdentifier;
use crate::timeline::TimelineId;
use crate::timeline_history::TimelineRange;

/// A piece of a manifest, in file order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ManifestItem {
    /// A file of the backup.
    File(ManifestFile),
    /// A range of the log that the backup needs.
    WalRange(TimelineRange),
}

/// Reads a manifest as its bytes arrive, in memory bounded whatever the manifest says.
///
/// Keys may come in any order but the first, which must be the version, and the last, which must be the
/// checksum, alone in the last line. Paths that lead out of a directory are refused. Items come before
/// the manifest's own checksum is known: act on them only after [`finish`](Self::finish) agrees. Whether
/// a path occurs twice is not looked at here, [`Manifest::parse`](super::Manifest::parse) does.
#[derive(Debug)]
pub struct ManifestReader {
    tokens: Tokenizer,
    grammar: Grammar,
    lines: Lines,
    offset: u64,
}

impl Default for ManifestReader {
    fn default() -> Self {
        Self::new()
    }
}

impl ManifestReader {
    /// A reader at the start of a manifest.
    #[must_use]
    pub fn new() -> Self {
        Self {
            tokens: Tokenizer::new(),
            grammar: Grammar::default(),
            lines: Lines::default(),
            offset: 0,
        }
    }

    /// Takes the next bytes, in pieces of any size, and hands what they say to `item`.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed) for what is not a manifest,
    /// [`Unsupported`](ErrorKind::Unsupported) for a manifest of another version. The reader is of no use
    /// afterwards.
    pub fn push(&mut self, bytes: &[u8], mut item: impl FnMut(ManifestItem)) -> Result<()> {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            for byte in line {
                self.byte(*byte, &mut item)
                    .map_err(|error| error.at(self.offset))?;
                self.offset += 1;
            }
            self.lines.push(line);
        }
        Ok(())
    }

    fn byte(&mut self, byte: u8, item: &mut impl FnMut(ManifestItem)) -> Result<()> {
        let malformed = |reason| Error::malformed(SUBJECT, reason);
        loop {
            let (token, again) = match self.tokens.step(byte).map_err(malformed)? {
                Step::More => return Ok(()),
                Step::Token(token) => (token, false),
                Step::Before(token) => (token, true),
            };
            self.grammar.token(token, self.lines.number, item)?;
            if !again {
                return Ok(());
            }
        }
    }

    /// Says whether the manifest was whole and its checksum right; returns the cluster it names
    /// (version 2).
    ///
    /// # Errors
    /// [`Truncated`](ErrorKind::Truncated) when bytes are missing, [`Checksum`](ErrorKind::Checksum) when
    /// the manifest's own checksum is wrong, [`Malformed`](ErrorKind::Malformed) when the checksum does
    /// not stand alone in the last line.
    pub fn finish(self) -> Result<Option<SystemIdentifier>> {
        let whole = matches!(self.grammar.state, State::End) && self.lines.ended;
        let Some((stored, line)) = self.grammar.checksum.filter(|_| whole) else {
            let error = Error::new(
                ErrorKind::Truncated,
                SUBJECT,
                "ends before its checksum line",
            );
            return Err(error.at(self.offset));
        };
        if line + 1 != self.lines.number {
            return Err(Error::malformed(
                SUBJECT,
                "the checksum does not stand in the last line",
            ));
        }
        let computed = self.lines.before_last.finalize();
        if stored != computed[..] {
            return Err(Error::new(
                ErrorKind::Checksum,
                SUBJECT,
                "the manifest's own checksum is wrong",
            ));
        }
        Ok(self.grammar.system_identifier)
    }
}

/// Hashes the lines, and remembers the hash of all lines but the last.
#[derive(Debug, Default)]
struct Lines {
    all: Sha256,
    /// After the last newline.
    after_last: Sha256,
    /// After the newline before that.
    before_last: Sha256,
    /// Whether the last byte was a newline.
    ended: bool,
    /// How many newlines there were.
    number: u64,
}

impl Lines {
    /// Takes a line or a part of one.
    fn push(&mut self, line: &[u8]) {
        self.all.update(line);
        self.ended = line.ends_with(b"\n");
        if self.ended {
            self.number += 1;
            self.before_last = std::mem::replace(&mut self.after_last, self.all.clone());
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Version,
    SystemIdentifier,
    Files,
    WalRanges,
    ManifestChecksum,
    Path,
    EncodedPath,
    Size,
    LastModified,
    ChecksumAlgorithm,
    Checksum,
    Timeline,
    StartLsn,
    EndLsn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Object {
    #[default]
    Top,
    File,
    Range,
}

impl Object {
    fn field(self, name: &str) -> Option<Field> {
        Some(match (self, name) {
            (Self::Top, "PostgreSQL-Backup-Manifest-Version") => Field::Version,
            (Self::Top, "System-Identifier") => Field::SystemIdentifier,
            (Self::Top, "Files") => Field::Files,
            (Self::Top, "WAL-Ranges") => Field::WalRanges,
            (Self::Top, "Manifest-Checksum") => Field::ManifestChecksum,
            (Self::File, "Path") => Field::Path,
            (Self::File, "Encoded-Path") => Field::EncodedPath,
            (Self::File, "Size") => Field::Size,
            (Self::File, "Last-Modified") => Field::LastModified,
            (Self::File, "Checksum-Algorithm") => Field::ChecksumAlgorithm,
            (Self::File, "Checksum") => Field::Checksum,
            (Self::Range, "Timeline") => Field::Timeline,
            (Self::Range, "Start-LSN") => Field::StartLsn,
            (Self::Range, "End-LSN") => Field::EndLsn,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    #[default]
    Start,
    /// Before a key; the object may end here when it is empty.
    Key {
        first: bool,
    },
    Colon(Field),
    Value(Field),
    AfterValue,
    /// Before an object of an array of these; the array may end here when it is empty.
    Element {
        of: Object,
        first: bool,
    },
    AfterElement {
        of: Object,
    },
    End,
}

/// What may follow what. Manifests nest three deep and no deeper, so there is no stack.
#[derive(Debug, Default)]
struct Grammar {
    state: State,
    object: Object,
    /// Bits of the fields seen: of the outermost object, and of the current inner one.
    seen_top: u32,
    seen: u32,
    version: u64,
    system_identifier: Option<SystemIdentifier>,
    /// The manifest's checksum and the number of newlines before it.
    checksum: Option<(Vec<u8>, u64)>,
    last_token_line: u64,
    path: Vec<u8>,
    size: u64,
    modified: Option<String>,
    algorithm: Option<ChecksumAlgorithm>,
    sum: Option<Vec<u8>>,
    timeline: Option<TimelineId>,
    start: Lsn,
    end: Lsn,
}

fn malformed(reason: impl Into<Cow<'static, str>>) -> Error {
    Error::malformed(SUBJECT, reason)
}

const fn bit(field: Field) -> u32 {
    1 << field as u32
}

impl Grammar {
    fn token(
        &mut self,
        token: Token<'_>,
        line: u64,
        item: &mut impl FnMut(ManifestItem),
    ) -> Result<()> {
        let starts_line = line > self.last_token_line;
        self.last_token_line = line;
        self.state = match (self.state, token) {
            (State::Start, Token::Mark(b'{')) => State::Key { first: true },
            (State::Key { .. }, Token::String(name)) => self.key(name, starts_line)?,
            (State::Key { first: true }, Token::Mark(b'}')) => self.close(item)?,
            (State::Colon(field), Token::Mark(b':')) => State::Value(field),
            (State::Value(Field::Files), Token::Mark(b'[')) => State::Element {
                of: Object::File,
                first: true,
            },
            (State::Value(Field::WalRanges), Token::Mark(b'[')) => State::Element {
                of: Object::Range,
                first: true,
            },
            (State::Value(field), Token::String(text) | Token::Number(text)) => {
                self.scalar(field, text, line)?;
                State::AfterValue
            }
            (State::AfterValue, Token::Mark(b',')) => State::Key { first: false },
            (State::AfterValue, Token::Mark(b'}')) => self.close(item)?,
            (State::Element { of, .. }, Token::Mark(b'{')) => {
                self.object = of;
                self.seen = 0;
                State::Key { first: true }
            }
            (
                State::Element { first: true, .. } | State::AfterElement { .. },
                Token::Mark(b']'),
            ) => {
                self.object = Object::Top;
                State::AfterValue
            }
            (State::AfterElement { of }, Token::Mark(b',')) => State::Element { of, first: false },
            (State::End, _) => return Err(malformed("text after the end")),
            _ => return Err(malformed("not in the form of a manifest")),
        };
        Ok(())
    }

    fn key(&mut self, name: &str, starts_line: bool) -> Result<State> {
        let field = self.object.field(name);
        let field = field.ok_or_else(|| malformed(format!("unknown field {name:?}")))?;
        if self.seen_top == 0 && field != Field::Version {
            return Err(malformed("the version is not the first field"));
        }
        if self.checksum.is_some() {
            return Err(malformed("a field after the checksum"));
        }
        if field == Field::ManifestChecksum && !starts_line {
            return Err(malformed(
                "the checksum does not stand in a line of its own",
            ));
        }
        let seen = match self.object {
            Object::Top => &mut self.seen_top,
            Object::File | Object::Range => &mut self.seen,
        };
        if *seen & bit(field) != 0 {
            return Err(malformed(format!("field {name:?} twice")));
        }
        *seen |= bit(field);
        Ok(State::Colon(field))
    }

    fn scalar(&mut self, field: Field, text: &str, line: u64) -> Result<()> {
        let wrong = || malformed(format!("{field:?} cannot be {text:?}"));
        match field {
            Field::Version => {
                self.version = decimal(text).ok_or_else(wrong)?;
                if !(1..=2).contains(&self.version) {
                    let reason = format!("version {}", self.version);
                    return Err(Error::new(ErrorKind::Unsupported, SUBJECT, reason));
                }
            }
            Field::SystemIdentifier => {
                self.system_identifier = Some(text.parse().map_err(|_| wrong())?);
            }
            Field::ManifestChecksum => {
                let sum = from_hex(text).filter(|sum| sum.len() == 32);
                self.checksum = Some((sum.ok_or_else(wrong)?, line));
            }
            Field::Path => self.path = text.as_bytes().to_vec(),
            Field::EncodedPath => self.path = from_hex(text).ok_or_else(wrong)?,
            Field::Size => self.size = decimal(text).ok_or_else(wrong)?,
            Field::LastModified => self.modified = Some(text.to_owned()),
            Field::ChecksumAlgorithm => self.algorithm = Some(text.parse().map_err(|_| wrong())?),
            Field::Checksum => self.sum = Some(from_hex(text).ok_or_else(wrong)?),
            Field::Timeline => {
                let number = decimal(text).and_then(|number| TimelineId::new(number).ok());
                self.timeline = Some(number.ok_or_else(wrong)?);
            }
            Field::StartLsn => self.start = text.parse().map_err(|_| wrong())?,
            Field::EndLsn => self.end = text.parse().map_err(|_| wrong())?,
            Field::Files | Field::WalRanges => return Err(wrong()),
        }
        Ok(())
    }

    /// Ends the current object.
    fn close(&mut self, item: &mut impl FnMut(ManifestItem)) -> Result<State> {
        let has = |seen: u32, field| seen & bit(field) != 0;
        match self.object {
            Object::Top => {
                let identified = has(self.seen_top, Field::SystemIdentifier);
                let complete = has(self.seen_top, Field::Files)
                    && has(self.seen_top, Field::ManifestChecksum)
                    && identified == (self.version == 2);
                if !complete {
                    return Err(malformed("a field is missing, or of another version"));
                }
                Ok(State::End)
            }
            Object::File => {
                let named = has(self.seen, Field::Path) != has(self.seen, Field::EncodedPath);
                if !named || !has(self.seen, Field::Size) {
                    return Err(malformed("a file without one path and a size"));
                }
                item(ManifestItem::File(self.file()?));
                Ok(State::AfterElement { of: Object::File })
            }
            Object::Range => {
                let bounds = has(self.seen, Field::StartLsn) && has(self.seen, Field::EndLsn);
                let timeline = self.timeline.take().filter(|_| bounds);
                let timeline =
                    timeline.ok_or_else(|| malformed("a WAL range without timeline and bounds"))?;
                item(ManifestItem::WalRange(TimelineRange {
                    timeline,
                    start: self.start,
                    end: self.end,
                }));
                Ok(State::AfterElement { of: Object::Range })
            }
        }
    }

    fn file(&mut self) -> Result<ManifestFile> {
        let path = std::mem::take(&mut self.path);
        if !stays_inside(&path) {
            return Err(malformed(format!(
                "path {:?} leads out of the data directory",
                String::from_utf8_lossy(&path)
            )));
        }
        let checksum = match (self.algorithm.take(), self.sum.take()) {
            (None | Some(ChecksumAlgorithm::None), None) => None,
            (Some(algorithm), Some(sum)) => Some(
                FileChecksum::new(algorithm, &sum)
                    .map_err(|error| malformed(error.reason().to_owned()))?,
            ),
            _ => return Err(malformed("a checksum without algorithm, or the reverse")),
        };
        Ok(ManifestFile {
            path,
            size: self.size,
            modified: self.modified.take(),
            checksum,
        })
    }
}

/// Whether a path names something below the directory it is joined to.
fn stays_inside(path: &[u8]) -> bool {
    !path.is_empty()
        && !path.contains(&0)
        && path
            .split(|byte| *byte == b'/')
            .all(|part| !part.is_empty() && part != b"..")
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let bytes = pairs
        .iter()
        .map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    rest.is_empty().then(|| bytes.collect()).flatten()
}
