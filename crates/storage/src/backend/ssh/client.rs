//! One SFTP connection: requests are numbered, many are in flight, answers come in any order.

use std::collections::HashMap;
use std::fmt;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};

use super::config::SshConfig;
use super::wire::{self, Answer, Packet, Status};
use crate::error::{Error, ErrorKind, Operation, Result};

/// How much of what the program complains about is kept for the error.
const COMPLAINT: usize = 2000;
/// The number of requests whose answer nobody waits for.
const NOBODY: u32 = u32::MAX;

/// A connection. It ends, with its program, when the last handle of it goes.
pub(super) struct Connection {
    packets: mpsc::UnboundedSender<Bytes>,
    shared: Arc<Shared>,
    next: AtomicU32,
    timeout: Duration,
    extensions: Vec<String>,
    _child: Child,
}

#[derive(Default)]
struct Shared {
    pending: Mutex<HashMap<u32, oneshot::Sender<Answer>>>,
    dead: AtomicBool,
    complaint: Mutex<String>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("dead", &self.is_dead())
            .finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Fails whatever waits, and whatever comes.
    fn die(&self) {
        self.dead.store(true, Ordering::Release);
        locked(&self.pending).clear();
    }
}

impl Connection {
    pub(super) async fn open(config: &SshConfig) -> Result<Self> {
        let failed = || Error::new(ErrorKind::Unavailable, Operation::Open).subject(&config.shown);
        let Some((program, arguments)) = config.command.split_first() else {
            return Err(Error::new(ErrorKind::Invalid, Operation::Open).detail("no command"));
        };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                failed()
                    .detail(format!("`{program}` could not be started"))
                    .because(error)
            })?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(mut input), Some(mut output), Some(errors)) = pipes else {
            return Err(failed().detail("the program has no pipes"));
        };
        let shared = Arc::new(Shared::default());
        let complaining = tokio::spawn(complain(errors, Arc::clone(&shared)));
        let hello = async {
            let mut init = BytesMut::from(&[0, 0, 0, 5, wire::INIT][..]);
            init.extend_from_slice(&3u32.to_be_bytes());
            input.write_all(&init).await?;
            input.flush().await?;
            packet(&mut output).await
        };
        let greeting = match tokio::time::timeout(config.connect_timeout, hello).await {
            Ok(Ok(packet)) => wire::greeting(packet),
            Ok(Err(error)) => {
                // What the program has to say comes before its end.
                let _late = tokio::time::timeout(Duration::from_secs(2), complaining).await;
                return Err(refused(config, &locked(&shared.complaint)).because(error));
            }
            Err(_) => return Err(failed().detail("no greeting in time")),
        };
        let extensions = match greeting {
            Some((3, extensions)) => extensions,
            Some((version, _)) => {
                return Err(Error::new(ErrorKind::Unsupported, Operation::Open)
                    .subject(&config.shown)
                    .detail(format!("SFTP of version {version}, not 3")));
            }
            None => {
                return Err(
                    failed().detail("something else than SFTP answered (a shell that prints?)")
                );
            }
        };
        let (packets, mut outgoing) = mpsc::unbounded_channel::<Bytes>();
        let writing = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Some(packet) = outgoing.recv().await {
                if input.write_all(&packet).await.is_err() || input.flush().await.is_err() {
                    writing.die();
                    return;
                }
            }
            // The last handle is gone; the end of input ends the program.
        });
        let reading = Arc::clone(&shared);
        // Weak: a connection that nobody holds may end.
        let closer = packets.downgrade();
        tokio::spawn(async move {
            while let Ok(packet) = packet(&mut output).await {
                let Some((id, answer)) = wire::answer(packet) else {
                    break;
                };
                let waiting = locked(&reading.pending).remove(&id);
                let unclaimed = match waiting {
                    Some(waiting) => waiting.send(answer).err(),
                    None if id == NOBODY => continue,
                    None => break,
                };
                // An open whose caller went away: nobody else would close it.
                if let (Some(Answer::Handle(handle)), Some(packets)) = (unclaimed, closer.upgrade())
                {
                    let close = Packet::new(wire::CLOSE, NOBODY).bytes(&handle).finish();
                    let _ended = packets.send(close);
                }
            }
            reading.die();
        });
        Ok(Self {
            packets,
            shared,
            next: AtomicU32::new(1),
            timeout: config.answer_timeout,
            extensions,
            _child: child,
        })
    }

    pub(super) fn is_dead(&self) -> bool {
        self.shared.dead.load(Ordering::Acquire)
    }

    pub(super) fn has(&self, extension: &str) -> bool {
        self.extensions.iter().any(|name| name == extension)
    }

    /// Sends a request and waits for its answer.
    ///
    /// Dropped: the request may take effect; its answer is thrown away, a file it opened is closed.
    pub(super) async fn ask(
        &self,
        kind: u8,
        fill: impl FnOnce(Packet) -> Packet,
    ) -> std::result::Result<Answer, Lost> {
        let waits = self.send(kind, fill)?;
        match tokio::time::timeout(self.timeout, waits).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(self.lost("the connection ended")),
            Err(_) => {
                // An answer may still come, but order is lost on a link that is this slow.
                self.shared.die();
                Err(self.lost("no answer in time"))
            }
        }
    }

    fn send(
        &self,
        kind: u8,
        fill: impl FnOnce(Packet) -> Packet,
    ) -> std::result::Result<oneshot::Receiver<Answer>, Lost> {
        // Numbers stay below the one reserved for closing what nobody claimed.
        let id = self.next.fetch_add(1, Ordering::Relaxed) % NOBODY;
        let (answers, waits) = oneshot::channel();
        locked(&self.shared.pending).insert(id, answers);
        let packet = fill(Packet::new(kind, id)).finish();
        if self.is_dead() || self.packets.send(packet).is_err() {
            self.shared.die();
            return Err(self.lost("the connection ended"));
        }
        Ok(waits)
    }

    /// Sends a request whose answer nobody waits for: cleaning up.
    pub(super) fn tell(&self, kind: u8, fill: impl FnOnce(Packet) -> Packet) {
        drop(self.send(kind, fill));
    }

    fn lost(&self, what: &str) -> Lost {
        let complaint = locked(&self.shared.complaint);
        match complaint.trim() {
            "" => Lost(what.to_owned()),
            complaint => Lost(format!("{what}: {complaint}")),
        }
    }
}

