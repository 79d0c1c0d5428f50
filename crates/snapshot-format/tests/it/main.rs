//! Integration tests of `neon-snapshot-format`: clusters of every major as sources and as judges of what
//! was written, stock tools as oracles, hostile input.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::single_range_in_vec_init,
    reason = "tests panic on failure"
)]

mod clusters;
mod detection;
mod exclusions;
mod hostile_tar;
mod http;
mod neon_files;
mod neon_unpack;
mod packs;
mod pgdata_cold;
mod pgdata_online;
mod pgdata_refuses;
mod pgdata_selected;
mod survives;
mod tar_sets;
mod torn;

/// One test per major, each calling `$body(PgMajor)`.
macro_rules! for_every_major {
    ($body:ident: $($name:ident = $major:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            $body(neon_testkit::PgMajor::$major);
        }
    )*};
}
pub(crate) use for_every_major;
