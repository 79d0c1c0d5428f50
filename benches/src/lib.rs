//! The benches stand beside this package’s `Cargo.toml`; see `docs/performance.md`.
