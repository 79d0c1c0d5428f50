//! `op …`

use neon_pg::{Operation, Outcome as Stand};
use serde_json::{Value, json};

use super::{Scene, now};
use crate::args::{Op, Undo};
use crate::asking::confirm;
use crate::failure::Outcome;
use crate::render::{Align, Answer, Table, age};

pub(crate) fn run(verb: &Op, scene: &Scene<'_>) -> Outcome<Answer> {
    let Op::Log { limit } = verb;
    let mut operations = scene.neon.operations()?;
    operations.reverse();
    if *limit > 0 {
        operations.truncate(*limit);
    }
    let mut table = Table::new(&[
        ("ID", Align::Left),
        ("AGE", Align::Right),
        ("VERB", Align::Left),
        ("SUBJECT", Align::Left),
        ("OUTCOME", Align::Left),
    ]);
    let mut rows = Vec::new();
    for operation in operations {
        table.row([
            operation.id.clone(),
            age(operation.at / 1000, now()),
            operation.verb.clone(),
            operation.subject.clone(),
            word(operation.outcome).to_owned(),
        ]);
        rows.push(shown(&operation));
    }
    Ok(Answer::list(&table, "operations", rows))
}

/// Takes back one operation, or the last that can be.
pub(crate) async fn undo(wanted: &Undo, scene: &Scene<'_>) -> Outcome<Answer> {
    let operation = match &wanted.operation {
        Some(id) => scene.neon.undoable_of(id)?,
        None => scene.neon.undoable()?,
    };
    let plan = format!(
        "{} {}, done {} ago, will be taken back",
        operation.verb,
        operation.subject,
        age(operation.at / 1000, now())
    );
    if wanted.consent.dry_run {
        return Ok(Answer::of(
            plan,
            json!({ "operation": shown(&operation), "what": null, "undone": false }),
        ));
    }
    confirm(scene, "undo", &plan, wanted.consent.yes).await?;
    let undone = scene.neon.undo_of(&operation.id).await?;
    Ok(Answer::of(
        undone.what.clone(),
        json!({ "operation": shown(&undone.operation), "what": undone.what, "undone": true }),
    ))
}

fn shown(operation: &Operation) -> Value {
    json!({
        "id": operation.id,
        "at": operation.at / 1000,
        "verb": operation.verb,
        "subject": operation.subject,
        "outcome": word(operation.outcome),
        "details": operation.details,
    })
}

const fn word(outcome: Stand) -> &'static str {
    match outcome {
        Stand::Begun => "begun",
        Stand::Done => "done",
        Stand::Failed => "failed",
    }
}
