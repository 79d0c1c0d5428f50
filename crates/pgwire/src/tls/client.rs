//! The client's side of TLS.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::{CertificateRevocationListDer, ServerName};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, SignatureScheme, version};

use crate::conninfo::{CertMode, Config, Host, Root, SslMode, SslNegotiation, TlsFiles};
use crate::error::{Error, ErrorKind, Result};
use crate::io::Stream;
use crate::tls::certificate::Certificate;
use crate::tls::verify::Verifier;
use crate::tls::{ALPN, files};

/// An encrypted connection.
pub(crate) struct Secured {
    pub(crate) io: Box<dyn Stream>,
    /// What ties a login to this connection, if the server's certificate can be used for it.
    pub(crate) binding: Option<Vec<u8>>,
}

/// Makes a connection an encrypted one, and verifies the server as far as `sslmode` says.
pub(crate) async fn connect(io: Box<dyn Stream>, config: &Config, host: &Host) -> Result<Secured> {
    let name = host.server_name().unwrap_or_default();
    let asked = Arc::new(AtomicBool::new(false));
    let tls = client_config(config, &name, Arc::clone(&asked))?;
    let certified = tls.1;
    // A name that TLS cannot send is not sent; it is judged by our verifier either way.
    let (server_name, sni) = match ServerName::try_from(name.clone()) {
        Ok(server_name) => (server_name, config.tls.sni),
        Err(_) => (
            ServerName::from(std::net::IpAddr::from([0, 0, 0, 0])),
            false,
        ),
    };
    let mut tls = tls.0;
    tls.enable_sni = sni;
    let stream = TlsConnector::from(Arc::new(tls))
        .connect(server_name, io)
        .await
        .map_err(|error| failed("the handshake failed").caused_by_io(error))?;
    let (_, session) = stream.get_ref();
    if config.ssl_negotiation == SslNegotiation::Direct && session.alpn_protocol() != Some(ALPN) {
        return Err(failed(
            "the server did not agree on PostgreSQL's protocol (ALPN)",
        ));
    }
    let asked = asked.load(Ordering::Relaxed);
    if config.tls.cert_mode == CertMode::Require && !(asked && certified) {
        return Err(failed(
            "the server did not ask for the client's certificate",
        ));
    }
    let binding = session.peer_certificates().and_then(|chain| {
        let der = chain.first()?;
        Certificate::parse(der)?.end_point(der)
    });
    Ok(Secured {
        io: Box::new(stream),
        binding,
    })
}

fn failed(reason: &'static str) -> Error {
    Error::new(ErrorKind::Tls, "TLS", reason)
}

fn invalid(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Tls, "TLS", error.to_string())
}

/// The configuration, and whether there is a certificate to send.
fn client_config(
    config: &Config,
    host: &str,
    asked: Arc<AtomicBool>,
) -> Result<(ClientConfig, bool)> {
    let provider = Arc::new(ring::default_provider());
    let verifier = verifier(config, host, &provider)?;
    let key = client_key(&config.tls, &provider)?;
    let certified = key.is_some();
    let versions: &[_] = match (config.tls.min_1_3, config.tls.max_1_2) {
        (true, _) => &[&version::TLS13],
        (_, true) => &[&version::TLS12],
        _ => &[&version::TLS13, &version::TLS12],
    };
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(invalid)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(Resolver { key, asked }));
    tls.alpn_protocols = vec![ALPN.to_vec()];
    Ok((tls, certified))
}

fn verifier(config: &Config, host: &str, provider: &Arc<CryptoProvider>) -> Result<Verifier> {
    let must_verify = matches!(config.ssl_mode, SslMode::VerifyCa | SslMode::VerifyFull);
    let roots = match &config.tls.root {
        Root::System(path) => Some(files::certificates(path)?),
        // With a root file, "require" verifies the chain too: libpq's old promise.
        Root::File(path) if must_verify || files::exists(path) => Some(files::certificates(path)?),
        Root::File(_) | Root::Missing => None,
    };
    let chain = match (&roots, config.ssl_mode) {
        (Some(roots), SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull) => {
            let mut store = RootCertStore::empty();
            // Bundles hold what rustls cannot use; an empty store is an error below.
            let (_, _) = store.add_parsable_certificates(roots.iter().cloned());
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(provider))
                    .with_crls(revocation_lists(&config.tls)?)
                    // A list that should have been replaced long ago hides what was revoked since.
                    .enforce_revocation_expiration()
                    .build()
                    .map_err(invalid)?;
            Some(verifier)
        }
        _ => None,
    };
    Ok(Verifier {
        provider: Arc::clone(provider),
        chain,
        roots: roots.unwrap_or_default(),
        host: (config.ssl_mode == SslMode::VerifyFull).then(|| host.to_owned()),
    })
}

fn revocation_lists(tls: &TlsFiles) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let mut lists = Vec::new();
    if let Some(path) = &tls.crl {
        lists.extend(files::revocation_lists(path)?);
    }
    if let Some(directory) = &tls.crl_directory {
        let what = "the directory of revocation lists cannot be read";
        let entries =
            std::fs::read_dir(directory).map_err(|error| Error::file(directory, what, error))?;
        for entry in entries {
            let entry = entry.map_err(|error| Error::file(directory, what, error))?;
            lists.extend(files::revocation_lists(&entry.path())?);
        }
    }
    Ok(lists)
}

fn client_key(tls: &TlsFiles, provider: &CryptoProvider) -> Result<Option<Arc<CertifiedKey>>> {
    if tls.cert_mode == CertMode::Disable {
        return Ok(None);
    }
    let (Some(cert), Some(key)) = (&tls.cert, &tls.key) else {
        return match tls.cert_mode {
            CertMode::Require => Err(Error::config(
                "sslcertmode",
                "there is no certificate to send",
            )),
            _ if tls.cert_is_explicit => Err(Error::config(
                "sslkey",
                "a certificate is given, but no key",
            )),
            _ => Ok(None),
        };
    };
    if !tls.cert_is_explicit && !files::exists(cert) {
        return match tls.cert_mode {
            CertMode::Require => Err(Error::config(
                "sslcertmode",
                "there is no certificate to send",
            )),
            _ => Ok(None),
        };
    }
    let chain = files::certificates(cert)?;
    let key = files::private_key(key)?;
    let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| {
        Error::new(
            ErrorKind::File,
            cert.display().to_string(),
            format!("certificate and key: {error}"),
        )
    })?;
    Ok(Some(Arc::new(key)))
}

/// Sends the one certificate there is, and notes that it was asked for.
#[derive(Debug)]
struct Resolver {
    key: Option<Arc<CertifiedKey>>,
    asked: Arc<AtomicBool>,
}

impl ResolvesClientCert for Resolver {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.key.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
