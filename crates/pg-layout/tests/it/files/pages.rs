//! Page headers and checksums, judged by `pg_checksums` where it exists and by servers that read.

use std::path::Path;

use neon_pg_layout::{DataFile, PageCheck, PageHeader, PageVerdict, PgMajor, ReplayedLog};
use neon_testkit::{Cluster, StopMode};

use super::{for_every_major, for_majors_with_tools, furnished, own_tool, run};

const CHECK: PageCheck = PageCheck {
    checksums: true,
    replayed: None,
};

/// What is wrong in a stopped cluster's pages, and how many pages there are.
fn bad_pages(data_dir: &Path, major: PgMajor) -> (Vec<(String, u32)>, u64) {
    let (mut bad, mut pages) = (Vec::new(), 0);
    for path in super::files_below(data_dir) {
        let path = path.to_str().unwrap();
        let DataFile::Relation(relation) = DataFile::of(path, major.layout()) else {
            continue;
        };
        let first = relation.first_block(131_072).unwrap();
        let bytes = std::fs::read(data_dir.join(path)).unwrap();
        assert_eq!(bytes.len() % 8192, 0, "{path}");
        for (block, page) in (first..).zip(bytes.chunks(8192)) {
            pages += 1;
            if CHECK.judge(page, block).unwrap().is_bad() {
                bad.push((path.to_owned(), block));
            }
        }
    }
    (bad, pages)
}

fn flip(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[offset] ^= 0x40;
    std::fs::write(path, bytes).unwrap();
}

for_every_major!(
    pages_of_a_stopped_cluster_are_good_and_the_server_sees_the_damage_we_see,
    torn_pages_beside_a_running_server_are_told_from_damage,
);

for_majors_with_tools!(pg_checksums_counts_the_pages_we_count_and_sees_the_damage_we_see);

fn pages_of_a_stopped_cluster_are_good_and_the_server_sees_the_damage_we_see(major: PgMajor) {
    let mut cluster = furnished(Cluster::builder(major).checksums(true));
    let path = cluster.psql("select pg_relation_filepath('big')");
    cluster.stop(StopMode::Fast);
    let (bad, pages) = bad_pages(&cluster.data_dir(), major);
    assert_eq!(bad, []);
    assert!(pages > 2000, "{pages} pages");
    flip(&cluster.data_dir().join(&path), 2 * 8192 + 5000);
    assert_eq!(bad_pages(&cluster.data_dir(), major).0, [(path, 2)]);
    cluster.start();
    let error = cluster
        .try_psql("select sum(length(body)) from big")
        .unwrap_err();
    assert!(
        error.message().contains("invalid page in block 2"),
        "{error}"
    );
    cluster.stop(StopMode::Fast);
}

/// Pages torn between two states the server wrote are excused; damage is not, wherever it claims to be.
fn torn_pages_beside_a_running_server_are_told_from_damage(major: PgMajor) {
    let cluster = furnished(Cluster::builder(major).checksums(true));
    let path = cluster.psql("select pg_relation_filepath('big')");
    let read = || std::fs::read(cluster.data_dir().join(&path)).unwrap();
    let start = cluster.psql("checkpoint; select redo_lsn from pg_control_checkpoint()");
    let before = read();
    cluster.psql("update big set body = body || 'y' where id < 500; checkpoint");
    let after = read();
    let end = cluster.psql("select pg_current_wal_insert_lsn()");
    let log = ReplayedLog {
        start: start.parse().unwrap(),
        end: end.parse().unwrap(),
    };
    let check = PageCheck {
        replayed: Some(log),
        ..CHECK
    };
    let (mut torn, mut untouched) = (0, 0);
    for (block, page) in (0..).zip(after.chunks(8192)) {
        assert_eq!(check.judge(page, block).unwrap(), PageVerdict::Good);
        let lsn = PageHeader::decode(page).unwrap().lsn;
        let old = before.chunks(8192).nth(block as usize);
        if old == Some(page) {
            untouched += 1;
            assert!(lsn < log.start);
            let mut damaged = page.to_vec();
            damaged[5000] ^= 0x40;
            assert!(check.judge(&damaged, block).unwrap().is_bad());
        } else if let Some(old) = old {
            torn += 1;
            let half = [&page[..4096], &old[4096..]].concat();
            let verdict = check.judge(&half, block).unwrap();
            assert!(
                verdict == PageVerdict::Unsettled { lsn } || half == page,
                "{verdict:?}"
            );
            // Its position now lies where the server has not been.
            let mut beyond = half.clone();
            beyond[..4].copy_from_slice(&[0, 1, 0, 0]);
            assert!(check.judge(&beyond, block).unwrap().is_bad());
        }
        assert!(check.judge(&[0xFF; 8192], block).unwrap().is_bad());
    }
    assert!(torn > 0 && untouched > 0, "{torn} torn, {untouched} not");
}

fn pg_checksums_counts_the_pages_we_count_and_sees_the_damage_we_see(major: PgMajor) {
    let mut cluster = furnished(Cluster::builder(major).checksums(true));
    let path = cluster.psql("select pg_relation_filepath('elsewhere')");
    cluster.stop(StopMode::Fast);
    let check = || {
        run(own_tool(major, "pg_checksums")
            .arg("--check")
            .arg(cluster.data_dir()))
    };
    let (success, printed) = check();
    assert!(success, "{printed}");
    let number = |name: &str| -> u64 {
        let line = printed.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let (bad, pages) = bad_pages(&cluster.data_dir(), major);
    assert_eq!(
        (bad.len() as u64, pages),
        (number("Bad checksums"), number("Blocks scanned"))
    );
    flip(&cluster.data_dir().join(&path), 8192 + 100);
    let (success, printed) = check();
    assert!(!success && printed.contains("block 1"), "{printed}");
    assert_eq!(bad_pages(&cluster.data_dir(), major).0, [(path, 1)]);
}
