//! What a checkout would do, and what would be lost: found out without a change.

use std::path::Path;

use neon_pagestore::{CommitId, SnapshotName};
use neon_pg_layout::{Lsn, WalLevel};
use neon_pgctl::{Instance, ServerState};
use neon_pgwire::Client;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::instances::checkout::compare::Compare;
use crate::instances::heads::head_name;
use crate::instances::restore::read_control;
use crate::instances::{Instances, PgRecord, archived};
use crate::name::Name;
use crate::snapshots::{Found, redo};

/// How an instance goes back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CheckoutChoice {
    /// With the configuration and the certificates of the snapshot. Without it those of today stay.
    #[serde(default)]
    pub configuration: bool,
    /// How it is found out which pages to rewrite.
    #[serde(default, skip_serializing_if = "Compare::is_auto")]
    pub compare: Compare,
    /// Whether the plan says how much of a stopped instance will be rewritten, for which it reads all of it.
    #[serde(skip)]
    pub measure: bool,
}

/// What a checkout would do, and what would be lost. Nothing is changed by making one.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct CheckoutPlan {
    /// The instance.
    pub pg: Name,
    /// The id of the instance, which an execution insists on.
    pub id: String,
    /// What the snapshot was asked for as.
    pub asked: String,
    /// The snapshot.
    pub snapshot: CommitId,
    /// The storage that it is read from.
    pub storage: Name,
    /// When it was taken, in seconds since 1970.
    pub taken: i64,
    /// Whether it shows another instance of the same cluster: a clone, or what this one was cloned from.
    pub of_another: bool,
    /// What the present state will be called.
    pub head: SnapshotName,
    /// Whether its server runs; it is started again then.
    pub running: bool,
    /// Sessions that will be ended.
    pub sessions: u64,
    /// Replication slots, all of which go: a snapshot has none.
    pub slots: Vec<String>,
    /// Subscriptions of today. Those that the snapshot has too go on from where they were then; what their publishers
    /// have dropped since does not come back.
    pub subscriptions: Vec<String>,
    /// Transactions that are prepared and not ended.
    pub prepared: Vec<String>,
    /// Segments of log that were not archived yet. They are kept beside the instance, in `wal-kept`.
    pub unarchived: u64,
    /// Replicas that follow it now and cannot afterwards.
    pub replicas: Vec<String>,
    /// Bytes of log that were written since the snapshot, where both are of one history.
    pub log_since: Option<u64>,
    /// How often the server has found a page with a wrong checksum.
    #[serde(skip)]
    pub(super) failures: u64,
    /// Bytes that will be rewritten; known only of a stopped instance, and [if asked](CheckoutChoice::measure).
    pub rewrite: Option<u64>,
    /// Bytes of the snapshot: no more than this is compared, or rewritten.
    pub size: u64,
    #[serde(skip)]
    pub(crate) choice: CheckoutChoice,
    #[serde(skip)]
    pub(crate) found: Found,
}

