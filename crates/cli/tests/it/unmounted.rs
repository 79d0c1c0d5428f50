//! Disks that are not mounted: nothing on them is taken for gone, nothing is made where they should be, and all is there again
//! with them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use neon_testkit::{Installation, OsUser, PgMajor};

use crate::support::{Home, Ran, ran};

/// A folder that anybody may walk through.
fn folder(home: &Home, name: &str) -> PathBuf {
    let path = home.scratch().join(name);
    fs::create_dir_all(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Runs a script with `neon` as a function that says `name: exit code` of each command, and a folder mounted on another one.
fn with_disk(home: &Home, disk: &Path, point: &Path, script: &str) -> Ran {
    let psql = Installation::of(PgMajor::V15)
        .with_client("psql")
        .tool("psql")
        .unwrap();
    let script = format!(
        "neon() {{ {program} -q \"$@\" > /dev/null; echo $?; }}
         sql() {{ {program} pg psql $1 -- -XAtq -v ON_ERROR_STOP=1 -c \"$2\"; }}
         trap 'for one in main two place space; do {program} -q pg stop $one; done > /dev/null 2>&1' EXIT
         on() {{ mount --bind {disk} {point} || exit 99; }}
         off() {{ umount {point} || exit 99; }}
         on
         {script}",
        program = Home::program(),
        disk = disk.display(),
        point = point.display(),
    );
    let path = format!(
        "{}:/usr/sbin:/usr/bin:/bin",
        psql.parent().unwrap().display()
    );
    let ran = ran(home.apart(&script).env("PATH", path));
    assert_eq!(ran.code, 0, "{ran:#?}");
    ran
}

fn lines(said: &Ran) -> Vec<&str> {
    said.out.lines().collect()
}

#[test]
fn instances_whose_disk_is_not_mounted_are_not_gone() {
    let home = Home::new();
    let (disk, pg) = (folder(&home, "disk"), folder(&home, "home/pg"));
    let said = with_disk(
        &home,
        &disk,
        &pg,
        &format!(
            "neon init
             neon pg create two --no-start
             neon pg create three --no-start
             neon pg destroy three --yes
             off
             echo hidden
             neon start
             neon pg start two
             neon pg destroy two --yes
             neon pg create four --no-start
             neon snapshot create two@a
             neon pg checkout main@init --yes
             neon undo --yes
             neon pg trash --empty --yes
             neon doctor --fix --yes
             neon doctor
             {program} pg list 2> /dev/null | wc -l
             ls -A {pg}
             on
             echo back
             neon undo --yes
             neon pg start two
             neon pg stop two
             {program} pg list | wc -l
             neon doctor
             off
             ls -A {pg}",
            program = Home::program(),
            pg = pg.display(),
        ),
    );
    assert_eq!(
        lines(&said),
        [
            "0", "0", "0", "0", "hidden", "6", "6", "6", "6", "6", "6", "6", "6", "1", "1", "3",
            "back", "0", "0", "0", "4", "0"
        ],
        "{said:#?}"
    );
    assert!(
        said.err.contains("hint: mount it; if it is lost"),
        "{said:#?}"
    );
}

#[test]
fn a_folder_of_instances_that_is_lost_for_good_is_given_up_as_the_hint_says() {
    let home = Home::new();
    home.ok(&["init"]);
    fs::rename(home.path().join("pg"), home.scratch().join("away")).unwrap();
    let said = home.run(&["start"]);
    assert_eq!(said.code, 6, "{said:#?}");
    assert!(said.err.contains("its disk is not mounted"), "{said:#?}");
    let hint = said.err.split_once("lost for good: ").unwrap().1;
    let done = ran(home.other("sh").args(["-c", hint.trim()]));
    assert_eq!(done.code, 0, "{done:#?}");
    let started = home.ok(&["start"]);
    assert!(started.starts_with("Restored main"), "{started}");
    home.ok(&["pg", "stop", "main"]);
}

#[test]
fn what_an_instance_has_on_a_disk_that_is_not_mounted_is_not_gone() {
    let home = Home::new();
    let (disk, point) = (folder(&home, "disk"), folder(&home, "point"));
    let space = folder(&home, "disk/space");
    let user = OsUser::current();
    if let Some((uid, gid)) = user.ids() {
        std::os::unix::fs::chown(&space, Some(uid), Some(gid)).unwrap();
    }
    let said = with_disk(
        &home,
        &disk,
        &point,
        &format!(
            "neon pg create place --no-start --pgdata {point}/place
             neon pg create space
             sql space \"create tablespace far location '{point}/space'\"
             sql space 'create table t tablespace far as select 1 one'
             neon snapshot create space@a
             neon pg stop space
             off
             mkdir {point}/space; chown {user} {point}/space
             echo hidden
             neon pg start place
             neon pg destroy place --yes
             neon pg start space
             neon snapshot create space@b
             neon pg checkout space@a --yes
             neon pg destroy space --yes
             neon doctor
             ls -A {point}
             ls -A {point}/space
             neon pg destroy place --lost --yes
             neon pg trash --empty place --yes --dry-run
             neon pg trash --empty nobody --yes
             rmdir {point}/space
             on
             echo back
             neon undo --yes
             neon pg start place
             neon pg start space
             sql space 'select one from t'
             neon pg stop place
             neon pg stop space
             mv {point}/space/PG_* {point}/kept
             neon pg start space
             neon snapshot create space@c
             neon doctor
             mv {point}/kept {point}/space/PG_15_202209061
             neon doctor
             neon pg destroy place --yes
             off
             neon pg trash --empty place --yes
             on
             neon undo --yes
             ls {point}",
            point = point.display(),
            user = user.name(),
        ),
    );
    assert_eq!(
        lines(&said),
        [
            "0", "0", "0", "0", "hidden", "6", "6", "6", "6", "6", "6", "1", "space", "0", "0",
            "3", "back", "0", "0", "0", "1", "0", "0", "6", "6", "1", "0", "0", "6", "0", "place",
            "space"
        ],
        "{said:#?}"
    );
    for words in [
        "on a disk that is not mounted",
        "is its disk mounted?",
        "/space/PG_15_202209061, start the server, and drop",
        "hint: mount it; if it is lost for good: neon pg destroy --lost place",
    ] {
        assert!(said.err.contains(words), "no {words:?} in {said:#?}");
    }
}
