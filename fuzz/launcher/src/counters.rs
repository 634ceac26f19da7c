//! Counters that LibAFL takes for coverage: those that the compiler has put into `tregion`, and one for each pair
//! of an event and what it met.
#![allow(unsafe_code, reason = "data in a section by name, memory that compiled code writes")]

use std::sync::atomic::{AtomicU8, Ordering};

use libafl::observers::StdMapObserver;
use libafl_targets::extra_counters;
use tregion::properties::Pairs;

/// It stands among the compiler's counters. Nothing in the program reads it.
#[used]
#[unsafe(link_section = "__sancov_cntrs")]
static PAIRS: [AtomicU8; Pairs::COUNT] = [const { AtomicU8::new(0) }; Pairs::COUNT];

/// Counts the pairs of the run under way.
pub(crate) fn count(pairs: &Pairs) {
    pairs.iter().for_each(|index| PAIRS[index].store(1, Ordering::Relaxed));
}

/// All counters, unless `tregion` was built without. Called once in a process.
pub(crate) fn observer() -> Option<StdMapObserver<'static, u8, false>> {
    // SAFETY: nobody else takes them, and they are read only between two runs, when no compiled code counts.
    let counters = unsafe { extra_counters() };
    counters.into_iter().next().map(|counters| StdMapObserver::from_ownedref("edges", counters))
}
