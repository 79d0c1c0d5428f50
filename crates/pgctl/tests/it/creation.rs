//! What can be asked of a creation, and how it fails.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::support::*;

#[test]
fn locale_segment_size_group_access_names_and_passwords_are_as_asked() {
    run(async {
        for major in PgMajor::ALL {
            let options = create_options()
                .with_superuser("boss")
                .with_password("pass:with\\every'thing")
                .with_wal_segment_mib(4)
                .with_group_access()
                .with_locale(Locale::Libc("C".to_owned()))
                .with_setting("work_mem", "3MB")
                .without_checksums();
            let fixture = Fixture::with(major, &options).await;
            let instance = &fixture.instance;
            let mode = fs::metadata(instance.data_dir())
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o750);
            instance.start(&start_options()).await.unwrap();
            assert_eq!(query(instance, "SELECT current_user").await, "boss");
            check_uri(instance).await;
            assert_eq!(query(instance, "SHOW wal_segment_size").await, "4MB");
            assert_eq!(query(instance, "SHOW work_mem").await, "3MB");
            assert_eq!(query(instance, "SHOW data_checksums").await, "off");
            assert_eq!(query(instance, "SHOW server_encoding").await, "UTF8");
            let control = instance.control_file().unwrap();
            assert!(!control.data_checksums);
            instance.stop(&StopOptions::default()).await.unwrap();
        }
    });
}

/// The URI holds everything there is to know, over TCP and, where nobody listens on TCP, over the socket.
async fn check_uri(instance: &Instance) {
    use neon_pgwire::{Client, Config, Params, Surroundings};
    let connect = async || {
        let uri = instance.uri("postgres").unwrap();
        let params = uri.parse::<Params>().unwrap();
        let config = Config::resolve(&params, &Surroundings::none()).unwrap();
        Client::connect(&config).await.unwrap();
        uri
    };
    assert!(connect().await.contains("@localhost:"));
    let options = start_options().with_setting("listen_addresses", "");
    instance
        .restart(&StopOptions::default(), &options)
        .await
        .unwrap();
    assert!(connect().await.contains("host=%2F"));
}

#[test]
fn providers_are_taken_where_a_major_has_them_and_refused_where_not() {
    run(async {
        for major in PgMajor::ALL {
            let scratch = Scratch::new();
            let installation = installation(major);
            let builtin = create_options().with_locale(Locale::Builtin("C.UTF-8".to_owned()));
            let outcome = Instance::create(&installation, scratch.path().join("b"), &builtin).await;
            match outcome {
                Ok(_) => assert!(major >= PgMajor::V17),
                Err(error) => {
                    assert!(major < PgMajor::V17, "{error:?}");
                    assert_eq!(error.kind(), ErrorKind::Unsupported);
                }
            }
            let icu = create_options().with_locale(Locale::Icu("de-DE".to_owned()));
            match Instance::create(&installation, scratch.path().join("i"), &icu).await {
                Ok(_) => assert!(major >= PgMajor::V15),
                // Not every build has ICU.
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}"),
            }
            let wrong = create_options().with_locale(Locale::Libc("xx_YY.UTF-8".to_owned()));
            let error = Instance::create(&installation, scratch.path().join("w"), &wrong)
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadSetting, "{error:?}");
            assert!(!scratch.path().join("w").exists());
        }
    });
}

/// `LANG` and its like, `PG*` variables and the umask of the caller do not matter.
#[test]
fn the_environment_of_the_caller_does_not_matter() {
    if std::env::var_os("LC_ALL").is_none_or(|value| value != "ja_JP.eucJP") {
        let test = "creation::the_environment_of_the_caller_does_not_matter";
        let mut command = this_program(test);
        let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", "umask 0777; exec \"$@\"", "sh"])
            .arg(command.get_program())
            .args(arguments);
        for (name, value) in [
            ("LC_ALL", "ja_JP.eucJP"),
            ("LANG", "xx_YY"),
            ("PGDATA", "/nonexistent"),
            ("PGPORT", "1"),
            ("PGOPTIONS", "-c nonsense"),
            ("PGDATESTYLE", "nonsense"),
            ("TZ", "Mars/Olympus"),
        ] {
            shell.env(name, value);
            command.env(name, value);
        }
        // The scratch folder needs a sane umask, so it is this process that makes it.
        let scratch = Scratch::new();
        succeed(shell.env("NEON_PGCTL_UMASK", scratch.path()));
        return;
    }
    run(async {
        let folder = std::env::var_os("NEON_PGCTL_UMASK").unwrap();
        for major in [PgMajor::V13, PgMajor::V18] {
            let dir = std::path::Path::new(&folder).join(major.to_string());
            let instance = Instance::create(&installation(major), dir, &create_options())
                .await
                .unwrap();
            instance.start(&start_options()).await.unwrap();
            assert_eq!(query(&instance, "SHOW server_encoding").await, "UTF8");
            assert_eq!(query(&instance, "SHOW DateStyle").await, "ISO, MDY");
            instance.stop(&StopOptions::default()).await.unwrap();
        }
    });
}

