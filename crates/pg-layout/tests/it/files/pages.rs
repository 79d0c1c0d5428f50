//! Page headers and checksums, judged by `pg_checksums` where it exists and by servers that read.

use std::path::Path;

use neon_pg_layout::{DataFile, PageCheck, PageVerdict, PgMajor};
use neon_testkit::{Cluster, StopMode};

use super::{for_every_major, for_majors_with_tools, furnished, own_tool, run};

const CHECK: PageCheck = PageCheck {
    checksums: true,
    unsettled_from: None,
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
    pages_read_beside_a_running_server_are_good_or_unsettled,
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

fn pages_read_beside_a_running_server_are_good_or_unsettled(major: PgMajor) {
    let cluster = furnished(Cluster::builder(major).checksums(true));
    let start = cluster.psql("checkpoint; select redo_lsn from pg_control_checkpoint()");
    cluster.psql("update big set body = body || 'y' where id < 500; checkpoint");
    let check = PageCheck {
        unsettled_from: Some(start.parse().unwrap()),
        ..CHECK
    };
    let path = cluster.psql("select pg_relation_filepath('big')");
    let bytes = std::fs::read(cluster.data_dir().join(path)).unwrap();
    let verdicts: Vec<_> = (0..)
        .zip(bytes.chunks(8192))
        .map(|(block, page)| check.judge(page, block).unwrap())
        .collect();
    let count =
        |wanted: fn(&PageVerdict) -> bool| verdicts.iter().filter(|one| wanted(one)).count();
    let unsettled = count(|verdict| matches!(verdict, PageVerdict::Unsettled { .. }));
    let good = count(|verdict| *verdict == PageVerdict::Good);
    assert!(
        unsettled > 0 && good > 0,
        "{unsettled} unsettled, {good} good"
    );
    assert_eq!(unsettled + good, verdicts.len());
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
