//! The server's side of TLS.

use std::fmt;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use crate::error::{Error, ErrorKind, Result};
use crate::io::Stream;
use crate::tls::certificate::Certificate;
use crate::tls::{ALPN, files};

/// The certificate and key of a server. `Debug` shows neither.
#[derive(Clone)]
pub struct ServerTls {
    acceptor: TlsAcceptor,
    binding: Option<Arc<[u8]>>,
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

impl ServerTls {
    /// Uses this certificate chain (the server's own first) and its private key, both in PEM form.
    ///
    /// # Errors
    /// [`Tls`](ErrorKind::Tls) when they cannot be read or do not belong together.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> Result<Self> {
        let unusable =
            |reason: &'static str| Error::new(ErrorKind::Tls, "server certificate", reason);
        let chain = files::parse_certificates(chain)
            .ok_or_else(|| unusable("there is no certificate in PEM form"))?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|_| unusable("there is no private key in PEM form"))?;
        let binding = chain
            .first()
            .and_then(|der| Certificate::parse(der)?.end_point(der))
            .map(Arc::from);
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| Error::new(ErrorKind::Tls, "server certificate", error.to_string()))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            binding,
        })
    }

    pub(crate) fn binding(&self) -> Option<&[u8]> {
        self.binding.as_deref()
    }

    /// Accepts a handshake. Returns whether the peer agreed on our ALPN name, too.
    pub(crate) async fn accept(&self, io: Box<dyn Stream>) -> Result<(Box<dyn Stream>, bool)> {
        let stream = self.acceptor.accept(io).await.map_err(|error| {
            Error::new(ErrorKind::Tls, "TLS", "the handshake failed").caused_by_io(error)
        })?;
        let agreed = stream.get_ref().1.alpn_protocol() == Some(ALPN);
        Ok((Box::new(stream), agreed))
    }
}
