//! The order of messages with real servers, recorded between client and server and compared with what
//! is committed beside this file. Names, numbers and secrets are left out.
//!
//! `NEON_ACCEPT=1` in the environment writes what was seen instead of comparing it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use neon_pgwire::{Access, ServerOptions, SlotName, StreamEnd, StreamOptions, WalEvent};
use neon_testkit::{Cluster, PgMajor, Scratch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::source::Stored;
use crate::stock_clients::{Stock, on_socket, run};
use crate::support::{capture, fast, replication};

/// Passes messages on and notes their tags.
struct Recorder {
    lines: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
    scratch: Scratch,
}

impl Recorder {
    /// Before the server on this socket.
    fn before(server: PathBuf) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new();
        let socket = scratch.path().join(".s.PGSQL.5432");
        let listener = UnixListener::bind(&socket).unwrap();
        // Stock clients run as another user.
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
        let lines = Arc::new(Mutex::new(Vec::new()));
        let noted = Arc::clone(&lines);
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = UnixStream::connect(&server).await.unwrap();
                let ((near_read, near_write), (far_read, far_write)) =
                    (near.into_split(), far.into_split());
                tokio::spawn(pass(near_read, far_write, true, Arc::clone(&noted)));
                tokio::spawn(pass(far_read, near_write, false, Arc::clone(&noted)));
            }
        });
        Self {
            lines,
            task,
            scratch,
        }
    }

    fn conninfo(&self) -> String {
        format!(
            "host={} port=5432 user=postgres",
            self.scratch.path().display()
        )
    }

    /// When the goodbye has come through as well.
    async fn compare(self, name: &str) {
        let lines = Arc::clone(&self.lines);
        crate::real_servers::eventually("the goodbye", || {
            let lines = lines.lock().unwrap();
            lines.last().is_some_and(|line| line == "> Terminate")
        })
        .await;
        self.task.abort();
        let mut text = self.lines.lock().unwrap().join("\n");
        text.push('\n');
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/it/transcripts")
            .join(name);
        if std::env::var_os("NEON_ACCEPT").is_some() {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &text).unwrap();
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "{name}");
    }
}

/// Reads messages from one side, notes them, and passes them on.
async fn pass(
    mut from: tokio::net::unix::OwnedReadHalf,
    mut to: tokio::net::unix::OwnedWriteHalf,
    from_client: bool,
    lines: Arc<Mutex<Vec<String>>>,
) {
    let mut first = from_client;
    loop {
        let mut head = vec![0; if first { 4 } else { 5 }];
        if from.read_exact(&mut head).await.is_err() {
            drop(to.shutdown().await);
            return;
        }
        let length = u32::from_be_bytes(head[head.len() - 4..].try_into().unwrap()) as usize - 4;
        let mut body = vec![0; length];
        from.read_exact(&mut body).await.unwrap();
        if let Some(line) = shown(if first { b'\0' } else { head[0] }, &body, from_client) {
            let mut lines = lines.lock().unwrap();
            // How much comes at a time is a matter of chance, and so is how much is still under way when
            // the client ends the stream.
            let ends = lines.iter().any(|line| line == "> CopyData r");
            if lines.last() != Some(&line) && !(ends && line == "< CopyData") {
                lines.push(line);
            }
        }
        first = false;
        head.extend(body);
        if to.write_all(&head).await.is_err() {
            return;
        }
    }
}

