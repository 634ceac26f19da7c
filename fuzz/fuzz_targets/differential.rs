//! Any choices: the program they make has no difference that the table does not explain.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tregion::properties::differential(bytes));
