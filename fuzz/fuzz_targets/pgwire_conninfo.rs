#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| neon_pgwire::fuzzing::conninfo(text));
