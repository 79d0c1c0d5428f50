//! What goes on between two stops of a cluster.

use std::fs;
use std::time::{Duration, Instant};

use neon_pg_layout::PgMajor;
use neon_testkit::workload::{Load, Random, Workload};
use neon_testkit::{Cluster, OsUser, StopMode};

const LOADS: [Workload; 10] = [
    Workload::Ddl,
    Workload::Databases,
    Workload::Toast,
    Workload::Tablespaces,
    Workload::Visibility,
    Workload::Multixacts,
    Workload::Indexes,
    Workload::LargeObjects,
    Workload::Catalogs,
    Workload::Prepared,
];

pub(crate) struct Work {
    loads: Vec<Load>,
    random: Random,
    burst: u32,
    long: bool,
}

impl Work {
    pub(crate) fn prepare(cluster: &Cluster, seed: u64, long: bool) -> Self {
        let loads = LOADS
            .iter()
            .map(|load| load.prepare(cluster, seed, 2).unwrap())
            .collect();
        cluster.psql(
            "create table hinted as select i, repeat('h', 200) as pad from generate_series(1, 4000) i;
             create table cut as select i, repeat('c', 300) as pad from generate_series(1, 3000) i;
             create index on cut (i);
             create table still (p point); create index still_p on still using spgist (p);
             insert into still select point(i % 100, i % 37) from generate_series(1, 3000) i; vacuum still;
             create table built (i int, a int[], p point, t text);
             insert into built select i, array[i % 7, i % 11], point(i % 50, i % 31), md5(i::text) from generate_series(1, 3000) i;
             create unlogged table lost as select i from generate_series(1, 2000) i;
             create index on lost (i); create sequence counted; create database kept;",
        );
        Self {
            loads,
            random: Random::new(seed),
            burst: 0,
            long,
        }
    }

    /// Works on the running cluster, which runs again when this returns.
    pub(crate) fn burst(&mut self, cluster: &mut Cluster) {
        let burst = self.burst;
        self.burst += 1;
        // What a reader leaves behind.
        cluster.psql("select count(*), sum(length(pad)) from hinted; select count(*) from cut");
        // A good half of the loads each time, all of them over time.
        for (number, load) in (0..).zip(&mut self.loads) {
            if (burst + number) % 2 == 0 || self.random.one_in(4) {
                load.rounds(1 + self.random.below(2));
            }
        }
        self.statements(cluster, burst);
        match burst % 3 {
            0 => crash(cluster),
            1 => new_timeline(cluster),
            _ => storm(cluster, if self.long { 40 } else { 8 }),
        }
        if self.long && burst % 7 == 3 {
            bulk(cluster);
        }
    }

    fn statements(&mut self, cluster: &Cluster, burst: u32) {
        let low = self.random.below(2000);
        let strategies: &[&str] = if cluster.major() >= PgMajor::V15 {
            &["strategy wal_log", "strategy file_copy"]
        } else {
            &["", ""]
        };
        for (number, strategy) in strategies.iter().enumerate() {
            cluster.psql(&format!(
                "drop database if exists made_{number}; create database made_{number} template kept {strategy}"
            ));
            cluster.psql_in(
                &format!("made_{number}"),
                "create table t as select i from generate_series(1, 500) i; vacuum t",
            );
        }
        cluster.psql(&format!(
            "delete from cut where i > {low}; vacuum (truncate) cut;
             insert into cut select i, 'again' from generate_series({low}, {low} + 800) i;
             insert into still select point((i * 7919) % 100, i % 37) from generate_series(1, {low} % 50) i; vacuum still;
             insert into lost select i from generate_series(1, 500) i; select nextval('counted');
             drop index if exists built_brin, built_gin, built_gist, built_spgist, built_hash;
             update built set t = md5(t) where i between {low} and {low} + 100;
             create index built_brin on built using brin (i); create index built_gin on built using gin (a);
             create index built_gist on built using gist (p); create index built_spgist on built using spgist (t);
             create index built_hash on built using hash (t);
             begin; create table aborted_{burst} as select i from generate_series(1, 2000) i; rollback;
             begin; create table cut_at_once_{burst} (i int); copy cut_at_once_{burst} from program 'seq 5000';
               truncate cut_at_once_{burst}; insert into cut_at_once_{burst} select generate_series(1, 300); commit;
             begin; copy lost from program 'seq 9000'; rollback"
        ));
        if burst % 2 == 1 {
            cluster.psql("truncate lost; alter table cut set unlogged; alter table cut set logged");
        }
        if burst % 4 == 2 {
            cluster.psql("vacuum full cut; cluster built using built_gist; reindex table still");
        }
    }
}

/// Ends without warning in the middle of a transaction, recovers, and works on.
fn crash(cluster: &mut Cluster) {
    let mut session = cluster.session("postgres");
    session.run(
        "begin; create table orphan as select i, repeat('o', 100) as o from generate_series(1, 2000) i;
         create index on orphan (i); update built set i = i + 1 where i < 300",
    );
    cluster.psql("insert into cut values (-1, 'just before')");
    cluster.kill9();
    drop(session);
    cluster.start();
    cluster.psql(
        "select count(*) from built; vacuum built; insert into cut values (-2, 'just after')",
    );
}

/// Recovers as if from an archive, which ends on a new timeline.
fn new_timeline(cluster: &mut Cluster) {
    cluster.stop(StopMode::Fast);
    let signal = cluster.data_dir().join("recovery.signal");
    fs::write(&signal, "").unwrap();
    OsUser::current().own(&signal);
    cluster.set("restore_command", "false");
    cluster.start();
    let deadline = Instant::now() + Duration::from_secs(120);
    while cluster.psql("select pg_is_in_recovery()") != "f" {
        assert!(Instant::now() < deadline, "recovery does not end");
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster.psql("insert into cut values (-3, 'on a new timeline'); vacuum still");
}

/// Checkpoints between small changes.
fn storm(cluster: &Cluster, checkpoints: u32) {
    let mut sql = String::new();
    for number in 0..checkpoints {
        sql.push_str(&format!(
            "update hinted set pad = repeat('s', {number} + 100) where i % 97 = {number}; checkpoint;"
        ));
    }
    cluster.psql(&sql);
}

/// Two gigabytes of log.
fn bulk(cluster: &Cluster) {
    cluster.psql(
        "create table if not exists bulk (i int, pad text);
         do $$ begin for n in 1..20 loop
           truncate bulk; insert into bulk select i, repeat('b', 900) from generate_series(1, 100000) i;
         end loop; end $$",
    );
}
