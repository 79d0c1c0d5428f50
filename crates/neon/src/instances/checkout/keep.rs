//! What a checkout leaves as it is on disk: configuration, certificates, logs.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use neon_pgctl::Instance;
use neon_snapshot_format::SnapshotPath;

use crate::instances::checkout::CheckoutChoice;

/// What stays as it is on disk.
pub(crate) struct Keep {
    configuration: bool,
    /// Files of certificates and configuration that settings name, relative to the data directory.
    named: BTreeSet<Vec<u8>>,
    /// Folders of logs.
    logs: Vec<Vec<u8>>,
}

impl Keep {
    pub(crate) fn of(instance: &Instance, choice: CheckoutChoice) -> Self {
        let settings = instance.file_settings();
        let data = instance.data_dir();
        let inside = |text: &str| -> Option<Vec<u8>> {
            use std::os::unix::ffi::OsStrExt;
            let whole = data.join(text);
            let relative = whole.strip_prefix(data).ok()?;
            Some(relative.as_os_str().as_bytes().to_vec())
        };
        let mut named = BTreeSet::new();
        for name in [
            "ssl_cert_file",
            "ssl_key_file",
            "ssl_ca_file",
            "ssl_crl_file",
            "ssl_dh_params_file",
            "krb_server_keyfile",
            "hba_file",
            "ident_file",
        ] {
            named.extend(settings.value(name).and_then(inside));
        }
        // Included ones, also those that give nothing.
        for file in settings.files() {
            named.extend(file.to_str().and_then(inside));
        }
        for (setting, default) in [("hba_file", "pg_hba.conf"), ("ident_file", "pg_ident.conf")] {
            let main = data.join(settings.value(setting).unwrap_or(default));
            let mut files = BTreeSet::new();
            mentioned(&main, &mut files);
            named.extend(files.iter().filter_map(|file| inside(file.to_str()?)));
        }
        let mut logs = vec![b"log".to_vec(), b"pg_log".to_vec()];
        logs.extend(settings.value("log_directory").and_then(inside));
        logs.retain(|folder| !folder.is_empty());
        Self {
            configuration: choice.configuration,
            named,
            logs,
        }
    }

    /// Whether a file that is kept comes back where it is not there any more: only what no server starts without.
    pub(crate) fn comes_back(&self, path: &SnapshotPath) -> bool {
        let needed: [&[u8]; 3] = [b"postgresql.conf", b"pg_hba.conf", b"pg_ident.conf"];
        !self.keeps(path) || needed.contains(&path.as_bytes())
    }

    pub(crate) fn is_log(&self, path: &SnapshotPath) -> bool {
        let path = path.as_bytes();
        path == b"current_logfiles"
            || self.logs.iter().any(|folder| {
                path.strip_prefix(folder.as_slice())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
            })
    }

    pub(crate) fn keeps(&self, path: &SnapshotPath) -> bool {
        if self.is_log(path) {
            return true;
        }
        // How to reach the instance, and where it logs, is never a matter of a snapshot.
        if path.as_bytes() == b"neon.conf" {
            return true;
        }
        if self.configuration {
            return false;
        }
        let bytes = path.as_bytes();
        let top = !bytes.contains(&b'/');
        let ends = [".conf", ".crt", ".key", ".pem", ".crl", ".origin"];
        (top && ends.iter().any(|end| bytes.ends_with(end.as_bytes())))
            || bytes.starts_with(b"conf.d/")
            || bytes == b"conf.d"
            || self.named.contains(bytes)
    }
}

/// The files that one with rules of access mentions: lists of names (`@names`), and, from 16 on, other such files.
fn mentioned(file: &Path, found: &mut BTreeSet<PathBuf>) {
    let Ok(text) = fs::read(file) else { return };
    if !found.insert(file.to_owned()) {
        return;
    }
    let folder = file.parent().unwrap_or(Path::new("/"));
    for line in String::from_utf8_lossy(&text).lines() {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line
            .split([' ', '\t', ','])
            .map(|word| word.trim_matches('"'))
            .filter(|word| !word.is_empty());
        let first = words.next().unwrap_or_default();
        match (first, words.next()) {
            ("include" | "include_if_exists", Some(name)) => mentioned(&folder.join(name), found),
            ("include_dir", Some(name)) => {
                let files = fs::read_dir(folder.join(name)).into_iter().flatten();
                for file in files.flatten() {
                    mentioned(&file.path(), found);
                }
            }
            (_, second) => {
                for name in std::iter::once(first).chain(second).chain(words) {
                    if let Some(name) = name.strip_prefix('@') {
                        mentioned(&folder.join(name), found);
                    }
                }
            }
        }
    }
}
