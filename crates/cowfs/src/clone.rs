//! Cloning a tree: list, choose, make, flush, and only then give it its name.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, fstat, fstatvfs, symlinkat, syncfs};

use crate::error::{Error, ErrorKind, Result};
use crate::fill::{check_folders, finish, own_link};
use crate::method::{Choice, Method, NotUsed, Reason, Wanted};
use crate::options::{CloneOptions, Event, Watch};
use crate::probe::{Probe, assess};
use crate::rung::{self, Filled, Job};
use crate::scan::{Part, Tree, scan};
use crate::temporary::Temporary;
use crate::{ioctl, remove};

/// A clone that is there and durable.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Cloned {
    /// How the clone was made; where its parts were made differently, the least of them.
    pub method: Method,
    /// For the part with that method: why none of the better ones.
    pub not_used: Vec<NotUsed>,
    /// Each part with a directory of its own, the data directory first.
    pub parts: Vec<ClonedPart>,
    /// Regular files.
    pub files: u64,
    /// Their sizes together.
    pub bytes: u64,
    /// As many of these bytes share their blocks with the source.
    pub shared_bytes: u64,
    /// Files that had more than one name. A snapshot keeps names inside one part together; otherwise each name has
    /// become a file of its own.
    pub hard_links: u64,
    /// Sockets, which were left out; relative to the data directory.
    pub sockets: Vec<PathBuf>,
}

/// A part of a clone.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClonedPart {
    /// Which.
    pub part: Part,
    /// Where it comes from.
    pub source: PathBuf,
    /// Where it is.
    pub place: PathBuf,
    /// How it was made.
    pub method: Method,
    /// Why none of the better methods.
    pub not_used: Vec<NotUsed>,
    /// Whether it is a subvolume that was made read-only.
    pub read_only: bool,
}

impl fmt::Display for Cloned {
    /// The method, and why not a better one, in a line for people.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.method)?;
        let mut separator = " (";
        for one in &self.not_used {
            write!(f, "{separator}no {one}")?;
            separator = "; ";
        }
        if separator == "; " {
            f.write_str(")")?;
        }
        Ok(())
    }
}

/// Clones a data directory.
///
/// `source` is a stopped PostgreSQL data directory, or a tree that nobody writes to. That it stays as it is until this
/// returns is the caller's duty: a file or folder whose size or time changes meanwhile is found and is an error,
/// which catches a running server but proves nothing. (A snapshot of a subvolume is of one moment even so.) Of the
/// links in it, `pg_wal` and those of tablespaces are followed and made anew; see [`CloneOptions`]. Never
/// cloned are `postmaster.pid`, `postmaster.opts` and sockets.
///
/// Kept are modes, times of change, holes, as root owners, and on btrfs the mark against copy-on-write. Not kept are times
/// of access, extended attributes and access lists.
///
/// The clone appears at `target`, where nothing may stand, as a whole or not at all. Every part is made under a
/// temporary name beside its place; all file systems concerned are flushed (`syncfs`); then the parts get their names,
/// the data directory last, and the folders with those names are flushed. So what is there is durable. An error
/// leaves nothing; a killed process leaves temporary names that [`sweep`](crate::sweep) removes and, if it was killed
/// between the names, tablespaces without a data directory.
///
/// # Errors
/// - [`Unsupported`](ErrorKind::Unsupported) when the wanted method, or every one that shares blocks, does not
///   work for some part; [`Error::not_used`] says why;
/// - [`NotFound`](ErrorKind::NotFound), [`Exists`](ErrorKind::Exists) for source and places;
/// - [`Invalid`](ErrorKind::Invalid) when a tablespace has no place, or a place lies in the source;
/// - [`Unsafe`](ErrorKind::Unsafe) for other links, devices and pipes;
/// - [`Changed`](ErrorKind::Changed), [`Cancelled`](ErrorKind::Cancelled), [`DiskFull`](ErrorKind::DiskFull),
///   which is looked at before a copy begins, [`Permissions`](ErrorKind::Permissions), [`Io`](ErrorKind::Io).
pub fn clone_tree(source: &Path, target: &Path, options: &CloneOptions) -> Result<Cloned> {
    let watch = Watch::new(options);
    let trees = scan(source, options, &watch)?;
    watch.tell(&Event::Listed {
        files: trees.iter().map(|tree| tree.files.len() as u64).sum(),
        bytes: trees.iter().map(|tree| tree.bytes).sum(),
    });
    let mut parts = Vec::new();
    for tree in &trees {
        parts.push(Planned::new(tree, target, options)?);
    }
    check_places(&parts, &trees)?;
    check_room(&parts)?;
    let mut made: Vec<(Planned<'_>, Filled)> = Vec::new();
    for mut part in parts {
        let inside = (part.place == Place::Inside)
            .then(|| made.first().map(|(_, data)| &data.fd))
            .flatten();
        let filled = part.make(inside, options, &watch)?;
        made.push((part, filled));
    }
    complete(&made, options)?;
    watch.check()?;
    watch.tell(&Event::Flushing);
    let read_only = seal(&made, options)?;
    publish(&mut made)?;
    for (_, filled) in &made {
        // Explicitly: a process that was just forked may hold the descriptors for a moment longer.
        flock(&filled.fd, FlockOperation::Unlock).ok();
    }
    Ok(report(&made, &read_only, target))
}

/// Where a part goes.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Own(PathBuf),
    /// The log, into the data directory.
    Inside,
}

