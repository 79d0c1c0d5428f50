//! `storage …`

use std::collections::BTreeMap;

use neon_pg::{CollectStorage, ListedStorage, PackLeft, Storages};

use super::snapshot::{REMEDY, checked_in_words};
use super::{Scene, absolute, data, mark, now};
use crate::args::storage::{Attach, Check, Gc, Storage};
use crate::asking::confirm;
use crate::failure::Outcome;
use crate::render::{Align, Answer, Table, age, bytes};

pub(crate) async fn run(verb: Storage, scene: &Scene<'_>) -> Outcome<Answer> {
    let storages = scene.neon.storages();
    match verb {
        Storage::Attach(wanted) => attach(wanted, scene).await,
        Storage::List(wanted) => {
            let mut table = Table::new(&[
                ("NAME", Align::Left),
                ("USED", Align::Right),
                ("TYPE", Align::Left),
                ("OPTIONS", Align::Left),
                ("PATH", Align::Left),
            ]);
            let mut rows = Vec::new();
            for one in storages.list_used(wanted.refresh).await? {
                table.row([
                    one.name.to_string(),
                    one.used.map(bytes).unwrap_or_default(),
                    one.kind.name().to_owned(),
                    options(&one.options),
                    one.path.clone(),
                ]);
                if let Some(trouble) = &one.trouble {
                    scene.warn(&format!("storage {}: {trouble}", one.name));
                }
                rows.push(data(&one)?);
            }
            Ok(Answer::list(&table, "storages", rows))
        }
        Storage::Show(one) => {
            let details = storages.show(&one.name).await?;
            let mut text = words(&details.listed);
            text.push_str(&format!(
                "  attached: {} ago\n",
                age(details.attached, now())
            ));
            if !details.instances.is_empty() {
                let names: Vec<&str> = details
                    .instances
                    .iter()
                    .map(neon_pg::Name::as_str)
                    .collect();
                text.push_str(&format!("  instances: {}\n", names.join(", ")));
            }
            if let Some(repository) = &details.repository {
                text.push_str(&format!(
                    "  snapshots: {}\n  encrypted: {}\n  needed: {}\n  free to collect: {}\n  repository: {}\n",
                    repository.snapshots,
                    if repository.encrypted { "yes" } else { "no" },
                    bytes(repository.live),
                    bytes(repository.collectable),
                    repository.id,
                ));
            }
            Ok(Answer::of(text, data(&details)?))
        }
        Storage::Check(wanted) => check(&wanted, scene).await,
        Storage::Gc(wanted) => gc(wanted, scene).await,
        Storage::Init(wanted) => {
            let record = storages.get(&wanted.name)?;
            let plan = format!(
                "storage {} will have what is at {} now for its repository, or an empty one",
                wanted.name, record.locator
            );
            let mut now = record.repository;
            let done = !wanted.consent.dry_run;
            let mut text = plan.clone();
            if done {
                confirm(scene, "storage init", &plan, wanted.consent.yes).await?;
                let repository = storages.accept(&wanted.name).await?.repository;
                text = format!("Storage {}: repository {}", wanted.name, repository.id());
                now = Some(repository.id());
            }
            let mut whole = serde_json::json!({
                "name": wanted.name,
                "path": record.locator,
                "before": record.repository,
                "repository": now,
            });
            mark(&mut whole, "accepted", done);
            Ok(Answer::of(&text, whole))
        }
        Storage::Detach(wanted) => {
            let record = storages.get(&wanted.name)?;
            let plan = format!(
                "storage {} at {} will be forgotten; what is in it stays",
                wanted.name, record.locator
            );
            let mut whole = serde_json::json!({
                "name": wanted.name,
                "type": record.kind.name(),
                "options": record.options,
                "path": record.locator,
                "attached": record.attached,
            });
            let done = !wanted.consent.dry_run;
            if done {
                confirm(scene, "storage detach", &plan, wanted.consent.yes).await?;
                storages.detach(&wanted.name).await?;
            }
            mark(&mut whole, "detached", done);
            Ok(Answer::of(if done { "Ok" } else { &plan }, whole))
        }
    }
}

