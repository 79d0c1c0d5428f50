//! In what state the cluster was that a snapshot shows.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// In what state a cluster was when it was copied. It decides what is copied and what recovery will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SnapshotKind {
    /// Stopped cleanly. Starts without recovery, so that nothing resets what recovery would reset.
    Cold,
    /// A running primary, between the start and the stop of a backup.
    Online,
    /// A running standby, between the start and the stop of a backup.
    Standby,
    /// A standby or a recovery that was stopped cleanly; it goes on recovering.
    Recovery,
    /// Neither running nor stopped cleanly; it starts with crash recovery.
    Crashed,
}

impl SnapshotKind {
    /// Every kind.
    pub const ALL: [Self; 5] = [
        Self::Cold,
        Self::Online,
        Self::Standby,
        Self::Recovery,
        Self::Crashed,
    ];

    /// The word used in formats and listings.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Online => "online",
            Self::Standby => "standby",
            Self::Recovery => "recovery",
            Self::Crashed => "crashed",
        }
    }

    /// Whether the server runs while the copy is made, so that the copy needs a backup label.
    #[must_use]
    pub const fn is_bracketed(self) -> bool {
        matches!(self, Self::Online | Self::Standby)
    }
}

impl fmt::Display for SnapshotKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for SnapshotKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == text)
            .ok_or_else(|| Error::malformed("kind of snapshot", format!("unknown word {text:?}")))
    }
}
