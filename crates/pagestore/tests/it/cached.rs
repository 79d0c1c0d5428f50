//! What a local cache of frames may hold.

use std::fs;
use std::sync::Arc;

use neon_pagestore::Repository;
use neon_pagestore::crypt::KeySource;
use neon_pagestore::read::{DiskCache, FrameReaderOptions, MapReader, Snapshot};
use neon_storage::Memory;

use crate::files::path;
use crate::support::{init, options, page, write};

#[tokio::test]
async fn the_disk_shows_no_page_of_an_encrypted_repository() {
    let plain = init(&Memory::new()).await;
    let key = KeySource::passphrase("one").with_cost(64, 1);
    let sealed = Repository::init(Arc::new(Memory::new()), options().key(key))
        .await
        .unwrap();
    let own = write(&sealed, None, &[("a", 1)], &[]).await;
    let brought = write(&plain, None, &[("b", 2)], &[]).await;
    plain.copy_to(&sealed, brought).await.unwrap();

    let place = tempfile::tempdir().unwrap();
    let cached = |name: &str| {
        let mut all = Vec::new();
        let mut folders = vec![place.path().join(name)];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap().path();
                if entry.is_dir() {
                    folders.push(entry);
                } else {
                    all.extend(fs::read(entry).unwrap());
                }
            }
        }
        all
    };
    for (name, repository, id, file, seed, shown) in [
        ("plain", &plain, brought, "b", 2, true),
        ("own", &sealed, own, "a", 1, false),
        ("brought", &sealed, brought, "b", 2, false),
    ] {
        let options = FrameReaderOptions {
            disk: Some(DiskCache::open(&place.path().join(name), 1 << 20).unwrap()),
            ..FrameReaderOptions::default()
        };
        // The second time nothing is asked for that the disk has.
        for again in [false, true] {
            let frames = repository.frames_with(options.clone());
            let maps = MapReader::new(frames.clone(), 1 << 20);
            let snapshot = Snapshot::open(repository, id, &maps).await.unwrap();
            let read = snapshot.read_page(&path(file), 0).await.unwrap().unwrap();
            assert_eq!(read, page(seed));
            assert_eq!(
                frames.used().requests == 0,
                again,
                "{name} {:?}",
                frames.used()
            );
        }
        let there = cached(name)
            .windows(16)
            .any(|window| *window == page(seed)[4000..4016]);
        assert_eq!(there, shown, "{name}");
    }
}
