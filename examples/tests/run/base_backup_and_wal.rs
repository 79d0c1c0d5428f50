//! Base backups and WAL fetched from real servers by the examples.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use neon_testkit::{Cluster, Installation, OsUser, PgMajor, Scratch, StopMode};

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

/// The names in a directory.
fn names(directory: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// The segments in a `pg_wal`, and those that are marked as archived.
fn segments(pg_wal: &Path) -> (Vec<String>, BTreeSet<String>) {
    let is_segment = |name: &String| name.len() == 24;
    let marks = names(&pg_wal.join("archive_status"));
    let marked = marks
        .iter()
        .map(|name| name.strip_suffix(".done").unwrap().to_owned())
        .collect();
    (
        names(pg_wal).into_iter().filter(is_segment).collect(),
        marked,
    )
}

fn everything_below(path: &Path, see: &mut impl FnMut(&Path, &fs::Metadata)) {
    let metadata = fs::symlink_metadata(path).unwrap();
    see(path, &metadata);
    if metadata.is_dir() {
        for name in names(path) {
            everything_below(&path.join(name), see);
        }
    }
}

/// Ends the current timeline as a recovery of the whole archive does.
fn promote(cluster: &mut Cluster) {
    cluster.stop(StopMode::Fast);
    let signal = cluster.data_dir().join("recovery.signal");
    fs::write(&signal, "").unwrap();
    OsUser::current().own(&signal);
    cluster.set("restore_command", "false");
    cluster.start();
    for _ in 0..600 {
        if cluster.psql("select pg_is_in_recovery()") == "f" {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("the server was not promoted in time");
}

#[test]
fn streamed_segments_are_marked_as_archived_when_they_are_complete() {
    let cluster = Cluster::builder(PgMajor::V15).wal_segment_mib(1).start();
    let scratch = Scratch::new();
    let data = scratch.path().join("data");
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                cluster.psql("create table if not exists t (i int); insert into t select 1; select pg_switch_wal()");
            }
        });
        let mut take = run(env!("CARGO_BIN_EXE_pg_basebackup_shim"));
        take.args(["-c", "fast", "--max-rate", "8M", "-D"])
            .arg(&data);
        let output = take.arg("-d").arg(cluster.conninfo()).output();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let output = output.unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    });
    let (mut segments, marked) = segments(&data.join("pg_wal"));
    assert!(segments.len() > 3, "{segments:?}");
    // The last one may be complete by chance.
    let last = segments.pop().unwrap();
    let mut expected: BTreeSet<_> = segments.into_iter().collect();
    if marked.contains(&last) {
        expected.insert(last);
    }
    assert_eq!(marked, expected);
    // As archives, the marks are in the archive of the WAL.
    let tar = scratch.path().join("tar");
    let mut take = run(env!("CARGO_BIN_EXE_pg_basebackup_shim"));
    take.args(["-c", "fast", "-Ft", "-D"]).arg(&tar);
    take.arg("-d").arg(cluster.conninfo());
    succeeds(take);
    let mut list = Command::new("tar");
    list.arg("-tf").arg(tar.join("pg_wal.tar"));
    let listed = String::from_utf8(succeeds(list).stdout).unwrap();
    for name in listed.lines().filter(|name| name.contains('/')) {
        let segment = name.strip_prefix("archive_status/").unwrap();
        let segment = segment.strip_suffix(".done").unwrap();
        assert!(listed.lines().any(|name| name == segment), "{listed}");
    }
    assert_eq!(
        fs::metadata(tar.join("base.tar")).unwrap().mode() & 0o777,
        0o600
    );
}

#[test]
fn a_backup_is_as_open_to_the_group_as_its_cluster_is() {
    for (argument, directory, file) in [("-g", 0o750, 0o640), ("--no-locale", 0o700, 0o600)] {
        let cluster = Cluster::builder(PgMajor::V16).initdb_arg(argument).start();
        let space = cluster.tablespace_dir("space");
        cluster.psql(&format!(
            "create tablespace space location '{}'",
            space.display()
        ));
        let scratch = Scratch::new();
        let (data, moved) = (scratch.path().join("data"), scratch.path().join("moved"));
        // Whatever the umask says.
        let mut take = run("sh");
        take.args(["-c", "umask 077; exec \"$@\"", "sh"]);
        take.arg(env!("CARGO_BIN_EXE_take_base_backup"));
        take.arg(cluster.conninfo()).arg(&data);
        take.arg(format!("{}={}", space.display(), moved.display()));
        succeeds(take);
        // What the archive has keeps its own permissions; all else is as the cluster has it.
        let mut see = |path: &Path, metadata: &fs::Metadata| {
            let own = path
                .strip_prefix(&data)
                .map(|path| cluster.data_dir().join(path));
            let expected = match own.ok().and_then(|own| fs::metadata(own).ok()) {
                Some(own) => own.mode() & 0o777,
                None if metadata.is_dir() => directory,
                None => file,
            };
            if !metadata.is_symlink() {
                assert_eq!(metadata.mode() & 0o777, expected, "{}", path.display());
            }
        };
        everything_below(&data, &mut see);
        everything_below(&moved, &mut see);
        for (path, expected) in [
            ("", directory),
            ("pg_wal", directory),
            ("pg_wal/archive_status", directory),
            ("PG_VERSION", file),
            ("backup_manifest", file),
        ] {
            let mode = fs::metadata(data.join(path)).unwrap().mode() & 0o777;
            assert_eq!(mode, expected, "{path}");
        }
    }
}

