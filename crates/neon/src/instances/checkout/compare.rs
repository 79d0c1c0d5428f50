//! How a checkout finds out which pages to rewrite: by the maps of `HEAD{i}` and of the target, where that is proven to be
//! enough, and else by reading every page.
//!
//! By maps, a page is left alone when `HEAD{i}` and the target show the same of it. That is right if the directory holds what
//! `HEAD{i}` shows. When is that so?
//! - `HEAD{i}` was taken in this checkout, of the stopped cluster. Where all pages were read for it (it has no parent, or
//!   was compared with it by a scan), it is what is on disk.
//! - Where the log or summaries told what changed, its other pages are those of its parent. They are what is on disk but for
//!   what is in no log: hints (where they are not logged), maps of free space and visibility, unlogged relations, the cache of
//!   an SP-GiST index, what is no relation. [`RestorePlan::by_map`] takes none of these from the maps but hints. So hints must
//!   have been logged *all the time*: a hint newer than the target shows rows of transactions that it does not know.
//!   The control files before and after do not tell (`pg_checksums` turns checksums off and on again), so the log has to
//!   show it of every run of a server, see [`HintLogging`]: from the target on, if this lineage is its own, for a hint that is
//!   older than the target is true there (it may stay on disk although the target's map lacks it, so nobody goes back further
//!   on the strength of this); else from where the directory was handed over when this lineage began, if it was made equal to
//!   what it began with then, in every hint.
//! - Summaries may be of another log: somebody put back an older copy of the cluster and left them in place. What the log
//!   itself names is rewritten, whatever the maps say.
//! - After a crash the log from the last checkpoint on is not in the set of changes (replay repeats it), so the directory may
//!   be newer than `HEAD{i}`. The same of a cluster that was stopped while it recovered. Then by content.
//! - What changed after `HEAD{i}` shows in the control file (a server ran), in the time or size of a file, or in the marks
//!   of the checkout. What a resumed checkout finds is nobody's state, and is always compared by content.
//!
//! What this believes and a comparison by content does not: that the disk still holds what was written, and that nobody
//! edits pages behind the server's back without changing the time of the file. Where `HEAD{i}` or the server found a damaged
//! page, nothing is believed.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use neon_pagestore::Facts;
use neon_pagestore::changes::{
    Child, HintLogging, NamedPages, Parent, SegmentDirectory, SourceKind, Span, read_tail,
};
use neon_pagestore::read::Snapshot;
use neon_pagestore::restore::{RestoreOptions, RestorePlan};
use neon_pg_layout::{ClusterState, Lsn};
use neon_pgctl::Instance;
use neon_snapshot_format::SnapshotKind;
use neon_snapshot_format::pgdata::ExistingDirectory;
use serde::{Deserialize, Serialize};

use crate::background;
use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::checkout::keep::Keep;
use crate::instances::checkout::plan::{self, CheckoutChoice, CheckoutPlan};
use crate::instances::restore::read_control;
use crate::instances::{Instances, PgRecord};

/// How a checkout finds out which pages to rewrite.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Compare {
    /// By the maps of two snapshots where that is proven to be right, else by content.
    #[default]
    Auto,
    /// Every page is read: right whatever happened to the directory, and repairs what a disk did to it.
    Content,
    /// By maps, or not at all.
    Map,
}

impl Compare {
    /// The word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Content => "content",
            Self::Map => "map",
        }
    }

    pub(super) const fn is_auto(&self) -> bool {
        matches!(self, Self::Auto)
    }
}

impl fmt::Display for Compare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for Compare {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Auto, Self::Content, Self::Map];
        let found = all.into_iter().find(|way| way.name() == text);
        found.ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                format!("comparison {text}"),
                "is not known",
            )
            .hinted("auto, content or map")
        })
    }
}

/// Where a server that ran just before a checkout was seen to log hints: a position in its log.
pub(super) fn seen_running(data: &Path) -> Option<Lsn> {
    let control = read_control(data).ok()?;
    let logs = control.data_checksums || control.settings.wal_log_hints;
    (logs && control.state == ClusterState::InProduction).then_some(control.checkpoint_location)
}

/// Where the clean stop is that a directory is left with for others.
pub(crate) fn handed_over(data: &Path) -> Result<Option<String>> {
    let control = read_control(data)?;
    let clean = control.state == ClusterState::ShutDown;
    Ok(clean.then(|| control.checkpoint_location.to_string()))
}

/// What is known when a checkout has taken `HEAD{i}`.
#[derive(Debug)]
pub(super) struct Grounds {
    pub(super) record: PgRecord,
    pub(super) target: Snapshot,
    pub(super) head: Snapshot,
    /// Whether both are in one storage.
    pub(super) together: bool,
    pub(super) running: Option<Lsn>,
    /// Whether the server has found pages with wrong checksums.
    pub(super) failures: bool,
}

