//! SSH: the contract over the real `sftp-server`, and over a real `sshd` on loopback.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use neon_storage::{
    Body, Context, Durability, ErrorKind, Key, Locator, Registry, RetryLayer, RetryPolicy, Ssh,
    SshConfig, Storage, StorageExt, contract,
};
use neon_testkit::sshd;

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

fn sftp_server() -> String {
    sshd::sftp_server().to_str().unwrap().to_owned()
}

async fn open(root: &Path) -> Ssh {
    let config = SshConfig::by_command(vec![sftp_server()], root.to_str().unwrap());
    Ssh::open(config).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn sftp_keeps_the_contract() {
    let dir = tempfile::tempdir().unwrap();
    let ssh = open(&dir.path().join("root")).await;
    assert_eq!(ssh.capabilities().durability, Durability::ContentSynced);
    let report = contract::run(Arc::new(ssh)).await;
    assert!(report.held() > 25, "{report:#?}");
    report.into_result().unwrap();
    let temps = dir.path().join("root/.neon-storage/tmp");
    let left: Vec<_> = std::fs::read_dir(temps).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_directories_are_closed_to_others() {
    let dir = tempfile::tempdir().unwrap();
    let ssh = open(&dir.path().join("root")).await;
    ssh.create(&key("a/b"), "x").await.unwrap();
    let mode = |path: &str| {
        dir.path()
            .join("root")
            .join(path)
            .metadata()
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!((mode("a/b"), mode("a"), mode("")), (0o600, 0o700, 0o700));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    // A server that can be killed, and whose successor works.
    let pid_file = dir.path().join("pid");
    let script = format!("echo $$ > {}; exec {}", pid_file.display(), sftp_server());
    let command = vec!["sh".to_owned(), "-c".to_owned(), script];
    let root = dir.path().join("root");
    let ssh = Ssh::open(SshConfig::by_command(command, root.to_str().unwrap()))
        .await
        .unwrap();
    ssh.create(&key("k"), vec![1u8; 3_000_000]).await.unwrap();
    let kill = move || {
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        assert!(
            Command::new("kill")
                .args(["-9", pid.trim()])
                .status()
                .unwrap()
                .success()
        );
    };
    kill.clone()();
    let retry = RetryLayer::new(Arc::new(ssh.clone()), RetryPolicy::default());
    assert_eq!(retry.read(&key("k")).await.unwrap().len(), 3_000_000);
    // In the middle of a put.
    let chunks = (0..4).map(|_| Ok(Bytes::from(vec![2u8; 100_000])));
    let killed = stream::once(async move {
        kill();
        Ok(Bytes::from(vec![3u8; 100_000]))
    });
    let body = Body::stream(futures_util::StreamExt::chain(stream::iter(chunks), killed));
    let error = ssh.create(&key("half"), body).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.is_retryable());
    assert!(!ssh.exists(&key("half")).await.unwrap());
    assert_eq!(ssh.list_all("").await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_speak_sftp_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    for (script, kind) in [
        ("exit 1", ErrorKind::Unavailable),
        (
            "echo Welcome to this machine; cat >/dev/null",
            ErrorKind::Unavailable,
        ),
        (
            "echo 'u@h: Permission denied (publickey).' >&2; exit 255",
            ErrorKind::Unauthenticated,
        ),
        (
            "echo 'Host key verification failed.' >&2; exit 255",
            ErrorKind::Unauthenticated,
        ),
    ] {
        let command = ["sh", "-c", script].map(str::to_owned).to_vec();
        let error = Ssh::open(SshConfig::by_command(command, root))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), kind, "{script}: {error:?}");
    }
    let command = vec!["/nonexistent/program".to_owned()];
    let error = Ssh::open(SshConfig::by_command(command, root))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let command = vec!["sleep".to_owned(), "1000".to_owned()];
    let mut config = SshConfig::by_command(command, root);
    config.connect_timeout = Duration::from_millis(300);
    assert_eq!(
        Ssh::open(config).await.unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_systems_ssh_and_its_configuration_are_used() {
    let sshd = sshd::Sshd::start();
    let dir = tempfile::tempdir().unwrap();
    let mut context = Context::default();
    context.ssh_program = Some(sshd.ssh(true));
    let locator = Locator::parse(&format!("ssh://backups{}", dir.path().display())).unwrap();
    let registry = Registry::default();
    let storage = registry.open(&locator, &context).await.unwrap();
    assert_eq!(storage.location(), locator.to_string());
    contract::run(storage).await.into_result().unwrap();
    // A host that isn't known is refused and never asked about.
    context.ssh_program = Some(sshd.ssh(false));
    let error = registry.open(&locator, &context).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unauthenticated, "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_that_another_process_removed_are_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let ssh = open(&root).await;
    ssh.create(&key("a/b/c"), "x").await.unwrap();
    for gone in ["a", "a/b", ".neon-storage", ".neon-storage/tmp"] {
        for overwrite in [false, true] {
            std::fs::remove_dir_all(root.join(gone)).unwrap();
            let _taken = std::fs::remove_file(root.join("a/b/c"));
            let put = if overwrite {
                ssh.overwrite(&key("a/b/c"), "y").await
            } else {
                ssh.create(&key("a/b/c"), "y").await
            };
            put.unwrap_or_else(|error| panic!("{gone}: {error:?}"));
            assert_eq!(ssh.read(&key("a/b/c")).await.unwrap(), "y");
        }
    }
    std::fs::remove_dir_all(&root).unwrap();
    ssh.create(&key("a/b/c"), "z").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_far_clock_is_looked_at_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    let ssh = open(&root).await;
    ssh.create(&key("k"), "x").await.unwrap();
    assert!(ssh.head(&key("k")).await.unwrap().clock.is_some());
    // Where it can't be looked at there is none, rather than one told from what was seen earlier:
    // in between this machine may have slept.
    std::fs::remove_dir_all(root.join(".neon-storage/tmp")).unwrap();
    assert_eq!(ssh.head(&key("k")).await.unwrap().clock, None);
}
