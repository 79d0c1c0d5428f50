//! Storages: whether each can be reached and holds its promises, and what dead writers and dead commands left there.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use futures_util::TryStreamExt;
use neon_pagestore::OpenOptions;
use neon_storage::{Key, ListOptions, Locator, Storage};

use super::{DoctorOptions, Findings};
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::name::Name;
use crate::neon::Neon;
use crate::record;
use crate::storages::{StorageOptions, StorageRecord, StorageType};
use crate::upkeep::with_causes;

/// No storage is waited for longer.
const PATIENCE: Duration = Duration::from_secs(20);
/// A clock that is further off than this makes signatures fail sooner or later, and ages look odd.
const SKEW: Duration = Duration::from_secs(60);
/// Uploads that are older belong to nobody who lives.
#[cfg(feature = "s3")]
const OLD: Duration = Duration::from_secs(24 * 60 * 60);
const LEASES: &str = "leases/";
/// What another home began longer ago than this is not ended by it any more.
const PINNED: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Uploads in parts that nobody completes.
#[derive(Debug, Default)]
struct Uploads {
    /// How many began more than a day ago.
    stale: u64,
    /// The storage is a whole bucket.
    at_root: bool,
}

/// Storages by name.
type Known = Vec<(Name, StorageRecord)>;

