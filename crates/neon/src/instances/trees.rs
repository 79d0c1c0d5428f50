//! Snapshots as trees: the files of one, restored once, for instances that share their blocks.
//!
//! `trees/<id>` holds `data` and `tablespaces` exactly as the snapshot has them. Nobody but us enters it and no server
//! ever runs on it. It is made for the first clone that needs it, on the file system of the instances; the five that
//! were used last are kept.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use neon_cowfs::{CloneOptions, Cloned, Method, NotUsed, Wanted};

use crate::background;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::restore::{Fill, has_room, turn_tablespaces};
use crate::neon::Neon;
use crate::record::{self, Lock};
use crate::snapshots::Found;

/// So many trees are kept.
const MOST: usize = 5;
/// How long to wait for who makes the same tree.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// How an instance gets its files.
#[derive(Debug)]
pub(super) enum Way {
    /// Out of the repository. With what else was thought of, and why it was not done.
    Restored(Vec<String>),
    /// From a tree.
    Cloned(Tree),
}

/// A tree, kept from being removed.
#[derive(Debug)]
pub(super) struct Tree {
    path: PathBuf,
    _lock: Lock,
}

/// Decides between restoring and cloning, before any data moves, and makes the tree if one is needed.
pub(super) async fn choose(job: &Fill<'_>, from: &Found, wanted: Wanted) -> Result<Way> {
    if wanted == Wanted::Only(Method::Copy) {
        return Ok(Way::Restored(Vec::new()));
    }
    let neon = job.neon;
    let home = neon.home().path().join("pg");
    let instances = job.folder.parent().unwrap_or(&home).to_owned();
    let probe = neon_cowfs::probe(None, &instances).map_err(|error| failed(&instances, error))?;
    // What is restored without a word anyway is no reason to fail.
    let sharing = match wanted {
        Wanted::Best => Wanted::CopyOnWrite,
        other => other,
    };
    if let Err(reasons) = probe.choose(sharing) {
        if wanted == Wanted::Best {
            return Ok(Way::Restored(
                reasons.iter().map(ToString::to_string).collect(),
            ));
        }
        return Err(refused(&instances, &reasons));
    }
    let tree = neon.home().tree(&from.id.to_string());
    // Another copy of everything, for one instance that was not asked to share it, would cost more than it saves.
    if wanted == Wanted::Best && !tree.exists() {
        return Ok(Way::Restored(vec![
            "subvolume, reflink: no tree of this snapshot is there; --cow makes one".to_owned(),
        ]));
    }
    made(job, from, tree).await.map(Way::Cloned)
}

async fn made(job: &Fill<'_>, from: &Found, path: PathBuf) -> Result<Tree> {
    let neon = job.neon;
    record::folder(&neon.home().path().join("trees"), 0o700)?;
    let subject = format!("tree of snapshot {}", from.asked);
    let lock = Lock::take(&path.with_extension("lock"), &subject, PATIENCE).await?;
    if !path.exists() {
        let staging = path.with_extension("new");
        record::remove_tree(&staging)?;
        has_room(&neon.home().path().join("trees"), job.snapshot.facts())?;
        neon.tell(Event::Step(format!(
            "Restoring snapshot {} once, for all that will share it.",
            from.asked
        )));
        let restore = Fill {
            neon,
            snapshot: job.snapshot,
            subject: job.subject.clone(),
            installation: job.installation,
            user: job.user,
            folder: &staging,
            lock: path.with_extension("writing"),
        };
        let outcome = async {
            restore.write().await?;
            for unused in ["log", "run"] {
                record::remove_tree(&staging.join(unused))?;
            }
            turn_tablespaces(&staging, &path.join("tablespaces"), job.user)?;
            record::rename(&staging, &path)
        }
        .await;
        if let Err(error) = outcome {
            drop(record::remove_tree(&staging));
            return Err(error);
        }
    }
    let now = fs::File::open(&path).and_then(|tree| tree.set_modified(SystemTime::now()));
    now.map_err(|error| Error::io(&path, "cannot be marked as used", error))?;
    trim(neon, &path).await;
    Ok(Tree { path, _lock: lock })
}

/// Removes the trees that were used longest ago, unless somebody clones from them now.
async fn trim(neon: &Neon, used: &Path) {
    let entries = fs::read_dir(neon.home().path().join("trees"));
    let mut trees: Vec<(SystemTime, PathBuf)> = entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir() && path.extension().is_none() && path != used)
        .filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
        .collect();
    trees.sort_unstable();
    while trees.len() >= MOST {
        let (_, oldest) = trees.remove(0);
        let lock = oldest.with_extension("lock");
        if let Ok(lock) = Lock::take(&lock, "tree", Duration::ZERO).await {
            drop(record::remove_tree(&oldest));
            drop(lock);
        }
    }
}

impl Fill<'_> {
    /// Clones the files from a tree. Durable when it returns.
    pub(super) async fn share(&self, tree: &Tree, wanted: Wanted) -> Result<Cloned> {
        self.folders()?;
        let (from, to) = (tree.path.join("data"), self.folder.join("data"));
        let options = CloneOptions::new()
            .wanted(wanted)
            .tablespaces_below(self.folder.join("tablespaces"))
            .threads(self.neon.options().threads);
        let subject = self.subject.clone();
        let cloned = background::run(
            self.neon,
            &self.subject,
            self.lock.clone(),
            || (),
            move |cancel| {
                neon_cowfs::clone_tree(&from, &to, &options.cancel(cancel))
                    .map_err(|error| failed(subject.as_ref(), error))
            },
        )
        .await?;
        drop(fs::remove_dir(self.folder.join("tablespaces")));
        Ok(cloned)
    }
}

fn refused(place: &Path, reasons: &[NotUsed]) -> Error {
    let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    Error::new(
        ErrorKind::Environment,
        place.display().to_string(),
        format!("lets no instance share blocks: {}", reasons.join("; ")),
    )
    .hinted("use a home on XFS or btrfs, or let it be copied whole: --clone-method copy")
}

/// What cloning came to.
fn failed(subject: &Path, error: neon_cowfs::Error) -> Error {
    use neon_cowfs::ErrorKind as Clone;
    match error.kind() {
        Clone::Unsupported => refused(subject, error.not_used()).caused_by(error),
        kind => {
            let kind = match kind {
                Clone::DiskFull | Clone::Permissions => ErrorKind::Environment,
                Clone::Cancelled => ErrorKind::Cancelled,
                Clone::NotFound => ErrorKind::NotFound,
                _ => ErrorKind::Failed,
            };
            Error::new(kind, subject.display().to_string(), "cannot be cloned").caused_by(error)
        }
    }
}
