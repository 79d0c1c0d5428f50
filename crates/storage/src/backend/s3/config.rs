//! Everything that can be said about a bucket and the way to it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::credentials::S3Credentials;
use super::probe::Conditional;
use super::remembered::ProbeMemory;
use crate::locator::without_secrets;
use crate::secret::Secret;

/// Server-side encryption to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Encryption {
    /// By keys of the provider (`AES256`).
    Provider,
    /// By a key of the provider's key service (`aws:kms`), the default one if none is named.
    Kms(Option<String>),
    /// By this key of 32 bytes, in base64, sent with every request (SSE-C). Only over TLS or
    /// loopback.
    Customer(Secret),
}

/// Digests that uploads carry for the storage to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Checksum {
    /// As [`Md5`](Self::Md5) on AWS itself, as [`None`](Self::None) at any other endpoint.
    #[default]
    Automatic,
    /// None but the signature. Buckets with object lock refuse such uploads.
    None,
    /// `Content-MD5` with every object and part: what a bucket with object lock demands, and of
    /// all the kinds of S3 the one that S3-compatibles have known longest.
    Md5,
}

/// A bucket and how to reach it. Debug leaves out what an endpoint may hide.
#[derive(Clone)]
#[non_exhaustive]
pub struct S3Config {
    /// The bucket.
    pub bucket: String,
    /// The address of an S3-compatible; AWS if absent.
    pub endpoint: Option<String>,
    /// The region; `us-east-1` if absent.
    pub region: Option<String>,
    /// Whether the bucket stands in the path and not in the host name; by default exactly with an
    /// `endpoint`.
    pub path_style: Option<bool>,
    /// Who asks.
    pub credentials: S3Credentials,
    /// The class of new objects; the bucket's default if absent.
    pub storage_class: Option<String>,
    /// Server-side encryption of new objects.
    pub encryption: Option<Encryption>,
    /// Roots to trust besides the system's, in PEM.
    pub ca_certificate: Option<Vec<u8>>,
    /// Size of the first thousand parts of a multipart upload, and of the largest object that is
    /// put in one request; 8 MiB, at least 5 MiB.
    pub part_size: u64,
    /// Parts double every thousand up to this; 64 MiB. Equal to `part_size`, all parts are equal,
    /// as some providers demand.
    pub max_part_size: u64,
    /// Parts of one object in flight; 4. A put holds one part more than this in memory.
    pub upload_concurrency: usize,
    /// Whether many objects are deleted in one request; true.
    pub bulk_delete: bool,
    /// Keys per page of a listing, 1 to 1000; 1000.
    pub list_page: u16,
    /// Attempts per request for what may be transient; 4. A retry layer adds its own.
    pub attempts: u32,
    /// How long a connection may take; 5 s.
    pub connect_timeout: Duration,
    /// How long an answer may take to begin, and a body may stand still; 60 s.
    pub read_timeout: Duration,
    /// Whether conditional writes are taken on trust, tried first, or not used.
    pub conditional: Conditional,
    /// Where conditional writes are tried: keys that begin with this and a slash, or with
    /// `neon-probe-` if it is empty. The prefix, where a locator has one.
    pub probe_prefix: String,
    /// Where the program keeps what was found out by trying; each opening tries anew without.
    pub probe_memory: Option<Arc<dyn ProbeMemory>>,
    /// What uploads carry for the storage to check.
    pub checksum: Checksum,
}

impl fmt::Debug for S3Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Config")
            .field("bucket", &self.bucket)
            .field("endpoint", &self.endpoint.as_deref().map(without_secrets))
            .field("region", &self.region)
            .field("path_style", &self.path_style)
            .field("credentials", &self.credentials)
            .field("storage_class", &self.storage_class)
            .field("encryption", &self.encryption)
            .field("part_size", &self.part_size)
            .field("max_part_size", &self.max_part_size)
            .field("upload_concurrency", &self.upload_concurrency)
            .field("conditional", &self.conditional)
            .field("probe_prefix", &self.probe_prefix)
            .field("checksum", &self.checksum)
            .finish_non_exhaustive()
    }
}

impl S3Config {
    /// A bucket on AWS without credentials; everything else by default.
    pub fn new(bucket: impl Into<String>) -> Self {
        Self {
            bucket: bucket.into(),
            endpoint: None,
            region: None,
            path_style: None,
            credentials: S3Credentials::Anonymous,
            storage_class: None,
            encryption: None,
            ca_certificate: None,
            part_size: 8 << 20,
            max_part_size: 64 << 20,
            upload_concurrency: 4,
            bulk_delete: true,
            list_page: 1000,
            attempts: 4,
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(60),
            conditional: Conditional::Automatic,
            probe_prefix: String::new(),
            probe_memory: None,
            checksum: Checksum::Automatic,
        }
    }

    /// Whether it is AWS itself, by whatever name.
    pub(super) fn is_aws(&self) -> bool {
        let Some(endpoint) = &self.endpoint else {
            return true;
        };
        let url = url::Url::parse(endpoint).ok();
        let host = url.as_ref().and_then(url::Url::host_str);
        host.is_some_and(|host| {
            host.ends_with(".amazonaws.com") || host.ends_with(".amazonaws.com.cn")
        })
    }

    /// Whether uploads carry `Content-MD5`.
    pub(super) fn sends_md5(&self) -> bool {
        match self.checksum {
            Checksum::Automatic => self.is_aws(),
            Checksum::None => false,
            Checksum::Md5 => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aws_itself_gets_a_digest_with_every_upload() {
        let mut config = S3Config::new("b");
        assert!(config.sends_md5());
        for (endpoint, aws) in [
            ("https://s3.eu-west-1.amazonaws.com", true),
            ("https://s3.cn-north-1.amazonaws.com.cn", true),
            ("https://amazonaws.com.example.org", false),
            ("http://127.0.0.1:9000", false),
        ] {
            config.endpoint = Some(endpoint.to_owned());
            assert_eq!(config.sends_md5(), aws, "{endpoint}");
        }
        config.checksum = Checksum::Md5;
        assert!(config.sends_md5());
    }
}