impl Neon {
    /// The storages whose records can be read, and what is wrong with the others.
    fn known_storages(&self) -> (Known, Vec<(String, Error)>) {
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        let folder = self.home().storages();
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let json = path.extension().is_some_and(|ending| ending == "json");
            let Some(name) = name.parse::<Name>().ok().filter(|_| json) else {
                continue;
            };
            match record::read::<StorageRecord>(&path) {
                Ok(Some(record)) => good.push((name, record)),
                Ok(None) => {}
                Err(error) => bad.push((path.display().to_string(), error)),
            }
        }
        good.sort_by(|one, other| one.0.cmp(&other.0));
        (good, bad)
    }

    pub(super) async fn examine_storages(&self, options: &DoctorOptions, findings: &mut Findings) {
        let (storages, damaged) = self.known_storages();
        for (path, error) in damaged {
            findings
                .error("record-damaged", path, with_causes(&error))
                .hinted("move it away, and attach the storage again");
        }
        for (name, record) in storages {
            if options.offline && record.kind != StorageType::Native {
                continue;
            }
            let subject = format!("storage {name}");
            let looked = tokio::time::timeout(PATIENCE, self.examine(&name, &record, findings));
            match looked.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let code = match error.kind() {
                        ErrorKind::Environment => "storage-denied",
                        _ => "storage-unreachable",
                    };
                    findings.failed(code, subject, &error);
                }
                Err(_) => {
                    findings.error(
                        "storage-slow",
                        subject,
                        format!("did not answer within {} seconds", PATIENCE.as_secs()),
                    );
                }
            }
        }
        for record in self.readable_instances() {
            if self.storages().get(&record.storage).is_err() {
                findings
                    .error(
                        "storage-unknown",
                        format!("pg {}", record.name),
                        format!(
                            "keeps its snapshots in storage {}, which is not attached",
                            record.storage
                        ),
                    )
                    .hinted(format!("neon storage attach -n {} LOCATOR", record.storage));
            }
        }
    }

    async fn examine(
        &self,
        name: &Name,
        record: &StorageRecord,
        findings: &mut Findings,
    ) -> Result<()> {
        let subject = format!("storage {name}");
        if record.kind == StorageType::Native && !Path::new(&record.locator).is_dir() {
            findings
                .error(
                    "storage-missing",
                    subject,
                    format!("there is no folder {}", record.locator),
                )
                .hinted("mount the disk it is on, put it back, or detach it");
            return Ok(());
        }
        let chosen = StorageOptions::of(record.kind, &record.options)?;
        if chosen.encrypted && self.options().passphrase.is_none() && chosen.key_file.is_none() {
            findings
                .warning(
                    "passphrase-missing",
                    &*subject,
                    "is encrypted, and no passphrase is given",
                )
                .hinted("give it in NEON_PASSPHRASE, or its key file");
        }
        // What is known of it is looked at anew.
        let storage = self.storages().open_doubting(name).await?;
        let failed = |error| Error::storage(subject.as_str(), error);
        let can = storage.probe().await.map_err(failed)?;
        if can.write && !can.create_only {
            findings
                .warning(
                    "no-conditional-writes",
                    &*subject,
                    "does not refuse to write what is there already: two homes may give one name to two snapshots, \
                     and the later is told only afterwards",
                )
                .hinted(format!(
                    "docs/providers.md says which providers do; if this one does by now, neon storage init {name} has it found out anew"
                ));
        }
        if !can.list {
            return Ok(());
        }
        let beats = beats(&*storage).await.map_err(failed)?;
        if can.clock && record.kind != StorageType::Native {
            self.clock(&*storage, &subject, findings)
                .await
                .map_err(failed)?;
        }
        let grace = chosen.grace.unwrap_or(OpenOptions::new().grace);
        let now = self.now();
        let lapsed = beats
            .values()
            .filter(|beat| now.duration_since(**beat).unwrap_or_default() > grace)
            .count();
        if lapsed > 0 {
            findings
                .info(
                    "lease-left",
                    &*subject,
                    format!("{lapsed} writers are gone without a word; what they stored in vain is still there"),
                )
                .hinted(format!("neon storage gc {name}"));
        }
        self.pins(name, findings).await?;
        let uploads = self.uploads(name, record, false).await?;
        if uploads.stale > 0 {
            let finding = findings.warning(
                "upload-left",
                &*subject,
                format!(
                    "{} uploads of more than a day ago were never completed, and cost what they hold",
                    uploads.stale
                ),
            );
            if uploads.at_root {
                finding.hinted(
                    "a whole bucket may have other users: set a lifecycle rule of the bucket, AbortIncompleteMultipartUpload",
                );
            } else {
                finding
                    .fixable()
                    .hinted("neon doctor --fix, or a lifecycle rule of the bucket");
            }
        }
        Ok(())
    }

    /// Snapshots that are kept for what nobody does any more.
    async fn pins(&self, name: &Name, findings: &mut Findings) -> Result<()> {
        let repository = match self.storages().existing_repository(name).await {
            Ok(Some(repository)) => repository,
            Ok(None) => return Ok(()),
            // Said already.
            Err(error) if error.kind() == ErrorKind::Environment => return Ok(()),
            Err(error) => return Err(error),
        };
        for left in self.left_pins(&repository, self.long_ago()).await? {
            let snapshot = format!("snapshot {} in storage {name}", left.pin.commit);
            let message = if left.ours {
                "is kept for a command of this home that was killed".to_owned()
            } else {
                let age = self.now().duration_since(left.since).unwrap_or_default();
                let days = age.as_secs() / (24 * 60 * 60);
                format!(
                    "is kept since {days} days for something that another home began ({}): if that home is lost, nothing needs it",
                    left.pin.owner
                )
            };
            findings
                .warning("pin-left", snapshot, message)
                .fixable()
                .hinted("neon doctor --fix, after which it can be destroyed and collected");
        }
        Ok(())
    }

    /// Nothing takes that long.
    fn long_ago(&self) -> SystemTime {
        let now = self.now();
        now.checked_sub(PINNED).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    async fn settle_pins(
        &self,
        name: &Name,
        options: &DoctorOptions,
        fixed: &mut Vec<String>,
    ) -> Result<()> {
        let Some(repository) = self.storages().existing_repository(name).await? else {
            return Ok(());
        };
        for left in self.left_pins(&repository, self.long_ago()).await? {
            let snapshot = format!("snapshot {} in storage {name}", left.pin.commit);
            if !options.settles("pin-left", &snapshot) {
                continue;
            }
            let unpinned = repository.repository.unpin(left.pin.id).await;
            unpinned.map_err(|error| Error::repository(repository.label(), error))?;
            fixed.push(format!("{snapshot} is not kept any more"));
        }
        Ok(())
    }

    /// How far the clock of a storage is from ours, by an object that every repository has.
    async fn clock(
        &self,
        storage: &dyn Storage,
        subject: &str,
        findings: &mut Findings,
    ) -> neon_storage::Result<()> {
        let Ok(about) = Key::new("neon.json") else {
            return Ok(());
        };
        let head = match storage.head(&about).await {
            Ok(head) => head,
            Err(error) if error.kind() == neon_storage::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        let now = self.now();
        let Some(theirs) = head.clock else {
            return Ok(());
        };
        let off = now
            .duration_since(theirs)
            .unwrap_or_else(|error| error.duration());
        if off > SKEW {
            findings
                .warning(
                    "clock-skew",
                    subject,
                    format!(
                        "its clock is {} seconds {} ours",
                        off.as_secs(),
                        if theirs > now { "ahead of" } else { "behind" }
                    ),
                )
                .hinted("set this machine's clock, best by NTP");
        }
        Ok(())
    }

    /// Uploads in parts that dead writers left below the folder of a storage, of what repositories store there; aborted if
    /// asked, but not in a bucket that is used as a whole: nothing says that it is ours alone.
    #[cfg(feature = "s3")]
    async fn uploads(&self, name: &Name, record: &StorageRecord, abort: bool) -> Result<Uploads> {
        use neon_storage::{S3, S3Config};
        if record.kind != StorageType::S3 {
            return Ok(Uploads::default());
        }
        let failed = |error: neon_storage::Error| Error::storage(format!("storage {name}"), error);
        let chosen = StorageOptions::of(record.kind, &record.options)?;
        let locator = Locator::parse(&record.locator).map_err(failed)?;
        // Asked without its options, another account or provider would answer.
        let locator = chosen.apply(name, &locator)?;
        let config = S3Config::from_locator(&locator, &self.options().context).map_err(failed)?;
        let s3 = S3::open(config).await.map_err(failed)?;
        let path = locator.path();
        let path = path.trim_matches('/');
        let at_root = path.is_empty();
        let prefix = if at_root {
            String::new()
        } else {
            format!("{path}/")
        };
        let ours = |key: &str| {
            let key = key
                .strip_prefix(&*prefix)
                .and_then(|key| Key::new(key).ok());
            key.is_some_and(|key| neon_pagestore::is_bulk(&key))
        };
        let counted = if !abort {
            s3.stale_uploads(&prefix, OLD, ours).await
        } else if at_root {
            Ok(0)
        } else {
            s3.expire_uploads(&prefix, OLD, ours).await
        };
        let stale = match counted {
            // Some relatives of S3 do not list them.
            Err(error) if error.kind() == neon_storage::ErrorKind::Unsupported => 0,
            counted => counted.map_err(failed)?,
        };
        Ok(Uploads { stale, at_root })
    }

    #[cfg(not(feature = "s3"))]
    #[expect(clippy::unused_async, reason = "as with S3")]
    async fn uploads(&self, name: &Name, record: &StorageRecord, abort: bool) -> Result<Uploads> {
        let _ = (name, record, abort, Locator::parse);
        Ok(Uploads::default())
    }

    /// Aborts uploads that nobody completes any more, and lets go what is kept for nobody.
    pub(super) async fn settle_storages(
        &self,
        options: &DoctorOptions,
        fixed: &mut Vec<String>,
    ) -> Result<()> {
        for (name, record) in self.known_storages().0 {
            self.go_on()?;
            if options.offline && record.kind != StorageType::Native {
                continue;
            }
            let subject = format!("storage {name}");
            let missing =
                record.kind == StorageType::Native && !Path::new(&record.locator).is_dir();
            if !missing && record.kind != StorageType::Http {
                let settled =
                    tokio::time::timeout(PATIENCE, self.settle_pins(&name, options, fixed));
                match settled.await {
                    // The examination says what is left.
                    Ok(Ok(())) | Err(_) => {}
                    Ok(Err(error)) => self.tell(Event::Warning(with_causes(&error))),
                }
            }
            if options.offline || !options.settles("upload-left", &subject) {
                continue;
            }
            let aborted = tokio::time::timeout(PATIENCE, self.uploads(&name, &record, true));
            match aborted.await {
                Ok(Ok(Uploads { stale: 0, .. })) => {}
                Ok(Ok(Uploads { stale, .. })) => {
                    fixed.push(format!("{stale} uploads in {subject} are aborted"));
                }
                Ok(Err(error)) => self.tell(Event::Warning(with_causes(&error))),
                Err(_) => self.tell(Event::Warning(format!("{subject} did not answer"))),
            }
        }
        Ok(())
    }
}

/// When each writer with a lease was heard of last.
async fn beats(storage: &dyn Storage) -> neon_storage::Result<BTreeMap<String, SystemTime>> {
    let mut listing = storage.list(ListOptions::prefix(LEASES));
    let mut beats = BTreeMap::new();
    while let Some(object) = listing.try_next().await? {
        let key = object.key.as_str();
        let writer = key.rsplit_once('/').map_or(key, |(writer, _)| writer);
        let beat = beats.entry(writer.to_owned()).or_insert(object.modified);
        *beat = object.modified.max(*beat);
    }
    Ok(beats)
}
