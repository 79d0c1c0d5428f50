//! Running a recovery: a private server, watched through its log, ended at the target.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use neon_pg_layout::{
    BackupLabel, ControlFile, Lsn, SegmentName, TimelineId, WalFileName, WalLevel,
};
use rustix::process::Signal;

use crate::command::{self, Running};
use crate::diagnosis::{self, LogMark};
use crate::durable::{self, Scrap};
use crate::error::{Error, ErrorKind, Result};
use crate::instance::Instance;
use crate::launch::{Launch, Launched};
use crate::process::Process;
use crate::recovery::folder::{RunFolder, Signals};
use crate::recovery::log::{Failure, Findings, News};
use crate::recovery::plan::{Recovered, RecoveryEnd, RecoveryEvent, RecoveryPlan};
use crate::recovery::settings::{self, DECODE_AHEAD, Surroundings};
use crate::recovery::source::{Miss, WalSource};
use crate::recovery::target::{RecoveryTarget, RecoveryTimeline};
use crate::recovery::verdict::{self, Evidence};
use crate::stale;

/// How often the log is looked at.
const POLL: Duration = Duration::from_millis(20);
/// How long the source may take over one file that we ask for ourselves.
const ASK_LIMIT: Duration = Duration::from_secs(600);
/// So often the server must have come back for the same segment before we believe that it has replayed all
/// there is: once or twice it asks before and while it reads the segment from `pg_wal`.
const TIMES_ASKED: usize = 5;

impl Instance {
    /// Replays WAL up to the target on a private server that nobody can connect to, and returns when that
    /// server is gone.
    ///
    /// No file of the user is changed: settings go on the command line, and the signal file is ours. The
    /// configuration is read (for what we do not set); archiving, upstreams, synchronous standbys and cleanup
    /// commands in it are off. When it returns, the data directory is
    /// [in recovery](RecoveryEnd::InRecovery) with `recovery.signal` in it, so that another run can go on, or
    /// [promoted](RecoveryEnd::Promoted), and durable. After an error it is where replay got to, with
    /// `recovery.signal`: a later run with another target or more WAL goes on from there, except after
    /// [`WalLevelMinimal`](ErrorKind::WalLevelMinimal) and [`Corrupt`](ErrorKind::Corrupt). If nothing was replayed
    /// it is as it was.
    ///
    /// [`RecoveryTarget::Latest`] ends where the source has no more. A source that fails for a moment must exit
    /// with more than 125, or that moment is the end.
    ///
    /// Dropping the future ends the server at once and removes what belongs to the run; the data directory
    /// is then as after an error. If it was just promoted it is a primary that crashed.
    ///
    /// # Errors
    /// Each way not to reach a target has its kind: [`TargetTooEarly`](ErrorKind::TargetTooEarly),
    /// [`TargetTooLate`](ErrorKind::TargetTooLate), [`NoLaterTransaction`](ErrorKind::NoLaterTransaction),
    /// [`UnknownTransaction`](ErrorKind::UnknownTransaction),
    /// [`UnknownRestorePoint`](ErrorKind::UnknownRestorePoint), [`WrongTimeline`](ErrorKind::WrongTimeline),
    /// [`MissingWal`](ErrorKind::MissingWal), [`WalSource`](ErrorKind::WalSource),
    /// [`WalLevelMinimal`](ErrorKind::WalLevelMinimal). [`Invalid`](ErrorKind::Invalid) for a target no server
    /// can be told, [`AlreadyRunning`](ErrorKind::AlreadyRunning), and why a server does not start.
    pub async fn recover(
        &self,
        plan: &RecoveryPlan,
        mut progress: impl FnMut(RecoveryEvent) + Send,
    ) -> Result<Recovered> {
        let mut raised = BTreeMap::new();
        match self
            .recover_to(plan, &plan.target, &mut raised, &mut progress)
            .await
        {
            // A server that meets no record at all has not stopped at the first consistent state.
            Err(error)
                if plan.target == RecoveryTarget::Immediate
                    && error.kind() == ErrorKind::TargetTooLate =>
            {
                self.recover_to(plan, &RecoveryTarget::Latest, &mut raised, &mut progress)
                    .await
            }
            outcome => outcome,
        }
    }

