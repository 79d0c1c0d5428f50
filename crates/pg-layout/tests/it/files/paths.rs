//! Paths of real data directories, judged by `pg_relation_filepath` and the catalogs.

use neon_pg_layout::{DataFile, Fork, PgMajor, RelFileLocator, RelationMap, RelationPath, Slru};
use neon_testkit::{Cluster, StopMode};

use super::{for_every_major, furnished};

for_every_major!(
    every_file_of_a_cluster_has_a_kind_and_relations_round_trip,
    relation_paths_agree_with_pg_relation_filepath,
    relation_maps_agree_with_the_catalogs,
);

fn every_file_of_a_cluster_has_a_kind_and_relations_round_trip(major: PgMajor) {
    let mut builder = Cluster::builder(major).setting("track_commit_timestamp", "on");
    if major.layout().has_wal_summaries {
        builder = builder.setting("summarize_wal", "on");
    }
    let mut cluster = furnished(builder);
    let layout = major.layout();
    let running = super::files_below(&cluster.data_dir());
    cluster.stop(StopMode::Fast);
    let stopped = super::files_below(&cluster.data_dir());
    let mut kinds = std::collections::BTreeMap::<String, usize>::new();
    for path in running.iter().chain(&stopped) {
        let path = path.to_str().unwrap();
        let kind = DataFile::of(path, layout);
        assert_ne!(kind, DataFile::Other, "{path}");
        if let DataFile::Relation(relation) = kind {
            assert_eq!(relation.to_path(layout), path);
            assert!(path.ends_with(&relation.file_name()));
        }
        let name = format!("{kind:?}");
        let name = name.split([' ', '(', '{']).next().unwrap().to_owned();
        *kinds.entry(name).or_default() += 1;
    }
    for kind in [
        "Relation",
        "RelationMap",
        "DatabaseVersion",
        "ClusterVersion",
        "RelationCache",
        "Control",
        "Slru",
        "Wal",
        "TwoPhase",
        "Configuration",
        "PostmasterPid",
        "PostmasterOptions",
        "Statistics",
        "Logical",
    ] {
        let expected = kind != "Logical" || kinds.contains_key(kind);
        assert!(
            !expected || kinds.contains_key(kind),
            "no {kind} in {kinds:?}"
        );
    }
    let forks: Vec<Fork> = stopped
        .iter()
        .filter_map(|path| RelationPath::parse(path.to_str().unwrap(), layout))
        .map(|relation| relation.fork)
        .collect();
    for fork in Fork::ALL {
        assert!(forks.contains(&fork), "{fork}");
    }
    for area in Slru::ALL {
        assert!(
            cluster.data_dir().join(area.directory()).is_dir(),
            "{area:?}"
        );
    }
}

fn relation_paths_agree_with_pg_relation_filepath(major: PgMajor) {
    let cluster = furnished(Cluster::builder(major));
    let layout = major.layout();
    let rows = cluster.psql(
        "select case when c.reltablespace = 0 then d.dattablespace else c.reltablespace end, \
         case when c.reltablespace = 1664 then 0 else d.oid end, \
         pg_relation_filenode(c.oid), pg_relation_filepath(c.oid) \
         from pg_class c, pg_database d \
         where d.datname = current_database() and pg_relation_filepath(c.oid) is not null",
    );
    assert!(rows.lines().count() > 200);
    let mut tablespaces = std::collections::BTreeSet::new();
    for row in rows.lines() {
        let fields: Vec<&str> = row.split('|').collect();
        let number = |at: usize| fields[at].parse::<u32>().unwrap();
        let locator = RelFileLocator {
            tablespace: number(0),
            database: number(1),
            number: number(2),
        };
        tablespaces.insert(locator.tablespace);
        let path = RelationPath::new(locator, Fork::Main);
        assert_eq!(path.to_path(layout), fields[3]);
        assert_eq!(RelationPath::parse(fields[3], layout), Some(path));
    }
    assert_eq!(tablespaces.len(), 3, "default, global and our own");
    let mut session = cluster.session("postgres");
    let path = session.run(
        "create temporary table passing (i int); insert into passing values (1); \
         select pg_relation_filepath('passing')",
    );
    let parsed = RelationPath::parse(&path, layout).unwrap();
    assert!(parsed.backend.is_some(), "{path}");
    assert_eq!(parsed.to_path(layout), path);
    assert!(cluster.data_dir().join(&path).is_file());
}

fn relation_maps_agree_with_the_catalogs(major: PgMajor) {
    let cluster = furnished(Cluster::builder(major));
    let directory =
        cluster.psql("select 'base/' || oid from pg_database where datname = 'postgres'");
    for (directory, shared) in [(directory.as_str(), "false"), ("global", "true")] {
        let path = cluster.data_dir().join(directory).join("pg_filenode.map");
        let file = std::fs::read(path).unwrap();
        let map = RelationMap::decode(&file, major.layout()).unwrap();
        let rows = cluster.psql(&format!(
            "select oid, pg_relation_filenode(oid) from pg_class \
             where relfilenode = 0 and relkind in ('r', 'i', 't') and relisshared = {shared}"
        ));
        assert!(rows.lines().count() > 5);
        for row in rows.lines() {
            let (oid, number) = row.split_once('|').unwrap();
            let expected = Some(number.parse().unwrap());
            assert_eq!(map.number_of(oid.parse().unwrap()), expected, "{row}");
        }
        assert_eq!(map.mappings().len(), rows.lines().count());
    }
}
