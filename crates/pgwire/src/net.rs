//! Sockets: TCP with keep-alive, Unix sockets by path and by abstract name, and who is behind them.

use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::SocketAddr as UnixAddr;
use std::path::PathBuf;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use crate::conninfo::{Config, Host, HostAddress, Keepalive};
use crate::error::{Error, ErrorKind, Result};
use crate::io::Stream;

/// How long to wait before knocking again at a Unix socket whose queue is full.
const QUEUE_FULL: Duration = Duration::from_millis(20);

/// One address to connect to.
#[derive(Debug, Clone)]
pub(crate) enum Address {
    Tcp(SocketAddr),
    Unix(UnixAddr),
}

/// The addresses of a host; a name may have several.
pub(crate) async fn resolve(host: &Host) -> Result<Vec<Address>> {
    match &host.address {
        HostAddress::Address(address, _) => {
            Ok(vec![Address::Tcp(SocketAddr::new(*address, host.port))])
        }
        HostAddress::Name(name) => {
            let found = lookup_host((name.as_str(), host.port))
                .await
                .map_err(|error| Error::io(host.to_string(), error))?;
            Ok(found.map(Address::Tcp).collect())
        }
        HostAddress::Socket(directory) => {
            let path = directory.join(format!(".s.PGSQL.{}", host.port));
            let address = UnixAddr::from_pathname(&path)
                .map_err(|error| Error::io(host.to_string(), error))?;
            Ok(vec![Address::Unix(address)])
        }
        HostAddress::Abstract(name) => {
            let name = format!("{name}/.s.PGSQL.{}", host.port);
            let address = UnixAddr::from_abstract_name(name.as_bytes())
                .map_err(|error| Error::io(host.to_string(), error))?;
            Ok(vec![Address::Unix(address)])
        }
    }
}

/// Connects, and for Unix sockets checks who listens if `requirepeer` says who must.
pub(crate) async fn connect(address: &Address, config: &Config) -> Result<Box<dyn Stream>> {
    let failed = |error| Error::io("connecting", error);
    match address {
        Address::Tcp(address) => {
            let stream = TcpStream::connect(address).await.map_err(failed)?;
            stream.set_nodelay(true).map_err(failed)?;
            keep_alive(&stream, &config.keepalive).map_err(failed)?;
            Ok(Box::new(stream))
        }
        Address::Unix(address) => {
            let stream = connect_unix(address).await.map_err(failed)?;
            if let Some((name, uid)) = &config.require_peer {
                let peer = stream.peer_cred().map_err(failed)?.uid();
                if peer != *uid {
                    return Err(Error::new(
                        ErrorKind::Authentication,
                        "requirepeer",
                        format!("the server runs as user id {peer}, not as {name}"),
                    ));
                }
            }
            Ok(Box::new(stream))
        }
    }
}

/// Tries again while the server's queue of connections is full, which the system tells by "would block"
/// and never by waking us up. It ends when the caller's patience does.
async fn connect_unix(address: &UnixAddr) -> io::Result<UnixStream> {
    let path = match (address.as_pathname(), address.as_abstract_name()) {
        (Some(path), _) => path.to_owned(),
        // Tokio takes a name that begins with a NUL for an abstract one.
        (None, Some(name)) => PathBuf::from(OsString::from_vec([b"\0", name].concat())),
        (None, None) => return Err(io::ErrorKind::AddrNotAvailable.into()),
    };
    loop {
        match UnixStream::connect(&path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(QUEUE_FULL).await;
            }
            other => return other,
        }
    }
}

fn keep_alive(stream: &TcpStream, wanted: &Keepalive) -> io::Result<()> {
    let socket = SockRef::from(stream);
    if wanted.enabled {
        let mut keepalive = TcpKeepalive::new();
        if let Some(idle) = wanted.idle {
            keepalive = keepalive.with_time(idle);
        }
        if let Some(interval) = wanted.interval {
            keepalive = keepalive.with_interval(interval);
        }
        if let Some(count) = wanted.count {
            keepalive = keepalive.with_retries(count);
        }
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(target_os = "linux")]
    if wanted.user_timeout.is_some() {
        socket.set_tcp_user_timeout(wanted.user_timeout)?;
    }
    Ok(())
}
