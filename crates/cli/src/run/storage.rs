//! `storage …`

use std::collections::BTreeMap;

use neon_pg::{Locator, Name, StorageRecord};
use serde_json::{Value, json};

use super::{Scene, absolute, mark};
use crate::args::storage::{Attach, Storage};
use crate::confirm::confirm;
use crate::failure::{Failure, Outcome};
use crate::render::{Align, Answer, Table};

pub(crate) async fn run(verb: Storage, scene: &Scene<'_>) -> Outcome<Answer> {
    let storages = scene.neon.storages();
    match verb {
        Storage::Attach(wanted) => attach(wanted, scene).await,
        Storage::List => {
            let mut table = Table::new(&[
                ("NAME", Align::Left),
                ("TYPE", Align::Left),
                ("OPTIONS", Align::Left),
                ("PATH", Align::Left),
            ]);
            let mut rows = Vec::new();
            for (name, record) in storages.list()? {
                table.row([
                    name.to_string(),
                    shown_type(&record),
                    shown_options(&record),
                    record.locator.clone(),
                ]);
                rows.push(data(&name, &record));
            }
            Ok(Answer::list(&table, "storages", rows))
        }
        Storage::Show(one) => {
            let record = storages.get(&one.name)?;
            Ok(Answer::of(
                text(&one.name, &record),
                data(&one.name, &record),
            ))
        }
        Storage::Detach(wanted) => {
            let record = storages.get(&wanted.name)?;
            let plan = format!(
                "storage {} at {} will be forgotten; what is in it stays",
                wanted.name, record.locator
            );
            let mut whole = data(&wanted.name, &record);
            if wanted.consent.dry_run {
                mark(&mut whole, "detached", false);
                return Ok(Answer::of(plan, whole));
            }
            confirm("storage detach", &plan, wanted.consent.yes).await?;
            storages.detach(&wanted.name).await?;
            mark(&mut whole, "detached", true);
            Ok(Answer::of("Ok", whole))
        }
    }
}

async fn attach(wanted: Attach, scene: &Scene<'_>) -> Outcome<Answer> {
    let locator = match (&wanted.locator, &wanted.path, &wanted.url) {
        (_, Some(path), _) => Locator::path_of(absolute(path)?),
        (Some(text), ..) | (_, _, Some(text)) => {
            let locator = Locator::parse(text).map_err(|error| {
                Failure::usage(format!("storage {}", wanted.name)).because(error.to_string())
            })?;
            // A path is kept as it is meant now, not as it would be meant from elsewhere.
            match locator.file_path() {
                Some(path) => Locator::path_of(absolute(path)?),
                None => locator,
            }
        }
        (None, None, None) => return Err(Failure::usage("where the storage is was not said")),
    };
    let kind = neon_pg::StorageType::of(&locator)?;
    if wanted.kind.is_some_and(|expected| !expected.is(kind)) {
        return Err(Failure::usage(format!(
            "storage {}: {locator} is of type {}",
            wanted.name,
            kind.name()
        )));
    }
    let options: BTreeMap<String, String> = wanted.options.into_iter().collect();
    let record = scene
        .neon
        .storages()
        .attach(&wanted.name, &locator, options)
        .await?;
    Ok(Answer::of(
        text(&wanted.name, &record),
        data(&wanted.name, &record),
    ))
}

/// The type, in the words of the table.
fn shown_type(record: &StorageRecord) -> String {
    record.kind.name().to_owned()
}

fn shown_options(record: &StorageRecord) -> String {
    let options: Vec<String> = record
        .options
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    options.join(",")
}

fn text(name: &Name, record: &StorageRecord) -> String {
    let mut text = format!(
        "{name}:\n  type: {}\n  path: {}\n",
        shown_type(record),
        record.locator
    );
    if !record.options.is_empty() {
        text.push_str(&format!("  options: {}\n", shown_options(record)));
    }
    text
}

fn data(name: &Name, record: &StorageRecord) -> Value {
    json!({
        "name": name,
        "type": record.kind.name(),
        "options": record.options,
        "path": record.locator,
        "attached": record.attached,
    })
}
