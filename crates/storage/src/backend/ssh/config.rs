//! The far side and the program that reaches it.

use std::path::PathBuf;
use std::time::Duration;

/// A directory on another machine.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SshConfig {
    /// The program and its arguments that speak SFTP on their input and output.
    pub command: Vec<String>,
    /// The directory, absolute or relative to where the far side begins (usually the home).
    pub root: String,
    /// What to call it in messages.
    pub shown: String,
    /// How long the connection may take; 30 s.
    pub connect_timeout: Duration,
    /// How long one answer may take; 60 s.
    pub answer_timeout: Duration,
    /// Mode of new files; 0600.
    pub file_mode: u32,
    /// Mode of new directories; 0700.
    pub dir_mode: u32,
}

impl SshConfig {
    /// By the system's `ssh`, or another program with its arguments, to a host as `ssh` knows it.
    ///
    /// `ssh` never asks questions: what needs a password or an unknown host's confirmation fails.
    pub fn new(
        program: Option<PathBuf>,
        host: &str,
        user: Option<&str>,
        port: Option<u16>,
        root: impl Into<String>,
    ) -> Self {
        let program =
            program.map_or_else(|| "ssh".to_owned(), |p| p.to_string_lossy().into_owned());
        let mut command = vec![program];
        for option in [
            "BatchMode=yes",
            "ClearAllForwardings=yes",
            "ForwardX11=no",
            "ForwardAgent=no",
        ] {
            command.push(format!("-o{option}"));
        }
        if let Some(port) = port {
            command.extend(["-p".to_owned(), port.to_string()]);
        }
        if let Some(user) = user {
            command.extend(["-l".to_owned(), user.to_owned()]);
        }
        command.extend([
            "-s".to_owned(),
            "--".to_owned(),
            host.to_owned(),
            "sftp".to_owned(),
        ]);
        let root = root.into();
        let user = user.map(|user| format!("{user}@")).unwrap_or_default();
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let shown = format!("ssh://{user}{host}{port}/{}", root.trim_start_matches('/'));
        Self {
            shown,
            ..Self::by_command(command, root)
        }
    }

    /// By any command that speaks SFTP on its input and output.
    pub fn by_command(command: Vec<String>, root: impl Into<String>) -> Self {
        let root = root.into();
        Self {
            shown: format!("sftp:{root}"),
            command,
            root,
            connect_timeout: Duration::from_secs(30),
            answer_timeout: Duration::from_secs(60),
            file_mode: 0o600,
            dir_mode: 0o700,
        }
    }
}
