//! A copy of a running cluster over the replication protocol (`BASE_BACKUP`), unpacked as it comes.
//!
//! Nothing is written but below the folders given, and no file that is there is opened: what a server sends is not
//! trusted with our files.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use neon_pg_layout::PgMajor;
use neon_pgwire::{
    ArchiveItem, ArchiveMember, ArchiveReader, BackupEvent, BaseBackupOptions, Checkpoint, Client,
    Config, ManifestOption, MemberKind, Replication, SlotName,
};

use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::os_user::OsUser;
use crate::session;

/// Where a copy goes.
#[derive(Debug)]
pub(crate) struct Places<'a> {
    /// The new data directory; its parent belongs to us alone as long as the copy is made.
    pub(crate) data: &'a Path,
    /// Where tablespaces are put, each in a folder named by its number.
    pub(crate) spaces: &'a Path,
    /// What links call that folder: it may be moved afterwards.
    pub(crate) spaces_later: &'a Path,
    /// Who owns everything.
    pub(crate) user: &'a OsUser,
}

/// Copies a cluster with the WAL that the copy needs, and gives the paths of everything that was written.
///
/// A temporary slot keeps that WAL meanwhile. Dropping the future closes the connection, with which the slot
/// and the backup end; what was written stays.
pub(crate) async fn fetch(
    config: &Config,
    major: PgMajor,
    places: &Places<'_>,
) -> Result<Vec<PathBuf>> {
    let config = config.clone().with_replication(Replication::Physical);
    let mut client = Client::connect(&config).await.map_err(session::failed)?;
    let theirs = client.major().map_err(session::failed)?;
    if theirs != major {
        return Err(Error::new(
            ErrorKind::WrongMajor,
            "the upstream",
            format!("is PostgreSQL {theirs}, the installation is {major}"),
        )
        .with_hint(format!("use an installation of PostgreSQL {theirs}")));
    }
    let name = format!("neon_copy_{}", durable::random_hex(6)?);
    let slot: SlotName = name.parse().map_err(session::failed)?;
    if let Err(error) = client.create_physical_slot(&slot, true, true).await {
        // 53400: all of them are taken.
        return Err(match error.sqlstate() {
            Some("53400") => Error::new(
                ErrorKind::Slot,
                "the upstream",
                "has no replication slot left to keep WAL for the copy",
            )
            .with_hint("raise max_replication_slots (needs a restart), or drop a slot nobody uses")
            .with_source(error),
            _ => session::failed(error),
        });
    }
    let mut options = BaseBackupOptions::default();
    options.label = "neon standby".to_owned();
    options.checkpoint = Checkpoint::Fast;
    options.wal = true;
    options.wait = false;
    options.manifest = ManifestOption::No;
    let mut backup = client
        .base_backup(&options)
        .await
        .map_err(session::failed)?;

    let mut written = vec![places.data.to_owned()];
    folder(places.data, 0o700, places.user).map_err(cannot(places.data))?;
    let mut archive: Option<Unpacker<'_>> = None;
    while let Some(event) = backup.next().await.map_err(session::failed)? {
        match event {
            BackupEvent::Archive(next) => {
                finish(archive.take(), &mut written)?;
                let root = match (next.oid, next.location.as_deref()) {
                    (None, _) => places.data.to_owned(),
                    (Some(oid), Some(place)) if place.starts_with('/') => {
                        let space = places.spaces.join(oid.to_string());
                        for path in [places.spaces, &space] {
                            folder(path, 0o700, places.user).map_err(cannot(path))?;
                        }
                        space
                    }
                    // In place, within the data directory.
                    (Some(oid), _) => {
                        let space = places.data.join("pg_tblspc").join(oid.to_string());
                        for path in [&places.data.join("pg_tblspc"), &space] {
                            folder(path, 0o700, places.user).map_err(cannot(path))?;
                        }
                        space
                    }
                };
                written.push(root.clone());
                archive = Some(Unpacker::new(root, places));
            }
            BackupEvent::Data(bytes) => {
                if let Some(archive) = &mut archive {
                    let pushed = archive.push(&bytes);
                    pushed.map_err(cannot(&archive.root))?;
                }
            }
            _ => {}
        }
    }
    finish(archive, &mut written)?;
    let (_, client) = backup.finish().map_err(session::failed)?;
    client.close().await;
    Ok(written)
}

fn finish(archive: Option<Unpacker<'_>>, written: &mut Vec<PathBuf>) -> Result<()> {
    let Some(archive) = archive else {
        return Ok(());
    };
    archive.reader.finish().map_err(cannot(&archive.root))?;
    written.extend(archive.written);
    Ok(())
}

fn cannot(path: &Path) -> impl Fn(io::Error) -> Error + '_ {
    move |error| match error.kind() {
        io::ErrorKind::StorageFull => {
            Error::path(ErrorKind::DiskFull, path, "has no room for the copy").with_source(error)
        }
        _ => Error::io(path, "cannot be copied into", error),
    }
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

/// Creates a folder of this owner, unless there is one: the server names some twice.
fn folder(path: &Path, mode: u32, user: &OsUser) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    }
    let folder = durable::open_new_dir(path)?;
    folder.set_permissions(Permissions::from_mode(mode))?;
    user.own(&folder)
}