/// So much log is read in a moment, however small the cluster is.
const LITTLE_LOG: u64 = 64 << 20;

/// That maps tell which pages differ.
#[derive(Debug)]
pub(crate) struct Proof {
    /// What the log names, whatever the maps say.
    pub(crate) named: Option<NamedPages>,
    /// Whether the directory then is the target in every hint, as after a comparison by content: what goes back further,
    /// from the lineage that begins with it, may rely on that.
    pub(crate) exact: bool,
}

/// How a directory becomes a snapshot.
#[derive(Debug)]
pub(crate) struct Compared {
    pub(crate) directory: ExistingDirectory,
    pub(crate) plan: RestorePlan,
    /// Whether it then is the snapshot in every hint.
    pub(crate) exact: bool,
}

impl Grounds {
    /// Why the maps do not tell which pages differ; nothing when they do. Reads the log; blocks.
    ///
    /// # Errors
    /// [`Cancelled`](ErrorKind::Cancelled).
    pub(super) fn proof(
        &self,
        pg_wal: &Path,
        stop: &AtomicBool,
    ) -> Result<std::result::Result<Proof, String>> {
        if let Some(reason) = self.excluded() {
            return Ok(Err(reason));
        }
        let head = self.head.facts();
        if was_read(head) && head.cluster.checksum_version != 0 {
            let (named, exact) = (None, true);
            return Ok(Ok(Proof { named, exact }));
        }
        let (logging, exact) = match self.logging(pg_wal) {
            Ok(found) => found,
            Err(reason) => return Ok(Err(reason)),
        };
        // It is read by one thread, while no server runs.
        if logging.bytes() > (self.target.facts().cost.bytes / 4).max(LITTLE_LOG) {
            return Ok(Err(
                "there is so much log since then that pages are read faster".to_owned(),
            ));
        }
        let logging = match self.running {
            Some(position) => logging.seen_at(position),
            None => logging,
        };
        let go_on = || match stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let shown = logging.check(&mut SegmentDirectory::new(pg_wal), go_on);
        let shown =
            shown.map_err(|error| Error::repository(format!("pg {}", self.record.name), error))?;
        let proof = |named| Proof {
            named: Some(named),
            exact,
        };
        Ok(shown.map(proof).map_err(|reason| reason.to_string()))
    }

    /// What speaks against the maps without a look at the log.
    fn excluded(&self) -> Option<String> {
        let (head, target) = (self.head.facts(), self.target.facts());
        let logs =
            |facts: &Facts| facts.cluster.checksum_version != 0 || facts.cluster.wal_log_hints;
        let reason = if !self.together {
            "the snapshot is in another storage than the state before"
        } else if head.kind != SnapshotKind::Cold {
            "the server was not stopped cleanly, or in the middle of a recovery"
        } else if !(logs(head) && logs(target)) {
            "hints on pages are not logged: page checksums and wal_log_hints are off, or were"
        } else if head.cluster.checksum_version != target.cluster.checksum_version {
            "page checksums were switched since the snapshot"
        } else if head.hints_may_be_older || target.hints_may_be_older {
            "hints on pages may be missing from a snapshot"
        } else if !head.bad_pages.is_empty() || self.failures {
            "pages of the cluster are damaged"
        } else {
            return None;
        };
        Some(reason.to_owned())
    }

    /// The log in which hints must be, and whether a directory without others is all that the target shows; or why there is
    /// none.
    fn logging(&self, pg_wal: &Path) -> std::result::Result<(HintLogging, bool), String> {
        let (head, target) = (self.head.facts(), self.target.facts());
        let text = |error: &dyn fmt::Display| error.to_string();
        let here = Parent::recorded(self.head.id(), head).map_err(|reason| text(&reason))?;
        let own = target.instance.as_ref() == Some(&self.record.id);
        let usual = matches!(target.kind, SnapshotKind::Cold | SnapshotKind::Online);
        if own && usual && target.lineage.is_some() && target.lineage == head.lineage {
            let then =
                Parent::recorded(self.target.id(), target).map_err(|reason| text(&reason))?;
            let tail = read_tail(
                here.cluster.wal_segment_size,
                &here.history,
                then.stop,
                &mut SegmentDirectory::new(pg_wal),
            );
            let child = Child {
                lineage: here.lineage,
                base: None,
                cluster: here.cluster,
                history: here.history,
                redo: here.redo,
                clean_stop: true,
                tail: tail.ok(),
            };
            let span = Span::between(&then, &child).map_err(|reason| text(&reason))?;
            let logging = HintLogging::between(&span);
            // Its control file was read while the server ran whose log this is.
            let logging = match target.kind {
                SnapshotKind::Online => logging.seen_at(span.start()),
                _ => logging,
            };
            // A hint that is older than the target stays where it is, though the target's map may not have it: unless every
            // page was read for the target, when no older hint was anywhere else.
            return Ok((logging, was_read(target)));
        }
        if head.cluster.checksum_version == 0 {
            // The servers that ran before it was handed over had settings of their own.
            return Err(
                "the snapshot is of another history of the log, and page checksums are off"
                    .to_owned(),
            );
        }
        let base = self.record.base.as_ref();
        let start = base.and_then(|base| base.handed_over.as_ref()?.parse().ok());
        let Some(start) = start.filter(|_| head.lineage == Some(self.record.lineage)) else {
            return Err("the snapshot is of another history of the log".to_owned());
        };
        // What it was handed over with is what it was made of.
        let mut cluster = here.cluster;
        cluster.wal_log_hints = false;
        let logging = HintLogging::new(cluster, here.history, start, here.redo);
        Ok((logging, true))
    }
}

