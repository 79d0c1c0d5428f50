//! `snapshot verify` and `check`: what is wrong is the result, and exit code 5.

use neon_pg::{CheckedStorage, VerifyDepth};

use super::super::{Scene, data};
use super::short;
use crate::args::snapshot::{Show, Verify};
use crate::failure::Outcome;
use crate::render::Answer;

pub(super) async fn verify(wanted: &Verify, scene: &Scene<'_>) -> Outcome<Answer> {
    let snapshots = scene.neon.snapshots();
    let found = snapshots
        .find(&wanted.name, wanted.storage.as_ref())
        .await?;
    let depth = if wanted.digests {
        VerifyDepth::Digests
    } else {
        VerifyDepth::Server
    };
    let verified = snapshots.verify(&found, depth).await?;
    let mut text = checked_in_words(&verified.digests);
    if let Some(server) = &verified.server {
        if server.amcheck {
            text.push_str(&format!(
                "PostgreSQL {}: pg_amcheck looked at {}\n",
                server.major,
                server.databases.join(", ")
            ));
        } else {
            text.push_str(&format!(
                "PostgreSQL {}: {} rows of {} tables read in {}\n",
                server.major,
                server.rows,
                server.tables,
                server.databases.join(", ")
            ));
        }
        for left in &server.left_out {
            text.push_str(&format!("not looked at: {left}\n"));
        }
        for unread in &server.unread {
            text.push_str(&format!("could not be read: {unread}\n"));
        }
        for finding in &server.findings {
            text.push_str(&format!("{}: {}\n", finding.object, finding.problem));
        }
    }
    let sound = verified.is_sound();
    let unread = verified
        .server
        .as_ref()
        .is_some_and(|server| !server.unread.is_empty());
    let verdict = match (sound, unread) {
        (true, false) => "is sound",
        (true, true) => "is sound as far as it could be read",
        (false, _) => "is damaged",
    };
    text.push_str(&format!("{} {verdict}", verified.snapshot));
    let mut answer = Answer::of(text, data(&verified)?);
    if !sound {
        scene.note(REMEDY);
        answer.exit = 5;
    } else if unread {
        answer.exit = 7;
    }
    Ok(answer)
}

pub(super) async fn check(wanted: &Show, scene: &Scene<'_>) -> Outcome<Answer> {
    let snapshots = scene.neon.snapshots();
    let found = snapshots
        .find(&wanted.name, wanted.storage.as_ref())
        .await?;
    let checked = snapshots.check(&found).await?;
    let mut answer = Answer::of(checked_in_words(&checked), data(&checked)?);
    if !checked.is_sound() {
        scene.note(REMEDY);
        answer.exit = 5;
    }
    Ok(answer)
}

/// What to do about damage.
pub(in crate::run) const REMEDY: &str = "what still reads is whole; for the rest, pull the snapshots from another storage \
     that has them, or take or import new ones with --no-parent, which share nothing with these";

/// `1 page`, `2 pages`.
fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// What a check looked at and found.
pub(in crate::run) fn checked_in_words(checked: &CheckedStorage) -> String {
    let mut text = format!(
        "{}: {}, {}, {}, {}, {} looked at{}\n",
        checked.subject,
        counted(checked.snapshots, "snapshot"),
        counted(checked.objects, "object"),
        counted(checked.packs, "pack"),
        counted(checked.frames, "frame"),
        counted(checked.pages, "page"),
        if checked.with_data {
            ""
        } else {
            "; data was not read"
        },
    );
    for finding in &checked.findings {
        let snapshots: Vec<String> = finding.snapshots.iter().map(short).collect();
        text.push_str(&format!("{}: {}", finding.object, finding.problem));
        if !snapshots.is_empty() {
            let word = if snapshots.len() == 1 { "" } else { "s" };
            text.push_str(&format!(" (in snapshot{word} {})", snapshots.join(", ")));
        }
        text.push('\n');
    }
    text
}
