//! Storing over SFTP: a temporary, then its name.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt, TryStreamExt};

use super::client::Connection;
use super::files::{Failed, File};
use super::storage::Ssh;
use super::wire::{self, Status};
use crate::body::Body;
use crate::error::{Error, ErrorKind, Operation, Result};
use crate::key::{Key, RESERVED};
use crate::object::ObjectMeta;
use crate::options::{PutMode, PutOptions};

/// Bytes per write request: what every server takes.
const PIECE: usize = 32 * 1024;
/// Writes in flight.
const AT_ONCE: usize = 32;
/// Temporaries that nothing was written to for so long belong to nobody.
const ABANDONED: Duration = Duration::from_secs(24 * 3600);

/// A file that is being written; removed when it goes. After a rename there is nothing left to
/// remove, and saying so does no harm: its name is random.
struct Temp {
    connection: Arc<Connection>,
    path: String,
}

impl Drop for Temp {
    fn drop(&mut self) {
        let path = &self.path;
        self.connection
            .tell(wire::REMOVE, |packet| packet.bytes(path.as_bytes()));
    }
}

impl Ssh {
    pub(super) async fn put_body(
        &self,
        key: &Key,
        body: Body,
        options: PutOptions,
    ) -> Result<ObjectMeta> {
        let subject = key.as_str();
        if let PutMode::IfVersion(_) = options.mode {
            return Err(Error::new(ErrorKind::Unsupported, Operation::Put)
                .subject(subject)
                .detail("SFTP has no versions to compare and swap by"));
        }
        let (connection, temp, size, modified) = self
            .upload(key, body, &options.mode)
            .await
            // What has no name yet is no object.
            .map_err(Error::without_effect)?;
        let target = self.path(key);
        let directory = target.rsplit_once('/').map_or("", |(above, _)| above);
        let extension = naming(&options.mode);
        let name = || {
            connection.extended(extension, |packet| {
                packet.bytes(temp.path.as_bytes()).bytes(target.as_bytes())
            })
        };
        let unnamed = |error: Error| error.without_effect();
        self.make_dirs(&connection, directory, subject)
            .await
            .map_err(unnamed)?;
        let mut named = name().await;
        if let Err(failed) = &named
            && failed.status() == Some(Status::NoSuchFile)
        {
            // Somebody removed the directory: make it again, and trust no memory of it.
            self.forget();
            self.make_dirs(&connection, directory, subject)
                .await
                .map_err(unnamed)?;
            named = name().await;
        }
        if let Err(failed) = named {
            return Err(self
                .why(&connection, failed, &options.mode, subject, &target)
                .await);
        }
        Ok(ObjectMeta::new(key.clone(), size, None, modified))
    }

    /// Writes a temporary and makes its content durable.
    async fn upload(
        &self,
        key: &Key,
        body: Body,
        mode: &PutMode,
    ) -> Result<(Arc<Connection>, Temp, u64, SystemTime)> {
        let subject = key.as_str();
        let lower = |failed: Failed| failed.lower(Operation::Put, subject);
        let connection = self.connection(Operation::Put, subject).await?;
        self.check_extensions(&connection, mode, subject)?;
        self.prepare(&connection, subject).await?;
        let (file, temp) = match self.temp(&connection).await {
            Err(failed) if failed.status() == Some(Status::NoSuchFile) => {
                self.forget();
                self.make_dirs(&connection, &self.temps(), subject).await?;
                self.temp(&connection).await
            }
            other => other,
        }
        .map_err(lower)?;
        let mut at = 0u64;
        let mut flying = FuturesUnordered::new();
        let mut body = body.into_stream();
        while let Some(chunk) = body.next().await {
            let mut chunk: Bytes = chunk.map_err(|error| {
                Error::new(ErrorKind::Body, Operation::Put)
                    .subject(subject)
                    .because(error)
            })?;
            while !chunk.is_empty() {
                let piece = chunk.split_to(PIECE.min(chunk.len()));
                let length = piece.len() as u64;
                flying.push(file.write(at, piece));
                at = at.saturating_add(length);
                if flying.len() >= AT_ONCE {
                    flying.try_next().await.map_err(lower)?;
                }
            }
        }
        flying.try_collect::<()>().await.map_err(lower)?;
        if connection.has("fsync@openssh.com") {
            file.sync().await.map_err(lower)?;
        }
        let attrs = file.stat().await.map_err(lower)?;
        if attrs.size != Some(at) {
            return Err(Error::new(ErrorKind::Corrupt, Operation::Put)
                .subject(subject)
                .detail("the far side holds another number of bytes than were sent"));
        }
        drop(file);
        Ok((connection, temp, at, super::storage::modified(attrs)))
    }

