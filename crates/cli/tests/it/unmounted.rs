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
         trap 'for one in main one two place shop space; do {program} -q pg stop $one; done > /dev/null 2>&1' EXIT
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
             neon snapshot export main@init --to {file}
             off
             echo hidden
             neon start
             neon pg start two
             neon pg destroy two --yes
             neon pg create four --no-start
             {program} pg create five --no-start --snapshot {file} 2>&1 | grep -c Downloading
             neon snapshot create two@a
             neon snapshot verify main@init
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
            file = home.scratch().join("main.neon").display(),
        ),
    );
    assert_eq!(
        lines(&said),
        [
            "0", "0", "0", "0", "0", "hidden", "6", "6", "6", "6", "0", "6", "6", "6", "6", "6",
            "1", "1", "3", "back", "0", "0", "0", "4", "0"
        ],
        "{said:#?}"
    );
    assert!(
        said.err
            .contains("hint: mount it; what makes the folder here the one of this home, if"),
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
    space(&home, "disk/space");
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
             mkdir -p $({program} pg trash --empty place --yes 2>&1 | sed -n 's/.*lost for good: mkdir -p \\(.*\\), and neon.*/\\1/p')
             neon undo --yes
             rmdir {point}/.neon-trash-*
             on
             neon undo --yes
             ls {point}",
            program = Home::program(),
            point = point.display(),
            user = OsUser::current().name(),
        ),
    );
    assert_eq!(
        lines(&said),
        [
            "0", "0", "0", "0", "hidden", "6", "6", "6", "6", "6", "6", "1", "space", "0", "0",
            "3", "back", "0", "0", "0", "1", "0", "0", "6", "6", "1", "0", "0", "6", "3", "0",
            "place", "space"
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

/// A folder for a tablespace on a disk.
fn space(home: &Home, name: &str) {
    let space = folder(home, name);
    if let Some((uid, gid)) = OsUser::current().ids() {
        std::os::unix::fs::chown(&space, Some(uid), Some(gid)).unwrap();
    }
}

#[test]
fn the_disk_of_a_tablespace_that_was_dropped_or_moved_is_not_asked_for() {
    let home = Home::new();
    let (disk, point) = (folder(&home, "disk"), folder(&home, "point"));
    space(&home, "disk/space");
    space(&home, "near");
    let said = with_disk(
        &home,
        &disk,
        &point,
        &format!(
            "neon pg create space
             sql space \"create tablespace far location '{point}/space'\"
             sql space 'create table t tablespace far as select 1 one'
             neon pg stop space
             cp -a {point}/space/. {near}
             ln -sfn {near} $(find {pg}/space/data/pg_tblspc -type l)
             off
             echo moved
             neon pg show space
             neon pg start space
             sql space 'select one from t'
             neon pg stop space
             on
             ln -sfn {point}/space $(find {pg}/space/data/pg_tblspc -type l)
             neon pg start space
             sql space 'drop table t'
             sql space 'drop tablespace far'
             umount -l {point}
             echo dropped
             neon pg show space
             {program} pg list | grep -c localhost
             neon snapshot create space@a
             neon pg restart space
             neon pg checkout space@a --yes
             neon pg stop space
             neon doctor
             neon pg destroy space --yes",
            program = Home::program(),
            point = point.display(),
            near = home.scratch().join("near").display(),
            pg = home.path().join("pg").display(),
        ),
    );
    assert_eq!(
        lines(&said),
        [
            "0", "0", "moved", "0", "0", "1", "0", "0", "dropped", "0", "1", "0", "0", "0", "0",
            "0", "0"
        ],
        "{said:#?}"
    );
}

#[test]
fn a_server_that_lost_the_disk_of_a_tablespace_can_be_looked_at_and_stopped() {
    let home = Home::new();
    let (disk, point) = (folder(&home, "disk"), folder(&home, "point"));
    space(&home, "disk/space");
    let said = with_disk(
        &home,
        &disk,
        &point,
        &format!(
            "neon pg create space
             sql space \"create tablespace far location '{point}/space'\"
             sql space 'create table t tablespace far as select 1 one'
             neon pg restart space
             sql space checkpoint
             umount -l {point}
             echo lost
             neon pg show space
             {program} pg list | grep -c localhost
             neon snapshot create space@a
             neon pg restart space
             sql space 'select 2'
             neon doctor
             neon pg stop space
             {program} pg list | grep -c localhost
             neon pg start space
             neon pg destroy space --yes
             hint=$({program} pg start space 2>&1)
             on
             neon pg start space
             sql space 'select one from t'
             neon pg stop space
             off
             echo given up
             sh -c \"$(printf %s \"$hint\" | sed -n 's/.*lost for good: \\(.*\\), start the server.*/\\1/p')\"
             neon pg start space
             sql space 'drop table t'
             sql space 'drop tablespace far'
             neon pg stop space
             neon pg start space",
            program = Home::program(),
            point = point.display(),
        ),
    );
    assert_eq!(
        lines(&said),
        [
            "0", "0", "lost", "0", "1", "6", "6", "2", "1", "0", "0", "6", "6", "0", "1", "0",
            "given up", "0", "0", "0"
        ],
        "{said:#?}"
    );
}

#[test]
fn what_was_half_destroyed_on_a_disk_that_is_lost_is_destroyed() {
    let home = Home::new();
    let (disk, point) = (folder(&home, "disk"), folder(&home, "point"));
    let record = home.path().join("state/pg/place.json");
    let said = with_disk(
        &home,
        &disk,
        &point,
        &format!(
            "neon pg create place --no-start --pgdata {point}/place
             off
             sed -i 's/\"stage\": *\"ready\"/\"stage\":\"destroying\"/' {record}
             grep -c destroying {record}
             neon pg destroy place --yes
             neon pg destroy place --lost --yes
             neon pg show place
             on
             neon undo --yes
             neon pg start place",
            point = point.display(),
            record = record.display(),
        ),
    );
    assert_eq!(
        lines(&said),
        ["0", "1", "6", "0", "3", "0", "0"],
        "{said:#?}"
    );
}

#[test]
fn an_adopted_instance_whose_disk_is_not_mounted_is_forgotten_at_once() {
    let theirs = Home::new();
    let home = Home::new();
    theirs.ok(&["pg", "create", "theirs", "--no-start"]);
    let point = theirs.path().join("pg/theirs");
    let disk = theirs.scratch().join("away");
    fs::rename(&point, &disk).unwrap();
    fs::create_dir(&point).unwrap();
    let pg = home.path().join("pg");
    let said = with_disk(
        &home,
        &disk,
        &point,
        &format!(
            "neon pg adopt {point}/data -n shop
             neon pg start shop
             neon pg stop shop
             rm -r {pg}/shop
             mv {pg} {pg}-away; mkdir {pg}
             neon pg start shop
             ls -A {pg}
             rmdir {pg}; mv {pg}-away {pg}
             off
             neon pg start shop
             neon pg destroy shop --yes
             neon pg show shop
             on
             neon undo --yes
             neon pg show shop",
            point = point.display(),
            pg = pg.display(),
        ),
    );
    assert_eq!(
        lines(&said),
        ["0", "0", "0", "6", "6", "0", "3", "0", "0"],
        "{said:#?}"
    );
}

#[test]
fn a_home_from_before_the_sign_takes_no_mount_point_for_its_folder() {
    let home = Home::new();
    let (disk, pg) = (folder(&home, "disk"), folder(&home, "home/pg"));
    let about = home.path().join("neon.json");
    let said = with_disk(
        &home,
        &disk,
        &pg,
        &format!(
            "neon pg create one --no-start
             neon pg create two --no-start
             rm {pg}/.home-*
             sed -i 's/\"signed\": *true/\"signed\":false/' {about}
             grep -c false {about}
             off
             echo hidden
             neon pg create new --no-start
             neon pg show one
             neon pg start one
             ls -A {pg}
             mkdir {pg}/two
             neon storage list
             ls -A {pg}
             rmdir {pg}/two
             on
             echo back
             neon pg start one
             neon pg create new --no-start
             neon pg stop one
             ls -A {pg} | grep -c home-
             off
             neon pg start one
             ls -A {pg}",
            pg = pg.display(),
            about = about.display(),
        ),
    );
    assert_eq!(
        lines(&said),
        [
            "0", "0", "1", "hidden", "6", "6", "6", "0", "two", "back", "0", "0", "0", "1", "6"
        ],
        "{said:#?}"
    );
}