#[test]
fn a_slot_that_was_named_is_told_what_the_backup_has() {
    let cluster = Cluster::builder(PgMajor::V15).start();
    let scratch = Scratch::new();
    let position = |slot: &str| {
        let sql =
            format!("select restart_lsn from pg_replication_slots where slot_name = '{slot}'");
        cluster.psql(&sql)
    };
    for (slot, format, sync) in [
        ("a", "-Fp", "-P"),
        ("b", "-Fp", "--no-sync"),
        ("c", "-Ft", "-P"),
    ] {
        cluster.psql(&format!(
            "select pg_create_physical_replication_slot('{slot}')"
        ));
        assert_eq!(position(slot), "");
        let begun = cluster.psql("select pg_current_wal_lsn()");
        let mut take = run(env!("CARGO_BIN_EXE_pg_basebackup_shim"));
        take.args(["-c", "fast", format, sync, "-S", slot, "-D"]);
        take.arg(scratch.path().join(slot));
        take.arg("-d").arg(cluster.conninfo());
        succeeds(take);
        let now = position(slot);
        let passed = cluster.psql(&format!("select '{now}'::pg_lsn > '{begun}'::pg_lsn"));
        assert_eq!(passed, "t", "{slot} is at {now}");
    }
}

/// A server that lets everybody in and says this in answer to whatever it is asked.
fn says(socket: &Path, answer: Vec<u8>) -> std::thread::JoinHandle<()> {
    let listener = std::os::unix::net::UnixListener::bind(socket.join(".s.PGSQL.5432")).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = [0; 4096];
        assert_ne!(stream.read(&mut asked).unwrap(), 0);
        let mut said =
            b"R\0\0\0\x08\0\0\0\0S\0\0\0\x18server_version\x0015.0\0Z\0\0\0\x05I".to_vec();
        said.extend(answer);
        stream.write_all(&said).unwrap();
        while stream.read(&mut asked).is_ok_and(|read| read > 0) {}
    })
}

#[test]
fn a_server_cannot_fill_memory_with_one_message() {
    let scratch = Scratch::new();
    // A row of 4 MiB, as its header says.
    let server = says(scratch.path(), b"T\0\0\0\x06\0\0D\0\x40\0\0".to_vec());
    let output = Command::new(env!("CARGO_BIN_EXE_take_base_backup"))
        .arg(format!("host={} user=me", scratch.path().display()))
        .arg(scratch.path().join("data"))
        .output()
        .unwrap();
    assert!(!output.status.success());
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.contains("the limit is 1048576"), "{complaint}");
    server.join().unwrap();
}

