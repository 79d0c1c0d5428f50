//! Finding installations.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use super::support::*;

/// A folder that looks like an installation of this version to whoever runs its programs.
fn fake(bin_dir: &Path, version: &str) {
    fs::create_dir_all(bin_dir).unwrap();
    for tool in ["postgres", "initdb"] {
        let path = bin_dir.join(tool);
        fs::write(
            &path,
            format!("#!/bin/sh\necho '{tool} (PostgreSQL) {version}'\n"),
        )
        .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn versions(found: &Discovered) -> Vec<String> {
    found
        .installations()
        .map(|installation| installation.version().to_string())
        .collect()
}

#[test]
fn every_installed_major_is_found_and_chosen() {
    let mut discovery = Discovery::new().without_distributions();
    for one in neon_testkit::Installation::all() {
        discovery = discovery.with_dir(one.bin_dir());
    }
    let found = discovery.run();
    for one in neon_testkit::Installation::all() {
        let chosen = found.of(one.major()).unwrap();
        assert_eq!(chosen.version().to_string(), one.version());
        assert_eq!(
            chosen.has_client_tools(),
            one.full_tools(),
            "{}",
            one.version()
        );
        assert_eq!(chosen.tool("psql").is_ok(), one.full_tools());
        assert!(chosen.extension_lib_dir().is_some() && chosen.share_dir().is_some());
    }
    assert_eq!(found.newest().unwrap().major(), PgMajor::V18);
    assert!(found.unusable().is_empty());
}

#[test]
fn path_pg_config_and_the_folders_of_distributions_are_looked_through() {
    let root = tempfile::tempdir().unwrap();
    let at = |path: &str| root.path().join(path);
    for (dir, version) in [
        ("usr/lib/postgresql/13/bin", "13.1"),
        ("usr/lib/postgresql/15/bin", "15.2 (Debian 15.2-1)"),
        ("usr/pgsql-16/bin", "16.3"),
        ("opt/homebrew/opt/postgresql@14/bin", "14.4"),
        ("Applications/Postgres.app/Contents/Versions/17/bin", "17.5"),
        ("usr/libexec/postgresql18", "18.6"),
        ("usr/lib/postgresql/12/bin", "12.7"),
        ("on/path", "15.9"),
        ("told/bin", "16.9"),
    ] {
        fake(&at(dir), version);
    }
    symlink(
        at("Applications/Postgres.app/Contents/Versions/17"),
        at("Applications/Postgres.app/Contents/Versions/latest"),
    )
    .unwrap();
    fs::create_dir(at("tools")).unwrap();
    let pg_config = at("tools/pg_config");
    fs::write(
        &pg_config,
        format!("#!/bin/sh\necho {}\n", at("told/bin").display()),
    )
    .unwrap();
    fs::set_permissions(&pg_config, fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::join_paths([at("on/path"), at("tools"), "relative".into()]).unwrap();

    let found = Discovery::new()
        .with_root(root.path())
        .with_path(path)
        .run();
    let mut all = versions(&found);
    all.sort();
    assert_eq!(
        all,
        [
            "13.1", "14.4", "15.2", "15.9", "16.3", "16.9", "17.5", "18.6"
        ]
    );
    let source = |version: &str| {
        let mut sources = found.sources();
        sources
            .find(|(one, _)| one.version().to_string() == version)
            .unwrap()
            .1
    };
    assert_eq!(source("15.9"), Source::Path);
    assert_eq!(source("16.9"), Source::PgConfig);
    assert_eq!(source("13.1"), Source::Distribution);
    // The newest minor of a major; the newest major of all; a named folder before anything.
    assert_eq!(
        found.of(PgMajor::V15).unwrap().version().to_string(),
        "15.9"
    );
    assert_eq!(found.newest().unwrap().major(), PgMajor::V18);
    assert_eq!(
        found.unusable().len(),
        1,
        "12 is told: {:?}",
        found.unusable()
    );
    assert_eq!(found.unusable()[0].kind(), ErrorKind::Unsupported);
    let named = Discovery::new()
        .with_root(root.path())
        .with_dir(at("usr/lib/postgresql/15"))
        .run();
    assert_eq!(
        named.of(PgMajor::V15).unwrap().version().to_string(),
        "15.2"
    );
}

/// As an administrator puts some programs of a distribution where everybody's search path leads.
#[test]
fn programs_that_are_links_are_those_that_they_lead_to_with_all_that_are_beside_these() {
    let real = installation(PgMajor::V15);
    let links = tempfile::tempdir().unwrap();
    for program in ["initdb", "pg_ctl", "postgres"] {
        let to = real.bin_dir().join(program);
        symlink(to, links.path().join(program)).unwrap();
    }
    let found = Discovery::new()
        .without_distributions()
        .with_path(std::env::join_paths([links.path(), real.bin_dir()]).unwrap())
        .run();
    let found: Vec<_> = found.installations().cloned().collect();
    assert_eq!(found, std::slice::from_ref(&real));
    assert!(found[0].tool("pg_amcheck").is_ok());
    assert_eq!(Installation::at(links.path()).unwrap(), real);
    // A server alone that leads away is no installation there.
    let lone = tempfile::tempdir().unwrap();
    fs::write(lone.path().join("postgres"), "").unwrap();
    fs::remove_file(links.path().join("postgres")).unwrap();
    symlink(lone.path().join("postgres"), links.path().join("postgres")).unwrap();
    assert!(Installation::at(links.path()).is_err());
}

#[test]
fn none_found_names_the_command_that_installs_one() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("etc")).unwrap();
    fs::write(root.path().join("etc/os-release"), "ID=debian\n").unwrap();
    let nothing = Discovery::new().with_root(root.path()).run();
    let error = nothing.newest().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoInstallation);
    if cfg!(target_os = "linux") {
        assert!(
            error
                .hint()
                .unwrap()
                .contains("create_main_cluster = false"),
            "{error:?}"
        );
    }
    fake(&root.path().join("usr/lib/postgresql/15/bin"), "15.2");
    let one = Discovery::new().with_root(root.path()).run();
    let error = one.of(PgMajor::V17).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoInstallation);
    assert!(error.reason().contains("15.2"), "{error}");
    let empty = root.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let named = Discovery::new()
        .without_distributions()
        .with_dir(empty)
        .run();
    assert_eq!(named.unusable()[0].kind(), ErrorKind::NoInstallation);
}

