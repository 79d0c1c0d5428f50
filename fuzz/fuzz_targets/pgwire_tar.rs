#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let [piece, archive @ ..] = bytes {
        neon_pgwire::fuzzing::tar(archive, usize::from(*piece) * 7 + 1);
    }
});
