//! Whom the client believes: nobody in particular, an authority, or an authority and a name.
//!
//! rustls verifies chains; what PostgreSQL adds is that names are a separate question (`verify-ca`
//! asks none), that a common name counts where there is no other name, and that a self-signed
//! certificate may be its own root, as the documentation's own recipe makes it.

use std::sync::Arc;

use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{self, CryptoProvider};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, Error as TlsError, SignatureScheme,
};

use crate::tls::certificate::Certificate;

/// What is asked of the server's certificate.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) provider: Arc<CryptoProvider>,
    /// Verifies chains; without it any certificate will do.
    pub(super) chain: Option<Arc<WebPkiServerVerifier>>,
    pub(super) roots: Vec<CertificateDer<'static>>,
    /// The host that the certificate must name.
    pub(super) host: Option<String>,
}

impl Verifier {
    fn verify_chain(
        &self,
        chain: &WebPkiServerVerifier,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), TlsError> {
        if self
            .roots
            .iter()
            .any(|root| root.as_ref() == end_entity.as_ref())
        {
            let read = Certificate::parse(end_entity).ok_or(CertificateError::BadEncoding)?;
            let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
            return match now {
                now if now < read.not_before => Err(CertificateError::NotValidYet.into()),
                now if now > read.not_after => Err(CertificateError::Expired.into()),
                _ => Ok(()),
            };
        }
        match chain.verify_server_cert(end_entity, intermediates, server_name, &[], now) {
            // Names are judged afterwards, by our own rules; the chain was in order.
            Ok(_)
            | Err(TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        if let Some(chain) = &self.chain {
            self.verify_chain(chain, end_entity, intermediates, server_name, now)?;
        }
        if let Some(host) = &self.host {
            let read = Certificate::parse(end_entity).ok_or(CertificateError::BadEncoding)?;
            if !read.names(host) {
                return Err(CertificateError::NotValidForName.into());
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let known = &self.provider.signature_verification_algorithms;
        crypto::verify_tls12_signature(message, cert, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let known = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, cert, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
