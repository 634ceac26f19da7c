//! What the targets share: counters that the fuzzing engine takes for coverage, and mutation by whole parts of
//! an input.
//!
//! The engine is libFuzzer or, in the package `fuzz/libafl`, LibAFL behind the same interface (`cfg(libafl)`).

use std::sync::atomic::{AtomicU8, Ordering};

use tregion::properties::{Pairs, Target};

pub use libfuzzer_sys;

/// A counter for each pair; the engine finds them by the section's name and clears them before each run. LibAFL
/// does not look for libFuzzer's extra ones, and takes all that stands among the compiler's; libFuzzer would miss
/// the places in the code that belong to those. Nothing in the program reads them, so the compiler is told that
/// they are used.
#[used]
#[cfg_attr(libafl, unsafe(link_section = "__sancov_cntrs"))]
#[cfg_attr(not(libafl), unsafe(link_section = "__libfuzzer_extra_counters"))]
static PAIRS: [AtomicU8; Pairs::COUNT] = [const { AtomicU8::new(0) }; Pairs::COUNT];

/// Of so many mutations one is the engine's own, which knows dictionaries and compared values.
const OWN_ONE_IN: u32 = 4;

/// Tells the engine what a run has met.
pub fn count(pairs: &Pairs) {
    pairs.iter().for_each(|index| PAIRS[index].store(1, Ordering::Relaxed));
}

/// A mutation of `data[..size]`; its size.
pub fn mutate(target: Target, data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    if seed.is_multiple_of(OWN_ONE_IN) {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    target.mutate(data, size, max_size, seed)
}

/// Mutations and crossing over by whole parts for the inputs of a target.
#[macro_export]
macro_rules! by_parts {
    ($target:expr) => {
        $crate::libfuzzer_sys::fuzz_mutator!(
            |data: &mut [u8], size: usize, max_size: usize, seed: u32| {
                $crate::mutate($target, data, size, max_size, seed)
            }
        );
        $crate::libfuzzer_sys::fuzz_crossover!(
            |first: &[u8], second: &[u8], out: &mut [u8], seed: u32| {
                $target.cross_over(first, second, out, seed)
            }
        );
    };
}
