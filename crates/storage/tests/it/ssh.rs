//! SSH: the contract over the real `sftp-server`, and over a real `sshd` on loopback.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use neon_storage::{
    Body, Context, Durability, ErrorKind, Key, Locator, Registry, RetryLayer, RetryPolicy, Ssh,
    SshConfig, Storage, StorageExt, contract,
};

fn key(text: &str) -> Key {
    Key::new(text).unwrap()
}

/// The server that `ssh -s sftp` would start on the far side.
fn sftp_server() -> String {
    [
        "/usr/lib/openssh/sftp-server",
        "/usr/libexec/openssh/sftp-server",
        "/usr/libexec/sftp-server",
    ]
    .into_iter()
    .find(|path| Path::new(path).exists())
    .expect("sftp-server is not installed: apt-get install openssh-sftp-server")
    .to_owned()
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

/// An `sshd` of this user on loopback, with keys of its own; gone with the handle.
struct Sshd {
    dir: tempfile::TempDir,
    child: Child,
    port: u16,
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}

impl Sshd {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["host_key", "user_key"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(path(name))
                .status()
                .expect("ssh-keygen is not installed: apt-get install openssh-client");
            assert!(made.success());
        }
        std::fs::copy(path("user_key.pub"), path("authorized_keys")).unwrap();
        // As root sshd wants its directory of separation; it makes none itself.
        if !Path::new("/run/sshd").exists() {
            let _not_root = std::fs::create_dir_all("/run/sshd");
        }
        let (port, child) = (0..20)
            .find_map(|_| {
                let port = free_port();
                let config = format!(
                    "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\n\
                     StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\n\
                     PasswordAuthentication no\nSubsystem sftp {}\n",
                    path("host_key").display(),
                    path("authorized_keys").display(),
                    sftp_server(),
                );
                std::fs::write(path("sshd_config"), config).unwrap();
                let mut child = Command::new("/usr/sbin/sshd")
                    .args(["-D", "-e", "-f"])
                    .arg(path("sshd_config"))
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("sshd is not installed: apt-get install openssh-server");
                for _ in 0..200 {
                    if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                        return Some((port, child));
                    }
                    // The port was taken meanwhile.
                    if child.try_wait().unwrap().is_some() {
                        return None;
                    }
                    std::thread::sleep(Duration::from_millis(50));
                }
                let _gone = child.kill();
                None
            })
            .expect("sshd does not start");
        Self { dir, child, port }
    }

    /// A program that is the system's `ssh` with a configuration of its own, as a user has one.
    fn ssh(&self, known: bool) -> PathBuf {
        let path = |name: &str| self.dir.path().join(name);
        let host_key = std::fs::read_to_string(path("host_key.pub")).unwrap();
        let known_hosts = if known {
            format!("backups {host_key}")
        } else {
            String::new()
        };
        std::fs::write(path("known_hosts"), known_hosts).unwrap();
        let config = format!(
            "Host backups\n  HostName 127.0.0.1\n  Port {}\n  HostKeyAlias backups\n  IdentityFile {}\n  \
             UserKnownHostsFile {}\n  IdentitiesOnly yes\n  StrictHostKeyChecking yes\n",
            self.port,
            path("user_key").display(),
            path("known_hosts").display(),
        );
        std::fs::write(path("ssh_config"), config).unwrap();
        let script = format!(
            "#!/bin/sh\nexec ssh -F {} \"$@\"\n",
            path("ssh_config").display()
        );
        let program = path("ssh");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        program
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_systems_ssh_and_its_configuration_are_used() {
    let sshd = Sshd::start();
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
