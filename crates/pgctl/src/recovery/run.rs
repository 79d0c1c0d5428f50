//! Running a recovery: a private server, watched through its log, ended at the target.

use std::fs;
use std::pin::pin;

use neon_pg_layout::{BackupLabel, ControlFile, TimelineId, WalLevel};

use crate::diagnosis::{self, LogMark};
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::instance::Instance;
use crate::launch::{Launch, Launched};
use crate::quarantine::links;
use crate::recovery::folder::{RunFolder, Signals};
use crate::recovery::job::Job;
use crate::recovery::log::Failure;
use crate::recovery::plan::{Recovered, RecoveryEnd, RecoveryEvent, RecoveryPlan};
use crate::recovery::settings::{Learnt, SYNC_METHOD};
use crate::recovery::target::RecoveryTarget;
use crate::recovery::verdict::{self, Evidence};
use crate::recovery::watch::{Visit, Watch, was_consistent};
use crate::stale;

impl Instance {
    /// Replays WAL up to the target on a private server that nobody else can connect to, and returns when that
    /// server is gone.
    ///
    /// No file of the user is changed, and of the configuration only `postgresql.auto.conf` is read: all
    /// settings that matter go on the command line, with archiving, upstreams, synchronous standbys, cleanup
    /// commands and preloaded libraries off. When it returns, the data directory is
    /// [in recovery](RecoveryEnd::InRecovery) with `recovery.signal` in it, so that another run can go on, or
    /// [promoted](RecoveryEnd::Promoted), and durable. After an error it is where replay got to, with
    /// `recovery.signal`: a later run with another target or more WAL goes on from there, except after
    /// [`WalLevelMinimal`](ErrorKind::WalLevelMinimal) and [`Corrupt`](ErrorKind::Corrupt). If nothing was replayed
    /// it is as it was.
    ///
    /// Nothing beyond the target is replayed, whatever the source gets meanwhile, and what has missed its target is
    /// never promoted. [`RecoveryTarget::Latest`] ends where the source has no more. A source that fails for a moment must exit
    /// with more than 125, or that moment is the end.
    ///
    /// A tablespace that was created after the base was taken is replayed to where its path leads on this machine.
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
    /// can be told, [`OutsideClone`](ErrorKind::OutsideClone) for links that lead out of a copy,
    /// [`AlreadyRunning`](ErrorKind::AlreadyRunning), and why a server does not start.
    pub async fn recover(
        &self,
        plan: &RecoveryPlan,
        progress: impl FnMut(RecoveryEvent) + Send,
    ) -> Result<Recovered> {
        self.recover_visited(plan, None, progress).await
    }

    /// As [`recover`](Self::recover), and lets somebody in before the server of a
    /// [promotion](RecoveryEnd::Promoted) is shut down: one start less than if they came after it.
    ///
    /// `visit` is polled once the server takes connections on its new timeline, and waited for; then it ends. It may
    /// [connect](Self::connect) as any role without a password: nobody else reaches the folder of the socket. No
    /// configuration makes transactions read-only or loads a library into a session; what a role or a database was given
    /// (`ALTER ROLE … SET`) does unless it [says so](Self::connect_bare). It is not polled when something is known to have failed. With the second value is what it came to; none when
    /// it was not polled, since the end is another or recovery failed before.
    ///
    /// Dropping the future drops `visit`, and is as there.
    ///
    /// # Errors
    /// As there, also after a visit: what it did is then done, or not.
    pub async fn recover_and<T: Send>(
        &self,
        plan: &RecoveryPlan,
        progress: impl FnMut(RecoveryEvent) + Send,
        visit: impl Future<Output = T> + Send,
    ) -> Result<(Recovered, Option<T>)> {
        let mut came = None;
        let recovered = {
            let visit = pin!(async { came = Some(visit.await) });
            self.recover_visited(plan, Some(visit), progress).await?
        };
        Ok((recovered, came))
    }

    async fn recover_visited(
        &self,
        plan: &RecoveryPlan,
        mut visit: Option<Visit<'_>>,
        mut progress: impl FnMut(RecoveryEvent) + Send,
    ) -> Result<Recovered> {
        let mut learnt = Learnt::default();
        match self
            .recover_to(plan, &plan.target, &mut learnt, &mut visit, &mut progress)
            .await
        {
            // A server that meets no record at all has not stopped at the first consistent state. It is there all the
            // same, and whatever the source has got meanwhile lies beyond.
            Err(error)
                if plan.target == RecoveryTarget::Immediate
                    && error.kind() == ErrorKind::TargetTooLate =>
            {
                let mut plan = plan.clone();
                plan.without_segments = true;
                let target = RecoveryTarget::Latest;
                self.recover_to(&plan, &target, &mut learnt, &mut visit, &mut progress)
                    .await
            }
            outcome => outcome,
        }
    }

