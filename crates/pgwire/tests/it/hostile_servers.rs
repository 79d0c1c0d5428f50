//! Our client against servers that break the protocol, break off, dribble, flood or say nothing: each
//! ends in an error, in time, without holding more than the limits.

use std::time::{Duration, Instant};

use neon_pgwire::{Client, Config, ErrorKind, Limits, Replication, StreamEnd, StreamOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;

use crate::support::{config, fast};

/// What a server says before it is ready.
pub(crate) fn greeting(version: &str) -> Vec<u8> {
    let mut bytes = message(b'R', &[0, 0, 0, 0]);
    bytes.extend(message(
        b'S',
        format!("server_version\0{version}\0").as_bytes(),
    ));
    bytes.extend(message(b'K', &[0, 0, 0, 1, 0, 0, 0, 2]));
    bytes.extend(message(b'Z', b"I"));
    bytes
}

pub(crate) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

fn row(values: &[Option<&str>]) -> Vec<u8> {
    let mut body = (values.len() as u16).to_be_bytes().to_vec();
    for value in values {
        match value {
            Some(value) => {
                body.extend_from_slice(&(value.len() as u32).to_be_bytes());
                body.extend_from_slice(value.as_bytes());
            }
            None => body.extend_from_slice(&(-1_i32).to_be_bytes()),
        }
    }
    message(b'D', &body)
}

/// A result as the head of a backup has them; what the columns are called is nobody's business.
fn result(rows: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = message(b'T', &[0, 0]);
    rows.iter().for_each(|row| bytes.extend_from_slice(row));
    bytes.extend(message(b'C', b"SELECT\0"));
    bytes
}

fn head() -> Vec<u8> {
    let mut bytes = result(&[row(&[Some("0/2000028"), Some("1")])]);
    bytes.extend(result(&[row(&[None, None, None])]));
    bytes
}

/// A server that says this whatever it is asked, and then what `then` says.
fn server(said: Vec<u8>, then: Then) -> (DuplexStream, JoinHandle<u64>) {
    let (near, mut far) = tokio::io::duplex(64 << 10);
    let task = tokio::spawn(async move {
        let mut written = 0;
        if far.write_all(&said).await.is_err() {
            return written;
        }
        match then {
            Then::HangUp => {}
            Then::Silence => tokio::time::sleep(Duration::from_secs(3600)).await,
            Then::Dribble => {
                while far
                    .write_all(&[b'd', 0, 0, 255][(written % 4) as usize..][..1])
                    .await
                    .is_ok()
                {
                    written += 1;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
            Then::Flood(bytes) => {
                while far.write_all(&bytes).await.is_ok() {
                    written += bytes.len() as u64;
                }
            }
        }
        // What was asked is read by nobody until here.
        let mut rest = [0; 1024];
        while matches!(far.read(&mut rest).await, Ok(read) if read > 0) {}
        written
    });
    (near, task)
}

#[derive(Debug, Clone)]
enum Then {
    HangUp,
    Silence,
    Dribble,
    Flood(Vec<u8>),
}

fn impatient() -> Config {
    let limits = Limits::default()
        .with_connect(Duration::from_millis(500))
        .with_silence(Duration::from_millis(500))
        .with_message(64 << 10)
        .with_result(1 << 20);
    config("user=me password=secret host=none")
        .with_limits(limits)
        .with_replication(Replication::Physical)
}

/// An operation on a client of such a server must end in an error of this kind, and soon.
async fn fails<T: std::fmt::Debug>(
    operation: impl Future<Output = neon_pgwire::Result<T>>,
    kinds: &[ErrorKind],
) -> neon_pgwire::Error {
    let begun = Instant::now();
    let result = tokio::time::timeout(Duration::from_secs(60), operation).await;
    let error = result.expect("it hangs").unwrap_err();
    assert!(kinds.contains(&error.kind()), "{error:?}");
    assert!(begun.elapsed() < Duration::from_secs(60));
    error
}

const ANY: &[ErrorKind] = &[
    ErrorKind::Protocol,
    ErrorKind::Io,
    ErrorKind::Timeout,
    ErrorKind::Authentication,
    ErrorKind::Unsupported,
    ErrorKind::Server,
];

#[tokio::test]
async fn logins_end_in_an_error_whatever_the_server_says() {
    let huge = [b'R', 0x7F, 0xFF, 0xFF, 0xFF].to_vec();
    let negative = [b'R', 0xFF, 0xFF, 0xFF, 0xFF].to_vec();
    let too_short = [b'R', 0, 0, 0, 3].to_vec();
    for (said, kind) in [
        (Vec::new(), ErrorKind::Timeout),
        (b"R".to_vec(), ErrorKind::Timeout),
        (huge, ErrorKind::Protocol),
        (negative, ErrorKind::Protocol),
        (too_short, ErrorKind::Protocol),
        (message(b'R', b""), ErrorKind::Protocol),
        (message(b'R', &[0, 0, 0, 99]), ErrorKind::Protocol),
        (message(b'R', &[0, 0, 0, 7]), ErrorKind::Unsupported),
        (message(b'R', &[0, 0, 0, 11, b'x']), ErrorKind::Protocol),
        (message(b'R', &[0, 0, 0, 12, b'x']), ErrorKind::Protocol),
        (
            message(b'R', b"\0\0\0\x0aNONSENSE\0\0"),
            ErrorKind::Unsupported,
        ),
        (
            message(b'R', b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0\0"),
            ErrorKind::Protocol,
        ),
        (message(b'D', b"\0\0"), ErrorKind::Protocol),
        (message(b'Z', b"I"), ErrorKind::Protocol),
        (message(b'v', b"\0\0"), ErrorKind::Protocol),
        (
            message(b'E', b"SFATAL\0C28000\0Mno\0\0"),
            ErrorKind::Authentication,
        ),
        (
            message(b'E', b"SFATAL\0C53300\0Mfull\0\0"),
            ErrorKind::Server,
        ),
        (message(b'E', b""), ErrorKind::Server),
    ] {
        let (stream, _server) = server(said, Then::Silence);
        fails(Client::over(stream, &impatient()), &[kind]).await;
    }
    // A server that lets us in before it has proved that it knows the password.
    let mut said = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    said.extend(greeting("18.0"));
    let (stream, _server) = server(said, Then::Silence);
    fails(
        Client::over(stream, &impatient()),
        &[ErrorKind::Authentication],
    )
    .await;
    for then in [Then::HangUp, Then::Silence, Then::Dribble] {
        let whole = greeting("18.0");
        for length in [0, 3, 9, whole.len() - 2] {
            let (stream, _server) = server(whole[..length].to_vec(), then.clone());
            fails(Client::over(stream, &impatient()), ANY).await;
        }
    }
}

#[tokio::test]
async fn floods_are_not_held() {
    let notice = message(b'N', b"SNOTICE\0C00000\0Magain\0\0");
    let parameter = message(b'S', b"name\0value\0");
    let row = row(&[Some(&"x".repeat(1000))]);
    // During the login, and as the answer to a query.
    for flood in [&notice, &parameter] {
        let (stream, server) = server(message(b'R', &[0; 4]), Then::Flood(flood.repeat(100)));
        fails(Client::over(stream, &impatient()), &[ErrorKind::Timeout]).await;
        server.abort();
    }
    let mut parameters = message(b'R', &[0; 4]);
    for index in 0..1000 {
        parameters.extend(message(b'S', format!("name{index}\0value\0").as_bytes()));
    }
    let (stream, _server) = server(parameters, Then::Silence);
    fails(Client::over(stream, &impatient()), &[ErrorKind::Protocol]).await;
    let mut said = greeting("18.0");
    said.extend(message(b'T', &[0, 0]));
    let (stream, server) = server(said, Then::Flood(row.repeat(50)));
    let mut client = Client::over(stream, &impatient()).await.unwrap();
    fails(client.simple_query("select"), &[ErrorKind::Protocol]).await;
    assert!(client.is_closed());
    let written = server.await.unwrap();
    assert!(
        written < 4 << 20,
        "{written} bytes were taken, the limit is 1 MiB"
    );
}

#[tokio::test]
async fn nobody_reads_what_nobody_asks_for() {
    let mut said = greeting("18.0");
    said.extend(head());
    said.extend(message(b'H', &[0; 3]));
    said.extend(message(b'd', b"nbase.tar\0\0"));
    let (stream, server) = server(said, Then::Flood(message(b'd', &[b'd'; 32 << 10])));
    let client = Client::over(stream, &impatient()).await.unwrap();
    let mut backup = client.base_backup(&fast()).await.unwrap();
    for _ in 0..10 {
        backup.next().await.unwrap().unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    drop(backup);
    let written = server.await.unwrap();
    // Ten pieces, one buffer of ours, and the pipe between.
    assert!(
        written < 2 << 20,
        "{written} bytes were taken although nobody asked for them"
    );
}

#[tokio::test]
async fn base_backups_end_in_an_error_whatever_the_server_says() {
    let copy = message(b'H', &[0; 3]);
    let base = message(b'd', b"nbase.tar\0\0");
    let mut stop = result(&[row(&[Some("0/3000000"), Some("1")])]);
    stop.extend(message(b'C', b"BASE_BACKUP\0"));
    stop.extend(message(b'Z', b"I"));
    let done = message(b'c', b"");
    let new: Vec<Vec<u8>> = vec![
        [copy.clone(), message(b'd', b"")].concat(),
        [copy.clone(), message(b'd', b"x")].concat(),
        [copy.clone(), message(b'd', b"ddata of nothing")].concat(),
        [copy.clone(), message(b'd', b"n../../etc/passwd\0\0")].concat(),
        [copy.clone(), message(b'd', b"nbase.tar.gz\0\0")].concat(),
        [copy.clone(), message(b'd', b"n16384.tar\0/x\0")].concat(),
        [copy.clone(), message(b'd', b"nbase.tar")].concat(),
        [copy.clone(), base.clone(), base.clone()].concat(),
        [
            copy.clone(),
            base.clone(),
            message(b'd', b"m"),
            message(b'd', b"m"),
        ]
        .concat(),
        [copy.clone(), base.clone(), message(b'd', b"p1234")].concat(),
        // Everything ends well, but the manifest or the archive never came.
        [copy.clone(), base.clone(), done.clone(), stop.clone()].concat(),
        [
            copy.clone(),
            message(b'd', b"m"),
            done.clone(),
            stop.clone(),
        ]
        .concat(),
        [copy.clone(), done.clone(), stop.clone()].concat(),
        stop.clone(),
        done.clone(),
        message(b'W', &[0; 3]),
        [
            copy.clone(),
            base.clone(),
            message(b'd', b"m"),
            done.clone(),
            message(b'T', &[0, 0]),
            row(&[Some("no"), Some("1")]),
        ]
        .concat(),
        [
            copy.clone(),
            base.clone(),
            message(b'd', b"m"),
            done.clone(),
            message(b'T', &[0, 0]),
            row(&[Some("0/1"), Some("0")]),
        ]
        .concat(),
        [
            copy.clone(),
            base.clone(),
            message(b'E', b"SERROR\0CXX000\0Mno\0\0"),
            message(b'Z', b"I"),
        ]
        .concat(),
    ];
    let old: Vec<Vec<u8>> = vec![
        [copy.clone(), done.clone(), stop.clone()].concat(),
        [
            copy.clone(),
            done.clone(),
            copy.clone(),
            done.clone(),
            copy.clone(),
        ]
        .concat(),
        [copy.clone(), copy.clone()].concat(),
        [done.clone()].concat(),
    ];
    let heads = [
        result(&[]),
        [result(&[row(&[Some("0/1"), Some("1")])]), result(&[])].concat(),
        [
            result(&[row(&[Some("0/1"), Some("1")])]),
            result(&[row(&[Some("1"), Some("/x"), None])]),
        ]
        .concat(),
        [
            result(&[row(&[Some("0/1"), Some("1")])]),
            result(&[
                row(&[Some("../x"), Some("/x"), None]),
                row(&[None, None, None]),
            ]),
        ]
        .concat(),
        message(b'T', &[0, 1]),
        message(b'D', &[0, 9]),
    ];
    let cases = new
        .into_iter()
        .map(|said| ("18.0", [head(), said].concat()))
        .chain(
            old.into_iter()
                .map(|said| ("13.0", [head(), said].concat())),
        )
        .chain(heads.into_iter().map(|said| ("18.0", said)));
    for (index, (version, said)) in cases.enumerate() {
        for then in [Then::HangUp, Then::Silence] {
            let (stream, _server) = server([greeting(version), said.clone()].concat(), then);
            let client = Client::over(stream, &impatient()).await.unwrap();
            let receive = async {
                let mut backup = client.base_backup(&fast()).await?;
                while backup.next().await?.is_some() {}
                backup.finish()
            };
            let error = fails(receive, ANY).await;
            assert!(!format!("{error:?}").is_empty(), "{index}");
        }
    }
}

#[tokio::test]
async fn streams_of_wal_end_in_an_error_whatever_the_server_says() {
    let both = message(b'W', &[0; 3]);
    let wal = |start: u64, data: &[u8]| {
        let mut body = vec![b'w'];
        body.extend_from_slice(&start.to_be_bytes());
        body.extend_from_slice(&[0; 16]);
        body.extend_from_slice(data);
        message(b'd', &body)
    };
    for said in [
        both.clone(),
        [both.clone(), message(b'd', b"")].concat(),
        [both.clone(), message(b'd', b"w too short")].concat(),
        [both.clone(), message(b'd', b"k")].concat(),
        [both.clone(), wal(0x100_0000, b"a"), wal(0x100_0000, b"a")].concat(),
        [both.clone(), wal(0x200_0000, b"a gap")].concat(),
        [both.clone(), [b'd', 0x7F, 0, 0, 0].to_vec()].concat(),
        [both.clone(), message(b'D', b"\0\0")].concat(),
        [
            both.clone(),
            message(b'E', b"SERROR\0C58P01\0Mgone\0\0"),
            message(b'Z', b"I"),
        ]
        .concat(),
        message(b'H', &[0; 3]),
        message(b'Z', b"I"),
    ] {
        for then in [Then::HangUp, Then::Silence] {
            let (stream, _server) = server([greeting("17.0"), said.clone()].concat(), then);
            let client = Client::over(stream, &impatient()).await.unwrap();
            let mut options = StreamOptions::new(
                neon_pg_layout::Lsn(0x100_0000),
                neon_pg_layout::TimelineId::FIRST,
            );
            options.receive_timeout = Duration::from_millis(400);
            let receive = async {
                let mut stream = client.start_replication(options).await?;
                while stream.next().await?.is_some() {}
                stream.finish().await
            };
            fails(receive, ANY).await;
        }
    }
    // A next timeline that cannot be one, or that begins after what was sent.
    let ends = |next: &str, start: &str| {
        let mut bytes = message(b'T', &[0, 0]);
        bytes.extend(row(&[Some(next), Some(start)]));
        bytes.extend(message(b'C', b"START_STREAMING\0"));
        bytes.extend(message(b'C', b"START_REPLICATION\0"));
        bytes.extend(message(b'Z', b"I"));
        bytes
    };
    let piece = wal(0x100_0000, &[7; 0x100]);
    let stream_of = async |said: Vec<u8>| {
        let (stream, server) = server([greeting("17.0"), said].concat(), Then::Silence);
        let client = Client::over(stream, &impatient()).await.unwrap();
        let options = StreamOptions::new(
            neon_pg_layout::Lsn(0x100_0000),
            neon_pg_layout::TimelineId::FIRST,
        );
        (client.start_replication(options).await.unwrap(), server)
    };
    let done = message(b'c', b"");
    for end in [
        ends("1", "0/1000000"),
        ends("0", "0/1000000"),
        ends("2", "0/1000101"),
        ends("2", "1/0"),
        ends("2", "nowhere"),
    ] {
        let sent = [both.clone(), piece.clone(), done.clone(), end.clone()].concat();
        let (mut stream, _server) = stream_of(sent).await;
        while stream.next().await.unwrap().is_some() {}
        fails(stream.finish(), &[ErrorKind::Protocol]).await;
    }
    let (mut stream, _server) = stream_of(ends("2", "0/1000001")).await;
    assert_eq!(stream.next().await.unwrap(), None);
    fails(stream.finish(), &[ErrorKind::Protocol]).await;
    // One that can be: it ended the stream, so this is the end of the timeline.
    let sent = |start: &str| {
        let end = ends("2", start);
        [both.clone(), piece.clone(), done.clone(), end].concat()
    };
    let (mut stream, _server) = stream_of(sent("0/1000100")).await;
    while stream.next().await.unwrap().is_some() {}
    let end = stream.finish().await.unwrap();
    assert!(matches!(end, StreamEnd::Timeline { .. }), "{end:?}");
    // It says the same when it was we who had enough, however much of the timeline is left.
    for start in ["0/1000100", "0/5000000"] {
        let (mut stream, _server) = stream_of(sent(start)).await;
        stream.next().await.unwrap().unwrap();
        let end = stream.finish().await.unwrap();
        assert!(matches!(end, StreamEnd::Stopped(_)), "{end:?}");
    }
    // A server that takes nothing.
    let (near, far) = tokio::io::duplex(256);
    let stuck = tokio::spawn(async move {
        let mut far = far;
        far.write_all(&greeting("17.0")).await.unwrap();
        tokio::time::sleep(Duration::from_secs(3600)).await;
        drop(far);
    });
    let mut client = Client::over(near, &impatient()).await.unwrap();
    fails(
        client.simple_query(&"x".repeat(10_000)),
        &[ErrorKind::Timeout],
    )
    .await;
    stuck.abort();
}
