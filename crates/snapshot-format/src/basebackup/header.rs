//! The header of a member of a tar archive: POSIX ustar, with the names and modes that PostgreSQL gives.

use tar::{EntryType, Header};

use crate::error::{Error, ErrorKind, Result};
use crate::stream::{Entry, EntryKind, Owner};

/// What fits the name field with its end, as the server counts.
const NAME_LIMIT: usize = 99;

/// The header of a member of an archive, as the server writes it in base backups: `name` is its name in the archive, that of a
/// directory with a slash at its end; `link` is where it leads if it is a link.
///
/// # Errors
/// [`Limit`](ErrorKind::Limit) for names that the format has no room for.
pub fn member_header(entry: &Entry, name: &[u8], link: Option<&[u8]>) -> Result<[u8; 512]> {
    let limit = |reason: &'static str| Error::new(ErrorKind::Limit, entry.path.to_string(), reason);
    let mut header = Header::new_ustar();
    let fields = header.as_old_mut();
    match fields.name.get_mut(..name.len()) {
        Some(field) if name.len() <= NAME_LIMIT => field.copy_from_slice(name),
        _ => return Err(limit("the name is too long for this format (99 bytes)")),
    }
    if let Some(link) = link {
        match fields.linkname.get_mut(..link.len()) {
            Some(field) if link.len() <= NAME_LIMIT => field.copy_from_slice(link),
            _ => {
                return Err(limit(
                    "the target of the link is too long for this format (99 bytes)",
                ));
            }
        }
    }
    header.set_entry_type(match (&entry.kind, link) {
        (_, Some(_)) => EntryType::Symlink,
        (EntryKind::File { .. }, _) => EntryType::Regular,
        _ => EntryType::Directory,
    });
    header.set_mode(entry.mode & 0o777);
    let owner = entry.owner.unwrap_or(Owner { uid: 0, gid: 0 });
    header.set_uid(owner.uid.into());
    header.set_gid(owner.gid.into());
    header.set_size(entry.size());
    header.set_mtime(u64::try_from(entry.modified).unwrap_or(0));
    let named = header
        .set_username("postgres")
        .and_then(|()| header.set_groupname("postgres"));
    named.map_err(|error| Error::io(entry.path.to_string(), "header cannot be made", error))?;
    header.set_cksum();
    Ok(*header.as_bytes())
}
