//! Snapshots made by the libraries below, where a test needs one of a certain kind.

use neon_pagestore::Facts;
use neon_pagestore::write::{SnapshotOptions, SnapshotWriter};
use neon_pg::{Found, Neon};
use neon_pg_layout::{Lsn, TimelineId};
use neon_snapshot_format::pgdata::{Bracket, PgData, Stop, StopWal};
use neon_snapshot_format::{Sequential, SnapshotKind};

use crate::support::name;

/// Takes a snapshot of an instance, as it stands: cold when it is stopped, online when it runs.
pub(crate) async fn take(neon: &Neon, pg: &str, tag: &str) -> Found {
    take_with(neon, pg, tag, |_| ()).await
}

pub(crate) async fn take_with(
    neon: &Neon,
    pg: &str,
    tag: &str,
    change: impl FnOnce(&mut Facts) + Send + 'static,
) -> Found {
    let storage = neon.storages().repository(&name("local")).await.unwrap();
    let repository = storage.repository.clone();
    let whole = format!("{pg}@{tag}");
    let (record, instance) = (
        neon.pg().record_of(&name(pg)).unwrap(),
        neon.pg().instance(&name(pg)).await.unwrap(),
    );
    let writing = repository.begin_writing().await.unwrap();
    let (to, writer) = (repository.clone(), writing.writer());
    let data = instance.data_dir().to_owned();
    let running = instance.status().await.unwrap().is_up();
    let handle = tokio::runtime::Handle::current();
    let asked = whole.clone();
    let (stored, facts) = tokio::task::spawn_blocking(move || {
        let sink = SnapshotWriter::new(&to, writer, SnapshotOptions::default()).unwrap();
        let mut facts = if running {
            online(&sink, &instance, &handle)
        } else {
            let source = PgData::cold(&data).unwrap();
            let facts = Facts::of_control(SnapshotKind::Cold, 0, source.control());
            let copied = source.copy_parallel(&sink, 2).unwrap();
            let mut rest = Sequential::new(&sink).unwrap();
            copied.finish(&mut rest, None).unwrap();
            facts
        };
        facts.names = vec![asked.parse().unwrap()];
        facts.instance = Some(record.id);
        facts.lineage = Some(record.lineage);
        change(&mut facts);
        (sink.complete().unwrap(), facts)
    })
    .await
    .unwrap();
    let commit = stored.commit(facts).unwrap();
    writing.commit(&commit).await.unwrap();
    neon.snapshots().find(&whole, None).await.unwrap()
}

fn online(
    sink: &SnapshotWriter,
    instance: &neon_pgctl::Instance,
    handle: &tokio::runtime::Handle,
) -> Facts {
    let modern = instance.major() >= neon_pgctl::PgMajor::V15;
    let mut client = handle.block_on(instance.connect("postgres")).unwrap();
    let mut ask = |sql: &str| -> Vec<String> {
        let sets = handle.block_on(client.simple_query(sql)).unwrap();
        let row = sets.last().unwrap().rows()[0].clone();
        (0..3)
            .map(|column| row.get(column).unwrap_or_default().to_owned())
            .collect()
    };
    let start: Lsn = ask(if modern {
        "select pg_backup_start('test', true)"
    } else {
        "select pg_start_backup('test', true, false)"
    })[0]
        .parse()
        .unwrap();
    let (asking, handle) = (instance.clone(), handle.clone());
    let bracket = Bracket::new(start, move || {
        let position = handle.block_on(async {
            let mut client = asking.connect("postgres").await.unwrap();
            let sets = client
                .simple_query("select pg_current_wal_insert_lsn()")
                .await
                .unwrap();
            sets[0].value(0, 0).unwrap().to_owned()
        });
        Ok(position.parse()?)
    });
    let source = PgData::online(instance.data_dir(), bracket).unwrap();
    let timeline = source.control().checkpoint.timeline;
    let mut facts = Facts::of_control(SnapshotKind::Online, 0, source.control());
    let copied = source.copy_parallel(sink, 2).unwrap();
    let call = if modern {
        "pg_backup_stop(false)"
    } else {
        "pg_stop_backup(false, false)"
    };
    let row = ask(&format!("select lsn, labelfile, spcmapfile from {call}"));
    let position: Lsn = row[0].parse().unwrap();
    facts.log.start = Some(start);
    facts.log.stop = Some(position);
    let stop = Stop {
        label: row[1].as_bytes(),
        tablespace_map: row[2].as_bytes(),
        position,
        timeline: TimelineId::new(timeline.get()).unwrap(),
        wal: StopWal::Directory(&instance.data_dir().join("pg_wal")),
    };
    let mut rest = Sequential::new(sink).unwrap();
    copied.finish(&mut rest, Some(stop)).unwrap();
    facts
}
