//! Any scenes in which code changes: the JIT does what silicon does.
#![no_main]

use tregion::properties::{Target, smc_remap};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tregion_fuzz::count(&smc_remap(bytes)));
tregion_fuzz::by_parts!(Target::SmcRemap);
