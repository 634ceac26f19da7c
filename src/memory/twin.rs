//! The naive twin of an address space, and random operations on both.
//!
//! The twin is a map from guest page to a page of bytes (by name) and permissions; a snapshot of it
//! is a copy of everything. After each step both agree on every page: what is mapped, with which
//! rights, which pages are the same, and the bytes. The window is touched with the kernel as a
//! witness, as a guest would touch it.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::host::probe;
use super::{AddressSpace, Backing, PageId, Restored, Snapshot, WriteFault};
use crate::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions};

/// Pages the operations play with: some at the window's end and above, some at the top.
const PAGES: u64 = 12;
/// How many of them lie in the window, and how many before the gap between its end and the top.
const IN_WINDOW: u64 = 7;
const BEFORE_GAP: u64 = 10;
const WINDOW_BITS: u32 = 32;
const BACKING_PAGES: u64 = 6;

/// The guest address of page `number`: the first up to the window's end, some above, the last at
/// the top.
fn address_of(number: u64) -> GuestAddress {
    let end = 1_u64 << WINDOW_BITS;
    GuestAddress(match number {
        0..BEFORE_GAP => end - IN_WINDOW * PAGE_SIZE + number * PAGE_SIZE,
        _ => 0_u64.wrapping_sub((PAGES - number) * PAGE_SIZE),
    })
}

#[derive(Clone, Debug)]
enum Step {
    Map { at: u64, count: u64, permissions: Permissions },
    MapShared { at: u64, count: u64, backing: usize, page: u64, permissions: Permissions },
    Unmap { at: u64, count: u64 },
    Protect { at: u64, count: u64, permissions: Permissions },
    Remap { at: u64, count: u64, to: u64 },
    Alias { at: u64, count: u64, to: u64 },
    Write { at: u64, offset: u64, bytes: Vec<u8> },
    GuestWrite { at: u64, offset: u64, byte: u8 },
    Watch { at: u64 },
    Unwatch { at: u64 },
    Trap { places: Vec<(u64, u64)> },
    Snapshot,
    Restore { which: usize },
    DropSnapshot { which: usize },
}

fn step() -> impl Strategy<Value = Step> {
    // The lower, the likelier, since most happens in the window.
    let at = || prop_oneof![2 => 0..IN_WINDOW, 1 => 0..PAGES];
    let count = prop_oneof![3 => Just(1_u64), 1 => 2_u64..5];
    let to = at();
    let permissions = || prop::sample::select(Permissions::ALL.to_vec());
    let place = (at(), count);
    prop_oneof![
        3 => (place.clone(), permissions())
            .prop_map(|((at, count), permissions)| Step::Map { at, count, permissions }),
        4 => (place.clone(), 0..2_usize, 0..BACKING_PAGES, permissions()).prop_map(
            |((at, count), backing, page, permissions)|
                Step::MapShared { at, count, backing, page, permissions }),
        1 => place.clone().prop_map(|(at, count)| Step::Unmap { at, count }),
        3 => (place.clone(), permissions())
            .prop_map(|((at, count), permissions)| Step::Protect { at, count, permissions }),
        2 => (place.clone(), to.clone())
            .prop_map(|((at, count), to)| Step::Remap { at, count, to }),
        2 => (place, to).prop_map(|((at, count), to)| Step::Alias { at, count, to }),
        4 => (at(), 0..PAGE_SIZE, prop::collection::vec(any::<u8>(), 0..6000))
            .prop_map(|(at, offset, bytes)| Step::Write { at, offset, bytes }),
        8 => (at(), 0..PAGE_SIZE, any::<u8>())
            .prop_map(|(at, offset, byte)| Step::GuestWrite { at, offset, byte }),
        3 => at().prop_map(|at| Step::Watch { at }),
        2 => at().prop_map(|at| Step::Unwatch { at }),
        2 => prop::collection::vec((0..PAGES, 1_u64..4), 0..3)
            .prop_map(|places| Step::Trap { places }),
        2 => Just(Step::Snapshot),
        3 => (0..4_usize).prop_map(|which| Step::Restore { which }),
        1 => (0..4_usize).prop_map(|which| Step::DropSnapshot { which }),
    ]
}

/// A page of bytes: whose (0 and 1 are the shared backings, others each a private mapping), which.
type Name = (u64, u64);

#[derive(Clone, Default)]
struct Twin {
    pages: BTreeMap<u64, (Name, Permissions)>,
    bytes: BTreeMap<Name, Vec<u8>>,
    watched: BTreeSet<Name>,
}

impl Twin {
    fn is_mapped(&self, at: u64, count: u64) -> bool {
        (at..at + count).all(|page| self.pages.contains_key(&page))
    }

