//! TLS: what certificates say, whom we believe, and how a connection becomes an encrypted one.

#[cfg(feature = "tls")]
pub(crate) mod certificate;
#[cfg(feature = "tls")]
pub(crate) mod client;
#[cfg(feature = "tls")]
mod files;
#[cfg(feature = "tls")]
pub(crate) mod server;
#[cfg(feature = "tls")]
mod verify;

#[cfg(not(feature = "tls"))]
pub(crate) mod client {
    //! The client of a build without TLS.

    use crate::conninfo::{Config, Host};
    use crate::error::{Error, Result};
    use crate::io::Stream;

    /// An encrypted connection.
    pub(crate) struct Secured {
        pub(crate) io: Box<dyn Stream>,
        pub(crate) binding: Option<Vec<u8>>,
    }

    pub(crate) async fn connect(_: Box<dyn Stream>, _: &Config, _: &Host) -> Result<Secured> {
        Err(Error::unsupported("TLS", "this build has no TLS"))
    }
}

/// The ALPN name of PostgreSQL's protocol.
#[cfg(feature = "tls")]
pub(crate) const ALPN: &[u8] = b"postgresql";
