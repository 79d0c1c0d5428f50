//! Unmodified clients of PostgreSQL against our server.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use neon_pg_layout::{Lsn, TimelineId};
use neon_pgwire::{
    Access, Client, Listener, OneTimeToken, Replication, ScramVerifier, Secret, Server,
    ServerOptions, ServerTls,
};
use neon_testkit::{Cluster, Installation, OsUser, PgMajor, Scratch, StopMode};
use tokio::task::JoinHandle;

use crate::real_servers::eventually;
use crate::source::Stored;
use crate::support::{
    ask_restored, capture, capture_wal, config, fast, give_to_server, replication, segment_name,
    verify,
};

/// A stock client: the number of its major, and where its programs are.
#[derive(Debug, Clone)]
pub(crate) struct Stock {
    pub(crate) major: u32,
    bin: PathBuf,
}

/// Where `scripts/stock-clients` has put something.
pub(crate) fn installed(what: &str) -> PathBuf {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../.postgres/clients/installed");
    let list = fs::read_to_string(list).expect("run scripts/stock-clients first");
    let line = list
        .lines()
        .find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
    line.and_then(|line| line.split(' ').next())
        .expect("run scripts/stock-clients again")
        .into()
}

impl Stock {
    /// All that are installed: `scripts/postgres` brings 15, 16 and 18, `scripts/stock-clients` 13.
    pub(crate) fn all() -> Vec<Self> {
        let mut found: Vec<Self> = Installation::all()
            .iter()
            .filter(|one| one.full_tools())
            .map(|one| Self {
                major: one.major().number(),
                bin: one.bin_dir().to_owned(),
            })
            .collect();
        found.insert(
            0,
            Self {
                major: 13,
                bin: installed("13"),
            },
        );
        assert!(
            found.len() >= 4,
            "clients of 13, 15, 16 and 18 are needed: {found:?}"
        );
        found
    }

    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        // Any installation gives the same clean environment; the libraries are this one's.
        Installation::of(PgMajor::V15).clean_environment(&mut command);
        if self.bin.join("../lib").is_dir() && !self.bin.starts_with("/usr") {
            command.env("LD_LIBRARY_PATH", self.bin.join("../lib"));
        }
        OsUser::current().apply(&mut command);
        // Power is not lost during a test.
        command.arg("--no-sync");
        command
    }
}

