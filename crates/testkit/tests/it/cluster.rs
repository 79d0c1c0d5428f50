//! Clusters of every major start, answer, stop and are gone afterwards.

use neon_testkit::{Cluster, PgMajor, StopMode};

fn a_cluster_starts_answers_and_stops(major: PgMajor) {
    let mut cluster = Cluster::builder(major).start();
    let scratch = cluster.scratch_dir().to_owned();
    assert!(
        cluster
            .psql("show server_version_num")
            .starts_with(&major.number().to_string())
    );
    cluster.psql("create table t (i int); insert into t values (1); vacuum t");
    cluster.restart();
    assert_eq!(cluster.psql("select i, i + 1 from t"), "1|2");
    cluster.kill9();
    cluster.start();
    assert_eq!(cluster.psql("select count(*) from t"), "1");
    cluster.stop(StopMode::Fast);
    let copy = cluster.copy_cold();
    let mut clone = Cluster::builder(major).on_copy(copy);
    clone.start();
    assert_eq!(clone.psql("select count(*) from t"), "1");
    drop(cluster);
    assert!(!scratch.exists());
}

macro_rules! for_every_major {
    ($($name:ident: $major:ident),*) => {$(
        #[test]
        fn $name() {
            a_cluster_starts_answers_and_stops(PgMajor::$major);
        }
    )*};
}

for_every_major!(
    a_cluster_of_13_starts_answers_and_stops: V13,
    a_cluster_of_14_starts_answers_and_stops: V14,
    a_cluster_of_15_starts_answers_and_stops: V15,
    a_cluster_of_16_starts_answers_and_stops: V16,
    a_cluster_of_17_starts_answers_and_stops: V17,
    a_cluster_of_18_starts_answers_and_stops: V18
);
