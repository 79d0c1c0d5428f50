//! Our client against servers of every major.

use std::fs;
use std::time::Duration;

use futures_util::stream;
use neon_pg_layout::Lsn;
use neon_pgwire::{
    BackupEvent, BackupTarget, BaseBackupOptions, Client, Compression, CompressionMethod, Config,
    ErrorKind, ManifestChecksum, ManifestOption, NoticeHandler, Params, Positions, QueryEvent,
    Replication, SlotName, StreamEnd, StreamOptions, Surroundings, WalEvent, quote_identifier,
    quote_literal,
};
use neon_testkit::{Cluster, PgMajor, Scratch, StopMode};

use crate::support::{
    ask_restored, capture, capture_wal, config, fast, give_to_server, replication, unpack, verify,
};

/// Runs the same test against each major, each with a name of its own.
macro_rules! for_every_major {
    ($($test:ident),+ $(,)?) => {
        for_every_major!(@ v13 V13 $($test),+);
        for_every_major!(@ v14 V14 $($test),+);
        for_every_major!(@ v15 V15 $($test),+);
        for_every_major!(@ v16 V16 $($test),+);
        for_every_major!(@ v17 V17 $($test),+);
        for_every_major!(@ v18 V18 $($test),+);
    };
    (@ $module:ident $major:ident $($test:ident),+) => {
        mod $module {
            $(
                #[tokio::test]
                async fn $test() {
                    super::$test(super::PgMajor::$major).await;
                }
            )+
        }
    };
}

for_every_major!(
    queries_identity_and_slots,
    wal_is_streamed_reported_and_followed_to_the_next_timeline,
    a_base_backup_with_streamed_wal_verifies_and_starts,
    every_option_is_understood_and_does_what_it_says,
    corrupt_pages_make_a_complete_backup_suspect,
);

