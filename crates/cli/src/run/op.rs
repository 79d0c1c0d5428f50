//! `op …`

use neon_pg::Outcome as Stand;
use serde_json::json;

use super::{Scene, now};
use crate::args::Op;
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
        let outcome = match operation.outcome {
            Stand::Begun => "begun",
            Stand::Done => "done",
            Stand::Failed => "failed",
        };
        table.row([
            operation.id.clone(),
            age(operation.at / 1000, now()),
            operation.verb.clone(),
            operation.subject.clone(),
            outcome.to_owned(),
        ]);
        rows.push(json!({
            "id": operation.id,
            "at": operation.at / 1000,
            "verb": operation.verb,
            "subject": operation.subject,
            "outcome": outcome,
            "details": operation.details,
        }));
    }
    Ok(Answer::list(&table, "operations", rows))
}
