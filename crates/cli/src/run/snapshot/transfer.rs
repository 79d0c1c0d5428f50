//! `snapshot import`, `export`, `push`, `pull` and `serve`: between storages, and in and out of them.

use neon_pg::{
    Compression, ErrorKind, ExportFormat, ExportOptions, ImportSnapshot, ImportSource, Imported,
    ParentChoice, Pulled, Remote, ServeOptions, Transferred,
};
use serde_json::Value;

use super::super::{Scene, absolute, data};
use super::seconds;
use crate::args::snapshot::{Compress, Export, Form, Import, Pull, Push, Serve};
use crate::failure::{Failure, Outcome};
use crate::render::{Answer, bytes, duration};

pub(super) async fn import(wanted: Import, scene: &Scene<'_>) -> Outcome<Answer> {
    let mut import = ImportSnapshot::new(ImportSource::parse(&wanted.from)?);
    import.name = wanted.name;
    import.storage = wanted.storage;
    import.allow_bad_pages = wanted.allow_bad_pages;
    import.parent = parent(wanted.no_parent);
    let done = scene.neon.snapshots().import(&import).await?;
    imported(&done)
}

fn parent(none: bool) -> ParentChoice {
    match none {
        true => ParentChoice::None,
        false => ParentChoice::Best,
    }
}

fn imported(done: &Imported) -> Outcome<Answer> {
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

pub(super) async fn export(wanted: Export, scene: &Scene<'_>) -> Outcome<Answer> {
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
    options.tablespaces = wanted.tablespaces.as_deref().map(absolute).transpose()?;
    let to = absolute(&wanted.to)?;
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

pub(super) async fn push(wanted: &Push, scene: &Scene<'_>) -> Outcome<Answer> {
    let snapshots = scene.neon.snapshots();
    let found = snapshots
        .find(&wanted.name, wanted.storage.as_ref())
        .await?;
    let done = snapshots.push(&found, &Remote::parse(&wanted.to)?).await?;
    transferred("Pushed", &wanted.name, &done)
}

pub(super) async fn pull(wanted: &Pull, scene: &Scene<'_>) -> Outcome<Answer> {
    let from = Remote::parse(&wanted.from)?;
    let pulled = scene
        .neon
        .snapshots()
        .pull_sharing(
            &from,
            &wanted.name,
            wanted.storage.as_ref(),
            &parent(wanted.no_parent),
        )
        .await?;
    match pulled {
        Pulled::Copied(done) => transferred("Pulled", &wanted.name, &done),
        Pulled::Imported(done) => imported(&done),
        _ => Err(Failure::usage("pulled in a way this program does not know")),
    }
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
pub(super) async fn serve(wanted: &Serve, scene: &Scene<'_>) -> Outcome<Answer> {
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
    match offer.run().await {
        // Nothing is left of an offer.
        Err(error) if error.kind() == ErrorKind::Cancelled => Err(Failure::Silent { exit: 0 }),
        served => {
            served?;
            Ok(Answer::nothing())
        }
    }
}

/// A form of a snapshot outside, in the library's words.
pub(in crate::run) const fn form(wanted: Form) -> ExportFormat {
    match wanted {
        Form::Neon => ExportFormat::Neon,
        Form::Basebackup => ExportFormat::BaseBackup,
        Form::Pgdata => ExportFormat::PgData,
    }
}
