//! Objects as files below a directory of this machine.
//!
//! Protocol of a put, safe with several processes and against loss of power:
//!
//! 1. write a temporary below `.neon-storage/tmp`, locked by its writer as long as it lives;
//! 2. fsync it;
//! 3. make the directories of the key, each synced into its parent before it is relied on;
//! 4. create-only: link the temporary to its name, which fails if the name is taken; overwrite:
//!    rename it onto its name; under a version: the same, with every other overwrite and delete
//!    locked out while the version is compared;
//! 5. fsync the directory, remove the temporary.
//!
//! After a failed fsync the kernel may have dropped dirty pages and report success next time, so
//! the handle refuses all further writes. Reads go on. A failure to open a directory is none of
//! fsync and refuses nothing.

mod beneath;
mod commit;
mod dirs;
mod disk;
mod list;
mod read;
mod storage;
mod temp;
mod version;

pub use disk::{Disk, Place, RealDisk};
#[cfg(feature = "ssh")]
pub(crate) use list::{Smallest, wanted};
pub use storage::{Native, NativeOptions};
