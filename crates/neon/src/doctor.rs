//! The doctor: what is not as it should be in a home, around it and in its storages, with what repairs it.
//!
//! Nothing is changed by an examination. A repair (`fix`) does what the next verb on each thing would do anyway, finishes or takes
//! back what killed commands left, and then examines again. What somebody is at right now is told and left alone.
//! Locks are those of the kernel: one whose holder is dead is free, so there are none to be found stale.

mod leftovers;
mod machine;
mod servers;
mod storages;

use std::ffi::OsString;
use std::path::PathBuf;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::neon::Neon;
use crate::upkeep::with_causes;

pub use machine::first_closed;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Severity {
    /// To know: nothing has to be done.
    Info,
    /// Something should be done, and nothing is lost while it is not.
    Warning,
    /// Something does not work, or will not.
    Error,
}

/// Something that the doctor found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DoctorFinding {
    /// What it is, for programs: stable.
    pub code: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it is about: `pg pgdata1`, `storage tank`, a path.
    pub subject: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Whether a repair settles it.
    pub fixable: bool,
}

/// What the doctor takes from its surroundings.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct DoctorOptions {
    /// Settle what can be settled first.
    pub fix: bool,
    /// With `fix`: settle only these findings of an examination, as somebody agreed to; all if not said.
    pub agreed: Option<Vec<DoctorFinding>>,
    /// Where people's shells look for programs: `PATH`.
    pub path: OsString,
    /// This program, if it is one that has a name in that path.
    pub program: Option<PathBuf>,
    /// Ask no storage but those in folders of this machine.
    pub offline: bool,
}

/// What the doctor found.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct DoctorReport {
    /// The worst first.
    pub findings: Vec<DoctorFinding>,
    /// What a repair settled, in words.
    pub fixed: Vec<String>,
}

impl DoctorOptions {
    /// Whether a finding is to be settled.
    fn settles(&self, code: &str, subject: &str) -> bool {
        self.agreed.as_ref().is_none_or(|agreed| {
            let mut agreed = agreed.iter();
            agreed.any(|finding| finding.code == code && finding.subject == subject)
        })
    }
}

impl DoctorReport {
    /// What a repair settles.
    pub fn fixable(&self) -> impl Iterator<Item = &DoctorFinding> {
        self.findings.iter().filter(|finding| finding.fixable)
    }

    /// The worst that was found.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }
}

impl Neon {
    /// Looks for what is not as it should be. What cannot be looked at is a finding, too.
    ///
    /// Dropped: nothing is changed, or with `fix` the rest is not settled.
    ///
    /// # Errors
    /// [`Cancelled`](crate::ErrorKind::Cancelled).
    pub async fn doctor(&self, options: &DoctorOptions) -> Result<DoctorReport> {
        let mut fixed = Vec::new();
        if options.fix {
            Box::pin(self.settle_leftovers(options, &mut fixed)).await?;
            self.settle_servers(options, &mut fixed).await?;
            self.settle_storages(options, &mut fixed).await?;
        }
        let mut findings = Findings::default();
        self.examine_machine(options, &mut findings).await;
        self.go_on()?;
        if self.home().is_made() || self.home().has_records() {
            self.examine_leftovers(&mut findings).await;
            self.go_on()?;
            self.examine_servers(&mut findings).await;
            self.go_on()?;
            self.examine_storages(options, &mut findings).await;
            self.go_on()?;
        }
        let mut findings = findings.0;
        findings.sort_by(|one, other| {
            (other.severity, one.code, &one.subject).cmp(&(
                one.severity,
                other.code,
                &other.subject,
            ))
        });
        Ok(DoctorReport { findings, fixed })
    }
}

/// Findings as they come.
#[derive(Debug, Default)]
struct Findings(Vec<DoctorFinding>);

impl Findings {
    fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
    ) -> &mut DoctorFinding {
        self.0.push(DoctorFinding {
            code,
            severity,
            subject: subject.into(),
            message: message.into(),
            hint: None,
            fixable: false,
        });
        let last = self.0.len().saturating_sub(1);
        // One was just pushed.
        #[expect(
            clippy::indexing_slicing,
            reason = "the last of a vector that is not empty"
        )]
        &mut self.0[last]
    }

    fn info(
        &mut self,
        code: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
    ) -> &mut DoctorFinding {
        self.add(Severity::Info, code, subject, message)
    }

    fn warning(
        &mut self,
        code: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
    ) -> &mut DoctorFinding {
        self.add(Severity::Warning, code, subject, message)
    }

    fn error(
        &mut self,
        code: &'static str,
        subject: impl Into<String>,
        message: impl Into<String>,
    ) -> &mut DoctorFinding {
        self.add(Severity::Error, code, subject, message)
    }

    /// Something could not be looked at, for a reason that says what to do.
    fn failed(&mut self, code: &'static str, subject: impl Into<String>, error: &Error) {
        let finding = self.error(code, subject, with_causes(error));
        finding.hint = error.hint().map(str::to_owned);
    }
}

impl DoctorFinding {
    fn hinted(&mut self, hint: impl Into<String>) -> &mut Self {
        self.hint = Some(hint.into());
        self
    }

    fn fixable(&mut self) -> &mut Self {
        self.fixable = true;
        self
    }
}
