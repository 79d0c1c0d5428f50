//! Every decoder survives whatever bytes it is given, and damaged copies of valid ones.

use neon_pg_layout::fuzz_targets::ALL;
use proptest::prelude::*;

proptest! {
    #[test]
    fn every_decoder_survives_arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
        for (_, target) in ALL {
            target(&bytes);
        }
    }

    #[test]
    fn every_decoder_survives_arbitrary_text(text in "\\PC{0,400}") {
        for (_, target) in ALL {
            target(text.as_bytes());
        }
    }
}