impl Instances<'_> {
    /// What going back to a snapshot would do to an instance, and what would be lost.
    ///
    /// # Errors
    /// [`NotFound`](ErrorKind::NotFound); [`Invalid`](ErrorKind::Invalid) for a snapshot of another cluster, or an instance
    /// that is a replica, or runs with `wal_level=minimal`; [`Busy`](ErrorKind::Busy).
    pub async fn plan_checkout(
        &self,
        name: &Name,
        to: &Found,
        choice: CheckoutChoice,
    ) -> Result<CheckoutPlan> {
        let _lock = self.lock(name).await?;
        Box::pin(self.settle(name)).await?;
        let record = self.known(name)?;
        is_ours(&record)?;
        let snapshot = to.open().await?;
        let instance = self.open(&record).await?;
        let facts = snapshot.facts();
        let status = self.settled_status(&instance, name).await?;
        let control = read_control(instance.data_dir())?;
        let subject = to.subject();
        if facts.cluster.system != control.system_identifier {
            return Err(Error::new(
                ErrorKind::Invalid,
                subject,
                format!("is of another cluster than pg {name}"),
            )
            .hinted(format!("neon pg create --snapshot {}", to.asked)));
        }
        if choice.configuration && facts.instance.as_ref() != Some(&record.id) {
            return Err(Error::new(
                ErrorKind::Invalid,
                subject,
                format!("is of another instance, in whose name pg {name} would act with its configuration"),
            )
            .hinted("go back to it without its configuration"));
        }
        if facts.cluster.major != instance.major() {
            return Err(Error::new(
                ErrorKind::Invalid,
                subject,
                format!("is of PostgreSQL {}", facts.cluster.major),
            ));
        }
        let Some(storage) = to.repository.name.clone() else {
            return Err(Error::new(
                ErrorKind::Invalid,
                subject,
                "is in a storage that is not attached",
            )
            .hinted("attach the storage, or pull the snapshot, first"));
        };
        if status.state == ServerState::Standby
            || instance.data_dir().join("standby.signal").exists()
        {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("pg {name}"),
                "is a replica, which shows what its primary shows",
            )
            .hinted("check out its primary, or promote it first"));
        }
        redo::can_be_replayed(&snapshot, &subject).await?;
        if redo::is_minimal(&snapshot, &subject).await? {
            return Err(Error::new(
                ErrorKind::Invalid,
                subject,
                "was taken with wal_level=minimal: nothing takes it to a new timeline",
            )
            .hinted("make an instance of it: `neon pg create --snapshot`"));
        }
        if control.settings.wal_level == WalLevel::Minimal {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("pg {name}"),
                "runs with wal_level=minimal: nothing could take it back to the state that it is in now",
            )
            .hinted("set wal_level = replica and restart it; then roll back"));
        }
        if choice.compare == Compare::Map
            && !(control.data_checksums || control.settings.wal_log_hints)
        {
            return Err(not_by_map(
                name,
                "hints on pages are not logged: page checksums and wal_log_hints are off",
            ));
        }
        let created = redo::of_snapshot(&snapshot, &subject).await?;
        redo::refuse(&created, Some(instance.data_dir()), &subject)?;
        let mut plan = CheckoutPlan {
            pg: name.clone(),
            id: record.id.clone(),
            asked: to.asked.clone(),
            snapshot: to.id,
            storage,
            taken: facts.taken,
            of_another: facts.instance.as_ref().is_some_and(|id| *id != record.id),
            head: head_name(name, self.next_head(&record).await?),
            running: status.is_up(),
            sessions: 0,
            slots: Vec::new(),
            subscriptions: Vec::new(),
            prepared: Vec::new(),
            unarchived: archived::missing(instance.data_dir()).len() as u64,
            replicas: Vec::new(),
            log_since: None,
            failures: 0,
            rewrite: None,
            size: facts.cost.bytes,
            choice,
            found: to.clone(),
        };
        let known = facts
            .log
            .timelines
            .iter()
            .any(|step| step.timeline == control.checkpoint.timeline);
        let client = match plan.running {
            true => self.connect_to(&instance, name).await?,
            false => None,
        };
        let answer = match client {
            Some(client) => self.answer(client, &instance, name, &mut plan).await?,
            None => None,
        };
        plan.running = answer.is_some();
        if let Some(now) = answer {
            plan.log_since = now
                .zip(facts.log.stop)
                .filter(|_| known)
                .and_then(|(now, then)| now.0.checked_sub(then.0));
        } else {
            // By who ended meanwhile.
            let control = read_control(instance.data_dir())?;
            plan.slots = stored_slots(instance.data_dir());
            let now = control.checkpoint_location;
            plan.log_since = facts
                .log
                .stop
                .filter(|_| known)
                .and_then(|then| now.0.checked_sub(then.0));
            if choice.measure && control.state.is_clean() {
                let compared = self.compare(&record, &instance, &snapshot, choice, None);
                plan.rewrite = Some(compared.await?.plan.bytes);
            }
        }
        // Also those that are not connected now, or of a primary that does not run.
        for replica in self.replicas_of(&record)? {
            if !plan.replicas.iter().any(|known| known == replica.as_str()) {
                plan.replicas.push(replica.to_string());
            }
        }
        plan.replicas.sort_unstable();
        Ok(plan)
    }

    /// Nothing when the server has ended since it was looked at.
    async fn connect_to(&self, instance: &Instance, name: &Name) -> Result<Option<Client>> {
        let error = match instance.connect("postgres").await {
            Ok(client) => return Ok(Some(client)),
            Err(error) => error,
        };
        match self.settled_status(instance, name).await?.is_up() {
            true => Err(Error::server(format!("pg {name}"), error)),
            false => Ok(None),
        }
    }

    /// What the server tells, and how far its log is; nothing when it ended before it could.
    async fn answer(
        &self,
        client: Client,
        instance: &Instance,
        name: &Name,
        plan: &mut CheckoutPlan,
    ) -> Result<Option<Option<Lsn>>> {
        let error = match ask(client, name, plan).await {
            Ok(now) => return Ok(Some(now)),
            Err(error) => error,
        };
        match self.settled_status(instance, name).await?.is_up() {
            true => Err(error),
            false => Ok(None),
        }
    }
}

