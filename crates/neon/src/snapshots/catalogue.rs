//! Names of relations, read from the pages of the catalogues without a server.
//!
//! `pg_filenode.map` says where `pg_class` is, and its rows which relation has which file. Only the columns that all majors
//! have at the same place are read: the id, the name, the schema and the file. Which version of a row is the last is told by
//! its hint bits, as far as they are set: good enough for a name, and for nothing else.
//!
//! Source: `catalog/pg_class.h`, `pg_namespace.h`, `pg_database.h`, `storage/bufpage.h`, `access/htup_details.h`.

use std::collections::HashMap;
use std::path::PathBuf;

use neon_pagestore::read::Snapshot;
use neon_pg_layout::{GLOBAL_TABLESPACE, Oid, RelationMap, VersionLayout, database_directory};
use neon_snapshot_format::SnapshotPath;

use crate::error::{Error, Result};

const PG_CLASS: Oid = 1259;
const PG_DATABASE: Oid = 1262;
const PG_NAMESPACE: Oid = 2615;
/// Bytes of a `name` column.
const NAME: usize = 64;
/// How much of a catalogue is read at once: a multiple of every size of pages.
const PIECE: u64 = 4 << 20;
/// Larger catalogues are not read.
const LARGEST: u64 = 512 << 20;

/// Where files of a cluster are read from.
#[derive(Debug, Clone)]
pub(crate) enum Files {
    /// A snapshot, and what messages call it.
    Snapshot(Snapshot, String),
    /// A data directory.
    Live(PathBuf),
}

impl Files {
    /// A part of a file; nothing where there is no such file, or nothing behind that offset.
    pub(crate) async fn read(&self, path: &str, offset: u64) -> Result<Option<Vec<u8>>> {
        self.read_some(path, offset, PIECE).await
    }

    /// As [`read`](Self::read), of so many bytes at most.
    pub(crate) async fn read_some(
        &self,
        path: &str,
        offset: u64,
        most: u64,
    ) -> Result<Option<Vec<u8>>> {
        let most = most.min(PIECE);
        match self {
            Self::Snapshot(snapshot, subject) => {
                let failed = |error| Error::repository(subject.as_str(), error);
                let Ok(path) = SnapshotPath::new(path) else {
                    return Ok(None);
                };
                if snapshot.stat(&path).await.map_err(failed)?.is_none() {
                    return Ok(None);
                }
                let bytes = snapshot.read_range(&path, offset..offset + most).await;
                let bytes = bytes.map_err(failed)?;
                Ok((!bytes.is_empty()).then(|| bytes.to_vec()))
            }
            Self::Live(data) => {
                let path = data.join(path);
                crate::background::beside(move || {
                    use std::os::unix::fs::FileExt as _;
                    let Ok(file) = std::fs::File::open(&path) else {
                        return Ok(None);
                    };
                    let length = file.metadata().map_or(0, |facts| facts.len());
                    let rest = length.saturating_sub(offset).min(most);
                    let mut bytes = vec![0; usize::try_from(rest).unwrap_or(0)];
                    match file.read_exact_at(&mut bytes, offset) {
                        Ok(()) if !bytes.is_empty() => Ok(Some(bytes)),
                        Ok(()) => Ok(None),
                        // It was cut in this moment.
                        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
                        Err(error) => Err(Error::io(&path, "cannot be read", error)),
                    }
                })
                .await
            }
        }
    }
}

/// A relation by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) schema: Option<String>,
    pub(crate) name: String,
    /// Of a TOAST table or its index: whose values it has.
    pub(crate) toast_of: Option<String>,
}

/// The names of one database's relations, by the number of their files.
#[derive(Debug, Default)]
pub(crate) struct Relations(HashMap<u32, Named>);

impl Relations {
    pub(crate) fn get(&self, number: u32) -> Option<&Named> {
        self.0.get(&number)
    }
}

/// The names of the databases.
pub(crate) async fn databases(
    files: &Files,
    layout: &VersionLayout,
    page_size: u32,
) -> Result<HashMap<Oid, String>> {
    let Some(map) = mapping(files, "global", layout).await? else {
        return Ok(HashMap::new());
    };
    let mut names: Rows<String> = Rows::default();
    if let Some(number) = map.number_of(PG_DATABASE) {
        let each = &mut |score, row: &[u8]| {
            if let (Some(oid), Some(name)) = (number_at(row, 0), name_at(row, 4)) {
                names.add(oid, score, name);
            }
        };
        rows(files, &format!("global/{number}"), page_size, each).await?;
    }
    Ok(names.best())
}

