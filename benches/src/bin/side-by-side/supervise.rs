//! The outer process: makes the folder and the namespaces, and removes the folder whatever ends the run.
//!
//! The first process of a process namespace takes all others in it along when it ends, and `unshare --kill-child` ends it
//! with the outer one; mounts and loop devices go with the last process of theirs. A shell is that first process, as it
//! reaps servers that outlive the command that started them.

use std::os::unix::fs::PermissionsExt;
use std::process::ExitCode;

use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};

use crate::options::Options;

pub(crate) fn run(options: &Options) -> ExitCode {
    if !rustix::process::geteuid().is_root() {
        eprintln!("side-by-side: error: mounts, and servers of another user: run it as root");
        return ExitCode::from(6);
    }
    let folder = tempfile::Builder::new()
        .prefix("side-by-side-")
        .permissions(std::fs::Permissions::from_mode(0o755))
        .tempdir_in(&options.directory)
        .expect("a folder below --directory");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let code = runtime.block_on(async {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
            // A session of its own: the process group outside has no number inside.
            .args(["setsid", "sh", "-c", "\"$@\" & wait $!", "side-by-side"])
            .arg(std::env::current_exe().unwrap())
            .args(std::env::args_os().skip(1))
            .arg("--inside")
            .arg(folder.path())
            // A terminal's signals come to this process alone, which ends the others.
            .process_group(0)
            .kill_on_drop(true);
        let mut interrupt = signal(SignalKind::interrupt()).unwrap();
        let mut terminate = signal(SignalKind::terminate()).unwrap();
        let mut hangup = signal(SignalKind::hangup()).unwrap();
        let mut child = command.spawn().expect("unshare of util-linux");
        let stopped = tokio::select! {
            status = child.wait() => {
                let code = status.unwrap().code().unwrap_or(1);
                return u8::try_from(code).unwrap_or(1);
            }
            _ = interrupt.recv() => 130,
            _ = terminate.recv() => 143,
            _ = hangup.recv() => 129,
        };
        child.kill().await.unwrap();
        stopped
    });
    remove(folder);
    ExitCode::from(code)
}

/// The kernel ends the processes of a namespace a moment after its first one.
fn remove(folder: tempfile::TempDir) {
    let path = folder.keep();
    for _ in 0..100 {
        match std::fs::remove_dir_all(&path) {
            Ok(()) => return,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(100)),
        }
    }
    eprintln!("side-by-side: {} could not be removed", path.display());
}
