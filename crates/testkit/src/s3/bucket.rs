//! What the server keeps: objects and unfinished uploads, and the rules of conditional writes.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use s3s::dto::{ETag, ETagCondition, Metadata, StorageClass};
use s3s::{S3Result, s3_error};

use super::content::{Content, hex};

/// How faithfully conditions on writes are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conditions {
    /// Checked and written in one step, as S3 promises.
    #[default]
    Atomic,
    /// Not looked at, as older S3-compatibles do.
    Ignored,
    /// Refused as not implemented.
    Refused,
    /// Looked at first and written so much later: two clients can both win.
    Racy(Duration),
}

/// What becomes of an object that is deleted or written over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retention {
    /// It is gone.
    #[default]
    None,
    /// It stays as an older version behind a marker or its successor, as in a bucket with versioning. Object lock
    /// refuses only to delete a version by its number, which no storage of ours asks for.
    Versions,
    /// It stays what it is, and both are refused: what a policy of the bucket may say, and some providers' locks.
    Refused,
}

/// What became of one key of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Versions {
    /// How often an object was stored under it.
    pub stored: u64,
    /// How often an object that was there was deleted.
    pub deleted: u64,
    /// How often a change of an object that was there was refused.
    pub refused: u64,
}

/// An object as it is kept.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) content: Content,
    pub(super) etag: String,
    pub(super) modified: SystemTime,
    pub(super) metadata: Option<Metadata>,
    pub(super) storage_class: Option<StorageClass>,
    pub(super) sse: Option<String>,
}

/// An upload that was neither completed nor aborted.
#[derive(Debug, Clone)]
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) began: SystemTime,
    pub(super) metadata: Option<Metadata>,
    pub(super) storage_class: Option<StorageClass>,
    pub(super) sse: Option<String>,
    pub(super) parts: BTreeMap<i32, (Content, [u8; 16])>,
}

/// One bucket.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    pub(super) objects: BTreeMap<String, Object>,
    pub(super) uploads: HashMap<String, Upload>,
    pub(super) versions: BTreeMap<String, Versions>,
}

/// What a test may know about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredObject {
    /// Its key.
    pub key: String,
    /// Its length.
    pub size: u64,
    /// The storage class that was asked for.
    pub storage_class: Option<String>,
    /// The server-side encryption that was asked for.
    pub encryption: Option<String>,
    /// The sizes of the parts it was uploaded in; one if it was put at once.
    pub parts: Vec<u64>,
}

/// What a test may know about an unfinished upload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingUpload {
    /// The key it is for.
    pub key: String,
    /// How many parts have arrived.
    pub parts: usize,
}

impl Bucket {
    fn changed(&mut self, key: &str) -> &mut Versions {
        self.versions.entry(key.to_owned()).or_default()
    }

    fn refuses(&mut self, retention: Retention, key: &str) -> bool {
        let refused = retention == Retention::Refused && self.objects.contains_key(key);
        if refused {
            self.changed(key).refused += 1;
        }
        refused
    }

    /// Stores an object, if what is there lets it.
    pub(super) fn store(
        &mut self,
        retention: Retention,
        key: &str,
        object: Object,
    ) -> S3Result<()> {
        if self.refuses(retention, key) {
            return Err(s3_error!(AccessDenied));
        }
        self.changed(key).stored += 1;
        self.objects.insert(key.to_owned(), object);
        Ok(())
    }

    /// Deletes an object, if that is allowed. One that is not there is deleted.
    pub(super) fn delete(&mut self, retention: Retention, key: &str) -> S3Result<()> {
        if self.refuses(retention, key) {
            return Err(s3_error!(AccessDenied));
        }
        if self.objects.remove(key).is_some() {
            self.changed(key).deleted += 1;
        }
        Ok(())
    }

    /// Whether a write may go ahead.
    pub(super) fn admits(
        &self,
        key: &str,
        if_match: Option<&ETagCondition>,
        if_none_match: Option<&ETagCondition>,
    ) -> S3Result<()> {
        let present = self.objects.get(key);
        if let Some(condition) = if_none_match {
            let hit = match (condition, present) {
                (_, None) => false,
                (ETagCondition::Any, Some(_)) => true,
                (ETagCondition::ETag(etag), Some(object)) => etag.value() == object.etag,
            };
            if hit {
                return Err(s3_error!(PreconditionFailed));
            }
        }
        if let Some(condition) = if_match {
            match (condition, present) {
                // As S3 does: nothing there is reported as such.
                (_, None) => return Err(s3_error!(NoSuchKey)),
                (ETagCondition::Any, Some(_)) => {}
                (ETagCondition::ETag(etag), Some(object)) if etag.value() == object.etag => {}
                _ => return Err(s3_error!(PreconditionFailed)),
            }
        }
        Ok(())
    }

    /// What an upload becomes when it is completed with these parts.
    pub(super) fn assemble(
        &self,
        id: &str,
        wanted: &[(i32, Option<ETag>)],
        modified: SystemTime,
    ) -> S3Result<Object> {
        let upload = self
            .uploads
            .get(id)
            .ok_or_else(|| s3_error!(NoSuchUpload))?;
        let (mut parts, mut digests) = (Vec::new(), Vec::new());
        let mut last = 0;
        for (index, (number, etag)) in wanted.iter().enumerate() {
            if *number <= last {
                return Err(s3_error!(InvalidPartOrder));
            }
            last = *number;
            let (content, digest) = upload
                .parts
                .get(number)
                .ok_or_else(|| s3_error!(InvalidPart))?;
            if etag
                .as_ref()
                .is_some_and(|etag| etag.value() != hex(digest))
            {
                return Err(s3_error!(InvalidPart));
            }
            if index + 1 < wanted.len() && content.len() < 5 * 1024 * 1024 {
                return Err(s3_error!(EntityTooSmall));
            }
            digests.extend_from_slice(digest);
            parts.push(content.clone());
        }
        if parts.is_empty() {
            return Err(s3_error!(InvalidPart));
        }
        let digest = <s3s::crypto::Md5 as s3s::crypto::Checksum>::checksum(&digests);
        Ok(Object {
            etag: format!("{}-{}", hex(&digest), parts.len()),
            content: Content::Parts(parts),
            modified,
            metadata: upload.metadata.clone(),
            storage_class: upload.storage_class.clone(),
            sse: upload.sse.clone(),
        })
    }
}
