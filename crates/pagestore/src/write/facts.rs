//! What a control file says, as facts of a snapshot.

use neon_pg_layout::ControlFile;
use neon_snapshot_format::SnapshotKind;

use crate::facts::{ClusterFacts, Facts, TimelineStep};

impl Facts {
    /// The facts that the control file of a copied cluster has. What it does not know (log, names, needs of the
    /// machine) is to be filled in.
    #[must_use]
    pub fn of_control(kind: SnapshotKind, taken: i64, control: &ControlFile) -> Self {
        let build = &control.build;
        let block_size = u32::try_from(build.block_size.bytes()).unwrap_or(u32::MAX);
        let mut cluster = ClusterFacts::new(
            control.system_identifier,
            control.major,
            block_size,
            build.segment_blocks,
        );
        cluster.wal_segment_size =
            u32::try_from(build.wal_segment_size.bytes()).unwrap_or(u32::MAX);
        cluster.checksum_version = control.data_checksums.into();
        cluster.wal_log_hints = control.settings.wal_log_hints;
        let mut facts = Self::new(kind, taken, cluster);
        facts.log.redo = Some(control.checkpoint.redo);
        facts.log.timelines = vec![TimelineStep {
            timeline: control.checkpoint.timeline,
            end: None,
        }];
        facts
    }
}
