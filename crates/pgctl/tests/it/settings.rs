//! Settings offline and online; the server's own view of its files is the oracle.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::support::*;

#[test]
fn files_are_read_as_the_server_reads_them() {
    run(async {
        for major in PgMajor::ALL {
            let fixture = Fixture::new(major).await;
            let instance = &fixture.instance;
            let data = instance.data_dir();
            fs::create_dir(data.join("more.d")).unwrap();
            fs::write(
                data.join("more.d/b.conf"),
                "work_mem = 3MB # b\nmy.b = 'it''s'\n",
            )
            .unwrap();
            fs::write(
                data.join("more.d/a.conf"),
                "work_mem = 2MB\nmy.a = '\\101\\\\'\n",
            )
            .unwrap();
            fs::write(data.join("more.d/.hidden.conf"), "work_mem = 9MB\n").unwrap();
            fs::write(data.join("more.d/other.txt"), "work_mem = 9MB\n").unwrap();
            fs::create_dir(data.join("inner")).unwrap();
            fs::write(
                data.join("inner/one.conf"),
                "include 'two.conf'\nMaintenance_Work_Mem=100MB\n",
            )
            .unwrap();
            fs::write(data.join("inner/two.conf"), "my.two -1.5e3\n").unwrap();
            fixture.configure(
                "include_dir = 'more.d'\ninclude 'inner/one.conf'\ninclude_if_exists 'nowhere.conf'\n\
                 wal_keep_size = 256MB\nStatement_Timeout   '1 min'\t# comment",
            );
            let user = instance.os_user();
            let chown = std::process::Command::new("chown")
                .args(["-R", &format!("{}:{}", user.uid(), user.gid())])
                .arg(data)
                .status();
            assert!(chown.unwrap().success());
            instance.start(&start_options()).await.unwrap();
            query(instance, "ALTER SYSTEM SET maintenance_work_mem = '99MB'").await;
            instance.reload().unwrap();

            let ours = instance.file_settings();
            assert!(ours.problems().is_empty(), "{:?}", ours.problems());
            let mut client = instance.connect("postgres").await.unwrap();
            let view = "SELECT lower(name), setting, sourcefile, sourceline FROM pg_file_settings \
                        WHERE error IS NULL ORDER BY seqno";
            let results = client.simple_query(view).await.unwrap();
            // The last line for a name is the one that counts.
            let theirs: BTreeMap<&str, _> = results[0]
                .rows()
                .iter()
                .map(|row| (row.get(0).unwrap(), row))
                .collect();
            assert!(theirs.len() > 15);
            for (name, row) in &theirs {
                let found = ours
                    .get(name)
                    .unwrap_or_else(|| panic!("{major}: {name} was not found"));
                assert_eq!(found.value, row.get(1).unwrap(), "{name}");
                let file = Path::new(row.get(2).unwrap()).canonicalize().unwrap();
                assert_eq!(found.file.canonicalize().unwrap(), file, "{name}");
                assert_eq!(found.line.to_string(), row.get(3).unwrap(), "{name}");
            }
            assert_eq!(theirs.len(), ours.iter().count(), "and nothing else");
            assert_eq!(ours.value("work_mem"), Some("3MB"));
            assert_eq!(ours.value("my.b"), Some("it's"));
            assert_eq!(ours.value("my.a"), Some("A\\"));

            // A line of the user's stands after ours and wins; that is told.
            let shadowed = instance.shadowed_settings().unwrap();
            let names: Vec<_> = shadowed.iter().map(|one| one.name.as_str()).collect();
            assert_eq!(names, ["wal_keep_size"]);
            assert_eq!(shadowed[0].by.value, "256MB");

            // Effective values with and without a server, defaults too.
            assert_eq!(instance.setting("wal_keep_size").await.unwrap(), "256");
            drop(client);
            instance.stop(&StopOptions::default()).await.unwrap();
            assert_eq!(
                instance.setting("maintenance_work_mem").await.unwrap(),
                (99 * 1024).to_string()
            );
            assert_eq!(instance.setting("max_connections").await.unwrap(), "100");
            let error = instance.setting("no_such_setting").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadSetting);
        }
    });
}

#[test]
fn ours_are_set_without_touching_a_users_file_and_bad_ones_are_refused() {
    run(async {
        let fixture = Fixture::new(PgMajor::V17).await;
        let instance = &fixture.instance;
        let conf = instance.data_dir().join("postgresql.conf");
        let before = fs::read(&conf).unwrap();
        instance
            .set_own(&[("shared_buffers", "32MB"), ("my.text", "it's \\ so")])
            .await
            .unwrap();
        for (name, value) in [
            ("shared_buffers", "lots"),
            ("no_such", "1"),
            ("max_connections", "-4"),
        ] {
            let error = instance
                .set_own(&[("work_mem", "8MB"), (name, value)])
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadSetting, "{name}");
        }
        assert_eq!(fs::read(&conf).unwrap(), before);
        let own = OwnSettings::read(instance.data_dir()).unwrap().unwrap();
        assert_eq!(own.get("SHARED_BUFFERS"), Some("32MB"));
        assert_eq!(own.get("work_mem"), None, "all or nothing");
        instance.start(&start_options()).await.unwrap();
        assert_eq!(query(instance, "SHOW my.text").await, "it's \\ so");
        let online = instance.online_settings().await.unwrap();
        let buffers = online
            .iter()
            .find(|one| one.name == "shared_buffers")
            .unwrap();
        assert_eq!(
            (
                buffers.value.as_str(),
                buffers.context.as_str(),
                buffers.pending_restart
            ),
            ("4096", "postmaster", false)
        );
        instance
            .set_own(&[("shared_buffers", "64MB")])
            .await
            .unwrap();
        instance.reload().unwrap();
        let start = std::time::Instant::now();
        loop {
            let online = instance.online_settings().await.unwrap();
            if online
                .iter()
                .any(|one| one.name == "shared_buffers" && one.pending_restart)
            {
                break;
            }
            assert!(start.elapsed() < PATIENCE);
        }
        instance.stop(&StopOptions::default()).await.unwrap();

        // Somebody else's cluster has no file of ours, and gets none.
        fs::remove_file(instance.data_dir().join(OWN_SETTINGS_FILE)).unwrap();
        let error = instance.set_own(&[("work_mem", "8MB")]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadSetting);
        assert!(error.hint().unwrap().contains("include_if_exists"));
    });
}

#[test]
fn mistakes_in_files_are_problems_with_file_and_line() {
    run(async {
        let fixture = Fixture::new(PgMajor::V13).await;
        fixture.configure("include '/nonexistent/a.conf'\nbroken = 'open\ninclude_dir '/nonexistent/d'\ninclude 'postgresql.conf'\nwork_mem = 7MB");
        let files = fixture.instance.file_settings();
        let problems = files.problems().join("\n");
        for part in [
            "/nonexistent/a.conf",
            "syntax error",
            "/nonexistent/d",
            "nested too deeply",
        ] {
            assert!(problems.contains(part), "{problems}");
        }
        assert_eq!(files.value("work_mem"), Some("7MB"));
    });
}
