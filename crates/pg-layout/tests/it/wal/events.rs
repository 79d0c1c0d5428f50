//! Each kind of change is told by the log of a real server.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use neon_pg_layout::Slru;
use neon_pg_layout::wal::changes::Change;
use neon_pg_layout::{
    DEFAULT_TABLESPACE, Fork, Lsn, PgMajor, RelFileLocator, TimelineId, WalLevel,
};
use neon_testkit::{Cluster, StopMode};

use super::walk::{Stop, changes};

/// A server and how far its log was looked at.
struct Observed {
    cluster: Cluster,
    seen_to: Lsn,
}

/// The changes of one step, each with the place of its record; printed, since they borrow.
struct Changes(Vec<(Lsn, String)>);

impl Observed {
    fn start(major: PgMajor) -> Self {
        let mut cluster = Cluster::builder(major)
            .wal_segment_mib(1)
            .setting("wal_level", "logical")
            .setting("wal_keep_size", "2GB")
            .setting("max_wal_size", "2GB")
            .setting("autovacuum", "off")
            .setting("max_prepared_transactions", 5)
            .init();
        cluster.start();
        let mut observed = Self {
            cluster,
            seen_to: Lsn(1),
        };
        // Template objects and start are of no interest.
        observed.seen_to = observed.insert_position();
        observed
    }

    fn wal(&self) -> PathBuf {
        self.cluster.data_dir().join("pg_wal")
    }

    /// Makes sure that everything written so far is in the files.
    fn insert_position(&self) -> Lsn {
        self.cluster
            .psql("select pg_logical_emit_message(true, 'flush', '')");
        self.number("select pg_current_wal_flush_lsn()")
            .parse()
            .unwrap()
    }

    fn number(&self, sql: &str) -> String {
        self.cluster.psql(sql)
    }

    /// Runs `sql` and returns what the log says it changed.
    fn run(&mut self, sql: &str) -> Changes {
        self.cluster.psql(sql);
        self.look()
    }

    fn look(&mut self) -> Changes {
        let to = self.insert_position();
        let mut all = Vec::new();
        let stop = changes(&self.wal(), 1, Some(self.seen_to), |lsn, change| {
            assert!(!matches!(change, Change::Unknown { .. }), "{change:?}");
            if lsn < to {
                all.push((lsn, format!("{change:?}")));
            }
        });
        assert!(!matches!(stop, Stop::Failed(_)), "{stop:?}");
        self.seen_to = to;
        Changes(all)
    }

    fn relation(&self, name: &str) -> RelFileLocator {
        let row = self.number(&format!(
            "select case reltablespace when 0 then 1663 else reltablespace end, d.oid,
                    pg_relation_filenode(c.oid)
               from pg_class c, pg_database d where relname = '{name}' and datname = current_database()"
        ));
        let numbers: Vec<u32> = row.split('|').map(|text| text.parse().unwrap()).collect();
        RelFileLocator {
            tablespace: numbers[0],
            database: numbers[1],
            number: numbers[2],
        }
    }

    fn blocks(&self, name: &str, fork: &str) -> u32 {
        self.number(&format!(
            "select pg_relation_size('{name}', '{fork}') / 8192"
        ))
        .parse()
        .unwrap()
    }
}

impl Changes {
    fn has(&self, change: &Change<'_>) -> bool {
        let wanted = format!("{change:?}");
        self.0.iter().any(|(_, text)| *text == wanted)
    }

    #[track_caller]
    fn expect(&self, change: Change<'_>) {
        assert!(self.has(&change), "no {change:?} in\n{self}");
    }

    /// All that begin with this name.
    fn named<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s (Lsn, String)> {
        self.0
            .iter()
            .filter(move |(_, text)| text.starts_with(name))
    }

    /// Whether one begins with this name and has all of these in it.
    #[track_caller]
    fn expect_like(&self, name: &str, parts: &[&str]) {
        let found = self
            .named(name)
            .any(|(_, text)| parts.iter().all(|part| text.contains(part)));
        assert!(found, "no {name} with {parts:?} in\n{self}");
    }
}

impl std::fmt::Display for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (lsn, text) in &self.0 {
            writeln!(f, "{lsn} {text}")?;
        }
        Ok(())
    }
}

fn bytes(text: &str) -> String {
    format!("{:?}", text.as_bytes())
}

