//! Clusters of every major start, answer, stop and are gone afterwards.

use neon_testkit::{Cluster, PgMajor, StopMode};

fn a_cluster_starts_answers_and_stops(major: PgMajor) {
    let mut cluster = Cluster::builder(major).start();
    let scratch = cluster.scratch_dir().to_owned();
    assert!(
        cluster
            .psql("show server_version_num")
            .starts_with(&major.number().to_string())
    );
    cluster.psql("create table t (i int); insert into t values (1); vacuum t");
    cluster.restart();
    assert_eq!(cluster.psql("select i, i + 1 from t"), "1|2");
    cluster.kill9();
    cluster.start();
    assert_eq!(cluster.psql("select count(*) from t"), "1");
    cluster.stop(StopMode::Fast);
    let copy = cluster.copy_cold();
    let mut clone = Cluster::builder(major).on_copy(copy);
    clone.start();
    assert_eq!(clone.psql("select count(*) from t"), "1");
    drop(cluster);
    assert!(!scratch.exists());
}

macro_rules! for_every_major {
    ($($name:ident: $major:ident),*) => {$(
        #[test]
        fn $name() {
            a_cluster_starts_answers_and_stops(PgMajor::$major);
        }
    )*};
}

for_every_major!(
    a_cluster_of_13_starts_answers_and_stops: V13,
    a_cluster_of_14_starts_answers_and_stops: V14,
    a_cluster_of_15_starts_answers_and_stops: V15,
    a_cluster_of_16_starts_answers_and_stops: V16,
    a_cluster_of_17_starts_answers_and_stops: V17,
    a_cluster_of_18_starts_answers_and_stops: V18
);

#[test]
fn the_environment_of_the_test_does_not_reach_the_programs() {
    const MISLED: &str = "NEON_TESTKIT_MISLED";
    if std::env::var_os(MISLED).is_some() {
        let cluster = Cluster::builder(PgMajor::V18).start();
        assert_eq!(
            cluster.psql("select current_user; show work_mem; show lc_messages"),
            "postgres\n4MB\nC"
        );
        return;
    }
    let status = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "cluster::the_environment_of_the_test_does_not_reach_the_programs",
        ])
        .env(MISLED, "1")
        .envs([
            ("PGHOST", "/nonexistent"),
            ("PGUSER", "nobody"),
            ("PGDATABASE", "none"),
            ("PGDATA", "/nonexistent"),
        ])
        .envs([
            ("PGOPTIONS", "-c work_mem=1MB"),
            ("LANG", "de_DE.UTF-8"),
            ("LC_ALL", "de_DE.UTF-8"),
            ("TMPDIR", "/nonexistent"),
        ])
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn checksums_and_segment_size_are_as_asked() {
    for major in [PgMajor::V13, PgMajor::V18] {
        for on in [true, false] {
            let cluster = Cluster::builder(major)
                .checksums(on)
                .wal_segment_mib(1)
                .start();
            let expected = if on { "on\n1MB" } else { "off\n1MB" };
            assert_eq!(
                cluster.psql("show data_checksums; show wal_segment_size"),
                expected
            );
        }
    }
}

#[test]
fn a_password_is_asked_for_on_tcp_and_not_on_the_socket() {
    for (major, method) in [
        (PgMajor::V13, "md5"),
        (PgMajor::V13, "scram-sha-256"),
        (PgMajor::V17, "scram-sha-256"),
    ] {
        let cluster = Cluster::builder(major)
            .tcp()
            .password("it's \\ secret")
            .setting("password_encryption", method)
            .start();
        let connect = |conninfo: &str| {
            cluster
                .tool("psql")
                .args(["-XAtwc", "select 1", conninfo])
                .output()
                .unwrap()
                .status
                .success()
        };
        assert!(connect(&cluster.tcp_conninfo()));
        assert!(connect(&cluster.conninfo()));
        assert!(!connect(&cluster.tcp_conninfo().replace("secret", "guess")));
        let stored = cluster.psql("select rolpassword from pg_authid where rolname = 'postgres'");
        assert!(
            stored.starts_with(if method == "md5" {
                "md5"
            } else {
                "SCRAM-SHA-256"
            }),
            "{stored}"
        );
    }
}

