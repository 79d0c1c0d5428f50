//! Under which keys the objects of a repository are stored.
//!
//! No key shows a name or a path: names appear as keyed hashes.

use neon_snapshot_format::pack::PackId;
use neon_storage::Key;

use crate::commit_object::CommitObject;
use crate::error::{Error, Result};
use crate::id::{CommitId, WriterId, from_hex};

pub(crate) const REPOSITORY: &str = "neon.json";
pub(crate) const KEYS: &str = "keys/";
pub(crate) const PACKS: &str = "packs/";
pub(crate) const MOVES: &str = "moves/";
pub(crate) const SNAPSHOTS: &str = "snapshots/";
pub(crate) const NAMES: &str = "names/";
pub(crate) const CATALOG: &str = "catalog/";
pub(crate) const LEASES: &str = "leases/";
pub(crate) const PINS: &str = "pins/";
pub(crate) const TOMBSTONES: &str = "tombstones/";
pub(crate) const DOOMED: &str = "doomed/";

/// The keyed hash of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NameHash(pub(crate) [u8; 32]);

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from_digit(digit.into(), 16).unwrap_or('0'));
            }
            text
        })
}

fn key(text: String) -> Result<Key> {
    Key::new(text)
        .map_err(|error| Error::malformed("key of an object", "is not a key").caused_by(error))
}

macro_rules! described {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*) $format:expr;)*) => {$(
        $(#[$doc])*
        pub(crate) fn $name($($arg: $type),*) -> Result<Key> {
            key($format)
        }
    )*};
}

described! {
    repository() REPOSITORY.to_owned();
    envelope(id: [u8; 16]) format!("{KEYS}{}", hex(&id));
    removal(id: [u8; 16], removal: [u8; 16]) format!("{KEYS}removing-{}-{}", hex(&id), hex(&removal));
    epoch(number: u32) format!("{KEYS}epoch-{number:08x}");
    pack(id: PackId) format!("{PACKS}{:02x}/{id}", id.0.first().copied().unwrap_or_default());
    moves(old: PackId, new: PackId) format!("{MOVES}{old}/{new}");
    commit(object: CommitObject) format!("{SNAPSHOTS}{object}");
    claim(name: NameHash, generation: u32) format!("{NAMES}{}/{generation:08x}", hex(&name.0));
    declined(name: NameHash, id: CommitId) format!("{NAMES}{}/declined-{id}", hex(&name.0));
    catalog(id: [u8; 16]) format!("{CATALOG}{}", hex(&id));
    lease(writer: WriterId, sequence: u32) format!("{LEASES}{writer}/{sequence:08x}");
    pin(id: [u8; 16]) format!("{PINS}{}", hex(&id));
    tombstone(object: CommitObject) format!("{TOMBSTONES}{object}");
    suspicion(writer: WriterId) format!("{TOMBSTONES}writer-{writer}");
    condemnation(writer: WriterId) format!("{TOMBSTONES}condemned-{writer}");
    doomed(id: [u8; 16]) format!("{DOOMED}{}", hex(&id));
}

/// Whether a key has the exact shape of what a repository stores in bulk, packs and snapshots: what may be uploaded in
/// parts. Everything else at the same place is somebody else's, or small.
#[must_use]
pub fn is_bulk(key: &Key) -> bool {
    pack_of(key).is_some() || commit_of(key).is_some()
}

/// Whether this is where key envelopes are, and not what is noted beside them.
pub(crate) fn is_envelope(key: &Key) -> bool {
    let name = key.as_str().strip_prefix(KEYS);
    name.is_some_and(|name| !name.starts_with("epoch-") && !name.starts_with("removing-"))
}

/// The folder of a name's claims.
pub(crate) fn claims_of(name: NameHash) -> String {
    format!("{NAMES}{}/", hex(&name.0))
}

/// The folder of a pack's moves.
pub(crate) fn moves_of(old: PackId) -> String {
    format!("{MOVES}{old}/")
}

pub(crate) fn commit_of(key: &Key) -> Option<CommitObject> {
    key.as_str().strip_prefix(SNAPSHOTS)?.parse().ok()
}

pub(crate) fn pack_of(key: &Key) -> Option<PackId> {
    let (folder, id) = key.as_str().strip_prefix(PACKS)?.split_once('/')?;
    id.starts_with(folder)
        .then(|| from_hex(id))
        .flatten()
        .map(PackId)
}
