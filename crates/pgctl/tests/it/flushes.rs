//! How a server that recovers makes durable what it finds.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::support::*;

/// The programs of a major, with a server that notes how it was called, and refuses to flush whole file systems as
/// long as a file `refuses` is there.
fn noting(major: PgMajor, folder: &Path) -> Installation {
    let real = installation(major);
    let bin = folder.join("bin");
    fs::create_dir(&bin).unwrap();
    symlink(real.tool("initdb").unwrap(), bin.join("initdb")).unwrap();
    let script = format!(
        r#"#!/bin/sh
echo "$*" >> '{folder}/calls'
case "$*" in
  *recovery_init_sync_method=syncfs*) if [ -e '{folder}/refuses' ]; then
    echo 'FATAL:  invalid value for parameter "recovery_init_sync_method": "syncfs"' >&2
    exit 1
  fi ;;
esac
exec '{server}' "$@"
"#,
        folder = folder.display(),
        server = real.tool("postgres").unwrap().display()
    );
    let server = bin.join("postgres");
    fs::write(&server, script).unwrap();
    fs::set_permissions(&server, fs::Permissions::from_mode(0o755)).unwrap();
    let calls = folder.join("calls");
    fs::write(&calls, "").unwrap();
    fs::set_permissions(&calls, fs::Permissions::from_mode(0o666)).unwrap();
    Installation::at(bin).unwrap()
}

#[test]
fn a_recovery_flushes_file_systems_as_a_whole_where_the_server_can() {
    run(async {
        let fixture = Fixture::new(PgMajor::V15).await;
        let folder = fixture.scratch.path();
        let noting = noting(PgMajor::V15, folder);
        let copy = Instance::open(&noting, fixture.dir()).unwrap();
        for refuses in [false, true] {
            fixture.instance.start(&start_options()).await.unwrap();
            let crash = StopOptions::new(StopMode::Immediate);
            fixture.instance.stop(&crash).await.unwrap();
            if refuses {
                fs::write(folder.join("refuses"), "").unwrap();
            }
            fs::write(folder.join("calls"), "").unwrap();
            let source = WalSource::Command("exit 1".to_owned());
            let plan =
                RecoveryPlan::new(source, RecoveryTarget::Latest).with_end(RecoveryEnd::Promoted);
            copy.recover(&plan, |_| {}).await.unwrap();
            let calls = fs::read_to_string(folder.join("calls")).unwrap();
            let runs: Vec<bool> = calls
                .lines()
                .filter(|call| call.contains("-D"))
                .map(|call| call.contains("-c recovery_init_sync_method=syncfs"))
                .collect();
            let wanted: &[bool] = match (cfg!(target_os = "linux"), refuses) {
                (true, false) => &[true],
                (true, true) => &[true, false],
                (false, _) => &[false],
            };
            assert_eq!(runs, wanted, "{calls}");
        }
    });
}
