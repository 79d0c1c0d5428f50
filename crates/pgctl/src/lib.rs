#![doc = include_str!("../README.md")]

mod adopt;
mod archiving;
mod base_copy;
pub mod blocking;
mod bracket;
mod command;
mod control;
mod control_state;
mod create;
mod diagnosis;
mod durable;
mod error;
pub mod facts;
mod identity;
mod installation;
mod instance;
mod last_options;
mod launch;
mod logs;
mod os_user;
mod pid_file;
mod ping;
mod port;
mod process;
mod quarantine;
mod quiet;
mod recovery;
mod replica;
mod scope;
mod session;
mod settings;
mod stale;
mod standby;
mod start;
mod status;
mod stop;
mod timestamp;

pub use adopt::{AdoptOptions, Adopted, ManagedBy, TablespaceLink};
pub use bracket::{Backup, BackupBracket, BackupStart, BracketOptions, WalHold};
pub use create::{CreateOptions, Locale};
pub use error::{Error, ErrorKind, Result};
#[cfg(feature = "serde")]
pub use installation::LearnedInstallations;
pub use installation::{Discovered, Discovery, Installation, InstallationCache, Source, Version};
pub use instance::Instance;
pub use logs::{LogCursor, LogFiles};
pub use neon_pg_layout::PgMajor;
pub use os_user::OsUser;
pub use ping::Answer;
pub use port::{PortChoice, port_is_free};
pub use quarantine::{Change, QuarantineOptions, Why};
pub use quiet::Quiet;
pub use recovery::{
    Recovered, RecoveryEnd, RecoveryEvent, RecoveryPlan, RecoveryTarget, RecoveryTimeline,
    StopPoint, WalSource,
};
pub use replica::{
    Replication, Standby, StandbyOptions, Upstream, claim_slot, drop_slot, replication,
};
pub use scope::ScopedServer;
pub use settings::{
    FileSetting, FileSettings, OWN_SETTINGS_FILE, OWN_SETTINGS_INCLUDE, OnlineSetting, OwnSettings,
    Shadowed,
};
pub use start::{StartOptions, Started};
pub use status::{ServerState, Status};
pub use stop::{StopMode, StopOptions, Stopped};
