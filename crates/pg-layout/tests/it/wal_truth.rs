//! Every page that differs between two copies of a cluster is in the log, or under a rule with a name.
//!
//! A cluster is copied after a clean stop, worked on in every way the test support knows, and copied
//! again. The log between the two shutdown checkpoints is read, and each differing page must be
//! explained. A snapshot that reads only what the log names, and what the rules say, is then exact.

mod changed;
mod compare;

use std::fs;

use neon_pg_layout::wal::changes::UnloggedChange;
use neon_pg_layout::{ControlFile, PgMajor, Slru};
use neon_testkit::workload::{Load, Workload};
use neon_testkit::{Cluster, DataDirCopy, StopMode};

use changed::Changed;
use compare::{Rule, Verdict, compare};

/// Without catalogs, which come between the others.
const LOADS: [Workload; 9] = [
    Workload::Ddl,
    Workload::Databases,
    Workload::Toast,
    Workload::Tablespaces,
    Workload::Visibility,
    Workload::Multixacts,
    Workload::Indexes,
    Workload::LargeObjects,
    // Last: see below.
    Workload::Prepared,
];

/// What stands before the first copy, for the work between the copies to meet.
fn prepare(cluster: &Cluster, seed: u64) -> Vec<Load> {
    let mut loads: Vec<Load> = LOADS
        .iter()
        .map(|load| load.prepare(cluster, seed, 2).unwrap())
        .collect();
    let (prepared, others) = loads.split_last_mut().unwrap();
    for load in others {
        load.rounds(3);
    }
    cluster.psql(
        "create table hinted as select i, repeat('h', 200) as pad from generate_series(1, 5000) i;
         create table reread (i int, j int, r int4range, body text);
         insert into reread select i, i, int4range(i, i + 2), md5(i::text) from generate_series(1, 8000) i;
         create index reread_i on reread (i); create index reread_j on reread using hash (j);
         create index reread_r on reread using gist (r);
         vacuum (freeze) reread; delete from reread where i % 2 = 0;
         create table cut as select i, repeat('c', 300) as pad from generate_series(1, 5000) i;
         create index on cut (i); vacuum cut; delete from cut where i > 500;
         create table all_visible (i int, v int) with (fillfactor = 50);
         insert into all_visible select i, 0 from generate_series(1, 20000) i;
         vacuum (freeze) all_visible;
         create table still (p point); create index still_p on still using spgist (p);
         insert into still select point(i % 100, i % 37) from generate_series(1, 5000) i;
         vacuum still;
         create sequence counted; create unlogged table lost as select i from generate_series(1, 3000) i;
         create table moved as select i, md5(i::text) as body from generate_series(1, 2000) i;
         create index on moved (i);
         create database kept; create database wandering;",
    );
    // After all others, so that what stays prepared holds nobody's dead rows back.
    prepared.rounds(3);
    cluster.psql_in(
        "wandering",
        "create table w as select i from generate_series(1, 3000) i; create index on w (i)",
    );
    loads
}