fn relations_come_shrink_and_go(log: &mut Observed) {
    let seen = log.run("create table t (i int, t text)");
    let table = log.relation("t");
    seen.expect(Change::ForkCreated {
        relation: table,
        fork: Fork::Main,
    });
    assert_eq!(seen.named("Committed").count(), 2, "{seen}");
    let seen = log.run("insert into t select i, repeat('x', 100) from generate_series(1, 5000) i");
    for block in 0..log.blocks("t", "main") {
        seen.expect_like(
            "Block(",
            &[&format!("{table:?}"), &format!(" block: {block},")],
        );
    }
    log.run("vacuum (freeze) t");
    let seen = log.run("update t set i = -1 where i = 1");
    let cleared = Change::VisibilityMapCleared {
        relation: table,
        block: 0,
    };
    seen.expect(cleared.clone());
    log.run("vacuum (freeze) t");
    let seen = log.run("begin; select * from t where i = 5 for update; commit");
    seen.expect(cleared.clone());
    log.run("vacuum (freeze) t");
    let seen = log.run("delete from t where i > 1000");
    seen.expect(cleared.clone());
    log.run("vacuum (freeze, truncate off) t");
    // Into a page that is all visible, with many at a time.
    let seen = log.run("insert into t select 1, '' from generate_series(1, 3)");
    seen.expect(cleared.clone());
    log.run("vacuum (freeze, truncate off) t");
    let seen = log.run("copy t from stdin;\n1\ta\n2\tb\n\\.\n");
    seen.expect(cleared.clone());
    log.run("delete from t where i > 500 or i < 0");
    let seen = log.run("vacuum (truncate) t");
    let blocks = log.blocks("t", "main");
    assert!(blocks < 20);
    seen.expect(Change::Truncated {
        relation: table,
        fork: Fork::Main,
        blocks,
    });
    seen.expect(Change::Truncated {
        relation: table,
        fork: Fork::VisibilityMap,
        blocks: log.blocks("t", "vm"),
    });
    seen.expect(Change::Truncated {
        relation: table,
        fork: Fork::FreeSpaceMap,
        blocks: log.blocks("t", "fsm"),
    });
    seen.expect(cleared);
    let toast = log.relation(&log.number(
        "select relname from pg_class where oid = (select reltoastrelid from pg_class where relname = 't')",
    ));
    let seen = log.run("drop table t");
    seen.expect(Change::RelationDropped { relation: table });
    seen.expect(Change::RelationDropped { relation: toast });
    let seen = log.run("begin; create table never (i int); rollback");
    let created = seen.named("ForkCreated").next().unwrap().1.clone();
    let dropped = seen.named("RelationDropped").next().unwrap().1.clone();
    assert!(
        created.contains(
            dropped
                .trim_start_matches("RelationDropped { ")
                .trim_end_matches(" }")
        )
    );
    assert_eq!(seen.named("Aborted").count(), 1);
}

fn databases_and_tablespaces_come_and_go(log: &mut Observed) {
    let logged = log.cluster.major() >= PgMajor::V15;
    let oid = |log: &Observed, name: &str| -> u32 {
        log.number(&format!(
            "select oid from pg_database where datname = '{name}'"
        ))
        .parse()
        .unwrap()
    };
    let copied = if logged {
        let seen = log.run("create database logged strategy wal_log");
        let database = oid(log, "logged");
        seen.expect(Change::DatabaseCreated {
            database,
            tablespace: DEFAULT_TABLESPACE,
        });
        assert!(
            seen.named("Block(")
                .any(|(_, text)| text.contains(&format!("database: {database},")))
        );
        let seen = log.run("drop database logged");
        seen.expect(Change::DatabaseDropped {
            database,
            tablespace: DEFAULT_TABLESPACE,
        });
        log.run("create database copied strategy file_copy")
    } else {
        log.run("create database copied")
    };
    let database = oid(log, "copied");
    copied.expect(Change::DatabaseCopied {
        database,
        tablespace: DEFAULT_TABLESPACE,
        source_database: oid(log, "template1"),
        source_tablespace: DEFAULT_TABLESPACE,
    });
    let folder = log.cluster.tablespace_dir("ts");
    let seen = log.run(&format!(
        "create tablespace ts location '{}'",
        folder.display()
    ));
    let tablespace = log
        .number("select oid from pg_tablespace where spcname = 'ts'")
        .parse()
        .unwrap();
    seen.expect(Change::TablespaceCreated {
        tablespace,
        path: folder.to_str().unwrap().as_bytes(),
    });
    let seen = log.run("alter database copied set tablespace ts");
    seen.expect(Change::DatabaseCopied {
        database,
        tablespace,
        source_database: database,
        source_tablespace: DEFAULT_TABLESPACE,
    });
    seen.expect(Change::DatabaseDropped {
        database,
        tablespace: DEFAULT_TABLESPACE,
    });
    // Then the database is in two tablespaces.
    log.cluster.psql_in(
        "copied",
        "create table elsewhere (i int) tablespace pg_default",
    );
    let seen = log.run("drop database copied");
    for tablespace in [DEFAULT_TABLESPACE, tablespace] {
        seen.expect(Change::DatabaseDropped {
            database,
            tablespace,
        });
    }
    log.run("drop tablespace ts")
        .expect(Change::TablespaceDropped { tablespace });
}