    fn is_free(&self, at: u64, count: u64) -> bool {
        !(at..at + count).any(|page| self.pages.contains_key(&page))
    }

    /// Private pages that are mapped nowhere are gone, and so are watches on them.
    fn forget_unused(&mut self, snapshots: &[(Snapshot, Twin)]) {
        let twins = snapshots.iter().map(|(_, twin)| twin).chain([&*self]);
        let used: BTreeSet<Name> =
            twins.flat_map(|twin| twin.pages.values()).map(|&(name, _)| name).collect();
        self.watched.retain(|name| name.0 < 2 || used.contains(name));
    }
}

struct Pair {
    space: AddressSpace,
    twin: Twin,
    backings: [Backing; 2],
    snapshots: Vec<(Snapshot, Twin)>,
    next_name: u64,
    trapped: BTreeSet<u64>,
}

/// The range of `count` pages from page `at` on, if the places are contiguous.
fn range(at: u64, count: u64) -> Option<GuestRange> {
    let contiguous = at + count <= BEFORE_GAP || (at >= BEFORE_GAP && at + count <= PAGES);
    let range = GuestRange::new(address_of(at), count * PAGE_SIZE).ok()?;
    contiguous.then_some(range)
}

/// Whether they lie all in or all above the window.
fn fits(at: u64, count: u64) -> bool {
    at >= IN_WINDOW || at + count <= IN_WINDOW
}

fn zeros() -> Vec<u8> {
    vec![0; PAGE_SIZE as usize]
}

impl Pair {
    fn new() -> Self {
        let shared = (0..2).flat_map(|backing| (0..BACKING_PAGES).map(move |page| (backing, page)));
        let backing = || Backing::new("tregion-twin", BACKING_PAGES * PAGE_SIZE).unwrap();
        Self {
            space: AddressSpace::new(WINDOW_BITS).unwrap(),
            twin: Twin { bytes: shared.map(|name| (name, zeros())).collect(), ..Twin::default() },
            backings: [backing(), backing()],
            snapshots: Vec::new(),
            next_name: 2,
            trapped: BTreeSet::new(),
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Map { at, count, permissions } => self.map(at, count, permissions),
            Step::MapShared { at, count, backing, page, permissions } => {
                let Some(range) = range(at, count) else { return };
                let inside = page + count <= BACKING_PAGES;
                let allowed = fits(at, count) && self.twin.is_free(at, count) && inside;
                let backing_of = &self.backings[backing];
                let done = self.space.map_shared(range, backing_of, page * PAGE_SIZE, permissions);
                assert_eq!(done.is_ok(), allowed, "{done:?}");
                for number in (0..count).filter(|_| allowed) {
                    let name = (backing as u64, page + number);
                    self.twin.pages.insert(at + number, (name, permissions));
                }
            }
            Step::Unmap { at, count } => {
                let Some(range) = range(at, count) else { return };
                let allowed = self.twin.is_mapped(at, count);
                assert_eq!(self.space.unmap(range).is_ok(), allowed);
                if allowed {
                    self.twin.pages.retain(|page, _| !(at..at + count).contains(page));
                }
            }
            Step::Protect { at, count, permissions } => {
                let Some(range) = range(at, count) else { return };
                let allowed = self.twin.is_mapped(at, count);
                assert_eq!(self.space.protect(range, permissions).is_ok(), allowed);
                let touched = self.twin.pages.range_mut(at..at + count).filter(|_| allowed);
                touched.for_each(|(_, page)| page.1 = permissions);
            }
            Step::Remap { at, count, to } => self.place(at, count, to, true),
            Step::Alias { at, count, to } => self.place(at, count, to, false),
            Step::Write { at, offset, bytes } => self.write(at, offset, &bytes),
            Step::GuestWrite { at, offset, byte } => self.guest_write(at, offset, byte),
            Step::Watch { at } => {
                let Some(page) = self.space.page_at(address_of(at)) else { return };
                self.space.watch(page).unwrap();
                self.twin.watched.insert(self.twin.pages[&at].0);
            }
            Step::Unwatch { at } => {
                let Some(page) = self.space.page_at(address_of(at)) else { return };
                self.space.unwatch(page);
                self.twin.watched.remove(&self.twin.pages[&at].0);
            }
            Step::Trap { places } => {
                let ranges = places.iter().filter_map(|&(at, count)| range(at, count));
                self.space.set_traps(&ranges.collect::<Vec<_>>()).unwrap();
                let fits = places.iter().filter(|&&(at, count)| range(at, count).is_some());
                self.trapped = fits.flat_map(|&(at, count)| at..at + count).collect();
            }
            Step::Snapshot => {
                if self.snapshots.len() < 4 {
                    let snapshot = self.space.snapshot().unwrap();
                    self.snapshots.push((snapshot, self.twin.clone()));
                }
            }
            Step::Restore { which } => self.restore(which),
            Step::DropSnapshot { which } => {
                if which < self.snapshots.len() {
                    self.snapshots.remove(which);
                }
            }
        }
        self.twin.forget_unused(&self.snapshots);
    }