#[derive(Debug)]
struct Planned<'a> {
    tree: &'a Tree,
    place: Place,
    temporary: Option<Temporary>,
    probe: Probe,
    choice: Choice,
    wanted: Wanted,
}

impl<'a> Planned<'a> {
    fn new(tree: &'a Tree, target: &Path, options: &CloneOptions) -> Result<Self> {
        let place = match (tree.part, &options.wal_directory) {
            (Part::Data, _) => Place::Own(target.to_owned()),
            (Part::Wal, Some(path)) => Place::Own(path.clone()),
            (Part::Wal, None) => Place::Inside,
            (Part::Tablespace(oid), _) => Place::Own(options.place_of(oid).ok_or_else(|| {
                let reason = format!("tablespace {oid} must be given a place for its clone");
                Error::new(ErrorKind::Invalid, &tree.path, reason)
            })?),
        };
        let beside = match &place {
            Place::Own(path) => {
                // The links to them are read by the server, wherever it stands.
                if tree.part != Part::Data && !path.is_absolute() {
                    let reason = format!("the place of the {} must be absolute", tree.part);
                    return Err(Error::new(ErrorKind::Invalid, path, reason));
                }
                if path.symlink_metadata().is_ok() {
                    let reason = "something is there already, where a clone should be";
                    return Err(Error::new(ErrorKind::Exists, path, reason));
                }
                path
            }
            Place::Inside => target,
        };
        let temporary = Temporary::beside(beside)?;
        let nested = tree.nested.as_deref();
        let mut probe = assess(&tree.fd, nested, &tree.samples, &temporary.parent);
        if place == Place::Inside {
            probe = probe.without(Method::Subvolume, Reason::PlacedInside);
        }
        let wanted = options.wanted;
        let choice = choose(&probe, wanted, tree)?;
        Ok(Self {
            tree,
            temporary: Some(temporary),
            place,
            probe,
            choice,
            wanted,
        })
    }

