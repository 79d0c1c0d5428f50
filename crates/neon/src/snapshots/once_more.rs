//! Snapshots of servers that end while they are copied: told to stop by another command, by the system, or dead.
//!
//! That the server ran when it was looked at says nothing of the moment after. What was begun with it is of no use then, and is
//! taken anew of what the instance is once its server has come to its end.

use std::path::Path;
use std::time::{Duration, Instant};

use neon_pgctl::{ServerState, Status};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::PgRecord;
use crate::neon::Neon;

/// So many times a server may end or begin meanwhile before it is given up.
const CHANGES: u32 = 3;
/// Who restarts a server starts it again at once: what it left is not copied before.
const RESTARTED: Duration = Duration::from_secs(1);
/// How long one that is starting, or ends, is waited for.
const SETTLED: Duration = Duration::from_secs(60);
/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Does what begins with a look at a server, and again if it failed and that server is not the one that was there before.
///
/// Dropped: the work is.
///
/// # Errors
/// Those of the work; [`Busy`](ErrorKind::Busy) when the server changed each time.
pub(super) async fn once_more<T, F>(
    neon: &Neon,
    record: &PgRecord,
    work: impl Fn() -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let data = neon.pg().data_dir(record);
    let mut before = Status::main_process(&data);
    if before.is_none() {
        return work().await;
    }
    let mut changes = 0;
    loop {
        let error = match work().await {
            Err(error) if may_come_of_it(error.kind()) => error,
            done => return done,
        };
        let now = settled(neon, &data).await?;
        if now == before {
            return Err(error);
        }
        changes += 1;
        if changes == CHANGES {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("pg {}", record.name),
                "its server is started and stopped over and over",
            )
            .hinted("see who does so, and try again")
            .caused_by(error));
        }
        let name = &record.name;
        neon.tell(Event::Note(match (before, now) {
            (_, None) => format!(
                "The server of {name} ended while it was copied ({error}); what it left is copied."
            ),
            (Some(_), Some(_)) => format!(
                "The server of {name} ended while it was copied ({error}), and runs again; it is copied anew."
            ),
            (None, Some(_)) => format!(
                "The server of {name} was started while it was copied ({error}); it is copied anew."
            ),
        }));
        before = now;
    }
}

/// Whether a failure may be that of a server which is gone.
fn may_come_of_it(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Failed | ErrorKind::Busy | ErrorKind::Damaged
    )
}

/// The process of the server that there is once it neither starts nor ends.
async fn settled(neon: &Neon, data: &Path) -> Result<Option<i32>> {
    let begun = Instant::now();
    loop {
        neon.go_on()?;
        let Ok(status) = Status::of(data).await else {
            return Ok(None);
        };
        let patience = match status.state {
            ServerState::Starting | ServerState::Stopping => SETTLED,
            _ if !status.is_up() => RESTARTED,
            _ => return Ok(status.pid),
        };
        if begun.elapsed() > patience {
            let stays = status.is_up() && status.state != ServerState::Stopping;
            return Ok(status.pid.filter(|_| stays));
        }
        tokio::time::sleep(LOOK).await;
    }
}