#[test]
fn a_manifest_is_written_as_it_comes_and_named_when_all_is_there() {
    // What a server of 15 says about a cluster of one empty archive.
    let message = |tag: u8, body: &[u8]| {
        let mut bytes = vec![tag];
        bytes.extend_from_slice(&u32::try_from(body.len() + 4).unwrap().to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    };
    let row = |values: &[Option<&str>]| {
        let mut body = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
        for value in values {
            let length = value.map_or(-1, |value| i32::try_from(value.len()).unwrap());
            body.extend_from_slice(&length.to_be_bytes());
            body.extend_from_slice(value.unwrap_or_default().as_bytes());
        }
        message(b'D', &body)
    };
    let result = |values: &[Option<&str>]| {
        [
            message(b'T', b"\0\0"),
            row(values),
            message(b'C', b"SELECT\0"),
        ]
        .concat()
    };
    let ready = message(b'Z', b"I");
    let manifest_size: u64 = 320 << 20;
    let answers = move |manifest_end: bool| {
        let mut said = Vec::new();
        for setting in ["0700", "16MB"] {
            said.extend([result(&[Some(setting)]), ready.clone()].concat());
        }
        said.extend(
            [
                result(&[Some("7"), Some("1"), Some("0/3000000"), None]),
                ready.clone(),
            ]
            .concat(),
        );
        said.extend(result(&[Some("0/2000028"), Some("1")]));
        said.extend(result(&[None, None, None]));
        said.extend(message(b'H', b"\0\0\0"));
        said.extend(message(b'd', b"nbase.tar\0\0"));
        said.extend(message(b'd', &[&b"d"[..], &[0; 1024]].concat()));
        said.extend(message(b'd', b"m"));
        let piece = message(b'd', &[b'd'; 64 << 10]);
        let pieces = if manifest_end {
            manifest_size / (64 << 10)
        } else {
            3
        };
        let mut end = Vec::new();
        if manifest_end {
            end.extend(message(b'c', b""));
            end.extend(result(&[Some("0/2000100"), Some("1")]));
            end.extend(message(b'C', b"BASE_BACKUP\0"));
            end.extend(ready.clone());
        }
        (said, piece, pieces, end)
    };
    for complete in [true, false] {
        let scratch = Scratch::new();
        let listener =
            std::os::unix::net::UnixListener::bind(scratch.path().join(".s.PGSQL.5432")).unwrap();
        let (said, piece, pieces, end) = answers(complete);
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut asked = [0; 4096];
            assert_ne!(stream.read(&mut asked).unwrap(), 0);
            let greeting = b"R\0\0\0\x08\0\0\0\0S\0\0\0\x18server_version\x0015.0\0Z\0\0\0\x05I";
            stream.write_all(greeting).unwrap();
            stream.write_all(&said).unwrap();
            for _ in 0..pieces {
                stream.write_all(&piece).unwrap();
            }
            stream.write_all(&end).unwrap();
            if !complete {
                stream.shutdown(std::net::Shutdown::Write).unwrap();
            }
            while stream.read(&mut asked).is_ok_and(|read| read > 0) {}
        });
        // Less memory than the manifest has bytes.
        let data = scratch.path().join("data");
        let output = Command::new("sh")
            .args(["-c", "ulimit -v 400000; exec \"$@\"", "sh"])
            .arg(env!("CARGO_BIN_EXE_pg_basebackup_shim"))
            .args(["-X", "none", "--no-sync", "--no-clean", "-D"])
            .arg(&data)
            .arg("-d")
            .arg(format!("host={} user=me", scratch.path().display()))
            .env("MALLOC_ARENA_MAX", "1")
            .output()
            .unwrap();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), complete, "{complaint}");
        server.join().unwrap();
        assert_eq!(data.join("backup_manifest").exists(), complete);
        assert_eq!(data.join("backup_manifest.tmp").exists(), !complete);
        if complete {
            let manifest = fs::metadata(data.join("backup_manifest")).unwrap();
            // One byte of each piece says what it is.
            assert_eq!(manifest.len(), pieces * ((64 << 10) - 1));
        }
    }
}