    /// Makes the part, by the next method when one that should work is refused.
    fn make(
        &mut self,
        inside: Option<&OwnedFd>,
        options: &CloneOptions,
        watch: &Watch<'_>,
    ) -> Result<Filled> {
        let own = inside.is_none();
        if !own {
            self.temporary = None;
        }
        loop {
            let (method, part) = (self.choice.method, self.tree.part);
            watch.tell(&Event::Using { part, method });
            let counted = watch.counted();
            let (parent, name) = match (inside, &self.temporary) {
                (Some(data), _) => (data, OsStr::new("pg_wal")),
                (None, Some(temporary)) => (&temporary.parent, temporary.name.as_os_str()),
                (None, None) => {
                    return Err(Error::new(ErrorKind::Io, &self.tree.path, "has no place"));
                }
            };
            let job = Job {
                tree: self.tree,
                parent,
                name,
                own,
                options,
                watch,
            };
            let error = match rung::of(method).make(&job) {
                Ok(filled) => return Ok(filled),
                Err(error) => error,
            };
            if error.kind() != ErrorKind::Unsupported {
                return Err(error);
            }
            match remove::remove_at(parent, name, Path::new("")) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => watch.back_to(counted),
            }
            let reason = Reason::Refused(error.to_string());
            self.probe = self.probe.clone().without(method, reason.clone());
            self.choice = choose(&self.probe, self.wanted, self.tree)?;
            let not_used = NotUsed { method, reason };
            watch.tell(&Event::Refused { part, not_used });
        }
    }
}

fn choose(probe: &Probe, wanted: Wanted, tree: &Tree) -> Result<Choice> {
    probe.choose(wanted).map_err(|not_used| {
        let mut reason = match wanted {
            Wanted::Only(method) => format!("the {} cannot be cloned by {method}", tree.part),
            _ => format!("the {} cannot be cloned by sharing blocks", tree.part),
        };
        for one in &not_used {
            reason.push_str(&format!("; {one}"));
        }
        Error::new(ErrorKind::Unsupported, &tree.path, reason).with_not_used(not_used)
    })
}

