//! The servers to try: names, addresses, sockets and ports side by side.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::conninfo::params::Params;
use crate::conninfo::surroundings::Surroundings;
use crate::error::{Error, Result};

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostAddress {
    /// A name to be resolved, or an address in text.
    Name(String),
    /// An address that needs no look-up; the name, if there is one, is what a certificate must name.
    Address(IpAddr, Option<String>),
    /// The directory of a Unix socket.
    Socket(PathBuf),
    /// A directory in the abstract namespace (Linux), written `@name`.
    Abstract(String),
}

/// One server to try.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    pub(crate) address: HostAddress,
    pub(crate) port: u16,
    /// The socket directory is the one that is used when no host is given.
    pub(crate) is_default_socket: bool,
}

impl Host {
    /// What a password file calls this host.
    pub(crate) fn name_in_pass_file(&self) -> String {
        match &self.address {
            _ if self.is_default_socket => "localhost".to_owned(),
            HostAddress::Name(name) => name.clone(),
            HostAddress::Address(address, name) => {
                name.clone().unwrap_or_else(|| address.to_string())
            }
            HostAddress::Socket(directory) => directory.display().to_string(),
            HostAddress::Abstract(name) => format!("@{name}"),
        }
    }

    pub(crate) fn is_unix(&self) -> bool {
        matches!(
            self.address,
            HostAddress::Socket(_) | HostAddress::Abstract(_)
        )
    }

    /// The name that a certificate must carry, and that is sent before it is shown (SNI).
    #[cfg_attr(
        not(feature = "tls"),
        allow(dead_code, reason = "checked in every build, used by TLS")
    )]
    pub(crate) fn server_name(&self) -> Option<String> {
        match &self.address {
            HostAddress::Name(name) => Some(name.clone()),
            HostAddress::Address(address, name) => {
                Some(name.clone().unwrap_or_else(|| address.to_string()))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port;
        match &self.address {
            HostAddress::Name(name) => write!(f, "{name}:{port}"),
            HostAddress::Address(IpAddr::V6(address), _) => write!(f, "[{address}]:{port}"),
            HostAddress::Address(address, _) => write!(f, "{address}:{port}"),
            HostAddress::Socket(directory) => {
                write!(
                    f,
                    "{}",
                    directory.join(format!(".s.PGSQL.{port}")).display()
                )
            }
            HostAddress::Abstract(name) => write!(f, "@{name}/.s.PGSQL.{port}"),
        }
    }
}

/// Reads `host`, `hostaddr` and `port`, each a list separated by commas.
pub(crate) fn parse(params: &Params, surroundings: &Surroundings) -> Result<Vec<Host>> {
    let list = |name: &str| -> Vec<&str> {
        match params.get(name) {
            None | Some("") => Vec::new(),
            Some(text) => text.split(',').map(str::trim).collect(),
        }
    };
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        let (names, addresses) = (names.len(), addresses.len());
        return Err(Error::config(
            "host",
            format!("{names} names, but {addresses} in hostaddr"),
        ));
    }
    let count = names.len().max(addresses.len()).max(1);
    if ports.len() > 1 && ports.len() != count {
        let ports = ports.len();
        return Err(Error::config(
            "port",
            format!("{ports} ports for {count} hosts"),
        ));
    }
    let mut hosts = Vec::with_capacity(count);
    for index in 0..count {
        let one = |list: &[&str]| list.get(index).map_or("", |text| *text).to_owned();
        // A single port is for every host.
        let port = match ports.as_slice() {
            [single] => (*single).to_owned(),
            several => one(several),
        };
        let (address, is_default_socket) = address(&one(&names), &one(&addresses), surroundings)?;
        hosts.push(Host {
            address,
            port: parse_port(&port)?,
            is_default_socket,
        });
    }
    Ok(hosts)
}

fn parse_port(text: &str) -> Result<u16> {
    if text.is_empty() {
        return Ok(5432);
    }
    match text.parse::<u16>() {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(Error::config(
            "port",
            format!("{text:?} is not a port number"),
        )),
    }
}

fn address(name: &str, address: &str, surroundings: &Surroundings) -> Result<(HostAddress, bool)> {
    if !address.is_empty() {
        let parsed = address
            .parse()
            .map_err(|_| Error::config("hostaddr", format!("{address:?} is not an IP address")))?;
        let name = (!name.is_empty()).then(|| name.to_owned());
        return Ok((HostAddress::Address(parsed, name), false));
    }
    let default = surroundings.socket_directory.as_ref();
    Ok(match (name, default) {
        ("", Some(directory)) => (HostAddress::Socket(directory.clone()), true),
        ("", None) => (HostAddress::Name("localhost".to_owned()), false),
        (name, default) if name.starts_with('/') => {
            let directory = PathBuf::from(name);
            let is_default = default == Some(&directory);
            (HostAddress::Socket(directory), is_default)
        }
        (name, _) => match name.strip_prefix('@') {
            Some(rest) => (HostAddress::Abstract(rest.to_owned()), false),
            None => (HostAddress::Name(name.to_owned()), false),
        },
    })
}
