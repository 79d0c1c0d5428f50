//! Our server against clients that break the protocol, break off, dribble, flood or say nothing.

use std::sync::Arc;
use std::time::Duration;

use neon_pg_layout::{Lsn, TimelineId};
use neon_pgwire::{Access, ErrorKind, ScramVerifier, Secret, Server, ServerOptions, SourceFacts};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;

use crate::hostile_servers::message;
use crate::source::Stored;

/// A source that has nothing to give; most of these clients do not come that far.
pub(crate) fn nothing() -> Stored {
    Stored {
        facts: SourceFacts {
            system_identifier: 1,
            timeline: TimelineId::FIRST,
            position: Lsn(0x200_0000),
            start: Lsn(0x100_0028),
            start_timeline: TimelineId::FIRST,
            stop: Lsn(0x100_0100),
            stop_timeline: TimelineId::FIRST,
            wal_segment_size: 16 << 20,
            group_access: false,
            tablespaces: Vec::new(),
            size: None,
        },
        directory: "/nonexistent".into(),
        switch: None,
    }
}

pub(crate) fn options(access: Access) -> ServerOptions {
    let mut options = ServerOptions::new(access);
    options.limits.login = Duration::from_millis(500);
    options.limits.patience = Duration::from_millis(500);
    options.limits.idle = Duration::from_millis(500);
    options.limits.receiver = Duration::from_millis(500);
    options.limits.sessions = 2;
    options
}

fn server(access: Access) -> Server {
    Server::new(Arc::new(nothing()), options(access)).unwrap()
}

pub(crate) fn startup(parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = (3_u32 << 16).to_be_bytes().to_vec();
    for (name, value) in parameters {
        body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    body.push(0);
    let mut bytes = (body.len() as u32 + 4).to_be_bytes().to_vec();
    bytes.extend(body);
    bytes
}

pub(crate) fn hello() -> Vec<u8> {
    startup(&[("user", "me"), ("replication", "true")])
}

pub(crate) fn query(text: &str) -> Vec<u8> {
    message(b'Q', format!("{text}\0").as_bytes())
}

pub(crate) fn serve(server: &Server) -> (DuplexStream, JoinHandle<neon_pgwire::Result<()>>) {
    let (near, far) = tokio::io::duplex(64 << 10);
    let server = server.clone();
    (near, tokio::spawn(async move { server.serve(far).await }))
}

/// Says this to a server; gives what it answers until it ends the session, and how that went.
async fn say(access: Access, said: &[u8], hang_up: bool) -> (Vec<u8>, neon_pgwire::Result<()>) {
    let server = server(access);
    let (mut near, session) = serve(&server);
    drop(near.write_all(said).await);
    if hang_up {
        drop(near.shutdown().await);
    }
    let mut answer = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), near.read_to_end(&mut answer)).await;
    drop(read.expect("the server does not end the session"));
    (answer, session.await.unwrap())
}

pub(crate) fn contains(answer: &[u8], text: &str) -> bool {
    text.is_empty()
        || answer
            .windows(text.len())
            .any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn what_is_no_login_ends_in_time() {
    let users = || {
        let verifier = ScramVerifier::from_password(&Secret::new("right")).unwrap();
        Access::Users([("me".to_owned(), verifier)].into())
    };
    for (said, expected) in [
        (Vec::new(), ""),
        (vec![0, 0, 0], ""),
        (vec![0x7F, 0xFF, 0xFF, 0xFF, 0, 3, 0, 0], ""),
        (vec![0xFF, 0xFF, 0xFF, 0xFF, 0, 3, 0, 0], ""),
        (vec![0, 0, 0, 0, 0, 3, 0, 0], ""),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), ""),
        (vec![0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0], ""),
        (vec![0, 0, 0, 8, 0, 2, 0, 0], "0A000"),
        (startup(&[]), "28000"),
        (startup(&[("user", "me")]), "physical replication only"),
        (
            startup(&[("user", "me"), ("replication", "database")]),
            "physical replication only",
        ),
        (vec![0, 0, 0, 9, 0, 3, 0, 0, 1], "08P01"),
        (hello(), "SCRAM-SHA-256"),
        (
            [hello(), message(b'Q', b"SHOW wal_segment_size\0")].concat(),
            "28P01",
        ),
        ([hello(), message(b'p', b"")].concat(), "28P01"),
        (
            [
                hello(),
                message(b'p', b"SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abc"),
            ]
            .concat(),
            "s=",
        ),
        (
            [
                hello(),
                message(b'p', b"SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abc"),
                message(b'p', b"c=biws,r=x,p=AA=="),
            ]
            .concat(),
            "28P01",
        ),
        ([hello(), vec![b'p', 0x7F, 0, 0, 0]].concat(), ""),
    ] {
        for hang_up in [false, true] {
            let (answer, result) = say(users(), &said, hang_up).await;
            assert!(result.is_err(), "{said:?}");
            assert!(
                contains(&answer, expected),
                "{expected}: {:?}",
                String::from_utf8_lossy(&answer)
            );
            assert!(
                !contains(&answer, "wal_segment_size"),
                "nothing is answered before the login"
            );
        }
    }
    // To cancel something means nothing here, and is no error either.
    let (answer, result) = say(
        users(),
        &[0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 0, 0, 0, 0, 0],
        false,
    )
    .await;
    assert!(answer.is_empty() && result.is_ok());
}

