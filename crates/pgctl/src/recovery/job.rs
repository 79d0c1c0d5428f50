//! One run of a server: what is asked of the WAL source beside it, and the server's command line.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use neon_pg_layout::wal::WalPageHeader;
use neon_pg_layout::{ControlFile, SegmentName, TimelineId, WalFileName, WalSegmentSize};

use crate::command::{self, Running};
use crate::durable::Scrap;
use crate::error::{Error, ErrorKind, Result};
use crate::instance::Instance;
use crate::recovery::folder::RunFolder;
use crate::recovery::log::Findings;
use crate::recovery::plan::{RecoveryEnd, RecoveryPlan};
use crate::recovery::settings::{self, Learnt, Surroundings};
use crate::recovery::source::WalSource;
use crate::recovery::target::{RecoveryTarget, RecoveryTimeline};
use crate::recovery::verdict;

/// How long the source may take over one file that we ask for ourselves.
const ASK_LIMIT: Duration = Duration::from_secs(600);

/// What is known before the server starts.
#[derive(Debug)]
pub(crate) struct Job<'a> {
    pub(crate) instance: &'a Instance,
    pub(crate) plan: &'a RecoveryPlan,
    pub(crate) target: &'a RecoveryTarget,
    /// The control file as it was found.
    pub(crate) control: ControlFile,
    /// The timeline that the data directory is on.
    pub(crate) current: TimelineId,
    pub(crate) folder: RunFolder,
}

