//! Watching a server recover: through its log and what its command notes, until it is gone.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::pin::Pin;

use neon_pg_layout::{ControlFile, Lsn, SegmentName};
use rustix::process::Signal;

use crate::command::POLL;
use crate::durable::{self, Scrap};
use crate::error::{Error, ErrorKind, Result};
use crate::launch::Launched;
use crate::process::Process;
use crate::recovery::job::Job;
use crate::recovery::log::{Findings, News};
use crate::recovery::plan::{RecoveryEnd, RecoveryEvent};
use crate::recovery::settings::DECODE_AHEAD;
use crate::recovery::target::RecoveryTarget;
use crate::recovery::verdict;

/// Somebody who wants a word with the server once it is promoted: polled only then, and to its end.
pub(crate) type Visit<'a> = Pin<&'a mut (dyn Future<Output = ()> + Send)>;

/// So often the server must have come back for the same segment before we believe that it has replayed all
/// there is: once or twice it asks before and while it reads the segment from `pg_wal`.
const TIMES_ASKED: usize = 5;

/// A run that is under way.
#[derive(Debug)]
pub(crate) struct Watch<'a> {
    job: &'a Job<'a>,
    log: Tail,
    pub(crate) findings: Findings,
    /// Up to where replay was told about.
    reached: Lsn,
    /// Whether the end of WAL was seen and the server was told to stop there.
    pub(crate) at_end: bool,
    /// A segment that lies behind that end.
    pub(crate) later: Option<SegmentName>,
    /// Whether the server has been told to end.
    told: bool,
    promote_file: Option<Scrap>,
}

impl<'a> Watch<'a> {
    /// Made before the server is started: what is in the log then is not its.
    pub(crate) fn new(job: &'a Job<'a>, line_mark: &str) -> Result<Self> {
        Ok(Self {
            job,
            log: Tail::at_end(job.instance.start_log())?,
            findings: Findings::new(line_mark),
            reached: Lsn(0),
            at_end: false,
            later: None,
            told: false,
            promote_file: None,
        })
    }
}

impl Watch<'_> {
    /// Returns when the server is gone.
    pub(crate) async fn until_gone(
        &mut self,
        launched: &Launched,
        visit: &mut Option<Visit<'_>>,
        progress: &mut (impl FnMut(RecoveryEvent) + Send),
    ) -> Result<()> {
        loop {
            // In this order: what it said last is there once it is gone.
            let alive = launched.is_alive();
            for line in self.log.new_lines()? {
                if let Some(news) = self.findings.note(&line) {
                    self.tell(news, progress);
                }
            }
            if !alive {
                return Ok(());
            }
            if self.findings.ready {
                self.promote_file = None;
                if self.job.plan.end == RecoveryEnd::Promoted
                    && !self.told
                    && verdict::is_promoted(self.job.target, &self.findings, self.at_end)
                    && let Some(visit) = visit.take()
                {
                    self.findings.visited = true;
                    visit.await;
                }
                self.end(launched)?;
            }
            if self.job.target == &RecoveryTarget::Latest && !self.at_end && self.asked_in_vain() {
                self.at_end = true;
                progress(RecoveryEvent::EndOfWal);
                self.later = self.job.later_segment(&self.findings).await?;
                let control = self.job.instance.control_file()?;
                let consistent = self.findings.consistent.is_some() || was_consistent(&control);
                if self.job.plan.end == RecoveryEnd::Promoted && self.later.is_none() && consistent
                {
                    progress(RecoveryEvent::Promoting);
                    self.promote(launched)?;
                } else {
                    self.end(launched)?;
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn tell(&mut self, news: News, progress: &mut (impl FnMut(RecoveryEvent) + Send)) {
        let replayed = match news {
            News::RedoStarts(lsn) => {
                progress(RecoveryEvent::RedoStarts(lsn));
                None
            }
            News::Consistent(lsn) => {
                progress(RecoveryEvent::Consistent(lsn));
                Some(lsn)
            }
            News::Restored(name) => {
                progress(RecoveryEvent::Restored(name));
                let start = name
                    .start(self.job.control.build.wal_segment_size)
                    .unwrap_or(Lsn(0));
                self.findings
                    .redo_starts
                    .map(|_| Lsn(start.0.saturating_sub(DECODE_AHEAD)))
            }
            News::At(lsn) => Some(lsn),
            News::Stopped(point) => {
                progress(RecoveryEvent::Stopped(point));
                None
            }
        };
        // The first segments are asked for before replay is there.
        let start = self.findings.redo_starts.unwrap_or(Lsn(0));
        if let Some(lsn) = replayed
            && lsn > self.reached
            && lsn > start
        {
            self.reached = lsn;
            progress(RecoveryEvent::Replayed(lsn));
        }
    }

    /// Whether the server has come back for the same segment so often that it has replayed all there is.
    fn asked_in_vain(&self) -> bool {
        let restored = self
            .findings
            .restored
            .is_some_and(|(_, times)| times as usize >= TIMES_ASKED);
        let misses = self.job.folder.misses();
        let last = misses
            .iter()
            .rev()
            .find(|miss| verdict::segment(&miss.file).is_some());
        let missed = last.map_or(0, |last| {
            misses.iter().filter(|miss| miss.file == last.file).count()
        });
        restored || missed >= TIMES_ASKED
    }

    fn end(&mut self, launched: &Launched) -> Result<()> {
        if self.told {
            return Ok(());
        }
        self.told = true;
        signal(launched, Signal::INT)
    }

    fn promote(&mut self, launched: &Launched) -> Result<()> {
        let path = self.job.instance.data_dir().join("promote");
        let file = Scrap(path);
        // As a whole: any signal makes the server look for it, and take it away.
        durable::replace(&file.0, b"", 0o600, self.job.instance.os_user())?;
        self.promote_file = Some(file);
        signal(launched, Signal::USR1)
    }
}

fn signal(launched: &Launched, signal: Signal) -> Result<()> {
    let Some(server) = Process::open(launched.pid()) else {
        return Ok(());
    };
    match server.signal(signal) {
        Ok(_) => Ok(()),
        Err(error) => Err(Error::new(
            ErrorKind::Io,
            format!("process {}", launched.pid()),
            "cannot be signalled",
        )
        .with_source(error)),
    }
}

/// The end of a file that grows, line by line.
#[derive(Debug)]
struct Tail {
    file: File,
    path: PathBuf,
    rest: Vec<u8>,
}

impl Tail {
    fn at_end(path: PathBuf) -> Result<Self> {
        let attempt = || -> std::io::Result<File> {
            let mut file = File::open(&path)?;
            file.seek(SeekFrom::End(0))?;
            Ok(file)
        };
        match attempt() {
            Ok(file) => Ok(Self {
                file,
                path,
                rest: Vec::new(),
            }),
            Err(error) => Err(Error::io(&path, "cannot be read", error)),
        }
    }

    /// The lines that are whole and were not returned before.
    fn new_lines(&mut self) -> Result<Vec<String>> {
        self.file
            .read_to_end(&mut self.rest)
            .map_err(|error| Error::io(&self.path, "cannot be read", error))?;
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            return Ok(Vec::new());
        };
        let rest = self.rest.split_off(end + 1);
        let whole = std::mem::replace(&mut self.rest, rest);
        Ok(String::from_utf8_lossy(&whole)
            .lines()
            .map(str::to_owned)
            .collect())
    }
}

/// Whether nothing is left of a backup that recovery must get past first.
pub(crate) fn was_consistent(control: &ControlFile) -> bool {
    !control.backup_start.is_valid()
        && !control.backup_end_required
        && !control.backup_end.is_valid()
}