/// Hints alone: pages that a reader changes and no writer does. Then everything else.
fn work(cluster: &mut Cluster, loads: &mut [Load]) {
    // Sequential and index scans that find rows committed, or dead.
    cluster.psql(
        "select count(*), sum(length(pad)) from hinted;
         set enable_seqscan = off; set enable_bitmapscan = off;
         select count(body) from reread where i between 1 and 8000;
         do $$ declare n int; begin
           for n in 1..200 loop
             perform body from reread where j = n; perform body from reread where r @> n;
           end loop;
         end $$",
    );
    let place = cluster.tablespace_dir("elsewhere");
    let strategies: &[&str] = if cluster.major() >= PgMajor::V15 {
        &["strategy wal_log", "strategy file_copy"]
    } else {
        &[""]
    };
    for (number, strategy) in strategies.iter().enumerate() {
        cluster.psql(&format!(
            "create database made_{number} template kept {strategy}"
        ));
        cluster.psql_in(
            &format!("made_{number}"),
            "create table t as select i from generate_series(1, 1000) i; vacuum t",
        );
        cluster.psql(&format!(
            "create database gone_{number} template kept {strategy}; drop database gone_{number}"
        ));
    }
    cluster.psql(&format!(
        "create tablespace elsewhere location '{}';
         alter database wandering set tablespace elsewhere;
         create table there (i int primary key, t text) tablespace elsewhere;
         insert into there select i, repeat('t', 3000) from generate_series(1, 300) i;
         alter table moved set tablespace elsewhere; alter index moved_i_idx set tablespace elsewhere;
         begin; alter table hinted set tablespace elsewhere; rollback;
         vacuum (truncate) cut;
         insert into still select point((i * 7919) % 100, (i * 7919) % 37) from generate_series(1, 200) i; vacuum still;
         insert into cut select i, 'again' from generate_series(1, 3000) i;
         select nextval('counted') from generate_series(1, 100);
         alter sequence counted restart 5;
         update all_visible set v = 1 where i % 1000 = 3;
         delete from all_visible where i between 5000 and 5100;
         begin; select i from all_visible where i = 9000 for update; commit;
         insert into all_visible select i, 2 from generate_series(30000, 32000) i;
         insert into lost select i from generate_series(1, 3000) i; alter table lost set logged;
         begin; create table aborted as select i, repeat('a', 500) as a from generate_series(1, 2000) i;
           create index on aborted (i); truncate aborted; insert into aborted values (1); rollback;
         begin; create table cut_at_once (i int); copy cut_at_once from program 'seq 20000'; truncate cut_at_once;
           insert into cut_at_once select generate_series(1, 3000); commit;
         begin; copy all_visible (i) from program 'seq 50000 90000'; rollback;
         truncate moved; insert into moved select i, 'new' from generate_series(1, 50) i",
        place.display()
    ));
    cluster.psql_in(
        "wandering",
        "delete from w where i > 10; vacuum w; insert into w select generate_series(1, 5000)",
    );
    let mut catalogs = Workload::Catalogs.prepare(cluster, 5, 1).unwrap();
    catalogs.rounds(3);
    cluster.psql("vacuum full pg_class; vacuum full pg_database; reindex table pg_attribute; alter database wandering set tablespace pg_default");
    for load in loads.iter_mut() {
        load.rounds(3);
    }
    // A crash, with a transaction that never ends: files nobody removes, unlogged relations reset.
    let mut session = cluster.session("postgres");
    session.run(
        "begin; create table orphan as select i, repeat('o', 100) as o from generate_series(1, 3000) i;
         create index on orphan (i); update all_visible set v = v + 1 where i < 500",
    );
    cluster.psql("checkpoint; insert into there values (1000, 'just before')");
    cluster.kill9();
    drop(session);
    cluster.start();
    cluster.psql("select count(*) from all_visible; vacuum all_visible; insert into there values (1001, 'just after')");
    for load in loads.iter_mut() {
        load.rounds(2);
    }
}

fn control_file(copy: &DataDirCopy) -> ControlFile {
    let control =
        ControlFile::decode(&fs::read(copy.path().join("global/pg_control")).unwrap()).unwrap();
    assert!(control.state.is_clean());
    control
}

/// Two copies of a cluster and what stands between them.
struct Truth {
    major: PgMajor,
    earlier: DataDirCopy,
    later: DataDirCopy,
    hints_are_free: bool,
    /// Whether the times of commits are kept.
    commit_times: bool,
    /// File numbers of relations that were only read.
    only_read: Vec<u32>,
}

impl Truth {
    fn make(major: PgMajor, checksums: bool, log_hints: bool, seed: u64) -> Self {
        let mut cluster = Cluster::builder(major)
            .checksums(checksums)
            .setting("wal_log_hints", log_hints)
            .setting("track_commit_timestamp", checksums)
            .setting("wal_level", "replica")
            .setting("wal_keep_size", "4GB")
            .setting("max_wal_size", "4GB")
            .setting("min_parallel_table_scan_size", "0")
            .setting("max_parallel_maintenance_workers", 2)
            .start();
        let mut loads = prepare(&cluster, seed);
        let only_read = cluster.psql(
            "select pg_relation_filenode(name::regclass)
             from unnest(array['hinted', 'reread', 'reread_i', 'reread_j', 'reread_r']) as name",
        );
        cluster.stop(StopMode::Fast);
        let earlier = cluster.copy_cold();
        cluster.start();
        work(&mut cluster, &mut loads);
        cluster.stop(StopMode::Fast);
        Self {
            major,
            earlier,
            later: cluster.copy_cold(),
            hints_are_free: !checksums && !log_hints,
            commit_times: checksums,
            only_read: only_read
                .lines()
                .map(|number| number.parse().unwrap())
                .collect(),
        }
    }

    fn compare(&self, deaf_to: Option<&str>) -> (Changed, Verdict) {
        let (from, to) = (control_file(&self.earlier), control_file(&self.later));
        let changed = Changed::read(&self.later.path().join("pg_wal"), &from, &to, deaf_to);
        let layout = self.major.layout();
        let verdict = compare(
            &self.earlier,
            &self.later,
            &to,
            &changed,
            layout,
            self.hints_are_free,
        );
        (changed, verdict)
    }
}

/// How many different histories each case goes through: one, unless the long form is asked for.
fn histories() -> u64 {
    std::env::var("NEON_WAL_TRUTH_HISTORIES").map_or(1, |count| count.parse().unwrap())
}

fn every_difference_is_explained(major: PgMajor, checksums: bool, log_hints: bool) {
    for history in 0..histories() {
        let truth = Truth::make(major, checksums, log_hints, 42 + history);
        let (changed, verdict) = truth.compare(None);
        truth.judge(&changed, &verdict);
    }
}

