#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| neon_pagestore::fuzz_targets::thinned_frame(bytes));