    /// Goes on where it stopped as often as a setting turns out to have been raised.
    async fn recover_to(
        &self,
        plan: &RecoveryPlan,
        target: &RecoveryTarget,
        raised: &mut BTreeMap<String, i32>,
        progress: &mut (impl FnMut(RecoveryEvent) + Send),
    ) -> Result<Recovered> {
        loop {
            match self.run_to(plan, target, raised, progress).await? {
                Run::Done(recovered) => return Ok(recovered),
                Run::Raise(name, needed) => {
                    raised.insert(name, needed);
                }
            }
        }
    }

    async fn run_to(
        &self,
        plan: &RecoveryPlan,
        target: &RecoveryTarget,
        raised: &BTreeMap<String, i32>,
        progress: &mut (impl FnMut(RecoveryEvent) + Send),
    ) -> Result<Run> {
        target.check()?;
        self.check_startable()?;
        stale::clear(self).await?;
        let control = self.control_file()?;
        let label = self.backup_label()?;
        if control.settings.wal_level == WalLevel::Minimal {
            return Err(Error::path(
                ErrorKind::WalLevelMinimal,
                self.data_dir(),
                "was written with wal_level=minimal, no WAL can take it further",
            )
            .with_hint(verdict::MINIMAL_HINT));
        }
        verdict::check_not_before(target, &control, label.as_ref())?;

        let folder = RunFolder::create(self)?;
        check_command(self, plan, &folder).await?;
        let current = current_timeline(&control, label.as_ref());
        let wanted = self.wanted_timeline(plan, current, &folder).await?;
        if plan.end == RecoveryEnd::Promoted
            && let Some(last) = plan.used_timelines.last()
        {
            // The server takes the first number after its own that has no history.
            folder.take_timelines(wanted.get().saturating_add(1)..=last.get(), self.os_user())?;
        }

        let line_mark = format!("{} ", durable::random_hex(4)?);
        let mark = LogMark::set(self);
        let log = Tail::at_end(self.start_log())?;
        let to_end = target == &RecoveryTarget::Latest;
        let arguments = self.arguments(
            plan,
            target,
            raised,
            &control,
            &folder,
            &line_mark,
            (wanted, current),
        )?;
        let signals = Signals::set(self, to_end)?;
        let launched = Launched::spawn(&Launch {
            installation: self.installation(),
            user: self.os_user(),
            log: &self.start_log(),
            arguments,
            environment: &plan.variables,
            scrap: None,
        })?;
        let mut watch = Watch {
            instance: self,
            plan,
            to_end,
            control: &control,
            folder: &folder,
            log,
            findings: Findings::new(&line_mark),
            reached: Lsn(0),
            at_end: false,
            later: None,
            told: false,
            promote_file: None,
        };
        watch.until_gone(&launched, progress).await?;
        drop(launched);

        if let Some(Failure::TooSmall { name, needed }) = &watch.findings.failure
            && raised.get(name).is_none_or(|tried| tried < needed)
        {
            return Ok(Run::Raise(name.clone(), *needed));
        }
        let misses = folder.misses();
        let control = self.control_file()?;
        let mut later = watch.later;
        if later.is_none()
            && matches!(
                watch.findings.failure,
                Some(Failure::EndedBeforeTarget | Failure::EndedBeforeConsistency)
            )
        {
            later = self
                .later_segment(plan, &watch.findings, &misses, &control, &folder)
                .await?;
        }
        let evidence = Evidence {
            target,
            end: plan.end,
            findings: &watch.findings,
            misses: &misses,
            control: &control,
            later_segment: later,
            at_end: watch.at_end,
        };
        let outcome = if watch.at_end
            && (later.is_some() || watch.findings.consistent.is_none() && !was_consistent(&control))
        {
            Err(verdict::missing(&evidence))
        } else {
            verdict::judge(&evidence)
        };
        match outcome {
            Ok(recovered) => {
                match plan.end {
                    RecoveryEnd::InRecovery => signals.keep_recovery()?,
                    RecoveryEnd::Promoted => signals.promoted(recovered.timeline)?,
                }
                Ok(Run::Done(recovered))
            }
            Err(error) if error.kind() == ErrorKind::ServerEnded => {
                drop(signals);
                Err(diagnosis::explain(error, &mark))
            }
            Err(error) => {
                drop(signals);
                Err(error.with_log(watch.findings.lines))
            }
        }
    }