impl Truth {
    fn judge(&self, changed: &Changed, verdict: &Verdict) {
        let told = format!("{:?}\n{:?}", changed.kinds, verdict.counts);
        #[expect(
            clippy::print_stdout,
            reason = "what each rule explained, for those who ask"
        )]
        {
            println!("{told}");
        }
        let unexplained = &verdict.unexplained;
        let first = unexplained
            .iter()
            .take(30)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n");
        assert!(
            unexplained.is_empty(),
            "{} differences are not explained:\n{first}\n{told}",
            unexplained.len()
        );

        // The work did what it was to do, and no rule explains more than it should.
        let count = |rule: Rule| verdict.counts.get(&rule).copied().unwrap_or(0);
        for kind in [
            "block",
            "fork created",
            "truncated",
            "relation dropped",
            "database copied",
            "database dropped",
            "tablespace created",
            "tablespace dropped",
            "relation map updated",
            "visibility map cleared",
            "prepared",
            "committed",
            "aborted",
            "states written",
        ] {
            assert!(
                changed.kinds.contains_key(kind),
                "no event of kind {kind}\n{told}"
            );
        }
        let logged_copies = changed.kinds.contains_key("database created");
        assert_eq!(logged_copies, self.major >= PgMajor::V15, "{told}");
        assert!(count(Rule::Named) > 500, "{told}");
        assert_eq!(count(Rule::BeyondLimit), 0, "{told}");
        assert!(
            count(Rule::Unlogged(UnloggedChange::DatabaseCopied)) > 0,
            "{told}"
        );
        assert!(
            count(Rule::Unlogged(UnloggedChange::UnloggedRelation)) > 0,
            "{told}"
        );
        assert!(
            count(Rule::Unlogged(UnloggedChange::FreeSpaceMap)) > 0,
            "{told}"
        );
        assert!(count(Rule::Removed) > 0, "{told}");
        assert!(
            count(Rule::Unlogged(UnloggedChange::SpGistCache)) > 0,
            "{told}"
        );
        for slru in [
            Slru::Transactions,
            Slru::MultiXactOffsets,
            Slru::MultiXactMembers,
        ] {
            assert!(count(Rule::State(slru)) > 0, "{slru:?}\n{told}");
        }
        assert_eq!(
            count(Rule::State(Slru::CommitTimestamps)) > 0,
            self.commit_times,
            "{told}"
        );
        if self.hints_are_free {
            for number in &self.only_read {
                let hints = verdict
                    .hints
                    .iter()
                    .filter(|(path, _)| path.locator.number == *number);
                assert!(
                    hints.count() > 0,
                    "reading left no hint on {number}\n{told}"
                );
            }
        } else {
            assert_eq!(count(Rule::Unlogged(UnloggedChange::Hints)), 0, "{told}");
        }
    }
}

macro_rules! cases {
    ($($with:ident $without:ident $major:ident,)*) => {$(
        #[test]
        fn $with() {
            every_difference_is_explained(PgMajor::$major, true, false);
        }

        #[test]
        fn $without() {
            every_difference_is_explained(PgMajor::$major, false, false);
        }
    )*};
}

cases!(
    every_difference_of_13_with_checksums_is_explained every_difference_of_13_without_checksums_is_explained V13,
    every_difference_of_14_with_checksums_is_explained every_difference_of_14_without_checksums_is_explained V14,
    every_difference_of_15_with_checksums_is_explained every_difference_of_15_without_checksums_is_explained V15,
    every_difference_of_16_with_checksums_is_explained every_difference_of_16_without_checksums_is_explained V16,
    every_difference_of_17_with_checksums_is_explained every_difference_of_17_without_checksums_is_explained V17,
    every_difference_of_18_with_checksums_is_explained every_difference_of_18_without_checksums_is_explained V18,
);

#[test]
fn every_difference_of_14_with_logged_hints_is_explained() {
    every_difference_is_explained(PgMajor::V14, false, true);
}

#[test]
fn the_comparison_notices_events_that_change_files_when_they_are_not_told() {
    // 15 has both ways to create a database. Left out are kinds whose files other events name too (a
    // database created block by block, a prepared or ended transaction), which no file shows (a
    // checkpoint, a tablespace), or that a rule covers in whole (a visibility map cleared).
    let truth = Truth::make(PgMajor::V15, true, false, 1);
    for kind in [
        "block",
        "fork created",
        "truncated",
        "relation dropped",
        "database copied",
        "database dropped",
        "relation map updated",
        "states written",
    ] {
        let (changed, verdict) = truth.compare(Some(kind));
        let beyond = verdict.counts.get(&Rule::BeyondLimit).copied().unwrap_or(0);
        assert!(
            verdict.unexplained.len() + beyond > 0,
            "{kind}: {:?}\n{:?}",
            changed.kinds,
            verdict.counts
        );
    }
}