/// Programs that were built to look for their libraries elsewhere are run with those beside them.
#[cfg(target_os = "linux")]
#[test]
fn an_unpacked_tree_that_misses_its_libraries_is_run_with_those_beside_it() {
    run(async {
        let original = neon_testkit::Installation::of(PgMajor::V13).bin_dir();
        let scratch = Scratch::new();
        let tree = scratch.path().join("tree");
        fs::create_dir_all(tree.join("bin")).unwrap();
        for part in ["lib", "share"] {
            symlink(original.join("..").join(part), tree.join(part)).unwrap();
        }
        let mut changed = 0;
        for tool in ["postgres", "initdb", "pg_ctl"] {
            let mut bytes = fs::read(original.join(tool)).unwrap();
            let (from, to) = (b"$ORIGIN/../lib", b"/nonexistent/x");
            while let Some(at) = bytes.windows(from.len()).position(|window| window == from) {
                bytes[at..at + from.len()].copy_from_slice(to);
                changed += 1;
            }
            let path = tree.join("bin").join(tool);
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        assert!(changed > 0, "the programs carry no search path to break");
        let installation = Installation::at(tree.join("bin")).unwrap();
        assert!(installation.library_path().is_some());
        let dir = scratch.path().join("pg");
        let instance = Instance::create(&installation, dir, &create_options())
            .await
            .unwrap();
        instance.start(&start_options()).await.unwrap();
        assert_eq!(query(&instance, "SELECT 1").await, "1");
        instance.stop(&StopOptions::default()).await.unwrap();
        // Without them it is told what is missing.
        fs::remove_file(tree.join("lib")).unwrap();
        let error = Installation::at(tree.join("bin")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::MissingLibrary, "{error:?}");
        assert!(!error.log().is_empty());
    });
}

#[test]
fn programs_that_do_not_work_or_do_not_agree_are_told() {
    let root = tempfile::tempdir().unwrap();
    let bin = root.path().join("bin");
    fake(&bin, "15.1");
    fs::write(
        bin.join("initdb"),
        "#!/bin/sh\necho 'initdb (PostgreSQL) 16.1'\n",
    )
    .unwrap();
    assert_eq!(
        Installation::at(&bin).unwrap_err().kind(),
        ErrorKind::BadInstallation
    );
    fs::write(bin.join("initdb"), "#!/bin/sh\nexit 3\n").unwrap();
    assert_eq!(
        Installation::at(&bin).unwrap_err().kind(),
        ErrorKind::BadInstallation
    );
    fs::write(bin.join("initdb"), "#!/bin/sh\necho something else\n").unwrap();
    assert_eq!(
        Installation::at(&bin).unwrap_err().kind(),
        ErrorKind::BadInstallation
    );
    fs::remove_file(bin.join("initdb")).unwrap();
    assert_eq!(
        Installation::at(&bin).unwrap_err().kind(),
        ErrorKind::NoInstallation
    );
}

/// Programs that note each call in a file beside them.
fn counting(bin: &Path, version: &str) {
    fake(bin, version);
    let told = format!("echo '{}'\n", bin.display());
    fs::write(bin.join("pg_config"), format!("#!/bin/sh\n{told}")).unwrap();
    fs::set_permissions(bin.join("pg_config"), fs::Permissions::from_mode(0o755)).unwrap();
    for tool in ["postgres", "initdb", "pg_config"] {
        let path = bin.join(tool);
        let text = fs::read_to_string(&path).unwrap();
        let note = format!(
            "#!/bin/sh\necho {tool} >> '{}'\n",
            bin.join("calls").display()
        );
        fs::write(path, text.replace("#!/bin/sh\n", &note)).unwrap();
    }
}

#[test]
fn what_programs_said_is_remembered_until_they_are_others() {
    let root = tempfile::tempdir().unwrap();
    let bin = root.path().join("bin");
    counting(&bin, "15.1");
    let calls = || {
        let text = fs::read_to_string(bin.join("calls")).unwrap_or_default();
        drop(fs::remove_file(bin.join("calls")));
        let mut calls: Vec<String> = text.lines().map(str::to_owned).collect();
        calls.sort();
        calls.join(" ")
    };
    let cache = std::sync::Arc::new(InstallationCache::new());
    let looks = || {
        let discovery = Discovery::new().without_distributions();
        let found = discovery
            .with_path(&bin)
            .with_cache(std::sync::Arc::clone(&cache))
            .run();
        assert_eq!(
            cache.at(&bin).unwrap().version().to_string(),
            versions(&found)[0]
        );
        versions(&found)[0].clone()
    };
    // As long as a folder of it is missing, it is looked for.
    assert_eq!(looks(), "15.1");
    assert!(calls().contains("postgres"));
    assert_eq!(looks(), "15.1");
    assert!(calls().contains("postgres"));
    assert_eq!(cache.at(&bin).unwrap().share_dir(), None);
    fs::create_dir(root.path().join("share")).unwrap();
    for file in ["bin/libpqwalreceiver.so", "share/postgres.bki"] {
        fs::write(root.path().join(file), "").unwrap();
    }
    assert!(cache.at(&bin).unwrap().share_dir().is_some());
    cache.clear();
    calls();
    assert_eq!(looks(), "15.1");
    assert_eq!(calls(), "initdb pg_config pg_config postgres");
    assert_eq!(looks(), "15.1");
    assert_eq!(calls(), "");
    // Another process knows what this one learned.
    let learned = serde_json::to_string(&cache.learned().unwrap()).unwrap();
    assert_eq!(cache.learned(), None);
    let other = InstallationCache::new();
    other.recall(serde_json::from_str(&learned).unwrap());
    assert_eq!(other.at(&bin).unwrap(), cache.at(&bin).unwrap());
    assert_eq!((calls().as_str(), other.learned()), ("", None));
    // Libraries come beside the programs, others come there, and they go.
    let lib = root.path().join("lib");
    fs::create_dir(&lib).unwrap();
    for change in [
        &|| fs::write(lib.join("libpq.so.5"), "").unwrap(),
        &|| fs::write(lib.join("libpq.so.5.15"), "").unwrap(),
        &|| fs::remove_dir_all(&lib).unwrap(),
    ] as [&dyn Fn(); 3]
    {
        change();
        cache.at(&bin).unwrap();
        assert_eq!(calls(), "initdb pg_config postgres");
        let learned = cache.learned().unwrap();
        let other = InstallationCache::new();
        other.recall(learned);
        for cache in [&*cache, &other] {
            cache.at(&bin).unwrap();
            assert_eq!(calls(), "");
        }
    }
    // What is gone is not learned again.
    let left = root.path().join("left/bin");
    fs::create_dir_all(&left).unwrap();
    counting(&left, "16.1");
    cache.at(&left).unwrap();
    let shown = |cache: &InstallationCache| serde_json::to_string(&cache.learned()).unwrap();
    assert!(shown(&cache).contains("left/bin"));
    fs::remove_dir_all(root.path().join("left")).unwrap();
    fs::create_dir(&lib).unwrap();
    fs::write(lib.join("libpq.so.5"), "").unwrap();
    cache.at(&bin).unwrap();
    assert!(!shown(&cache).contains("left/bin"));
    fs::remove_dir_all(&lib).unwrap();
    cache.at(&bin).unwrap();
    calls();
    // An upgrade.
    let next = root.path().join("next");
    counting(&next, "15.2");
    for tool in ["postgres", "initdb"] {
        let text = fs::read_to_string(next.join(tool)).unwrap();
        let text = text.replace(next.to_str().unwrap(), bin.to_str().unwrap());
        fs::write(next.join(tool), text).unwrap();
        fs::rename(next.join(tool), bin.join(tool)).unwrap();
    }
    assert_eq!(looks(), "15.2");
    assert_eq!(calls(), "initdb pg_config postgres");
    assert_eq!(other.at(&bin).unwrap().version().to_string(), "15.2");
    assert_eq!(calls(), "initdb pg_config postgres");
    cache.clear();
    assert_eq!(looks(), "15.2");
    assert_eq!(calls(), "initdb pg_config pg_config postgres");
    // What does not work is not kept, and gone is gone.
    fs::remove_file(bin.join("initdb")).unwrap();
    assert_eq!(
        cache.at(&bin).unwrap_err().kind(),
        ErrorKind::NoInstallation
    );
}

#[test]
fn root_runs_no_program_that_its_owner_may_exchange() {
    let scratch = neon_testkit::Scratch::new();
    let theirs = scratch.path().join("theirs/bin");
    fs::create_dir_all(&theirs).unwrap();
    for tool in ["postgres", "initdb", "pg_config", "psql"] {
        let path = theirs.join(tool);
        // As who it ran, beside it: where it may write.
        let text = format!("#!/bin/sh\ntouch $0.ran\necho '{tool} (PostgreSQL) 15.18'\n");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    if neon_pgctl::OsUser::current().is_root() {
        chown(&theirs, Some(12345), Some(12345)).unwrap();
    }
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o777)).unwrap();
    // Also by a link from a folder of root's.
    let linked = scratch.path().join("linked");
    fs::create_dir(&linked).unwrap();
    for tool in ["postgres", "initdb"] {
        symlink(theirs.join(tool), linked.join(tool)).unwrap();
    }
    for folder in [&theirs, &linked] {
        let found = Installation::at(folder).unwrap();
        for tool in ["postgres", "initdb", "pg_config"] {
            let ran = theirs.join(format!("{tool}.ran"));
            let uid = fs::metadata(&ran).unwrap().uid();
            if neon_pgctl::OsUser::current().is_root() {
                assert_ne!(uid, 0, "{tool}");
            }
            fs::remove_file(ran).unwrap();
        }
        let root = neon_pgctl::OsUser::current().is_root();
        assert_eq!(found.is_others("psql"), root);
    }
}
