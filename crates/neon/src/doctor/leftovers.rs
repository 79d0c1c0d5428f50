//! What killed commands left in a home: half-made instances, pending journals, folders and files that nobody uses.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::{DoctorFinding, DoctorOptions, Findings, Severity};
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::{CREATION, PgRecord, Stage};
use crate::name::Name;
use crate::neon::Neon;
use crate::operation::{Outcome, seconds};
use crate::record::{self, Lock, held_if_free, is_free};
use crate::snapshots::{LeftImport, open};
use crate::upkeep::with_causes;

/// What instances are made in from snapshots.
const NEW: &str = ".new-";
/// What `neon-cowfs` clones into, and what it renames a folder to that it removes; locked by who does it.
const CLONE: &str = ".neon-clone.";
const REMOVAL: &str = ".neon-remove.";
/// What opened snapshots are in.
const OPEN: &str = ".open-";

/// Something that a killed command left.
#[derive(Debug)]
enum Leftover {
    /// An instance that is half made, or half destroyed.
    HalfMade(PgRecord),
    /// A checkout that is neither taken back nor finished.
    Checkout(PgRecord),
    /// A folder in which an instance was made, or a snapshot opened.
    Folder(PathBuf),
    /// The record of an instance in the trash that is not there any more.
    Trash(PathBuf),
    /// A record that never got its name.
    File(PathBuf),
    /// A snapshot that was imported for an instance.
    Import(LeftImport),
}

impl Neon {
    /// The records of a folder that can be read, and why others cannot.
    fn readable(&self, folder: &Path) -> (Vec<PgRecord>, Vec<crate::Error>) {
        match record::list_readable::<PgRecord>(folder) {
            Ok((good, bad)) => (good.into_iter().map(|(_, record)| record).collect(), bad),
            Err(error) => (Vec::new(), vec![error]),
        }
    }

    /// The records of instances that can be read.
    pub(super) fn readable_instances(&self) -> Vec<PgRecord> {
        self.readable(&self.home().instances()).0
    }

    /// Whether no other command is at an instance: then nobody can be while the lock is kept.
    pub(super) fn free(&self, name: &Name) -> Option<Lock> {
        self.pg().lock_if_free(name)
    }

    async fn leftovers(&self, busy: &mut Vec<Name>) -> Vec<Leftover> {
        let home = self.home();
        let mut found = Vec::new();
        // Folders before records: a record is there before its folder is.
        let mut folders = files(&home.path().join("pg"));
        folders.extend(files(&home.path().join("trash")));
        // Beside data directories only what was being removed is ours for certain.
        let beside = self.pg().folders_beside();
        let beside = beside.iter().flat_map(|folder| files(folder));
        folders.extend(beside.filter(|path| name_of(path).starts_with(REMOVAL)));
        for record in self.readable_instances() {
            if self.free(&record.name).is_none() {
                busy.push(record.name.clone());
                continue;
            }
            // What was read before the lock was free may be settled by now.
            let Ok(Some(record)) = record::read::<PgRecord>(&self.pg().record(&record.name)) else {
                continue;
            };
            if record.stage != Stage::Ready {
                found.push(Leftover::HalfMade(record));
            } else if record.checkout.is_some() {
                found.push(Leftover::Checkout(record));
            }
        }
        let instances = self.readable_instances();
        for folder in folders {
            let name = name_of(&folder);
            let left = if let Some(id) = name.strip_prefix(NEW) {
                !instances.iter().any(|record| record.id == id)
            } else if let Some(id) = name.strip_prefix(OPEN) {
                let lock = home.path().join("state/open").join(format!("{id}.lock"));
                !lock.exists() || is_free(&lock)
            } else {
                let ours = [CREATION, CLONE, REMOVAL].iter();
                ours.into_iter().any(|ours| name.starts_with(ours)) && is_free(&folder)
            };
            if left && folder.exists() {
                found.push(Leftover::Folder(folder));
            }
        }
        for record in self.readable(&home.trash()).0 {
            let live = instances.iter().any(|live| live.id == record.id);
            let gone = !home.trash_folder(&record.id).exists() && home.is_mounted().is_ok();
            if record.adopted.is_none() && !live && gone {
                let path = home.trash().join(format!("{}.json", record.id));
                found.push(Leftover::Trash(path));
            }
        }
        let state = home.path().join("state");
        let folders = [
            state.clone(),
            home.instances(),
            home.trash(),
            home.storages(),
            home.path().to_owned(),
            home.path().join("cache"),
        ];
        for path in folders.iter().flat_map(|folder| files(folder)) {
            if name_of(&path).starts_with(NEW) && path.is_file() && is_free(&path) {
                found.push(Leftover::File(path));
            }
        }
        let imports = self.snapshots().left_imports();
        found.extend(imports.into_iter().map(Leftover::Import));
        found
    }