/// The names of the relations of a database whose directory is below this tablespace. Database 0 has the shared ones, whose
/// names stand in every database's catalogue: `known` is one of these.
pub(crate) async fn relations(
    files: &Files,
    (tablespace, database): (Oid, Oid),
    known: (Oid, Oid),
    layout: &VersionLayout,
    page_size: u32,
) -> Result<Relations> {
    let directory = database_directory(known.0, known.1, layout);
    let Some(map) = mapping(files, &directory, layout).await? else {
        return Ok(Relations::default());
    };
    let Some(class) = map.number_of(PG_CLASS) else {
        return Ok(Relations::default());
    };
    let mut found: Rows<(String, Oid, u32)> = Rows::default();
    let each = &mut |score, row: &[u8]| {
        let fields = (
            number_at(row, 0),
            name_at(row, 4),
            number_at(row, 68),
            number_at(row, 88),
        );
        if let (Some(oid), Some(name), Some(schema), Some(file)) = fields {
            found.add(oid, score, (name, schema, file));
        }
    };
    rows(files, &format!("{directory}/{class}"), page_size, each).await?;
    let classes = found.best();
    let mut schemas: Rows<String> = Rows::default();
    if let Some((.., file)) = classes.get(&PG_NAMESPACE) {
        let each = &mut |score, row: &[u8]| {
            if let (Some(oid), Some(name)) = (number_at(row, 0), name_at(row, 4)) {
                schemas.add(oid, score, name);
            }
        };
        rows(files, &format!("{directory}/{file}"), page_size, each).await?;
    }
    let schemas = schemas.best();
    // Catalogues that are found by the map have no file in their rows.
    let map = match tablespace == GLOBAL_TABLESPACE && database == 0 {
        true => mapping(files, "global", layout).await?,
        false => Some(map),
    };
    let mapped: HashMap<Oid, u32> = map
        .iter()
        .flat_map(|map| map.mappings().iter().copied())
        .collect();
    let qualified = |oid: Oid| {
        let (name, schema, _) = classes.get(&oid)?;
        Some(match schemas.get(schema) {
            Some(schema) => format!("{schema}.{name}"),
            None => name.clone(),
        })
    };
    let mut relations = HashMap::new();
    for (oid, (name, schema, file)) in &classes {
        let file = if *file == 0 {
            match mapped.get(oid) {
                Some(file) => *file,
                // It has none: a view, a partitioned table.
                None => continue,
            }
        } else {
            *file
        };
        let owner = name
            .strip_prefix("pg_toast_")
            .and_then(|rest| rest.strip_suffix("_index").unwrap_or(rest).parse().ok());
        relations.insert(
            file,
            Named {
                schema: schemas.get(schema).cloned(),
                name: name.clone(),
                toast_of: owner.and_then(qualified),
            },
        );
    }
    Ok(Relations(relations))
}

async fn mapping(
    files: &Files,
    directory: &str,
    layout: &VersionLayout,
) -> Result<Option<RelationMap>> {
    let file = files
        .read(&format!("{directory}/pg_filenode.map"), 0)
        .await?;
    // One that is being replaced is read by nobody in half, and one that cannot be read has no names.
    Ok(file.and_then(|file| RelationMap::decode(&file, layout).ok()))
}

