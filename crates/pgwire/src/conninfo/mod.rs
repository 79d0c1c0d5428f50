//! Connection parameters: the one place where they are read, defaulted and checked.
//!
//! [`Params`] is what somebody wrote; [`Config`] is what it means, given the [`Surroundings`].

mod choices;
mod config;
mod hosts;
mod keyword;
mod params;
mod pass_file;
mod service;
mod surroundings;
mod uri;

#[cfg(feature = "fuzzing")]
pub(crate) mod fuzz;

pub use choices::{
    CertMode, ChannelBindingMode, LoadBalance, Replication, SslMode, SslNegotiation, TargetSession,
};
pub use config::Config;
pub use hosts::HostAddress;
pub use params::Params;
pub use surroundings::Surroundings;

pub(crate) use choices::AuthMethod;
pub(crate) use config::{Keepalive, ProtocolVersion};
#[cfg(feature = "tls")]
pub(crate) use config::{Root, TlsFiles};
pub(crate) use hosts::Host;
