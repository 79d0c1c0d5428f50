//! Our server over sources that contradict themselves: the client is told, and gets nothing that could
//! pass for a backup.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use neon_pg_layout::{Lsn, TimelineId};
use neon_pgwire::{
    Access, BackupRequest, BackupSource, ByteStream, ErrorKind, Server, ServerOptions, SourceFacts,
    WalPiece,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::hostile_clients::{contains, hello, nothing, options, query, serve};
use crate::hostile_servers::message;

const START: u64 = 0x100_0000;
const STOP: u64 = START + 0x28_0000;

/// Archives of nothing, and WAL as the test has it.
#[derive(Debug)]
struct Odd {
    facts: SourceFacts,
    wal: fn(Lsn, usize) -> WalPiece,
}

#[async_trait]
impl BackupSource for Odd {
    async fn facts(&self) -> io::Result<SourceFacts> {
        Ok(self.facts.clone())
    }

    async fn archive(&self, _: Option<u32>, _: &BackupRequest) -> io::Result<ByteStream> {
        Ok(stream::iter([Ok(Bytes::from_static(&[0; 1024]))]).boxed())
    }

    async fn manifest(&self, _: &BackupRequest) -> io::Result<ByteStream> {
        Ok(stream::iter([Ok(Bytes::from_static(b"{}"))]).boxed())
    }

    async fn wal(&self, _: TimelineId, from: Lsn, max: usize) -> io::Result<WalPiece> {
        Ok((self.wal)(from, max))
    }

    async fn timeline_history(&self, _: TimelineId) -> io::Result<Option<Bytes>> {
        Ok(None)
    }
}

fn facts() -> SourceFacts {
    SourceFacts {
        position: Lsn(STOP),
        start: Lsn(START + 0x28),
        stop: Lsn(STOP),
        wal_segment_size: 1 << 20,
        ..nothing().facts
    }
}

/// WAL that is there up to this position, and what the source says from there on.
fn up_to(end: u64, from: Lsn, max: usize, then: WalPiece) -> WalPiece {
    match end.checked_sub(from.0) {
        None | Some(0) => then,
        Some(left) => WalPiece::Data(vec![7; max.min(left as usize)].into()),
    }
}

/// What a client gets that asks this, up to the end of the session.
async fn answer(source: Odd, command: &str) -> Vec<u8> {
    let options: ServerOptions = options(Access::Anybody);
    let server = Server::new(Arc::new(source), options).unwrap();
    let (mut near, session) = serve(&server);
    near.write_all(&[hello(), query(command)].concat())
        .await
        .unwrap();
    let mut answer = Vec::new();
    let read = async {
        let mut piece = vec![0; 64 << 10];
        while let Ok(length @ 1..) = near.read(&mut piece).await {
            answer.extend_from_slice(&piece[..length]);
            assert!(answer.len() < 16 << 20, "it does not come to an end");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), read)
        .await
        .expect("the server does not end the session");
    drop(session.await.unwrap());
    answer
}

fn message_count(answer: &[u8], text: &str) -> usize {
    answer
        .windows(text.len())
        .filter(|window| *window == text.as_bytes())
        .count()
}

#[tokio::test]
async fn wal_that_is_missing_before_the_stop_position_is_an_error_and_no_zeros() {
    let half: [fn(Lsn, usize) -> WalPiece; 5] = [
        |from, max| up_to(STOP - 0x10_0000, from, max, WalPiece::CaughtUp),
        |from, max| up_to(STOP - 1, from, max, WalPiece::CaughtUp),
        |from, max| {
            let (next, at) = (TimelineId::new(2).unwrap(), Lsn(STOP - 0x1000));
            up_to(at.0, from, max, WalPiece::TimelineEnd { next, at })
        },
        |from, max| up_to(STOP - 0x10_0000, from, max, WalPiece::Data(Bytes::new())),
        |_, max| WalPiece::Data(vec![7; max + 1].into()),
    ];
    for (index, wal) in half.into_iter().enumerate() {
        let source = || Odd {
            facts: facts(),
            wal,
        };
        let fetched = answer(source(), "BASE_BACKUP LABEL 'x' WAL NOWAIT").await;
        assert!(contains(&fetched, "C58030"), "{index}");
        assert!(!contains(&fetched, "BASE_BACKUP"), "{index}");
        // An ancestor that ends early is an end for a stream, too: the client goes on to the next timeline.
        if index != 2 {
            let streamed = answer(source(), "START_REPLICATION 0/1000000 TIMELINE 1").await;
            assert!(contains(&streamed, "C58030"), "{index}");
        }
    }
}

#[tokio::test]
async fn wal_after_the_stop_position_may_be_missing() {
    let source = || Odd {
        facts: facts(),
        wal: |from, max| up_to(STOP, from, max, WalPiece::CaughtUp),
    };
    let fetched = answer(source(), "BASE_BACKUP LABEL 'x' WAL NOWAIT").await;
    assert!(contains(&fetched, "BASE_BACKUP") && !contains(&fetched, "C58030"));
    assert_eq!(message_count(&fetched, "000000010000000000000012.done"), 1);
    // It waits for more and hears nothing from the client, which is what ends it.
    let streamed = answer(source(), "START_REPLICATION 0/1000000 TIMELINE 1").await;
    assert!(!contains(&streamed, "C58030"));
    assert!(streamed.len() > (STOP - START) as usize);
}

#[tokio::test]
async fn a_receiver_that_asks_without_end_and_takes_nothing_is_let_go() {
    let source = Odd {
        facts: facts(),
        wal: |from, max| up_to(STOP, from, max, WalPiece::CaughtUp),
    };
    let server = Server::new(Arc::new(source), options(Access::Anybody)).unwrap();
    let (mut near, session) = serve(&server);
    // What it asks for is a sign of life, each time.
    let asks = [&b"r"[..], &[0; 32], &[1]].concat();
    let flood = tokio::spawn(async move {
        let command = query("START_REPLICATION 0/1000000 TIMELINE 1");
        near.write_all(&[hello(), command].concat()).await.unwrap();
        let flood = message(b'd', &asks).repeat(100);
        let mut written = 0;
        while near.write_all(&flood).await.is_ok() {
            written += flood.len();
        }
        written
    });
    let ended = tokio::time::timeout(Duration::from_secs(60), session).await;
    let error = ended.expect("it is not let go").unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error:?}");
    let written = flood.await.unwrap();
    assert!(written < 2 << 20, "{written} bytes were taken");
}

