//! Ports that somebody chose: judged before anything is made for them, and changed later.

use neon_pgctl::{OwnSettings, Started, port_is_free};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::{CreatePg, Instances};
use crate::name::Name;

impl Instances<'_> {
    /// As [`start`](Self::start), on this port from now on. What else connects to it, its replicas above all, has to be told.
    ///
    /// # Errors
    /// As [`start`](Self::start); [`Busy`](ErrorKind::Busy) when the port belongs to somebody else: nothing is changed then;
    /// [`Invalid`](ErrorKind::Invalid) when its configuration is not ours.
    pub async fn start_on(&self, name: &Name, port: u16) -> Result<Started> {
        require_port(port)?;
        let _lock = self.lock(name).await?;
        Box::pin(self.settle_with(name, false)).await?;
        let record = self.known(name)?;
        self.refuse_managed(&record, "start")?;
        let subject = format!("pg {name}");
        let instance = self.open(&record).await?;
        let server = |error| Error::server(subject.as_str(), error);
        let status = self.settled_status(&instance, name).await?;
        if status.is_up() {
            return Err(runs_already(name, status.port).hinted(format!(
                "its port changes with a start: neon pg stop {name}"
            )));
        }
        let Some(own) = OwnSettings::read(instance.data_dir()).map_err(server)? else {
            return Err(Error::new(
                ErrorKind::Invalid,
                subject,
                "has a configuration of its own, which says its port",
            )
            .hinted("set port there"));
        };
        require_free(port)?;
        let before = own.get("port").map(str::to_owned);
        own.with("port", port)
            .write(instance.data_dir())
            .map_err(server)?;
        self.update(name, |record| record.port = Some(port))?;
        if before.is_some_and(|before| before != port.to_string()) {
            for other in self.records()? {
                if other.replica.is_some_and(|of| of.id == record.id) {
                    self.0.tell(Event::Warning(format!(
                        "{} follows {name} on the port that it had; set primary_conninfo in its postgresql.auto.conf",
                        other.name
                    )));
                }
            }
        }
        self.start_locked(name).await
    }

    /// That a port which somebody chose for a new instance can be had.
    pub(crate) fn can_listen(&self, wanted: &CreatePg) -> Result<()> {
        match wanted.port {
            None => Ok(()),
            Some(port) => {
                require_port(port)?;
                if wanted.no_start {
                    return Ok(());
                }
                require_free(port)
            }
        }
    }

    /// The first start of an instance that was just made. If it fails, the instance stays, and that is said.
    pub(super) async fn first_start(&self, name: &Name) -> Result<()> {
        let Err(error) = self.start_locked(name).await else {
            return Ok(());
        };
        if error.kind() == ErrorKind::Cancelled {
            return Err(error);
        }
        let again = format!("neon pg start {name}, with --port N on another port");
        let hint = match error.hint() {
            Some(hint) => format!("{hint}; then {again}"),
            None => again,
        };
        let reason = "is made, but does not run";
        Err(Error::new(error.kind(), format!("pg {name}"), reason)
            .caused_by(error)
            .hinted(hint))
    }
}

/// A server runs already, and where.
pub(super) fn runs_already(name: &Name, port: Option<u16>) -> Error {
    let reason = match port {
        Some(port) => format!("runs already on localhost:{port}"),
        None => "runs already".to_owned(),
    };
    Error::new(ErrorKind::Busy, format!("pg {name}"), reason)
}

fn require_port(port: u16) -> Result<()> {
    if port > 0 {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Invalid,
        "port 0",
        "is none that a server can be found on",
    )
    .hinted("choose one from 1 to 65535, or none for the first that is free"))
}

fn require_free(port: u16) -> Result<()> {
    if port_is_free(port) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Busy,
        format!("port {port}"),
        "belongs to somebody else",
    )
    .hinted("choose another port, or stop the server that has it"))
}
