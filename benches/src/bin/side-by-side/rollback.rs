//! Back to a snapshot: from a server that runs on changed data to one that runs on the old, and takes writes.

use std::path::{Path, PathBuf};

use crate::changes::{Change, Place as Where};
use crate::contest::{ROLLBACK, Results, Sample};
use crate::measure::{Job, measured};
use crate::ours::{Home, Ours, ZSTD};
use crate::pgbackrest::Pgbackrest;
use crate::restic::Restic;
use crate::run::{order, tell};
use crate::server::Server;
use crate::tool::{Place, Tool, quietly, remove, shell};
use crate::verify;

/// Until a server that recovers is done with it.
const WRITABLE: &str =
    "do $$ begin while pg_is_in_recovery() loop perform pg_sleep(0.01); end loop; end $$";

/// One way back.
struct Way<'a> {
    who: String,
    server: Server,
    /// Brings the cluster to where it is rolled back to, running; not measured.
    reset: Box<dyn Fn(bool) + 'a>,
    job: Box<dyn Fn() -> Job + 'a>,
    /// Removes its clusters, once it had its last turn: of a large one nobody has room for everybody's.
    clear: Box<dyn Fn() + 'a>,
}

pub(crate) fn all(place: &Place, home: &Home, results: &mut Results, data: &str) {
    tell("rollback: backups to go back to");
    let wanted = verify::content(&place.source);
    let mut ours = Ours::new(place, "source", neon_testkit::PgMajor::V15, ZSTD, "back");
    let mut pgbackrest = place
        .peers
        .get("pgbackrest")
        .map(|path| Pgbackrest::new(place, path, "zst"));
    let mut restic = place
        .peers
        .get("restic")
        .map(|path| Restic::new(place, path));
    take(place, &mut ours);
    if let Some(tool) = &mut pgbackrest {
        take(place, tool);
    }
    home.run(&["pg", "stop", "source"]);
    if let Some(tool) = &mut restic {
        take(place, tool);
    }
    let mut ways = vec![of_ours(home, &ours)];
    if let Some(tool) = &pgbackrest {
        ways.push(of_pgbackrest(place, tool));
    }
    if let Some(tool) = &restic {
        ways.push(of_restic(place, tool));
    }
    if place.peers.get("pg_rewind").is_some() {
        ways.push(of_rewind(place));
    }
    for round in 0..place.options.rounds() {
        tell(&format!("{ROLLBACK}, round {}", round + 1));
        for number in order(ways.len(), round) {
            let way = &ways[number];
            (way.reset)(round == 0);
            Change::new(0.01, Where::Random).apply(&way.server, place.data);
            assert_ne!(
                verify::content(&way.server),
                wanted,
                "the change changed nothing"
            );
            let (mut usage, _) = measured((way.job)(), &place.folder, None, place.options.cold);
            // All that the new server did was to recover and to start.
            let server = way.server.counters();
            usage.server_processor = server.processor;
            usage.server_read = server.read;
            usage.server_written = server.written;
            assert_eq!(
                verify::content(&way.server),
                wanted,
                "{} went elsewhere",
                way.who
            );
            results.add(
                data,
                ROLLBACK,
                &way.who,
                ZSTD,
                Sample { usage, added: None },
            );
            if round + 1 == place.options.rounds() {
                (way.clear)();
            }
        }
    }
    drop(ways);
    remove(&place.folder.join("rolled"));
    home.run(&["pg", "start", "source"]);
    ours.prepare();
}

/// A first one, not measured.
fn take(place: &Place, tool: &mut dyn Tool) {
    tool.prepare();
    tool.before();
    measured(tool.first(), &place.folder, None, false);
    tool.after();
}

/// Where a peer's cluster is.
fn cluster(place: &Place, who: &str) -> PathBuf {
    place.owned("rolled").join(who)
}

fn of_ours<'a>(home: &'a Home, ours: &Ours) -> Way<'a> {
    home.run(&["pg", "create", "rolled", "--snapshot", &ours.snapshot()]);
    // It goes back to where it was itself, as the peers' clusters do.
    let snapshot = "rolled@before-the-change".to_owned();
    let take = ["snapshot", "create", &snapshot, "-s", &ours.storage()];
    home.run(&take);
    Way {
        who: ZSTD.to_owned(),
        server: home.server("rolled", neon_testkit::PgMajor::V15),
        reset: Box::new(|_| {}),
        job: Box::new(move || {
            let back = ["pg", "checkout", &snapshot, "--pg", "rolled", "--yes"];
            let ask = ["pg", "psql", "rolled", "--", "-XAtqc", WRITABLE];
            Job::of([home.command(&back), home.command(&ask)])
        }),
        clear: Box::new(move || home.destroy("rolled")),
    }
}

