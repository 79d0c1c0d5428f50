//! Asking people on their terminal: before something is lost, and for a password.

use std::io::{BufRead, IsTerminal, Write};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use neon_pg::Secret;

use crate::failure::{Failure, Outcome, say};
use crate::run::Scene;

/// Somebody is being asked.
static ASKED: AtomicBool = AtomicBool::new(false);
/// The terminal shows nothing of what is typed.
static HIDDEN: AtomicBool = AtomicBool::new(false);

/// Whether somebody is being asked: then nothing goes on, and a signal is an answer.
pub(crate) fn is_asked() -> bool {
    ASKED.load(Ordering::SeqCst)
}

/// As long as it lives somebody is being asked.
struct Asked;

impl Asked {
    fn new() -> Self {
        ASKED.store(true, Ordering::SeqCst);
        Self
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        ASKED.store(false, Ordering::SeqCst);
    }
}

/// Shows what would be lost and asks whether to go on: by `--yes`, else on a terminal, else not at all.
pub(crate) async fn confirm(scene: &Scene<'_>, doing: &str, lost: &str, yes: bool) -> Outcome<()> {
    if yes {
        return Ok(());
    }
    scene.plan(lost.trim_end());
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Err(Failure::own(
            2,
            "needs-confirmation",
            format!("{doing} needs a confirmation, and nobody is there to ask"),
        )
        .hinted("give --yes, or --dry-run to see only what would happen"));
    }
    let asked = tokio::task::spawn_blocking(|| {
        let _asked = Asked::new();
        ask("Go on? [y/N] ")
    });
    let answer = asked
        .await
        .map_err(|_| Failure::usage("the question could not be asked"))?
        .map_err(|error| Failure::io("the answer", &error))?;
    if ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()) {
        return Ok(());
    }
    Err(Failure::own(
        2,
        "declined",
        format!("{doing} was not confirmed; nothing is changed"),
    ))
}

/// Asks for a password, of which the terminal shows nothing.
pub(crate) fn password(whose: &str) -> Option<Secret> {
    let _asked = Asked::new();
    hide();
    let line = ask(&format!("Password for {whose}: "));
    show();
    say("");
    let line = line.ok()?;
    let line = line.trim_end_matches(['\n', '\r']);
    (!line.is_empty()).then(|| Secret::new(line))
}

/// A line from who is at the terminal. The error stream is free meanwhile, for who says that this was interrupted.
fn ask(question: &str) -> std::io::Result<String> {
    let mut err = std::io::stderr();
    let _unread = write!(err, "{question}").and_then(|()| err.flush());
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(line)
}

/// `stty` of POSIX spares a crate for one flag. Where it is missing the password shows.
fn hide() {
    HIDDEN.store(true, Ordering::SeqCst);
    let _shown = Command::new("stty").arg("-echo").status();
}

/// The terminal shows what is typed again. Also for who ends the process while somebody is asked: the thread that
/// asks waits for a line, and does not end.
pub(crate) fn show() {
    if HIDDEN.swap(false, Ordering::SeqCst) {
        let _hidden = Command::new("stty").arg("echo").status();
    }
}
