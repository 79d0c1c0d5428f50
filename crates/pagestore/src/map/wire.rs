//! Numbers and paths as they stand in the frames of a map.

use bytes::{Buf, BufMut};
use neon_snapshot_format::SnapshotPath;

use crate::error::{Error, Result};
use crate::map::machine::malformed;

/// Appends seven bits a byte, the lowest first; the highest bit says that another byte follows.
pub(crate) fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        let [low, ..] = value.to_le_bytes();
        out.put_u8(low | 0x80);
        value >>= 7;
    }
    let [low, ..] = value.to_le_bytes();
    out.put_u8(low);
}

pub(crate) fn get_varint(from: &mut &[u8]) -> Result<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = from.try_get_u8().map_err(cut)?;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            break;
        }
        value |= bits << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(malformed("a number is too large"))
}

/// A number that must fit its type.
pub(crate) fn get_number<T: TryFrom<u64>>(from: &mut &[u8]) -> Result<T> {
    T::try_from(get_varint(from)?).map_err(|_| malformed("a number is too large"))
}

/// A count of items of which each takes at least so many bytes of what follows.
pub(crate) fn get_count(from: &mut &[u8], least: usize) -> Result<usize> {
    let count: usize = get_number(from)?;
    if count
        .checked_mul(least)
        .is_none_or(|size| size > from.len())
    {
        return Err(malformed("more is announced than follows"));
    }
    Ok(count)
}

pub(crate) fn get_bytes<'a>(from: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    let (bytes, rest) = from
        .split_at_checked(length)
        .ok_or_else(|| malformed("is cut off"))?;
    *from = rest;
    Ok(bytes)
}

pub(crate) fn cut(error: bytes::TryGetError) -> Error {
    malformed("is cut off").caused_by(error)
}

/// Appends a path as what it has in common with the one before and the rest.
pub(crate) fn put_path(out: &mut Vec<u8>, before: &[u8], path: &[u8]) {
    let common = before.iter().zip(path).take_while(|(a, b)| a == b).count();
    let rest = path.get(common..).unwrap_or_default();
    put_varint(out, common as u64);
    put_varint(out, rest.len() as u64);
    out.extend_from_slice(rest);
}

pub(crate) fn get_path(from: &mut &[u8], before: &[u8]) -> Result<SnapshotPath> {
    let common: usize = get_number(from)?;
    let rest: usize = get_number(from)?;
    let start = before
        .get(..common)
        .ok_or_else(|| malformed("a path continues one that is shorter"))?;
    let path = [start, get_bytes(from, rest)?].concat();
    SnapshotPath::new(path).map_err(|error| Error::format("page map", error))
}