#[test]
fn many_clusters_find_a_port_each() {
    let clusters: Vec<Cluster> = (0..4)
        .map(|_| Cluster::builder(PgMajor::V15).tcp().start())
        .collect();
    for cluster in &clusters {
        let port = cluster.run_tool("psql", ["-XAtc", "show port", &cluster.tcp_conninfo()]);
        assert_eq!(port.trim(), cluster.port().to_string());
    }
}

#[test]
fn lines_of_pg_hba_and_settings_take_effect() {
    let mut cluster = Cluster::builder(PgMajor::V15)
        .hba("local all nobody reject")
        .setting("work_mem", "5MB")
        .start();
    cluster.psql("create role nobody login; create role somebody login");
    let connect = |user: &str| {
        cluster
            .tool("psql")
            .args(["-XAtc", "select 1", "-U", user])
            .output()
            .unwrap()
            .status
            .success()
    };
    assert!(!connect("nobody"));
    assert!(connect("somebody"));
    assert_eq!(cluster.psql("show work_mem"), "5MB");
    cluster.set("work_mem", "6MB");
    cluster.restart();
    assert_eq!(cluster.psql("show work_mem"), "6MB");
}

#[test]
fn a_server_that_refuses_to_start_says_why() {
    let mut cluster = Cluster::builder(PgMajor::V14)
        .setting("shared_buffers", "nonsense")
        .init();
    assert!(cluster.try_start().unwrap_err().contains("did not start"));
    assert!(
        cluster.log_tail().contains("shared_buffers"),
        "{}",
        cluster.log_tail()
    );
    cluster.set("shared_buffers", "8MB");
    cluster.start();
}

#[test]
fn clusters_share_a_system_identifier_unless_asked_not_to() {
    let identifier =
        |cluster: &Cluster| cluster.psql("select system_identifier from pg_control_system()");
    let one = Cluster::builder(PgMajor::V17).start();
    let two = Cluster::builder(PgMajor::V17).start();
    let other = Cluster::builder(PgMajor::V17)
        .fresh_system_identifier()
        .start();
    assert_eq!(identifier(&one), identifier(&two));
    assert_ne!(identifier(&one), identifier(&other));
}

#[test]
fn a_cold_copy_holds_the_tablespaces_and_is_independent() {
    let mut cluster = Cluster::builder(PgMajor::V18).start();
    let place = cluster.tablespace_dir("one");
    cluster.psql(&format!(
        "create tablespace one location '{}'; create table t tablespace one as select 1 as i",
        place.display()
    ));
    cluster.stop(StopMode::Smart);
    let copy = cluster.copy_cold();
    let files = copy.files();
    assert!(
        files
            .iter()
            .any(|file| file.starts_with("pg_tblspc") && file.components().count() == 5)
    );
    for file in &files {
        let (ours, theirs) = (copy.path().join(file), cluster.data_dir().join(file));
        assert_eq!(
            std::fs::read(ours).unwrap(),
            std::fs::read(theirs).unwrap(),
            "{}",
            file.display()
        );
    }
    let mut clone = Cluster::builder(PgMajor::V18).on_copy(copy);
    clone.start();
    clone.psql("insert into t values (2); checkpoint");
    drop(clone);
    cluster.start();
    assert_eq!(cluster.psql("select i from t"), "1");
}

#[test]
fn a_session_keeps_its_transaction() {
    let cluster = Cluster::builder(PgMajor::V16).start();
    cluster.psql("create table t (i int)");
    let mut session = cluster.session("postgres");
    session.run("begin; insert into t values (1)");
    assert_eq!(cluster.psql("select count(*) from t"), "0");
    assert_eq!(session.run("select count(*) from t"), "1");
    session.run("commit");
    assert_eq!(cluster.psql("select count(*) from t"), "1");
    drop(session);
    assert!(
        cluster
            .try_psql("select * from nothing")
            .unwrap_err()
            .message()
            .contains("nothing")
    );
}
