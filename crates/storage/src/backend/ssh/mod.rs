//! Objects as files on another machine, over SFTP through the system's `ssh`.
//!
//! The system's `ssh` brings the user's configuration, agent, known hosts and jump hosts with it,
//! and no cryptography of our own. The protocol is version 3 of SFTP with OpenSSH's extensions.
//!
//! Protocol of a put: write a temporary, `fsync@openssh.com` it, make the directories, then
//! `hardlink@openssh.com` to the name for a create and `posix-rename@openssh.com` for an overwrite.
//! SFTP has no fsync of directories: after a loss of power on the far side a name that was
//! acknowledged may be missing. What is there under a name is whole.

mod client;
mod config;
mod factory;
mod files;
mod list;
mod put;
mod storage;
mod wire;

pub use config::SshConfig;
pub(crate) use factory::SshFactory;
pub use storage::Ssh;
