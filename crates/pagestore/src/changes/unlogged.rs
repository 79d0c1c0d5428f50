//! Which relations are unlogged.

use std::collections::BTreeSet;

use neon_pg_layout::{Fork, PgMajor, RelFileLocator, RelationPath};
use neon_snapshot_format::SnapshotPath;

/// Relations that have an init fork, and so are unlogged, gathered from a listing.
#[derive(Debug, Clone)]
pub struct UnloggedRelations {
    major: PgMajor,
    relations: BTreeSet<RelFileLocator>,
}

impl UnloggedRelations {
    /// None yet.
    #[must_use]
    pub const fn new(major: PgMajor) -> Self {
        Self {
            major,
            relations: BTreeSet::new(),
        }
    }

    /// Looks at one file of the listing.
    pub fn note(&mut self, path: &SnapshotPath) {
        // Cheap for all the others.
        if path.as_bytes().ends_with(b"_init")
            && let Some(relation) = self.parse(path)
            && relation.fork == Fork::Init
        {
            self.relations.insert(relation.locator);
        }
    }

    /// Whether the file belongs to an unlogged relation. True only once the whole listing was noted.
    #[must_use]
    pub fn contains(&self, path: &SnapshotPath) -> bool {
        !self.relations.is_empty()
            && self
                .parse(path)
                .is_some_and(|relation| self.relations.contains(&relation.locator))
    }

    fn parse(&self, path: &SnapshotPath) -> Option<RelationPath> {
        RelationPath::parse(path.as_str()?, self.major.layout())
    }
}
