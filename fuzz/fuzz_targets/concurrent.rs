//! Any two small programs on two vCPUs: what comes out is what some interleaving gives.
#![no_main]

use tregion::properties::{Target, concurrent};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| concurrent(bytes));
tregion_fuzz::by_parts!(Target::Concurrent);
