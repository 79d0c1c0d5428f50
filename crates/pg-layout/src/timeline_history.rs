//! Timeline history files, and what they say about ancestry.
//!
//! A history file (`%08X.history`) lists the timelines that a timeline descends from, oldest first,
//! each with the position at which it was left. Read by the rules of `readTimeLineHistory` in
//! `access/transam/timeline.c`, written in the server's own form.

use std::fmt::Write as _;

use crate::error::{Error, ErrorKind, Result};
use crate::lsn::Lsn;
use crate::segment::{WalFileName, decimal};
use crate::timeline::TimelineId;

/// A timeline and the timelines it descends from.
///
/// ```
/// use neon_pg_layout::{Lsn, TimelineHistory, TimelineId};
/// let three = TimelineId::new(3)?;
/// let history = TimelineHistory::parse(three, b"1\t0/3000000\tno recovery target specified\n")?;
/// assert_eq!(history.timeline_of(Lsn(0x2FF_FFFF)), TimelineId::FIRST);
/// assert_eq!(history.timeline_of(Lsn(0x300_0000)), three);
/// # Ok::<(), neon_pg_layout::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineHistory {
    timeline: TimelineId,
    ancestors: Vec<TimelineSwitch>,
}

/// One line of a history file: an ancestor and where it was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TimelineSwitch {
    /// The timeline that was left.
    pub timeline: TimelineId,
    /// Its end: the first position that belongs to the next timeline of the history.
    pub at: Lsn,
    /// Why, in the server's words and the cluster's encoding.
    pub reason: Vec<u8>,
}

/// A part of the log that lies on one timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TimelineRange {
    /// The timeline.
    pub timeline: TimelineId,
    /// The first position.
    pub start: Lsn,
    /// The position after the last; [`Lsn::MAX`] on a timeline that goes on.
    pub end: Lsn,
}

impl TimelineHistory {
    /// The history of a timeline without ancestors: the first, and any whose history file is missing.
    #[must_use]
    pub const fn root(timeline: TimelineId) -> Self {
        Self {
            timeline,
            ancestors: Vec::new(),
        }
    }

    /// Parses the content of the history file of `timeline`. Blank lines and comments are dropped.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed) for what the server refuses: a line without timeline or
    /// position, timelines that do not increase or are not below `timeline`.
    /// [`Inconsistent`](ErrorKind::Inconsistent) for positions that decrease, which the server does not
    /// notice and which describe no possible log.
    pub fn parse(timeline: TimelineId, content: &[u8]) -> Result<Self> {
        let mut history = Self::root(timeline);
        for (number, line) in (1..).zip(content.split(|byte| *byte == b'\n')) {
            let line = line.trim_ascii_start();
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let switch = parse_line(line).map_err(|expected| {
                Error::malformed(
                    history.file_name().to_string(),
                    format!("syntax error in line {number}: expected {expected}"),
                )
            })?;
            history.push(switch)?;
        }
        Ok(history)
    }

    /// The history of a timeline that branches off this one at `at`.
    ///
    /// # Errors
    /// [`Malformed`](ErrorKind::Malformed) unless `timeline` is above every timeline of this history;
    /// [`Inconsistent`](ErrorKind::Inconsistent) when this timeline begins after `at`.
    pub fn branch(&self, timeline: TimelineId, at: Lsn, reason: &str) -> Result<Self> {
        let mut child = Self {
            timeline,
            ancestors: Vec::with_capacity(self.ancestors.len() + 1),
        };
        for switch in &self.ancestors {
            child.push(switch.clone())?;
        }
        child.push(TimelineSwitch {
            timeline: self.timeline,
            at,
            reason: reason.replace(['\n', '\r'], " ").into_bytes(),
        })?;
        Ok(child)
    }

    fn push(&mut self, switch: TimelineSwitch) -> Result<()> {
        let wrong = |kind, reason| Err(Error::new(kind, self.file_name().to_string(), reason));
        if let Some(last) = self.ancestors.last() {
            if switch.timeline <= last.timeline {
                return wrong(
                    ErrorKind::Malformed,
                    "timeline IDs must be in increasing sequence",
                );
            }
            if switch.at < last.at {
                return wrong(
                    ErrorKind::Inconsistent,
                    "a timeline is left before it began",
                );
            }
        }
        if switch.timeline >= self.timeline {
            return wrong(
                ErrorKind::Malformed,
                "timeline IDs must be less than child timeline's ID",
            );
        }
        self.ancestors.push(switch);
        Ok(())
    }