/// No two parts at one place, and none inside what is cloned.
fn check_places(parts: &[Planned<'_>], trees: &[Tree]) -> Result<()> {
    let mut places = Vec::new();
    for part in parts {
        let Place::Own(path) = &part.place else {
            continue;
        };
        let (parent, name) = crate::temporary::split(path)?;
        let failed = |error| Error::io(&parent, "cannot be resolved", error);
        let real = parent.canonicalize().map_err(failed)?.join(name);
        if places.contains(&real) {
            let reason = "is the place of two parts of the clone";
            return Err(Error::new(ErrorKind::Invalid, path, reason));
        }
        for tree in trees {
            let source = tree
                .path
                .canonicalize()
                .map_err(|error| Error::io(&tree.path, "cannot be resolved", error))?;
            if real.starts_with(&source) {
                let reason = "lies inside what is to be cloned";
                return Err(Error::new(ErrorKind::Invalid, path, reason));
            }
        }
        places.push(real);
    }
    Ok(())
}

/// That copies have room, before they begin.
fn check_room(parts: &[Planned<'_>]) -> Result<()> {
    let mut needed: BTreeMap<u64, u64> = BTreeMap::new();
    for part in parts {
        let Some(temporary) = &part.temporary else {
            continue;
        };
        if part.choice.method != Method::Copy {
            continue;
        }
        let failed = |error| Error::io(&part.tree.path, "its target cannot be looked at", error);
        let device = fstat(&temporary.parent).map_err(failed)?.st_dev;
        let sum = needed.entry(device).or_default();
        *sum = sum.saturating_add(part.tree.allocated);
        let room = fstatvfs(&temporary.parent).map_err(failed)?;
        let free = room.f_bavail.saturating_mul(room.f_frsize);
        if *sum > free {
            let (sum, free) = (*sum >> 20, free >> 20);
            let reason = format!("a copy needs {sum} MiB, and {free} MiB are free");
            return Err(Error::new(ErrorKind::DiskFull, &part.tree.path, reason));
        }
    }
    Ok(())
}

/// Links, then what folders are to look like; and a last look at the source.
fn complete(made: &[(Planned<'_>, Filled)], options: &CloneOptions) -> Result<()> {
    for (part, filled) in made {
        if part.tree.part == Part::Data {
            link(
                filled.listed.as_ref().unwrap_or(part.tree),
                &filled.fd,
                options,
            )?;
        }
    }
    // The log inside comes after the data directory that it lies in, and must be finished before.
    for (part, filled) in made.iter().rev() {
        finish(filled.listed.as_ref().unwrap_or(part.tree), &filled.fd)?;
        if filled.listed.is_none() {
            check_folders(part.tree)?;
        }
    }
    Ok(())
}

fn link(data: &Tree, target: &OwnedFd, options: &CloneOptions) -> Result<()> {
    let mut links = Vec::new();
    if let (true, Some(place)) = (data.wal_apart, &options.wal_directory) {
        links.push((PathBuf::from("pg_wal"), place.clone()));
    }
    for oid in &data.tablespaces {
        if let Some(place) = options.place_of(*oid) {
            links.push((Path::new("pg_tblspc").join(oid.to_string()), place));
        }
    }
    for (path, place) in links {
        let failed = |error| Error::io(&path, "cannot be linked in the clone", error);
        let parent = path.parent().unwrap_or(Path::new(""));
        let name = path.file_name().map_or(Path::new("."), Path::new);
        let directory = crate::place::below(target, parent).map_err(failed)?;
        symlinkat(&place, &directory, name).map_err(failed)?;
        if let Some(top) = data.folders.first() {
            own_link(&directory, name, top.facts.uid, top.facts.gid).map_err(failed)?;
        }
    }
    Ok(())
}

/// Makes everything durable, under its temporary names. Returns which parts are read-only now.
fn seal(made: &[(Planned<'_>, Filled)], options: &CloneOptions) -> Result<Vec<bool>> {
    let mut read_only = Vec::new();
    for (part, filled) in made {
        let failed =
            |error| Error::io(&part.tree.path, "its clone cannot be made read-only", error);
        let stat = fstat(&filled.fd).map_err(failed)?;
        let seal = options.read_only && remove::is_subvolume(&filled.fd, &stat);
        if seal {
            ioctl::set_read_only(&filled.fd, true).map_err(failed)?;
        }
        read_only.push(seal);
    }
    let mut flushed = Vec::new();
    for (part, filled) in made {
        let failed = |error| Error::io(&part.tree.path, "its clone cannot be flushed", error);
        let device = fstat(&filled.fd).map_err(failed)?.st_dev;
        if !flushed.contains(&device) {
            syncfs(&filled.fd).map_err(failed)?;
            flushed.push(device);
        }
    }
    Ok(read_only)
}

/// Gives the parts their names, the data directory last; all or none.
fn publish(made: &mut [(Planned<'_>, Filled)]) -> Result<()> {
    let mut outcome = Ok(());
    for (part, _) in made.iter_mut().rev() {
        if let (Ok(()), Some(temporary)) = (&outcome, &mut part.temporary) {
            outcome = temporary.publish();
        }
    }
    if outcome.is_err() {
        for (part, _) in made {
            if let Some(temporary) = &mut part.temporary {
                temporary.take_back();
            }
        }
    }
    outcome
}

fn report(made: &[(Planned<'_>, Filled)], read_only: &[bool], target: &Path) -> Cloned {
    let mut cloned = Cloned {
        method: Method::Subvolume,
        not_used: Vec::new(),
        parts: Vec::new(),
        files: 0,
        bytes: 0,
        shared_bytes: 0,
        hard_links: 0,
        sockets: Vec::new(),
    };
    for ((part, filled), read_only) in made.iter().zip(read_only) {
        let tree = filled.listed.as_ref().unwrap_or(part.tree);
        cloned.files += tree.files.len() as u64;
        cloned.bytes += tree.bytes;
        cloned.shared_bytes += filled.shared;
        cloned.hard_links += tree.hard_links;
        cloned.sockets.extend(tree.sockets.iter().cloned());
        let Choice { method, not_used } = part.choice.clone();
        if cloned.parts.is_empty() || method > cloned.method {
            (cloned.method, cloned.not_used) = (method, not_used.clone());
        }
        cloned.parts.push(ClonedPart {
            part: tree.part,
            source: tree.path.clone(),
            place: match &part.place {
                Place::Own(path) => path.clone(),
                Place::Inside => target.join("pg_wal"),
            },
            method,
            not_used,
            read_only: *read_only,
        });
    }
    cloned
}
