//! [`AliasIndex`]: from a page to every place that maps it.
//!
//! Runs of pages overlap at will, since aliases may show any part of a backing. They are kept by
//! size class (the power of two that a run does not exceed), then by first page: of one class, the
//! runs that reach a page begin at most a class size before it, and half of those do reach it. So a
//! search costs a look into each class in use, and is otherwise proportional to what it finds.

use std::collections::BTreeMap;

use super::page::{PageId, PageRun};
use crate::guest::{GuestAddress, PAGE_SIZE};

/// Classes there can be: runs have up to 2^52 pages.
const CLASSES: usize = 53;

/// See the file's head.
#[derive(Clone, Debug)]
pub(super) struct AliasIndex {
    /// Class, first page and address of each mapped run, and its number of pages.
    runs: BTreeMap<(usize, PageId, GuestAddress), u64>,
    /// How many runs each class has, …
    population: [usize; CLASSES],
    /// … and a bit for each class that has any.
    used: u64,
}

impl Default for AliasIndex {
    fn default() -> Self {
        Self { runs: BTreeMap::new(), population: [0; CLASSES], used: 0 }
    }
}

fn class_of(count: u64) -> usize {
    count.next_power_of_two().ilog2() as usize
}

impl AliasIndex {
    /// Notes that `run` is mapped at `start`.
    pub(super) fn insert(&mut self, run: PageRun, start: GuestAddress) {
        let class = class_of(run.count);
        self.runs.insert((class, run.first, start), run.count);
        self.population[class] += 1;
        self.used |= 1 << class;
    }

    /// Forgets that `run` is mapped at `start`.
    pub(super) fn remove(&mut self, run: PageRun, start: GuestAddress) {
        let class = class_of(run.count);
        let removed = self.runs.remove(&(class, run.first, start));
        debug_assert_eq!(removed, Some(run.count), "the index knows every mapping");
        self.population[class] -= 1;
        if self.population[class] == 0 {
            self.used &= !(1 << class);
        }
    }

    /// The parts of `wanted` that are mapped, each with its address; a page once for each alias.
    pub(super) fn find(&self, wanted: PageRun) -> impl Iterator<Item = (PageRun, GuestAddress)> {
        let mut left = self.used;
        let used = std::iter::from_fn(move || {
            let lowest = (left != 0).then(|| left.trailing_zeros() as usize);
            left &= left.wrapping_sub(1);
            lowest
        });
        used.flat_map(move |class| self.find_in_class(class, wanted))
    }

    fn find_in_class(
        &self,
        class: usize,
        wanted: PageRun,
    ) -> impl Iterator<Item = (PageRun, GuestAddress)> {
        let reach = (1 << class) - 1;
        let low = PageId { index: wanted.first.index.saturating_sub(reach), ..wanted.first };
        let low = (class, low, GuestAddress(0));
        let high = (class, wanted.end(), GuestAddress(0));
        self.runs.range(low..high).filter_map(move |(&(_, first, start), &count)| {
            let part = PageRun { first, count }.intersect(wanted)?;
            let offset = (part.first.index - first.index) * PAGE_SIZE;
            Some((part, start.wrapping_add(offset)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn finds_what_a_search_through_all_finds(
            runs in prop::collection::vec((0u64..3, 0u64..60, 1u64..40), 0..40),
            removed in prop::collection::vec(any::<bool>(), 40),
            wanted in (0u64..3, 0u64..60, 1u64..40),
        ) {
            let mut index = AliasIndex::default();
            let mut twin = Vec::new();
            for (number, &from) in runs.iter().enumerate() {
                let start = GuestAddress(number as u64 * 0x100_0000);
                index.insert(run_of(from), start);
                twin.push((run_of(from), start));
            }
            let mut keep = removed.iter();
            twin.retain(|&(run, start)| {
                let kept = *keep.next().unwrap();
                if !kept { index.remove(run, start) }
                kept
            });
            let mut expected: Vec<_> = twin.iter().filter_map(|&(run, start)| {
                let part = run.intersect(run_of(wanted))?;
                Some((part, start.wrapping_add((part.first.index - run.first.index) * PAGE_SIZE)))
            }).collect();
            let mut found: Vec<_> = index.find(run_of(wanted)).collect();
            expected.sort();
            found.sort();
            prop_assert_eq!(found, expected);
        }
    }

    fn run_of((backing, index, count): (u64, u64, u64)) -> PageRun {
        PageRun { first: PageId { backing, index }, count }
    }
}
