//! [`RunSet`]: a set of pages kept as runs, and what can be done with plain lists of runs.

use std::collections::{BTreeMap, BTreeSet};

use super::page::{PageId, PageRun};

/// A set of pages. Runs that touch are one.
#[derive(Debug, Default)]
pub(super) struct RunSet {
    /// First page and number of pages.
    runs: BTreeMap<PageId, u64>,
    /// The same with the number of pages first.
    by_size: BTreeSet<(u64, PageId)>,
}

impl RunSet {
    /// Adds pages of which none is in the set. Returns the run that they are now part of.
    pub(super) fn insert(&mut self, run: PageRun) -> PageRun {
        let mut whole = run;
        let before = self.runs.range(..run.first).next_back();
        let before = before.map(|(&first, &count)| PageRun { first, count });
        if let Some(before) = before.filter(|before| before.end() == run.first) {
            self.forget(before);
            whole = PageRun { first: before.first, count: before.count + run.count };
        }
        if let Some(&count) = self.runs.get(&run.end()) {
            self.forget(PageRun { first: run.end(), count });
            whole.count += count;
        }
        self.note(whole);
        whole
    }

    /// Takes out all pages of `run` that are in the set.
    pub(super) fn remove(&mut self, run: PageRun) {
        while let Some(found) = self.first_overlap(run) {
            self.forget(found);
            for left in
                [PageRun::between(found.first, run.first), PageRun::between(run.end(), found.end())]
            {
                left.into_iter().for_each(|left| self.note(left));
            }
        }
    }

    /// Takes `count` pages in a row out, of the smallest run that has as many.
    pub(super) fn take(&mut self, count: u64) -> Option<PageRun> {
        let least = (count, PageId { backing: 0, index: 0 });
        let &(size, first) = self.by_size.range(least..).next()?;
        self.forget(PageRun { first, count: size });
        let taken = PageRun { first, count };
        if let Some(left) = PageRun::between(taken.end(), first.plus(size)) {
            self.note(left);
        }
        Some(taken)
    }

    /// Whether all pages of `run` are in the set.
    pub(super) fn covers(&self, run: PageRun) -> bool {
        let found = self.first_overlap(run);
        found.is_some_and(|found| found.intersect(run) == Some(run))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = PageRun> {
        self.runs.iter().map(|(&first, &count)| PageRun { first, count })
    }

    fn first_overlap(&self, run: PageRun) -> Option<PageRun> {
        let as_run = |(&first, &count): (&PageId, &u64)| PageRun { first, count };
        let before = self.runs.range(..=run.first).next_back().map(as_run);
        let inside = || self.runs.range(run.first..run.end()).next().map(as_run);
        before.filter(|before| before.intersect(run).is_some()).or_else(inside)
    }

    fn note(&mut self, run: PageRun) {
        self.runs.insert(run.first, run.count);
        self.by_size.insert((run.count, run.first));
    }

    fn forget(&mut self, run: PageRun) {
        self.runs.remove(&run.first);
        self.by_size.remove(&(run.count, run.first));
    }
}

/// The pages of all `runs`, each once, in order.
pub(super) fn union(mut runs: Vec<PageRun>) -> Vec<PageRun> {
    runs.sort_unstable();
    runs.dedup_by(|next, before| {
        let same = before.first.backing == next.first.backing;
        let touches = same && next.first.index <= before.end().index;
        if touches {
            before.count = before.count.max(next.end().index - before.first.index);
        }
        touches
    });
    runs
}

/// The pages of `run` that are in none of `others`.
pub(super) fn subtract(run: PageRun, others: Vec<PageRun>) -> Vec<PageRun> {
    let mut left = Vec::new();
    let mut from = run.first;
    for other in union(others) {
        left.extend(PageRun::between(from, other.first));
        from = from.max(other.end());
    }
    left.extend(PageRun::between(from, run.end()));
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(index: u64, count: u64) -> PageRun {
        PageRun { first: PageId { backing: 7, index }, count }
    }

    fn pages(runs: impl IntoIterator<Item = PageRun>) -> Vec<u64> {
        let indices = |run: PageRun| run.first.index..run.end().index;
        runs.into_iter().flat_map(indices).collect()
    }

    proptest! {
        #[test]
        fn behaves_as_a_set_of_pages(
            steps in prop::collection::vec((any::<bool>(), 0u64..50, 1u64..9), 0..60)
        ) {
            let (mut set, mut twin) = (RunSet::default(), BTreeSet::new());
            for (add, index, count) in steps {
                set.remove(run(index, count));
                twin.retain(|page| !(index..index + count).contains(page));
                if add {
                    set.insert(run(index, count));
                    twin.extend(index..index + count);
                }
                let covered = (index..index + count + 1).all(|page| twin.contains(&page));
                prop_assert_eq!(set.covers(run(index, count + 1)), covered);
                prop_assert_eq!(pages(set.iter()), twin.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(set.runs.len(), set.by_size.len());
            }
        }

        #[test]
        fn lists_add_and_subtract(
            base in (0u64..20, 1u64..40),
            others in prop::collection::vec((0u64..60, 1u64..9), 0..8),
        ) {
            let others: Vec<_> = others.into_iter().map(|(index, count)| run(index, count)).collect();
            let all: BTreeSet<u64> = pages(others.clone()).into_iter().collect();
            let base = run(base.0, base.1);
            prop_assert_eq!(pages(union(others.clone())), all.iter().copied().collect::<Vec<_>>());
            let others = others.into_iter().filter_map(|other| other.intersect(base)).collect();
            let left: Vec<u64> =
                pages([base]).into_iter().filter(|page| !all.contains(page)).collect();
            prop_assert_eq!(pages(subtract(base, others)), left);
        }
    }

    #[test]
    fn the_smallest_run_that_fits_is_taken() {
        let mut set = RunSet::default();
        for (index, count) in [(0, 10), (20, 3), (30, 4)] {
            set.insert(run(index, count));
        }
        assert_eq!(set.take(3), Some(run(20, 3)));
        assert_eq!(set.take(3), Some(run(30, 3)));
        assert_eq!(set.take(11), None);
        assert_eq!(pages(set.iter()).len(), 11);
    }
}
