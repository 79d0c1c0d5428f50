//! System calls that `rustix` has no safe function for: subvolumes of btrfs, and the map of a file's extents.
//!
//! This is the one module with `unsafe`. Each call passes a structure of the layout and the request number that the
//! kernel's `linux/btrfs.h` and `linux/fiemap.h` state, to a descriptor that is open. The kernel writes only into
//! structures that are passed mutably, which are as large as it assumes: the request number carries the size for all
//! but the extent map, where the field `count` does. Every bit pattern is valid for all fields. A file system that
//! does not know a request answers with an error. That is all that soundness needs.
#![expect(unsafe_code, reason = "see above")]

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::io::{Errno, Result};
use rustix::ioctl::{Opcode, Setter, Updater, ioctl, opcode};

const BTRFS: u8 = 0x94;
const NAME_ROOM: usize = 4040;
const READ_ONLY: u64 = 1 << 1;

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct VolumeArgs {
    fd: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; NAME_ROOM],
}

const _: () = assert!(size_of::<VolumeArgs>() == 4096);

const SNAPSHOT: Opcode = opcode::write::<VolumeArgs>(BTRFS, 23);
const CREATE: Opcode = opcode::write::<VolumeArgs>(BTRFS, 24);
const GET_FLAGS: Opcode = opcode::read::<u64>(BTRFS, 25);
const SET_FLAGS: Opcode = opcode::write::<u64>(BTRFS, 26);
const DESTROY: Opcode = opcode::write::<VolumeArgs>(BTRFS, 63);
const FIEMAP: Opcode = opcode::read_write::<ExtentHeader>(b'f', 11);

/// A name without `/` and with room for the zero at its end.
fn arguments(name: &OsStr) -> Result<VolumeArgs> {
    let mut args = VolumeArgs {
        fd: 0,
        transaction: 0,
        flags: 0,
        unused: [0; 4],
        name: [0; NAME_ROOM],
    };
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() >= NAME_ROOM || bytes.contains(&0) || bytes.contains(&b'/') {
        return Err(Errno::INVAL);
    }
    for (to, from) in args.name.iter_mut().zip(bytes) {
        *to = *from;
    }
    Ok(args)
}

/// Creates an empty subvolume of this name in the directory.
pub(crate) fn create_subvolume(directory: impl AsFd, name: &OsStr) -> Result<()> {
    let args = arguments(name)?;
    // SAFETY: CREATE reads one `VolumeArgs`.
    unsafe { ioctl(directory, Setter::<CREATE, VolumeArgs>::new(args)) }
}

/// Creates a writable snapshot of the subvolume, under this name in the directory.
pub(crate) fn snapshot(subvolume: impl AsFd, directory: impl AsFd, name: &OsStr) -> Result<()> {
    use std::os::fd::AsRawFd;
    let mut args = arguments(name)?;
    let subvolume = subvolume.as_fd();
    args.fd = i64::from(subvolume.as_raw_fd());
    // SAFETY: SNAPSHOT reads one `VolumeArgs`; the descriptor in it is open until after the call.
    unsafe { ioctl(directory, Setter::<SNAPSHOT, VolumeArgs>::new(args)) }
}

/// Deletes the subvolume of this name in the directory, with all in it. It must hold no other subvolume.
pub(crate) fn destroy_subvolume(directory: impl AsFd, name: &OsStr) -> Result<()> {
    let args = arguments(name)?;
    // SAFETY: DESTROY reads one `VolumeArgs`.
    unsafe { ioctl(directory, Setter::<DESTROY, VolumeArgs>::new(args)) }
}

/// Makes a subvolume read-only or writable.
pub(crate) fn set_read_only(subvolume: impl AsFd, on: bool) -> Result<()> {
    let mut flags = 0u64;
    // SAFETY: GET_FLAGS writes one `u64`.
    unsafe { ioctl(&subvolume, Updater::<GET_FLAGS, u64>::new(&mut flags))? };
    let wanted = if on {
        flags | READ_ONLY
    } else {
        flags & !READ_ONLY
    };
    if wanted == flags {
        return Ok(());
    }
    // SAFETY: SET_FLAGS reads one `u64`.
    unsafe { ioctl(&subvolume, Setter::<SET_FLAGS, u64>::new(wanted)) }
}

/// Extents asked for at once.
const BATCH: usize = 128;
const SYNC: u32 = 1;
const LAST: u32 = 1;
const UNWRITTEN: u32 = 0x800;
const SHARED: u32 = 0x2000;

/// `struct fiemap` without the extents at its end.
#[repr(C)]
#[derive(Clone, Copy)]
struct ExtentHeader {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy)]
struct RawExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

const _: () = assert!(size_of::<ExtentHeader>() == 32 && size_of::<RawExtent>() == 56);

#[repr(C)]
struct ExtentBatch {
    header: ExtentHeader,
    extents: [RawExtent; BATCH],
}

/// One extent of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) length: u64,
    /// Its blocks belong to another file too, or to another place of this one.
    pub(crate) shared: bool,
    /// Reserved and never written.
    pub(crate) unwritten: bool,
}

/// Calls `each` for every extent of the file, in order. What was not yet given a place on disk is written first.
pub(crate) fn each_extent(file: impl AsFd, mut each: impl FnMut(Extent)) -> Result<()> {
    let empty = RawExtent {
        logical: 0,
        physical: 0,
        length: 0,
        reserved64: [0; 2],
        flags: 0,
        reserved: [0; 3],
    };
    let mut start = 0;
    loop {
        let mut batch = ExtentBatch {
            header: ExtentHeader {
                start,
                length: u64::MAX - start,
                flags: SYNC,
                mapped: 0,
                count: u32::try_from(BATCH).unwrap_or(0),
                reserved: 0,
            },
            extents: [empty; BATCH],
        };
        // SAFETY: FIEMAP reads and writes the header, and writes at most `count` extents behind it, which are there.
        unsafe { ioctl(&file, Updater::<FIEMAP, ExtentBatch>::new(&mut batch))? };
        let mapped = usize::try_from(batch.header.mapped).unwrap_or(BATCH);
        let found = batch.extents.get(..mapped).unwrap_or(&batch.extents);
        for one in found {
            each(Extent {
                length: one.length,
                shared: one.flags & SHARED != 0,
                unwritten: one.flags & UNWRITTEN != 0,
            });
        }
        match found.last() {
            Some(last) if last.flags & LAST == 0 => {
                let next = last.logical.saturating_add(last.length);
                if next <= start {
                    return Err(Errno::IO);
                }
                start = next;
            }
            _ => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As printed by the kernel's own headers.
    #[test]
    fn requests_have_the_numbers_of_the_kernel() {
        assert_eq!(SNAPSHOT, 0x5000_9417);
        assert_eq!(CREATE, 0x5000_9418);
        assert_eq!(DESTROY, 0x5000_943f);
        assert_eq!(GET_FLAGS, 0x8008_9419);
        assert_eq!(SET_FLAGS, 0x4008_941a);
        assert_eq!(FIEMAP, 0xc020_660b);
    }

    #[test]
    fn a_name_that_is_none_is_refused_before_the_kernel_sees_it() {
        for bad in ["", "a/b", "a\0b", &"x".repeat(NAME_ROOM)] {
            assert!(arguments(OsStr::new(bad)).is_err(), "{bad}");
        }
        assert!(arguments(OsStr::new("name")).is_ok());
    }
}
