//! Accepting clients on TCP and on Unix sockets.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::{TcpListener, UnixListener};
use tokio::task::JoinSet;

use crate::error::{Error, Result};
use crate::io::Stream;
use crate::server::Server;

/// A socket that a server listens on.
///
/// Dropping it stops listening; a Unix socket's file is removed.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, PathBuf),
}

impl Listener {
    /// Listens on an address; port 0 takes a free one.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub async fn tcp(address: SocketAddr) -> Result<Self> {
        let failed = |error| Error::io(address.to_string(), error);
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        Ok(Self {
            socket: Socket::Tcp(listener, bound),
        })
    }

    /// Listens on a Unix socket, `.s.PGSQL.<port>` in a directory: `host=<directory> port=<port>` for
    /// clients. Who may connect is decided by the permissions of the directory.
    ///
    /// # Errors
    /// When the socket cannot be made; one that exists is never replaced.
    pub fn unix(directory: &Path, port: u16) -> Result<Self> {
        let path = directory.join(format!(".s.PGSQL.{port}"));
        let listener = UnixListener::bind(&path)
            .map_err(|error| Error::io(path.display().to_string(), error))?;
        Ok(Self {
            socket: Socket::Unix(listener, path),
        })
    }

    /// The address, if it is one of TCP.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(_, address) => Some(*address),
            Socket::Unix(..) => None,
        }
    }

    /// Serves clients until the future is dropped, which ends all their sessions.
    pub async fn run(&self, server: &Server) {
        let mut sessions = JoinSet::new();
        loop {
            tokio::select! {
                accepted = self.accept() => match accepted {
                    Ok(stream) => {
                        let server = server.clone();
                        sessions.spawn(async move {
                            if let Err(error) = server.serve_stream(stream).await {
                                tracing::debug!(%error, "a session failed");
                            }
                        });
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: sessions that end will free some.
                        tracing::warn!(%error, "a client could not be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = sessions.join_next() => {}
            }
        }
    }

    async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        match &self.socket {
            Socket::Tcp(listener, _) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Socket::Unix(listener, _) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket {
            drop(std::fs::remove_file(path));
        }
    }
}
