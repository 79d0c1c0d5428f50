//! What became of a directory between two steps of a checkout: a machine that comes up again, a service manager or a
//! person may start a server on it, and people may commit on that.

use std::path::Path;
use std::time::{Duration, Instant};

use neon_pagestore::CommitId;
use neon_pagestore::read::Snapshot;
use neon_pg_layout::ClusterState;
use neon_pgctl::{Instance, Quiet};
use neon_snapshot_format::SnapshotPath;

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::checkout::UnderWay;
use crate::instances::heads::{Head, head_name};
use crate::instances::restore::read_control;
use crate::instances::{Instances, PgRecord};
use crate::name::Name;
use crate::operation::seconds;
use crate::snapshots::ParentChoice;
use crate::snapshots::create::{CreateSnapshot, take_locked};

const CONTROL: &str = "global/pg_control";
const CONTROL_SIZE: u64 = 8192;
/// A guardian ends the server of a recovery as soon as the command that began it is gone.
const GUARDIANS_MAY_TAKE: Duration = Duration::from_secs(20);

/// A control file, to be told from others: each state of a cluster has its own.
pub(super) fn mark(control: &[u8]) -> String {
    let hash = control
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{hash:016x}")
}

/// The mark of a directory; none while it is being rewritten.
pub(super) fn mark_in(data: &Path) -> Option<String> {
    std::fs::read(data.join(CONTROL))
        .ok()
        .map(|control| mark(&control))
}

/// The mark of a directory that was just made a snapshot.
pub(super) async fn mark_of(snapshot: &Snapshot) -> Option<String> {
    let path = SnapshotPath::new(CONTROL).ok()?;
    let control = snapshot.read_range(&path, 0..CONTROL_SIZE).await.ok()?;
    Some(mark(&control))
}

impl Instances<'_> {
    /// Waits until a server is gone whose start was given up, as by a command that was killed: it is up, and will not be.
    pub(super) async fn nobody_gives_up(&self, instance: &Instance) {
        let begun = Instant::now();
        while instance.is_guarded() && begun.elapsed() < GUARDIANS_MAY_TAKE {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits for what we started and what is left of a server that died. Servers of others are never ended.
    pub(super) async fn nobody_runs(&self, instance: &Instance, name: &Name) -> Result<()> {
        let data = instance.data_dir();
        let begun = Instant::now();
        loop {
            let held = Quiet::hold(data, Duration::from_secs(60)).await;
            let error = match held {
                Ok(_quiet) => {
                    self.sweep_runs(instance);
                    // What is left of the file is an obstacle and no more.
                    return crate::record::remove(&data.join("postmaster.pid"));
                }
                Err(error) => error,
            };
            if error.kind() != neon_pgctl::ErrorKind::AlreadyRunning {
                return Err(Error::server(format!("pg {name}"), error));
            }
            if begun.elapsed() > GUARDIANS_MAY_TAKE {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("pg {name}"),
                    "has a server that somebody started in the middle of a checkout",
                )
                .hinted("stop it with pg_ctl, and try again: what was written meanwhile is kept as a HEAD")
                .caused_by(error));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Removes folders of recoveries whose command was killed before its guardian knew of them.
    fn sweep_runs(&self, instance: &Instance) {
        let sockets = instance.socket_dir();
        if !sockets.starts_with(self.0.home().path()) {
            return;
        }
        for entry in std::fs::read_dir(sockets).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let random = name.to_str().and_then(|name| name.strip_prefix('r'));
            let ours = random.is_some_and(|random| {
                random.len() == 12 && random.bytes().all(|byte| byte.is_ascii_hexdigit())
            });
            if ours {
                // What cannot be removed is in nobody's way.
                drop(std::fs::remove_dir_all(entry.path()));
            }
        }
    }

    /// Takes a snapshot of a half checked out directory if a server may have served from it since we left it.
    pub(super) async fn save_strangers(
        &self,
        record: &PgRecord,
        instance: &Instance,
        under_way: &UnderWay,
    ) -> Result<Option<CommitId>> {
        let data = instance.data_dir();
        let Some(mark) = mark_in(data) else {
            return Ok(None);
        };
        let recovering = matches!(
            read_control(data)?.state,
            ClusterState::InArchiveRecovery | ClusterState::ShutDownInRecovery
        );
        // Without any mark nobody knows whose state it is.
        if recovering || under_way.marks.contains(&mark) {
            return Ok(None);
        }
        let name = &record.name;
        let number = self
            .next_head(record)
            .await?
            .max(under_way.head.saturating_add(1));
        let head = head_name(name, number);
        let wanted = CreateSnapshot {
            allow_bad_pages: true,
            // Nobody knows what it has in common with what.
            parent: ParentChoice::None,
            ..CreateSnapshot::new(head.clone())
        };
        let taken = Box::pin(take_locked(self.0, record, &wanted)).await?;
        let now = seconds(self.0.now());
        self.update(name, |record| {
            record.checkouts = record.checkouts.max(number.saturating_add(1));
            record.heads.push(Head {
                number,
                snapshot: taken.id,
                storage: taken.storage.clone(),
                taken: now,
                lineage: None,
            });
        })?;
        self.0.tell(Event::Warning(format!(
            "A server ran on pg {name} in the middle of its checkout; what it left is in {head} (id {}).",
            taken.id
        )));
        Ok(Some(taken.id))
    }
}