    /// The content of the history file, in the server's form: a blank line before every switch but the
    /// first. Empty without ancestors: the first timeline has no file.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut content = Vec::new();
        for (index, switch) in self.ancestors.iter().enumerate() {
            let mut place = String::new();
            // Writing to a string cannot fail.
            let _ = write!(place, "{}\t{}\t", switch.timeline, switch.at);
            content.extend_from_slice(if index == 0 { b"" } else { b"\n" });
            content.extend_from_slice(place.as_bytes());
            content.extend_from_slice(&switch.reason);
            content.push(b'\n');
        }
        content
    }

    /// The timeline whose history this is.
    #[must_use]
    pub const fn timeline(&self) -> TimelineId {
        self.timeline
    }

    /// The ancestors with the positions at which they were left, oldest first.
    #[must_use]
    pub fn ancestors(&self) -> &[TimelineSwitch] {
        &self.ancestors
    }

    /// The name of the history file.
    #[must_use]
    pub const fn file_name(&self) -> WalFileName {
        WalFileName::History(self.timeline)
    }

    /// The log that leads to this timeline, cut at the switches, oldest first. Ranges may be empty.
    pub fn ranges(&self) -> impl DoubleEndedIterator<Item = TimelineRange> + '_ {
        let starts = std::iter::once(Lsn(0)).chain(self.ancestors.iter().map(|switch| switch.at));
        let starts: Vec<Lsn> = starts.collect();
        let ends = self
            .ancestors
            .iter()
            .map(|switch| (switch.timeline, switch.at));
        let ends: Vec<_> = ends.chain([(self.timeline, Lsn::MAX)]).collect();
        let ranges = starts.into_iter().zip(ends);
        ranges.map(|(start, (timeline, end))| TimelineRange {
            timeline,
            start,
            end,
        })
    }

    /// The part of the log that lies on `timeline`, if it is in this history.
    #[must_use]
    pub fn range_of(&self, timeline: TimelineId) -> Option<TimelineRange> {
        self.ranges().find(|range| range.timeline == timeline)
    }

    /// The timeline that holds the byte at `lsn`.
    ///
    /// The byte at a switch belongs to the new timeline. For a range that *ends* at `lsn` ask for the
    /// byte before.
    #[must_use]
    pub fn timeline_of(&self, lsn: Lsn) -> TimelineId {
        let holding = self.ancestors.iter().find(|switch| lsn < switch.at);
        holding.map_or(self.timeline, |switch| switch.timeline)
    }

    /// Whether a cluster that stands at `lsn` on `timeline` can follow this history: the timeline is in
    /// it and was not left before `lsn`.
    #[must_use]
    pub fn contains(&self, timeline: TimelineId, lsn: Lsn) -> bool {
        self.range_of(timeline)
            .is_some_and(|range| range.start <= lsn && lsn <= range.end)
    }

    /// [`contains`](Self::contains), as an error that says where the ways part.
    ///
    /// # Errors
    /// [`Inconsistent`](ErrorKind::Inconsistent), in the words with which recovery refuses.
    pub fn require(&self, timeline: TimelineId, lsn: Lsn) -> Result<()> {
        if self.contains(timeline, lsn) {
            return Ok(());
        }
        let detail = match self.range_of(timeline) {
            None => format!("timeline {timeline} is not in its history"),
            Some(range) if lsn < range.start => {
                format!("timeline {timeline} begins at {}, after {lsn}", range.start)
            }
            Some(range) => format!(
                "the history of the requested timeline forked off from timeline {timeline} at {}, \
                 before {lsn}",
                range.end
            ),
        };
        Err(Error::new(
            ErrorKind::Inconsistent,
            self.file_name().to_string(),
            format!(
                "requested timeline {} is not a child of this server's history: {detail}",
                self.timeline
            ),
        ))
    }

    /// The log from `start` on `timeline` to `end` along this history, cut at the switches.
    ///
    /// # Errors
    /// [`Inconsistent`](ErrorKind::Inconsistent) when the start is not in this history;
    /// [`OutOfRange`](ErrorKind::OutOfRange) when `end` lies before it.
    pub fn path(&self, timeline: TimelineId, start: Lsn, end: Lsn) -> Result<Vec<TimelineRange>> {
        self.require(timeline, start)?;
        if end < start {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                self.file_name().to_string(),
                format!("{end} lies before {start}"),
            ));
        }
        let cut = self.ranges().map(|range| TimelineRange {
            start: range.start.max(start),
            end: range.end.min(end),
            ..range
        });
        Ok(cut.filter(|range| range.start < range.end).collect())
    }

    /// Where this history and another part: the last timeline both share and the first position that is
    /// no longer common (as `pg_rewind` finds it). `None` when they begin differently.
    #[must_use]
    pub fn common_ancestor(&self, other: &Self) -> Option<(TimelineId, Lsn)> {
        let shared = self
            .ranges()
            .zip(other.ranges())
            .take_while(|(one, two)| one.timeline == two.timeline && one.start == two.start);
        shared
            .last()
            .map(|(one, two)| (one.timeline, one.end.min(two.end)))
    }
}