/// Whether a comparison was by maps; if not, why not, where it was to be.
pub(super) type ByMap = std::result::Result<(), Option<String>>;

impl Instances<'_> {
    /// Compares what is there with the target of a plan, by maps where that is right. Beside the result, why not by maps,
    /// unless by content was asked for. Changes nothing.
    pub(super) async fn compare_best(
        &self,
        instance: &Instance,
        grounds: Grounds,
        plan: &CheckoutPlan,
    ) -> Result<(Compared, ByMap)> {
        let (record, target) = (grounds.record.clone(), grounds.target.clone());
        let head = grounds.head.clone();
        let mut reason = None;
        if plan.choice.compare != Compare::Content {
            let pg_wal = instance.data_dir().join("pg_wal");
            let subject = format!("pg {}", record.name);
            let lock = self.writing(&record.name);
            let judged = background::run(
                self.0,
                &subject,
                lock,
                || (),
                move |stop| grounds.proof(&pg_wal, &stop),
            );
            let why_not = match judged.await? {
                Ok(proof) => {
                    let present = Some((head, proof));
                    let compared = self.compare(&record, instance, &target, plan.choice, present);
                    match compared.await {
                        Ok(compared) => return Ok((compared, Ok(()))),
                        Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
                        // Something else would come up again.
                        Err(error) => error.to_string(),
                    }
                }
                Err(reason) => reason,
            };
            if plan.choice.compare == Compare::Map {
                return Err(plan::not_by_map(&record.name, &why_not));
            }
            reason = Some(why_not);
        }
        if let Some(reason) = &reason {
            self.0.tell(Event::Note(format!(
                "Every page of {} is compared: {reason}.",
                record.name
            )));
        }
        let compared = self.compare(&record, instance, &target, plan.choice, None);
        Ok((compared.await?, Err(reason)))
    }

    /// Compares what is there with a snapshot, page by page, or by maps if it holds what another snapshot shows. Changes
    /// nothing.
    pub(crate) async fn compare(
        &self,
        record: &PgRecord,
        instance: &Instance,
        snapshot: &Snapshot,
        choice: CheckoutChoice,
        present: Option<(Snapshot, Proof)>,
    ) -> Result<Compared> {
        let subject = format!("pg {}", record.name);
        let name = &record.name;
        let keep = Keep::of(instance, choice);
        let (data, major) = (instance.data_dir().to_owned(), instance.major());
        let snapshot = snapshot.clone();
        let mut options = RestoreOptions::default();
        options.threads = self.0.options().threads;
        let about = subject.clone();
        background::run(
            self.0,
            &subject,
            self.writing(name),
            || (),
            move |cancel| {
                options.cancel = cancel;
                let directory = ExistingDirectory::open(&data, major)
                    .map_err(|error| Error::format(about.clone(), error))?;
                let keeps = |path: &_| keep.keeps(path);
                let plan = match &present {
                    Some((present, proof)) => {
                        let named = proof.named.as_ref();
                        RestorePlan::by_map(&snapshot, present, named, &directory, &keeps, &options)
                    }
                    None => RestorePlan::by_content(&snapshot, &directory, &keeps, &options),
                };
                let mut plan = plan.map_err(|error| Error::repository(about, error))?;
                // Those that are not here any more do not come back.
                let entries = directory.entries().iter();
                let here: BTreeSet<_> = entries.map(|entry| &entry.path).collect();
                plan.files
                    .retain(|path, _| keep.comes_back(path) || here.contains(path));
                let exact = present.is_none_or(|(_, proof)| proof.exact);
                Ok(Compared {
                    directory,
                    plan,
                    exact,
                })
            },
        )
        .await
    }
}

/// Whether every page was read for it.
fn was_read(facts: &Facts) -> bool {
    match &facts.cost.source {
        None => facts.parent.is_none(),
        Some(source) => source == SourceKind::Scan.name(),
    }
}
