//! `postmaster.pid` of running servers.

use std::os::unix::ffi::OsStrExt;

use neon_pg_layout::{PgMajor, PostmasterPid, PostmasterStatus};
use neon_testkit::Cluster;

use super::{for_every_major, make_standby};

for_every_major!(the_pid_file_of_a_running_server_is_understood);

fn the_pid_file_of_a_running_server_is_understood(major: PgMajor) {
    let mut cluster = Cluster::builder(major).init();
    for standby in [false, true] {
        if standby {
            cluster.stop(neon_testkit::StopMode::Fast);
            make_standby(&cluster);
        }
        cluster.start();
        let path = cluster.data_dir().join("postmaster.pid");
        let read = PostmasterPid::parse(&std::fs::read(path).unwrap()).unwrap();
        assert_eq!(Some(read.pid), cluster.pid());
        assert!(!read.single_user);
        assert_eq!(
            read.data_dir.as_deref(),
            Some(cluster.data_dir().as_os_str().as_bytes())
        );
        assert_eq!(
            read.socket_dir.as_deref(),
            Some(cluster.socket_dir().as_os_str().as_bytes())
        );
        assert_eq!(
            (read.port, read.listen_address.as_deref()),
            (Some(cluster.port()), None)
        );
        assert!(read.shared_memory.is_some());
        assert_eq!(read.status, Some(PostmasterStatus::Ready));
        let started = cluster.psql("select extract(epoch from pg_postmaster_start_time())::bigint");
        let started: i64 = started.parse().unwrap();
        assert!((read.start_time.unwrap() - started).abs() <= 60);
        let lock = cluster
            .socket_dir()
            .join(format!(".s.PGSQL.{}.lock", cluster.port()));
        let lock = PostmasterPid::parse(&std::fs::read(lock).unwrap()).unwrap();
        assert_eq!(
            (lock.pid, &lock.data_dir, lock.port),
            (read.pid, &read.data_dir, read.port)
        );
    }
}
