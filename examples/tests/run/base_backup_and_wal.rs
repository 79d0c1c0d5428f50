//! Base backups and WAL fetched from real servers by the examples.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};

use neon_testkit::{Cluster, Installation, OsUser, PgMajor, Scratch};

/// Runs a program as the user that servers run as, so that they can use what it makes.
fn run(program: &str) -> Command {
    let mut command = Command::new(program);
    Installation::of(PgMajor::V15).clean_environment(&mut command);
    OsUser::current().apply(&mut command);
    command
}

fn succeeds(mut command: Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn starts_with(installation: &Installation, data: &Path, scratch: &Path, sql: &str) -> String {
    let options = format!(
        "-c listen_addresses='' -c unix_socket_directories='{}' -c port=5432",
        scratch.display()
    );
    let ctl = |verb: &[&str]| {
        let mut command = installation.command("pg_ctl");
        command
            .arg("-D")
            .arg(data)
            .arg("-w")
            .arg("-l")
            .arg(scratch.join("log"));
        command.args(verb).stdout(std::process::Stdio::null());
        assert!(
            command.status().unwrap().success(),
            "see {}",
            scratch.join("log").display()
        );
    };
    ctl(&["-o", &options, "start"]);
    let mut psql = installation.with_client("psql").command("psql");
    psql.args(["-XAt", "-U", "postgres", "-p", "5432", "-c", sql, "-h"])
        .arg(scratch);
    let answer = psql.output().unwrap();
    ctl(&["-m", "fast", "stop"]);
    String::from_utf8(answer.stdout).unwrap().trim().to_owned()
}

#[test]
fn take_base_backup_makes_a_data_directory_that_verifies_and_starts() {
    let cluster = Cluster::builder(PgMajor::V15).checksums(true).start();
    let space = cluster.tablespace_dir("space");
    cluster.psql(&format!(
        "create tablespace space location '{}'",
        space.display()
    ));
    cluster.psql("create table t tablespace space as select generate_series(1, 10000) as i");
    let scratch = Scratch::new();
    let (data, moved) = (scratch.path().join("data"), scratch.path().join("moved"));
    let mut take = run(env!("CARGO_BIN_EXE_take_base_backup"));
    take.arg(cluster.conninfo()).arg(&data);
    take.arg(format!("{}={}", space.display(), moved.display()));
    let output = succeeds(take);
    assert!(String::from_utf8_lossy(&output.stdout).contains("complete"));
    assert_eq!(fs::metadata(&data).unwrap().mode() & 0o777, 0o700);
    let mut verify = cluster.installation().command("pg_verifybackup");
    verify.arg(&data);
    succeeds(verify);
    let count = starts_with(
        cluster.installation(),
        &data,
        scratch.path(),
        "select count(*) from t",
    );
    assert_eq!(count, "10000");
    assert!(fs::read_dir(&moved).unwrap().next().is_some());
    // What is there already is not touched.
    let mut again = run(env!("CARGO_BIN_EXE_take_base_backup"));
    again.arg(cluster.conninfo()).arg(&data);
    assert!(!again.output().unwrap().status.success());
    // The stand-in for pg_basebackup does the same behind other options.
    let shim = scratch.path().join("shim");
    let mut take = run(env!("CARGO_BIN_EXE_pg_basebackup_shim"));
    take.args(["-c", "fast", "-X", "fetch", "--no-sync", "-R", "-D"])
        .arg(&shim);
    take.arg("-d").arg(cluster.conninfo());
    take.arg(format!(
        "-T{}={}",
        space.display(),
        scratch.path().join("shim-space").display()
    ));
    succeeds(take);
    assert!(shim.join("standby.signal").is_file());
    let mut verify = cluster.installation().command("pg_verifybackup");
    verify.arg(&shim);
    succeeds(verify);
}

#[test]
fn archives_that_lead_out_of_their_directory_are_refused() {
    use neon_examples::unpack::{Unpacker, Written};
    let scratch = Scratch::new();
    let member = |name: &str, kind: u8, link: &str| {
        let mut header = vec![0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000600");
        header[124..135].copy_from_slice(b"00000000000");
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header
    };
    fs::create_dir(scratch.path().join("pg_tblspc")).unwrap();
    fs::create_dir(scratch.path().join("out")).unwrap();
    let outside = scratch.path().join("out");
    for archive in [
        member("/etc/passwd", b'0', ""),
        member("../escaped", b'0', ""),
        member("a/../../escaped", b'0', ""),
        member("link", b'2', "/etc"),
        member("pg_tblspc/1", b'2', "../x"),
        member("device", b'3', ""),
        member("hard", b'1', "/etc/passwd"),
        member("", b'0', ""),
        [
            member("pg_tblspc/2", b'2', outside.to_str().unwrap()),
            member("pg_tblspc/2/through", b'0', ""),
        ]
        .concat(),
    ] {
        let mut written = Written::default();
        let mut unpacker = Unpacker::new(scratch.path().to_owned(), &[], &mut written);
        assert!(unpacker.push(&archive).is_err());
    }
    assert!(fs::read_dir(&outside).unwrap().next().is_none());
}

#[test]
fn stream_wal_writes_what_the_server_has() {
    let cluster = Cluster::builder(PgMajor::V17)
        .wal_segment_mib(1)
        .setting("wal_keep_size", "1GB")
        .start();
    let scratch = Scratch::new();
    let archive = scratch.path().join("archive");
    let stream = |until: &str| {
        let mut command = run(env!("CARGO_BIN_EXE_stream_wal"));
        command
            .arg(cluster.conninfo())
            .arg(&archive)
            .args(["--slot", "s", "--until", until]);
        succeeds(command);
    };
    let now = || cluster.psql("select pg_current_wal_flush_lsn()");
    stream(&now());
    cluster.psql("create table t as select generate_series(1, 100000)");
    stream(&now());
    cluster.psql("insert into t select generate_series(1, 100000); select pg_switch_wal()");
    stream(&now());
    let own = cluster.data_dir().join("pg_wal");
    let mut compared = 0;
    for entry in fs::read_dir(&archive).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if !name.ends_with(".partial") {
            assert!(
                fs::read(entry.path()).unwrap() == fs::read(own.join(&name)).unwrap(),
                "{name}"
            );
            compared += 1;
        }
    }
    assert!(compared > 5, "{compared} segments");
    let kept =
        "select restart_lsn >= pg_current_wal_flush_lsn() - 2097152 from pg_replication_slots";
    assert_eq!(
        cluster.psql(kept),
        "t",
        "what is durable here is not kept there"
    );
}
