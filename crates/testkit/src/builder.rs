//! What a cluster is to be like.

use std::collections::BTreeMap;
use std::process::Stdio;

use neon_pg_layout::PgMajor;

use crate::cluster::Cluster;
use crate::copy::{DATA, DataDirCopy, TABLESPACES};
use crate::installation::Installation;
use crate::os_user::OsUser;
use crate::scratch::Scratch;
use crate::template;

/// Small servers, so that many fit on one machine, that do nothing by themselves in the background.
const DEFAULTS: [(&str, &str); 12] = [
    ("fsync", "off"),
    ("shared_buffers", "16MB"),
    ("max_connections", "40"),
    ("max_worker_processes", "4"),
    ("max_prepared_transactions", "10"),
    ("max_parallel_workers_per_gather", "0"),
    ("max_parallel_maintenance_workers", "0"),
    ("autovacuum", "off"),
    ("jit", "off"),
    // A test that waits for itself fails instead of hanging.
    ("lock_timeout", "60s"),
    ("log_line_prefix", "%m [%p] "),
    // Segments in the data directory go with it; those in /dev/shm would outlive a killed server.
    ("dynamic_shared_memory_type", "mmap"),
];

/// Options of a [`Cluster`] to be made. Made by [`Cluster::builder`].
#[derive(Debug, Clone)]
#[must_use]
pub struct ClusterBuilder {
    installation: &'static Installation,
    checksums: Option<bool>,
    initdb_args: Vec<String>,
    fresh_identifier: bool,
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) hba: Vec<String>,
    pub(crate) tcp: bool,
    pub(crate) password: Option<String>,
}

impl ClusterBuilder {
    pub(crate) fn new(major: PgMajor) -> Self {
        let settings = DEFAULTS
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Self {
            installation: Installation::of(major),
            checksums: None,
            initdb_args: Vec::new(),
            fresh_identifier: false,
            settings: settings.collect(),
            hba: Vec::new(),
            tcp: false,
            password: None,
        }
    }

    /// Page checksums on or off; what the major does by itself (18: on) when not said.
    pub fn checksums(mut self, on: bool) -> Self {
        self.checksums = Some(on);
        self
    }

    /// Size of a WAL segment in MiB: a power of two from 1 to 1024.
    pub fn wal_segment_mib(self, mib: u32) -> Self {
        self.initdb_arg(format!("--wal-segsize={mib}"))
    }

    /// One more argument of `initdb`.
    pub fn initdb_arg(mut self, arg: impl Into<String>) -> Self {
        self.initdb_args.push(arg.into());
        self
    }

    /// A system identifier that no other cluster has. Otherwise clusters of one major and the same
    /// `initdb` arguments are copies of one template and share theirs.
    pub fn fresh_system_identifier(mut self) -> Self {
        self.fresh_identifier = true;
        self
    }

    /// A line of `postgresql.conf`; over the defaults of this crate, and over what was said before.
    pub fn setting(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.insert(name.to_owned(), value.to_string());
        self
    }

    /// A line of `pg_hba.conf`, before the ones of this crate (trust on the private socket).
    pub fn hba(mut self, line: impl Into<String>) -> Self {
        self.hba.push(line.into());
        self
    }

    /// Listen on 127.0.0.1 too, on a free port.
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// The password of `postgres`. TCP connections must then give it (scram-sha-256; with the
    /// setting `password_encryption = md5`, md5); the private socket asks for none.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(password.into());
        self
    }

    /// Makes the cluster and leaves it stopped.
    ///
    /// # Panics
    /// When `initdb` or the operating system fails.
    #[must_use]
    pub fn init(self) -> Cluster {
        let scratch = Scratch::new();
        let mut args = self.initdb_args.clone();
        match self.checksums {
            Some(true) => args.push("--data-checksums".to_owned()),
            // Majors that have checksums off by default have no option to say so.
            Some(false) if self.installation.major().layout().checksums_by_default => {
                args.push("--no-data-checksums".to_owned());
            }
            _ => {}
        }
        let data = scratch.path().join(DATA);
        if self.fresh_identifier {
            template::initdb(self.installation, &args, &data);
        } else {
            template::copy_template(self.installation, &args, &data);
        }
        self.finish(scratch)
    }

    /// A stopped cluster on this copy, with a socket of its own. The copy keeps its system identifier.
    ///
    /// # Panics
    /// When the copy is of another major.
    #[must_use]
    pub fn on_copy(self, copy: DataDirCopy) -> Cluster {
        assert_eq!(
            copy.major,
            self.installation.major(),
            "the copy is of another major"
        );
        self.finish(copy.scratch)
    }

    fn finish(self, scratch: Scratch) -> Cluster {
        let user = OsUser::current();
        user.create_dir(&scratch.path().join("s"));
        user.create_dir(&scratch.path().join(TABLESPACES));
        let password = self.password.clone();
        let cluster = Cluster::new(self.installation, scratch, self);
        cluster.write_configuration();
        if let Some(password) = password {
            cluster.set_password(&password);
        }
        cluster
    }

    /// Makes the cluster and starts it.
    ///
    /// # Panics
    /// When it cannot be made or does not start.
    #[must_use]
    pub fn start(self) -> Cluster {
        let mut cluster = self.init();
        cluster.start();
        cluster
    }
}

impl Cluster {
    /// Sets the superuser's password through a single-user server, before anybody can connect.
    fn set_password(&self, password: &str) {
        use std::io::Write;
        let mut child = self
            .installation()
            .command("postgres")
            .current_dir(self.data_dir())
            .args(["--single", "-D"])
            .arg(self.data_dir())
            .arg("postgres")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the server is installed");
        let quoted = password.replace('\'', "''");
        let mut stdin = child.stdin.take().expect("piped");
        writeln!(stdin, "ALTER USER postgres PASSWORD '{quoted}'").expect("the server reads");
        drop(stdin);
        let output = child.wait_with_output().expect("our own child");
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && !messages.contains("ERROR"),
            "setting the password failed: {messages}"
        );
    }
}