fn transactions_end(log: &mut Observed) {
    log.run("create table accounts (i int primary key); insert into accounts values (1), (2)");
    let dropped = log.relation("accounts");
    // By the server's own functions: which transaction, which subtransactions, when.
    let mut session = log.cluster.session("postgres");
    session.run("begin");
    let xid = session.run("select txid_current() % (2::bigint ^ 32)::bigint");
    for point in ["a", "b"] {
        session.run(&format!(
            "savepoint {point}; insert into accounts values ({})",
            point.len() + 10 * point.as_bytes()[0] as usize
        ));
    }
    let subxids =
        session.run("select string_agg(distinct xmin::text, ',') from accounts where i > 2");
    session.run("commit");
    let seen = log.look();
    let committed = &seen
        .named("Committed")
        .find(|(_, text)| text.contains(&format!("xid: {xid},")))
        .unwrap_or_else(|| panic!("no commit of {xid} in\n{seen}"))
        .1;
    let expected: Vec<String> = subxids
        .split(',')
        .map(|xid| format!("{:?}", xid.parse::<u32>().unwrap().to_le_bytes()))
        .collect();
    assert!(
        committed.contains(&format!("subxids: Xids([{}])", expected.join(", "))),
        "{committed} {subxids}"
    );
    seen.expect_like("SlruPages", &["Transactions", "first: 0"]);

    log.run("begin; drop table accounts; create table later (i int); prepare transaction 'one'")
        .expect_like("Prepared", &[&bytes("one")]);
    let seen = log.run("commit prepared 'one'");
    seen.expect(Change::RelationDropped { relation: dropped });
    seen.expect_like(
        "Committed",
        &["prepared: true", &format!("gid: Some({})", bytes("one"))],
    );
    let later = log.relation("later");
    let seen =
        log.run("begin; drop table later; create table never (i int); prepare transaction 'two'");
    seen.expect_like("Prepared", &[&bytes("two")]);
    let xid = log.number("select transaction from pg_prepared_xacts");
    seen.expect_like("Prepared", &[&format!("xid: {xid},")]);
    let seen = log.run("rollback prepared 'two'");
    seen.expect_like("Aborted", &[&format!("xid: {xid},"), "prepared: true"]);
    assert!(!seen.has(&Change::RelationDropped { relation: later }));
    assert_eq!(seen.named("RelationDropped").count(), 1);

    // Replicated from elsewhere.
    log.run("select pg_replication_origin_create('far')");
    let seen = log.run(
        "select pg_replication_origin_session_setup('far');
         begin; select pg_replication_origin_xact_setup('AB/CD', '2000-01-01 00:00:01Z');
         insert into later values (7); commit",
    );
    seen.expect_like(
        "Committed",
        &["origin: Some(Origin { lsn: Lsn(AB/CD), time: Timestamp(1000000) })"],
    );

    // Two lock one row.
    log.run("insert into later values (1)");
    let mut one = log.cluster.session("postgres");
    one.run("begin; select * from later for share");
    let seen = log.run("begin; select * from later for share; commit");
    one.run("commit");
    for slru in [Slru::MultiXactOffsets, Slru::MultiXactMembers] {
        seen.expect_like("SlruPages", &[&format!("{slru:?}"), "first: 0, last: 0"]);
    }
}

