//! [`Books`]: what is mapped where. Pure bookkeeping, without a host.
//!
//! Mappings do not overlap. Neighbours that continue each other are one mapping, as in the kernel's
//! own books, whatever calls they came from.

use std::collections::BTreeMap;

use super::alias_index::AliasIndex;
use super::backing::Backing;
use super::page::{PageId, PageRun};
use crate::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions};

/// A range of guest addresses that shows memory.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// Where it lies.
    pub range: GuestRange,
    /// What the guest may do with it.
    pub permissions: Permissions,
    /// The memory it shows.
    pub backing: Backing,
    /// Where in `backing` it begins.
    pub offset: u64,
}

impl Mapping {
    /// Where `address`, which lies in the mapping, is in the backing.
    #[must_use]
    pub fn offset_of(&self, address: GuestAddress) -> u64 {
        self.offset + (address.0 - self.range.start().0)
    }

    /// The page at `address`, which lies in the mapping.
    #[must_use]
    pub fn page_at(&self, address: GuestAddress) -> PageId {
        self.backing.page(self.offset_of(address))
    }

    /// The pages it shows.
    pub(super) fn run(&self) -> PageRun {
        let first = self.backing.page(self.offset);
        PageRun { first, count: self.range.size() / PAGE_SIZE }
    }

    /// The part from `start` to `last`, which lies in the mapping.
    pub(super) fn part(&self, start: GuestAddress, last: GuestAddress) -> Self {
        Self { range: span(start, last), offset: self.offset_of(start), ..self.clone() }
    }

    /// The part inside of `range`, with which it overlaps.
    pub(super) fn clip(&self, range: GuestRange) -> Self {
        self.part(self.range.start().max(range.start()), self.range.last().min(range.last()))
    }

    /// The same pages as they are at another address.
    pub(super) fn at(&self, start: GuestAddress) -> Self {
        let last = start.wrapping_add(self.range.size() - 1);
        Self { range: span(start, last), ..self.clone() }
    }

    fn continues(&self, before: &Mapping) -> bool {
        before.range.last().0.checked_add(1) == Some(self.range.start().0)
            && before.permissions == self.permissions
            && before.backing.is_same(&self.backing)
            && before.offset + before.range.size() == self.offset
    }
}

/// The range from `start` to `last`, which are the first and the last address of pages.
pub(super) fn span(start: GuestAddress, last: GuestAddress) -> GuestRange {
    GuestRange::new(start, last.0 - start.0 + 1).expect("parts of a mapping are whole pages")
}

/// See the file's head.
#[derive(Clone, Debug, Default)]
pub(super) struct Books {
    mappings: BTreeMap<GuestAddress, Mapping>,
    aliases: AliasIndex,
}

impl Books {
    pub(super) fn find(&self, address: GuestAddress) -> Option<&Mapping> {
        let (_, mapping) = self.mappings.range(..=address).next_back()?;
        mapping.range.contains(address).then_some(mapping)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.values()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.mappings.len()
    }

    /// The mappings that overlap with `range`, in order of address.
    pub(super) fn overlapping(&self, range: GuestRange) -> impl Iterator<Item = &Mapping> {
        let first = self.find(range.start()).map_or(range.start(), |found| found.range.start());
        self.mappings.range(first..=range.last()).map(|(_, mapping)| mapping)
    }

    /// The mapped parts of `range`, in order of address.
    pub(super) fn parts(&self, range: GuestRange) -> impl Iterator<Item = Mapping> {
        self.overlapping(range).map(move |mapping| mapping.clip(range))
    }

    /// The first address in `range` that is not mapped.
    pub(super) fn first_hole(&self, range: GuestRange) -> Option<GuestAddress> {
        let mut next = range.start();
        for mapping in self.overlapping(range) {
            if mapping.range.start() > next {
                return Some(next);
            }
            if mapping.range.last() >= range.last() {
                return None;
            }
            next = mapping.range.last().wrapping_add(1);
        }
        Some(next)
    }

    /// The mapped parts of `pages`, each with its address; a page once for each alias.
    pub(super) fn places(&self, pages: PageRun) -> impl Iterator<Item = (PageRun, GuestAddress)> {
        self.aliases.find(pages)
    }

    /// Takes what is mapped in `range` out, in order of address.
    pub(super) fn cut(&mut self, range: GuestRange) -> Vec<Mapping> {
        let overlapping: Vec<Mapping> = self.overlapping(range).cloned().collect();
        overlapping.into_iter().map(|mapping| self.cut_one(mapping, range)).collect()
    }

