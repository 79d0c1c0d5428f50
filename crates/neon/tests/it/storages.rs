//! Storages as remotes.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use neon_pg::{ErrorKind, Neon, Options, StorageType};
use neon_storage::Locator;

use crate::support::{Fixture, name, refused};

#[tokio::test]
async fn a_local_storage_is_there_and_others_are_attached_and_detached() {
    let home = Fixture::new();
    let storages = home.neon.storages();
    let place = home.scratch.path().join("tank");
    let locator = Locator::parse(place.to_str().unwrap()).unwrap();
    let options = BTreeMap::from([("compression".to_owned(), "zstd:3".to_owned())]);
    let tank = storages
        .attach(&name("tank"), &locator, options)
        .await
        .unwrap();
    assert_eq!(tank.kind, StorageType::Native);
    assert_eq!(
        refused(
            storages
                .attach(&name("tank"), &locator, BTreeMap::new())
                .await
        ),
        ErrorKind::Exists
    );
    let names: Vec<_> = home
        .again()
        .storages()
        .list()
        .unwrap()
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, [name("local"), name("tank")]);

    let mut used = home.stopped("one");
    used.storage = Some(name("tank"));
    home.neon.pg().create(&used).await.unwrap();
    assert_eq!(
        refused(storages.detach(&name("tank")).await),
        ErrorKind::Busy
    );
    home.neon.pg().destroy(&name("one")).await.unwrap();
    assert_eq!(storages.detach(&name("tank")).await.unwrap(), tank);
    assert_eq!(
        refused(storages.detach(&name("tank")).await),
        ErrorKind::NotFound
    );
    assert_eq!(
        refused(storages.detach(&name("local")).await),
        ErrorKind::Invalid
    );
}

#[tokio::test]
async fn passwords_are_not_kept_and_unknown_places_are_refused() {
    let home = Fixture::new();
    let storages = home.neon.storages();
    let secret = Locator::parse("http://me:hidden@localhost/x").unwrap();
    let error = storages
        .attach(&name("web"), &secret, BTreeMap::new())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(!format!("{error:?} {error}").contains("hidden"));
    assert_eq!(storages.list().unwrap().len(), 1);
}

#[test]
fn only_a_home_or_an_empty_folder_becomes_a_home() {
    let scratch = neon_testkit::Scratch::new();
    let strange = scratch.path().join("strange");
    std::fs::create_dir(&strange).unwrap();
    std::fs::write(strange.join("thesis.tex"), "").unwrap();
    assert_eq!(
        refused(Neon::open(&strange, Options::new())),
        ErrorKind::Invalid
    );
    assert_eq!(std::fs::read_dir(&strange).unwrap().count(), 1);

    let empty = scratch.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let first = Neon::open(&empty, Options::new()).unwrap();
    let second = Neon::open(&empty, Options::new()).unwrap();
    assert_eq!(first.home().id(), second.home().id());
    let mode = |path: &str| {
        std::fs::metadata(empty.join(path))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(
        (mode("state"), mode("store/local"), mode("neon.json")),
        (0o700, 0o700, 0o600)
    );

    std::fs::write(empty.join("neon.json"), r#"{"version": 99, "id": "x"}"#).unwrap();
    assert_eq!(
        refused(Neon::open(&empty, Options::new())),
        ErrorKind::Invalid
    );
    std::fs::write(empty.join("neon.json"), "{").unwrap();
    assert_eq!(
        refused(Neon::open(&empty, Options::new())),
        ErrorKind::Damaged
    );
}