    async fn temp(&self, connection: &Arc<Connection>) -> Result<(File, Temp), Failed> {
        let temp = Temp {
            connection: Arc::clone(connection),
            path: format!("{}/{:032x}", self.temps(), fastrand::u128(..)),
        };
        let flags = wire::OPEN_READ | wire::OPEN_WRITE | wire::OPEN_CREATE | wire::OPEN_EXCLUSIVE;
        let mode = self.shared.config.file_mode;
        let file = connection.open_file(&temp.path, flags, mode).await?;
        Ok((file, temp))
    }

    fn check_extensions(
        &self,
        connection: &Connection,
        mode: &PutMode,
        subject: &str,
    ) -> Result<()> {
        let needed = naming(mode);
        if connection.has(needed) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, Operation::Put)
            .subject(subject)
            .detail(format!("the server lacks `{needed}`")))
    }

    /// What a plain failure to take a name means.
    async fn why(
        &self,
        connection: &Connection,
        failed: Failed,
        mode: &PutMode,
        subject: &str,
        target: &str,
    ) -> Error {
        if failed.status() == Some(Status::Failure)
            && let Ok(attrs) = connection.lstat(target).await
        {
            if attrs.is_dir() {
                return below_a_key(subject);
            }
            if *mode == PutMode::Create {
                return Error::new(ErrorKind::Exists, Operation::Put).subject(subject);
            }
        }
        failed.lower(Operation::Put, subject)
    }

    fn temps(&self) -> String {
        format!(
            "{}/{RESERVED}/tmp",
            self.shared.config.root.trim_end_matches('/')
        )
    }

    /// Once per storage: the place for temporaries, and away with abandoned ones.
    async fn prepare(&self, connection: &Arc<Connection>, subject: &str) -> Result<()> {
        self.shared
            .prepared
            .get_or_try_init(|| async {
                let temps = self.temps();
                self.make_dirs(connection, &temps, subject).await?;
                if let Some(now) = self.clock(connection).await {
                    // Others do the same; what fails here is done by the next.
                    let _next_time = self.sweep(connection, &temps, now).await;
                }
                Ok(())
            })
            .await
            .copied()
    }

    async fn sweep(
        &self,
        connection: &Arc<Connection>,
        temps: &str,
        now: SystemTime,
    ) -> Result<(), Failed> {
        let directory = connection.open_dir(temps).await?;
        loop {
            let names = directory.names().await?;
            if names.is_empty() {
                return Ok(());
            }
            for (name, attrs) in names {
                let age = now
                    .duration_since(super::storage::modified(attrs))
                    .unwrap_or_default();
                if attrs.is_file() && age > ABANDONED {
                    let path = format!("{temps}/{}", String::from_utf8_lossy(&name));
                    connection.tell(wire::REMOVE, |packet| packet.bytes(path.as_bytes()));
                }
            }
        }
    }

    /// Makes a directory and what is missing above it, down from the root.
    pub(super) async fn make_dirs(
        &self,
        connection: &Connection,
        directory: &str,
        subject: &str,
    ) -> Result<()> {
        let root = self.shared.config.root.trim_end_matches('/');
        if self.knows(directory) {
            return Ok(());
        }
        let mut missing = vec![directory];
        let mut above = directory;
        while above.len() > root.len()
            && let Some((parent, _)) = above.rsplit_once('/')
            && parent.len() >= root.len()
            && !parent.is_empty()
            && !self.knows(parent)
        {
            missing.push(parent);
            above = parent;
        }
        for path in missing.into_iter().rev() {
            let mode = self.shared.config.dir_mode;
            let made = connection
                .act(wire::MKDIR, |packet| {
                    packet.bytes(path.as_bytes()).mode(mode)
                })
                .await;
            if let Err(failed) = made {
                match connection.lstat(path).await {
                    Ok(attrs) if attrs.is_dir() => {}
                    // A link to a directory is one for the root only.
                    Ok(_) if path == root => {}
                    Ok(_) => return Err(below_a_key(subject)),
                    Err(_) => return Err(failed.lower(Operation::Put, subject)),
                }
            }
            self.learn(path);
        }
        Ok(())
    }
}

/// The extension that gives a temporary its name.
fn naming(mode: &PutMode) -> &'static str {
    match mode {
        PutMode::Overwrite => "posix-rename@openssh.com",
        _ => "hardlink@openssh.com",
    }
}

fn below_a_key(subject: &str) -> Error {
    Error::new(ErrorKind::Unsupported, Operation::Put)
        .subject(subject)
        .detail("on a file system a key can't be both an object and the beginning of another key")
}
