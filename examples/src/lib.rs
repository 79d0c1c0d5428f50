//! What several of the programs beside this package’s `Cargo.toml` share; each is run by `tests/`.

pub mod fetch;
pub mod home;
pub mod program;
pub mod surroundings;
pub mod unpack;