impl Job<'_> {
    /// The arguments of the server that follows this timeline.
    pub(crate) fn arguments(
        &self,
        wanted: TimelineId,
        learnt: &Learnt,
        line_mark: &str,
    ) -> Result<Vec<OsString>> {
        let mut settings = settings::settings(
            &self.control,
            &Surroundings {
                data_dir: self.instance.data_dir(),
                socket_dir: self.folder.path(),
                hba_file: &self.folder.hba_file(),
                ident_file: &self.folder.ident_file(),
                pid_file: &self.folder.pid_file(),
                learnt,
                line_mark,
                shared_buffers_kib: self.plan.shared_buffers_kib,
                preload: &self.plan.preload,
                slots: entries_of(&self.instance.data_dir().join("pg_replslot")),
                durable: self.plan.durable,
            },
        )?;
        settings.push(("restore_command", self.restore_command()?));
        // The history of the timeline one is on need not be there.
        let timeline = if wanted == self.current {
            "current".to_owned()
        } else {
            wanted.to_string()
        };
        settings.push(("recovery_target_timeline", timeline));
        let action = match self.plan.end {
            RecoveryEnd::InRecovery => "shutdown",
            RecoveryEnd::Promoted => "promote",
        };
        settings.push(("recovery_target_action", action.to_owned()));
        settings.extend(self.target.settings());

        let mut arguments: Vec<OsString> = vec!["-D".into(), self.instance.data_dir().into()];
        let mut config_file = OsString::from("config_file=");
        config_file.push(self.folder.config_file());
        arguments.extend(["-c".into(), config_file]);
        for (name, value) in settings {
            arguments.extend(["-c".into(), format!("{name}={value}").into()]);
        }
        Ok(arguments)
    }

    /// The number of the timeline to follow.
    pub(crate) async fn wanted_timeline(&self) -> Result<TimelineId> {
        match (self.plan.timeline, &self.plan.source) {
            (RecoveryTimeline::Current, _) => Ok(self.current),
            (RecoveryTimeline::Number(timeline), _) => Ok(timeline),
            (RecoveryTimeline::Latest, WalSource::Directory(path)) => {
                let histories = files_in(path)?.into_iter().filter_map(|file| match file {
                    WalFileName::History(timeline) => Some(timeline),
                    _ => None,
                });
                Ok(histories
                    .max()
                    .map_or(self.current, |newest| newest.max(self.current)))
            }
            (RecoveryTimeline::Latest, WalSource::Command(_)) => {
                // Numbers are skipped when others were known to be taken, so gaps end nothing below the last.
                let known = self.plan.used_timelines.last().map_or(0, |last| last.get());
                let mut newest = self.current;
                for number in self.current.get().saturating_add(1)..=u32::MAX {
                    let timeline = TimelineId::new(number).unwrap_or(self.current);
                    if self.source_has(&format!("{number:08X}.history")).await? {
                        newest = timeline;
                    } else if number > known {
                        break;
                    }
                }
                Ok(newest)
            }
        }
    }

    fn restore_command(&self) -> Result<String> {
        let segments = !self.plan.without_segments;
        self.plan
            .source
            .restore_command(self.folder.path(), segments)
    }

    /// A text that the shell cannot parse exits with 2, which would look like the end of WAL.
    pub(crate) async fn check_command(&self) -> Result<()> {
        let text = self.restore_command()?;
        let finished = self.shell(&["-n", "-c", &text]).await?;
        if finished.status.success() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Invalid,
            "WAL source",
            "a shell cannot parse the command",
        )
        .with_log(finished.lines()))
    }

    /// Whether the source has a file.
    async fn source_has(&self, file: &str) -> Result<bool> {
        Ok(self.ask(file).await?.is_some())
    }

    /// A file of the source, as long as the value is kept.
    async fn ask(&self, file: &str) -> Result<Option<Scrap>> {
        let to = Scrap(self.folder.path().join("asked"));
        let text = self.plan.source.ask(file, &to.0)?;
        let finished = self.shell(&["-c", &text]).await?;
        match finished.status.code() {
            Some(0) => Ok(to.0.exists().then_some(to)),
            Some(1..=125) => Ok(None),
            _ => Err(Error::new(
                ErrorKind::WalSource,
                file.to_owned(),
                format!("the WAL source failed: {}", finished.status),
            )
            .with_log(finished.lines())),
        }
    }

    async fn shell(&self, arguments: &[&str]) -> Result<command::Finished> {
        let mut command = command::clean("/bin/sh".as_ref(), self.instance.os_user(), None);
        command
            .args(arguments)
            .current_dir(self.instance.data_dir())
            .envs(
                self.plan
                    .variables
                    .iter()
                    .map(|(name, value)| (name, value)),
            );
        Running::spawn(&mut command)?.wait(ASK_LIMIT).await
    }

    /// A segment the source has although it comes after the place where WAL ended.
    pub(crate) async fn later_segment(&self, findings: &Findings) -> Result<Option<SegmentName>> {
        if self.plan.without_segments {
            return Ok(None);
        }
        let size = self.control.build.wal_segment_size;
        let Some(end) = verdict::wal_end(findings, &self.folder.misses(), size) else {
            return Ok(None);
        };
        let end = end.segment();
        let number = end.number(size).unwrap_or(u64::MAX);
        match &self.plan.source {
            WalSource::Directory(path) => {
                let mut later: Vec<(u64, SegmentName)> = files_in(path)?
                    .into_iter()
                    .filter_map(|file| match file {
                        WalFileName::Segment(name) if name.timeline() == end.timeline() => {
                            Some((name.number(size).ok().filter(|at| *at > number)?, name))
                        }
                        _ => None,
                    })
                    .collect();
                later.sort_unstable();
                let mut found = later.into_iter().map(|(_, name)| name);
                Ok(found.find(|name| holds_its_name(&path.join(name.to_string()), *name, size)))
            }
            WalSource::Command(_) => {
                let Ok(Some(next)) = end.next(size) else {
                    return Ok(None);
                };
                let file = self.ask(&next.to_string()).await?;
                let holds = file.is_some_and(|file| holds_its_name(&file.0, next, size));
                Ok(holds.then_some(next))
            }
        }
    }
}

/// Whether a file is the segment its name says: a `pg_wal` also has old ones that wait to be written again under
/// names that are still to come.
fn holds_its_name(path: &Path, name: SegmentName, size: WalSegmentSize) -> bool {
    let mut header = [0; WalPageHeader::LONG];
    let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut header));
    let header = read.ok().and_then(|()| WalPageHeader::decode(&header).ok());
    header.is_some_and(|header| name.start(size).is_ok_and(|start| header.address == start))
}

/// How many entries a folder has.
fn entries_of(path: &Path) -> usize {
    fs::read_dir(path).map_or(0, Iterator::count)
}

/// The names of WAL files in a folder.
fn files_in(path: &Path) -> Result<Vec<WalFileName>> {
    let unreadable = |error| {
        Error::new(
            ErrorKind::WalSource,
            path.display().to_string(),
            "the WAL source cannot be read",
        )
        .with_source(error)
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        names.extend(
            name.to_str()
                .and_then(|name| name.parse::<WalFileName>().ok()),
        );
    }
    Ok(names)
}