#[tokio::test]
async fn sessions_answer_what_they_know_and_refuse_the_rest() {
    for (said, expected) in [
        (query("SHOW wal_segment_size"), "16MB"),
        (query("SHOW data_directory_mode"), "0700"),
        (query("SHOW server_version"), "42704"),
        (query("IDENTIFY_SYSTEM"), "0/2000000"),
        (query("SELECT 1"), "0A000"),
        (query("TIMELINE_HISTORY 7"), "58P01"),
        (
            query("READ_REPLICATION_SLOT \"x\""),
            "READ_REPLICATION_SLOT",
        ),
        (query("START_REPLICATION SLOT \"x\" 0/1000000"), "42704"),
        (
            query("START_REPLICATION 0/1000000 TIMELINE 9"),
            "not in this server's history",
        ),
        (
            query("START_REPLICATION 7/1000000 TIMELINE 1"),
            "ahead of the WAL flush position",
        ),
        (query("START_REPLICATION 0/1000000 TIMELINE 1"), "58P01"),
        (query("BASE_BACKUP"), "58030"),
        (message(b'Q', b"no end"), "08P01"),
        (message(b'Q', &[0xFF, 0xFE, 0]), "08P01"),
        (message(b'P', b"\0select 1\0\0\0"), "08P01"),
    ] {
        let (answer, _) = say(Access::Anybody, &[hello(), said].concat(), false).await;
        assert!(
            contains(&answer, expected),
            "{expected}: {:?}",
            String::from_utf8_lossy(&answer)
        );
    }
    let long = [hello(), vec![b'Q', 0x7F, 0xFF, 0xFF, 0xFF]].concat();
    let (_, result) = say(Access::Anybody, &long, false).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Protocol);
    let (_, result) = say(
        Access::Anybody,
        &[hello(), vec![b'Q', 0, 0]].concat(),
        false,
    )
    .await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Timeout);
    let (_, result) = say(Access::Anybody, &hello(), true).await;
    result.unwrap();
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_let_go() {
    let server = server(Access::Anybody);
    let (mut near, session) = serve(&server);
    near.write_all(&hello()).await.unwrap();
    // The answers fill the pipe, and nobody reads them.
    let questions = query("SELECT nonsense").repeat(10_000);
    let flood = tokio::spawn(async move {
        drop(near.write_all(&questions).await);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        drop(near);
    });
    let result = tokio::time::timeout(Duration::from_secs(60), session)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Timeout);
    flood.abort();
}

#[tokio::test]
async fn one_too_many_is_told_so() {
    let server = server(Access::Anybody);
    let (mut first, _one) = serve(&server);
    let (mut second, _two) = serve(&server);
    for near in [&mut first, &mut second] {
        near.write_all(&hello()).await.unwrap();
        let mut answer = [0; 1];
        near.read_exact(&mut answer).await.unwrap();
    }
    let (mut third, session) = serve(&server);
    third.write_all(&hello()).await.unwrap();
    let mut answer = Vec::new();
    third.read_to_end(&mut answer).await.unwrap();
    assert!(
        contains(&answer, "53300"),
        "{:?}",
        String::from_utf8_lossy(&answer)
    );
    assert_eq!(
        session.await.unwrap().unwrap_err().kind(),
        ErrorKind::Closed
    );
    // When one has gone there is room again.
    first.write_all(&message(b'X', b"")).await.unwrap();
    let mut rest = Vec::new();
    first.read_to_end(&mut rest).await.unwrap();
    let (mut fourth, _four) = serve(&server);
    fourth.write_all(&hello()).await.unwrap();
    let mut answer = [0; 9];
    fourth.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, [b'R', 0, 0, 0, 8, 0, 0, 0, 0]);
}