    /// The label of the backup that the data directory is a copy of, if its recovery has not begun.
    fn backup_label(&self) -> Result<Option<BackupLabel>> {
        let path = self.data_dir().join("backup_label");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(&path, "cannot be read", error)),
        };
        match BackupLabel::parse(&bytes) {
            Ok(label) => Ok(Some(label)),
            Err(error) => {
                Err(
                    Error::path(ErrorKind::Corrupt, &path, "is not as the server wrote it")
                        .with_source(error),
                )
            }
        }
    }

    fn arguments(
        &self,
        plan: &RecoveryPlan,
        target: &RecoveryTarget,
        raised: &BTreeMap<String, i32>,
        control: &ControlFile,
        folder: &RunFolder,
        line_mark: &str,
        (wanted, current): (TimelineId, TimelineId),
    ) -> Result<Vec<OsString>> {
        let mut settings = settings::settings(
            control,
            &Surroundings {
                data_dir: self.data_dir(),
                socket_dir: folder.path(),
                hba_file: &folder.hba_file(),
                ident_file: &folder.ident_file(),
                pid_file: &folder.pid_file(),
                raised,
                line_mark,
                shared_buffers_kib: plan.shared_buffers_kib,
                preload: plan.preload.as_deref(),
                durable: plan.durable,
            },
        )?;
        settings.push((
            "restore_command",
            plan.source.restore_command(folder.path())?,
        ));
        // The history of the timeline one is on need not be there.
        let timeline = if wanted == current {
            "current".to_owned()
        } else {
            wanted.to_string()
        };
        settings.push(("recovery_target_timeline", timeline));
        let action = match plan.end {
            RecoveryEnd::InRecovery => "shutdown",
            RecoveryEnd::Promoted => "promote",
        };
        settings.push(("recovery_target_action", action.to_owned()));
        settings.extend(target.settings());

        let mut arguments: Vec<OsString> = vec!["-D".into(), self.data_dir().into()];
        let own = folder.config_file();
        let config = if own.exists() {
            own
        } else {
            self.config_file()
        };
        let mut config_file = OsString::from("config_file=");
        config_file.push(config);
        arguments.extend(["-c".into(), config_file]);
        for (name, value) in settings {
            arguments.extend(["-c".into(), format!("{name}={value}").into()]);
        }
        Ok(arguments)
    }

    /// The number of the timeline to follow.
    async fn wanted_timeline(
        &self,
        plan: &RecoveryPlan,
        current: TimelineId,
        folder: &RunFolder,
    ) -> Result<TimelineId> {
        match (plan.timeline, &plan.source) {
            (RecoveryTimeline::Current, _) => Ok(current),
            (RecoveryTimeline::Number(timeline), _) => Ok(timeline),
            (RecoveryTimeline::Latest, WalSource::Directory(path)) => {
                let histories = files_in(path)?.into_iter().filter_map(|file| match file {
                    WalFileName::History(timeline) => Some(timeline),
                    _ => None,
                });
                Ok(histories
                    .max()
                    .map_or(current, |newest| newest.max(current)))
            }
            (RecoveryTimeline::Latest, WalSource::Command(_)) => {
                // Numbers are skipped when others were known to be taken, so gaps end nothing below the last.
                let known = plan.used_timelines.last().map_or(0, |last| last.get());
                let mut newest = current;
                for number in current.get().saturating_add(1)..=u32::MAX {
                    let timeline = TimelineId::new(number).unwrap_or(current);
                    if self
                        .source_has(plan, folder, &format!("{number:08X}.history"))
                        .await?
                    {
                        newest = timeline;
                    } else if number > known {
                        break;
                    }
                }
                Ok(newest)
            }
        }
    }

    /// Whether the source has a file.
    async fn source_has(
        &self,
        plan: &RecoveryPlan,
        folder: &RunFolder,
        file: &str,
    ) -> Result<bool> {
        let to = Scrap(folder.path().join("asked"));
        let text = plan.source.ask(file, &to.0)?;
        let finished = self.shell(plan, &["-c", &text]).await?;
        match finished.status.code() {
            Some(0) => Ok(to.0.exists()),
            Some(1..=125) => Ok(false),
            _ => Err(Error::new(
                ErrorKind::WalSource,
                file.to_owned(),
                format!("the WAL source failed: {}", finished.status),
            )
            .with_log(finished.lines())),
        }
    }

    async fn shell(&self, plan: &RecoveryPlan, arguments: &[&str]) -> Result<command::Finished> {
        let mut command = command::clean("/bin/sh".as_ref(), self.os_user(), None);
        command
            .args(arguments)
            .current_dir(self.data_dir())
            .envs(plan.variables.iter().map(|(name, value)| (name, value)));
        Running::spawn(&mut command)?.wait(ASK_LIMIT).await
    }

    /// A segment the source has although it comes after one it has not.
    async fn later_segment(
        &self,
        plan: &RecoveryPlan,
        findings: &Findings,
        misses: &[Miss],
        control: &ControlFile,
        folder: &RunFolder,
    ) -> Result<Option<SegmentName>> {
        let size = control.build.wal_segment_size;
        let Some(missing) = verdict::missing_segment(findings, misses) else {
            return Ok(None);
        };
        let number = missing.number(size).unwrap_or(u64::MAX);
        match &plan.source {
            WalSource::Directory(path) => {
                let later = files_in(path)?.into_iter().filter_map(|file| match file {
                    WalFileName::Segment(name) if name.timeline() == missing.timeline() => name
                        .number(size)
                        .ok()
                        .filter(|at| *at > number)
                        .map(|at| (at, name)),
                    _ => None,
                });
                Ok(later.min_by_key(|(at, _)| *at).map(|(_, name)| name))
            }
            WalSource::Command(_) => {
                let Ok(Some(next)) = missing.next(size) else {
                    return Ok(None);
                };
                let has = self.source_has(plan, folder, &next.to_string()).await?;
                Ok(has.then_some(next))
            }
        }
    }
}