    /// Goes on where it stopped as often as a setting turns out to have been raised, and begins again without one that the
    /// server was not built with.
    async fn recover_to(
        &self,
        plan: &RecoveryPlan,
        target: &RecoveryTarget,
        learnt: &mut Learnt,
        visit: &mut Option<Visit<'_>>,
        progress: &mut (impl FnMut(RecoveryEvent) + Send),
    ) -> Result<Recovered> {
        loop {
            match self.run_to(plan, target, learnt, visit, progress).await? {
                Run::Done(recovered) => return Ok(recovered),
                Run::Raise(name, needed) => {
                    learnt.raised.insert(name, needed);
                }
                Run::FileByFile => learnt.no_syncfs = true,
            }
        }
    }

    async fn run_to(
        &self,
        plan: &RecoveryPlan,
        target: &RecoveryTarget,
        learnt: &Learnt,
        visit: &mut Option<Visit<'_>>,
        progress: &mut (impl FnMut(RecoveryEvent) + Send),
    ) -> Result<Run> {
        target.check()?;
        self.check_startable()?;
        let _claim = stale::claim(self, stale::SURVIVORS_MAY_TAKE).await?;
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
        if let Some(places) = &plan.tablespaces {
            links::settle(self, places)?;
        }
        verdict::check_not_before(target, &control, label.as_ref())?;

        let job = Job {
            instance: self,
            plan,
            target,
            current: current_timeline(&control, label.as_ref()),
            control,
            folder: RunFolder::create(self)?,
        };
        job.check_command().await?;
        let wanted = job.wanted_timeline().await?;
        if visit.is_some() && plan.end == RecoveryEnd::Promoted {
            job.folder.let_in(self.os_user())?;
        }
        if plan.end == RecoveryEnd::Promoted
            && let Some(last) = plan.used_timelines.last()
        {
            // The server takes the first number after its own that has no history.
            let taken = wanted.get().saturating_add(1)..=last.get();
            job.folder.take_timelines(taken, self.os_user())?;
        }

        let line_mark = format!("{} ", durable::random_hex(4)?);
        let mark = LogMark::set(self);
        let mut watch = Watch::new(&job, &line_mark)?;
        let arguments = job.arguments(wanted, learnt, &line_mark)?;
        let signals = Signals::set(self, target == &RecoveryTarget::Latest)?;
        let launched = Launched::spawn(&Launch {
            installation: self.installation(),
            user: self.os_user(),
            data_dir: self.data_dir(),
            log: &self.start_log(),
            arguments,
            environment: &plan.variables,
            // Should we be killed, the guardian ends the server and removes the folder.
            scrap: Some(job.folder.path().to_owned()),
        })?;
        watch.until_gone(&launched, visit, progress).await?;
        drop(launched);

        let failure = watch.findings.failure.as_ref();
        if let Some(Failure::TooSmall { name, needed }) = failure
            && learnt.raised.get(name).is_none_or(|tried| tried < needed)
        {
            return Ok(Run::Raise(name.clone(), *needed));
        }
        let ended_early = matches!(
            failure,
            Some(Failure::EndedBeforeTarget | Failure::EndedBeforeConsistency)
        );
        let later = if ended_early {
            job.later_segment(&watch.findings).await?
        } else {
            watch.later
        };
        let control = self.control_file()?;
        let evidence = Evidence {
            target,
            end: plan.end,
            findings: &watch.findings,
            misses: &job.folder.misses(),
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
            Err(error) => {
                drop(signals);
                let names_it = |line: &String| line.contains(&format!("\"{SYNC_METHOD}\""));
                if !learnt.no_syncfs && mark.since().iter().any(names_it) {
                    return Ok(Run::FileByFile);
                }
                Err(match error.kind() {
                    ErrorKind::ServerEnded => diagnosis::explain(error, &mark),
                    _ => error.with_log(watch.findings.lines),
                })
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
}

/// How a run ended.
enum Run {
    Done(Recovered),
    /// It is to be run again with this setting at least so large.
    Raise(String, i32),
    /// It is to be run again without flushing file systems as a whole: the server was built without that.
    FileByFile,
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
