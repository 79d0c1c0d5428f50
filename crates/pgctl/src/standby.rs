//! A standby from nothing: a copy of a running server, taken over the replication protocol, that follows it.

use std::fs;
use std::path::Path;

use neon_pgwire::{Config, Params, Surroundings};

use crate::base_copy::{self, Places};
use crate::create::{self, CreateOptions};
use crate::durable;
use crate::error::{Error, Result};
use crate::installation::Installation;
use crate::instance::{self, DATA, Instance, LOG, PASS_FILE, RUN};
use crate::os_user::OsUser;
use crate::replica::StandbyOptions;
use crate::session;
use crate::settings::{OWN_SETTINGS_INCLUDE, OwnSettings};

/// Where a copy has the tablespaces of its origin, beside the data directory.
const TABLESPACES: &str = "tablespaces";

/// What a server that keeps its configuration elsewhere (Debian) leaves a copy without.
const HBA: &str = "\
local all all scram-sha-256
local replication all scram-sha-256
host all all 127.0.0.1/32 scram-sha-256
host all all ::1/128 scram-sha-256
";

impl Instance {
    /// Creates a standby of a running server in a folder of its own, laid out as by [`create`](Self::create),
    /// which appears as a whole. It is not started: [`start`](Self::start) makes it follow.
    ///
    /// The copy holds the WAL it needs. What the upstream writes after it must still be there when the standby
    /// connects: give it a slot that was [claimed](crate::claim_slot) before, unless `wal_keep_size` or an archive
    /// keep enough. Tablespaces are put below the new folder. The upstream's configuration is taken over, but for
    /// the port and where log and socket go; the password of the upstream's user becomes the one to connect with.
    ///
    /// The user must have the right to replicate. Files are written in place, between waiting for the network.
    /// Durable when it returns.
    ///
    /// Dropping the future removes what it wrote and closes the connection, with which the upstream ends the
    /// backup and drops the temporary slot.
    ///
    /// # Errors
    /// As [`create`](Self::create) and [`make_standby`](Self::make_standby);
    /// [`Connection`](crate::ErrorKind::Connection), [`Slot`](crate::ErrorKind::Slot) when the upstream has none
    /// left, [`WrongMajor`](crate::ErrorKind::WrongMajor) when it is another major than the installation.
    pub async fn create_standby(
        installation: &Installation,
        dir: impl AsRef<Path>,
        options: &StandbyOptions,
    ) -> Result<Self> {
        let dir = instance::absolute(dir.as_ref())?;
        let owner = match &options.os_user {
            Some(user) => CreateOptions::new().with_os_user(user.clone()),
            None => CreateOptions::new(),
        };
        let user = create::user_for(&owner)?;
        create::refuse_existing(&dir)?;
        // Ours alone as long as we write into it, so that nobody can put a link in our way.
        let staging = create::stage(&dir, &OsUser::current())?;
        if let Some(parent) = dir.parent() {
            create::check_reachable(parent, &user).await?;
        }
        let data = staging.path().join(DATA);
        let params: Params = options
            .upstream
            .conninfo()?
            .parse()
            .map_err(session::failed)?;
        let config = Config::resolve(&params, &Surroundings::none()).map_err(session::failed)?;
        let written = base_copy::fetch(
            &config,
            installation.major(),
            &Places {
                data: &data,
                spaces: &staging.path().join(TABLESPACES),
                spaces_later: &dir.join(TABLESPACES),
                user: &user,
            },
        )
        .await?;
        settle_configuration(&data, installation, &user)?;
        for folder in [LOG, RUN] {
            durable::create_dir(&staging.path().join(folder), 0o700, &user)?;
        }
        if let Some(login) = options.upstream.login() {
            let line = create::pass_line(&login.0, &login.1);
            let path = staging.path().join(PASS_FILE);
            durable::write_new(&path, line.as_bytes(), 0o600, &user)?;
        }
        let staged = Self::at(
            installation,
            &data,
            staging.path().join(LOG),
            staging.path().join(RUN),
        )?;
        staged.make_standby(options).await?;
        if options.sync {
            base_copy::sync(&written)?;
        }
        durable::sync_dir(staging.path())?;
        create::publish(staging, &dir, &user)?;
        Self::open(installation, &dir)
    }
}

/// Makes the configuration of the origin one that can be started beside it.
fn settle_configuration(data: &Path, installation: &Installation, user: &OsUser) -> Result<()> {
    for (name, text) in [
        ("postgresql.conf", ""),
        ("pg_hba.conf", HBA),
        ("pg_ident.conf", ""),
    ] {
        if !base_copy::has(data, name) {
            durable::write_new(&data.join(name), text.as_bytes(), 0o600, user)?;
        }
    }
    let mut own = match OwnSettings::read(data)? {
        Some(own) => own,
        None => {
            create::append(&data.join("postgresql.conf"), OWN_SETTINGS_INCLUDE)?;
            create::own_settings(installation.major(), &CreateOptions::new())
        }
    };
    // The next start chooses one of its own, and names the folder of its socket.
    for name in ["port", "unix_socket_directories"] {
        own.remove(name);
    }
    own.write(data)?;
    // What ALTER SYSTEM set would win over that.
    let path = data.join("postgresql.auto.conf");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(&path, "cannot be read", error)),
    };
    let kept = crate::replica::without(&text, &["port", "unix_socket_directories"]);
    durable::replace(&path, kept.as_bytes(), 0o600, user)
}
