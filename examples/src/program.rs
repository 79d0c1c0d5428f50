//! What every program does alike at its edges: its words, its output, and how it ends.
//!
//! Exit codes are those of `neon` itself: 0 done, 1 failed, 2 usage, 3 not found, 5 integrity.

use std::error::Error;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

/// The words after the program's name. With `--help` among them the usage is printed, and the program
/// is done.
///
/// # Errors
/// The exit code to end with.
pub fn arguments(usage: &str) -> Result<Vec<OsString>, ExitCode> {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    if words.iter().any(|word| word == "--help" || word == "-h") {
        let mut out = stdout();
        let printed = writeln!(out, "usage: {usage}").and_then(|()| out.flush());
        return Err(match printed {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        });
    }
    Ok(words)
}

/// Complains about the words of the command line.
pub fn wrong_usage(reason: &str, usage: &str) -> ExitCode {
    let separator = if reason.is_empty() { "" } else { "\n" };
    complain(format_args!("{reason}{separator}usage: {usage}"));
    ExitCode::from(2)
}

/// Prints an error and its causes.
pub fn failed(error: &(dyn Error + 'static)) -> ExitCode {
    complain(format_args!("error: {error}"));
    let mut cause = error.source();
    while let Some(error) = cause {
        complain(format_args!("caused by: {error}"));
        cause = error.source();
    }
    ExitCode::FAILURE
}

/// Prints a line where complaints go; when nobody reads them there is nothing to be done about it.
pub fn complain(line: impl std::fmt::Display) {
    drop(writeln!(io::stderr(), "{line}"));
}

/// Standard output, in pieces of a line.
pub fn stdout() -> Printed<io::Stdout> {
    Printed(io::stdout())
}

/// An output that may lose its reader, as in `… | head`: the work goes on in silence, and the exit
/// code still says how it ended. Any other failure to write is one.
#[derive(Debug)]
pub struct Printed<W>(pub W);

impl<W: Write> Write for Printed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(bytes.len()),
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }
}
