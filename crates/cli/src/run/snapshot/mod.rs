//! `snapshot …`: taken and destroyed here; what else is done with them, each in its own file.

mod diff;
mod list;
mod proof;
mod show;
mod transfer;

use std::time::Duration;

use neon_pg::{CommitId, CreateSnapshot, ParentChoice, TakenSnapshot};

use super::{Scene, data, mark};
use crate::args::snapshot::{Create, Destroy, Snapshot};
use crate::asking::confirm;
use crate::failure::Outcome;
use crate::render::{Answer, bytes, duration};

pub(super) use proof::{REMEDY, checked_in_words};
pub(super) use transfer::form;

pub(crate) async fn run(verb: Snapshot, scene: &Scene<'_>) -> Outcome<Answer> {
    match verb {
        Snapshot::Create(wanted) => create(wanted, scene).await,
        Snapshot::List(wanted) => list::list(&wanted, scene).await,
        Snapshot::Show(wanted) => show::show(&wanted, scene).await,
        Snapshot::Import(wanted) => transfer::import(wanted, scene).await,
        Snapshot::Export(wanted) => transfer::export(wanted, scene).await,
        Snapshot::Push(wanted) => transfer::push(&wanted, scene).await,
        Snapshot::Pull(wanted) => transfer::pull(&wanted, scene).await,
        Snapshot::Serve(wanted) => transfer::serve(&wanted, scene).await,
        Snapshot::Verify(wanted) => proof::verify(&wanted, scene).await,
        Snapshot::Check(wanted) => proof::check(&wanted, scene).await,
        Snapshot::Diff(wanted) => diff::diff(&wanted, scene).await,
        Snapshot::Destroy(wanted) => destroy(wanted, scene).await,
    }
}

async fn create(wanted: Create, scene: &Scene<'_>) -> Outcome<Answer> {
    let mut create = CreateSnapshot::new(wanted.name);
    create.pg = wanted.pg;
    create.storage = wanted.storage;
    create.allow_bad_pages = wanted.allow_bad_pages;
    create.fast_checkpoint = !wanted.spread_checkpoint;
    if wanted.no_parent {
        create.parent = ParentChoice::None;
    }
    let taken = scene.neon.snapshots().create(&create).await?;
    let mut answer = Answer::of(taken_in_words(&taken), data(&taken)?);
    if taken.name.is_none() {
        answer.exit = 7;
        if let Some(lost) = &taken.name_lost {
            scene.warn(&format!(
                "the name went to another snapshot meanwhile: {lost}"
            ));
        }
    }
    Ok(answer)
}

pub(super) fn taken_in_words(taken: &TakenSnapshot) -> String {
    let name = match &taken.name {
        Some(name) => name.to_string(),
        None => short(&taken.id),
    };
    let mut text = format!(
        "{name}: {} ({}), {} added, {} read, in {}",
        bytes(taken.size),
        taken.kind,
        bytes(taken.added),
        bytes(taken.read),
        duration(seconds(taken.elapsed)),
    );
    if let Some(source) = &taken.source {
        text.push_str(&format!(", changes told by {source}"));
    }
    if taken.bad_pages > 0 {
        text.push_str(&format!(", {} damaged pages", taken.bad_pages));
    }
    text
}

async fn destroy(wanted: Destroy, scene: &Scene<'_>) -> Outcome<Answer> {
    let snapshots = scene.neon.snapshots();
    let plan = snapshots
        .plan_destroy(&wanted.name, wanted.storage.as_ref())
        .await?;
    let mut text = format!(
        "snapshot {} will be destroyed: {} in it, of which it alone keeps {}.",
        wanted.name,
        bytes(plan.size),
        bytes(plan.retained)
    );
    if !plan.children.is_empty() {
        text.push_str(&format!(
            " Snapshots that were built on it and stay whole: {}.",
            plan.children.len()
        ));
    }
    for pg in &plan.parent_of_next {
        text.push_str(&format!(
            " The next snapshot of {pg} will have to be compared with another, or stored whole."
        ));
    }
    if plan.kept_log > 0 {
        text.push_str(&format!(
            " Log that was not archived is kept with it, {}, and goes for good.",
            bytes(plan.kept_log)
        ));
    }
    let mut whole = data(&plan)?;
    let done = !wanted.consent.dry_run;
    if done {
        confirm(scene, "snapshot destroy", &text, wanted.consent.yes).await?;
        snapshots.destroy(&plan).await?;
        text = "Ok".to_owned();
    }
    mark(&mut whole, "destroyed", done);
    Ok(Answer::of(text, whole))
}

/// A length of time, as the library measures it.
fn seconds(elapsed: f64) -> Duration {
    Duration::from_secs_f64(elapsed.clamp(0.0, 1e9))
}

/// The first digits of an id, enough to name it by.
fn short(id: &CommitId) -> String {
    id.to_string().chars().take(12).collect()
}
