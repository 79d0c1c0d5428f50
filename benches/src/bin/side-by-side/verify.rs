//! Whether what a tool gave back is what it was given.

use std::fs;

use neon_testkit::OsUser;

use crate::server::Server;

/// Every row of every table, whatever the order they lie in.
const SUMS: &str = "select format('select %L, count(*), sum(hash_record_extended(t.*, 0)::numeric) from %s t', \
    oid::regclass, oid::regclass) from pg_class where relkind = 'r' and relnamespace = 'public'::regnamespace \
    order by relname \\gexec\n";

/// The content of a database, as a digest.
pub(crate) fn content(server: &Server) -> String {
    let sums = server.sql(SUMS);
    assert!(sums.contains('|'), "there are tables: {sums:?}");
    blake3::hash(sums.as_bytes()).to_hex().to_string()
}

/// Starts a server on what was restored, compares, and stops it.
///
/// # Panics
/// When it does not start, or holds something else: the result does not count, nor does the run.
pub(crate) fn restored(server: &Server, wanted: &str, who: &str) {
    start(server, who);
    let found = content(server);
    assert_eq!(found, wanted, "{who} restored something else");
    let stopped = server.stop("fast").output().unwrap();
    assert!(stopped.status.success(), "{who}: {stopped:?}");
}

/// Starts a server, with its log in the message if it does not.
pub(crate) fn start(server: &Server, who: &str) {
    OsUser::current().own(&server.data);
    // What some of the peers leave open to others.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&server.data, mode).unwrap();
    let output = server.start().stdout(std::process::Stdio::null()).output();
    let output = output.unwrap();
    if !output.status.success() {
        let log = fs::read_to_string(server.log.join("server.log")).unwrap_or_default();
        panic!("{who}: the server does not start\n{log}");
    }
}
