//! [`Ledger`]: which cases of a campaign are done, and [`Leases`]: who is at which of the others.
//!
//! Cases go by their position in the campaign's shard, 0, 1, …. A worker takes a lease of some, works
//! through it in order, and says how far it is together with what it has counted, under one lock. What
//! is noted as done is therefore exactly what is counted, at any moment.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// How many cases a worker takes at a time: few, so that workers end at about the same time, and
/// enough that to count them together costs little.
const LEASE: u64 = 64;

/// Which positions are done: all before `next` but for those in `unfinished`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// No position from here on has been begun.
    next: u64,
    /// What before that is not done, in order.
    unfinished: Vec<Range<u64>>,
}

impl Ledger {
    /// How many are done.
    #[must_use]
    pub fn done(&self) -> u64 {
        self.next - self.unfinished.iter().map(|range| range.end - range.start).sum::<u64>()
    }

    /// Whether it says what a ledger can say: a file may hold anything.
    pub(super) fn is_sound(&self) -> bool {
        let mut end = 0;
        self.unfinished.iter().all(|range| {
            let sound = end <= range.start && range.start < range.end && range.end <= self.next;
            end = range.end;
            sound
        })
    }
}

/// A ledger that workers are at.
#[derive(Debug)]
pub(super) struct Leases {
    next: u64,
    /// Left over from before, in order.
    left: Vec<Range<u64>>,
    /// What each worker has not done yet of what it has taken.
    taken: BTreeMap<usize, Range<u64>>,
}

impl Leases {
    pub(super) fn new(ledger: Ledger) -> Self {
        Self { next: ledger.next, left: ledger.unfinished, taken: BTreeMap::new() }
    }

    /// Gives `worker`, which has done its last lease, another one; none if all before `end` are taken.
    pub(super) fn take(&mut self, worker: usize, end: u64) -> Option<Range<u64>> {
        let lease = match self.left.first_mut() {
            Some(first) if first.start < end => {
                let stop = first.end.min(end).min(first.start + LEASE);
                let lease = first.start..stop;
                first.start = stop;
                if first.is_empty() {
                    self.left.remove(0);
                }
                lease
            }
            _ if self.next < end => {
                let lease = self.next..end.min(self.next.saturating_add(LEASE));
                self.next = lease.end;
                lease
            }
            _ => return None,
        };
        self.taken.insert(worker, lease.clone());
        Some(lease)
    }

    /// Notes that of `worker`'s lease all before `position` is done.
    pub(super) fn done(&mut self, worker: usize, position: u64) {
        if let Some(lease) = self.taken.get_mut(&worker) {
            lease.start = position;
        }
    }

    pub(super) fn ledger(&self) -> Ledger {
        let taken = self.taken.values().filter(|lease| !lease.is_empty());
        let mut unfinished: Vec<_> = self.left.iter().chain(taken).cloned().collect();
        unfinished.sort_by_key(|range| range.start);
        Ledger { next: self.next, unfinished }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Workers that are cut off anywhere, again and again, do each position exactly once.
        #[test]
        fn each_position_is_done_once(
            steps in prop::collection::vec((0..3usize, 0..=LEASE, prop::bool::weighted(0.1)), 0..60),
        ) {
            let end = 700;
            let mut leases = Leases::new(Ledger::default());
            let mut at: BTreeMap<usize, Range<u64>> = BTreeMap::new();
            let mut done = BTreeSet::new();
            for (worker, count, cut_off) in steps {
                if at.get(&worker).is_none_or(Range::is_empty) {
                    let Some(lease) = leases.take(worker, end) else { continue };
                    at.insert(worker, lease);
                }
                let lease = at.get_mut(&worker).expect("it has one");
                for _ in 0..count.min(lease.end - lease.start) {
                    prop_assert!(done.insert(lease.start), "{} is done twice", lease.start);
                    lease.start += 1;
                }
                leases.done(worker, lease.start);
                if cut_off {
                    let ledger = leases.ledger();
                    prop_assert!(ledger.is_sound());
                    prop_assert_eq!(ledger.done(), done.len() as u64);
                    leases = Leases::new(ledger);
                    at.clear();
                }
            }
            let mut last = Leases::new(leases.ledger());
            while let Some(lease) = last.take(0, end) {
                for position in lease.clone() {
                    prop_assert!(done.insert(position), "{position} is done twice");
                }
                last.done(0, lease.end);
            }
            prop_assert!(done.iter().copied().eq(0..end));
            prop_assert_eq!(last.ledger(), Ledger { next: end, unfinished: Vec::new() });
        }
    }

    #[test]
    fn a_ledger_that_cannot_be_is_seen() {
        let ledger =
            |next, unfinished: &[Range<u64>]| Ledger { next, unfinished: unfinished.into() };
        assert!(ledger(9, &[0..3, 3..4, 7..9]).is_sound());
        assert!(!ledger(9, &[3..4, 0..3]).is_sound(), "out of order");
        assert!(!ledger(9, &[0..1, 7..10]).is_sound(), "past the end");
        assert!(!ledger(9, &[0..1, 3..3]).is_sound(), "empty");
    }
}
