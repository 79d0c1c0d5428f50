//! Certificates, keys and revocation lists from PEM files.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer,
};

use crate::error::{Error, ErrorKind, Result};

/// No bundle of authorities is as large as this.
const LARGEST: u64 = 16 << 20;

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>> {
    let metadata = fs::metadata(path).map_err(|error| Error::file(path, what, error))?;
    if metadata.len() > LARGEST {
        return Err(Error::new(
            ErrorKind::File,
            path.display().to_string(),
            "it is too large",
        ));
    }
    fs::read(path).map_err(|error| Error::file(path, what, error))
}

fn none_in(path: &Path, what: &'static str) -> Error {
    Error::new(ErrorKind::File, path.display().to_string(), what)
}

/// All certificates of a file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let pem = read(path, "the certificate file cannot be read")?;
    parse_certificates(&pem).ok_or_else(|| none_in(path, "it holds no certificate in PEM form"))
}

pub(super) fn parse_certificates(pem: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    found.ok().filter(|found| !found.is_empty())
}

/// All revocation lists of a file.
pub(super) fn revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>> {
    let pem = read(path, "the revocation list cannot be read")?;
    let found: std::result::Result<Vec<_>, _> =
        CertificateRevocationListDer::pem_slice_iter(&pem).collect();
    found.map_err(|_| none_in(path, "it holds no revocation list in PEM form"))
}

/// A private key, from a file that only its owner may read, or that belongs to root and that its
/// group may read: libpq's rule.
pub(super) fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let what = "the private key cannot be read";
    let metadata = fs::metadata(path).map_err(|error| Error::file(path, what, error))?;
    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if !metadata.is_file() || metadata.permissions().mode() & forbidden != 0 {
        return Err(Error::new(
            ErrorKind::File,
            path.display().to_string(),
            "the private key must be a file with mode 0600 or stricter, or 0640 if root owns it",
        ));
    }
    let pem = read(path, what)?;
    if pem.windows(9).any(|window| window == b"ENCRYPTED") {
        return Err(Error::unsupported(
            path.display().to_string(),
            "encrypted private keys are not supported",
        ));
    }
    PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| none_in(path, "it holds no private key in PEM form"))
}

/// Whether a file is there; anything but "not found" counts as there and fails when it is read.
pub(super) fn exists(path: &Path) -> bool {
    !matches!(fs::metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound)
}
