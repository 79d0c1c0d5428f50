//! Which pages of a snapshot must match their checksums.

use std::collections::HashSet;

use neon_pg_layout::{PageCheck, RelationPath, ReplayedLog};
use neon_snapshot_format::SnapshotKind;

use crate::commit::Commit;
use crate::map::MappedFile;

/// How to judge the pages of one file of a relation.
pub(crate) struct PageRules {
    check: PageCheck,
    first: u64,
    /// Pages that are known to be damaged.
    known: HashSet<u64>,
}

impl PageRules {
    /// The rules for a file; none when it is no relation or the cluster has no checksums.
    pub(crate) fn of(commit: &Commit, file: &MappedFile) -> Option<Self> {
        let facts = &commit.facts;
        if facts.cluster.checksum_version == 0 {
            return None;
        }
        let path = std::str::from_utf8(file.path.as_bytes()).ok()?;
        let relation = RelationPath::parse(path, facts.cluster.major.layout())?;
        let replayed = match (facts.log.redo, facts.log.stop) {
            (Some(start), Some(end)) if facts.kind != SnapshotKind::Cold => {
                Some(ReplayedLog { start, end })
            }
            _ => None,
        };
        let shown = file.path.to_string();
        let bad = facts.bad_pages.iter().filter(|bad| bad.path == shown);
        Some(Self {
            check: PageCheck {
                checksums: true,
                replayed,
            },
            first: u64::from(relation.segment).saturating_mul(facts.cluster.segment_blocks.into()),
            known: bad.map(|bad| bad.block).collect(),
        })
    }

    /// What is wrong with a page.
    pub(crate) fn judge(&self, page: &[u8], block: u64) -> Option<String> {
        if self.known.contains(&block) {
            return None;
        }
        let block = u32::try_from(self.first.saturating_add(block)).ok()?;
        let verdict = self.check.judge(page, block).ok()?;
        verdict.is_bad().then(|| format!("is damaged: {verdict:?}"))
    }
}