async fn queries_identity_and_slots(major: PgMajor) {
    let cluster = Cluster::builder(major).start();
    let (seen, notices) = std::sync::mpsc::channel();
    let handler = NoticeHandler::new(move |notice| drop(seen.send(notice.message().to_owned())));
    let mut client = Client::connect(&config(&cluster.conninfo()).with_notices(handler))
        .await
        .unwrap();
    assert_eq!(client.major().unwrap(), major);

    let name = quote_identifier("odd \"name\"").unwrap();
    let value = quote_literal(r"it's a \ backslash").unwrap();
    let sql = format!(
        "create table {name} (v text); insert into {name} values ({value}), (null); select v from {name} order by v; \
         do $$ begin raise notice 'hear this'; end $$"
    );
    let results = client.simple_query(&sql).await.unwrap();
    assert_eq!(results.len(), 4);
    assert_eq!(results[2].named(0, "v"), Some(r"it's a \ backslash"));
    assert_eq!((results[2].value(1, 0), results[2].rows().len()), (None, 2));
    assert_eq!(results[1].tag(), "INSERT 0 2");
    assert_eq!(notices.try_recv().unwrap(), "hear this");

    // An error has its fields, and the session goes on.
    let error = client
        .simple_query("select 1; select * from nothing_here")
        .await
        .unwrap_err();
    assert_eq!(
        (error.kind(), error.sqlstate()),
        (ErrorKind::Server, Some("42P01"))
    );
    let error = client
        .simple_query("do $$ begin raise exception 'a' using detail = 'b', hint = 'c'; end $$")
        .await
        .unwrap_err();
    let server = error.server().unwrap();
    assert_eq!(
        (server.message(), server.detail(), server.hint()),
        ("a", Some("b"), Some("c"))
    );
    let mut rows = client
        .query("select generate_series(1, 100000)")
        .await
        .unwrap();
    assert!(matches!(
        rows.next().await.unwrap(),
        Some(QueryEvent::Columns(_))
    ));
    let mut count = 0;
    while let Some(event) = rows.next().await.unwrap() {
        count += usize::from(matches!(event, QueryEvent::Row(_)));
    }
    assert_eq!(count, 100_000);
    drop(rows);

    // Cancelling from elsewhere.
    let token = client.cancel_token().unwrap();
    let cancel = async {
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            token.cancel().await.unwrap();
        }
    };
    let error = tokio::select! {
        result = client.simple_query("select pg_sleep(600)") => result.unwrap_err(),
        () = cancel => unreachable!(),
    };
    assert_eq!(error.sqlstate(), Some("57014"));
    assert!(!client.is_closed());

    // A dropped operation closes the connection instead of leaving it out of step. (Another session:
    // one more request to cancel may still be on its way to the first.)
    let mut client = Client::connect(&config(&cluster.conninfo())).await.unwrap();
    let dropped = tokio::time::timeout(
        Duration::from_millis(50),
        client.simple_query("select pg_sleep(600)"),
    )
    .await;
    assert!(dropped.is_err() && client.is_closed());
    assert_eq!(
        client.simple_query("select 1").await.unwrap_err().kind(),
        ErrorKind::Closed
    );

    let mut client = replication(&cluster.conninfo()).await;
    let identity = client.identify_system().await.unwrap();
    let system = cluster.psql("select system_identifier from pg_control_system()");
    assert_eq!(identity.system_identifier.to_string(), system.trim());
    assert_eq!((identity.timeline.get(), identity.dbname), (1, None));
    assert_eq!(client.wal_segment_size().await.unwrap(), 16 << 20);
    assert_eq!(client.show("data_directory_mode").await.unwrap(), "0700");
    assert_eq!(
        client.show("nonsense").await.unwrap_err().sqlstate(),
        Some("42704")
    );
    assert_eq!(
        client.show("a; drop").await.unwrap_err().kind(),
        ErrorKind::Config
    );
    let error = client
        .timeline_history(neon_pg_layout::TimelineId::new(7).unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.sqlstate(), Some("58P01"));
    let error = client.simple_query("select 1").await.unwrap_err();
    assert_eq!(
        error.sqlstate(),
        Some("0A000"),
        "a physical session takes no SQL"
    );

    let slot: SlotName = "a_slot".parse().unwrap();
    client
        .create_physical_slot(&slot, false, true)
        .await
        .unwrap();
    let kept =
        cluster.psql("select restart_lsn is not null and not temporary from pg_replication_slots");
    assert_eq!(kept.trim(), "t", "reserve_wal keeps WAL at once");
    let again = client
        .create_physical_slot(&slot, false, false)
        .await
        .unwrap_err();
    assert_eq!(again.sqlstate(), Some("42710"));
    match client.read_slot(&slot).await {
        Ok(position) => assert!(position.unwrap().restart_lsn.is_some() && major >= PgMajor::V15),
        Err(error) => assert!(error.kind() == ErrorKind::Unsupported && major < PgMajor::V15),
    }
    client.drop_slot(&slot, true).await.unwrap();
    // An error takes the temporary slots of the session with it.
    client
        .create_physical_slot(&slot, true, true)
        .await
        .unwrap();
    client.show("nonsense").await.unwrap_err();
    assert_eq!(
        cluster
            .psql("select count(*) from pg_replication_slots")
            .trim(),
        "0"
    );
    assert_eq!(
        client.drop_slot(&slot, false).await.unwrap_err().sqlstate(),
        Some("42704")
    );
    if major >= PgMajor::V15 {
        assert_eq!(client.read_slot(&slot).await.unwrap(), None);
    }
    client.close().await;
    // A session of a database takes both.
    let both = config(&cluster.conninfo()).with_replication(Replication::Database);
    let mut client = Client::connect(&both).await.unwrap();
    assert_eq!(
        client.identify_system().await.unwrap().dbname.as_deref(),
        Some("postgres")
    );
    assert_eq!(
        client.simple_query("select 1").await.unwrap()[0].value(0, 0),
        Some("1")
    );
}

