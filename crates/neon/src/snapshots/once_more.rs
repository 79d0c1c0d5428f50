//! Snapshots of servers that end while they are copied: told to stop by another command, by the system, or dead.
//!
//! That the server ran when it was looked at says nothing of the moment after. What was begun with it is of no use then, and is
//! taken anew of what the instance is once its server has come to its end.

use std::fs;
use std::path::Path;

use neon_pg_layout::PostmasterPid;
use neon_pgctl::{ServerState, Status};

use crate::error::{Error, ErrorKind, Result};
use crate::events::Event;
use crate::instances::PgRecord;
use crate::neon::Neon;

/// Does what begins with a look at a server, and again if it failed and that server is not the one that was there before.
///
/// Dropped: the work is.
///
/// # Errors
/// Those of the work; [`Busy`](ErrorKind::Busy) when the server changed the second time, too.
pub(super) async fn once_more<T, F>(
    neon: &Neon,
    record: &PgRecord,
    work: impl Fn() -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let data = neon.pg().data_dir(record);
    let before = running(&data);
    let error = match work().await {
        Err(error) if before.is_some() && may_come_of_it(error.kind()) => error,
        done => return done,
    };
    let now = server(&data).await;
    if now == before {
        return Err(error);
    }
    neon.go_on()?;
    neon.tell(Event::Note(format!(
        "The server of {} ended while it was copied ({error}); what it left is copied.",
        record.name
    )));
    let error = match work().await {
        Err(error) if may_come_of_it(error.kind()) => error,
        done => return done,
    };
    if server(&data).await == now {
        return Err(error);
    }
    Err(Error::new(
        ErrorKind::Busy,
        format!("pg {}", record.name),
        "its server is started and stopped over and over",
    )
    .hinted("see who does so, and try again")
    .caused_by(error))
}

/// Whether a failure may be that of a server which is gone.
fn may_come_of_it(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::Failed | ErrorKind::Busy | ErrorKind::Damaged
    )
}

/// The process of the server that there seems to be. Asks nobody: in nearly all cases nobody needs to know.
fn running(data: &Path) -> Option<i32> {
    let file = PostmasterPid::parse(&fs::read(data.join("postmaster.pid")).ok()?).ok()?;
    let pid = i32::try_from(file.pid).ok().filter(|pid| *pid > 0)?;
    let process = rustix::process::Pid::from_raw(pid)?;
    // Somebody else's process is one, too.
    let gone = rustix::process::test_kill_process(process) == Err(rustix::io::Errno::SRCH);
    (!gone).then_some(pid)
}

/// The process of the server that there is, unless it is on its way to its end.
async fn server(data: &Path) -> Option<i32> {
    let status = Status::of(data).await.ok()?;
    let stays = status.is_up() && status.state != ServerState::Stopping;
    status.pid.filter(|_| stays)
}
