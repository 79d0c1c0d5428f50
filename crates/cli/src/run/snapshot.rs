//! `snapshot …`

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use neon_pg::{
    CommitId, Compression, CreateSnapshot, ExportFormat, ExportOptions, Found, ImportSnapshot,
    ImportSource, ListedSnapshot, ParentChoice, Pulled, Remote, Retained, SnapshotName,
    TakenSnapshot, Transferred,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Scene, now};
use crate::args::snapshot::{
    Compress, Create, Destroy, Export, Form, Import, List, Show, Snapshot,
};
use crate::confirm::confirm;
use crate::failure::{Failure, Outcome, say};
use crate::render::{Align, Answer, Table, age, bytes, duration};

pub(crate) async fn run(verb: Snapshot, scene: &Scene<'_>) -> Outcome<Answer> {
    let snapshots = scene.neon.snapshots();
    match verb {
        Snapshot::Create(wanted) => create(wanted, scene).await,
        Snapshot::List(wanted) => list(&wanted, scene).await,
        Snapshot::Show(wanted) => show(&wanted, scene).await,
        Snapshot::Import(wanted) => import(wanted, scene).await,
        Snapshot::Export(wanted) => export(wanted, scene).await,
        Snapshot::Push(wanted) => {
            let found = snapshots
                .find(&wanted.name, wanted.storage.as_ref())
                .await?;
            let done = snapshots.push(&found, &Remote::parse(&wanted.to)?).await?;
            transferred("Pushed", &wanted.name, &done)
        }
        Snapshot::Pull(wanted) => {
            let from = Remote::parse(&wanted.from)?;
            match snapshots
                .pull(&from, &wanted.name, wanted.storage.as_ref())
                .await?
            {
                Pulled::Copied(done) => transferred("Pulled", &wanted.name, &done),
                Pulled::Imported(done) => imported(&done),
                _ => Err(Failure::usage("pulled in a way this program does not know")),
            }
        }
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
            say(&format!(
                "warning: the name went to another snapshot meanwhile: {lost}"
            ));
        }
    }
    Ok(answer)
}

fn taken_in_words(taken: &TakenSnapshot) -> String {
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

async fn list(wanted: &List, scene: &Scene<'_>) -> Outcome<Answer> {
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
                say(&format!(
                    "warning: snapshot {} in storage {}: {}",
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
        say(&format!(
            "warning: storage {name} cannot be listed: {failure}"
        ));
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

async fn show(wanted: &Show, scene: &Scene<'_>) -> Outcome<Answer> {
    let details = scene
        .neon
        .snapshots()
        .show(&wanted.name, wanted.storage.as_ref())
        .await?;
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
    line(
        "parent",
        facts
            .parent
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_else(|| "-".to_owned()),
    );
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

async fn import(wanted: Import, scene: &Scene<'_>) -> Outcome<Answer> {
    let mut import = ImportSnapshot::new(ImportSource::parse(&wanted.from)?);
    import.name = wanted.name;
    import.storage = wanted.storage;
    import.allow_bad_pages = wanted.allow_bad_pages;
    let done = scene.neon.snapshots().import(&import).await?;
    imported(&done)
}

fn imported(done: &neon_pg::Imported) -> Outcome<Answer> {
    let text = format!(
        "{}: {} imported, {} stored in {}, in {}",
        done.name,
        bytes(done.size),
        bytes(done.stored),
        done.storage,
        duration(seconds(done.elapsed)),
    );
    Ok(Answer::of(text, data(done)?))
}

async fn export(wanted: Export, scene: &Scene<'_>) -> Outcome<Answer> {
    let snapshots = scene.neon.snapshots();
    let found = snapshots
        .find(&wanted.name, wanted.storage.as_ref())
        .await?;
    let one_file = wanted.to.extension().is_some_and(|ending| ending == "neon");
    let format = match wanted.format {
        Some(Form::Neon) => ExportFormat::Neon,
        Some(Form::Basebackup) => ExportFormat::BaseBackup,
        Some(Form::Pgdata) => ExportFormat::PgData,
        None if one_file => ExportFormat::Neon,
        None => ExportFormat::PgData,
    };
    let mut options = ExportOptions::new(format);
    options.compression = match wanted.compress {
        Compress::None => Compression::None,
        Compress::Gzip => Compression::Gzip(6),
        Compress::Lz4 => Compression::Lz4,
        Compress::Zstd => Compression::Zstd(3),
    };
    options.tablespaces = wanted
        .tablespaces
        .as_deref()
        .map(super::absolute)
        .transpose()?;
    let to = super::absolute(&wanted.to)?;
    let done = snapshots.export(&found, &to, &options).await?;
    let text = format!(
        "{}: {} exported to {} in {}",
        wanted.name,
        bytes(done.size),
        to.display(),
        duration(seconds(done.elapsed)),
    );
    Ok(Answer::of(text, data(&done)?))
}

fn transferred(did: &str, name: &str, done: &Transferred) -> Outcome<Answer> {
    let text = format!(
        "{did} {name} to {}: {}, {} sent, in {}",
        done.to,
        bytes(done.size),
        bytes(done.sent),
        duration(seconds(done.elapsed)),
    );
    Ok(Answer::of(text, data(done)?))
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
    let mut whole = data(&plan)?;
    let done = !wanted.consent.dry_run;
    if done {
        confirm("snapshot destroy", &text, wanted.consent.yes).await?;
        snapshots.destroy(&plan).await?;
        text = "Ok".to_owned();
    }
    super::mark(&mut whole, "destroyed", done);
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

/// As JSON, as the library says it.
pub(super) fn data(value: &impl Serialize) -> Outcome<Value> {
    serde_json::to_value(value)
        .map_err(|error| Failure::usage("the result is no JSON").because(error.to_string()))
}

/// A snapshot that was imported only to make an instance of it.
pub(super) struct Passing {
    found: Found,
    name: SnapshotName,
}

impl Passing {
    /// Imports it.
    pub(super) async fn import(source: ImportSource, scene: &Scene<'_>) -> Outcome<Self> {
        let done = scene
            .neon
            .snapshots()
            .import(&ImportSnapshot::new(source))
            .await?;
        Ok(Self {
            name: done.name,
            found: done.found,
        })
    }

    pub(super) fn found(&self) -> &Found {
        &self.found
    }

    /// Destroys it again.
    pub(super) async fn destroy(self, scene: &Scene<'_>) -> Outcome<()> {
        let snapshots = scene.neon.snapshots();
        let name = self.name.to_string();
        let plan = snapshots
            .plan_destroy(&name, self.found.repository.name.as_ref())
            .await?;
        Ok(snapshots.destroy(&plan).await?)
    }
}