/// One archive that is being unpacked.
#[derive(Debug)]
struct Unpacker<'a> {
    root: PathBuf,
    places: &'a Places<'a>,
    written: Vec<PathBuf>,
    reader: ArchiveReader,
    file: Option<File>,
}

impl<'a> Unpacker<'a> {
    fn new(root: PathBuf, places: &'a Places<'a>) -> Self {
        Self {
            root,
            places,
            written: Vec::new(),
            reader: ArchiveReader::new(),
            file: None,
        }
    }

    /// Takes the next bytes of the archive, however they are cut.
    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Self {
            root,
            places,
            written,
            reader,
            file,
        } = self;
        reader.push(bytes, |item| match (item, &mut *file) {
            (ArchiveItem::Data(bytes), Some(file)) => file.write_all(bytes),
            (ArchiveItem::Data(_), None) => Err(invalid("data without a file")),
            (ArchiveItem::Member(member), _) => {
                *file = begin(root, places, written, member)?;
                Ok(())
            }
        })
    }
}

/// Makes a member; gives the file that data will follow for.
fn begin(
    root: &Path,
    places: &Places<'_>,
    written: &mut Vec<PathBuf>,
    member: ArchiveMember,
) -> io::Result<Option<File>> {
    let path = root.join(&member.path);
    let user = places.user;
    match member.kind {
        MemberKind::File { .. } => {
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)?;
            file.set_permissions(Permissions::from_mode(member.mode))?;
            user.own(&file)?;
            written.push(path);
            Ok(Some(file))
        }
        MemberKind::Directory => {
            folder(&path, member.mode, user)?;
            written.push(path);
            Ok(None)
        }
        MemberKind::Link { .. } => {
            let oid = member
                .path
                .strip_prefix("pg_tblspc")
                .ok()
                .and_then(Path::to_str)
                .and_then(|name| name.parse::<u32>().ok());
            let oid = oid.ok_or_else(|| {
                invalid(format!("{:?} is a link that is no tablespace", member.path))
            })?;
            let place = places.spaces_later.join(oid.to_string());
            std::os::unix::fs::symlink(place, &path)?;
            user.own_link(&path)?;
            Ok(None)
        }
    }
}

/// Makes everything that was written durable.
pub(crate) fn sync(written: &[PathBuf]) -> Result<()> {
    for path in written.iter().rev() {
        let sync = || File::open(path)?.sync_all();
        sync().map_err(|error| Error::io(path, "cannot be made durable", error))?;
    }
    Ok(())
}

/// Whether a file is there.
pub(crate) fn has(folder: &Path, name: &str) -> bool {
    fs::symlink_metadata(folder.join(name)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 512;

    fn member(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; BLOCK];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[100..107].copy_from_slice(b"0000600");
        let size = format!("{:011o}", content.len());
        bytes[124..135].copy_from_slice(size.as_bytes());
        bytes[156] = kind;
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    fn unpack(root: &Path, members: &[Vec<u8>], cut: usize) -> io::Result<()> {
        let user = OsUser::current();
        let places = Places {
            data: root,
            spaces: &root.join("spaces"),
            spaces_later: Path::new("/later"),
            user: &user,
        };
        let mut unpacker = Unpacker::new(root.to_owned(), &places);
        for chunk in members.concat().chunks(cut) {
            unpacker.push(chunk)?;
        }
        finish(Some(unpacker), &mut Vec::new()).map_err(|error| invalid(error.to_string()))
    }

    #[test]
    fn an_archive_is_unpacked_however_it_is_cut_and_links_lead_to_the_new_places() {
        for cut in [1, 511, 512, 513, 100_000] {
            let scratch = tempfile::tempdir().unwrap();
            let root = scratch.path();
            let members = [
                member("./base", b'5', b""),
                member("base/empty", b'0', b""),
                member("base/file", b'0', &[7; 700]),
                member("pg_tblspc", b'5', b""),
                member("pg_tblspc/16385", b'2', b""),
                vec![0; 2 * BLOCK],
            ];
            unpack(root, &members, cut).unwrap();
            assert_eq!(fs::read(root.join("base/file")).unwrap(), [7; 700]);
            assert_eq!(fs::read(root.join("base/empty")).unwrap(), b"");
            let link = fs::read_link(root.join("pg_tblspc/16385")).unwrap();
            assert_eq!(link, Path::new("/later/16385"));
        }
    }

    #[test]
    fn names_that_lead_elsewhere_and_archives_that_break_off_are_refused() {
        let whole = member("file", b'0', &[7; 700]);
        let space = member("pg_tblspc", b'5', b"");
        let link = member("pg_tblspc/1", b'2', b"");
        for members in [
            vec![member("../file", b'0', b"x")],
            vec![member("/etc/file", b'0', b"x")],
            vec![member("base", b'2', b"")],
            vec![member("device", b'3', b"")],
            vec![space, link, member("pg_tblspc/1/file", b'0', b"x")],
            vec![whole.clone(), whole.clone()],
            vec![whole[..600].to_vec()],
        ] {
            let scratch = tempfile::tempdir().unwrap();
            let error = unpack(scratch.path(), &members, 100).unwrap_err();
            let kinds = [io::ErrorKind::InvalidData, io::ErrorKind::AlreadyExists];
            assert!(kinds.contains(&error.kind()), "{error:?}");
        }
    }
}
