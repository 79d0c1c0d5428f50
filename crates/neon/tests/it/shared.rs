//! Instances that share the blocks of their files, on loop devices, in a process with a mount namespace of its own: with the
//! process the mounts go.

use std::path::Path;

use neon_pg::{CloneMethod, CloneWanted, CreatePg, ErrorKind, PgMajor, RestoreChoice};

use crate::support::{Fixture, name, program, refused, run, sql, take, with_own_mounts};

const KIND: &str = "NEON_PG_FILE_SYSTEM";
const PLACE: &str = "NEON_PG_MOUNT";
const MAJOR: PgMajor = PgMajor::V15;

fn wanted(clone: CloneWanted) -> RestoreChoice {
    let mut how = RestoreChoice::default();
    how.clone = clone;
    how
}

fn stopped(text: &str) -> CreatePg {
    let mut create = CreatePg::default();
    create.major = Some(MAJOR);
    create.name = Some(name(text));
    create.no_start = true;
    create
}

/// Runs [`in_a_namespace`] for a kind of file system.
fn on(kind: &str) {
    let scratch = neon_testkit::Scratch::new();
    let place = scratch.path().to_str().unwrap();
    with_own_mounts("shared::in_a_namespace", &[(KIND, kind), (PLACE, place)]);
}

/// Started by the tests of this module; by itself there is nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_namespace() {
    let (Ok(kind), Ok(place)) = (std::env::var(KIND), std::env::var(PLACE)) else {
        return;
    };
    let place = Path::new(&place);
    let (image, disk) = (place.join("image"), place.join("disk"));
    std::fs::create_dir(&disk).unwrap();
    std::fs::File::create(&image)
        .unwrap()
        .set_len(1 << 30)
        .unwrap();
    let (image, disk_text) = (image.to_str().unwrap(), disk.to_str().unwrap());
    let quiet = if kind == "ext4" { "-Fq" } else { "-fq" };
    program(&format!("mkfs.{kind}"), &[quiet, image]);
    program("mount", &["-t", &kind, "-o", "loop", image, disk_text]);
    program("chmod", &["755", disk_text]);
    shares(&kind, &disk).await;
}

async fn shares(kind: &str, disk: &Path) {
    let home = disk.join("home");
    let neon = Fixture::at(MAJOR, &home);
    let pg = neon.pg();
    let mut origin = stopped("one");
    origin.no_start = false;
    pg.create(&origin).await.unwrap();
    run(
        &neon,
        "one",
        "create table t as select i, repeat('x', 500) f from generate_series(1, 40000) i",
    )
    .await;
    pg.stop(&name("one")).await.unwrap();
    let found = take(&neon, "one", "a").await;
    let plain = wanted(CloneWanted::Best);
    let copy = pg
        .create_from(&stopped("copied"), &found, &plain)
        .await
        .unwrap();
    assert_eq!(copy.record.method.as_deref(), Some("copy"));
    let cow = wanted(CloneWanted::CopyOnWrite);
    if kind == "ext4" {
        let error = pg
            .create_from(&stopped("two"), &found, &cow)
            .await
            .unwrap_err();
        assert_eq!(
            (error.kind(), error.kind().exit_code()),
            (ErrorKind::Environment, 6)
        );
        assert!(error.reason().contains("reflink"), "{error}");
        let only = wanted(CloneWanted::Only(CloneMethod::Reflink));
        let error = pg.create_from(&stopped("two"), &found, &only).await;
        assert_eq!(refused(error), ErrorKind::Environment);
        let gone = pg.get(&name("two")).await;
        assert_eq!(refused(gone), ErrorKind::NotFound);
        return;
    }
    let first = pg.create_from(&stopped("two"), &found, &cow).await.unwrap();
    let second = pg
        .create_from(&stopped("three"), &found, &plain)
        .await
        .unwrap();
    let expected = if kind == "btrfs" {
        "subvolume"
    } else {
        "reflink"
    };
    assert_eq!(first.record.method.as_deref(), Some(expected));
    // A tree is there now, so that sharing costs nothing.
    assert_eq!(second.record.method.as_deref(), Some(expected));
    let only = wanted(CloneWanted::Only(CloneMethod::Reflink));
    let third = pg
        .create_from(&stopped("four"), &found, &only)
        .await
        .unwrap();
    assert_eq!(third.record.method.as_deref(), Some("reflink"));
    for copy in ["two", "three", "four"] {
        let instance = pg.instance(&name(copy)).await.unwrap();
        let extents = neon_cowfs::extents(&instance.data_dir().join("base")).unwrap();
        assert!(extents.shared > 20 << 20, "{copy}: {extents:?}");
        assert!(
            extents.written - extents.shared < 4 << 20,
            "{copy}: {extents:?}"
        );
    }
    pg.start(&name("two")).await.unwrap();
    run(&neon, "two", "delete from t where i > 10").await;
    assert_eq!(sql(&neon, "two", "select count(*) from t").await, "10");
    pg.stop(&name("two")).await.unwrap();
    pg.start(&name("three")).await.unwrap();
    assert_eq!(sql(&neon, "three", "select count(*) from t").await, "40000");
    pg.stop(&name("three")).await.unwrap();
    pg.destroy(&name("three")).await.unwrap();
    assert!(!home.join("pg/three").exists());
}

#[test]
fn instances_share_blocks_on_xfs() {
    on("xfs");
}

#[test]
fn instances_share_blocks_on_btrfs() {
    on("btrfs");
}

#[test]
fn sharing_that_cannot_be_is_refused_before_anything_is_made() {
    on("ext4");
}
