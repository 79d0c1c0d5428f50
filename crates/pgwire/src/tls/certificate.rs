//! The few fields of an X.509 certificate that PostgreSQL's rules need and rustls keeps to itself.
//!
//! The names (also the common name, which libpq accepts when there are no other names), the validity,
//! and the hash of the signature, which `tls-server-end-point` channel binding is made of. Source:
//! RFC 5280, RFC 5929 section 4.1, RFC 4055; DER as in X.690.

use std::net::IpAddr;

use sha2::{Digest, Sha256, Sha384, Sha512};

/// What a certificate says about itself. Nothing of it is verified here.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Certificate {
    pub(crate) dns_names: Vec<String>,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) common_name: Option<String>,
    /// Seconds since 1970.
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    hash: Hash,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Hash {
    #[default]
    Sha256,
    Sha384,
    Sha512,
    /// One that has no defined binding (Ed25519, for one).
    None,
}

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
const OCTET_STRING: u8 = 0x04;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const EXTENSIONS: u8 = 0xA3;
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1D, 0x11];
const RSA_PSS: &[u8] = &[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 10];

/// The next element: its tag, its content, and what follows.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7F);
        if !(1..=4).contains(&count) {
            return None;
        }
        let (digits, rest) = rest.split_at_checked(count)?;
        let length = digits
            .iter()
            .fold(0_usize, |sum, digit| sum << 8 | usize::from(*digit));
        (length, rest)
    };
    let (content, rest) = rest.split_at_checked(length)?;
    Some((tag, content, rest))
}

/// The content of the next element, which must have this tag, and what follows.
fn expect(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    match element(der)? {
        (found, content, rest) if found == tag => Some((content, rest)),
        _ => None,
    }
}

impl Certificate {
    /// Reads a certificate; `None` if it is not one.
    pub(crate) fn parse(der: &[u8]) -> Option<Self> {
        let (certificate, _) = expect(der, SEQUENCE)?;
        let (tbs, rest) = expect(certificate, SEQUENCE)?;
        let (algorithm, _) = expect(rest, SEQUENCE)?;
        let mut read = Self {
            hash: hash_of(algorithm)?,
            ..Self::default()
        };
        // The version is optional and explicit.
        let tbs = match element(tbs)? {
            (0xA0, _, rest) => rest,
            _ => tbs,
        };
        let (_, _, tbs) = element(tbs)?; // serial number
        let (_, tbs) = expect(tbs, SEQUENCE)?; // signature algorithm
        let (_, tbs) = expect(tbs, SEQUENCE)?; // issuer
        let (validity, tbs) = expect(tbs, SEQUENCE)?;
        let (tag, from, validity) = element(validity)?;
        read.not_before = time(tag, from)?;
        let (tag, to, _) = element(validity)?;
        read.not_after = time(tag, to)?;
        let (subject, tbs) = expect(tbs, SEQUENCE)?;
        read.common_name = common_name(subject);
        let (_, mut tbs) = expect(tbs, SEQUENCE)?; // public key
        while let Some((tag, content, rest)) = element(tbs) {
            if tag == EXTENSIONS {
                read.read_extensions(content)?;
            }
            tbs = rest;
        }
        Some(read)
    }

    fn read_extensions(&mut self, content: &[u8]) -> Option<()> {
        let (mut extensions, _) = expect(content, SEQUENCE)?;
        while let Some((_, extension, rest)) = element(extensions) {
            extensions = rest;
            let (oid, mut value) = expect(extension, OID)?;
            if oid != SUBJECT_ALT_NAME {
                continue;
            }
            // "critical" may stand between.
            if let (1, _, rest) = element(value)? {
                value = rest;
            }
            let (value, _) = expect(value, OCTET_STRING)?;
            let (mut names, _) = expect(value, SEQUENCE)?;
            while let Some((tag, name, rest)) = element(names) {
                names = rest;
                match (tag, name.len()) {
                    (DNS_NAME, _) => self.dns_names.extend(String::from_utf8(name.to_vec()).ok()),
                    (IP_ADDRESS, 4) => {
                        self.addresses
                            .extend(<[u8; 4]>::try_from(name).ok().map(IpAddr::from));
                    }
                    (IP_ADDRESS, 16) => {
                        self.addresses
                            .extend(<[u8; 16]>::try_from(name).ok().map(IpAddr::from));
                    }
                    _ => {}
                }
            }
        }
        Some(())
    }

    /// Whether the certificate is for this host, by libpq's rules: an address by the addresses or, as
    /// text, by the names; a name by the DNS names, or by the common name if there are none.
    pub(crate) fn names(&self, host: &str) -> bool {
        if let Ok(address) = host.parse::<IpAddr>()
            && self.addresses.contains(&address)
        {
            return true;
        }
        let by_common_name = self.dns_names.is_empty() && self.addresses.is_empty();
        let common_name = self.common_name.as_ref().filter(|_| by_common_name);
        self.dns_names
            .iter()
            .chain(common_name)
            .any(|pattern| matches(pattern, host))
    }

