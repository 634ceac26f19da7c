//! Any bytes as a program: the JIT does what silicon does.
#![no_main]

use tregion::properties::{Target, raw_bytes};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tregion_fuzz::count(&raw_bytes(bytes)));
tregion_fuzz::by_parts!(Target::RawBytes);
