//! `snapshot diff`

use super::super::{Scene, data};
use crate::args::snapshot::Diff;
use crate::failure::Outcome;
use crate::render::{Align, Answer, Table, bytes};

pub(super) async fn diff(wanted: &Diff, scene: &Scene<'_>) -> Outcome<Answer> {
    let snapshots = scene.neon.snapshots();
    let diff = snapshots
        .diff(&wanted.before, &wanted.after, wanted.storage.as_ref())
        .await?;
    let mut table = Table::new(&[
        ("RELATION", Align::Left),
        ("PAGES", Align::Right),
        ("SIZE", Align::Right),
        ("WHAT", Align::Left),
    ]);
    for relation in &diff.relations {
        let named = match (&relation.schema, &relation.name) {
            (Some(schema), Some(name)) => format!("{schema}.{name}"),
            (None, Some(name)) => name.clone(),
            _ => relation.file.clone(),
        };
        let named = match &relation.database {
            Some(database) => format!("{database}: {named}"),
            None => named,
        };
        let named = match &relation.toast_of {
            Some(of) => format!("{named} (of {of})"),
            None => named,
        };
        table.row([
            named,
            relation.pages.to_string(),
            bytes(relation.bytes),
            relation.what.to_owned(),
        ]);
    }
    if wanted.files {
        for file in &diff.files {
            table.row([
                file.path.clone(),
                String::new(),
                bytes(file.bytes),
                file.what.to_owned(),
            ]);
        }
    }
    let mut text = table.to_string();
    text.push_str(&format!(
        "{} pages, {} differ, told by {}",
        diff.pages,
        bytes(diff.bytes),
        diff.by
    ));
    if let Some(because) = &diff.because {
        text.push_str(&format!(" ({because})"));
    }
    if !diff.files.is_empty() {
        text.push_str(&format!(
            "\n{} differ in other files{}",
            bytes(diff.other_bytes),
            if wanted.files {
                ""
            } else {
                " (--files lists them)"
            },
        ));
    }
    Ok(Answer::of(text, data(&diff)?))
}
