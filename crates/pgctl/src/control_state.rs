//! What `pg_control` says about how the cluster stands.

use crate::error::{Error, ErrorKind, Result};
use crate::instance::Instance;

/// `DBState` of `catalog/pg_control.h`, the same in every major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DbState {
    Startup,
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    InArchiveRecovery,
    InProduction,
}

impl Instance {
    /// The state in `pg_control` now.
    pub(crate) fn control_state(&self) -> Result<DbState> {
        let path = self.data_dir.join("global/pg_control");
        let bytes =
            std::fs::read(&path).map_err(|error| Error::io(&path, "cannot be read", error))?;
        let state = bytes
            .get(16..20)
            .and_then(|state| <[u8; 4]>::try_from(state).ok());
        Ok(match state.map(u32::from_le_bytes) {
            Some(0) => DbState::Startup,
            Some(1) => DbState::ShutDown,
            Some(2) => DbState::ShutDownInRecovery,
            Some(3) => DbState::ShuttingDown,
            Some(4) => DbState::InCrashRecovery,
            Some(5) => DbState::InArchiveRecovery,
            Some(6) => DbState::InProduction,
            _ => return Err(Error::path(ErrorKind::Corrupt, &path, "has no known state")),
        })
    }

    /// Whether the last server was shut down, as a primary or in recovery.
    pub(crate) fn was_shut_down(&self) -> Result<bool> {
        let state = self.control_state()?;
        Ok(matches!(
            state,
            DbState::ShutDown | DbState::ShutDownInRecovery
        ))
    }
}
