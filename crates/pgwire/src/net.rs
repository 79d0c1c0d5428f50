//! Sockets: TCP with keep-alive, Unix sockets by path and by abstract name, and who is behind them.

use std::io;
use std::net::SocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr as UnixAddr;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream, lookup_host};

use crate::conninfo::{Config, Host, HostAddress, Keepalive};
use crate::error::{Error, ErrorKind, Result};
use crate::io::Stream;

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

async fn connect_unix(address: &UnixAddr) -> io::Result<UnixStream> {
    // Tokio connects to paths only; for an abstract name the connection is made by the standard
    // library, which does not wait for anything but a full backlog.
    match address.as_pathname() {
        Some(path) => UnixStream::connect(path).await,
        None => {
            let stream = std::os::unix::net::UnixStream::connect_addr(address)?;
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
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