/// Who asked for maps alone gets no other way.
pub(super) fn not_by_map(name: &Name, reason: &str) -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!("pg {name}"),
        "cannot be compared by maps",
    )
    .caused_by(reason.to_owned())
    .hinted("without --compare map every page is compared")
}

/// What is adopted is not changed.
pub(crate) fn is_ours(record: &PgRecord) -> Result<()> {
    if record.adopted.is_none() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        format!("pg {}", record.name),
        "was adopted, and what is adopted is not changed",
    )
    .hinted("make an instance of the snapshot: `neon pg create --snapshot`"))
}

/// What only the server can tell of what would be lost, and how far its log is.
async fn ask(mut client: Client, name: &Name, plan: &mut CheckoutPlan) -> Result<Option<Lsn>> {
    let failed = |error| {
        Error::new(ErrorKind::Failed, format!("pg {name}"), "cannot be asked").caused_by(error)
    };
    let asked = client
        .simple_query(
            "select count(*) from pg_catalog.pg_stat_activity \
             where backend_type = 'client backend' and pid <> pg_backend_pid(); \
             select slot_name from pg_catalog.pg_replication_slots where not temporary order by 1; \
             select subname from pg_catalog.pg_subscription order by 1; \
             select gid from pg_catalog.pg_prepared_xacts order by 1; \
             select application_name from pg_catalog.pg_stat_replication order by 1; \
             select pg_catalog.pg_current_wal_insert_lsn(); \
             select coalesce(sum(checksum_failures), 0)::bigint from pg_catalog.pg_stat_database",
        )
        .await
        .map_err(failed)?;
    client.close().await;
    let column = |place: usize| -> Vec<String> {
        let rows = asked.get(place).map_or(&[][..], |set| set.rows());
        rows.iter()
            .filter_map(|row| row.get(0).map(str::to_owned))
            .collect()
    };
    plan.sessions = column(0).first().and_then(|n| n.parse().ok()).unwrap_or(0);
    plan.slots = column(1);
    plan.subscriptions = column(2);
    plan.prepared = column(3);
    plan.replicas = column(4);
    plan.failures = column(6).first().and_then(|n| n.parse().ok()).unwrap_or(0);
    Ok(column(5).first().and_then(|text| text.parse().ok()))
}

/// The slots of a stopped cluster: a folder each.
fn stored_slots(data: &Path) -> Vec<String> {
    let mut found: Vec<String> = std::fs::read_dir(data.join("pg_replslot"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    found.sort_unstable();
    found
}
