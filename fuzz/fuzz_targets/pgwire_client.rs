#![no_main]

libfuzzer_sys::fuzz_target!(|said: &[u8]| neon_pgwire::fuzzing::client(said));