    /// Settles what killed commands left, as the next verb on each would.
    pub(super) async fn settle_leftovers(
        &self,
        options: &DoctorOptions,
        fixed: &mut Vec<String>,
    ) -> Result<()> {
        for leftover in self.leftovers(&mut Vec::new()).await {
            self.go_on()?;
            let mut told = Findings::default();
            tell(&leftover, &mut told);
            if !told
                .0
                .iter()
                .all(|one| options.settles(one.code, &one.subject))
            {
                continue;
            }
            let (what, settled) = Box::pin(self.settle_one(&leftover)).await;
            match settled {
                Ok(()) => fixed.push(what),
                // The examination says what is left of it.
                Err(error) => self.tell(Event::Warning(format!("{what}: {}", with_causes(&error)))),
            }
        }
        Ok(())
    }

    async fn settle_one(&self, leftover: &Leftover) -> (String, Result<()>) {
        match leftover {
            Leftover::HalfMade(record) | Leftover::Checkout(record) => {
                let name = &record.name;
                let what = match record.stage {
                    Stage::Creating => format!("the creation of pg {name} is settled"),
                    Stage::Destroying => format!("pg {name} is in the trash"),
                    _ if record.is_changing() || record.is_rolled_back() => {
                        format!("the checkout of pg {name} is finished")
                    }
                    _ => format!("the checkout of pg {name} is taken back"),
                };
                let settled = async {
                    let _lock = self.pg().lock(name).await?;
                    Box::pin(self.pg().settle(name)).await
                };
                (what, Box::pin(settled).await)
            }
            Leftover::Folder(path) => {
                let what = format!("{} is removed", path.display());
                if name_of(path).starts_with(OPEN) {
                    open::sweep(self, &self.home().path().join("pg")).await;
                    return (what, Ok(()));
                }
                if let Ok(installations) = self.installations().await {
                    open::end(&installations, path).await;
                }
                let path = path.clone();
                let removed = tokio::task::spawn_blocking(move || record::remove_tree(&path)).await;
                (what, removed.unwrap_or(Ok(())))
            }
            Leftover::Trash(path) => {
                let what = format!("{} is removed", path.display());
                (what, record::remove(path))
            }
            Leftover::File(path) => {
                let what = format!("{} is removed", path.display());
                match held_if_free(path) {
                    Some(_held) => (what, record::remove(path)),
                    // Somebody has begun to write it since it was found.
                    None => {
                        let busy = Error::new(
                            ErrorKind::Busy,
                            path.display().to_string(),
                            "is written to by now, and stays",
                        );
                        (what, Err(busy))
                    }
                }
            }
            Leftover::Import(left) => {
                let what = format!(
                    "{} is destroyed, with what it speaks of",
                    left.path().display()
                );
                (what, self.snapshots().end_import(left).await)
            }
        }
    }

    pub(super) async fn examine_leftovers(&self, findings: &mut Findings) {
        for error in [self.home().instances(), self.home().trash()]
            .iter()
            .flat_map(|folder| self.readable(folder).1)
        {
            let (subject, why) = (error.subject().to_owned(), with_causes(&error));
            let why = why.strip_prefix(&format!("{subject}: ")).unwrap_or(&why);
            findings
                .error("record-damaged", subject, why.to_owned())
                .hinted(
                    "put back a copy of it, or move it away: what it is about is then unknown here",
                );
        }
        let mut busy = Vec::new();
        for leftover in self.leftovers(&mut busy).await {
            tell(&leftover, findings);
        }
        for name in busy {
            findings.info(
                "busy",
                format!("pg {name}"),
                "another command is at it now; it was not looked at",
            );
        }
        self.unknown_folders(findings).await;
        self.processes(findings);
        self.unfinished(findings);
    }

