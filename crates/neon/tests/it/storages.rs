//! Storages as remotes.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use neon_pagestore::{OpenOptions, Repository};
use neon_pg::{CreateSnapshot, ErrorKind, Neon, Options, StorageType};
use neon_storage::{Locator, Native, NativeOptions};

use crate::support::{Fixture, name, refused, take};

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

#[tokio::test]
async fn a_storage_whose_disk_is_not_there_is_told_and_not_made_anew() {
    let home = Fixture::new();
    let storages = home.neon.storages();
    let place = home.scratch.path().join("tank");
    let locator = Locator::parse(place.to_str().unwrap()).unwrap();
    let tank = name("tank");
    let attached = storages.attach(&tank, &locator, BTreeMap::new()).await;
    attached.unwrap();
    let mut used = home.stopped("one");
    used.storage = Some(tank.clone());
    home.neon.pg().create(&used).await.unwrap();
    let found = take(&home.neon, "one", "a").await;
    let id = storages.get(&tank).unwrap().repository;
    assert_eq!(id, Some(found.repository.repository.id()));

    let away = home.scratch.path().join("unmounted");
    std::fs::rename(&place, &away).unwrap();
    let refuses = async || {
        let wanted = CreateSnapshot::new("one@b".parse().unwrap());
        let taken = home.neon.snapshots().create(&wanted).await;
        let error = taken.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Environment, "{error:?}");
        assert!(
            error.hint().unwrap().contains("mount the disk"),
            "{error:?}"
        );
        assert_eq!(
            refused(home.neon.snapshots().find("one@a", None).await),
            ErrorKind::Environment
        );
        let (listed, problems) = home.neon.snapshots().list(None).await.unwrap();
        assert_eq!((listed.len(), problems.len()), (0, 1));
    };
    refuses().await;
    assert!(!place.exists());
    // The folder that the disk was mounted on.
    std::fs::create_dir(&place).unwrap();
    refuses().await;
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
    // Another disk.
    let other = Native::open(&place, NativeOptions::default()).unwrap();
    let other = Repository::init(Arc::new(other), OpenOptions::new()).await;
    let other = other.unwrap();
    refuses().await;
    let accepted = storages.accept(&tank).await.unwrap();
    assert_eq!(accepted.repository.id(), other.id());
    take(&home.neon, "one", "b").await;
    assert_eq!(
        refused(home.neon.snapshots().find("one@a", None).await),
        ErrorKind::NotFound
    );

    std::fs::remove_dir_all(&place).unwrap();
    std::fs::rename(&away, &place).unwrap();
    storages.accept(&tank).await.unwrap();
    home.neon.snapshots().find("one@a", None).await.unwrap();
}

#[tokio::test]
async fn a_name_never_means_another_snapshot_because_a_storage_is_away() {
    let home = Fixture::new();
    let (neon, storages) = (&home.neon, home.neon.storages());
    let mut places = Vec::new();
    for storage in ["tank", "usb", "web"] {
        let place = home.scratch.path().join(storage);
        let locator = Locator::parse(place.to_str().unwrap()).unwrap();
        let storage = name(storage);
        let attached = storages.attach(&storage, &locator, BTreeMap::new());
        attached.await.unwrap();
        places.push(place);
    }
    let mut one = home.stopped("one");
    one.storage = Some(name("tank"));
    neon.pg().create(&one).await.unwrap();
    let mut ids = Vec::new();
    for storage in [None, Some("usb"), Some("local")] {
        let mut wanted = CreateSnapshot::new("one@a".parse().unwrap());
        wanted.storage = storage.map(name);
        ids.push(neon.snapshots().create(&wanted).await.unwrap().id);
    }
    let find = async |storage: Option<&str>| {
        let storage = storage.map(name);
        neon.snapshots().find("one@a", storage.as_ref()).await
    };
    assert_eq!(find(None).await.unwrap().id, ids[0]);
    let away = home.scratch.path().join("away");
    std::fs::rename(&places[0], &away).unwrap();
    assert_eq!(refused(find(None).await), ErrorKind::Environment);
    assert_eq!(find(Some("usb")).await.unwrap().id, ids[1]);
    std::fs::rename(&away, &places[0]).unwrap();

    // Nobody's own any more: the home's, and without one in it no guess.
    neon.pg().destroy(&name("one")).await.unwrap();
    assert_eq!(find(None).await.unwrap().id, ids[2]);
    let (snapshots, local) = (neon.snapshots(), name("local"));
    let plan = snapshots.plan_destroy("one@a", Some(&local));
    snapshots.destroy(&plan.await.unwrap()).await.unwrap();
    let error = find(None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid, "{error:?}");
    assert!(
        error.to_string().contains("storage tank, storage usb"),
        "{error}"
    );
    let (found, told) = (
        neon.snapshots().find(&ids[1].to_string(), None).await,
        ids[1],
    );
    assert_eq!(found.unwrap().id, told);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encrypted_storage_without_its_passphrase_is_told_of_and_in_nobodys_way() {
    let home = Fixture::new();
    let told = Arc::new(std::sync::Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let neon = home.with(|options| {
        options.events = neon_pg::EventSink::new(move |event| heard.lock().unwrap().push(event));
    });
    let place = home.scratch.path().join("tank");
    let locator = Locator::path_of(&place);
    let chosen = BTreeMap::from([("encryption".to_owned(), "on".to_owned())]);
    let tank = name("tank");
    neon.storages()
        .attach(&tank, &locator, chosen)
        .await
        .unwrap();
    let warned = told.lock().unwrap().iter().any(
        |event| matches!(event, neon_pg::Event::Warning(text) if text.contains("NEON_PASSPHRASE")),
    );
    assert!(warned);
    // Nothing is in it yet, so nothing is amiss.
    let (_, failed) = neon.snapshots().list(None).await.unwrap();
    assert_eq!(failed.len(), 0, "{failed:?}");
    let missing = neon.snapshots().find("nothing", None).await;
    assert_eq!(refused(missing), ErrorKind::NotFound);
    // Somebody who has the passphrase stores something.
    let theirs = home.with(|options| {
        options.passphrase = Some("of theirs".into());
    });
    let mut create = home.stopped("one");
    create.storage = Some(tank.clone());
    theirs.pg().create(&create).await.unwrap();
    take(&theirs, "one", "a").await;
    let (_, failed) = neon.snapshots().list(None).await.unwrap();
    assert_eq!(failed.len(), 1);
    let error = neon.snapshots().find("nothing", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    assert!(error.to_string().contains("tank: no passphrase"), "{error}");
    // A name of an instance that has its snapshots there may be there.
    let error = neon.snapshots().find("one@b", None).await;
    assert_eq!(refused(error), ErrorKind::Environment);
}