async fn attach(wanted: Attach, scene: &Scene<'_>) -> Outcome<Answer> {
    let storages = scene.neon.storages();
    let place = Storages::place(
        wanted.kind.map(crate::args::storage::Kind::storage_type),
        wanted.locator.as_deref(),
        wanted.path.as_deref(),
        wanted.url.as_deref(),
    )?;
    // A path is kept as it is meant now, not as it would be meant from elsewhere.
    let place = match place.file_path() {
        Some(path) => neon_pg::Locator::path_of(absolute(path)?),
        None => place,
    };
    let chosen: BTreeMap<String, String> = wanted.options.into_iter().collect();
    match wanted.offline {
        true => storages.attach_unasked(&wanted.name, &place, chosen).await,
        false => storages.attach(&wanted.name, &place, chosen).await,
    }?;
    let record = storages.get(&wanted.name)?;
    let text = format!(
        "Attached {}: {} at {}",
        wanted.name,
        record.kind.name(),
        record.locator
    );
    let whole = serde_json::json!({
        "name": wanted.name,
        "type": record.kind.name(),
        "options": record.options,
        "path": record.locator,
        "attached": record.attached,
    });
    Ok(Answer::of(text, whole))
}

/// Findings are the result; that there are some is exit code 5.
async fn check(wanted: &Check, scene: &Scene<'_>) -> Outcome<Answer> {
    let checked = scene
        .neon
        .storages()
        .check(&wanted.name, wanted.data)
        .await?;
    let text = checked_in_words(&checked);
    let mut answer = Answer::of(text, data(&checked)?);
    if !checked.is_sound() {
        scene.note(REMEDY);
        answer.exit = 5;
    }
    Ok(answer)
}

async fn gc(wanted: Gc, scene: &Scene<'_>) -> Outcome<Answer> {
    let storages = scene.neon.storages();
    let plan = storages.plan_gc(&wanted.name).await?;
    let text = gc_in_words(&plan);
    if wanted.consent.dry_run {
        let mut whole = data(&plan)?;
        mark(&mut whole, "collected", false);
        return Ok(Answer::of(text, whole));
    }
    confirm(scene, "storage gc", &text, wanted.consent.yes).await?;
    let done = storages.gc(&plan).await?;
    let mut text = format!(
        "storage {}: {} freed, {} repacked, {} packs announced",
        done.storage,
        bytes(done.freed),
        bytes(done.moved),
        done.announced
    );
    if let Some(next) = done.next {
        text.push_str(&format!(
            "; what was announced goes with a run in {} or later",
            age(0, next)
        ));
    }
    text.push_str(&left_in_words(&done.left));
    let mut whole = data(&done)?;
    mark(&mut whole, "collected", true);
    Ok(Answer::of(text, whole))
}

/// A line for each pack that stays as it is.
fn left_in_words(left: &[PackLeft]) -> String {
    let line = |one: &PackLeft| {
        format!(
            "\n  pack {} stays, {} of which {} are needed: {}",
            one.pack,
            bytes(one.size),
            bytes(one.live),
            one.reason
        )
    };
    left.iter().map(line).collect()
}

fn gc_in_words(plan: &CollectStorage) -> String {
    format!(
        "storage {}: of {} stored {} are needed; {} destroyed snapshots and {} packs can go, {} sparse ones be rewritten, \
         which frees {}. Destroyed snapshots that go cannot be brought back.{}",
        plan.storage,
        bytes(plan.stored),
        bytes(plan.live),
        plan.snapshots.len(),
        plan.packs,
        plan.sparse,
        bytes(plan.freed),
        left_in_words(&plan.left),
    )
}

fn options(options: &BTreeMap<String, String>) -> String {
    let options: Vec<String> = options
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    options.join(",")
}

fn words(listed: &ListedStorage) -> String {
    let mut text = format!(
        "{}:\n  type: {}\n  path: {}\n",
        listed.name,
        listed.kind.name(),
        listed.path
    );
    if !listed.options.is_empty() {
        text.push_str(&format!("  options: {}\n", options(&listed.options)));
    }
    if let Some(used) = listed.used {
        text.push_str(&format!("  space used: {}\n", bytes(used)));
    }
    text
}
