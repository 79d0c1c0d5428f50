//! How things end: errors as people and as programs read them, and exit codes.
//!
//! 0 done, 1 failed, 2 usage or configuration, 3 not found, 4 exists, busy or in conflict, 5 integrity, 6 environment,
//! 7 done in part, 130 and 143 stopped by a signal, 255 a bug of ours.

use std::error::Error as _;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};

use crate::args::{Format, NAME};
use crate::asking;

/// What a panic ends with.
const BUG: u8 = 255;
/// Somebody pressed Ctrl-C.
pub(crate) const INTERRUPTED: u8 = 130;
/// Somebody sent SIGTERM.
pub(crate) const TERMINATED: u8 = 143;

static PANICKED: AtomicBool = AtomicBool::new(false);

/// Why a verb did not do what it should.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The library's word.
    Library(Box<neon_pg::Error>),
    /// Something this program found out itself.
    Own {
        exit: u8,
        code: &'static str,
        what: String,
        cause: Option<String>,
        hint: Option<String>,
    },
    /// There is nothing to say: nobody reads our results any more, or who followed something has seen enough.
    Silent { exit: u8 },
}

pub(crate) type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// Usage or configuration: exit code 2.
    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self::own(2, "invalid", what)
    }

    /// What the machine lacks: exit code 6.
    pub(crate) fn environment(what: impl Into<String>) -> Self {
        Self::own(6, "environment", what)
    }

    /// A system call failed: exit code 1, or 6 for want of rights or room.
    pub(crate) fn io(what: impl Into<String>, error: &std::io::Error) -> Self {
        let exit = match error.kind() {
            std::io::ErrorKind::PermissionDenied
            | std::io::ErrorKind::ReadOnlyFilesystem
            | std::io::ErrorKind::StorageFull
            | std::io::ErrorKind::QuotaExceeded => 6,
            std::io::ErrorKind::BrokenPipe => return Self::Silent { exit: 0 },
            _ => 1,
        };
        Self::own(exit, "io", what).because(error.to_string())
    }

    pub(crate) fn stopped(exit: u8) -> Self {
        Self::own(exit, "cancelled", "stopped by a signal")
            .hinted("what was half done is finished or taken back by the next command on it")
    }

    /// Of a verb that changes nothing: nothing is half done when it is stopped.
    pub(crate) fn changed_nothing(mut self) -> Self {
        if let Self::Own {
            code: "cancelled",
            hint,
            ..
        } = &mut self
        {
            *hint = None;
        }
        self
    }

    pub(crate) fn own(exit: u8, code: &'static str, what: impl Into<String>) -> Self {
        Self::Own {
            exit,
            code,
            what: what.into(),
            cause: None,
            hint: None,
        }
    }

    pub(crate) fn because(mut self, why: impl Into<String>) -> Self {
        if let Self::Own { cause, .. } = &mut self {
            *cause = Some(why.into());
        }
        self
    }

    pub(crate) fn hinted(mut self, text: impl Into<String>) -> Self {
        if let Self::Own { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Library(error) => error.kind().exit_code(),
            Self::Own { exit, .. } => *exit,
            Self::Silent { exit } => *exit,
        }
    }

    fn code(&self) -> String {
        match self {
            Self::Library(error) => error.code(),
            Self::Own { code, .. } => (*code).to_owned(),
            Self::Silent { .. } => "silent".to_owned(),
        }
    }

    /// What went wrong, then each cause.
    fn chain(&self) -> Vec<String> {
        match self {
            Self::Library(error) => {
                let mut chain = vec![error.to_string()];
                let mut source = error.source();
                while let Some(cause) = source {
                    let text = cause.to_string();
                    // A layer that adds nothing is no news.
                    if chain.last().is_none_or(|last| !last.contains(&text)) {
                        chain.push(text);
                    }
                    source = cause.source();
                }
                chain
            }
            Self::Own { what, cause, .. } => {
                let mut chain = vec![what.clone()];
                chain.extend(cause.clone());
                chain
            }
            Self::Silent { .. } => vec!["nothing to say".to_owned()],
        }
    }

    fn hint(&self) -> Option<&str> {
        match self {
            Self::Library(error) => error.hint(),
            Self::Own { hint, .. } => hint.as_deref(),
            Self::Silent { .. } => None,
        }
    }

    /// The error as data.
    pub(crate) fn json(&self) -> Value {
        let mut chain = self.chain().into_iter();
        let message = chain.next().unwrap_or_default();
        json!({
            "code": self.code(),
            "exit": self.exit_code(),
            "message": message,
            "causes": chain.collect::<Vec<_>>(),
            "hint": self.hint(),
        })
    }

    /// Says it on the error stream.
    pub(crate) fn show(&self, format: Format, colours: bool) {
        if matches!(self, Self::Silent { .. }) {
            return;
        }
        if format != Format::Table {
            say(&json!({ "error": self.json() }).to_string());
            return;
        }
        let colours = colours && std::io::stderr().is_terminal();
        for (depth, text) in self.chain().iter().enumerate() {
            let (word, colour) = if depth == 0 {
                ("error", "1;31")
            } else {
                ("caused by", "1")
            };
            say(&labelled(word, colour, text, colours));
        }
        if let Some(hint) = self.hint() {
            say(&labelled("hint", "1;36", hint, colours));
        }
    }
}

/// `word: text`, further lines indented.
fn labelled(word: &str, colour: &str, text: &str, colours: bool) -> String {
    let text = text.trim_end().replace('\n', "\n  ");
    if colours {
        format!("\x1b[{colour}m{word}:\x1b[0m {text}")
    } else {
        format!("{word}: {text}")
    }
}

/// A line on the error stream. That nobody reads it changes nothing.
pub(crate) fn say(line: &str) {
    let _unread = writeln!(std::io::stderr().lock(), "{line}");
}

impl From<neon_pg::Error> for Failure {
    fn from(error: neon_pg::Error) -> Self {
        Self::Library(Box::new(error))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain().join(": "))
    }
}

/// A panic is a bug of ours: it is said so, whichever thread it happens on, and the exit code is 255.
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        PANICKED.store(true, Ordering::SeqCst);
        say(&format!(
            "error: {NAME} has a bug: {panic}\n\
             hint: please report it with the command you ran and this message \
             (version {}, {} {})",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::OS,
            std::env::consts::ARCH,
        ));
    }));
}

/// Runs this; a panic in it is the exit code of a bug.
pub(crate) fn guarded(run: impl FnOnce() -> u8 + std::panic::UnwindSafe) -> u8 {
    std::panic::catch_unwind(run).unwrap_or(BUG)
}

/// Ends the process with this code, at once: threads that still work are ended as by a kill, which everything
/// they do is made for.
pub(crate) fn exit(code: u8) -> ExitCode {
    asking::show();
    let code = if PANICKED.load(Ordering::SeqCst) {
        BUG
    } else {
        code
    };
    std::process::exit(i32::from(code))
}

#[cfg(test)]
mod tests {
    use std::panic::AssertUnwindSafe;

    use super::*;

    #[test]
    fn a_panic_is_the_exit_code_of_a_bug() {
        let nothing: Vec<u8> = Vec::new();
        let code = guarded(AssertUnwindSafe(|| nothing[nothing.len()]));
        assert_eq!(code, BUG);
        assert_eq!(guarded(|| 3), 3);
    }

    #[test]
    fn further_lines_of_an_error_are_indented() {
        assert_eq!(labelled("error", "1;31", "a\nb\n", false), "error: a\n  b");
        assert_eq!(labelled("hint", "1", "a", true), "\x1b[1mhint:\x1b[0m a");
    }
}