    fn map(&mut self, at: u64, count: u64, permissions: Permissions) {
        let Some(range) = range(at, count) else { return };
        let allowed = fits(at, count) && self.twin.is_free(at, count);
        assert_eq!(self.space.map(range, permissions).is_ok(), allowed);
        for number in (0..count).filter(|_| allowed) {
            let name = (self.next_name, number);
            self.twin.pages.insert(at + number, (name, permissions));
            self.twin.bytes.insert(name, zeros());
        }
        self.next_name += 1;
    }

    fn place(&mut self, at: u64, count: u64, to: u64, is_move: bool) {
        let (Some(source), Some(_)) = (range(at, count), range(to, count)) else { return };
        let foreign = |page: &u64| !is_move || !(at..at + count).contains(page);
        let free =
            (to..to + count).filter(foreign).all(|page| !self.twin.pages.contains_key(&page));
        let allowed = self.twin.is_mapped(at, count) && free && fits(to, count);
        let done = if is_move {
            self.space.remap(source, address_of(to))
        } else {
            self.space.alias(source, address_of(to))
        };
        assert_eq!(done.is_ok(), allowed, "{done:?}");
        if allowed {
            let pages: Vec<_> = (at..at + count).map(|page| self.twin.pages[&page]).collect();
            self.twin.pages.retain(|page, _| !is_move || !(at..at + count).contains(page));
            self.twin.pages.extend((to..).zip(pages));
        }
    }

    fn write(&mut self, at: u64, offset: u64, bytes: &[u8]) {
        let count = (offset + bytes.len() as u64).div_ceil(PAGE_SIZE).max(1);
        if range(at, count).is_none() {
            return;
        }
        let address = address_of(at).wrapping_add(offset);
        let hole = (at..at + count).find(|page| !self.twin.pages.contains_key(page));
        let done = self.space.write(address, bytes);
        if let Some(hole) = hole.filter(|_| !bytes.is_empty()) {
            let first = address.max(address_of(hole));
            assert_eq!(done.unwrap_err().address, first);
            return;
        }
        done.unwrap();
        for (&byte, place) in bytes.iter().zip(offset..) {
            let name = self.twin.pages[&(at + place / PAGE_SIZE)].0;
            self.twin.bytes.get_mut(&name).unwrap()[(place % PAGE_SIZE) as usize] = byte;
        }
    }

    /// Writes through the window, with the caller's protocol for faults.
    fn guest_write(&mut self, at: u64, offset: u64, byte: u8) {
        let address = address_of(at).wrapping_add(offset);
        let in_window = address.0 < self.space.window_end();
        let page = self.twin.pages.get(&at).copied().filter(|_| in_window);
        let Some((name, _)) = page.filter(|(_, permissions)| permissions.write()) else {
            assert_eq!(self.space.write_fault(address).unwrap(), WriteFault::Denied);
            return;
        };
        let host = self.space.window_start() + address.0 as usize;
        if self.trapped.contains(&at) {
            assert_eq!(self.space.write_fault(address).unwrap(), WriteFault::Trapped);
            assert!(probe::write(host, &[byte]).is_none());
            return;
        }
        let mut faults = 0;
        while probe::write(host, &[byte]).is_none() {
            faults += 1;
            assert!(faults <= 2, "a watched page faults once, and an alias of it once more");
            if self.twin.watched.contains(&name) {
                let page = self.space.page_at(address).unwrap();
                let fault = self.space.write_fault(address).unwrap();
                assert_eq!(fault, WriteFault::Watched(page));
                self.space.unwatch(page);
                self.twin.watched.remove(&name);
            } else {
                assert_eq!(self.space.write_fault(address).unwrap(), WriteFault::Retry);
            }
        }
        assert!(!self.twin.watched.contains(&name), "a watch was not honoured");
        self.twin.bytes.get_mut(&name).unwrap()[offset as usize] = byte;
    }

    fn restore(&mut self, which: usize) {
        let Some((snapshot, then)) = self.snapshots.get(which) else { return };
        let before = self.visible_pages();
        let watched = self.twin.watched.clone();
        let restored = self.space.restore(snapshot).unwrap();
        // Pages that only newer snapshots have keep what they were restored to when mapped again.
        let mut bytes = std::mem::take(&mut self.twin.bytes);
        bytes.extend(then.bytes.clone());
        self.twin = Twin { bytes, watched, ..then.clone() };
        self.check_report(&before, &restored);
    }