/// The connection broke before the answer came.
#[derive(Debug)]
pub(super) struct Lost(String);

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lost {}

/// The far side said no.
#[derive(Debug)]
pub(super) struct Said(pub(super) Status, pub(super) String);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0, self.1)
    }
}

impl std::error::Error for Said {}

/// What it means when there is no greeting.
fn refused(config: &SshConfig, complaint: &str) -> Error {
    let complaint = complaint.trim();
    let known = [
        "Permission denied",
        "Host key verification failed",
        "Too many authentication",
    ];
    let kind = match known.iter().any(|text| complaint.contains(text)) {
        true => ErrorKind::Unauthenticated,
        false => ErrorKind::Unavailable,
    };
    let error = Error::new(kind, Operation::Open).subject(&config.shown);
    match complaint {
        "" => error.detail("the program ended before it spoke SFTP"),
        complaint => error.detail(complaint.to_owned()),
    }
}

async fn packet(from: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Bytes> {
    let length = usize::try_from(from.read_u32().await?).unwrap_or(usize::MAX);
    if length > wire::LARGEST {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            "an oversized packet",
        ));
    }
    let mut bytes = BytesMut::zeroed(length);
    from.read_exact(&mut bytes).await?;
    Ok(bytes.freeze())
}

async fn complain(mut from: impl AsyncRead + Unpin, shared: Arc<Shared>) {
    let mut piece = [0u8; 512];
    while let Ok(length) = from.read(&mut piece).await {
        let Some(text) = piece.get(..length).filter(|text| !text.is_empty()) else {
            return;
        };
        let mut complaint = locked(&shared.complaint);
        if complaint.len() < COMPLAINT {
            complaint.push_str(&String::from_utf8_lossy(text));
        }
    }
}
