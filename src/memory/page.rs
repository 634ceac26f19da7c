//! [`PageId`]: which page of memory it is, wherever it is mapped.

use crate::guest::PAGE_SIZE;

/// The identity of a page of memory, the same at every address that maps it.
///
/// Numbers of backings are never used twice in a process. A page of private memory
/// ([`AddressSpace::map`](super::AddressSpace::map)) that was freed may come again, with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId {
    /// The backing's number.
    pub(super) backing: u64,
    /// The page's index in the backing.
    pub(super) index: u64,
}

impl PageId {
    /// The page of `backing` that holds the byte at `offset`.
    pub(super) fn new(backing: u64, offset: u64) -> Self {
        Self { backing, index: offset / PAGE_SIZE }
    }

    /// Where the page begins in its backing, in bytes.
    pub(super) fn offset(self) -> u64 {
        self.index * PAGE_SIZE
    }

    /// The page `count` pages further on.
    pub(super) fn plus(self, count: u64) -> Self {
        Self { index: self.index + count, ..self }
    }
}

/// A non-empty run of pages of one backing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PageRun {
    pub(super) first: PageId,
    /// Number of pages.
    pub(super) count: u64,
}

impl PageRun {
    /// The pages from `from` up to, not including, `to`, if there are any.
    pub(super) fn between(from: PageId, to: PageId) -> Option<Self> {
        let count = to.index.checked_sub(from.index).filter(|&count| count > 0)?;
        Some(Self { first: from, count })
    }

    pub(super) fn single(page: PageId) -> Self {
        Self { first: page, count: 1 }
    }

    /// The page after the last.
    pub(super) fn end(self) -> PageId {
        self.first.plus(self.count)
    }

    /// The pages of both.
    pub(super) fn intersect(self, other: Self) -> Option<Self> {
        if self.first.backing != other.first.backing {
            return None;
        }
        Self::between(self.first.max(other.first), self.end().min(other.end()))
    }
}
