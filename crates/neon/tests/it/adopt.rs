//! Clusters that somebody else created and runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use neon_pg::{AdoptPg, CheckoutChoice, CreateSnapshot, ErrorKind, PgMajor, RestoreChoice};
use neon_testkit::{Cluster, Installation, OsUser, Scratch};

use crate::remotes::{attach_s3, credentials, s3};
use crate::support::{Fixture, end_server, name, refused, sql};

/// A cluster configured elsewhere than in its data directory, where only its own user gets in.
struct Theirs {
    major: PgMajor,
    cluster: Cluster,
    etc: PathBuf,
}

impl Theirs {
    fn new(major: PgMajor) -> Self {
        let cluster = Cluster::builder(major).init();
        let user = OsUser::current();
        let scratch = cluster.scratch_dir().to_owned();
        let etc = scratch.join("etc");
        let folder = etc.join(major.to_string()).join("shop");
        for folder in [
            &etc,
            folder.parent().unwrap(),
            &folder,
            &scratch.join("sockets"),
        ] {
            user.create_dir(folder);
        }
        let data = cluster.data_dir();
        for file in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            fs::rename(data.join(file), folder.join(file)).unwrap();
        }
        let conf = folder.join("postgresql.conf");
        let mut text = fs::read_to_string(&conf).unwrap();
        text.push_str(&format!(
            "data_directory = '{}'\nhba_file = '{}'\nident_file = '{}'\nport = 5433\nfsync = on\n\
             listen_addresses = ''\nunix_socket_directories = '{}'\n",
            data.display(),
            folder.join("pg_hba.conf").display(),
            folder.join("pg_ident.conf").display(),
            scratch.join("sockets").display()
        ));
        fs::write(&conf, text).unwrap();
        fs::write(folder.join("pg_hba.conf"), "local all postgres peer\n").unwrap();
        Self {
            major,
            cluster,
            etc,
        }
    }

    fn conf(&self) -> PathBuf {
        self.etc
            .join(self.major.to_string())
            .join("shop/postgresql.conf")
    }

    fn start(&self) {
        let mut pg_ctl = Installation::of(self.major).command("pg_ctl");
        let log = self.cluster.scratch_dir().join("their.log");
        let started = pg_ctl
            .args(["-w", "start", "-D"])
            .arg(self.cluster.data_dir())
            .arg("-l")
            .arg(&log)
            .arg("-o")
            .arg(format!("-c config_file={}", self.conf().display()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(
            started.success(),
            "{}",
            fs::read_to_string(&log).unwrap_or_default()
        );
    }

    fn adopt(&self) -> AdoptPg {
        let mut wanted = AdoptPg::new(self.cluster.data_dir());
        wanted.etc = self.etc.clone();
        if neon_testkit::OsUser::current().name() != "postgres" {
            wanted.superuser = Some("postgres".to_owned());
        }
        wanted
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        end_server(&self.cluster.data_dir());
    }
}

/// The text of their configuration.
fn configuration(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => {
                    let text = fs::read_to_string(&path).unwrap();
                    all.insert(path, text);
                }
            }
        }
    }
    all
}

fn snapshot(text: &str) -> CreateSnapshot {
    CreateSnapshot::new(text.parse().unwrap())
}