/// Stops a peer's server and removes its cluster.
fn end(server: &Server) {
    quietly(server.stop("immediate"));
    remove(&server.data);
}

/// Stop, a step of the peer's own, start, and wait until it takes writes.
fn around(server: &Server, step: std::process::Command) -> Job {
    let mut ask = server.client("psql");
    ask.args(["-XAtqc", WRITABLE]);
    Job::of([server.stop("fast"), step, server.start(), ask])
}

fn begin(server: &Server, who: &str) {
    verify::start(server, who);
    server.sql(WRITABLE);
}

fn of_pgbackrest<'a>(place: &'a Place, tool: &'a Pgbackrest<'_>) -> Way<'a> {
    let data = cluster(place, "pgbackrest");
    neon_testkit::OsUser::current().create_dir(&data);
    let server = place.server_on(&data);
    let (of_reset, of_job, of_end) = (server.clone(), server.clone(), server.clone());
    Way {
        who: "pgbackrest --delta restore, zst:1".to_owned(),
        server,
        reset: Box::new(move |first| {
            if first {
                quietly(tool.restore_to(&of_reset.data, &[]));
                begin(&of_reset, "pgbackrest");
            }
        }),
        job: Box::new(move || around(&of_job, tool.restore_to(&of_job.data, &["--delta"]))),
        clear: Box::new(move || end(&of_end)),
    }
}

fn of_restic<'a>(place: &'a Place, tool: &'a Restic<'_>) -> Way<'a> {
    let data = cluster(place, "restic");
    neon_testkit::OsUser::current().create_dir(&data);
    let server = place.server_on(&data);
    let (of_reset, of_job, of_end) = (server.clone(), server.clone(), server.clone());
    Way {
        who: "restic restore --delete".to_owned(),
        server,
        reset: Box::new(move |first| {
            if first {
                quietly(tool.restore_to(&of_reset.data));
                begin(&of_reset, "restic");
            }
        }),
        job: Box::new(move || around(&of_job, tool.restore_to(&of_job.data))),
        clear: Box::new(move || end(&of_end)),
    }
}

/// `pg_rewind` needs the whole of the snapshot as a second cluster that was promoted away from the first.
fn of_rewind(place: &Place) -> Way<'_> {
    let other = cluster(place, "rewind-source");
    let data = cluster(place, "rewind");
    let server = place.server_on(&data);
    let (of_reset, of_job, of_end) = (server.clone(), server.clone(), server.clone());
    let (beside, of_source) = (other.clone(), other.clone());
    Way {
        who: "pg_rewind, from a whole copy".to_owned(),
        server,
        reset: Box::new(move |first| {
            if first {
                promote(place, &beside);
            } else {
                quietly(of_reset.stop("immediate"));
            }
            remove(&of_reset.data);
            quietly(shell(
                "cp -a \"$1\" \"$2\"",
                &[&place.source.data, &of_reset.data],
            ));
            begin(&of_reset, "pg_rewind");
        }),
        job: Box::new(move || {
            let mut rewind = of_job.client("pg_rewind");
            rewind.arg("--target-pgdata").arg(&of_job.data);
            rewind.arg("--source-pgdata").arg(&of_source);
            let signal = shell("touch \"$1/recovery.signal\"", &[&of_job.data]);
            let mut job = around(&of_job, rewind);
            job.commands.insert(2, signal);
            job
        }),
        clear: Box::new(move || {
            end(&of_end);
            remove(&other);
        }),
    }
}

/// A copy of the source on a timeline of its own, stopped.
fn promote(place: &Place, other: &Path) {
    quietly(shell(
        "cp -a \"$1\" \"$2\"; touch \"$2/recovery.signal\"; echo \"restore_command = 'false'\" >>\"$2/postgresql.auto.conf\"",
        &[&place.source.data, other],
    ));
    let promoted = place.server_on(other);
    begin(&promoted, "the other side of pg_rewind");
    promoted.checkpoint();
    quietly(promoted.stop("fast"));
}
