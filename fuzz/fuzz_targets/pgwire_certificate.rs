#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| neon_pgwire::fuzzing::certificate(bytes));