    /// The data of `tls-server-end-point` channel binding: a hash of the whole certificate.
    pub(crate) fn end_point(&self, der: &[u8]) -> Option<Vec<u8>> {
        match self.hash {
            Hash::Sha256 => Some(Sha256::digest(der).to_vec()),
            Hash::Sha384 => Some(Sha384::digest(der).to_vec()),
            Hash::Sha512 => Some(Sha512::digest(der).to_vec()),
            Hash::None => None,
        }
    }
}

/// `*.example.org` stands for one label before `.example.org`; addresses match no wildcard.
fn matches(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    match (pattern.strip_prefix('*'), host.find('.')) {
        (Some(suffix), Some(dot)) if suffix.len() > 2 && suffix.starts_with('.') => {
            let tail = host.get(dot..).unwrap_or_default();
            dot > 0 && host.parse::<IpAddr>().is_err() && suffix.eq_ignore_ascii_case(tail)
        }
        _ => false,
    }
}

fn common_name(mut subject: &[u8]) -> Option<String> {
    let mut found = None;
    while let Some((SET, set, rest)) = element(subject) {
        subject = rest;
        let (attribute, _) = expect(set, SEQUENCE)?;
        let (oid, value) = expect(attribute, OID)?;
        if oid == COMMON_NAME {
            let (_, text, _) = element(value)?;
            // A NUL inside is how a certificate for one name is passed off as one for another.
            if !text.contains(&0) {
                found = String::from_utf8(text.to_vec()).ok();
            }
        }
    }
    found
}

fn hash_of(algorithm: &[u8]) -> Option<Hash> {
    let (oid, parameters) = expect(algorithm, OID)?;
    if oid == RSA_PSS {
        // Explicit tag 0 holds the hash; SHA-1, the default, is replaced by SHA-256.
        let hash = expect(parameters, SEQUENCE)
            .and_then(|(parameters, _)| expect(parameters, 0xA0))
            .and_then(|(hash, _)| expect(hash, SEQUENCE))
            .and_then(|(hash, _)| expect(hash, OID));
        return Some(match hash {
            Some(([0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2], _)) => Hash::Sha384,
            Some(([0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3], _)) => Hash::Sha512,
            _ => Hash::Sha256,
        });
    }
    Some(match oid {
        // PKCS #1: md5, sha1 (both replaced by SHA-256), sha256, sha384, sha512.
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 4 | 5 | 11] => Hash::Sha256,
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 12] => Hash::Sha384,
        [0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 1, 1, 13] => Hash::Sha512,
        // ECDSA with SHA-1 and SHA-2.
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 1] | [0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 2] => {
            Hash::Sha256
        }
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 3] => Hash::Sha384,
        [0x2A, 0x86, 0x48, 0xCE, 0x3D, 4, 3, 4] => Hash::Sha512,
        _ => Hash::None,
    })
}

/// Seconds since 1970 of `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`.
fn time(tag: u8, text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        UTC_TIME => {
            let (year, rest) = text.split_at_checked(2)?;
            let year: i64 = year.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, rest)
        }
        GENERALIZED_TIME => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.parse().ok()?, rest)
        }
        _ => return None,
    };
    let mut fields = [0_i64; 5];
    if rest.len() != 10 {
        return None;
    }
    for (index, field) in fields.iter_mut().enumerate() {
        *field = rest.get(index * 2..index * 2 + 2)?.parse().ok()?;
    }
    let [month, day, hour, minute, second] = fields;
    // Days from civil, Howard Hinnant.
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_both_kinds_are_seconds_since_1970() {
        assert_eq!(time(UTC_TIME, b"700101000000Z"), Some(0));
        assert_eq!(
            time(GENERALIZED_TIME, b"20261120112233Z"),
            Some(1_795_173_753)
        );
        assert_eq!(time(UTC_TIME, b"7001010000Z"), None);
    }

    #[test]
    fn a_wildcard_stands_for_exactly_one_label() {
        assert!(matches("*.example.org", "db.example.org"));
        assert!(!matches("*.example.org", "a.db.example.org"));
        assert!(!matches("*.example.org", "example.org"));
        assert!(!matches("*.1", "10.1"));
        assert!(!matches("*", "db"));
    }

    #[test]
    fn names_of_a_real_certificate_are_found() {
        let mut params =
            rcgen::CertificateParams::new(vec!["db.example.org".to_owned(), "10.0.0.1".to_owned()])
                .unwrap();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "cn.example.org");
        let key = rcgen::KeyPair::generate().unwrap();
        let der = params.self_signed(&key).unwrap().der().to_vec();
        let read = Certificate::parse(&der).unwrap();
        assert!(read.names("db.example.org") && read.names("10.0.0.1"));
        assert!(
            !read.names("cn.example.org"),
            "other names rule the common name out"
        );
        assert_eq!(read.common_name.as_deref(), Some("cn.example.org"));
        assert!(read.not_before < read.not_after);
        assert_eq!(read.end_point(&der).map(|hash| hash.len()), Some(32));
    }
}