fn slot_is_active(cluster: &Cluster) -> String {
    cluster
        .psql("select string_agg(slot_name || active::text, ',') from pg_replication_slots")
        .trim()
        .to_owned()
}

pub(crate) async fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    for _ in 0..600 {
        if check() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} did not come true in time");
}

async fn wal_is_streamed_reported_and_followed_to_the_next_timeline(major: PgMajor) {
    let mut cluster = Cluster::builder(major)
        .setting("wal_sender_timeout", "4s")
        .start();
    let mut client = replication(&cluster.conninfo()).await;
    let identity = client.identify_system().await.unwrap();
    let slot: SlotName = "streamed".parse().unwrap();
    client
        .create_physical_slot(&slot, false, true)
        .await
        .unwrap();
    let start = identity.position.start_of(16 << 20);
    let mut options = StreamOptions::new(start, identity.timeline);
    options.slot = Some(slot.clone());
    options.status_interval = Duration::from_secs(600);
    options.clock = Some(std::sync::Arc::new(std::time::SystemTime::now));
    let mut stream = client.start_replication(options.clone()).await.unwrap();

    // A second user of the slot is refused.
    let error = replication(&cluster.conninfo())
        .await
        .start_replication(options.clone())
        .await
        .unwrap_err();
    assert_eq!(error.sqlstate(), Some("55006"));

    cluster.psql("create table t as select generate_series(1, 100000) as i");
    let target: Lsn = cluster
        .psql("select pg_current_wal_flush_lsn()")
        .trim()
        .parse()
        .unwrap();
    let mut first = Vec::new();
    while stream.position() < target {
        if let WalEvent::Data { start: at, data } = stream.next().await.unwrap().unwrap() {
            assert_eq!(at.0, start.0 + first.len() as u64);
            first.extend_from_slice(&data);
        }
    }
    let reported = Positions {
        write: target,
        flush: target,
        apply: Lsn::INVALID,
    };
    stream.report(reported).await.unwrap();
    let sql = format!("select restart_lsn = '{target}' from pg_replication_slots");
    // The server is alive although nothing happens for longer than its timeout: keep-alives are
    // answered.
    let idle = tokio::time::Instant::now();
    while idle.elapsed() < Duration::from_secs(5) {
        drop(tokio::time::timeout(Duration::from_millis(500), stream.next()).await);
    }
    eventually("the reported position", || cluster.psql(&sql).trim() == "t").await;
    let sent =
        cluster.psql("select reply_time > now() - interval '1 hour' from pg_stat_replication");
    assert_eq!(sent.trim(), "t", "reports carry our clock");

    // The bytes are those of the server's own file.
    let name = crate::support::segment_name(1, start.0, 16 << 20);
    let own = fs::read(cluster.data_dir().join("pg_wal").join(name)).unwrap();
    let compared = first.len().min(own.len());
    assert!(first[..compared] == own[..compared]);

    // Ending it gives the session back, and the slot is free.
    let StreamEnd::Stopped(mut client) = stream.finish().await.unwrap() else {
        panic!("nobody else ended it");
    };
    client.identify_system().await.unwrap();
    eventually("the slot to be free", || {
        slot_is_active(&cluster) == "streamedfalse"
    })
    .await;

    // Dropping a stream frees the slot as well.
    let stream = client.start_replication(options.clone()).await.unwrap();
    eventually("the slot to be used", || {
        slot_is_active(&cluster) == "streamedtrue"
    })
    .await;
    drop(stream);
    eventually("the slot to be free", || {
        slot_is_active(&cluster) == "streamedfalse"
    })
    .await;

    // Errors that come after the server has agreed to stream.
    let client = replication(&cluster.conninfo()).await;
    let ahead = StreamOptions::new(Lsn(1 << 60), identity.timeline);
    let mut stream = client.start_replication(ahead).await.unwrap();
    assert_eq!(stream.next().await.unwrap_err().sqlstate(), Some("XX000"));
    let client = replication(&cluster.conninfo()).await;
    let gone = StreamOptions::new(Lsn(0), identity.timeline);
    let error = match client.start_replication(gone).await {
        Ok(mut stream) => stream.next().await.unwrap_err(),
        Err(error) => error,
    };
    assert!(error.server().is_some(), "{error:?}");

    // A server that shuts down sends everything and says so.
    let client = replication(&cluster.conninfo()).await;
    let mut stream = client
        .start_replication(StreamOptions::new(target, identity.timeline))
        .await
        .unwrap();
    let streaming = tokio::spawn(async move {
        while stream.next().await.unwrap().is_some() {
            let position = stream.position();
            stream
                .report(Positions {
                    write: position,
                    flush: position,
                    apply: position,
                })
                .await
                .unwrap();
        }
        let position = stream.position();
        (stream.finish().await.unwrap(), position)
    });
    // Before it streams, a sender is ended like any other session.
    let streams = "select count(*) from pg_stat_replication where state = 'streaming'";
    eventually("the stream", || cluster.psql(streams).trim() == "1").await;
    let cluster = tokio::task::spawn_blocking(move || {
        cluster.stop(StopMode::Fast);
        cluster
    })
    .await
    .unwrap();
    let (end, position) = streaming.await.unwrap();
    assert!(matches!(end, StreamEnd::ServerShutdown), "{end:?}");

    // The next timeline: recover once, which promotes.
    let mut cluster = cluster;
    fs::write(cluster.data_dir().join("recovery.signal"), "").unwrap();
    neon_testkit::OsUser::current().own(&cluster.data_dir().join("recovery.signal"));
    cluster.set("restore_command", "false");
    cluster.start();
    eventually("the promotion", || {
        cluster.psql("select pg_is_in_recovery()").trim() == "f"
    })
    .await;
    let mut client = replication(&cluster.conninfo()).await;
    let now = client.identify_system().await.unwrap();
    assert_eq!(now.timeline.get(), 2);
    let old = StreamOptions::new(position.start_of(16 << 20), identity.timeline);
    // To stop on a timeline that has ended is not to have come to its end.
    let mut stream = client.start_replication(old.clone()).await.unwrap();
    while matches!(
        stream.next().await.unwrap().unwrap(),
        WalEvent::Keepalive { .. }
    ) {}
    let stopped_at = stream.position();
    let StreamEnd::Stopped(client) = stream.finish().await.unwrap() else {
        panic!("nobody else ended it");
    };
    let mut stream = client.start_replication(old).await.unwrap();
    while stream.next().await.unwrap().is_some() {}
    let received = stream.position();
    let StreamEnd::Timeline {
        next,
        start: switch,
        mut client,
    } = stream.finish().await.unwrap()
    else {
        panic!("the timeline has ended");
    };
    assert_eq!(next.get(), 2);
    assert!(switch <= received && stopped_at < switch);
    let history = client.timeline_history(next).await.unwrap();
    assert_eq!(history.file_name, "00000002.history");
    assert!(String::from_utf8_lossy(&history.content).contains(&switch.to_string()));
    // Nothing to stream: the end comes at once.
    let mut nothing = client
        .start_replication(StreamOptions::new(switch, identity.timeline))
        .await
        .unwrap();
    assert_eq!(nothing.next().await.unwrap(), None);
    let StreamEnd::Timeline { client, .. } = nothing.finish().await.unwrap() else {
        panic!("the timeline has ended");
    };
    let mut stream = client
        .start_replication(StreamOptions::new(switch.start_of(16 << 20), next))
        .await
        .unwrap();
    while stream.position() < switch {
        stream.next().await.unwrap();
    }
}

