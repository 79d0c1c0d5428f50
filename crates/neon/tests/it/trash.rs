//! What the trash has on disk and does not remember.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use neon_pg::{AdoptPg, DoctorOptions, ErrorKind};
use neon_testkit::{Installation, OsUser};

use crate::support::{Fixture, end_server, name, refused};

/// Makes the trash forget an instance.
fn forget(home: &Path, id: &str) {
    fs::remove_file(home.join(format!("state/trash/{id}.json"))).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_trash_does_not_remember_is_told_and_freed_and_nothing_of_others() {
    let home = Fixture::new();
    let (pg, root) = (home.neon.pg(), home.scratch.path().join("home"));
    let away = home.scratch.path().join("away");
    neon_testkit::OsUser::current().create_dir(&away);
    let mut one = home.stopped("one");
    one.pgdata = Some(away.join("data"));
    pg.create(&one).await.unwrap();
    pg.create(&home.stopped("two")).await.unwrap();
    pg.create(&home.stopped("three")).await.unwrap();
    let one = pg.destroy(&name("one")).await.unwrap();
    let two = pg.destroy(&name("two")).await.unwrap();
    let three = pg.destroy(&name("three")).await.unwrap();
    // As in a home whose instances are on a disk of their own.
    let beside = root.join(format!("pg/.trash-{two}"));
    fs::rename(root.join("trash").join(&two), &beside).unwrap();
    let kept = away.join(format!(".neon-trash-{one}"));
    // Of other homes, and of other programs.
    let others = [
        away.join(".neon-trash-0123456789abcdef"),
        away.join(format!(".neon-trash-{one}-more")),
        away.join(format!("neon-trash-{one}")),
        root.join("trash/strange"),
    ];
    others.iter().for_each(|path| fs::create_dir(path).unwrap());
    assert_eq!(pg.left_in_trash().await.unwrap(), []);
    assert_eq!(pg.trash().await.unwrap().len(), 3);

    forget(&root, &one);
    forget(&root, &two);
    let left = pg.left_in_trash().await.unwrap();
    let told: Vec<_> = left.iter().map(|one| (&one.path, &*one.id)).collect();
    let shell = root.join("trash").join(&one);
    let mut wanted = vec![(&kept, &*one), (&beside, &*two), (&shell, &*one)];
    wanted.sort();
    assert_eq!(told, wanted);
    assert!(left.iter().all(|one| one.name.is_some()), "{left:?}");
    let used = left.iter().filter(|one| one.path != shell);
    assert!(used.clone().all(|one| one.used > 1 << 20), "{left:?}");
    let report = home.neon.doctor(&DoctorOptions::default()).await.unwrap();
    let unknown = |code: &str| {
        let all = report.findings.iter().filter(|one| one.code == code);
        all.count()
    };
    assert_eq!(unknown("trash-unknown"), 4, "{report:#?}");

    for one in &left {
        pg.purge_left(one).await.unwrap();
        assert!(!one.path.exists());
        assert_eq!(refused(pg.purge_left(one).await), ErrorKind::NotFound);
    }
    assert_eq!(pg.left_in_trash().await.unwrap(), []);
    assert!(others.iter().all(|path| path.exists()));
    // What is remembered still comes back.
    pg.undo_destroy(&three).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_was_killed_after_it_took_the_name_away_is_finished() {
    let home = Fixture::new();
    let (pg, root) = (home.neon.pg(), home.scratch.path().join("home"));
    let away = home.scratch.path().join("away");
    neon_testkit::OsUser::current().create_dir(&away);
    let mut one = home.stopped("one");
    one.pgdata = Some(away.join("data"));
    pg.create(&one).await.unwrap();
    let one = pg.destroy(&name("one")).await.unwrap();
    let renamed = away.join(".neon-remove.0123456789abcdef");
    fs::rename(away.join(format!(".neon-trash-{one}")), &renamed).unwrap();
    let marks = root.join("state/trash");
    let mark = marks.join(format!("{one}.gone"));
    fs::rename(marks.join(format!("{one}.json")), &mark).unwrap();
    let report = home.neon.doctor(&DoctorOptions::default()).await.unwrap();
    let left = report.findings.iter().find(|one| one.code == "folder-left");
    assert_eq!(left.unwrap().subject, renamed.display().to_string());
    pg.finish_purges().await;
    assert!(!renamed.exists() && !mark.exists());
    // The place is known also when no record speaks of it any more, and `pg` is looked through, too.
    let renamed = [renamed, root.join("pg/.neon-remove.0123456789abcdef")];
    for path in &renamed {
        fs::create_dir(path).unwrap();
        fs::write(path.join("PG_VERSION"), "15").unwrap();
    }
    // What others are at, or left, beside a chosen place.
    let others = [
        away.join(".neon-clone.0123456789abcdef"),
        away.join(".neon-probe.0123456789abcdef"),
    ];
    others.iter().for_each(|path| fs::create_dir(path).unwrap());
    pg.finish_purges().await;
    assert!(!renamed.iter().any(|path| path.exists()));
    assert!(others.iter().all(|path| path.exists()));
}

/// Ends the server of a data directory with the test.
struct Ended(PathBuf);

impl Drop for Ended {
    fn drop(&mut self) {
        end_server(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_adopted_or_runs_is_not_left_in_the_trash() {
    let home = Fixture::new();
    let (pg, root) = (home.neon.pg(), home.scratch.path().join("home"));
    let away = home.scratch.path().join("away");
    OsUser::current().create_dir(&away);
    let mut all = Vec::new();
    for text in ["adopted", "runs", "nobodys"] {
        let mut create = home.stopped(text);
        create.pgdata = Some(away.join(text));
        pg.create(&create).await.unwrap();
        all.push(pg.destroy(&name(text)).await.unwrap());
    }
    let kept = |id: &str| away.join(format!(".neon-trash-{id}"));
    all.iter().for_each(|id| forget(&root, id));
    // Its folder in the home is of the same instance, and may have its password.
    let tablespaces = away.join(format!(".neon-trash-{}-tablespaces", all[0]));
    fs::create_dir(&tablespaces).unwrap();
    let before = pg.left_in_trash().await.unwrap();
    assert_eq!(before.len(), 7, "{before:?}");

    let mut adopt = AdoptPg::new(kept(&all[0]));
    adopt.name = Some(name("saved"));
    let adopted = pg.adopt(&adopt).await.unwrap();
    assert_ne!(adopted.record.id, all[0]);
    let running = Ended(kept(&all[1]));
    let mut pg_ctl = Installation::of(neon_pg::PgMajor::V15).command("pg_ctl");
    let options = format!(
        "-c listen_addresses= -c unix_socket_directories={}",
        running.0.display()
    );
    pg_ctl.args(["-w", "-o", &options, "-l"]);
    pg_ctl
        .arg(running.0.join("their.log"))
        .arg("-D")
        .arg(&running.0);
    assert!(
        pg_ctl
            .arg("start")
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .success()
    );

    let left = pg.left_in_trash().await.unwrap();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(left.iter().all(|one| one.id == all[2]), "{left:?}");
    // Whoever agreed to it before that.
    for one in before.iter().filter(|one| one.id != all[2]) {
        pg.purge_left(one).await.unwrap_err();
    }
    for id in &all[..2] {
        let one = before.iter().find(|one| one.path == kept(id)).unwrap();
        assert_eq!(refused(pg.purge_left(one).await), ErrorKind::Busy);
        assert!(kept(id).join("PG_VERSION").exists());
    }
    assert!(tablespaces.exists());
    // What was adopted once, and is forgotten, stays somebody's.
    pg.destroy(&name("saved")).await.unwrap();
    for trashed in pg.trash().await.unwrap() {
        pg.purge(&trashed).await.unwrap();
    }
    let left = pg.left_in_trash().await.unwrap();
    assert!(left.iter().all(|one| one.id == all[2]), "{left:?}");
    for one in &left {
        pg.purge_left(one).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_home_has_in_the_same_trash_is_left_alone() {
    let home = Fixture::new();
    let root = home.scratch.path().join("home");
    home.neon.pg().create(&home.stopped("one")).await.unwrap();
    // Copied with its link to a disk that stays one.
    let disk = home.scratch.path().join("disk");
    fs::rename(root.join("trash"), &disk).unwrap();
    symlink(&disk, root.join("trash")).unwrap();
    let copy = home.scratch.path().join("copy");
    let (from, to) = (root.display().to_string(), copy.display().to_string());
    crate::support::program("cp", &["-a", &from, &to]);
    let second = Fixture::at(neon_pg::PgMajor::V15, &copy);
    home.neon.pg().create(&home.stopped("two")).await.unwrap();
    let id = home.neon.pg().destroy(&name("two")).await.unwrap();
    assert!(disk.join(&id).exists());
    assert_eq!(second.pg().left_in_trash().await.unwrap(), []);
}