#[test]
fn what_is_there_already_is_not_touched() {
    run(async {
        let scratch = Scratch::new();
        let installation = installation(PgMajor::V16);
        let dir = scratch.path().join("pg");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("mine"), "x").unwrap();
        let error = Instance::create(&installation, &dir, &create_options())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists);
        assert_eq!(fs::read_to_string(dir.join("mine")).unwrap(), "x");
        let file = scratch.path().join("file");
        fs::write(&file, "x").unwrap();
        let error = Instance::create(&installation, &file, &create_options())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists);
        // An empty folder is as good as none.
        fs::remove_file(dir.join("mine")).unwrap();
        Instance::create(&installation, &dir, &create_options())
            .await
            .unwrap();
        let error = Instance::create(
            &installation,
            scratch.path().join("no/where"),
            &create_options(),
        )
        .await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Io);
    });
}

#[test]
fn an_initdb_that_is_killed_leaves_nothing() {
    run(async {
        let scratch = Scratch::new();
        let installation = installation(PgMajor::V17);
        let options = CreateOptions::new();
        let dir = scratch.path().join("pg");
        let creation = Instance::create(&installation, &dir, &options);
        let killer = async {
            let initdb = loop {
                let pids = processes_named("initdb", scratch.path());
                if let Some(pid) = pids.first() {
                    break *pid;
                }
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            };
            super::lifecycle::kill(initdb);
        };
        let (outcome, ()) = tokio::join!(creation, killer);
        outcome.unwrap_err();
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
        // A process that was killed itself leaves a folder, which the next creation removes.
        let left = scratch.path().join(".neon-new-000000000000-pg");
        fs::create_dir_all(left.join("data")).unwrap();
        Instance::create(&installation, &dir, &create_options())
            .await
            .unwrap();
        assert!(!left.exists());
    });
}

/// Processes of this name that were given this folder.
fn processes_named(name: &str, folder: &std::path::Path) -> Vec<i32> {
    let folder = folder.to_str().unwrap();
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            let mut words = line.split('\0');
            words.next().is_some_and(|program| program.ends_with(name)) && line.contains(folder)
        })
        .collect()
}

#[test]
fn root_needs_a_user_that_exists_and_can_reach_the_folder() {
    let error = OsUser::named("no-such-user-here").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoOsUser);
    assert!(error.hint().unwrap().contains("no-such-user-here"));
    if !we_are_root() {
        return;
    }
    run(async {
        let scratch = Scratch::new();
        let closed = scratch.path().join("closed");
        fs::create_dir_all(closed.join("inner")).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::chown(&closed, Some(0), Some(0)).unwrap();
        let dir = closed.join("inner/pg");
        let error = Instance::create(&installation(PgMajor::V15), dir, &create_options())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Permissions);
        assert_eq!(error.subject(), closed.display().to_string());
        assert_eq!(fs::read_dir(closed.join("inner")).unwrap().count(), 0);
        let root = create_options().with_os_user(OsUser::from_ids(0, 0));
        let error =
            Instance::create(&installation(PgMajor::V15), scratch.path().join("r"), &root).await;
        assert_eq!(error.unwrap_err().kind(), ErrorKind::NoOsUser);
    });
}

/// The folder that a process of one of the tests below works in, which has little room.
const SMALL: &str = "NEON_PGCTL_SMALL";

#[test]
fn a_full_disk_is_told_and_nothing_half_done_stays() {
    if let Some(folder) = std::env::var_os(SMALL) {
        run(full_disk(std::path::Path::new(&folder), false));
        return;
    }
    // A mount that only one process sees, and that is gone with it. Not everybody may mount: then a size
    // limit has to do here too.
    let mount = ["--mount", "--propagation", "private"];
    let mut probe = Command::new("unshare");
    probe
        .args(mount)
        .args(["mount", "-t", "tmpfs", "none", "/mnt"]);
    if !probe.output().is_ok_and(|output| output.status.success()) {
        a_limit_on_the_size_of_files_is_told_as_a_full_disk();
        return;
    }
    let script = "mount -t tmpfs -o size=100m,mode=755 none \"$0\" && exec \"$@\"";
    in_little_room(
        Command::new("unshare").args(mount),
        script,
        "creation::a_full_disk_is_told_and_nothing_half_done_stays",
    );
}

