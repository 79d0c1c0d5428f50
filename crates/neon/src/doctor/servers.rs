//! Servers: whether each does what it shall, can be started, and has nothing of ours left in it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};

use neon_pgctl::{Instance, ServerState};

use super::{DoctorOptions, Findings};
use crate::error::Result;
use crate::instances::{PgRecord, Stage};
use crate::neon::Neon;

/// Slots that nobody uses and that are named as ours are. Ours are temporary: they end with their session, and a restart of
/// the server does not bring them back. So one that is here was made to stay, by somebody else: it is told, and never dropped,
/// as its consumer's place in the log would be gone for good.
const SLOTS: &str = "select slot_name from pg_catalog.pg_replication_slots \
     where slot_type = 'physical' and not temporary and not active \
     and slot_name ~ '^neon_(backup|copy|import)_[0-9a-f]{12,16}$' order by 1";
/// Sessions of ours besides the one that asks.
const SESSIONS: &str = "select pid from pg_catalog.pg_stat_activity \
     where application_name = 'neon' and pid <> pg_catalog.pg_backend_pid() order by 1";
const ENCODINGS: &str = "select datname || ' (' || pg_catalog.pg_encoding_to_char(encoding) || ')' \
     from pg_catalog.pg_database where pg_catalog.pg_encoding_to_char(encoding) <> 'UTF8' \
     and datname <> 'template0' order by 1";

impl Neon {
    pub(super) async fn examine_servers(&self, findings: &mut Findings) {
        let records = self.readable_instances();
        ports(&records, findings);
        self.orphans(&records, findings);
        for record in records {
            self.shared(&record, findings);
            let settled = record.stage == Stage::Ready && record.checkout.is_none();
            let Some(_lock) = self.free(&record.name).filter(|_| settled) else {
                continue;
            };
            if self.pg().is_mounted(&record).is_ok()
                && self.pg().data_dir(&record).join("PG_VERSION").exists()
            {
                self.examine_server(&record, findings).await;
            }
        }
    }

    /// Tablespaces that two servers write into.
    fn shared(&self, record: &PgRecord, findings: &mut Findings) {
        for (place, other) in self.pg().shared_places(record).unwrap_or_default() {
            let name = &record.name;
            // Each pair once: of a replica, else of the later name.
            if record.replica.is_none() && name.as_str() < other.as_str() {
                continue;
            }
            findings
                .error(
                    "tablespace-shared",
                    format!("pg {name}"),
                    format!(
                        "has a tablespace in {}, where pg {other} writes: both lose data",
                        place.display()
                    ),
                )
                .hinted(format!(
                    "neon pg stop {name} at once, then neon pg destroy {name}, which leaves that folder alone; \
                     check {other} with neon snapshot create and neon snapshot verify"
                ));
        }
    }

    /// Replicas whose primary is no instance any more.
    fn orphans(&self, records: &[PgRecord], findings: &mut Findings) {
        for record in records {
            let Some(of) = &record.replica else { continue };
            // One whose record cannot be read is told of elsewhere.
            let unread = || {
                let named = records.iter().any(|known| known.name == of.name);
                !named && self.pg().record(&of.name).exists()
            };
            if records.iter().any(|known| known.id == of.id) || unread() {
                continue;
            }
            let name = &record.name;
            findings
                .warning(
                    "replica-orphaned",
                    format!("pg {name}"),
                    format!("is a replica of {}, which was destroyed: nothing comes to it any more", of.name),
                )
                .hinted(format!(
                    "neon undo brings {} back if it is in the trash; else neon pg destroy {name}, whose data neon snapshot create {name}@TAG keeps",
                    of.name
                ));
        }
    }

    async fn examine_server(&self, record: &PgRecord, findings: &mut Findings) {
        let name = &record.name;
        let subject = format!("pg {name}");
        let instance = match self.pg().open(record).await {
            Ok(instance) => instance,
            Err(error) => return findings.failed("postgresql-missing", subject, &error),
        };
        let status = match instance.status().await {
            Ok(status) => status,
            Err(error) => {
                let error = crate::Error::server(subject.clone(), error);
                return findings.failed("server-unknown", subject, &error);
            }
        };
        let ours = record.adopted.is_none();
        let stale = !status.is_up() && instance.data_dir().join("postmaster.pid").exists();
        match (status.is_up(), record.wanted) {
            (false, true) => {
                let message = if stale {
                    "shall run and does not: its server was killed"
                } else {
                    "shall run and does not"
                };
                findings
                    .warning("server-down", subject, message)
                    .hinted(format!(
                        "neon pg start {name}, or neon start for all of them"
                    ));
                port_taken(record, findings);
                return;
            }
            (false, false) => {
                if stale {
                    findings
                        .info(
                            "pid-file-stale",
                            subject,
                            "has the pid file of a server that was killed",
                        )
                        .hinted("the next start removes it");
                } else if status.state == ServerState::Crashed && ours {
                    findings
                        .info(
                            "server-crashed",
                            subject,
                            "was not shut down cleanly; its next start recovers it",
                        )
                        .hinted(format!("neon pg start {name}"));
                }
                return;
            }
            (true, false) if ours => {
                findings
                    .warning(
                        "server-unwanted",
                        subject.clone(),
                        "runs, and a reboot would not bring it back: a start was killed, or it was started by other means",
                    )
                    .fixable()
                    .hinted(format!(
                        "neon doctor --fix to keep it running, or neon pg stop {name}"
                    ));
            }
            (true, _) => {}
        }
        if !matches!(status.state, ServerState::Running | ServerState::Standby) {
            findings.info(
                "server-busy",
                subject,
                "its server starts or stops right now",
            );
            return;
        }
        self.ask(&instance, &subject, findings).await;
    }