/// Rows by id: of several versions of one, that which is most surely alive.
#[derive(Debug)]
struct Rows<T>(HashMap<Oid, (Alive, T)>);

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Rows<T> {
    fn add(&mut self, oid: Oid, alive: Alive, row: T) {
        match self.0.get(&oid) {
            Some((before, _)) if *before > alive => {}
            _ => drop(self.0.insert(oid, (alive, row))),
        }
    }

    fn best(self) -> HashMap<Oid, T> {
        let rows = self.0.into_iter();
        rows.map(|(oid, (_, row))| (oid, row)).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Alive {
    /// A transaction that committed deleted it.
    No,
    /// Some transaction may have made or deleted it.
    Perhaps,
    Yes,
}

async fn rows(
    files: &Files,
    path: &str,
    page_size: u32,
    each: &mut (dyn FnMut(Alive, &[u8]) + Send),
) -> Result<()> {
    let page = usize::try_from(page_size).unwrap_or(usize::MAX);
    let mut offset = 0;
    while offset < LARGEST {
        let Some(bytes) = files.read(path, offset).await? else {
            break;
        };
        for page in bytes.chunks_exact(page.max(1)) {
            rows_of_page(page, each);
        }
        offset = offset.saturating_add(PIECE);
    }
    Ok(())
}

/// `LP_NORMAL`: a line pointer that has a row.
const NORMAL: u32 = 1;
const PAGE_HEADER: usize = 24;
const ROW_HEADER: usize = 23;
const XMIN_COMMITTED: u16 = 0x0100;
const XMIN_INVALID: u16 = 0x0200;
const XMAX_COMMITTED: u16 = 0x0400;
const XMAX_INVALID: u16 = 0x0800;
const XMAX_LOCK_ONLY: u16 = 0x0080;

/// The rows of a page of a table, as far as they are well formed.
fn rows_of_page(page: &[u8], each: &mut (dyn FnMut(Alive, &[u8]) + Send)) {
    let Some(lower) = short_at(page, 12) else {
        return;
    };
    let pointers = page
        .get(PAGE_HEADER..usize::from(lower))
        .unwrap_or_default();
    for pointer in pointers.chunks_exact(4) {
        let Some(pointer) = number_at(pointer, 0) else {
            continue;
        };
        let (offset, flags, length) = (pointer & 0x7FFF, pointer >> 15 & 3, pointer >> 17);
        if flags != NORMAL {
            continue;
        }
        let row = usize::try_from(offset).ok().and_then(|offset| {
            let length = usize::try_from(length).ok()?;
            page.get(offset..offset.checked_add(length)?)
        });
        let Some(row) = row.filter(|row| row.len() > ROW_HEADER) else {
            continue;
        };
        let (Some(deleter), Some(mask)) = (number_at(row, 4), short_at(row, 20)) else {
            continue;
        };
        // Both bits of the maker mean that it is frozen.
        if mask & (XMIN_COMMITTED | XMIN_INVALID) == XMIN_INVALID {
            continue;
        }
        let kept = deleter == 0 || mask & (XMAX_INVALID | XMAX_LOCK_ONLY) != 0;
        let alive = if mask & XMAX_COMMITTED != 0 && !kept {
            Alive::No
        } else if kept && mask & XMIN_COMMITTED != 0 {
            Alive::Yes
        } else {
            Alive::Perhaps
        };
        let data = row.get(22).map(|start| usize::from(*start));
        if let Some(data) = data.and_then(|start| row.get(start..)) {
            each(alive, data);
        }
    }
}

fn short_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

fn number_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn name_at(bytes: &[u8], at: usize) -> Option<String> {
    let name = bytes.get(at..at.checked_add(NAME)?)?;
    let end = name.iter().position(|byte| *byte == 0)?;
    let name = name.get(..end).filter(|name| !name.is_empty())?;
    Some(String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(maker_and_deleter: u16, deleter: u32, oid: u32, name: &str) -> Vec<u8> {
        let mut row = vec![0; 24];
        row[4..8].copy_from_slice(&deleter.to_le_bytes());
        row[20..22].copy_from_slice(&maker_and_deleter.to_le_bytes());
        row[22] = 24;
        row.extend_from_slice(&oid.to_le_bytes());
        let mut field = name.as_bytes().to_vec();
        field.resize(NAME, 0);
        row.extend(field);
        row
    }

    fn page(rows: &[Vec<u8>]) -> Vec<u8> {
        let mut page = vec![0; 8192];
        let mut end = page.len();
        for (number, row) in rows.iter().enumerate() {
            end -= row.len().next_multiple_of(8);
            page[end..end + row.len()].copy_from_slice(row);
            let pointer =
                u32::try_from(end).unwrap() | 1 << 15 | u32::try_from(row.len()).unwrap() << 17;
            let at = PAGE_HEADER + number * 4;
            page[at..at + 4].copy_from_slice(&pointer.to_le_bytes());
        }
        let lower = u16::try_from(PAGE_HEADER + rows.len() * 4).unwrap();
        page[12..14].copy_from_slice(&lower.to_le_bytes());
        page
    }

    fn names(page: &[u8]) -> HashMap<Oid, String> {
        let mut found: Rows<String> = Rows::default();
        rows_of_page(page, &mut |alive, row| {
            if let (Some(oid), Some(name)) = (number_at(row, 0), name_at(row, 4)) {
                found.add(oid, alive, name);
            }
        });
        found.best()
    }

    #[test]
    fn of_several_versions_of_a_row_the_living_one_counts() {
        let rows = [
            row(XMIN_COMMITTED | XMAX_INVALID, 0, 1, "new"),
            row(XMIN_COMMITTED | XMAX_COMMITTED, 9, 1, "old"),
            row(XMIN_INVALID, 0, 1, "never was"),
            row(XMIN_COMMITTED | XMIN_INVALID | XMAX_INVALID, 0, 2, "frozen"),
            row(0, 0, 3, "just made"),
        ];
        let expected = [(1, "new"), (2, "frozen"), (3, "just made")];
        let expected = expected.map(|(oid, name)| (oid, name.to_owned()));
        assert_eq!(names(&page(&rows)), HashMap::from(expected));
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let good = page(&[row(XMIN_COMMITTED, 0, 1, "one"), row(0, 7, 2, "two")]);
        for at in (0..64).chain(8192 - 256..8192) {
            for value in [0, 1, 0x7F, 0x80, 0xFF] {
                let mut bad = good.clone();
                bad[at] = value;
                names(&bad);
                names(&bad[..at]);
            }
        }
    }
}
