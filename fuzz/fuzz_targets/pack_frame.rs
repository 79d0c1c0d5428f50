#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| neon_snapshot_format::fuzz_targets::pack_frame(bytes));