async fn a_base_backup_with_streamed_wal_verifies_and_starts(major: PgMajor) {
    let cluster = Cluster::builder(major).checksums(true).start();
    let tablespace = cluster.tablespace_dir("space");
    cluster.psql(&format!(
        "create tablespace space location '{}'",
        tablespace.display()
    ));
    cluster.psql("create table t tablespace space as select generate_series(1, 10000) as i");
    let scratch = Scratch::new();
    let mut options = fast();
    options.progress = true;
    options.label = "it's ours".to_owned();
    options.tablespace_map = true;
    options.manifest_checksums = Some(ManifestChecksum::Sha256);
    let captured = capture(
        replication(&cluster.conninfo()).await,
        &options,
        &scratch.path().join("tar"),
    )
    .await;
    assert_eq!(captured.end.suspect, None);
    assert_eq!(captured.archives.len(), 2);
    assert!(captured.archives[0].0.oid.is_some() && captured.archives[1].0.oid.is_none());
    assert_eq!(
        captured.archives[0].0.location.as_deref(),
        tablespace.to_str()
    );
    assert_eq!(captured.progress > 0, major >= PgMajor::V15);
    for (archive, path) in &captured.archives {
        let tar = fs::read(path).unwrap();
        assert_eq!(tar.len() % 512, 0);
        assert!(
            tar.ends_with(&[0; 1024]),
            "{} ends as a tar does",
            archive.name
        );
    }
    let data = scratch.path().join("data");
    unpack(&captured, &data);
    let client = capture_wal(
        captured.client,
        captured.timeline,
        captured.start,
        captured.end.stop,
        16 << 20,
        &data.join("pg_wal"),
    )
    .await;
    client.close().await;
    crate::support::give_to_server(&data);
    // The tablespace lies inside now, so the server is not to make a link of it.
    verify(major, &data, true);
    fs::remove_file(data.join("tablespace_map")).unwrap();
    fs::remove_file(data.join("backup_manifest")).unwrap();
    assert_eq!(
        ask_restored(
            cluster.installation(),
            &data,
            "select count(*), max(i) from t"
        ),
        "10000|10000"
    );
}

