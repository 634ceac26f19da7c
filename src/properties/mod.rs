//! What must hold for any input, as plain functions: the fuzz targets, the seeded tests and the tests
//! over `corpora/` call the same ones. Each panics, with all there is to know, if its property does
//! not hold.
//!
//! Where an input makes a case, the text of a case is an input too: that very case.

mod concurrent;
mod differential;
mod mapping;
mod mutate;
mod pairs;
mod target;

pub use concurrent::concurrent;
pub use differential::{differential, raw_bytes, smc_remap};
pub use mapping::mapping;
pub use pairs::{BlockKind, EventKind, Pairs, RegionState};
pub use target::{NoCase, Target};

use crate::case::text;

/// Any bytes as the text of a case: they parse to a valid case whose own text parses to the same case,
/// or they fail with a place inside the text.
pub fn case_text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match text::parse(text) {
        Ok(case) => {
            assert_eq!(case.validate(), Ok(()), "a case that was parsed is valid");
            let printed = text::print(&case);
            let again = text::parse(&printed).expect("what was printed can be parsed");
            assert_eq!(again, case, "a case survives its text form");
            assert_eq!(text::print(&again), printed, "printing is stable");
        }
        Err(error) => {
            let lines = text.lines().count().max(1);
            assert!(
                1 <= error.line && error.line <= lines + 1 && error.column >= 1,
                "{error}: the place is inside a text of {lines} lines"
            );
        }
    }
}
