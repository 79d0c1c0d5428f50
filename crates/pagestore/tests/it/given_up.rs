//! A snapshot of which a part was lost on the way is not completed, whoever passed over the error.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use neon_pagestore::write::{SnapshotOptions, SnapshotWriter};
use neon_pagestore::{Error, ErrorKind, Repository};
use neon_snapshot_format::{Chunk, ChunkData, End, ParallelSink, SnapshotKind};
use neon_storage::{Fault, Faulty, Memory, Storage};

use crate::files::{entry, noise, send};
use crate::support::{init, options};

const FILES: usize = 40_000;

fn end() -> End {
    End {
        kind: Some(SnapshotKind::Cold),
        ..End::default()
    }
}

/// What a careless caller does with one worker before and after the end.
type Careless = fn(&SnapshotWriter);

/// Runs it over a writer that was announced one file; returns why it could not be completed.
async fn completed_after(repository: &Repository, careless: Careless) -> Option<Error> {
    let writing = repository.begin_writing().await.unwrap();
    let (to, writer) = (repository.clone(), writing.writer());
    let work = tokio::task::spawn_blocking(move || {
        let options = SnapshotOptions {
            pack_size: 100_000,
            ..SnapshotOptions::default()
        };
        let sink = SnapshotWriter::new(&to, writer, options).unwrap();
        careless(&sink);
        sink.complete().err()
    });
    let error = work.await.unwrap();
    writing.abandon().await;
    error
}

fn sound(sink: &SnapshotWriter) {
    let file = entry("one", 20_000);
    sink.entry(&file).unwrap();
    let mut worker = sink.worker().unwrap();
    send(&mut *worker, &file, &noise(20_000, 1), 0..20_000);
    worker.finish().unwrap();
    drop(worker);
    sink.end(&end()).unwrap();
}

/// So many files that what is known of them is put aside before the worker goes: nothing but their frames is missing.
fn dropped(sink: &SnapshotWriter) {
    let mut worker = sink.worker().unwrap();
    for number in 0..FILES {
        let file = entry(&format!("{number:0200}"), 1);
        sink.entry(&file).unwrap();
        send(&mut *worker, &file, &[1], 0..1);
    }
    drop(worker);
    sink.end(&end()).unwrap();
}

fn late(sink: &SnapshotWriter) {
    let file = entry("one", 20_000);
    sink.entry(&file).unwrap();
    sink.end(&end()).unwrap();
    let mut worker = sink.worker().unwrap();
    send(&mut *worker, &file, &noise(20_000, 1), 0..20_000);
    worker.finish().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_worker_took_that_was_dropped_or_came_late_keeps_a_snapshot_from_completing() {
    let repository = init(&Memory::new()).await;
    let cases: [(Careless, bool); 3] = [(sound, false), (dropped, true), (late, true)];
    for (number, (careless, fails)) in cases.into_iter().enumerate() {
        let error = completed_after(&repository, careless).await;
        assert_eq!(error.is_some(), fails, "case {number}");
        // Not only by luck, of pages that are not in the list either.
        let why = error.map_or_else(|| "a worker".to_owned(), |error| error.reason().to_owned());
        assert!(why.contains("a worker"), "case {number}: {why}");
    }
}

/// Goes on after a pack that could not be stored, until the storage is well again, and asks twice for the end.
fn deaf(sink: &SnapshotWriter, broken: &AtomicBool) {
    let mut worker = sink.worker().unwrap();
    let (mut failed, mut after) = (0, 0);
    for number in 0..200 {
        let file = entry(&format!("large{number}"), 131_072);
        sink.entry(&file).unwrap();
        worker.begin(&file, 0..131_072).unwrap();
        let bytes = noise(131_072, number);
        let data = ChunkData::Bytes(&bytes);
        // Told again and again, as the source reads it, until it is taken.
        while worker.chunk(&Chunk { offset: 0, data }).is_err() {
            failed += 1;
            broken.store(false, Ordering::Relaxed);
            let _passed_over = worker.commit();
            worker.begin(&file, 0..131_072).unwrap();
        }
        worker.commit().unwrap();
        after += usize::from(failed > 0);
        if after == 20 {
            break;
        }
    }
    assert!(failed > 0 && after == 20, "{failed} failed, {after} after");
    worker.finish().unwrap();
    drop(worker);
    sink.end(&end()).unwrap_err();
    // The second time nothing is left that could fail.
    let _passed_over = sink.end(&end());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_pack_is_remembered_also_by_who_passes_over_its_error() {
    let broken = Arc::new(AtomicBool::new(false));
    let plan = Arc::clone(&broken);
    let storage: Arc<dyn Storage> = Arc::new(Faulty::planned(
        Arc::new(Memory::new()),
        move |_, _, key| {
            let of_pack = key.is_some_and(|key| key.as_str().starts_with("packs/"));
            let fails = of_pack && plan.load(Ordering::Relaxed);
            fails.then_some(Fault::Fail(neon_storage::ErrorKind::Unavailable))
        },
    ));
    let repository = Repository::init(storage, options()).await.unwrap();
    let writing = repository.begin_writing().await.unwrap();
    let (to, writer) = (repository.clone(), writing.writer());
    broken.store(true, Ordering::Relaxed);
    let work = tokio::task::spawn_blocking(move || {
        let options = SnapshotOptions {
            pack_size: 300_000,
            ..SnapshotOptions::default()
        };
        let sink = SnapshotWriter::new(&to, writer, options).unwrap();
        deaf(&sink, &broken);
        sink.complete().unwrap_err()
    });
    let error = work.await.unwrap();
    assert_eq!(error.kind(), ErrorKind::Inconsistent, "{error:?}");
    writing.abandon().await;
}
