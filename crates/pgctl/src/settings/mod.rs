//! Settings: ours in a file of their own, and what is in effect.

pub(crate) mod own;
pub(crate) mod syntax;

pub use own::{OWN_SETTINGS_FILE, OwnSettings};