#[tokio::test]
async fn a_tablespace_inside_the_data_directory_keeps_its_relative_location() {
    let cluster = Cluster::builder(PgMajor::V16)
        .setting("allow_in_place_tablespaces", "on")
        .start();
    cluster.psql("create tablespace inside location ''");
    let backup = replication(&cluster.conninfo())
        .await
        .base_backup(&fast())
        .await
        .unwrap();
    let location = backup.tablespaces()[0].location.clone().unwrap();
    assert!(location.starts_with("pg_tblspc/"), "{location}");
}

#[tokio::test]
async fn dropping_a_base_backup_ends_it_on_the_server() {
    let cluster = Cluster::builder(PgMajor::V15).start();
    let mut options = fast();
    options.max_rate = Some(32);
    let mut backup = replication(&cluster.conninfo())
        .await
        .base_backup(&options)
        .await
        .unwrap();
    for _ in 0..3 {
        assert!(backup.next().await.unwrap().is_some());
    }
    let running = || {
        cluster
            .psql("select count(*) from pg_stat_progress_basebackup")
            .trim()
            .to_owned()
    };
    assert_eq!(running(), "1");
    assert_eq!(backup.finish().unwrap_err().kind(), ErrorKind::Closed);
    eventually("the backup to end", || running() == "0").await;
}

#[tokio::test]
async fn a_base_backup_is_cancelled_from_elsewhere() {
    let cluster = Cluster::builder(PgMajor::V17).start();
    let mut options = fast();
    options.max_rate = Some(32);
    let mut backup = replication(&cluster.conninfo())
        .await
        .base_backup(&options)
        .await
        .unwrap();
    backup
        .client()
        .cancel_token()
        .unwrap()
        .cancel()
        .await
        .unwrap();
    let error = loop {
        match backup.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("a rate of 32 kB/s takes longer"),
            Err(error) => break error,
        }
    };
    assert_eq!(error.sqlstate(), Some("57014"));
}

