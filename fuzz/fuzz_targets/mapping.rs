//! Any operations on a guest's memory: it is as in a model of it after each.
#![no_main]

use tregion::properties::{Target, mapping};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| mapping(bytes));
tregion_fuzz::by_parts!(Target::Mapping);