fn the_cluster_says_what_it_does(log: &mut Observed) {
    let major = log.cluster.major();
    let before: i64 = log
        .number("select (extract(epoch from now()) * 1000000)::bigint")
        .parse()
        .unwrap();
    let seen = log.run("select pg_create_restore_point('here I am')");
    seen.expect_like("RestorePoint", &[&bytes("here I am")]);
    let (_, point) = seen.named("RestorePoint").next().unwrap();
    let time: i64 = point
        .split("Timestamp(")
        .nth(1)
        .unwrap()
        .split(')')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let off = time + 946_684_800_000_000 - before;
    assert!(
        (0..600_000_000).contains(&off),
        "{off} µs after the clock was read"
    );

    let seen = log.run("checkpoint");
    let row = log.number("select checkpoint_lsn, redo_lsn from pg_control_checkpoint()");
    let (lsn, redo) = row.split_once('|').unwrap();
    let redo: Lsn = redo.parse().unwrap();
    let (at, checkpoint) = seen.named("Checkpoint {").next().unwrap();
    assert_eq!(at.to_string(), lsn);
    assert!(
        checkpoint.contains("shutdown: false") && checkpoint.contains(&format!("redo: {redo:?}"))
    );
    let marks: Vec<&(Lsn, String)> = seen.named("CheckpointRedo").collect();
    if major >= PgMajor::V17 {
        let level = Change::CheckpointRedo {
            wal_level: Some(WalLevel::Logical),
        };
        assert_eq!(marks, [&(redo, format!("{level:?}"))]);
    } else {
        assert!(marks.is_empty());
    }

    let seen = log.run("vacuum full pg_class");
    let database: u32 = log
        .number("select oid from pg_database where datname = 'postgres'")
        .parse()
        .unwrap();
    let file = log
        .cluster
        .data_dir()
        .join(format!("base/{database}/pg_filenode.map"));
    seen.expect(Change::RelationMapUpdated {
        database,
        tablespace: DEFAULT_TABLESPACE,
        map: &std::fs::read(file).unwrap(),
    });

    let printed = if major >= PgMajor::V15 {
        log.cluster
            .psql("select pg_backup_start('b', true); select (pg_backup_stop(false)).lsn")
    } else {
        log.cluster.psql(
            "select pg_start_backup('b', true, false); select (pg_stop_backup(false, false)).lsn",
        )
    };
    let start: Lsn = printed.lines().next().unwrap().parse().unwrap();
    log.look().expect(Change::BackupEnded { start });

    log.run("select pg_switch_wal()")
        .expect(Change::SegmentSwitched);

    log.cluster.set("full_page_writes", "off");
    log.cluster.reload();
    // The checkpointer logs it in its own time.
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut seen = log.look();
    while seen.named("FullPageWritesChanged").next().is_none() {
        assert!(Instant::now() < deadline, "{}", log.cluster.log_tail());
        std::thread::sleep(Duration::from_millis(50));
        seen = log.look();
    }
    seen.expect(Change::FullPageWritesChanged { on: false });

    log.cluster.set("wal_log_hints", "on");
    log.cluster.set("max_connections", 33);
    log.cluster.set("track_commit_timestamp", "on");
    log.cluster.restart();
    let seen = log.look();
    seen.expect_like("Checkpoint {", &["shutdown: true"]);
    seen.expect_like(
        "ParametersChanged",
        &[
            "max_connections: 33",
            "max_prepared_transactions: 5",
            "wal_level: Logical",
            "wal_log_hints: true",
            "track_commit_timestamp: true",
        ],
    );
    log.run("create table stamped (i int)")
        .expect_like("SlruPages", &["CommitTimestamps"]);
}

fn a_new_timeline_begins(mut log: Observed) {
    log.cluster.stop(StopMode::Fast);
    let mut last = Lsn(0);
    changes(&log.wal(), 1, Some(log.seen_to), |lsn, _| last = lsn);
    std::fs::write(log.cluster.data_dir().join("standby.signal"), "").unwrap();
    log.cluster.start();
    assert_eq!(log.cluster.psql("select pg_promote()"), "t");
    log.cluster.psql("create table after (i int)");
    let relation = log.relation("after");
    let mut seen = Changes(Vec::new());
    let stop = changes(&log.wal(), 2, Some(log.seen_to), |lsn, change| {
        seen.0.push((lsn, format!("{change:?}")));
    });
    assert!(matches!(stop, Stop::End(_)), "{stop:?}");
    seen.expect_like(
        "EndOfRecovery",
        &[&format!(
            "timeline: {:?}, previous_timeline: {:?}",
            TimelineId::new(2).unwrap(),
            TimelineId::FIRST
        )],
    );
    assert!(seen.named("EndOfRecovery").next().unwrap().0 > last);
    seen.expect(Change::ForkCreated {
        relation,
        fork: Fork::Main,
    });
}

fn changes_are_told(major: PgMajor) {
    let mut log = Observed::start(major);
    relations_come_shrink_and_go(&mut log);
    databases_and_tablespaces_come_and_go(&mut log);
    transactions_end(&mut log);
    the_cluster_says_what_it_does(&mut log);
    a_new_timeline_begins(log);
}

macro_rules! for_every_major {
    ($($name:ident: $major:ident),*) => {$(
        #[test]
        fn $name() {
            changes_are_told(PgMajor::$major);
        }
    )*};
}

for_every_major!(
    each_kind_of_change_is_told_by_the_log_of_13: V13,
    each_kind_of_change_is_told_by_the_log_of_14: V14,
    each_kind_of_change_is_told_by_the_log_of_15: V15,
    each_kind_of_change_is_told_by_the_log_of_16: V16,
    each_kind_of_change_is_told_by_the_log_of_17: V17,
    each_kind_of_change_is_told_by_the_log_of_18: V18
);