    /// What is mapped at each page: identity, rights and bytes.
    fn visible_pages(&self) -> BTreeMap<u64, (PageId, Permissions, Vec<u8>)> {
        let pages = (0..PAGES).filter_map(|number| {
            let mapping = self.space.find(address_of(number))?;
            let mut bytes = zeros();
            self.space.read(address_of(number), &mut bytes).unwrap();
            Some((number, (mapping.page_at(address_of(number)), mapping.permissions, bytes)))
        });
        pages.collect()
    }

    fn check_report(
        &self,
        before: &BTreeMap<u64, (PageId, Permissions, Vec<u8>)>,
        restored: &Restored,
    ) {
        let after = self.visible_pages();
        for number in 0..PAGES {
            let (was, is) = (before.get(&number), after.get(&number));
            let place = |page: Option<&(PageId, Permissions, Vec<u8>)>| page.map(|p| (p.0, p.1));
            let listed = restored.ranges.iter().any(|range| range.contains(address_of(number)));
            assert_eq!(place(was) != place(is), listed, "page {number}: {was:?} {is:?}");
            let (Some(was), Some(is)) = (was, is) else { continue };
            if was.0 == is.0 {
                assert_eq!(was.2 != is.2, restored.pages.contains(&is.0), "page {number}");
            }
        }
    }

    fn check(&self) {
        let mut names: BTreeMap<PageId, Name> = BTreeMap::new();
        for number in 0..PAGES {
            let address = address_of(number);
            let found = self.space.find(address);
            let expected = self.twin.pages.get(&number);
            assert_eq!(found.is_some(), expected.is_some(), "page {number}");
            if expected.is_none() && address.0 < self.space.window_end() {
                let host = self.space.window_start() + address.0 as usize;
                assert!(probe::read(host, &mut [0]).is_none(), "page {number}");
            }
            let (Some(found), Some(&(name, permissions))) = (found, expected) else { continue };
            assert_eq!(found.permissions, permissions, "page {number}");
            let page = found.page_at(address);
            assert_eq!(*names.entry(page).or_insert(name), name, "page {number}");
            self.check_bytes(number, name, permissions);
            assert_eq!(self.space.is_watched(page), self.twin.watched.contains(&name));
        }
        self.check_aliases(&names);
        self.check_regions();
    }

    fn check_bytes(&self, number: u64, name: Name, permissions: Permissions) {
        let expected = &self.twin.bytes[&name];
        let mut bytes = zeros();
        self.space.read(address_of(number), &mut bytes).unwrap();
        assert!(bytes == *expected, "page {number}");
        let mut fetched = Vec::new();
        self.space.fetch(address_of(number), 100, &mut fetched);
        let executable = if permissions.execute() { &expected[..100] } else { &[] };
        assert_eq!(fetched, executable);
        if address_of(number).0 < self.space.window_end() {
            let host = self.space.window_start() + address_of(number).0 as usize;
            let seen = probe::read(host, &mut bytes);
            let trapped = self.trapped.contains(&number);
            assert_eq!(seen.is_some(), permissions.read() && !trapped, "page {number}");
            assert!(seen.is_none() || bytes == *expected, "page {number}");
            if !permissions.write() || self.twin.watched.contains(&name) {
                assert!(probe::write(host, &expected[..1]).is_none(), "page {number}");
            }
        }
    }

    fn check_aliases(&self, names: &BTreeMap<PageId, Name>) {
        let distinct: BTreeSet<Name> = names.values().copied().collect();
        assert_eq!(distinct.len(), names.len(), "a page has one identity");
        for (&page, &name) in names {
            let at = self.twin.pages.iter().filter(|(_, page)| page.0 == name);
            let expected: Vec<_> = at.map(|(&number, _)| address_of(number)).collect();
            assert_eq!(self.space.addresses_of(page), expected);
        }
    }

    fn check_regions(&self) {
        let regions: Vec<_> = self.space.regions().map(|mapping| mapping.range).collect();
        assert!(regions.windows(2).all(|pair| pair[0].last() < pair[1].start()));
        let total: u64 = regions.iter().map(|range| range.size()).sum();
        assert_eq!(total, self.twin.pages.len() as u64 * PAGE_SIZE);
    }
}

proptest! {
    #[test]
    fn does_what_its_naive_twin_does(steps in prop::collection::vec(step(), 1..100)) {
        let mut pair = Pair::new();
        for step in steps {
            pair.take(step);
            pair.check();
        }
    }
}