/// WAL that nobody takes away fills the disk.
#[test]
fn archiving_comes_only_with_a_command_that_can_work() {
    run(async {
        let scratch = Scratch::new();
        let installation = installation(PgMajor::V15);
        let archived = |command: &str| {
            let options = create_options().with_setting("archive_mode", "on");
            options.with_setting("archive_command", command)
        };
        for bad in [
            create_options().with_setting("archive_mode", "always"),
            archived(" "),
            archived("cp %p '/tmp/%f"),
            archived("no_such_program %p"),
            archived("/no/such/program %p"),
        ] {
            let dir = scratch.path().join("pg");
            let error = Instance::create(&installation, &dir, &bad)
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadSetting, "{error:?}");
            assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
        }
        let fixture = Fixture::with(PgMajor::V15, &archived("test -e /nowhere/%f || true")).await;
        let instance = &fixture.instance;
        let error = instance
            .set_own(&[("archive_command", "")])
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadSetting, "{error:?}");
        instance
            .set_own(&[("archive_command", "true"), ("work_mem", "5MB")])
            .await
            .unwrap();
        instance
            .set_own(&[("archive_command", ""), ("archive_mode", "off")])
            .await
            .unwrap();
    });
}

#[test]
fn a_limit_on_the_size_of_files_is_told_as_a_full_disk() {
    if let Some(folder) = std::env::var_os(SMALL) {
        run(full_disk(std::path::Path::new(&folder), true));
        return;
    }
    in_little_room(
        &mut Command::new("env"),
        "ulimit -f 4096; exec \"$@\"",
        "creation::a_limit_on_the_size_of_files_is_told_as_a_full_disk",
    );
}

/// Runs a test again in another process, in a folder that the script has made small.
fn in_little_room(command: &mut Command, script: &str, test: &str) {
    let scratch = Scratch::new();
    let folder = scratch.path().join("small");
    fs::create_dir(&folder).unwrap();
    if we_are_root() {
        // The server's user need not own it: an instance has a folder of its own below.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let this = this_program(test);
    command.args(["/bin/sh", "-c", script]).arg(&folder);
    command
        .arg(this.get_program())
        .args(this.get_args())
        .env(SMALL, &folder);
    succeed(command);
}

async fn full_disk(folder: &std::path::Path, limited: bool) {
    for major in PgMajor::ALL {
        let installation = installation(major);
        let filler = folder.join("filler");
        if !limited {
            fill(&filler, 85);
        }
        let dir = folder.join("pg");
        let error = Instance::create(&installation, &dir, &create_options())
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DiskFull, "{error:?}");
        drop(fs::remove_file(&filler));
        assert_eq!(
            fs::read_dir(folder).unwrap().count(),
            0,
            "nothing is left of it"
        );
        if limited {
            continue;
        }
        let instance = Instance::create(&installation, &dir, &create_options())
            .await
            .unwrap();
        instance.start(&start_options()).await.unwrap();
        instance.stop(&StopOptions::default()).await.unwrap();
        fill(&filler, 1000);
        let error = instance.start(&start_options()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DiskFull, "{error:?}");
        assert!(postgres_in(instance.data_dir()).is_empty());
        let error = instance.set_own(&[("work_mem", "5MB")]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DiskFull, "{error:?}");
        fs::remove_file(&filler).unwrap();
        instance.start(&start_options()).await.unwrap();
        assert_eq!(query(&instance, "SHOW work_mem").await, "4MB");
        instance.stop(&StopOptions::default()).await.unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }
}

/// Fills a file system with a file of so many MiB, or until it is full.
fn fill(path: &std::path::Path, mib: usize) {
    use std::io::Write;
    let mut file = fs::File::create(path).unwrap();
    let chunk = vec![1; 1 << 20];
    for _ in 0..mib {
        if file.write_all(&chunk).is_err() {
            break;
        }
    }
    // The rest of a chunk.
    while file.write_all(&[1; 512]).is_ok() && mib > 500 {}
}
