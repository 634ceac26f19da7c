//! What the targets share: counters that libFuzzer takes for coverage, and mutation by whole parts of
//! an input.

use std::sync::atomic::{AtomicU8, Ordering};

use tregion::properties::{Pairs, Target};

pub use libfuzzer_sys;

/// A counter for each pair; libFuzzer finds them by the section's name and clears them before each run.
#[unsafe(link_section = "__libfuzzer_extra_counters")]
static PAIRS: [AtomicU8; Pairs::COUNT] = [const { AtomicU8::new(0) }; Pairs::COUNT];

/// Of so many mutations one is libFuzzer's own, which knows dictionaries and compared values.
const OWN_ONE_IN: u32 = 4;

/// Tells libFuzzer what a run has met.
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
