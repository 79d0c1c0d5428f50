//! The comparison of two sets of facts, with the repair for each difference.

use std::fmt;

use crate::facts::{Cluster, Collation, Database, Facts, Platform, Provider};

/// What a difference means for a cluster that is to run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum Impact {
    /// It runs; worth knowing.
    Notice,
    /// It runs, and gives wrong answers until it is repaired.
    Repair,
    /// It does not start, or a part of it does not work, until it is repaired.
    Fails,
    /// It cannot run here.
    Impossible,
}

/// What is different.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum DifferenceKind {
    /// The major version.
    Major,
    /// An older minor version than the data was last used with.
    Minor,
    /// Processor or byte order.
    Architecture,
    /// A size that is compiled in.
    Layout,
    /// The signedness of `char`, which indexes of some extensions depend on.
    CharSignedness,
    /// The sort order of a collation.
    Collation,
    /// An extension.
    Extension,
    /// A library to be preloaded.
    Preload,
    /// Memory.
    Memory,
}

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Difference {
    /// What is different.
    pub kind: DifferenceKind,
    /// What it means.
    pub impact: Impact,
    /// What exactly, in words.
    pub what: String,
    /// The database that the statements are to be run in; none when it is not about one.
    pub database: Option<String>,
    /// SQL statements that repair it, in this order.
    pub statements: Vec<String>,
    /// What a person does about it; none when the statements are all.
    pub advice: Option<String>,
}

impl Difference {
    fn new(kind: DifferenceKind, impact: Impact, what: String) -> Self {
        Self {
            kind,
            impact,
            what,
            database: None,
            statements: Vec::new(),
            advice: None,
        }
    }

    fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.database {
            Some(database) => write!(f, "database {database}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

/// What is different for the cluster of `origin` when it runs with what `here` has, the worst first. Empty when
/// nothing is.
///
/// `here` may be a platform alone, before any data is moved; collations are then compared by the version of the C
/// library, and by that of ICU as far as that tells. With the cluster running here, pass the facts of its server:
/// then the versions the providers themselves report are compared with those the data was sorted by. Passing the
/// same facts twice finds drift that happened in place, by an upgrade of the operating system.
#[must_use]
pub fn compare(origin: &Facts, here: &Facts) -> Vec<Difference> {
    let mut found = Vec::new();
    platforms(&origin.platform, &here.platform, &mut found);
    if let Some(cluster) = &origin.cluster {
        layouts(origin, cluster, here, &mut found);
        preloads(cluster, &here.platform, &mut found);
        memory(cluster, &here.platform, &mut found);
        for database in cluster.databases.iter().flatten() {
            extensions(database, &here.platform, &mut found);
            for collation in &database.collations {
                found.extend(sorting(origin, here, database, collation));
            }
        }
    }
    found.sort_by_key(|difference| std::cmp::Reverse(difference.impact));
    found
}

fn platforms(there: &Platform, here: &Platform, found: &mut Vec<Difference>) {
    if there.major != here.major {
        found.push(
            Difference::new(
                DifferenceKind::Major,
                Impact::Impossible,
                format!("PostgreSQL {} instead of {}", here.major, there.major),
            )
            .advise(if here.major > there.major {
                format!("install PostgreSQL {}, or upgrade the cluster", there.major)
            } else {
                format!("install PostgreSQL {}", there.major)
            }),
        );
    } else if there.minor > here.minor {
        found.push(
            Difference::new(
                DifferenceKind::Minor,
                Impact::Notice,
                format!(
                    "PostgreSQL {}.{} instead of {}.{}: errors that were mended are back",
                    here.major, here.minor, there.major, there.minor
                ),
            )
            .advise(format!("install {}.{} or later", there.major, there.minor)),
        );
    }
    if there.little_endian != here.little_endian {
        found.push(
            Difference::new(
                DifferenceKind::Architecture,
                Impact::Impossible,
                format!(
                    "the byte order of {} instead of that of {}",
                    here.architecture, there.architecture
                ),
            )
            .advise("move the data by pg_dump"),
        );
    } else if there.architecture != here.architecture {
        found.push(Difference::new(
            DifferenceKind::Architecture,
            Impact::Notice,
            format!("{} instead of {}: the data files are the same, compiled extensions must be there for it", here.architecture, there.architecture),
        ));
    }
}

/// Sizes that are compiled in are known of a platform only by a cluster of its own.
fn layouts(origin: &Facts, there: &Cluster, here: &Facts, found: &mut Vec<Difference>) {
    if let Some(ours) = &here.cluster {
        let pairs = [
            (
                "block size",
                u64::from(there.block_size),
                u64::from(ours.block_size),
            ),
            (
                "relation segment size",
                there.segment_blocks.into(),
                ours.segment_blocks.into(),
            ),
            (
                "WAL block size",
                there.wal_block_size.into(),
                ours.wal_block_size.into(),
            ),
            (
                "identifier length",
                there.name_length.into(),
                ours.name_length.into(),
            ),
            (
                "index columns",
                there.index_max_keys.into(),
                ours.index_max_keys.into(),
            ),
            (
                "TOAST chunk size",
                there.toast_max_chunk_size.into(),
                ours.toast_max_chunk_size.into(),
            ),
            (
                "large object piece size",
                there.large_object_block_size.into(),
                ours.large_object_block_size.into(),
            ),
            ("alignment", there.max_align.into(), ours.max_align.into()),
            (
                "passing of 64-bit values",
                there.float8_by_value.into(),
                ours.float8_by_value.into(),
            ),
        ];
        for (name, theirs, ours) in pairs {
            if theirs != ours {
                found.push(
                    Difference::new(
                        DifferenceKind::Layout,
                        Impact::Impossible,
                        format!("{name} {ours} instead of {theirs}"),
                    )
                    .advise("use a server built with the same sizes, or move the data by pg_dump"),
                );
            }
        }
    }
    // 18 and later keep to what is recorded in the cluster, so that nothing changes.
    let recorded = there.char_signed.is_some();
    if !recorded && origin.platform.architecture != here.platform.architecture {
        let unsigned = |name: &str| {
            name.starts_with("aarch64")
                || name.starts_with("arm")
                || name.starts_with("powerpc")
                || name.starts_with("s390")
                || name.starts_with("riscv")
        };
        if unsigned(&origin.platform.architecture) != unsigned(&here.platform.architecture) {
            found.push(
                Difference::new(
                    DifferenceKind::CharSignedness,
                    Impact::Repair,
                    "the signedness of char differs: GIN indexes of pg_trgm on text beyond ASCII are sorted differently".to_owned(),
                )
                .advise("REINDEX the indexes that use pg_trgm"),
            );
        }
    }
}

fn preloads(cluster: &Cluster, here: &Platform, found: &mut Vec<Difference>) {
    // An empty list was not learned.
    if here.libraries.is_empty() {
        return;
    }
    for library in &cluster.preload {
        if !here.libraries.contains(library) {
            found.push(
                Difference::new(DifferenceKind::Preload, Impact::Fails, format!("the library {library}, which is preloaded, is not installed"))
                    .advise(format!("install the package that has {library}, or take it out of shared_preload_libraries")),
            );
        }
    }
}

fn extensions(database: &Database, here: &Platform, found: &mut Vec<Difference>) {
    if here.extensions.is_empty() {
        return;
    }
    for extension in &database.extensions {
        let available = here
            .extensions
            .iter()
            .find(|other| other.name == extension.name);
        let mut difference = match available {
            None => Difference::new(
                DifferenceKind::Extension,
                Impact::Fails,
                format!(
                    "extension {} {} is not installed",
                    extension.name, extension.version
                ),
            )
            .advise(format!(
                "install the package that has extension {}",
                extension.name
            )),
            Some(other) if other.version != extension.version => {
                let mut difference = Difference::new(
                    DifferenceKind::Extension,
                    Impact::Notice,
                    format!(
                        "extension {} is of version {}, here is {}",
                        extension.name, extension.version, other.version
                    ),
                );
                difference.statements.push(format!(
                    "ALTER EXTENSION {} UPDATE",
                    quoted(&extension.name)
                ));
                difference.advise("if this is an older version, install the newer one instead")
            }
            Some(_) => continue,
        };
        difference.database = Some(database.name.clone());
        found.push(difference);
    }
}

fn memory(cluster: &Cluster, here: &Platform, found: &mut Vec<Difference>) {
    let wanted = cluster
        .memory
        .shared
        .unwrap_or(0)
        .max(cluster.memory.shared_buffers);
    if let Some(memory) = here.memory
        && wanted > memory
    {
        found.push(
            Difference::new(
                DifferenceKind::Memory,
                Impact::Fails,
                format!(
                    "{} MiB of shared memory are asked for, here are {} MiB of memory",
                    wanted >> 20,
                    memory >> 20
                ),
            )
            .advise("lower shared_buffers, for example to a quarter of the memory"),
        );
    }
    if cluster.memory.huge_pages_required {
        found.push(
            Difference::new(
                DifferenceKind::Memory,
                Impact::Notice,
                "huge_pages=on: it starts only where enough are reserved".to_owned(),
            )
            .advise("set huge_pages to try, or vm.nr_hugepages"),
        );
    }
}

/// Whether text sorts here as it did there.
fn sorting(
    origin: &Facts,
    here: &Facts,
    database: &Database,
    collation: &Collation,
) -> Option<Difference> {
    if collation.provider == Provider::Builtin || is_bytewise(collation) {
        return None;
    }
    let there = collation
        .recorded
        .clone()
        .or_else(|| collation.actual.clone());
    let now = actual_here(here, database, collation);
    let name = match &collation.name {
        Some(name) => format!("collation {name} ({})", collation.locale),
        None => format!("the default collation ({})", collation.locale),
    };
    let (certain, what) = match (&there, &now) {
        (Some(there), Some(now)) if there == now => return None,
        (Some(there), Some(now)) => (
            true,
            format!("{name} is of version {now}, the data was sorted by {there}"),
        ),
        // The server of one side does not tell: the libraries have to.
        _ => {
            let (there, now) = match collation.provider {
                Provider::Icu => (
                    origin.platform.icu.map(|version| format!("ICU {version}")),
                    here.platform.icu.map(|version| format!("ICU {version}")),
                ),
                _ => (origin.platform.libc.clone(), here.platform.libc.clone()),
            };
            if there.is_some() && there == now {
                return None;
            }
            let word = |library: Option<String>| {
                library.unwrap_or_else(|| "an unknown library".to_owned())
            };
            (
                false,
                format!(
                    "{name} may sort differently: {} instead of {}",
                    word(now),
                    word(there)
                ),
            )
        }
    };
    if collation.indexes.is_empty() && certain {
        // Nothing is sorted by it; only the recorded version is to be brought up to date.
        let mut difference = Difference::new(DifferenceKind::Collation, Impact::Notice, what);
        difference.database = Some(database.name.clone());
        difference
            .statements
            .extend(refresh(origin, database, collation));
        return Some(difference);
    }
    let mut difference = Difference::new(DifferenceKind::Collation, Impact::Repair, what);
    difference.database = Some(database.name.clone());
    if collation.more_indexes {
        difference
            .statements
            .push(format!("REINDEX DATABASE {}", quoted(&database.name)));
    } else {
        difference.statements.extend(
            collation
                .indexes
                .iter()
                .map(|index| format!("REINDEX INDEX {index}")),
        );
    }
    difference
        .statements
        .extend(refresh(origin, database, collation));
    Some(difference.advise(
        "REINDEX fails where values that were different are equal now: remove duplicates first. Partitions by ranges of text, check constraints and materialized views that compare text are to be looked at too",
    ))
}

/// The statement that tells the catalogs that the data is sorted by the present version.
fn refresh(origin: &Facts, database: &Database, collation: &Collation) -> Option<String> {
    match &collation.name {
        Some(name) => Some(format!("ALTER COLLATION {name} REFRESH VERSION")),
        // What is not recorded cannot be refreshed.
        None if origin.platform.major < 15 || collation.recorded.is_none() => None,
        None => Some(format!(
            "ALTER DATABASE {} REFRESH COLLATION VERSION",
            quoted(&database.name)
        )),
    }
}

/// The version of the provider here, by the server's own word or, of the C library, by its version.
fn actual_here(here: &Facts, database: &Database, collation: &Collation) -> Option<String> {
    let databases = here
        .cluster
        .as_ref()
        .and_then(|cluster| cluster.databases.as_ref());
    if let Some(databases) = databases {
        let same = databases.iter().find(|other| other.name == database.name)?;
        let same = same
            .collations
            .iter()
            .find(|other| other.name == collation.name)?;
        return same.actual.clone();
    }
    match collation.provider {
        Provider::Libc => here
            .platform
            .libc
            .as_ref()?
            .strip_prefix("glibc ")
            .map(str::to_owned),
        _ => None,
    }
}

fn is_bytewise(collation: &Collation) -> bool {
    let locale = collation.locale.as_str();
    collation.provider == Provider::Libc
        && (locale == "C" || locale == "POSIX" || locale.starts_with("C."))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::facts::{Extension, Memory};

    fn facts() -> Facts {
        let collation = |name: Option<&str>, provider, locale: &str, version: &str| Collation {
            name: name.map(str::to_owned),
            provider,
            locale: locale.to_owned(),
            recorded: Some(version.to_owned()),
            actual: Some(version.to_owned()),
            indexes: vec!["public.\"My index\"".to_owned()],
            more_indexes: false,
        };
        let extension = |version: &str| Extension {
            name: "hstore".to_owned(),
            version: version.to_owned(),
        };
        Facts {
            platform: Platform {
                architecture: "x86_64".to_owned(),
                little_endian: true,
                major: 15,
                minor: 4,
                libc: Some("glibc 2.36".to_owned()),
                icu: Some(72),
                extensions: vec![extension("1.8")],
                libraries: vec!["hstore".to_owned(), "pg_stat_statements".to_owned()],
                memory: Some(16 << 30),
            },
            cluster: Some(Cluster {
                major: 15,
                block_size: 8192,
                preload: vec!["pg_stat_statements".to_owned()],
                memory: Memory {
                    shared_buffers: 4 << 30,
                    ..Memory::default()
                },
                databases: Some(vec![Database {
                    name: "my \"db\"".to_owned(),
                    encoding: "UTF8".to_owned(),
                    extensions: vec![extension("1.8")],
                    collations: vec![
                        collation(None, Provider::Libc, "en_US.UTF-8", "2.36"),
                        collation(Some("public.de"), Provider::Icu, "de", "153.120"),
                        collation(Some("pg_catalog.\"C\""), Provider::Libc, "C", ""),
                    ],
                }]),
                ..Cluster::default()
            }),
        }
    }

    #[test]
    fn equal_facts_have_no_difference() {
        assert_eq!(compare(&facts(), &facts()), []);
        let platform = Facts {
            cluster: None,
            ..facts()
        };
        assert_eq!(compare(&facts(), &platform), []);
    }

    #[test]
    fn another_c_library_means_reindexing_before_any_data_is_moved() {
        let mut here = Facts {
            cluster: None,
            ..facts()
        };
        here.platform.libc = Some("glibc 2.27".to_owned());
        here.platform.icu = Some(60);
        let found = compare(&facts(), &here);
        let statements: Vec<_> = found
            .iter()
            .map(|difference| difference.statements.join("; "))
            .collect();
        assert_eq!(
            statements,
            [
                "REINDEX INDEX public.\"My index\"; ALTER DATABASE \"my \"\"db\"\"\" REFRESH COLLATION VERSION",
                "REINDEX INDEX public.\"My index\"; ALTER COLLATION public.de REFRESH VERSION",
            ]
        );
        assert!(
            found
                .iter()
                .all(|difference| difference.impact == Impact::Repair)
        );
        // 14 records no version for a database.
        let mut old = facts();
        old.platform.major = 14;
        here.platform.major = 14;
        let found = compare(&old, &here);
        assert_eq!(found[0].statements, ["REINDEX INDEX public.\"My index\""]);
    }

    #[test]
    fn what_does_not_run_here_is_named_with_its_repair_the_worst_first() {
        let mut here = Facts {
            cluster: None,
            ..facts()
        };
        here.platform.major = 16;
        here.platform.memory = Some(1 << 30);
        here.platform.libraries = vec!["hstore".to_owned()];
        here.platform.extensions = vec![Extension {
            name: "x".to_owned(),
            version: "1".to_owned(),
        }];
        let found = compare(&facts(), &here);
        let kinds: Vec<_> = found
            .iter()
            .map(|difference| (difference.kind, difference.impact))
            .collect();
        assert_eq!(
            kinds,
            [
                (DifferenceKind::Major, Impact::Impossible),
                (DifferenceKind::Preload, Impact::Fails),
                (DifferenceKind::Memory, Impact::Fails),
                (DifferenceKind::Extension, Impact::Fails),
            ]
        );
        assert!(found.iter().all(|difference| difference.advice.is_some()));
    }

    #[test]
    fn other_sizes_and_machines_are_told_apart() {
        let mut here = facts();
        if let Some(cluster) = &mut here.cluster {
            cluster.block_size = 32768;
        }
        here.platform.architecture = "aarch64".to_owned();
        let kinds: Vec<_> = compare(&facts(), &here)
            .iter()
            .map(|difference| difference.kind)
            .collect();
        assert_eq!(
            kinds,
            [
                DifferenceKind::Layout,
                DifferenceKind::CharSignedness,
                DifferenceKind::Architecture
            ]
        );
        here.platform.little_endian = false;
        assert_eq!(compare(&facts(), &here)[0].impact, Impact::Impossible);
    }
}
