//! Asking before something is lost.

use std::io::{BufRead, IsTerminal, Write};

use crate::failure::{Failure, Outcome, say};

/// Shows what would be lost and asks whether to go on: by `--yes`, else on a terminal, else not at all.
pub(crate) async fn confirm(doing: &str, lost: &str, yes: bool) -> Outcome<()> {
    if yes {
        return Ok(());
    }
    say(lost.trim_end());
    if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
        return Err(Failure::own(
            2,
            "needs-confirmation",
            format!("{doing} needs a confirmation, and nobody is there to ask"),
        )
        .hinted("give --yes, or --dry-run to see only what would happen"));
    }
    let asked = tokio::task::spawn_blocking(|| {
        let mut err = std::io::stderr().lock();
        let _unread = write!(err, "Go on? [y/N] ").and_then(|()| err.flush());
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
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
