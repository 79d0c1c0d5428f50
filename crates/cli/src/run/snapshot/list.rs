//! `snapshot list`

use std::collections::{BTreeMap, BTreeSet};

use neon_pg::{CommitId, ListedSnapshot, Retained};
use serde_json::{Value, json};

use super::super::{Scene, data, now};
use super::short;
use crate::args::snapshot::List;
use crate::failure::{Failure, Outcome};
use crate::render::{Align, Answer, Table, age, bytes};

pub(super) async fn list(wanted: &List, scene: &Scene<'_>) -> Outcome<Answer> {
    let snapshots = scene.neon.snapshots();
    let (listed, failed) = snapshots.list(wanted.storage.as_ref()).await?;
    let current = match wanted.storage {
        None => snapshots.current(&listed).await?,
        Some(_) => Vec::new(),
    };
    let retained = if wanted.long {
        retained(&listed, scene).await?
    } else {
        BTreeMap::new()
    };
    let storages: BTreeSet<&str> = listed.iter().map(|one| one.storage.as_str()).collect();
    let several = storages.len() > 1;
    let names: BTreeMap<CommitId, String> = listed
        .iter()
        .filter_map(|one| Some((one.listed.id, one.listed.names.first()?.to_string())))
        .collect();
    let named = |id: &CommitId| names.get(id).cloned().unwrap_or_else(|| short(id));
    let mut columns = vec![
        ("ID", Align::Left),
        ("SIZE", Align::Right),
        ("PARENT", Align::Left),
    ];
    if several {
        columns.push(("STORAGE", Align::Left));
    }
    if wanted.long {
        columns.extend([
            ("KIND", Align::Left),
            ("AGE", Align::Right),
            ("ADDED", Align::Right),
            ("RETAINED", Align::Right),
            ("COMMIT", Align::Left),
        ]);
    }
    let mut table = Table::new(&columns);
    let mut rows = Vec::new();
    for one in &listed {
        let id = &one.listed.id;
        let all: Vec<String> = one.listed.names.iter().map(ToString::to_string).collect();
        let shown = if all.is_empty() {
            vec![short(id)]
        } else {
            all.clone()
        };
        let own = retained
            .get(&(one.storage.to_string(), *id))
            .map(|retained| retained.own);
        let row = match &one.listed.summary {
            Ok(summary) => {
                for name in shown {
                    let parent = summary.parent.as_ref().map(named).unwrap_or_default();
                    let mut cells = vec![name, bytes(summary.bytes), parent];
                    if several {
                        cells.push(one.storage.to_string());
                    }
                    if wanted.long {
                        let taken = u64::try_from(summary.taken).unwrap_or(0);
                        cells.extend([
                            summary.kind.to_string(),
                            age(taken, now()),
                            bytes(summary.added),
                            own.map(bytes).unwrap_or_default(),
                            short(id),
                        ]);
                    }
                    table.row_of(cells);
                }
                json!({
                    "id": id,
                    "names": all,
                    "storage": one.storage,
                    "size": summary.bytes,
                    "added": summary.added,
                    "retained": own,
                    "parent": summary.parent,
                    "kind": summary.kind.to_string(),
                    "taken": summary.taken,
                    "instance": summary.instance,
                    "lineage": summary.lineage,
                    "major": summary.major.to_string(),
                    "bad_pages": summary.bad_pages,
                })
            }
            Err(unreadable) => {
                scene.warn(&format!(
                    "snapshot {} in storage {}: {}",
                    short(id),
                    one.storage,
                    unreadable.problem
                ));
                json!({ "id": id, "names": all, "storage": one.storage, "problem": unreadable.problem })
            }
        };
        rows.push(row);
    }
    for one in &current {
        let parent = one.parent.as_ref().map(named).unwrap_or_default();
        let mut cells = vec![one.name.to_string(), bytes(one.size), parent];
        if several {
            cells.push(one.storage.to_string());
        }
        if wanted.long {
            cells.extend([
                "live".to_owned(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
            ]);
        }
        table.row_of(cells);
    }
    let mut answer = Answer::list(&table, "snapshots", rows);
    answer.data.insert("current".to_owned(), data(&current)?);
    let mut problems = Vec::new();
    for (name, error) in failed {
        answer.exit = 7;
        let failure = Failure::from(error);
        scene.warn(&format!("storage {name} cannot be listed: {failure}"));
        problems.push(json!({ "storage": name, "error": failure.json() }));
    }
    answer
        .data
        .insert("problems".to_owned(), Value::Array(problems));
    Ok(answer)
}

async fn retained(
    listed: &[ListedSnapshot],
    scene: &Scene<'_>,
) -> Outcome<BTreeMap<(String, CommitId), Retained>> {
    let mut all = BTreeMap::new();
    let storages: BTreeSet<_> = listed.iter().map(|one| one.storage.clone()).collect();
    for storage in storages {
        if let Some(repository) = scene.neon.storages().existing_repository(&storage).await? {
            for (id, retained) in scene.neon.snapshots().retained(&repository).await? {
                all.insert((storage.to_string(), id), retained);
            }
        }
    }
    Ok(all)
}
