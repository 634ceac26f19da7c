//! Any text: parses to a case that survives its own text form, or fails with a place. Never panics.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tregion::properties::case_text(bytes));
