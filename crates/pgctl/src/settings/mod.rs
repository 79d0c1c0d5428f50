//! Settings: ours in a file of their own, what the files give, and what is in effect.

mod effective;
pub(crate) mod files;
pub(crate) mod own;
pub(crate) mod syntax;

pub use effective::OnlineSetting;
pub use files::{FileSetting, FileSettings, Shadowed};
pub use own::{OWN_SETTINGS_FILE, OWN_SETTINGS_INCLUDE, OwnSettings};