    async fn ask(&self, instance: &Instance, subject: &str, findings: &mut Findings) {
        let queries = [
            (SLOTS, "slot-left"),
            (SESSIONS, "session-left"),
            (ENCODINGS, "encoding"),
        ];
        let answers = match columns(instance, queries.map(|(query, _)| query)).await {
            Ok(answers) => answers,
            Err(error) => return findings.failed("server-silent", subject, &error),
        };
        for ((_, code), values) in queries.into_iter().zip(answers) {
            for value in values {
                match code {
                    "slot-left" => findings
                        .warning(
                            code,
                            subject,
                            format!(
                                "replication slot {value} is used by nobody, and keeps log; \
                                 it is named as ours are, and ours end with their sessions"
                            ),
                        )
                        .hinted(format!(
                            "if nobody comes back to it: select pg_drop_replication_slot('{value}')"
                        )),
                    // What we begin on a server ends with its session, and sessions of dead processes end.
                    "session-left" => findings
                        .info(
                            code,
                            subject,
                            format!("a session of ours (process {value}) is open"),
                        )
                        .hinted("it ends with the program that opened it"),
                    _ => findings
                        .warning(code, subject, format!("database {value} is not in UTF-8"))
                        .hinted("text of other alphabets is refused or mangled in it"),
                };
            }
        }
    }

    /// Remembers that what runs shall run. Nothing is changed in a server.
    pub(super) async fn settle_servers(
        &self,
        options: &DoctorOptions,
        fixed: &mut Vec<String>,
    ) -> Result<()> {
        for record in self.readable_instances() {
            self.go_on()?;
            if !options.settles("server-unwanted", &format!("pg {}", record.name)) {
                continue;
            }
            let settled = record.stage == Stage::Ready && record.checkout.is_none();
            let Some(_lock) = self.free(&record.name).filter(|_| settled) else {
                continue;
            };
            let name = &record.name;
            let Ok(instance) = self.pg().open(&record).await else {
                continue;
            };
            let Ok(status) = instance.status().await else {
                continue;
            };
            if !status.is_up() {
                continue;
            }
            if !record.wanted && record.adopted.is_none() {
                self.pg().update(name, |record| {
                    record.wanted = true;
                    record.port = status.port.or(record.port);
                })?;
                fixed.push(format!("pg {name} is remembered as running"));
            }
        }
        Ok(())
    }
}

/// The first column of each answer of a server, asked in one session: of two, the second could still see the first.
async fn columns<const N: usize>(
    instance: &Instance,
    queries: [&str; N],
) -> Result<Vec<Vec<String>>> {
    let subject = || instance.data_dir().display().to_string();
    let client = instance.connect("postgres").await;
    let mut client = client.map_err(|error| crate::Error::server(subject(), error))?;
    let mut answers = Vec::new();
    for query in queries {
        match client.simple_query(query).await {
            Ok(sets) => {
                let rows = sets.first().map_or(&[][..], |set| set.rows());
                let values = rows.iter().filter_map(|row| row.get(0).map(str::to_owned));
                answers.push(values.collect());
            }
            Err(error) => {
                client.close().await;
                return Err(crate::Error::wire(subject(), error));
            }
        }
    }
    client.close().await;
    Ok(answers)
}

/// Instances that were given the same port.
fn ports(records: &[PgRecord], findings: &mut Findings) {
    let mut by_port: BTreeMap<u16, Vec<&str>> = BTreeMap::new();
    for record in records {
        if let Some(port) = record.port {
            by_port.entry(port).or_default().push(record.name.as_str());
        }
    }
    for (port, names) in by_port.into_iter().filter(|(_, names)| names.len() > 1) {
        findings
            .warning(
                "port-shared",
                format!("port {port}"),
                format!(
                    "belongs to {}: one of them runs at a time",
                    names.join(", ")
                ),
            )
            .hinted("neon pg start PGDATA --port N gives one of them another, once it is stopped");
    }
}

/// Whether somebody else listens where an instance that shall run would.
fn port_taken(record: &PgRecord, findings: &mut Findings) {
    let Some(port) = record.port else { return };
    if let Err(error) = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        && error.kind() == std::io::ErrorKind::AddrInUse
    {
        findings
            .error(
                "port-taken",
                format!("pg {}", record.name),
                format!("somebody else listens on its port {port}"),
            )
            .hinted(format!("ss -ltnp 'sport = :{port}' tells who"));
    }
}
