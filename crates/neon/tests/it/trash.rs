//! What the trash has on disk and does not remember.

use std::fs;
use std::path::Path;

use neon_pg::{DoctorOptions, ErrorKind};

use crate::support::{Fixture, name, refused};

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
    pg.finish_purges().await;
    assert!(!renamed.iter().any(|path| path.exists()));
}