#[tokio::test]
async fn timelines_that_end_ahead_or_lead_back_are_errors() {
    let odd: [fn(Lsn, usize) -> WalPiece; 2] = [
        |from, _| WalPiece::TimelineEnd {
            next: TimelineId::new(2).unwrap(),
            at: Lsn(from.0 + 1),
        },
        |from, _| WalPiece::TimelineEnd {
            next: TimelineId::FIRST,
            at: from,
        },
    ];
    for wal in odd {
        let source = Odd {
            facts: facts(),
            wal,
        };
        let streamed = answer(source, "START_REPLICATION 0/1000000 TIMELINE 1").await;
        assert!(contains(&streamed, "C58030"));
        assert!(!contains(&streamed, "next_tli"));
    }
}

#[tokio::test]
async fn facts_that_describe_no_cluster_are_not_served() {
    for facts in [
        SourceFacts {
            wal_segment_size: 0,
            ..facts()
        },
        SourceFacts {
            wal_segment_size: 3 << 20,
            ..facts()
        },
        SourceFacts {
            start: Lsn(STOP + 1),
            ..facts()
        },
        SourceFacts {
            position: Lsn(STOP - 1),
            ..facts()
        },
    ] {
        for command in [
            "IDENTIFY_SYSTEM",
            "SHOW wal_segment_size",
            "BASE_BACKUP LABEL 'x' WAL",
            "START_REPLICATION 0/1000000 TIMELINE 1",
        ] {
            let source = Odd {
                facts: facts.clone(),
                wal: |_, _| WalPiece::CaughtUp,
            };
            let answer = answer(source, command).await;
            assert!(contains(&answer, "C58030"), "{command}: {facts:?}");
        }
    }
}
