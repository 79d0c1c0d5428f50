//! What many successive snapshots of a real cluster cost, by what its log says has changed: the bounds that
//! `map::tests::proportion` holds over made-up ones.

use neon_pagestore::changes::{self, LogSource, SegmentDirectory, Span};
use neon_pagestore::read::Snapshot;
use neon_pg_layout::PgMajor;
use neon_storage::Memory;
use neon_testkit::{Cluster, StopMode, cold_copy_may_lack};

use super::chain::Stop;
use super::forged::ask;
use super::state::State;
use super::stored::{restored, store};
use crate::files::reader;
use crate::support::init;

/// How much is tried, and what it may cost.
struct Extent {
    snapshots: u32,
    rows: u32,
    /// Bytes of metadata for each page that changed, and for each snapshot.
    a_page: u64,
    a_snapshot: u64,
}

/// Two hundred of 64 MB, or a few of some: of these it is known what they cost, 13 KB, and they may cost twice as much.
fn extent() -> Extent {
    match std::env::var_os("NEON_LONG_TESTS") {
        Some(_) => Extent {
            snapshots: 200,
            rows: 400_000,
            a_page: 400,
            a_snapshot: 256 << 10,
        },
        None => Extent {
            snapshots: 4,
            rows: 20_000,
            a_page: 40,
            a_snapshot: 2 << 10,
        },
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn successive_snapshots_of_a_cluster_cost_what_changed() {
    let extent = extent();
    let (count, rows) = (extent.snapshots, extent.rows);
    let mut cluster = Cluster::builder(PgMajor::V16)
        .checksums(true)
        .setting("wal_keep_size", "1GB")
        .setting("autovacuum", "off")
        .start();
    cluster.psql(&format!(
        "create table kept (i int primary key, text text) with (fillfactor = 80);
         insert into kept select i, repeat(md5(i::text), 3) from generate_series(1, {rows}) i;
         create table log (i int, text text); vacuum kept"
    ));
    cluster.stop(StopMode::Fast);

    let repository = init(&Memory::new()).await;
    let maps = reader(&repository);
    let mut before = Stop::of(&cluster);
    let (first, full) = store(&repository, cluster.data_dir(), before.clone(), None).await;
    let mut last = Snapshot::open(&repository, first, &maps).await.unwrap();
    let (mut changed, mut metadata, mut most) = (0_u64, 0_u64, 0_usize);
    for number in 1..=count {
        cluster.start();
        // Some rows anywhere, some together, and some that are new.
        cluster.psql(&format!(
            "update kept set text = md5(text) || text where i % {rows} in
                 (select (hashint4(i + {number}) & 1073741823) % {rows} from generate_series(1, 40) i);
             update kept set text = reverse(text) where i between {number} * 50 and {number} * 50 + 30;
             insert into log select i, md5(i::text) from generate_series(1, 500) i"
        ));
        cluster.stop(StopMode::Fast);
        let after = Stop::of(&cluster);
        let parent = changes::Parent::recorded(last.id(), last.facts()).unwrap();
        let mut log = SegmentDirectory::new(cluster.data_dir().join("pg_wal"));
        let child = after.child(&before, &mut log);
        let span = Span::between(&parent, &child).unwrap();
        let set = ask(&mut LogSource::new(span, &mut log)).unwrap();
        let parent = Some((last.clone(), set));
        let (id, report) = store(&repository, cluster.data_dir(), after.clone(), parent).await;
        last = Snapshot::open(&repository, id, &maps).await.unwrap();
        changed += report.pages + report.zero_pages;
        metadata += report.stored_metadata;
        most = most.max(last.view().runs.len());
        let bound = extent.a_page * changed + extent.a_snapshot * u64::from(number);
        assert!(
            metadata <= bound,
            "after {number}: {metadata} of {bound} bytes"
        );
        before = after;
    }
    println!(
        "{} MB, {count} snapshots: {changed} pages changed, {metadata} bytes of metadata, at most {most} runs",
        full.bytes >> 20
    );
    assert!(most <= 4);
    let mut now = State::read(&cluster.data_dir());
    now.0
        .retain(|path, _| !cold_copy_may_lack(path.as_str().unwrap()));
    let hints = neon_pagestore::changes::Hints::MayBeOlder;
    let verdict = restored(&last).await.judge(&now, hints);
    assert!(verdict.wrong.is_empty(), "{:#?}", verdict.wrong);
    let checked = repository.check(true).await.unwrap();
    assert!(checked.is_sound(), "{:?}", checked.findings);
}