    /// Folders that no record speaks of, and records whose folders are gone.
    async fn unknown_folders(&self, findings: &mut Findings) {
        let home = self.home();
        if let Err(error) = home.is_mounted() {
            findings.failed("disk-unmounted", error.subject().to_owned(), &error);
        }
        let instances = self.readable_instances();
        for path in files(&home.path().join("pg")) {
            let name = name_of(&path);
            let known = home.instances().join(format!("{name}.json")).exists();
            if !known && !name.starts_with('.') {
                findings
                    .warning(
                        "folder-unknown",
                        path.display().to_string(),
                        "is no instance of this home: nothing is remembered of it",
                    )
                    .hinted(format!(
                        "neon pg adopt {}/data, or remove it",
                        path.display()
                    ));
            }
        }
        self.unknown_trash(findings).await;
        for record in instances {
            let data = self.pg().data_dir(&record);
            if let Err(error) = self.pg().is_mounted(&record) {
                // That of all is told of once.
                if home.is_mounted().is_ok() {
                    findings.failed("disk-unmounted", format!("pg {}", record.name), &error);
                }
                continue;
            }
            if let Err(error) = self.pg().is_whole(&record) {
                findings.failed("disk-unmounted", format!("pg {}", record.name), &error);
            }
            if record.stage == Stage::Ready && !data.join("PG_VERSION").exists() {
                let hint = if record.adopted.is_some() {
                    format!("neon pg destroy {}, which forgets it", record.name)
                } else {
                    "put it back, or create an instance from its newest snapshot".to_owned()
                };
                findings
                    .error(
                        "data-missing",
                        format!("pg {}", record.name),
                        format!("has no data directory at {}", data.display()),
                    )
                    .hinted(hint);
            }
        }
    }

    /// What is in the trash and not remembered: of instances, which emptying the trash frees, and what somebody put there.
    async fn unknown_trash(&self, findings: &mut Findings) {
        let home = self.home();
        let left = self.pg().left_in_trash().await.unwrap_or_default();
        for one in &left {
            trash_unknown(&one.path, findings).hinted(match &one.name {
                Some(name) => {
                    format!("neon pg trash --empty {name} frees it, if nothing in it is missed")
                }
                None => "neon pg trash --empty frees it, if nothing in it is missed".to_owned(),
            });
        }
        let instances = self.readable_instances();
        for path in files(&home.path().join("trash")) {
            let id = name_of(&path);
            let remembered = ["json", "gone"]
                .iter()
                .any(|kind| home.trash().join(format!("{id}.{kind}")).exists());
            let known = remembered
                || hidden(&path)
                || instances.iter().any(|record| record.id == id)
                || left.iter().any(|one| one.path == path);
            if !known {
                trash_unknown(&path, findings).hinted("remove it, if nothing in it is missed");
            }
        }
    }

    /// Servers that work in folders of this home that are no instances.
    fn processes(&self, findings: &mut Findings) {
        let Ok(home) = fs::canonicalize(self.home().path()) else {
            return;
        };
        let mut known: BTreeSet<PathBuf> = BTreeSet::new();
        for record in self.readable_instances() {
            known.insert(home.join("pg").join(record.name.as_str()));
            known.insert(home.join("pg").join(format!("{NEW}{}", record.id)));
        }
        let mut lost: BTreeMap<PathBuf, i32> = BTreeMap::new();
        for path in files(Path::new("/proc")) {
            let Ok(pid) = name_of(&path).parse::<i32>() else {
                continue;
            };
            let Ok(place) = fs::read_link(path.join("cwd")) else {
                continue;
            };
            let ours = [home.join("pg"), home.join("trash")]
                .iter()
                .any(|folder| place.starts_with(folder));
            let program = fs::read_to_string(path.join("comm")).unwrap_or_default();
            if !ours || !program.trim_end().starts_with("postgres") {
                continue;
            }
            let open = place.components().any(|part| {
                let part = part.as_os_str().to_string_lossy();
                part.starts_with(OPEN) || part.starts_with(CREATION)
            });
            if !open && !known.iter().any(|folder| place.starts_with(folder)) {
                let first = lost.entry(place).or_insert(pid);
                *first = pid.min(*first);
            }
        }
        for (place, pid) in lost {
            findings
                .error(
                    "server-lost",
                    place.display().to_string(),
                    format!("a server (process {pid}) works there, which is no instance any more"),
                )
                .hinted(format!("kill -INT {pid}"));
        }
    }

