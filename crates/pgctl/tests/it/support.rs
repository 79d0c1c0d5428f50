//! What several modules need: instances in scratch folders, and the runtime they run on.

pub(crate) use neon_pgctl::{
    Answer, CreateOptions, ErrorKind, Installation, Instance, PgMajor, ServerState, StartOptions,
    StopOptions,
};
pub(crate) use neon_testkit::Scratch;

pub(crate) fn installation(major: PgMajor) -> Installation {
    let bin_dir = neon_testkit::Installation::of(major).bin_dir();
    Installation::at(bin_dir).unwrap()
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}
