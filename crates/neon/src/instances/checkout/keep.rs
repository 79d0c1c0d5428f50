//! What a checkout leaves as it is on disk: configuration, certificates, logs.

use neon_pgctl::Instance;
use neon_snapshot_format::SnapshotPath;
use std::collections::BTreeSet;

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
        // Included ones.
        for setting in settings.iter() {
            named.extend(setting.file.to_str().and_then(inside));
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
