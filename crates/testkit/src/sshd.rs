//! An `sshd` of the present user on loopback, with keys of its own.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The program that `ssh -s sftp` starts on the far side.
#[must_use]
pub fn sftp_server() -> PathBuf {
    ["/usr/lib/openssh", "/usr/libexec/openssh", "/usr/libexec"]
        .map(|folder| Path::new(folder).join("sftp-server"))
        .into_iter()
        .find(|path| path.exists())
        .expect("sftp-server is not installed: apt-get install openssh-sftp-server")
}

/// A running server; gone with the handle.
#[derive(Debug)]
pub struct Sshd {
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
    /// Starts one on a free port.
    #[must_use]
    pub fn start() -> Self {
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
        fs::copy(path("user_key.pub"), path("authorized_keys")).unwrap();
        // As root sshd wants its directory of separation; it makes none itself.
        if !Path::new("/run/sshd").exists() {
            let _not_root = fs::create_dir_all("/run/sshd");
        }
        let (port, child) = (0..20)
            .find_map(|_| {
                let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
                let port = listener.local_addr().unwrap().port();
                drop(listener);
                let config = format!(
                    "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\n\
                     StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin prohibit-password\n\
                     PasswordAuthentication no\nSubsystem sftp {}\n",
                    path("host_key").display(),
                    path("authorized_keys").display(),
                    sftp_server().display(),
                );
                fs::write(path("sshd_config"), config).unwrap();
                let mut child = Command::new("/usr/sbin/sshd")
                    .args(["-D", "-e", "-f"])
                    .arg(path("sshd_config"))
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("sshd is not installed: apt-get install openssh-server");
                for _ in 0..200 {
                    if TcpStream::connect(("127.0.0.1", port)).is_ok() {
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

    /// A program called `ssh` that is the system's with a configuration of its own, as a user has one. It knows the server by
    /// the name `backups`; whether it knows its key, too, is chosen.
    #[must_use]
    pub fn ssh(&self, known: bool) -> PathBuf {
        let path = |name: &str| self.dir.path().join(name);
        let host_key = fs::read_to_string(path("host_key.pub")).unwrap();
        let known_hosts = if known {
            format!("backups {host_key}")
        } else {
            String::new()
        };
        fs::write(path("known_hosts"), known_hosts).unwrap();
        let config = format!(
            "Host backups\n  HostName 127.0.0.1\n  Port {}\n  HostKeyAlias backups\n  IdentityFile {}\n  \
             UserKnownHostsFile {}\n  IdentitiesOnly yes\n  StrictHostKeyChecking yes\n",
            self.port,
            path("user_key").display(),
            path("known_hosts").display(),
        );
        fs::write(path("ssh_config"), config).unwrap();
        let script = format!(
            "#!/bin/sh\nexec /usr/bin/ssh -F {} \"$@\"\n",
            path("ssh_config").display()
        );
        let program = path("ssh");
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        program
    }
}
