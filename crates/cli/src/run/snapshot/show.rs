//! `snapshot show`

use super::super::{Scene, data, now};
use super::short;
use crate::args::snapshot::Show;
use crate::failure::Outcome;
use crate::render::{Answer, age, bytes};

pub(super) async fn show(wanted: &Show, scene: &Scene<'_>) -> Outcome<Answer> {
    let details = scene
        .neon
        .snapshots()
        .show(&wanted.name, wanted.storage.as_ref())
        .await?;
    let parent = match (&details.facts.parent, &details.storage) {
        (None, _) => "-".to_owned(),
        (Some(parent), storage) => {
            // By its name, if it is there still.
            let (listed, _) = scene.neon.snapshots().list(storage.as_ref()).await?;
            let found = listed.iter().find(|one| one.listed.id == *parent);
            let name = found.and_then(|one| one.listed.names.first());
            name.map_or_else(|| parent.to_string(), ToString::to_string)
        }
    };
    let names: Vec<String> = details.names.iter().map(ToString::to_string).collect();
    let facts = &details.facts;
    let cost = &facts.cost;
    let mut text = format!(
        "{}:\n",
        names.first().cloned().unwrap_or_else(|| short(&details.id))
    );
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            text.push_str(&format!("  {name}: {value}\n"));
        }
    };
    line("id", details.id.to_string());
    if names.len() > 1 {
        line("names", names.join(", "));
    }
    line(
        "storage",
        details
            .storage
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
    );
    line("kind", facts.kind.to_string());
    line("age", age(u64::try_from(facts.taken).unwrap_or(0), now()));
    line("postgresql", facts.cluster.major.to_string());
    line("parent", parent);
    line("size", bytes(details.size));
    line("added", bytes(details.added));
    line("retained", bytes(details.retained));
    line(
        "read",
        format!(
            "{} of changed pages, {} else",
            bytes(cost.read_changed),
            bytes(cost.read_other)
        ),
    );
    line(
        "written",
        format!(
            "{} of data, {} of maps, {} pages",
            bytes(cost.written_data),
            bytes(cost.written_metadata),
            cost.changed_pages
        ),
    );
    line(
        "changes told by",
        cost.source
            .clone()
            .unwrap_or_else(|| "nothing: all was read".to_owned()),
    );
    for refused in &cost.refused_sources {
        line(&format!("not by {}", refused.path), refused.reason.clone());
    }
    if !facts.bad_pages.is_empty() {
        line("damaged pages", facts.bad_pages.len().to_string());
    }
    Ok(Answer::of(text, data(&details)?))
}
