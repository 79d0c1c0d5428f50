//! Beginning: the cluster, its first snapshot, and what is remembered of both.
//!
//! What is begun is remembered first, with the name of the first snapshot; when all is there, that goes. So an `init` that was killed
//! is gone on with by the next one.

use neon_pagestore::{CommitId, SnapshotName};
use neon_snapshot_format::{Detected, detect};
use neon_storage::Locator;

use super::dest::Dest;
use super::{InitOptions, Initialized, MAIN, Saved, SnapshotFirst, newest};
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::{CreatePg, RestoreChoice};
use crate::name::Name;
use crate::record;
use crate::snapshots::{
    CreateSnapshot, ExportFormat, Found, ImportSnapshot, ImportSource, Located,
};
use crate::storages::LOCAL;
#[cfg(doc)]
use crate::storages::Storages;

/// The snapshot that a cluster begins with.
enum Beginning {
    /// Imported for it: its own first.
    Here(Found),
    /// One of another.
    Elsewhere(Found),
}

impl SnapshotFirst<'_> {
    /// Makes the cluster and remembers where its snapshots go. Its first snapshot is there when this returns.
    ///
    /// Dropped, or killed: the same again goes on where it was.
    ///
    /// # Errors
    /// [`Exists`](ErrorKind::Exists) when there is one already; [`Invalid`](ErrorKind::Invalid) when `snapshot_path` is
    /// not in `snapshot_format`; as [`attach`](Storages::attach), [`import`](crate::Snapshots::import),
    /// [`create`](crate::Instances::create).
    pub async fn init(&self, options: &InitOptions) -> Result<Initialized> {
        let neon = self.0;
        let name = match &options.pg.name {
            Some(name) => name.clone(),
            None => MAIN.parse()?,
        };
        let begun = self.saved()?.filter(|saved| saved.pg == name);
        if let Some(begun) = begun
            && let Some(snapshot) = begun.unfinished.clone()
            && let Some(done) = Box::pin(self.go_on(begun, &snapshot, options)).await?
        {
            return Ok(done);
        }
        if neon.pg().record_of(&name).is_ok() {
            return Err(Error::new(
                ErrorKind::Exists,
                format!("pg {name}"),
                "was initialized already",
            )
            .hinted("start it with neon start"));
        }
        let storage = match &options.storage_dest {
            Some(dest) => self.dest(dest, &options.storage_options).await?,
            None => Dest::of(LOCAL.parse()?),
        };
        let made = Box::pin(self.init_in(name, &storage.name, options)).await;
        self.unless_failed(storage, made).await
    }

    async fn init_in(
        &self,
        name: Name,
        storage: &Name,
        options: &InitOptions,
    ) -> Result<Initialized> {
        let neon = self.0;
        let mut create = options.pg.clone();
        create.name = Some(name.clone());
        create.storage = Some(storage.clone());
        create.no_start = true;
        self.tell_of_others(&name, storage, None).await?;
        let snapshot = self.free_tag(&name, storage, "init").await?;
        // Killed from now on, it is gone on with.
        let before = self.saved()?;
        let begun = Saved {
            pg: name.clone(),
            storage: storage.clone(),
            unfinished: Some(snapshot.to_string()),
        };
        self.save(&begun)?;
        let made = Box::pin(self.make(&create, storage, &snapshot, options)).await;
        if let Err(error) = made {
            if neon.pg().record_of(&name).is_err() {
                match before {
                    Some(before) => self.save(&before)?,
                    None => record::remove(&self.place())?,
                }
            }
            return Err(error);
        }
        self.finish(begun, snapshot)
    }

    /// Says that it is made, and all of it.
    fn finish(&self, begun: Saved, snapshot: SnapshotName) -> Result<Initialized> {
        let Saved { pg, storage, .. } = begun;
        self.save(&Saved {
            pg: pg.clone(),
            storage: storage.clone(),
            unfinished: None,
        })?;
        Ok(Initialized {
            storage_dest: self.0.storages().get(&storage)?.locator,
            pg,
            storage,
            snapshot,
        })
    }

    /// Goes on with what was begun by a command that was killed; nothing if no instance came of it.
    async fn go_on(
        &self,
        begun: Saved,
        snapshot: &str,
        options: &InitOptions,
    ) -> Result<Option<Initialized>> {
        let neon = self.0;
        let pg = neon.pg();
        {
            let _lock = pg.lock(&begun.pg).await?;
            Box::pin(pg.settle(&begun.pg)).await?;
        }
        let first = SnapshotName::to_give(snapshot)
            .map_err(|error| Error::repository(format!("snapshot {snapshot}"), error))?;
        let stored = self.resolved(&begun.storage, &first).await?;
        let Ok(record) = pg.record_of(&begun.pg) else {
            if stored.is_some() {
                neon.tell(Event::Note(format!(
                    "snapshot {first} in storage {} may be of an init that was killed: neon snapshot destroy removes it",
                    begun.storage
                )));
            }
            return Ok(None);
        };
        if let Some(dest) = &options.storage_dest {
            let dest = self.dest(dest, &options.storage_options).await?;
            if dest.name != record.storage {
                let subject = format!("pg {}", begun.pg);
                let why = format!("was begun with storage {}", record.storage);
                let refused = Error::new(ErrorKind::Exists, subject, why)
                    .hinted("begin it there, or destroy it: neon pg destroy");
                return self.unless_failed(dest, Err(refused)).await;
            }
        }
        // Taken of it, or what it was made from.
        let base = record.base.as_ref().map(|base| base.snapshot);
        let ours = stored.is_some_and(|(id, instance)| {
            base == Some(id) || instance.as_ref() == Some(&record.id)
        });
        if ours {
            return self.finish(begun, first).map(Some);
        }
        let first = self.free_tag(&begun.pg, &record.storage, "init").await?;
        Box::pin(neon.snapshots().create(&CreateSnapshot::new(first.clone()))).await?;
        self.finish(begun, first).map(Some)
    }

    /// The snapshot of this name, and the instance that it shows; nothing if there is none.
    async fn resolved(
        &self,
        storage: &Name,
        name: &SnapshotName,
    ) -> Result<Option<(CommitId, Option<String>)>> {
        let Some(found) = self.0.storages().existing_repository(storage).await? else {
            return Ok(None);
        };
        match found.repository.resolve_name(name).await {
            Ok(id) => {
                let snapshot = found.snapshot(id).await?;
                Ok(Some((id, snapshot.facts().instance.clone())))
            }
            Err(error) if error.kind() == neon_pagestore::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::repository(format!("snapshot {name}"), error)),
        }
    }

    /// Makes the instance and its first snapshot.
    async fn make(
        &self,
        create: &CreatePg,
        storage: &Name,
        snapshot: &SnapshotName,
        options: &InitOptions,
    ) -> Result<()> {
        let neon = self.0;
        let beginning = match &options.snapshot_path {
            None => None,
            Some(path) => Some(
                self.beginning(path, options.snapshot_format, storage, snapshot)
                    .await?,
            ),
        };
        match &beginning {
            None => {
                Box::pin(neon.pg().create(create)).await?;
            }
            Some(Beginning::Elsewhere(from) | Beginning::Here(from)) => {
                let how = RestoreChoice::default();
                let made = Box::pin(neon.pg().create_from(create, from, &how)).await;
                if let Err(error) = made {
                    if matches!(beginning, Some(Beginning::Here(_))) {
                        let repository = &from.repository.repository;
                        drop(repository.destroy(from.id).await);
                    }
                    return Err(error);
                }
            }
        }
        // What was imported is the first snapshot itself.
        if !matches!(beginning, Some(Beginning::Here(_))) {
            let first = CreateSnapshot::new(snapshot.clone());
            if let Err(error) = Box::pin(neon.snapshots().create(&first)).await {
                // Tried again, it begins anew; or goes on, if it cannot be taken back.
                if let (Some(name), Err(second)) = (&create.name, self.destroy_new(create).await) {
                    neon.tell(Event::Warning(format!("pg {name} stays ({second})")));
                }
                return Err(error);
            }
        }
        Ok(())
    }

    async fn destroy_new(&self, create: &CreatePg) -> Result<()> {
        if let Some(name) = &create.name {
            Box::pin(self.0.pg().destroy(name)).await?;
        }
        Ok(())
    }

    /// The snapshot that a cluster begins with, in its storage.
    async fn beginning(
        &self,
        path: &str,
        format: Option<ExportFormat>,
        storage: &Name,
        name: &SnapshotName,
    ) -> Result<Beginning> {
        let snapshots = self.0.snapshots();
        let place = Locator::parse(path).map_err(|error| Error::storage("snapshot_path", error))?;
        let outside = |source: ImportSource| async {
            require_format(&source, format)?;
            let mut import = ImportSnapshot::new(source);
            import.name = Some(name.clone());
            import.storage = Some(storage.clone());
            snapshots
                .import(&import)
                .await
                .map(|imported| Beginning::Here(imported.found))
        };
        // A repository means its newest snapshot.
        let folder = place
            .file_path()
            .is_some_and(|path| path.join("neon.json").is_file());
        let remote = place.file_path().is_none()
            && !path.starts_with("basebackup://")
            && !place.path().ends_with(".neon");
        if (folder || remote)
            && let Some(repository) = self.0.storages().repository_at(&place).await?
        {
            require_own(path, format)?;
            let (found, _) = newest::of_any(self.0, repository).await?;
            return Ok(Beginning::Elsewhere(found));
        }
        match snapshots.locate(path, None).await? {
            Located::Stored(found) => {
                require_own(path, format)?;
                Ok(Beginning::Elsewhere(found))
            }
            Located::Outside(source) => outside(source).await,
        }
    }
}

