//! Fuzz targets over the objects of a repository.

use neon_storage::Key;

use crate::catalog::Entry;
use crate::claim::ClaimBody;
use crate::commit::Commit;
use crate::doomed::DoomedBody;
use crate::id::CommitId;
use crate::lease::LeaseBody;
use crate::name::SnapshotName;
use crate::object::{Object, ObjectKind};
use crate::pin::PinBody;
use crate::tombstone::TombstoneBody;

fn key() -> Option<Key> {
    Key::new("fuzz/object").ok()
}

/// The envelope of every kind of object, and then its body: as it is, and with a digest that fits, as one who forges it
/// would put there.
pub fn repository_object(bytes: &[u8]) {
    let Some(key) = key() else { return };
    let digest = blake3::hash(bytes);
    let forged = [bytes, digest.as_bytes().as_slice()].concat();
    for bytes in [bytes, &forged] {
        for kind in ObjectKind::ALL {
            if let Ok(object) = Object::decode(&key, kind, bytes, None) {
                match kind {
                    ObjectKind::Commit => repository_commit(&object.body),
                    _ => repository_body(&object.body),
                }
            }
            drop(Object::decode(&key, kind, bytes, Some(&[])));
        }
    }
}

/// The bodies of objects.
pub fn repository_body(bytes: &[u8]) {
    fn json<T: for<'de> serde::Deserialize<'de> + serde::Serialize>(bytes: &[u8]) {
        if let Ok(value) = serde_json::from_slice::<T>(bytes) {
            drop(serde_json::to_vec(&value));
        }
    }
    json::<ClaimBody>(bytes);
    json::<LeaseBody>(bytes);
    json::<PinBody>(bytes);
    json::<TombstoneBody>(bytes);
    json::<DoomedBody>(bytes);
    json::<Vec<Entry>>(bytes);
    drop(crate::crypt::check_envelope(bytes));
    drop(crate::repository::check_identity(bytes));
    if let Some(key) = key()
        && let Ok(moved) = crate::moves::decode(&key, bytes)
    {
        let again = crate::moves::encode(&moved);
        assert_eq!(again, bytes, "moves are written as they are read");
    }
}

/// Commits.
pub fn repository_commit(bytes: &[u8]) {
    drop(Commit::decode_as(CommitId::of(bytes), bytes));
    if let Ok(commit) = Commit::decode(bytes) {
        drop(commit.view());
        drop(commit.encode());
    }
}

/// Names of snapshots.
pub fn snapshot_name(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(name) = text.parse::<SnapshotName>()
    {
        assert_eq!(name.to_string(), text, "a name is written as it is read");
    }
}