/// Reads `<timeline> <position> <reason>`; an error says what was expected.
fn parse_line(line: &[u8]) -> std::result::Result<TimelineSwitch, &'static str> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = line.split_at(digits);
    let timeline = std::str::from_utf8(number).ok().and_then(decimal);
    let timeline = timeline.and_then(|number| TimelineId::new(number).ok());
    let timeline = timeline.ok_or("a numeric timeline ID")?;
    let rest = rest.trim_ascii_start();
    let end = rest.iter().position(u8::is_ascii_whitespace);
    let (at, reason) = rest.split_at(end.unwrap_or(rest.len()));
    let at = std::str::from_utf8(at).ok().and_then(|at| at.parse().ok());
    Ok(TimelineSwitch {
        timeline,
        at: at.ok_or("a write-ahead log switchpoint location")?,
        reason: reason.strip_prefix(b"\t").unwrap_or(reason).to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timeline(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn sample() -> TimelineHistory {
        let content = b"1\t0/3000000\tno recovery target specified\n\n\
                        3\t0/5000000\tat restore point \"x\"\n";
        TimelineHistory::parse(timeline(7), content).unwrap()
    }

    #[test]
    fn a_server_written_history_is_rewritten_byte_for_byte() {
        let history = sample();
        let again = TimelineHistory::parse(timeline(7), &history.to_bytes()).unwrap();
        assert_eq!(history, again);
        assert!(history.to_bytes().windows(2).any(|pair| pair == b"\n\n"));
        assert_eq!(history.file_name().to_string(), "00000007.history");
        assert!(TimelineHistory::root(timeline(1)).to_bytes().is_empty());
    }

    #[test]
    fn comments_blanks_and_missing_reasons_are_accepted() {
        let content = b"# made by hand\n\n   1   0/10 \n\t2\t0/20";
        let history = TimelineHistory::parse(timeline(3), content).unwrap();
        assert_eq!(history.ancestors().len(), 2);
    }

    #[test]
    fn what_the_server_refuses_is_refused_in_its_words() {
        for (content, words) in [
            (&b"x\t0/1\ty\n"[..], "expected a numeric timeline ID"),
            (b"0\t0/1\ty\n", "expected a numeric timeline ID"),
            (b"1\tnowhere\n", "expected a write-ahead log switchpoint"),
            (b"1\n", "expected a write-ahead log switchpoint"),
            (b"2\t0/1\ty\n1\t0/2\ty\n", "increasing sequence"),
            (b"3\t0/1\ty\n", "less than child timeline's ID"),
        ] {
            let error = TimelineHistory::parse(timeline(3), content).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed);
            assert!(error.reason().contains(words), "{error}");
            assert_eq!(error.subject(), "00000003.history");
        }
        let error = TimelineHistory::parse(timeline(3), b"1\t0/2\ta\n2\t0/1\tb\n").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Inconsistent);
    }

    #[test]
    fn a_position_belongs_to_the_timeline_that_wrote_it() {
        let history = sample();
        for (lsn, expected) in [(0, 1), (0x2FF_FFFF, 1), (0x300_0000, 3), (0x500_0000, 7)] {
            assert_eq!(history.timeline_of(Lsn(lsn)), timeline(expected));
        }
        assert!(history.contains(timeline(1), Lsn(0x300_0000)));
        assert!(!history.contains(timeline(1), Lsn(0x300_0001)));
        assert!(!history.contains(timeline(3), Lsn(0x2FF_FFFF)));
        assert!(!history.contains(timeline(2), Lsn(0x300_0000)));
        assert!(history.contains(timeline(7), Lsn::MAX));
        let error = history.require(timeline(1), Lsn(0x400_0000)).unwrap_err();
        assert!(
            error
                .reason()
                .contains("forked off from timeline 1 at 0/3000000")
        );
    }

    #[test]
    fn a_path_is_cut_at_the_switches() {
        let path = sample()
            .path(timeline(1), Lsn(0x100_0000), Lsn(0x600_0000))
            .unwrap();
        let parts: Vec<_> = path
            .iter()
            .map(|part| (part.timeline.get(), part.start.0, part.end.0))
            .collect();
        assert_eq!(
            parts,
            [
                (1, 0x100_0000, 0x300_0000),
                (3, 0x300_0000, 0x500_0000),
                (7, 0x500_0000, 0x600_0000)
            ]
        );
        let at_switch = sample()
            .path(timeline(1), Lsn(0x300_0000), Lsn(0x300_0001))
            .unwrap();
        assert_eq!(at_switch.len(), 1);
        assert_eq!(at_switch[0].timeline, timeline(3));
        assert!(sample().path(timeline(2), Lsn(1), Lsn(2)).is_err());
        assert!(sample().path(timeline(1), Lsn(2), Lsn(1)).is_err());
    }

    #[test]
    fn histories_part_where_the_earlier_switch_is() {
        let root = TimelineHistory::root(timeline(1));
        let two = root.branch(timeline(2), Lsn(100), "two").unwrap();
        let three = root.branch(timeline(3), Lsn(50), "three").unwrap();
        let four = two.branch(timeline(4), Lsn(200), "four").unwrap();
        assert_eq!(two.common_ancestor(&three), Some((timeline(1), Lsn(50))));
        assert_eq!(two.common_ancestor(&four), Some((timeline(2), Lsn(200))));
        assert_eq!(four.common_ancestor(&four), Some((timeline(4), Lsn::MAX)));
        let other = TimelineHistory::root(timeline(5));
        assert_eq!(other.common_ancestor(&four), None);
        assert!(four.branch(timeline(3), Lsn(300), "back").is_err());
        assert!(four.branch(timeline(9), Lsn(100), "early").is_err());
    }
}