fn require_own(path: &str, format: Option<ExportFormat>) -> Result<()> {
    match format {
        None | Some(ExportFormat::Neon) => Ok(()),
        Some(format) => Err(wrong_format(path, format, "a repository of snapshots")),
    }
}

fn require_format(source: &ImportSource, format: Option<ExportFormat>) -> Result<()> {
    let Some(format) = format else { return Ok(()) };
    let (is, what) = match source {
        ImportSource::Server(_) => (ExportFormat::BaseBackup, "a server".to_owned()),
        ImportSource::Object(_) => (ExportFormat::Neon, "a .neon file".to_owned()),
        ImportSource::Path(path) => {
            let subject = path.display().to_string();
            let found = detect(path).map_err(|error| Error::format(subject, error))?;
            let what = found.to_string();
            match found {
                Detected::DataDirectory { .. } => (ExportFormat::PgData, what),
                // Unpacked it is both.
                Detected::PlainBackup { .. } if format == ExportFormat::PgData => {
                    (ExportFormat::PgData, what)
                }
                Detected::PlainBackup { .. } | Detected::TarSet { .. } | Detected::Tar { .. } => {
                    (ExportFormat::BaseBackup, what)
                }
                Detected::Neon => (ExportFormat::Neon, what),
                // Import says what is wrong with it.
                _ => return Ok(()),
            }
        }
    };
    if is == format {
        return Ok(());
    }
    Err(wrong_format(&source.to_string(), format, &what))
}

fn wrong_format(path: &str, wanted: ExportFormat, is: &str) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!("snapshot_path {path}"),
        format!("is {is}, not in format {}", wanted.name()),
    )
    .hinted("leave snapshot_format out: it is told by content")
}