fn shown(tag: u8, body: &[u8], from_client: bool) -> Option<String> {
    let text = |bytes: &[u8]| {
        String::from_utf8_lossy(bytes)
            .trim_end_matches('\0')
            .to_owned()
    };
    let first = body.first().copied().unwrap_or_default();
    Some(match (from_client, tag) {
        (true, b'\0') => "> startup".to_owned(),
        (true, b'Q') => format!("> Query {}", without_numbers(&text(body))),
        (true, b'd') => format!("> CopyData {}", char::from(first)),
        (true, b'c') => "> CopyDone".to_owned(),
        (true, b'X') => "> Terminate".to_owned(),
        (true, tag) => format!("> {}", char::from(tag)),
        // When these come is the server's choice.
        (false, b'S' | b'N') => return None,
        (false, b'd') if matches!(first, b'k' | b'p') && body.len() <= 18 => return None,
        // Up to 14 a message is bytes of the archive, and the control file's begin with any byte.
        (false, b'd') if first == b'n' && name_of(body).ends_with(".tar") => {
            format!("< CopyData n {}", without_numbers(&name_of(body)))
        }
        (false, b'd') if first == b'm' && body.len() == 1 => "< CopyData m".to_owned(),
        (false, b'd') => "< CopyData".to_owned(),
        (false, b'C') => format!("< CommandComplete {}", without_numbers(&text(body))),
        (false, tag) => format!(
            "< {}",
            match tag {
                b'R' => "Authentication",
                b'K' => "BackendKeyData",
                b'Z' => "ReadyForQuery",
                b'T' => "RowDescription",
                b'D' => "DataRow",
                b'E' => "ErrorResponse",
                b'H' => "CopyOutResponse",
                b'W' => "CopyBothResponse",
                b'c' => "CopyDone",
                _ => "something else",
            }
        ),
    })
}

/// What an archive begins with from 15 on: its name, and the place of its tablespace.
fn name_of(body: &[u8]) -> String {
    let name = body.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(&name[1..]).into_owned()
}

/// Positions and object ids are different each time.
fn without_numbers(text: &str) -> String {
    text.split(' ')
        .map(|word| {
            match word.contains('/')
                && word
                    .bytes()
                    .all(|byte| byte.is_ascii_hexdigit() || byte == b'/')
            {
                true => "X/X",
                false => word,
            }
        })
        .collect::<Vec<_>>()
        .join(" ")
}

#[tokio::test]
async fn sessions_with_servers_of_each_form_go_as_recorded() {
    for major in [
        PgMajor::V13,
        PgMajor::V14,
        PgMajor::V15,
        PgMajor::V16,
        PgMajor::V17,
        PgMajor::V18,
    ] {
        let cluster = Cluster::builder(major).start();
        let server = format!(".s.PGSQL.{}", cluster.port());
        let recorder = Recorder::before(cluster.socket_dir().join(server));
        let scratch = Scratch::new();
        let mut options = fast();
        options.progress = true;
        let captured = capture(
            replication(&recorder.conninfo()).await,
            &options,
            &scratch.path().join("tar"),
        )
        .await;
        let mut client = captured.client;
        let slot: SlotName = "recorded".parse().unwrap();
        drop(
            client
                .timeline_history(neon_pg_layout::TimelineId::new(9).unwrap())
                .await,
        );
        client
            .create_physical_slot(&slot, true, true)
            .await
            .unwrap();
        let mut wanted = StreamOptions::new(captured.start.start_of(16 << 20), captured.timeline);
        wanted.slot = Some(slot);
        let mut stream = client.start_replication(wanted).await.unwrap();
        while !matches!(stream.next().await.unwrap(), Some(WalEvent::Data { .. })) {}
        let StreamEnd::Stopped(client) = stream.finish().await.unwrap() else {
            panic!("nobody else ended it");
        };
        client.close().await;
        recorder.compare(&format!("session-{major}.txt")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_clients_of_our_server_go_as_recorded() {
    let cluster = Cluster::builder(PgMajor::V13).start();
    let scratch = Scratch::new();
    let stored = Stored::capture(&cluster, &scratch.path().join("stored"), false).await;
    for advertise in [PgMajor::V13, PgMajor::V15] {
        let socket = scratch.path().join(format!("s{advertise}"));
        fs::create_dir(&socket).unwrap();
        let mut options = ServerOptions::new(Access::Anybody);
        options.advertise = advertise;
        let _server = on_socket(stored.clone(), options, &socket);
        for client in Stock::all() {
            if client.major < advertise.number() {
                continue;
            }
            let recorder = Recorder::before(socket.join(".s.PGSQL.5432"));
            // With the WAL in the archive there is one session only, and its order is no matter of chance.
            let mut command = client.command("pg_basebackup");
            command
                .args(["-X", "fetch", "-c", "fast", "-Ft", "-d"])
                .arg(recorder.conninfo())
                .arg("-D")
                .arg(scratch.path().join(format!("{}-{advertise}", client.major)));
            let output = run(command).await;
            let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{complaint}");
            let name = format!("pg_basebackup-{}-of-{advertise}.txt", client.major);
            recorder.compare(&name).await;
        }
    }
}
