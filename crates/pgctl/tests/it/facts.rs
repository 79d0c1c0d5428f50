//! Facts of real servers, and the repair of a drift of collations.

use neon_pgctl::facts::{DifferenceKind, Facts, Impact, Provider, compare};
use neon_testkit::Cluster;

use crate::history::runtime;
use crate::support::*;

fn instance(cluster: &Cluster) -> Instance {
    let scratch = cluster.scratch_dir();
    Instance::at(
        &installation(cluster.major()),
        cluster.data_dir(),
        scratch.join("l"),
        scratch.join("r"),
    )
    .unwrap()
}

fn online(cluster: &Cluster) -> Facts {
    runtime()
        .block_on(instance(cluster).online_facts())
        .unwrap()
}

fn facts_are_learned_and_drift_is_repaired(major: PgMajor) {
    let cluster = Cluster::builder(major)
        .initdb_arg("--encoding=UTF8")
        .initdb_arg("--locale=C.UTF-8")
        .setting("shared_buffers", "24MB")
        .start();
    let facts = online(&cluster);
    assert_eq!(facts.platform.major, major.number());
    assert_eq!(facts.platform.architecture, std::env::consts::ARCH);
    assert!(
        facts
            .platform
            .libc
            .as_ref()
            .is_some_and(|libc| libc.starts_with("glibc 2.") || libc == "musl")
    );
    assert!(
        facts
            .platform
            .extensions
            .iter()
            .any(|extension| extension.name == "plpgsql"),
        "{:?}",
        facts.platform
    );
    assert!(
        facts
            .platform
            .libraries
            .iter()
            .any(|library| library == "plpgsql")
    );
    let found = facts.cluster.as_ref().unwrap();
    assert_eq!(
        (found.major, found.block_size, found.wal_segment_size),
        (major.number(), 8192, 16 << 20)
    );
    assert_eq!(found.memory.shared_buffers, 24 << 20);
    assert_eq!(found.memory.shared.is_some(), major >= PgMajor::V15);
    let databases = found.databases.as_ref().unwrap();
    let names: Vec<_> = databases
        .iter()
        .map(|database| database.name.as_str())
        .collect();
    assert_eq!(names, ["postgres", "template1"]);
    assert_eq!(databases[0].encoding, "UTF8");
    assert!(
        databases[0]
            .extensions
            .iter()
            .any(|extension| extension.name == "plpgsql")
    );
    assert_eq!(databases[0].collations[0].locale, "C.UTF-8");
    assert_eq!(compare(&facts, &facts), []);
    let offline = runtime()
        .block_on(instance(&cluster).offline_facts())
        .unwrap();
    assert_eq!(offline.platform, facts.platform);
    assert_eq!(
        offline.cluster.as_ref().unwrap().memory.shared_buffers,
        24 << 20
    );
    assert_eq!(compare(&facts, &offline), []);

    // Some are built without ICU; there no collation has a version on a machine whose only locale is C.
    let icu = cluster
        .try_psql("create collation probe (provider = icu, locale = 'fr')")
        .is_ok();
    assert_eq!(facts.platform.icu.is_some(), icu);
    if icu {
        cluster.psql(
            "create collation \"Deutsch\" (provider = icu, locale = 'de'); \
             create table \"T\" (a text, b text collate \"Deutsch\"); \
             insert into \"T\" select i::text, i::text from generate_series(1, 100) i; \
             create index on \"T\" (a); create index \"by b\" on \"T\" (b)",
        );
    } else {
        cluster.psql(
            "create table \"T\" (a text, b text collate ucs_basic); create index on \"T\" (a)",
        );
    }
    let facts = online(&cluster);
    let database = &facts.cluster.as_ref().unwrap().databases.as_ref().unwrap()[0];
    assert!(
        database.collations[0]
            .indexes
            .contains(&"public.\"T_a_idx\"".to_owned()),
        "{database:?}"
    );
    if !icu {
        return;
    }
    let deutsch = &database.collations[1];
    assert_eq!(deutsch.name.as_deref(), Some("public.\"Deutsch\""));
    assert_eq!(
        (deutsch.provider, deutsch.locale.as_str()),
        (Provider::Icu, "de")
    );
    assert_eq!(deutsch.indexes, ["public.\"by b\""]);
    assert!(deutsch.recorded.is_some() && deutsch.recorded == deutsch.actual);
    assert_eq!(compare(&facts, &facts), []);
    // As after an upgrade of the operating system.
    cluster.psql("update pg_collation set collversion = '1.2' where collname = 'Deutsch'");
    let drifted = online(&cluster);
    let differences = compare(&drifted, &drifted);
    let [difference] = differences.as_slice() else {
        panic!("{differences:?}")
    };
    assert_eq!(
        (difference.kind, difference.impact),
        (DifferenceKind::Collation, Impact::Repair)
    );
    assert_eq!(
        difference.statements,
        [
            "REINDEX INDEX public.\"by b\"",
            "ALTER COLLATION public.\"Deutsch\" REFRESH VERSION"
        ]
    );
    // The same is told by what was recorded beside a snapshot, once it runs elsewhere.
    assert_eq!(compare(&drifted, &facts).len(), 1);
    for statement in &difference.statements {
        cluster.psql_in(difference.database.as_deref().unwrap(), statement);
    }
    let repaired = online(&cluster);
    assert_eq!(compare(&repaired, &repaired), []);
}

/// A default collation with a version needs ICU as the database's provider, which 15 was the first to have.
fn drift_of_a_default_collation_is_repaired(major: PgMajor) {
    let cluster = Cluster::builder(major)
        .initdb_arg("--encoding=UTF8")
        .initdb_arg("--locale-provider=icu")
        .initdb_arg("--icu-locale=de")
        .initdb_arg("--locale=C.UTF-8")
        .start();
    cluster.psql("create table t (a text primary key); update pg_database set datcollversion = '1.2' where datname = 'postgres'");
    let drifted = online(&cluster);
    let differences = compare(&drifted, &drifted);
    let [difference] = differences.as_slice() else {
        panic!("{differences:?}")
    };
    let refresh = "ALTER DATABASE \"postgres\" REFRESH COLLATION VERSION";
    assert_eq!(
        difference.statements,
        ["REINDEX INDEX public.t_pkey", refresh]
    );
    for statement in &difference.statements {
        cluster.psql(statement);
    }
    let repaired = online(&cluster);
    assert_eq!(compare(&repaired, &repaired), []);
}

mod facts_are_learned_and_drift_is_repaired {
    macro_rules! per_major {
        ($($name:ident $major:ident)*) => {$(
            #[test]
            fn $name() {
                super::facts_are_learned_and_drift_is_repaired(neon_testkit::PgMajor::$major);
            }
        )*};
    }
    per_major!(v13 V13 v14 V14 v15 V15 v16 V16 v17 V17 v18 V18);
}

#[test]
fn drift_of_a_default_collation_is_repaired_on_15_and_17() {
    drift_of_a_default_collation_is_repaired(PgMajor::V15);
    drift_of_a_default_collation_is_repaired(PgMajor::V17);
}