    /// Operations that were begun, and nothing was done to the same since.
    fn unfinished(&self, findings: &mut Findings) {
        let operations = match self.operations() {
            Ok(operations) => operations,
            Err(error) => return findings.failed("log-unreadable", "operation log", &error),
        };
        let mut open = BTreeMap::new();
        for operation in &operations {
            if operation.outcome == Outcome::Begun {
                open.insert(operation.subject.as_str(), operation);
            } else {
                open.remove(operation.subject.as_str());
            }
        }
        let now = seconds(self.now());
        for (subject, operation) in open {
            let age = now.saturating_sub(operation.at / 1000);
            findings
                .info(
                    "operation-unfinished",
                    subject,
                    format!(
                        "{} was begun {age} s ago, and nothing was said since: it is under way, or was killed",
                        operation.verb
                    ),
                )
                .hinted("neon op log");
        }
    }
}

fn trash_unknown<'a>(path: &Path, findings: &'a mut Findings) -> &'a mut DoctorFinding {
    findings.warning(
        "trash-unknown",
        path.display().to_string(),
        "is in the trash, and nothing is remembered of it",
    )
}

fn tell(leftover: &Leftover, findings: &mut Findings) {
    match leftover {
        Leftover::HalfMade(record) => {
            let (message, next) = match record.stage {
                Stage::Creating => ("its creation was interrupted", "pg create"),
                _ => ("its way to the trash was interrupted", "pg destroy"),
            };
            findings
                .warning("half-made", format!("pg {}", record.name), message)
                .fixable()
                .hinted(format!("neon doctor --fix, or neon {next} {}", record.name));
        }
        Leftover::Checkout(record) => {
            let name = &record.name;
            let (severity, message) = if record.is_changing() {
                (
                    Severity::Error,
                    "a checkout was interrupted while it rewrote files: it cannot start as it is, and will be finished",
                )
            } else if record.is_rolled_back() {
                (
                    Severity::Warning,
                    "a checkout is done, and was interrupted before its server was started",
                )
            } else {
                (
                    Severity::Warning,
                    "a checkout was interrupted before its first change, and will be taken back",
                )
            };
            findings
                .add(severity, "checkout-pending", format!("pg {name}"), message)
                .fixable()
                .hinted(format!("neon doctor --fix, or neon pg start {name}"));
        }
        Leftover::Folder(path) => {
            findings
                .warning(
                    "folder-left",
                    path.display().to_string(),
                    "was left by a command that was killed",
                )
                .fixable()
                .hinted("neon doctor --fix");
        }
        Leftover::Trash(path) => {
            findings
                .warning(
                    "trash-empty",
                    path.display().to_string(),
                    "remembers an instance in the trash that is not there",
                )
                .fixable()
                .hinted("neon doctor --fix");
        }
        Leftover::Import(left) => {
            findings
                .warning(
                    "import-left",
                    left.path().display().to_string(),
                    left.what(),
                )
                .fixable()
                .hinted("neon doctor --fix");
        }
        Leftover::File(path) => {
            findings
                .warning(
                    "file-left",
                    path.display().to_string(),
                    "was left by a command that was killed",
                )
                .fixable()
                .hinted("neon doctor --fix");
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

fn name_of(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn hidden(path: &Path) -> bool {
    name_of(path).starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_somebody_is_at_by_now_is_not_removed() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        let neon = Neon::open(home, crate::Options::new()).unwrap();
        let path = neon.home().instances().join(".new-0123456789abcdef");
        fs::create_dir_all(neon.home().instances()).unwrap();
        fs::write(&path, "").unwrap();
        let found = neon.leftovers(&mut Vec::new()).await;
        let [left @ Leftover::File(_)] = &*found else {
            panic!("{found:?}");
        };
        let held = record::held_if_free(&path).unwrap();
        // What stays is not said to be removed.
        let busy = neon.settle_one(left).await.1.unwrap_err();
        assert_eq!(busy.kind(), ErrorKind::Busy);
        assert!(path.exists());
        drop(held);
        neon.settle_one(left).await.1.unwrap();
        assert!(!path.exists());
    }
}
