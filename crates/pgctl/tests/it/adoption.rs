//! Clusters that somebody else created, configured elsewhere, and runs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::support::*;

/// Every file below a folder with what would change if it was written.
fn state(dir: &Path) -> BTreeMap<PathBuf, (i64, i64, u64)> {
    let mut all = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                folders.push(entry.path());
            }
            all.insert(entry.path(), (meta.mtime(), meta.mtime_nsec(), meta.len()));
        }
    }
    all
}

#[test]
fn a_cluster_in_debians_layout_is_described_and_not_touched() {
    run(async {
        for major in PgMajor::ALL {
            let fixture = Fixture::new(major).await;
            let ours = &fixture.instance;
            // A tablespace, then the configuration moves out of the data directory as Debian has it.
            let tablespace = fixture.scratch.path().join("tablespace");
            fs::create_dir(&tablespace).unwrap();
            let user = ours.os_user().clone();
            let own = |path: &Path| {
                std::os::unix::fs::chown(path, Some(user.uid()), Some(user.gid())).unwrap();
            };
            own(&tablespace);
            ours.start(&start_options()).await.unwrap();
            query(
                ours,
                &format!("CREATE TABLESPACE t LOCATION '{}'", tablespace.display()),
            )
            .await;
            ours.stop(&StopOptions::default()).await.unwrap();
            let etc = fixture.scratch.path().join("etc");
            let cluster = etc.join(major.to_string()).join("main");
            fs::create_dir_all(&cluster).unwrap();
            let data = ours.data_dir().to_owned();
            for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
                fs::rename(data.join(name), cluster.join(name)).unwrap();
            }
            let run_dir = fixture.scratch.path().join("run");
            fs::create_dir(&run_dir).unwrap();
            own(&run_dir);
            let conf = cluster.join("postgresql.conf");
            let mut text = fs::read_to_string(&conf).unwrap();
            text.push_str(&format!(
                "data_directory = '{}'\nhba_file = '{}'\nident_file = '{}'\nport = 5433\n\
                 listen_addresses = ''\nunix_socket_directories = '{}'\n",
                data.display(),
                cluster.join("pg_hba.conf").display(),
                cluster.join("pg_ident.conf").display(),
                run_dir.display()
            ));
            fs::write(&conf, text).unwrap();

            // It does not run: found by its folder in etc.
            let options = AdoptOptions::new().with_etc(&etc);
            fs::remove_file(data.join("postmaster.opts")).unwrap();
            let before = state(fixture.scratch.path());
            let adopted = Adopted::describe(&data, &options).unwrap();
            assert_eq!(state(fixture.scratch.path()), before);
            assert_eq!(adopted.config_file.as_deref(), Some(conf.as_path()));
            assert_eq!(adopted.hba_file, Some(cluster.join("pg_hba.conf")));
            assert_eq!((adopted.pid, adopted.port), (None, Some(5433)));
            assert_eq!(
                adopted.managed_by,
                ManagedBy::DebianCluster {
                    name: "main".to_owned()
                }
            );
            assert_eq!(adopted.tablespaces.len(), 1);
            assert_eq!(adopted.tablespaces[0].location, tablespace);
            assert_eq!(adopted.os_user.uid(), user.uid());
            assert!(adopted.checksums && adopted.major == major && adopted.wal_dir.is_none());

            // Somebody starts it, with a program of the distribution.
            let mut pg_ctl = ours.installation().command("pg_ctl", &user).unwrap();
            let log = run_dir.join("log");
            pg_ctl
                .arg("-D")
                .arg(&data)
                .arg("-l")
                .arg(&log)
                .args(["-w", "start", "-o"]);
            pg_ctl.arg(format!("-c config_file={}", conf.display()));
            pg_ctl
                .stdout(std::process::Stdio::null())
                .stderr(std::process::Stdio::null());
            assert!(
                pg_ctl.status().unwrap().success(),
                "{}",
                fs::read_to_string(&log).unwrap_or_default()
            );
            let running = Adopted::describe(&data, &AdoptOptions::new()).unwrap();
            assert_eq!(running.config_file.as_deref(), Some(conf.as_path()));
            assert_eq!(running.socket_dir.as_deref(), Some(run_dir.as_path()));
            assert_eq!(
                running.bin_dir.as_deref(),
                Some(ours.installation().bin_dir())
            );
            assert_eq!(running.port, Some(5433));
            let pid = running.pid.unwrap();
            assert!(Adopted::running().contains(&data));

            // Told truthfully, and stopped and started when asked to, with its own configuration.
            let theirs = running
                .instance(
                    ours.installation(),
                    fixture.scratch.path().join("log"),
                    "/nonexistent",
                )
                .unwrap();
            let theirs = theirs.with_pass_file(fixture.dir().join("pgpass"));
            let status = theirs.status().await.unwrap();
            assert_eq!(
                (status.state, status.pid, status.answer),
                (ServerState::Running, Some(pid), Answer::Accepting)
            );
            assert_eq!(query(&theirs, "SELECT 1").await, "1");
            let error = theirs.start(&start_options()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyRunning);
            let text = fs::read(&conf).unwrap();
            theirs
                .restart(&StopOptions::default(), &start_options())
                .await
                .unwrap();
            assert_eq!(query(&theirs, "SHOW port").await, "5433");
            theirs.stop(&StopOptions::default()).await.unwrap();
            assert_eq!(fs::read(&conf).unwrap(), text);
            // The command line of the last start tells where the configuration is.
            let stopped =
                Adopted::describe(&data, &AdoptOptions::new().with_etc("/nonexistent")).unwrap();
            assert_eq!(stopped.config_file.as_deref(), Some(conf.as_path()));
            assert_eq!(stopped.managed_by, ManagedBy::Unknown);
        }
    });
}

#[test]
fn a_single_user_server_is_seen() {
    run(async {
        let fixture = Fixture::new(PgMajor::V15).await;
        let instance = &fixture.instance;
        let mut single = instance
            .installation()
            .command("postgres", instance.os_user())
            .unwrap();
        single
            .args(["--single", "-D"])
            .arg(instance.data_dir())
            .arg("postgres");
        single
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::null());
        let mut child = single.spawn().unwrap();
        let file = instance.data_dir().join("postmaster.pid");
        until("its pid file", || {
            fs::read_to_string(&file).is_ok_and(|text| !text.is_empty())
        })
        .await;
        assert_eq!(
            instance.status().await.unwrap().state,
            ServerState::SingleUser
        );
        let error = instance.start(&start_options()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyRunning);
        drop(child.stdin.take());
        assert!(child.wait().unwrap().success());
    });
}
