//! Servers that shut down: told to by a command that was killed since, by `pg_ctl`, by the system.
//!
//! Such a server is there and serves nobody. Who wants to know whether it runs wants to know what becomes of that.

use std::time::{Duration, Instant};

use neon_pgctl::{Instance, ServerState, Status};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::Instances;
use crate::name::Name;
use crate::record::Lock;

/// A checkpoint of a large server may take this long; a server that waits for its clients may never end.
const SHUTDOWN_MAY_TAKE: Duration = Duration::from_secs(300);

const POLL: Duration = Duration::from_millis(50);

impl Instances<'_> {
    /// The lock of who is about to stop a server. Another command may have it and wait for the end of one that waits for its
    /// clients: that end is hastened without the lock.
    pub(super) async fn lock_to_stop(&self, name: &Name, by_force: bool) -> Result<Lock> {
        if let Some(lock) = self.lock_if_free(name) {
            return Ok(lock);
        }
        if let Ok(record) = self.known(name) {
            if !by_force {
                self.refuse_managed(&record, "stop")?;
            }
            if let Ok(instance) = self.open(&record).await
                && let Ok(status) = instance.status().await
                && status.state == ServerState::Stopping
            {
                // It may have ended since.
                drop(instance.hasten_stop());
                self.settled_status(&instance, name).await?;
            }
        }
        self.lock(name).await
    }

    /// What the server of an instance does. The end of one that shuts down is waited for.
    ///
    /// # Errors
    /// [`Busy`](ErrorKind::Busy) when it does not end; [`Cancelled`](ErrorKind::Cancelled).
    pub(crate) async fn settled_status(&self, instance: &Instance, name: &Name) -> Result<Status> {
        let subject = || format!("pg {name}");
        let mut begun = None;
        loop {
            let status = instance.status().await;
            let status = status.map_err(|error| Error::server(subject(), error))?;
            if status.state != ServerState::Stopping {
                return Ok(status);
            }
            let begun = *begun.get_or_insert_with(|| {
                self.0.tell(Event::Step(format!(
                    "Waiting for the server of {name}, which is shutting down."
                )));
                Instant::now()
            });
            if begun.elapsed() > SHUTDOWN_MAY_TAKE {
                return Err(Error::new(
                    ErrorKind::Busy,
                    subject(),
                    "is shutting down, and does not come to an end",
                )
                .hinted(format!(
                    "a server that waits for its clients ends with them: neon pg stop {name} disconnects them"
                )));
            }
            self.0.go_on()?;
            tokio::time::sleep(POLL).await;
        }
    }
}