    fn cut_one(&mut self, whole: Mapping, range: GuestRange) -> Mapping {
        let taken = whole.clip(range);
        self.remove(&whole);
        if whole.range.start() < taken.range.start() {
            self.add(whole.part(whole.range.start(), before(taken.range.start())));
        }
        if taken.range.last() < whole.range.last() {
            self.add(whole.part(taken.range.last().wrapping_add(1), whole.range.last()));
        }
        taken
    }

    /// Puts a mapping where nothing is mapped.
    pub(super) fn insert(&mut self, mapping: Mapping) {
        let mut whole = mapping;
        let earlier = self.mappings.range(..whole.range.start()).next_back();
        if let Some((_, earlier)) = earlier.filter(|(_, earlier)| whole.continues(earlier)) {
            let earlier = earlier.clone();
            self.remove(&earlier);
            whole.range = span(earlier.range.start(), whole.range.last());
            whole.offset = earlier.offset;
        }
        let later = self.find(whole.range.last().wrapping_add(1));
        if let Some(later) = later.filter(|later| later.continues(&whole)).cloned() {
            self.remove(&later);
            whole.range = span(whole.range.start(), later.range.last());
        }
        self.add(whole);
    }

    fn add(&mut self, mapping: Mapping) {
        self.aliases.insert(mapping.run(), mapping.range.start());
        let replaced = self.mappings.insert(mapping.range.start(), mapping);
        debug_assert!(replaced.is_none(), "mappings do not overlap");
    }

    fn remove(&mut self, mapping: &Mapping) {
        self.aliases.remove(mapping.run(), mapping.range.start());
        self.mappings.remove(&mapping.range.start());
    }
}

fn before(address: GuestAddress) -> GuestAddress {
    GuestAddress(address.0 - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, pages: u64) -> GuestRange {
        GuestRange::new(GuestAddress(start), pages * PAGE_SIZE).unwrap()
    }

    fn mapping(backing: &Backing, start: u64, pages: u64, offset: u64) -> Mapping {
        let permissions = Permissions::ReadWrite;
        Mapping { range: range(start, pages), permissions, backing: backing.clone(), offset }
    }

    fn ranges(books: &Books) -> Vec<GuestRange> {
        books.iter().map(|mapping| mapping.range).collect()
    }

    #[test]
    fn neighbours_that_continue_each_other_are_one() {
        let backing = Backing::new("test", 0x8000).unwrap();
        let mut books = Books::default();
        books.insert(mapping(&backing, 0x1000, 1, 0));
        books.insert(mapping(&backing, 0x3000, 1, 0x2000));
        assert_eq!(ranges(&books).len(), 2);
        books.insert(mapping(&backing, 0x2000, 1, 0x1000));
        assert_eq!(ranges(&books), [range(0x1000, 3)]);
        books.insert(mapping(&backing, 0x4000, 1, 0x4000));
        assert_eq!(ranges(&books), [range(0x1000, 3), range(0x4000, 1)]);
        let found: Vec<_> = books.places(backing.pages()).collect();
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_cut_keeps_both_ends() {
        let backing = Backing::new("test", 0x8000).unwrap();
        let mut books = Books::default();
        books.insert(mapping(&backing, 0x1000, 5, 0x1000));
        let taken = books.cut(range(0x3000, 1));
        assert_eq!((taken.len(), taken[0].offset), (1, 0x3000));
        assert_eq!(ranges(&books), [range(0x1000, 2), range(0x4000, 2)]);
        assert_eq!(books.find(GuestAddress(0x4000)).unwrap().offset, 0x4000);
        assert_eq!(books.first_hole(range(0x1000, 5)), Some(GuestAddress(0x3000)));
        assert_eq!(books.first_hole(range(0x4000, 2)), None);
        assert_eq!(books.first_hole(range(0x5000, 2)), Some(GuestAddress(0x6000)));
        books.insert(taken[0].clone());
        assert_eq!(ranges(&books), [range(0x1000, 5)]);
    }

    #[test]
    fn the_last_page_of_the_address_space() {
        let backing = Backing::new("test", 0x8000).unwrap();
        let mut books = Books::default();
        books.insert(mapping(&backing, !0xfff, 1, 0));
        books.insert(mapping(&backing, 0, 1, 0x1000));
        assert_eq!(ranges(&books).len(), 2, "the address space does not wrap");
        assert_eq!(books.first_hole(range(!0xfff, 1)), None);
        assert_eq!(books.cut(range(!0xfff, 1)).len(), 1);
    }
}
