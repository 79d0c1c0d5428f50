//! See the programs beside this package’s `Cargo.toml`; each is run by `tests/`.
