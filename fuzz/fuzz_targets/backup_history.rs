#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| neon_pg_layout::fuzz_targets::backup_history(bytes));