/// How a run ended.
enum Run {
    Done(Recovered),
    /// It is to be run again with this setting at least so large.
    Raise(String, i32),
}

/// A text that the shell cannot parse exits with 2, which would look like the end of WAL.
async fn check_command(instance: &Instance, plan: &RecoveryPlan, folder: &RunFolder) -> Result<()> {
    let text = plan.source.restore_command(folder.path())?;
    let finished = instance.shell(plan, &["-n", "-c", &text]).await?;
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

/// The timeline that the data directory is on.
fn current_timeline(control: &ControlFile, label: Option<&BackupLabel>) -> TimelineId {
    if let Some(timeline) = label.and_then(|label| label.start_timeline) {
        return timeline;
    }
    let checkpoint = control.checkpoint.timeline;
    control
        .min_recovery_timeline
        .map_or(checkpoint, |timeline| timeline.max(checkpoint))
}

/// Whether nothing is left of a backup that recovery must get past first.
fn was_consistent(control: &ControlFile) -> bool {
    !control.backup_start.is_valid()
        && !control.backup_end_required
        && !control.backup_end.is_valid()
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

/// A run that is under way.
struct Watch<'a> {
    instance: &'a Instance,
    plan: &'a RecoveryPlan,
    to_end: bool,
    control: &'a ControlFile,
    folder: &'a RunFolder,
    log: Tail,
    findings: Findings,
    reached: Lsn,
    at_end: bool,
    later: Option<SegmentName>,
    /// Whether the server has been told to end.
    told: bool,
    promote_file: Option<Scrap>,
}

impl Watch<'_> {
    async fn until_gone(
        &mut self,
        launched: &Launched,
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
                self.end(launched)?;
            }
            if self.to_end && !self.at_end && self.asked_in_vain() {
                self.at_end = true;
                progress(RecoveryEvent::EndOfWal);
                let misses = self.folder.misses();
                let instance = self.instance;
                self.later = instance
                    .later_segment(
                        self.plan,
                        &self.findings,
                        &misses,
                        self.control,
                        self.folder,
                    )
                    .await?;
                let consistent =
                    self.findings.consistent.is_some() || was_consistent(&instance.control_file()?);
                if self.plan.end == RecoveryEnd::Promoted && self.later.is_none() && consistent {
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
                    .start(self.control.build.wal_segment_size)
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
        let misses = self.folder.misses();
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
        let path = self.instance.data_dir().join("promote");
        let file = Scrap(path);
        durable::write_new(&file.0, b"", 0o600, self.instance.os_user())?;
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