async fn every_option_is_understood_and_does_what_it_says(major: PgMajor) {
    let cluster = Cluster::builder(major).checksums(true).start();
    let scratch = Scratch::new();
    let taken = async |name: &str, options: &BaseBackupOptions| {
        let client = replication(&cluster.conninfo()).await;
        let captured = capture(client, options, &scratch.path().join(name)).await;
        let tar = fs::read(&captured.archives[0].1).unwrap();
        let manifest = captured.manifest.as_ref().map(fs::read_to_string);
        captured.client.close().await;
        (tar, manifest.map(Result::unwrap))
    };
    let contains = |bytes: &[u8], text: &str| {
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    let every = [
        (ManifestChecksum::None, None),
        (ManifestChecksum::Crc32c, Some("CRC32C")),
        (ManifestChecksum::Sha224, Some("SHA224")),
        (ManifestChecksum::Sha256, Some("SHA256")),
        (ManifestChecksum::Sha384, Some("SHA384")),
        (ManifestChecksum::Sha512, Some("SHA512")),
    ];
    // All of them once in each grammar.
    let few = match major {
        PgMajor::V14 | PgMajor::V18 => 0,
        _ => 5,
    };
    for (checksum, word) in every.into_iter().skip(few) {
        let mut options = fast();
        options.manifest_checksums = Some(checksum);
        let (_, manifest) = taken(word.unwrap_or("none"), &options).await;
        let manifest = manifest.unwrap();
        assert_eq!(manifest.contains("Checksum-Algorithm"), word.is_some());
        let quoted = format!("\"Checksum-Algorithm\": \"{}\"", word.unwrap_or_default());
        assert_eq!(manifest.contains(&quoted), word.is_some(), "{checksum:?}");
    }
    let mut options = fast();
    options.manifest = ManifestOption::ForceEncode;
    options.label = "it's a \\ label".to_owned();
    options.wal = true;
    options.progress = true;
    options.verify_checksums = false;
    options.tablespace_map = true;
    options.max_rate = Some(1 << 20);
    let (tar, manifest) = taken("all", &options).await;
    assert!(manifest.unwrap().contains("\"Encoded-Path\""));
    assert!(contains(&tar, "LABEL: it's a \\ label\n"));
    assert!(contains(&tar, ".done"), "WAL comes with its marks");
    // Spread, waiting for an archiver that there is not, and without a manifest.
    let mut options = BaseBackupOptions::default();
    options.manifest = ManifestOption::No;
    cluster.psql("checkpoint");
    let (tar, manifest) = taken("slow", &options).await;
    assert!(manifest.is_none() && !contains(&tar, ".done"));
}

async fn corrupt_pages_make_a_complete_backup_suspect(major: PgMajor) {
    let mut cluster = Cluster::builder(major).checksums(true).start();
    cluster.psql("create table t as select generate_series(1, 10000) as i");
    let path = cluster.psql("checkpoint; select pg_relation_filepath('t')");
    let path = cluster.data_dir().join(path.lines().last().unwrap().trim());
    cluster.stop(StopMode::Fast);
    let mut bytes = fs::read(&path).unwrap();
    bytes[8192 + 4000] ^= 0xFF;
    fs::write(&path, bytes).unwrap();
    cluster.start();
    let scratch = Scratch::new();
    let captured = capture(
        replication(&cluster.conninfo()).await,
        &fast(),
        &scratch.path().join("tar"),
    )
    .await;
    let suspect = captured.end.suspect.unwrap();
    assert_eq!(suspect.code(), "XX001");
    assert!(captured.manifest.is_some(), "everything was received");
    let mut client = captured.client;
    client.identify_system().await.unwrap();
}

#[tokio::test]
async fn servers_compress_with_every_method() {
    // The distribution's build has them all; of the others each has some.
    for major in [PgMajor::V15, PgMajor::V16, PgMajor::V17, PgMajor::V18] {
        let cluster = Cluster::builder(major).start();
        cluster.psql("create table t as select generate_series(1, 1000) as i");
        let scratch = Scratch::new();
        for (method, suffix) in [
            (CompressionMethod::Gzip, "gz"),
            (CompressionMethod::Lz4, "lz4"),
            (CompressionMethod::Zstd, "zst"),
        ] {
            let mut options = fast();
            let mut compression = Compression::new(method);
            compression.level = Some(1);
            options.compression = Some(compression);
            options.wal = true;
            let client = replication(&cluster.conninfo()).await;
            let mut backup = match client.base_backup(&options).await {
                Ok(backup) => backup,
                Err(error) if major != PgMajor::V15 => {
                    let reason = error.server().unwrap().message().to_owned();
                    assert!(reason.contains("does not support"), "{reason}");
                    continue;
                }
                Err(error) => panic!("{error:?}"),
            };
            let name = format!("base.tar.{suffix}");
            match backup.next().await.unwrap() {
                Some(BackupEvent::Archive(archive)) => assert_eq!(archive.name, name),
                other => panic!("{other:?}"),
            }
            drop(backup);
            if major != PgMajor::V15 {
                continue;
            }
            let client = replication(&cluster.conninfo()).await;
            let captured = capture(client, &options, &scratch.path().join(suffix)).await;
            let data = scratch.path().join(format!("from-{suffix}"));
            unpack(&captured, &data);
            verify(major, &data, true);
            let answer = ask_restored(cluster.installation(), &data, "select count(*) from t");
            assert_eq!(answer, "1000");
        }
    }
}

#[tokio::test]
async fn other_targets_announce_archives_and_send_none() {
    for major in [PgMajor::V15, PgMajor::V16, PgMajor::V17, PgMajor::V18] {
        let cluster = Cluster::builder(major).start();
        let scratch = Scratch::new();
        let mut options = fast();
        options.target = BackupTarget::Blackhole;
        options.progress = true;
        let captured = capture(
            replication(&cluster.conninfo()).await,
            &options,
            &scratch.path().join("none"),
        )
        .await;
        assert_eq!(captured.archives.len(), 1);
        assert_eq!(fs::metadata(&captured.archives[0].1).unwrap().len(), 0);
        let manifest = fs::metadata(captured.manifest.unwrap()).unwrap();
        assert_eq!(manifest.len(), 0);
        assert!(captured.progress > 0);
        let on_server = cluster.scratch_dir().join("on-server");
        options.target = BackupTarget::Server(on_server.display().to_string());
        options.manifest = ManifestOption::No;
        let captured = capture(captured.client, &options, &scratch.path().join("none")).await;
        assert_eq!(fs::metadata(&captured.archives[0].1).unwrap().len(), 0);
        assert!(on_server.join("base.tar").is_file());
        options.target = BackupTarget::Other("bogus".to_owned(), None);
        let error = captured.client.base_backup(&options).await.unwrap_err();
        assert!(
            error
                .server()
                .unwrap()
                .message()
                .contains("unrecognized target")
        );
    }
}

#[tokio::test]
async fn an_incremental_backup_follows_an_uploaded_manifest() {
    for major in [PgMajor::V17, PgMajor::V18] {
        let cluster = Cluster::builder(major)
            .setting("summarize_wal", "on")
            .start();
        cluster.psql("create table t as select generate_series(1, 10000) as i");
        let scratch = Scratch::new();
        let mut with_wal = fast();
        with_wal.wal = true;
        let full = capture(
            replication(&cluster.conninfo()).await,
            &with_wal,
            &scratch.path().join("full"),
        )
        .await;
        let full_data = scratch.path().join("full-data");
        unpack(&full, &full_data);
        cluster.psql("insert into t select generate_series(1, 100); checkpoint");
        let manifest = fs::read(full.manifest.as_ref().unwrap()).unwrap();
        let mut client = full.client;
        let pieces = manifest
            .chunks(1000)
            .map(|piece| Ok(bytes::Bytes::copy_from_slice(piece)));
        client
            .upload_manifest(stream::iter(pieces.collect::<Vec<_>>()))
            .await
            .unwrap();
        let mut options = with_wal;
        options.incremental = true;
        options.label = "second".to_owned();
        let second = capture(client, &options, &scratch.path().join("second")).await;
        let tar = fs::read(&second.archives[0].1).unwrap();
        assert!(tar.windows(12).any(|bytes| bytes == b"INCREMENTAL."));
        if major == PgMajor::V18 {
            // Stock tools make one backup of the two.
            let second_data = scratch.path().join("second-data");
            unpack(&second, &second_data);
            let combined = scratch.path().join("combined");
            give_to_server(scratch.path());
            let mut combine = cluster.installation().command("pg_combinebackup");
            combine
                .arg(&full_data)
                .arg(&second_data)
                .arg("-o")
                .arg(&combined);
            let output = combine.output().unwrap();
            let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{complaint}");
            verify(major, &combined, true);
            let sql = "select count(*) from t";
            let answer = ask_restored(cluster.installation(), &combined, sql);
            assert_eq!(answer, "10100");
        }

        // A source that fails is reported, and the session goes on.
        let mut client = second.client;
        let broken = stream::iter([Err(std::io::ErrorKind::Other.into())]);
        let error = client.upload_manifest(broken).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        client.identify_system().await.unwrap();
        // So it does after what the server has to say about nonsense.
        let nonsense = stream::iter([Ok(bytes::Bytes::from_static(b"{}"))]);
        let error = match client.upload_manifest(nonsense).await {
            Err(error) => error,
            Ok(()) => client.base_backup(&options).await.unwrap_err(),
        };
        assert!(error.server().is_some());
    }
    // Servers before 17 are not asked.
    let cluster = Cluster::builder(PgMajor::V16).start();
    let mut client = replication(&cluster.conninfo()).await;
    let error = client.upload_manifest(stream::iter([])).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    client.identify_system().await.unwrap();
}

#[tokio::test]
async fn target_session_attributes_choose_between_primary_and_standby() {
    let primary = Cluster::builder(PgMajor::V13).start();
    let hosts = |standby: &Cluster, attribute: &str| {
        format!(
            "host={},{} port=5432 user=postgres dbname=postgres target_session_attrs={attribute}",
            primary.socket_dir().display(),
            standby.socket_dir().display()
        )
    };
    // A standby made of a copy of a stopped server of another cluster will do.
    let mut standby = Cluster::builder(PgMajor::V14).init();
    fs::write(standby.data_dir().join("standby.signal"), "").unwrap();
    neon_testkit::OsUser::current().own(&standby.data_dir().join("standby.signal"));
    standby.set("hot_standby", "on");
    // At least what the cluster was made with.
    standby.set("max_connections", "100");
    standby.set("max_worker_processes", "8");
    standby.start();
    for (attribute, expected) in [
        ("any", false),
        ("read-write", false),
        ("read-only", true),
        ("primary", false),
        ("standby", true),
        ("prefer-standby", true),
    ] {
        let mut client = Client::connect(&config(&hosts(&standby, attribute)))
            .await
            .unwrap();
        let results = client
            .simple_query("select pg_is_in_recovery()")
            .await
            .unwrap();
        assert_eq!(results[0].value(0, 0) == Some("t"), expected, "{attribute}");
    }
    standby.stop(StopMode::Fast);
    let error = Client::connect(&config(&hosts(&standby, "standby")))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("before that"), "{error}");
    let mut client = Client::connect(&config(&hosts(&standby, "prefer-standby")))
        .await
        .unwrap();
    client.simple_query("select 1").await.unwrap();
    let shuffled: Params = hosts(&standby, "any load_balance_hosts=random")
        .parse()
        .unwrap();
    let shuffled = Config::resolve(&shuffled, &Surroundings::none()).unwrap();
    for _ in 0..4 {
        Client::connect(&shuffled).await.unwrap();
    }
}