async fn is_adopted_and_copied(major: PgMajor) {
    let theirs = Theirs::new(major);
    let home = Fixture::of(major);
    let before = configuration(&theirs.etc);
    theirs.start();
    let pg = home.neon.pg();
    let adopted = pg.adopt(&theirs.adopt()).await.unwrap();
    assert!(adopted.runs && adopted.port == Some(5433));
    let data = theirs.cluster.data_dir();
    let mine = adopted.name.clone();
    // Found by the command line of its server, which says nothing of Debian.
    assert_eq!(mine.as_str(), "shop");
    assert!(
        adopted
            .advice
            .iter()
            .any(|line| line.contains("wal_keep_size"))
    );
    assert_eq!(refused(pg.adopt(&theirs.adopt()).await), ErrorKind::Exists);
    sql(
        &home.neon,
        "shop",
        "create table t as select generate_series(1, 10000) i",
    )
    .await;

    let first = home
        .neon
        .snapshots()
        .create(&snapshot("shop@one"))
        .await
        .unwrap();
    assert_eq!((first.kind, first.bad_pages), ("online", 0));
    // Its owner keeps no log: after a checkpoint or two only comparing helps.
    for _ in 0..3 {
        sql(
            &home.neon,
            "shop",
            "insert into t select generate_series(1, 200000)",
        )
        .await;
        sql(&home.neon, "shop", "select pg_switch_wal()").await;
        sql(&home.neon, "shop", "checkpoint").await;
    }
    let second = home
        .neon
        .snapshots()
        .create(&snapshot("shop@two"))
        .await
        .unwrap();
    assert_eq!(second.source.as_deref(), Some("scan"), "{second:?}");
    assert_eq!(second.parent, Some(first.id));
    assert!(!second.passed_over.is_empty());
    assert!(second.added < second.size / 2, "{second:?}");

    // It is copied, never changed.
    let found = home.neon.snapshots().find("shop@one", None).await.unwrap();
    let plan = pg
        .plan_checkout(&mine, &found, CheckoutChoice::default())
        .await;
    assert_eq!(refused(plan), ErrorKind::Invalid);

    // Who starts it goes on to do so.
    let stop = pg.stop(&mine).await.unwrap_err();
    assert_eq!(stop.kind(), ErrorKind::Busy);
    assert!(stop.hint().unwrap().contains("shop stop"), "{stop:?}");
    assert_eq!(refused(pg.restart(&mine).await), ErrorKind::Busy);
    pg.stop_by_force(&mine).await.unwrap();
    assert_eq!(pg.start(&mine).await.unwrap_err().kind(), ErrorKind::Busy);
    let cold = home
        .neon
        .snapshots()
        .create(&snapshot("shop@three"))
        .await
        .unwrap();
    assert_eq!(cold.kind, "cold");
    assert_eq!(pg.start_by_force(&mine).await.unwrap().port, 5433);
    assert_eq!(configuration(&theirs.etc), before);
    let listed = home.neon.snapshots().current(&[]).await.unwrap();
    assert!(listed.first().unwrap().size > 10 << 20);

    // Forgotten, it runs on; and it is remembered again.
    let id = pg.destroy(&mine).await.unwrap();
    assert!(data.join("postmaster.pid").exists());
    assert_eq!(pg.undo_destroy(&id).await.unwrap().name, mine);
    assert_eq!(sql(&home.neon, "shop", "select 1").await, "1");
    let facts = home
        .neon
        .snapshots()
        .show("shop@one", None)
        .await
        .unwrap()
        .facts;
    assert_eq!(
        facts.labels.get("config/pg_hba.conf").unwrap(),
        "local all postgres peer\n"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_13_in_debians_layout_is_adopted_and_copied_while_it_runs() {
    is_adopted_and_copied(PgMajor::V13).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_18_in_debians_layout_is_adopted_and_copied_while_it_runs() {
    is_adopted_and_copied(PgMajor::V18).await;
}

/// What the distribution's own programs made, below a folder of the test.
struct Debian {
    scratch: Scratch,
    data: PathBuf,
}

impl Debian {
    fn new() -> Self {
        let scratch = Scratch::new();
        let user = OsUser::current();
        let place = |name: &str| scratch.path().join(name);
        for folder in ["etc", "run", "below"] {
            user.create_dir(&place(folder));
        }
        let data = place("below").join("data");
        let debian = Self { scratch, data };
        debian.run(
            "pg_createcluster",
            &[
                "15",
                "shop",
                "--start-conf",
                "manual",
                "-p",
                &free_port().to_string(),
                "-u",
                user.name(),
                "-d",
                debian.data.to_str().unwrap(),
                "-s",
                debian.scratch.path().join("run").to_str().unwrap(),
                "-l",
                debian.scratch.path().join("run/log").to_str().unwrap(),
            ],
        );
        debian.run(
            "pg_ctlcluster",
            &["--skip-systemctl-redirect", "15", "shop", "start"],
        );
        debian
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let done = Command::new(program)
            .args(arguments)
            .env("PG_CLUSTER_CONF_ROOT", self.scratch.path().join("etc"))
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{program}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        end_server(&self.data);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_distributions_own_cluster_is_adopted_copied_while_it_runs_and_started_by_who_knows_the_bucket()
 {
    let debian = Debian::new();
    let server = s3();
    let home = Fixture::having(PgMajor::V15, |options| credentials(&server, options));
    let mut wanted = AdoptPg::new(&debian.data);
    wanted.etc = debian.scratch.path().join("etc");
    let adopted = home.neon.pg().adopt(&wanted).await.unwrap();
    assert_eq!(adopted.name.as_str(), "shop");
    assert_eq!(adopted.os_user.as_deref(), Some(OsUser::current().name()));
    sql(
        &home.neon,
        "shop",
        "create table t as select generate_series(1, 10000) i",
    )
    .await;
    attach_s3(&home.neon, &server).await;
    let mut wanted = snapshot("shop@one");
    wanted.storage = Some(name("s3tank"));
    let taken = home.neon.snapshots().create(&wanted).await.unwrap();
    assert_eq!((taken.kind, taken.storage.as_str()), ("online", "s3tank"));
    // A second home that knows only the bucket.
    let second = Fixture::having(PgMajor::V15, |options| credentials(&server, options));
    attach_s3(&second.neon, &server).await;
    let found = second
        .neon
        .snapshots()
        .find("shop@one", None)
        .await
        .unwrap();
    assert_eq!(found.id, taken.id);
    let mut create = second.create();
    create.name = Some(name("copy"));
    let how = RestoreChoice::default();
    second
        .neon
        .pg()
        .create_from(&create, &found, &how)
        .await
        .unwrap();
    assert_eq!(
        sql(&second.neon, "copy", "select count(*) from t").await,
        "10000"
    );
    // What is written there stays there.
    sql(&second.neon, "copy", "insert into t values (0)").await;
    assert_eq!(
        sql(&home.neon, "shop", "select count(*) from t").await,
        "10000"
    );
    let stop = home.neon.pg().stop(&name("shop")).await.unwrap_err();
    assert!(
        stop.hint().unwrap().contains("pg_ctlcluster 15 shop stop"),
        "{stop:?}"
    );
}

/// A server that its owner started with more than its files say.
async fn comes_back_as_it_was(options: &str, environment: Option<u16>, port: u16) {
    let major = PgMajor::V15;
    let cluster = Cluster::builder(major).init();
    let folder = cluster.scratch_dir().join("their sockets");
    OsUser::current().create_dir(&folder);
    let conf = cluster.data_dir().join("postgresql.conf");
    let text = fs::read_to_string(&conf).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with("port = "));
    fs::write(&conf, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let mut pg_ctl = Installation::of(major).command("pg_ctl");
    if let Some(port) = environment {
        pg_ctl.env("PGPORT", port.to_string());
    }
    let log = cluster.scratch_dir().join("their.log");
    let started = pg_ctl
        .args(["-w", "start", "-D"])
        .arg(cluster.data_dir())
        .arg("-l")
        .arg(&log)
        .arg("-o")
        .arg(format!("{options} -k '{}'", folder.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    let log = fs::read_to_string(&log).unwrap_or_default();
    assert!(started.success(), "{log}");
    let home = Fixture::of(major);
    let mut wanted = AdoptPg::new(cluster.data_dir());
    wanted.name = Some(name("theirs"));
    wanted.superuser = Some("postgres".to_owned());
    let pg = home.neon.pg();
    let adopted = pg.adopt(&wanted).await.unwrap();
    assert_eq!((adopted.port, adopted.runs), (Some(port), true));
    for _ in 0..2 {
        pg.stop(&name("theirs")).await.unwrap();
        let again = pg.start(&name("theirs")).await.unwrap();
        assert_eq!(again.port, port);
        assert_eq!(again.socket_dir.as_deref(), Some(folder.as_path()));
        assert_eq!(sql(&home.neon, "theirs", "show work_mem").await, "7MB");
        pg.restart(&name("theirs")).await.unwrap();
    }
    pg.stop(&name("theirs")).await.unwrap();
}

/// A port that nobody has now.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

#[tokio::test]
async fn an_adopted_server_comes_back_with_the_options_that_it_was_started_with() {
    let port = free_port();
    comes_back_as_it_was(&format!("-p {port} -c work_mem=7MB"), None, port).await;
}

#[tokio::test]
async fn an_adopted_server_comes_back_on_the_port_of_its_environment() {
    let port = free_port();
    comes_back_as_it_was("--work-mem=7MB", Some(port), port).await;
}
