//! Every workload runs on every major, keeps its promise, also through a crash, and notices damage.

use neon_testkit::workload::Workload;
use neon_testkit::{Cluster, PgMajor, StopMode};

fn every_workload_keeps_its_promise(major: PgMajor) {
    let mut cluster = Cluster::builder(major).start();
    let mut loads: Vec<_> = Workload::ALL
        .iter()
        .map(|workload| workload.prepare(&cluster, 7, 2).unwrap())
        .collect();
    for load in &mut loads {
        load.rounds(4);
    }
    for workload in Workload::ALL {
        workload.verify(&cluster);
    }
    cluster.kill9();
    cluster.start();
    for workload in Workload::ALL {
        workload.verify(&cluster);
    }
    for load in &mut loads {
        load.rounds(2);
    }
    cluster.stop(StopMode::Fast);
    let copy = cluster.copy_cold();
    let mut clone = Cluster::builder(major).on_copy(copy);
    clone.start();
    for workload in Workload::ALL {
        workload.verify(&clone);
    }
}

macro_rules! for_every_major {
    ($($name:ident: $major:ident),*) => {$(
        #[test]
        fn $name() {
            every_workload_keeps_its_promise(PgMajor::$major);
        }
    )*};
}

for_every_major!(
    every_workload_keeps_its_promise_on_13: V13,
    every_workload_keeps_its_promise_on_14: V14,
    every_workload_keeps_its_promise_on_15: V15,
    every_workload_keeps_its_promise_on_16: V16,
    every_workload_keeps_its_promise_on_17: V17,
    every_workload_keeps_its_promise_on_18: V18
);

#[test]
fn workloads_run_beside_each_other_until_stopped() {
    let cluster = Cluster::builder(PgMajor::V17).start();
    let together = [
        Workload::Pgbench,
        Workload::Ddl,
        Workload::Toast,
        Workload::Multixacts,
        Workload::Indexes,
    ];
    let running: Vec<_> = together
        .iter()
        .map(|workload| workload.prepare(&cluster, 11, 2).unwrap().in_background())
        .collect();
    std::thread::sleep(std::time::Duration::from_secs(2));
    for load in running {
        assert!(load.stop().rounds_done() > 0);
    }
    for workload in together {
        workload.verify(&cluster);
    }
}

#[test]
fn a_load_on_a_killed_server_ends_and_its_promise_holds_after_recovery() {
    let mut cluster = Cluster::builder(PgMajor::V18).start();
    let running: Vec<_> = [Workload::Ddl, Workload::Prepared, Workload::LargeObjects]
        .iter()
        .map(|workload| workload.prepare(&cluster, 3, 4).unwrap().in_background())
        .collect();
    std::thread::sleep(std::time::Duration::from_secs(1));
    cluster.kill9();
    let mut loads: Vec<_> = running
        .into_iter()
        .map(|load| load.stop_whatever_happened())
        .collect();
    cluster.start();
    for workload in [Workload::Ddl, Workload::Prepared, Workload::LargeObjects] {
        workload.verify(&cluster);
    }
    for load in &mut loads {
        load.rounds(5);
    }
}

#[test]
fn verifying_notices_what_was_changed_behind_its_back() {
    let cluster = Cluster::builder(PgMajor::V16).start();
    let damage = [
        (
            Workload::Pgbench,
            "update pgbench_tellers set tbalance = tbalance + 1 where tid = 1",
        ),
        (
            Workload::Ddl,
            "insert into ddl.t1 (i) values (100000); create table ddl.t99 ()",
        ),
        (
            Workload::Toast,
            "update toast.t set plain = plain || 'x' where id = 1",
        ),
        (
            Workload::Visibility,
            "update vis.t set v = v + 1 where i = 1",
        ),
        (
            Workload::Prepared,
            "update prep.account set balance = 1 where slot = 9 and side = 0",
        ),
        (
            Workload::Multixacts,
            "update multi.t set v = v + 1 where i = 1",
        ),
        (
            Workload::LargeObjects,
            "select lo_put(id, 0, 'damaged') from large.registry",
        ),
        (
            Workload::Databases,
            "update databases.registry set rows = rows + 1",
        ),
        (
            Workload::Tablespaces,
            "delete from spaces.moving where i = 1",
        ),
    ];
    for (workload, sql) in damage {
        workload.run(&cluster, 1, 2, 6);
        workload.verify(&cluster);
        cluster.psql(sql);
        let noticed =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| workload.verify(&cluster)));
        assert!(noticed.is_err(), "{workload:?} did not notice");
    }
}
