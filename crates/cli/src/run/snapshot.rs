//! `snapshot …`

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use neon_pg::{
    CheckedStorage, CommitId, Compression, CreateSnapshot, ExportFormat, ExportOptions,
    ImportSnapshot, ImportSource, ListedSnapshot, ParentChoice, Pulled, Remote, Retained,
    ServeOptions, TakenSnapshot, Transferred, VerifyDepth,
};
use serde::Serialize;
use serde_json::{Value, json};

use super::{Scene, now};
use crate::args::snapshot::{
    Compress, Create, Destroy, Diff, Export, Form, Import, List, Serve, Show, Snapshot, Verify,
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
        Snapshot::Serve(wanted) => serve(&wanted, scene).await,
        Snapshot::Verify(wanted) => verify(&wanted, scene).await,
        Snapshot::Check(wanted) => {
            let found = snapshots
                .find(&wanted.name, wanted.storage.as_ref())
                .await?;
            let checked = snapshots.check(&found).await?;
            let mut answer = Answer::of(checked_in_words(&checked), data(&checked)?);
            if !checked.is_sound() {
                answer.exit = 5;
            }
            Ok(answer)
        }
        Snapshot::Diff(wanted) => diff(&wanted, scene).await,
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
    let mut text = format!(
        "{}: {} imported, {} stored in {}, in {}",
        done.name,
        bytes(done.size),
        bytes(done.stored),
        done.storage,
        duration(seconds(done.elapsed)),
    );
    if done.bad_pages > 0 {
        text.push_str(&format!(", {} damaged pages", done.bad_pages));
    }
    Ok(Answer::of(text, data(done)?))
}

async fn export(wanted: Export, scene: &Scene<'_>) -> Outcome<Answer> {
    let snapshots = scene.neon.snapshots();
    let found = snapshots
        .find(&wanted.name, wanted.storage.as_ref())
        .await?;
    let one_file = wanted.to.extension().is_some_and(|ending| ending == "neon");
    let format = match wanted.format {
        Some(wanted) => form(wanted),
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

/// Prints how the snapshot is taken as soon as it can be, then serves it.
async fn serve(wanted: &Serve, scene: &Scene<'_>) -> Outcome<Answer> {
    let snapshots = scene.neon.snapshots();
    let found = snapshots
        .find(&wanted.name, wanted.storage.as_ref())
        .await?;
    let mut options = ServeOptions::default();
    options.backups = wanted.backups;
    if let Some(address) = wanted.listen {
        options.address = address;
    }
    let offer = snapshots.serve(&found, &options).await?;
    let about = offer.about();
    let mut whole = data(about)?;
    if let Value::Object(whole) = &mut whole {
        whole.insert("password".to_owned(), Value::from(offer.token().expose()));
    }
    for note in &about.notes {
        scene.note(note);
    }
    for warning in &about.warnings {
        scene.warn(warning);
    }
    let text = format!("PGPASSWORD={} {}", offer.token().expose(), about.command);
    Answer::of(text, whole).print(scene.settings.output)?;
    offer.run().await?;
    Ok(Answer::nothing())
}

/// What is wrong is the result, and exit code 5.
async fn verify(wanted: &Verify, scene: &Scene<'_>) -> Outcome<Answer> {
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
        answer.exit = 5;
    } else if unread {
        answer.exit = 7;
    }
    Ok(answer)
}

/// What a check looked at and found.
pub(super) fn checked_in_words(checked: &CheckedStorage) -> String {
    let mut text = format!(
        "{}: {} snapshots, {} objects, {} packs, {} frames, {} pages looked at{}\n",
        checked.subject,
        checked.snapshots,
        checked.objects,
        checked.packs,
        checked.frames,
        checked.pages,
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
            text.push_str(&format!(" (in snapshots {})", snapshots.join(", ")));
        }
        text.push('\n');
    }
    text
}

async fn diff(wanted: &Diff, scene: &Scene<'_>) -> Outcome<Answer> {
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
        "{} pages of relations differ, {}",
        diff.pages,
        bytes(diff.bytes),
    ));
    if !diff.files.is_empty() {
        text.push_str(&format!(
            "; in {} other files {}{}",
            diff.files.len(),
            bytes(diff.other_bytes),
            if wanted.files { "" } else { " (--files lists them)" },
        ));
    }
    text.push_str(&format!(", told by {}", diff.by));
    if let Some(because) = &diff.because {
        text.push_str(&format!(" ({because})"));
    }
    Ok(Answer::of(text, data(&diff)?))
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

/// A form of a snapshot outside, in the library's words.
pub(super) const fn form(wanted: Form) -> ExportFormat {
    match wanted {
        Form::Neon => ExportFormat::Neon,
        Form::Basebackup => ExportFormat::BaseBackup,
        Form::Pgdata => ExportFormat::PgData,
    }
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