#[test]
fn a_server_that_shuts_down_does_not_wait_for_stream_wal() {
    let mut cluster = Cluster::builder(PgMajor::V15)
        .wal_segment_mib(1)
        // It would wait for ever for a receiver that does not report.
        .setting("wal_sender_timeout", "0")
        .start();
    let scratch = Scratch::new();
    let archive = scratch.path().join("archive");
    let mut command = run(env!("CARGO_BIN_EXE_stream_wal"));
    command.arg(cluster.conninfo()).arg(&archive);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let streams = "select count(*) from pg_stat_replication where state = 'streaming'";
    for _ in 0..600 {
        if cluster.psql(streams) == "1" {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster.psql("create table t as select generate_series(1, 1000)");
    cluster.stop(StopMode::Fast);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.contains("the server shuts down"), "{complaint}");
    // The shutdown checkpoint, which is the last record, is here.
    let control = fs::read(cluster.data_dir().join("global/pg_control")).unwrap();
    let control = neon_pg_layout::ControlFile::decode(&control).unwrap();
    let checkpoint = control.checkpoint.redo.0;
    let (number, offset) = (
        checkpoint >> 20,
        usize::try_from(checkpoint % (1 << 20)).unwrap(),
    );
    let name = format!("00000001{:08X}{:08X}", number >> 12, number & 0xFFF);
    let received = fs::read(archive.join(format!("{name}.partial"))).unwrap();
    let own = fs::read(cluster.data_dir().join("pg_wal").join(name)).unwrap();
    assert!(received[..offset + 64] == own[..offset + 64]);
    assert!(received[offset..offset + 64].iter().any(|byte| *byte != 0));
}

#[test]
fn a_segment_that_is_received_again_loses_nothing_of_what_was_there() {
    let cluster = Cluster::builder(PgMajor::V14).wal_segment_mib(1).start();
    let scratch = Scratch::new();
    let archive = scratch.path().join("archive");
    let stream = || {
        let until = cluster.psql("select pg_current_wal_flush_lsn()");
        let mut command = run(env!("CARGO_BIN_EXE_stream_wal"));
        command
            .arg(cluster.conninfo())
            .arg(&archive)
            .args(["--until", &until]);
        succeeds(command);
    };
    stream();
    let partial = names(&archive)
        .into_iter()
        .find(|name| name.ends_with(".partial"))
        .unwrap();
    let path = archive.join(&partial);
    assert_eq!(
        fs::metadata(&path).unwrap().len(),
        1 << 20,
        "it has the size of a segment at once"
    );
    // What an earlier run had received beyond what the server has sent when it is asked again.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"the only copy", (1 << 20) - 13).unwrap();
    stream();
    let bytes = fs::read(&path).unwrap();
    assert!(bytes.ends_with(b"the only copy"));
    let own = cluster
        .data_dir()
        .join("pg_wal")
        .join(partial.strip_suffix(".partial").unwrap());
    assert!(bytes[..8192] == fs::read(own).unwrap()[..8192]);
}

#[test]
fn a_slot_that_is_older_than_a_promotion_is_followed_from_its_own_timeline() {
    for major in [PgMajor::V13, PgMajor::V18] {
        let mut cluster = Cluster::builder(major)
            .wal_segment_mib(1)
            .setting("wal_keep_size", "1GB")
            .hba("local all mute reject")
            .start();
        cluster.psql("create role mute login replication");
        cluster.psql("select pg_create_physical_replication_slot('old', true)");
        cluster.psql("create table t as select generate_series(1, 50000); select pg_switch_wal()");
        let inside = cluster.psql("select pg_current_wal_flush_lsn()");
        cluster.psql("create table u as select generate_series(1, 50000); select pg_switch_wal()");
        promote(&mut cluster);
        cluster.psql("insert into t select generate_series(1, 50000); select pg_switch_wal()");
        let scratch = Scratch::new();
        let stream = |directory: &str, user: &str, until: &str| {
            let mut command = run(env!("CARGO_BIN_EXE_stream_wal"));
            command
                .arg(format!("{} user={user}", cluster.conninfo()))
                .arg(scratch.path().join(directory))
                .args(["--slot", "old", "--until", until]);
            succeeds(command)
        };
        // A slot that nobody has read from keeps its place while what is durable is reported.
        let own = cluster.data_dir().join("pg_wal");
        // A server that cannot be asked where the slot begins: that is not hidden.
        let now = cluster.psql("select pg_current_wal_flush_lsn()");
        if major < PgMajor::V15 {
            cluster.psql("select pg_copy_physical_replication_slot('old', 'kept')");
            let warned = stream("warned", "mute", &now);
            let complaint = String::from_utf8_lossy(&warned.stderr);
            assert!(
                complaint.contains("warning: what slot old keeps"),
                "{complaint}"
            );
            cluster.psql("select pg_drop_replication_slot('old'); select pg_copy_physical_replication_slot('kept', 'old')");
        }
        // Enough on the old timeline is enough.
        let output = stream("part", "postgres", &inside);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        let part = names(&scratch.path().join("part"));
        assert!(
            part.iter().all(|name| name.starts_with("00000001")),
            "{part:?}"
        );
        // And on to the new one.
        let output = stream("part", "postgres", &now);
        assert!(String::from_utf8_lossy(&output.stdout).contains("timeline 1 ends at"));
        let all = names(&scratch.path().join("part"));
        assert!(all.contains("00000002.history"), "{all:?}");
        let mut timelines = BTreeSet::new();
        for name in all.iter().filter(|name| name.len() == 24) {
            timelines.insert(&name[..8]);
            let bytes = fs::read(scratch.path().join("part").join(name)).unwrap();
            assert!(
                bytes == fs::read(own.join(name)).unwrap(),
                "{major}: {name}"
            );
        }
        assert_eq!(timelines.len(), 2, "{major}: {all:?}");
        // It began with what the slot keeps, not with what is newest.
        let first = all.iter().find(|name| name.len() == 24).unwrap();
        assert!(
            first.starts_with("00000001") && all.len() > 6,
            "{major}: {all:?}"
        );
    }
}
