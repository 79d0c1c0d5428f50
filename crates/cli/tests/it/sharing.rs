//! Clones that share blocks, and what is said where they cannot: on loop devices that nobody else sees.

use neon_testkit::Scratch;

use crate::support::{Home, Ran, ran};

/// Runs a script on a file system of this kind, with `neon` on a home there, in which `p@a` is a snapshot of 20 MiB and more.
fn on(kind: &str, script: &str) -> Ran {
    let home = Home::new();
    let image = Scratch::new();
    let quiet = if kind == "ext4" { "-Fq" } else { "-fq" };
    let script = format!(
        "set -e
         truncate -s 1G {image}/image
         mkdir {image}/disk
         mkfs.{kind} {quiet} {image}/image > /dev/null
         mount -t {kind} -o loop {image}/image {image}/disk
         chmod 755 {image}/disk
         export NEON_HOME={image}/disk/home
         neon() {{ {program} -q \"$@\"; }}
         neon pg create p --no-start > /dev/null
         neon snapshot create p@a > /dev/null
         {script}",
        image = image.path().display(),
        program = Home::program(),
    );
    ran(home
        .apart(&script)
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"))
}

/// How `--cow` made its clone, and how many KiB of that are extents that others have as well.
const SHARES: &str = r#"
    neon -o json pg create --snapshot p@a first --cow --no-start | grep '"method"'
    neon -o json pg create --snapshot p@a second --no-start | grep '"method"'
    for one in first second; do
        find $NEON_HOME/pg/$one/data/base -type f -exec filefrag -sv -b1024 {} + | grep -w shared |
            awk '{ sub(":", "", $6); sum += $6 } END { print sum }'
    done
    neon doctor -o json | grep -c no-reflink || true
"#;

fn shares(kind: &str, method: &str) {
    let said = on(kind, SHARES);
    assert_eq!(said.code, 0, "{said:#?}");
    let lines: Vec<&str> = said.out.lines().map(str::trim).collect();
    let [first, second, of_first, of_second, complaints] = lines[..] else {
        panic!("{said:#?}");
    };
    // A tree is there once one asked for it, so that sharing costs nothing any more.
    for made in [first, second] {
        assert!(made.contains(&format!("\"{method}\"")), "{said:#?}");
    }
    for shared in [of_first, of_second] {
        assert!(shared.parse::<u64>().unwrap() > 15 << 10, "{said:#?}");
    }
    assert_eq!(complaints, "0", "{said:#?}");
}

#[test]
fn a_clone_shares_the_extents_of_its_files_on_xfs() {
    shares("xfs", "reflink");
}

#[test]
fn a_clone_shares_the_extents_of_its_files_on_btrfs() {
    shares("btrfs", "subvolume");
}

#[test]
fn where_nothing_can_be_shared_a_clone_that_must_is_refused_and_the_doctor_says_so() {
    let said = on(
        "ext4",
        "code=0
         neon pg create --snapshot p@a first --cow --no-start || code=$?
         echo code=$code
         code=0
         neon pg show first 2> /dev/null || code=$?
         echo there=$code
         neon -o json pg create --snapshot p@a second --no-start | grep '\"method\"'
         neon doctor",
    );
    // A note is no trouble: the doctor is content.
    assert_eq!(said.code, 0, "{said:#?}");
    assert!(said.err.contains("hint: "), "{said:#?}");
    assert!(said.err.contains("reflink"), "{said:#?}");
    let lines: Vec<&str> = said.out.lines().collect();
    assert_eq!(lines[..2], ["code=6", "there=3"], "{said:#?}");
    assert!(lines[2].contains("\"copy\""), "{said:#?}");
    assert!(
        said.out.contains("every clone is a whole copy"),
        "{said:#?}"
    );
    assert!(
        said.out
            .contains("hint: a home on btrfs, or on XFS with reflink=1"),
        "{said:#?}"
    );
}
