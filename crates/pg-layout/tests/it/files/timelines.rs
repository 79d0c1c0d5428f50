//! History files that real promotions made.

use neon_pg_layout::{ControlFile, PgMajor, TimelineHistory, TimelineId};
use neon_testkit::{Cluster, StopMode};

use super::{for_every_major, make_standby};

for_every_major!(history_files_of_promotions_are_rewritten_byte_for_byte);

fn history_files_of_promotions_are_rewritten_byte_for_byte(major: PgMajor) {
    let mut cluster = Cluster::builder(major).start();
    let mut switches = Vec::new();
    for next in 2..=4 {
        cluster.psql(&format!("create table t{next} (i int)"));
        cluster.stop(StopMode::Fast);
        make_standby(&cluster);
        cluster.start();
        assert_eq!(cluster.psql("select pg_promote(true, 300)"), "t");
        cluster.psql("checkpoint");
        let timeline = TimelineId::new(next).unwrap();
        let name = TimelineHistory::root(timeline).file_name().to_string();
        let file = std::fs::read(cluster.data_dir().join("pg_wal").join(name)).unwrap();
        let history = TimelineHistory::parse(timeline, &file).unwrap();
        assert_eq!(
            String::from_utf8_lossy(&history.to_bytes()),
            String::from_utf8_lossy(&file)
        );
        let last = history.ancestors().last().unwrap();
        assert_eq!(last.timeline.get(), next - 1);
        assert_eq!(last.reason, b"no recovery target specified");
        switches.push(last.at);
        let at: Vec<_> = history.ancestors().iter().map(|switch| switch.at).collect();
        assert_eq!(at, switches);
        let control = cluster.data_dir().join("global/pg_control");
        let control = ControlFile::decode(&std::fs::read(control).unwrap()).unwrap();
        assert_eq!(control.checkpoint.timeline, timeline);
        assert_eq!(history.timeline_of(control.checkpoint.redo), timeline);
        assert!(history.contains(timeline, control.checkpoint.redo));
        history
            .require(timeline, control.checkpoint_location)
            .unwrap();
        {
            let before = last.timeline;
            assert!(!history.contains(before, control.checkpoint.redo));
            let start = history.range_of(before).unwrap().start;
            let path = history
                .path(before, start, control.checkpoint.redo)
                .unwrap();
            assert_eq!((path[0].timeline, path[0].end), (before, last.at));
            assert_eq!(path.last().unwrap().timeline, timeline);
        }
    }
}