/// A server of ours on a socket or a port, until dropped.
pub(crate) struct Running {
    pub(crate) address: Option<SocketAddr>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn on_socket(source: Stored, options: ServerOptions, directory: &Path) -> Running {
    let server = Server::new(Arc::new(source), options).unwrap();
    let listener = Listener::unix(directory, 5432).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(
        directory.join(".s.PGSQL.5432"),
        fs::Permissions::from_mode(0o777),
    )
    .unwrap();
    let task = tokio::spawn(async move { listener.run(&server).await });
    Running {
        address: None,
        task,
    }
}

pub(crate) async fn on_tcp(source: Stored, options: ServerOptions) -> Running {
    let server = Server::new(Arc::new(source), options).unwrap();
    let listener = Listener::tcp(SocketAddr::from(([127, 0, 0, 1], 0)))
        .await
        .unwrap();
    let address = listener.address();
    let task = tokio::spawn(async move { listener.run(&server).await });
    Running { address, task }
}

pub(crate) async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

async fn succeeds(command: Command) -> Output {
    let shown = format!("{command:?}");
    let output = run(command).await;
    assert!(
        output.status.success(),
        "{shown}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn verifies(cluster: &Cluster, data: &Path, with_wal: bool) {
    verify(cluster.major(), data, with_wal);
}

fn own_dir(path: PathBuf) -> PathBuf {
    OsUser::current().create_dir(&path);
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn every_stock_client_takes_an_online_backup_of_13_in_every_form() {
    takes_every_form(PgMajor::V13, PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_clients_from_15_on_take_the_form_of_15() {
    takes_every_form(PgMajor::V15, PgMajor::V15).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_18_is_served_to_clients_of_13() {
    takes_every_form(PgMajor::V18, PgMajor::V13).await;
}

async fn takes_every_form(major: PgMajor, advertise: PgMajor) {
    let mut cluster = Cluster::builder(major).checksums(true).start();
    cluster.psql("create table t as select generate_series(1, 10000) as i");
    let scratch = Scratch::new();
    let stored = Stored::capture(&cluster, &scratch.path().join("stored"), false).await;
    cluster.stop(StopMode::Fast);
    let wal = stored.directory.join("pg_wal");
    let socket = own_dir(scratch.path().join("s"));
    let mut options = ServerOptions::new(Access::Anybody);
    options.advertise = advertise;
    let _server = on_socket(stored, options, &socket);
    for client in Stock::all() {
        // A client takes no server newer than itself.
        if client.major < advertise.number() {
            let mut command = client.command("pg_basebackup");
            command.args(["-D", "/nonexistent/x", "-h"]).arg(&socket);
            assert!(!run(command).await.status.success());
            continue;
        }
        let every = [
            ("-Fp", "stream"),
            ("-Fp", "fetch"),
            ("-Fp", "none"),
            ("-Ft", "stream"),
            ("-Ft", "fetch"),
            ("-Ftz", "none"),
        ];
        // The forms are a matter of the client; that of 18 is there for its control file.
        let forms = if major == PgMajor::V18 {
            &every[..2]
        } else {
            &every[..]
        };
        for (form, wal_method) in forms.iter().copied() {
            let into = scratch
                .path()
                .join(format!("{}{form}{wal_method}", client.major));
            let mut command = client.command("pg_basebackup");
            command
                .arg("-D")
                .arg(&into)
                .args([
                    form.get(..3).unwrap(),
                    "-X",
                    wal_method,
                    "-c",
                    "fast",
                    "-P",
                    "-U",
                    "me",
                    "-h",
                ])
                .arg(&socket);
            if form == "-Ftz" {
                command.arg("-z");
            }
            succeeds(command).await;
            if form == "-Fp" {
                verifies(&cluster, &into, wal_method != "none");
                // One server start per major says what the others would.
                if client.major == 16 {
                    if wal_method == "none" {
                        for segment in fs::read_dir(&wal).unwrap() {
                            let segment = segment.unwrap();
                            fs::copy(
                                segment.path(),
                                into.join("pg_wal").join(segment.file_name()),
                            )
                            .unwrap();
                        }
                    }
                    assert!(into.join("backup_label").is_file());
                    give_to_server(&into);
                    let answer =
                        ask_restored(cluster.installation(), &into, "select count(*) from t");
                    assert_eq!(answer, "10000", "{major} {wal_method}");
                }
            } else {
                let suffix = if form == "-Ftz" { ".gz" } else { "" };
                let tar = into.join(format!("base.tar{suffix}"));
                let listed = Command::new("tar").arg("-tf").arg(&tar).output().unwrap();
                assert!(
                    listed.status.success(),
                    "{}",
                    String::from_utf8_lossy(&listed.stderr)
                );
                let names = String::from_utf8(listed.stdout).unwrap();
                assert!(names.contains("global/pg_control") && names.contains("backup_label"));
                assert_eq!(wal_method == "fetch", names.contains(".done"), "{names}");
                assert_eq!(wal_method == "stream", into.join("pg_wal.tar").is_file());
            }
            fs::remove_dir_all(&into).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cleanly_stopped_cluster_is_served_without_a_label() {
    let mut cluster = Cluster::builder(PgMajor::V16).checksums(true).start();
    cluster.psql("create table t as select generate_series(1, 1000) as i; create unlogged table u as select 1");
    cluster.stop(StopMode::Fast);
    let scratch = Scratch::new();
    let stored = Stored::cold(&cluster, &scratch.path().join("stored"));
    let socket = own_dir(scratch.path().join("s"));
    let _server = on_socket(stored, ServerOptions::new(Access::Anybody), &socket);
    for client in Stock::all() {
        for wal_method in ["stream", "fetch"] {
            let into = scratch.path().join(format!("{}{wal_method}", client.major));
            let mut command = client.command("pg_basebackup");
            command
                .arg("-D")
                .arg(&into)
                .args(["-X", wal_method, "-U", "me", "-h"])
                .arg(&socket);
            succeeds(command).await;
            verifies(&cluster, &into, true);
            assert!(!into.join("backup_label").exists());
            if client.major == 16 {
                give_to_server(&into);
                let answer =
                    ask_restored(cluster.installation(), &into, "select count(*) from t, u");
                assert_eq!(answer, "1000", "unlogged tables are kept");
            }
            fs::remove_dir_all(&into).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tablespaces_are_mapped_by_the_client() {
    let mut cluster = Cluster::builder(PgMajor::V15).start();
    let space = cluster.tablespace_dir("space");
    cluster.psql(&format!(
        "create tablespace space location '{}'",
        space.display()
    ));
    cluster.psql("create table t tablespace space as select generate_series(1, 1000) as i");
    for mapped in [false, true] {
        let scratch = Scratch::new();
        let stored = Stored::capture(&cluster, &scratch.path().join("stored"), mapped).await;
        let oid = stored.facts.tablespaces[0].oid;
        let socket = own_dir(scratch.path().join("s"));
        let _server = on_socket(stored, ServerOptions::new(Access::Anybody), &socket);
        for client in Stock::all() {
            let into = scratch.path().join(client.major.to_string());
            let elsewhere = scratch.path().join(format!("{}-space", client.major));
            let mut command = client.command("pg_basebackup");
            command
                .arg("-D")
                .arg(&into)
                .args(["-X", "stream", "-U", "me", "-h"])
                .arg(&socket);
            if mapped {
                command.arg("-Ft");
            } else {
                command
                    .arg("-T")
                    .arg(format!("{}={}", space.display(), elsewhere.display()));
            }
            succeeds(command).await;
            if mapped {
                assert!(into.join(format!("{oid}.tar")).is_file());
                let out = Command::new("tar")
                    .args(["-xOf"])
                    .arg(into.join("base.tar"))
                    .arg("tablespace_map")
                    .output()
                    .unwrap();
                assert!(String::from_utf8_lossy(&out.stdout).contains(&oid.to_string()));
                continue;
            }
            assert_eq!(
                fs::read_link(into.join(format!("pg_tblspc/{oid}"))).unwrap(),
                elsewhere
            );
            verifies(&cluster, &into, true);
            if client.major == 13 {
                assert_eq!(
                    ask_restored(cluster.installation(), &into, "select count(*) from t"),
                    "1000"
                );
            }
        }
    }
    cluster.stop(StopMode::Fast);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_one_time_token_is_good_for_one_backup_over_tls() {
    let cluster = Cluster::builder(PgMajor::V16).start();
    let scratch = Scratch::new();
    let stored = Stored::capture(&cluster, &scratch.path().join("stored"), false).await;
    let direct = stored.clone();
    let key = rcgen::KeyPair::generate().unwrap();
    let params =
        rcgen::CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])
            .unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    let root = scratch.path().join("root.crt");
    fs::write(&root, &pem).unwrap();
    let token = OneTimeToken::new(&Secret::new("once only")).unwrap();
    let mut options = ServerOptions::new(Access::Token(token.clone()));
    options.tls =
        Some(ServerTls::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap());
    options.require_tls = true;
    let server = on_tcp(stored, options).await;
    let port = server.address.unwrap().port();
    let take = |client: &Stock, name: &str, extra: &str, password: &str| {
        let mut command = client.command("pg_basebackup");
        let conninfo = format!(
            "host=127.0.0.1 port={port} user=anybody channel_binding=require sslmode=verify-full sslrootcert={} {extra}",
            root.display()
        );
        command
            .arg("-D")
            .arg(scratch.path().join(name))
            .arg("-d")
            .arg(conninfo)
            .env("PGPASSWORD", password);
        command
    };
    let clients = Stock::all();
    // Neither wrong passwords nor refusals for want of TLS spend it.
    let wrong = run(take(&clients[0], "wrong", "", "guessed")).await;
    assert!(
        String::from_utf8_lossy(&wrong.stderr).contains("password authentication failed"),
        "{wrong:?}"
    );
    let plain = run(take(
        &clients[1],
        "plain",
        "sslmode=disable channel_binding=prefer",
        "once only",
    ))
    .await;
    assert!(
        String::from_utf8_lossy(&plain.stderr).contains("over TLS only"),
        "{plain:?}"
    );
    assert_eq!(token.sessions_left(), 2);
    // The packaged clients of 16 and 18 have no TLS.
    let newest = clients.iter().find(|client| client.major == 15).unwrap();
    succeeds(take(newest, "first", "", "once only")).await;
    verifies(&cluster, &scratch.path().join("first"), true);
    assert_eq!(token.sessions_left(), 0);
    let second = run(take(newest, "second", "", "once only")).await;
    assert!(!second.status.success());

    // TLS from the first byte, as clients from 17 on can have it.
    let password = Secret::new("of me");
    let verifier = ScramVerifier::from_password(&password).unwrap();
    let mut options = ServerOptions::new(Access::Users([("me".to_owned(), verifier)].into()));
    options.tls =
        Some(ServerTls::from_pem(pem.as_bytes(), key.serialize_pem().as_bytes()).unwrap());
    options.require_tls = true;
    let server = on_tcp(direct, options).await;
    let conninfo = format!(
        "host=localhost hostaddr=127.0.0.1 port={} user=me sslmode=verify-full sslnegotiation=direct \
         channel_binding=require sslrootcert={} max_protocol_version=latest",
        server.address.unwrap().port(),
        root.display()
    );
    let config = config(&conninfo)
        .with_replication(Replication::Physical)
        .with_password(password);
    let mut ours = Client::connect(&config).await.unwrap();
    assert!(ours.is_encrypted());
    ours.identify_system().await.unwrap();
    let taken = capture(ours, &fast(), &scratch.path().join("ours")).await;
    assert_eq!(taken.archives.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_clients_log_in_with_a_password() {
    let cluster = Cluster::builder(PgMajor::V15).start();
    let scratch = Scratch::new();
    let stored = Stored::capture(&cluster, &scratch.path().join("stored"), false).await;
    let socket = own_dir(scratch.path().join("s"));
    let verifier = ScramVerifier::from_password(&Secret::new("pass word")).unwrap();
    let users = Access::Users([("me".to_owned(), verifier)].into());
    let _server = on_socket(stored, ServerOptions::new(users), &socket);
    for client in Stock::all() {
        for (user, password, lets_in) in [
            ("me", "pass word", true),
            ("me", "password", false),
            ("you", "pass word", false),
        ] {
            let into = scratch.path().join(client.major.to_string());
            let mut command = client.command("pg_basebackup");
            command
                .arg("-D")
                .arg(&into)
                .args(["-U", user, "-h"])
                .arg(&socket);
            let output = run({
                command.env("PGPASSWORD", password);
                command
            })
            .await;
            assert_eq!(output.status.success(), lets_in, "{output:?}");
            if lets_in {
                verifies(&cluster, &into, true);
                fs::remove_dir_all(&into).unwrap();
            } else {
                let complaint = String::from_utf8_lossy(&output.stderr);
                assert!(
                    complaint.contains("password authentication failed"),
                    "{complaint}"
                );
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pg_receivewal_compresses_what_it_receives() {
    let mut cluster = Cluster::builder(PgMajor::V14).start();
    // Not the first segment of all, which would have none before it.
    cluster.psql("create table t as select generate_series(1, 10000) as i; select pg_switch_wal()");
    cluster.stop(StopMode::Fast);
    let scratch = Scratch::new();
    let stored = Stored::cold(&cluster, &scratch.path().join("stored"));
    let (wal, end) = (stored.directory.join("pg_wal"), stored.facts.position);
    let socket = own_dir(scratch.path().join("s"));
    let _server = on_socket(stored.clone(), ServerOptions::new(Access::Anybody), &socket);
    let segment = segment_name(1, stored.facts.start.start_of(16 << 20).0, 16 << 20);
    for client in Stock::all() {
        let into = own_dir(scratch.path().join(format!("received{}", client.major)));
        // So that it starts with the segment that there is.
        let before = Lsn(stored.facts.start.start_of(16 << 20).0 - (16 << 20));
        let before = into.join(segment_name(1, before.0, 16 << 20));
        fs::write(&before, vec![0; 16 << 20]).unwrap();
        OsUser::current().own(&before);
        let mut command = client.command("pg_receivewal");
        command
            .arg("-D")
            .arg(&into)
            .args(["-Z", "1", "-U", "me", "--no-loop", "-h"])
            .arg(&socket)
            .arg(format!("--endpos={}", Lsn(end.0 - 1)));
        succeeds(command).await;
        let names = fs::read_dir(&into).unwrap();
        let names: Vec<_> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let name = names
            .iter()
            .find(|name| name.starts_with(&format!("{segment}.gz")))
            .unwrap_or_else(|| panic!("{} has {names:?}", client.major));
        let mut unzip = Command::new("gzip");
        unzip.arg("-dc");
        unzip.stdin(fs::File::open(into.join(name)).unwrap());
        let received = succeeds(unzip).await.stdout;
        let own = fs::read(wal.join(&segment)).unwrap();
        assert!(received.len() + 8192 >= own.len(), "{}", received.len());
        assert!(own.starts_with(&received), "{}", client.major);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_are_served_at_once() {
    let cluster = Cluster::builder(PgMajor::V14).start();
    let scratch = Scratch::new();
    let stored = Stored::capture(&cluster, &scratch.path().join("stored"), false).await;
    let socket = own_dir(scratch.path().join("s"));
    let _server = on_socket(stored, ServerOptions::new(Access::Anybody), &socket);
    let clients: Vec<Stock> = Stock::all().into_iter().cycle().take(8).collect();
    let running = clients.iter().enumerate().map(|(index, client)| {
        let mut command = client.command("pg_basebackup");
        command
            .arg("-D")
            .arg(scratch.path().join(index.to_string()))
            .args(["-U", "me", "-h"])
            .arg(&socket);
        succeeds(command)
    });
    futures_util::future::join_all(running).await;
    for index in 0..clients.len() {
        verifies(&cluster, &scratch.path().join(index.to_string()), false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pg_receivewal_follows_to_the_next_timeline() {
    // One timeline of 1 MiB beyond its start, then the next; made from WAL of a real server.
    let mut cluster = Cluster::builder(PgMajor::V16)
        .setting("wal_keep_size", "1GB")
        .start();
    let scratch = Scratch::new();
    let mut stored = Stored::capture(&cluster, &scratch.path().join("stored"), false).await;
    let first = stored.facts.start.start_of(16 << 20);
    cluster
        .psql("select pg_switch_wal(); create table t as select generate_series(1, 100000) as i");
    cluster.stop(StopMode::Fast);
    fs::write(cluster.data_dir().join("recovery.signal"), "").unwrap();
    cluster.set("restore_command", "false");
    cluster.start();
    eventually("the promotion", || {
        cluster.psql("select pg_is_in_recovery()").trim() == "f"
    })
    .await;
    let mut client = replication(&cluster.conninfo()).await;
    let now = client.identify_system().await.unwrap();
    let history = client.timeline_history(now.timeline).await.unwrap();
    let switch: Lsn = String::from_utf8_lossy(&history.content)
        .split('\t')
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    let old = TimelineId::FIRST;
    let wal = stored.directory.join("pg_wal");
    let size = 16 << 20;
    let mut at = first;
    while at < switch {
        // The server keeps the segments of the old timeline beside those of the new one.
        let name = segment_name(1, at.0, size);
        let from = cluster.data_dir().join("pg_wal").join(&name);
        if fs::copy(&from, wal.join(&name)).is_err() {
            let kept = fs::read_dir(from.parent().unwrap()).unwrap();
            let kept: Vec<_> = kept.map(|entry| entry.unwrap().file_name()).collect();
            panic!("{name} is none of {kept:?}; timeline 1 ends at {switch}");
        }
        at = Lsn(at.0 + size);
    }
    fs::write(wal.join(&history.file_name), &history.content).unwrap();
    cluster.psql("insert into t select 1; select pg_switch_wal()");
    let end: Lsn = cluster
        .psql("select pg_current_wal_flush_lsn()")
        .trim()
        .parse()
        .unwrap();
    let end = end.start_of(size);
    capture_wal(client, now.timeline, switch, end, size, &wal)
        .await
        .close()
        .await;
    assert_eq!(old.get() + 1, now.timeline.get());
    stored.switch = Some((now.timeline, switch));
    stored.facts.timeline = now.timeline;
    stored.facts.position = end;
    let socket = own_dir(scratch.path().join("s"));
    let _server = on_socket(stored, ServerOptions::new(Access::Anybody), &socket);
    for client in Stock::all() {
        let into = own_dir(scratch.path().join(format!("received{}", client.major)));
        // Something to go on from, so that it starts on the old timeline.
        let complete = segment_name(1, first.0, size);
        fs::copy(wal.join(&complete), into.join(&complete)).unwrap();
        OsUser::current().own(&into.join(&complete));
        let mut command = client.command("pg_receivewal");
        command
            .arg("-D")
            .arg(&into)
            .args(["-U", "me", "--no-loop", "-h"])
            .arg(&socket);
        command.arg(format!("--endpos={}", Lsn(end.0 - 1)));
        let output = tokio::time::timeout(Duration::from_secs(120), run(command))
            .await
            .unwrap();
        assert!(
            output.status.success(),
            "{}: {}",
            client.major,
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(into.join(&history.file_name).is_file(), "{}", client.major);
        let next = segment_name(2, switch.start_of(size).0, size);
        let received = fs::read(into.join(&next));
        let names: Vec<_> = fs::read_dir(&into)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert!(
            received.unwrap_or_default() == fs::read(wal.join(&next)).unwrap(),
            "{} has {names:?}",
            client.major
        );
    }
}
