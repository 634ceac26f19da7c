//! Snapshots, at a cost by what changes after them.
//!
//! 1. A snapshot keeps the books as they are (they are shared until they change) and a log, which
//!    is empty at first. All pages become *clean*: writable pages are read-only on the host.
//! 2. The first write to a clean page, a guest's ([`AddressSpace::write_fault`]) or the host's
//!    ([`AddressSpace::write`]), saves its bytes in the newest log. The page is then *dirty* and
//!    costs nothing more.
//! 3. Going back undoes what differs in the books and copies saved bytes back: of each page the
//!    oldest that were saved since. If no newer snapshot is alive, those pages are clean again; if
//!    one is, going back is a change like any other for it, saved in its log.
//! 4. When a snapshot was dropped, its log becomes part of the one before, which needs it to go
//!    back further; the oldest log is forgotten. With the last one, all pages are writable again.
//!
//! Private pages that were mapped after the newest snapshot are *fresh*: dirty without saved bytes,
//! since no snapshot has them. Guests must not run while a snapshot is taken or restored.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use super::backing::{Backing, PageBytes};
use super::books::{Books, Mapping};
use super::differences::{Difference, differences};
use super::error::{MapError, or_lost};
use super::page::{PageId, PageRun};
use super::run_set::{RunSet, subtract, union};
use super::space::AddressSpace;
use crate::guest::{GuestRange, PAGE_SIZE};

/// What an address space was like at some time. It costs until it is dropped.
#[derive(Debug)]
pub struct Snapshot(Arc<()>);

/// What restoring a snapshot changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Pages whose bytes changed, in order.
    pub pages: Vec<PageId>,
    /// Where the mappings or their permissions changed, in order of address.
    pub ranges: Vec<GuestRange>,
}

/// What one snapshot needs. The newest one's also says which pages are dirty.
#[derive(Debug)]
pub(super) struct Log {
    snapshot: Weak<()>,
    books: Arc<Books>,
    /// Pages written to after the snapshot and before the next, as they were.
    saved: BTreeMap<PageId, Saved>,
    /// Private pages made after the snapshot and before the next.
    fresh: RunSet,
}

#[derive(Clone, Debug)]
struct Saved {
    backing: Backing,
    bytes: Box<PageBytes>,
}

impl AddressSpace {
    /// Remembers the mappings and all bytes. What is written through a [`Backing`] or by another
    /// process is not noticed.
    pub fn snapshot(&mut self) -> Result<Snapshot, MapError> {
        self.merge_dropped_logs();
        match self.logs.last() {
            Some(log) => self.freeze(log.dirty_runs())?,
            None => self.freeze_all()?,
        }
        let token = Arc::new(());
        self.logs.push(Log {
            snapshot: Arc::downgrade(&token),
            books: Arc::clone(&self.books),
            saved: BTreeMap::new(),
            fresh: RunSet::default(),
        });
        Ok(Snapshot(token))
    }

    /// Makes mappings and bytes what they were when `snapshot` was taken, and says what changed.
    /// Code translated from it is the caller's business. Backings that are mapped now and were not
    /// then get their bytes back too. Other snapshots, newer ones included, can still be restored.
    pub fn restore(&mut self, snapshot: &Snapshot) -> Result<Restored, MapError> {
        self.forget_dropped_snapshots();
        let token = Arc::as_ptr(&snapshot.0);
        let index = self.logs.iter().position(|log| log.snapshot.as_ptr() == token);
        let index = index.ok_or(MapError::ForeignSnapshot)?;
        let ranges = self.restore_mappings(index)?;
        let newest = index + 1 == self.logs.len();
        let pages = if newest { self.restore_newest() } else { self.restore_older(index) };
        Ok(Restored { pages, ranges })
    }

    /// Whether it is known that no page of `run` is clean.
    pub(super) fn none_clean(&self, run: PageRun) -> bool {
        self.logs.last().is_none_or(|log| log.none_clean(run))
    }

    /// To be called before `page` is written to: makes it dirty.
    pub(super) fn save(&mut self, backing: &Backing, page: PageId) {
        let Some(log) = self.logs.last_mut() else { return };
        if log.none_clean(PageRun::single(page)) {
            return;
        }
        let bytes = backing.copy_page(page.offset());
        log.saved.insert(page, Saved { backing: backing.clone(), bytes });
    }

    /// How many pages are dirty and not fresh.
    pub(super) fn dirty_count(&self) -> usize {
        self.logs.last().map_or(0, |log| log.saved.len())
    }

    /// The pages of `run` next to `page`, below and above, that are dirty and not fresh.
    pub(super) fn dirty_neighbours(
        &self,
        page: PageId,
        run: PageRun,
    ) -> (Option<PageId>, Option<PageId>) {
        let Some(log) = self.logs.last() else { return (None, None) };
        let below = log.saved.range(run.first..page).next_back();
        let above = log.saved.range(page.plus(1)..run.end()).next();
        (below.map(|(&page, _)| page), above.map(|(&page, _)| page))
    }

    /// To be called when private memory is made.
    pub(super) fn note_fresh(&mut self, run: PageRun) {
        if let Some(log) = self.logs.last_mut() {
            log.fresh.insert(run);
        }
    }

    /// Lets go of what no living snapshot needs.
    pub(super) fn forget_dropped_snapshots(&mut self) {
        if !self.logs.is_empty() && self.merge_dropped_logs() && self.logs.is_empty() {
            self.books.iter().for_each(|mapping| self.loosen(mapping));
        }
    }

    /// Gives private pages that were mapped as `gone` back, as far as neither the books nor those
    /// of a snapshot have them.
    pub(super) fn free_unused(&mut self, gone: &[Mapping]) {
        let private = gone.iter().filter(|mapping| self.pool.owns(mapping.backing.number()));
        for run in union(private.map(Mapping::run).collect()) {
            let books = self.logs.iter().map(|log| &log.books).chain([&self.books]);
            let used = books.flat_map(|books| books.places(run)).map(|(used, _)| used);
            for unused in subtract(run, used.collect()) {
                self.forget_pages(unused);
                self.pool.give(unused);
            }
        }
    }

    fn forget_pages(&mut self, run: PageRun) {
        let watched: Vec<PageId> = self.watched.range(run.first..run.end()).copied().collect();
        for page in watched {
            self.watched.remove(&page);
        }
        for log in &mut self.logs {
            let saved = log.saved.range(run.first..run.end());
            for page in saved.map(|(&page, _)| page).collect::<Vec<_>>() {
                log.saved.remove(&page);
            }
            log.fresh.remove(run);
        }
    }

    /// Merges the log of each dropped snapshot into the one before. Whether there were any.
    fn merge_dropped_logs(&mut self) -> bool {
        let dropped = |log: &Log| log.snapshot.strong_count() == 0;
        let mut any = false;
        while let Some(index) = self.logs.iter().rposition(dropped) {
            any = true;
            let log = self.logs.remove(index);
            let books = Arc::clone(&log.books);
            if let Some(before) = index.checked_sub(1) {
                self.logs[before].absorb(log);
            }
            if !Arc::ptr_eq(&books, &self.books) {
                self.free_unused(&books.iter().cloned().collect::<Vec<_>>());
            }
        }
        any
    }

    fn restore_mappings(&mut self, index: usize) -> Result<Vec<GuestRange>, MapError> {
        let books = Arc::clone(&self.logs[index].books);
        if Arc::ptr_eq(&books, &self.books) {
            return Ok(Vec::new());
        }
        let changes = differences(&self.books, &books);
        for (done, change) in changes.iter().enumerate() {
            if let Err(error) = self.show_instead(change.range, &change.now, &change.then) {
                return Err(self.take_back_changes(&changes[..done], error));
            }
        }
        self.books = books;
        let ranges = changes.iter().map(|change| change.range).collect();
        let gone: Vec<Mapping> = changes.into_iter().filter_map(|change| change.now).collect();
        self.free_unused(&gone);
        Ok(ranges)
    }

    fn take_back_changes(&self, changes: &[Difference], error: MapError) -> MapError {
        changes.iter().fold(error, |error, change| {
            let result = match change.now {
                Some(_) => self.show_instead(change.range, &change.then, &change.now),
                None => self.hide_anyhow(change.range),
            };
            or_lost(result, change.range, error)
        })
    }

    /// Shows `new` at `range`, where `old` is shown.
    fn show_instead(
        &self,
        range: GuestRange,
        old: &Option<Mapping>,
        new: &Option<Mapping>,
    ) -> Result<(), MapError> {
        match (old, new) {
            (_, None) => self.hide(range),
            (Some(old), Some(new)) if old.run() == new.run() => self.protect_mapping(new),
            (_, Some(new)) => self.show(new),
        }
    }

    /// Copies back what was saved since the newest snapshot. All pages are clean then.
    fn restore_newest(&mut self) -> Vec<PageId> {
        let Some(log) = self.logs.last_mut() else { return Vec::new() };
        debug_assert!(log.fresh.iter().next().is_none(), "the snapshot's books have no fresh page");
        let saved = std::mem::take(&mut log.saved);
        let different = saved.iter().filter(|(page, saved)| saved.differs(**page));
        let pages = different.inspect(|(page, saved)| saved.put_back(**page));
        let pages = pages.map(|(&page, _)| page).collect();
        let runs = union(saved.keys().map(|&page| PageRun::single(page)).collect());
        if let (Err(error), Some(log)) = (self.freeze(runs), self.logs.last_mut()) {
            // Some may be writable still, so they stay dirty, and their bytes are what was saved.
            tracing::debug!(%error, "pages stay dirty");
            log.saved = saved;
        }
        pages
    }

    /// Copies back what was saved since an older snapshot, as a change after the newest.
    fn restore_older(&mut self, index: usize) -> Vec<PageId> {
        let mut oldest = BTreeMap::new();
        for (page, saved) in self.logs[index..].iter().flat_map(|log| &log.saved) {
            oldest.entry(*page).or_insert_with(|| saved.clone());
        }
        oldest.retain(|&page, saved| saved.differs(page));
        for (&page, saved) in &oldest {
            self.save(&saved.backing, page);
            saved.put_back(page);
        }
        oldest.into_keys().collect()
    }

    /// Makes all pages read-only where guests could write.
    fn freeze_all(&self) -> Result<(), MapError> {
        let writable = self.books.iter().filter(|mapping| mapping.permissions.write());
        writable.map(|mapping| mapping.range).try_for_each(|range| self.tighten(range))
    }

    /// Makes the pages of `runs` read-only where guests could write.
    fn freeze(&self, runs: Vec<PageRun>) -> Result<(), MapError> {
        let places = self.writable_places(runs.into_iter());
        places.into_iter().try_for_each(|place| self.tighten(place))
    }
}

impl Log {
    fn none_clean(&self, run: PageRun) -> bool {
        let saved = run.count == 1 && self.saved.contains_key(&run.first);
        saved || self.fresh.covers(run)
    }

    fn dirty_runs(&self) -> Vec<PageRun> {
        let saved = self.saved.keys().map(|&page| PageRun::single(page));
        union(saved.chain(self.fresh.iter()).collect())
    }

    /// Takes over what a later log has, which nobody else needs any more.
    fn absorb(&mut self, later: Log) {
        for (page, saved) in later.saved {
            if !self.none_clean(PageRun::single(page)) {
                self.saved.insert(page, saved);
            }
        }
        for run in later.fresh.iter() {
            self.fresh.insert(run);
        }
    }
}

impl Saved {
    /// Whether `page` is not as it was.
    fn differs(&self, page: PageId) -> bool {
        let mut now = [0; PAGE_SIZE as usize];
        self.backing.read(page.offset(), &mut now);
        now != *self.bytes
    }

    /// Makes `page` as it was.
    fn put_back(&self, page: PageId) {
        self.backing.write(page.offset(), &*self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{GuestAddress, Permissions};
    use crate::memory::WriteFault;
    use crate::memory::host::probe;

    const RW: Permissions = Permissions::ReadWrite;

    fn range(start: u64, pages: u64) -> GuestRange {
        GuestRange::new(GuestAddress(start), pages * PAGE_SIZE).unwrap()
    }

    fn guest_writes(space: &AddressSpace, address: u64) -> bool {
        probe::write(space.window_start() + address as usize, b"x").is_some()
    }

    fn byte(space: &AddressSpace, address: u64) -> u8 {
        let mut byte = [0];
        space.read(GuestAddress(address), &mut byte).unwrap();
        byte[0]
    }

    #[test]
    fn one_of_ten_thousand_pages_costs_one() {
        let mut space = AddressSpace::new(32).unwrap();
        space.map(range(0x1000, 10_000), RW).unwrap();
        space.write(GuestAddress(0x1000), &vec![7; 10_000 << 12]).unwrap();
        let snapshot = space.snapshot().unwrap();
        let address = 0x12_3456;
        for _ in 0..3 {
            assert!(!guest_writes(&space, address), "clean pages are read-only");
            assert_eq!(space.write_fault(GuestAddress(address)).unwrap(), WriteFault::Retry);
            assert!(guest_writes(&space, address) && !guest_writes(&space, address + 0x1000));
            assert_eq!(space.logs[0].saved.len(), 1);
            let restored = space.restore(&snapshot).unwrap();
            let page = space.page_at(GuestAddress(address)).unwrap();
            assert_eq!(restored, Restored { pages: vec![page], ranges: Vec::new() });
            assert_eq!(byte(&space, address), 7);
        }
        assert_eq!(space.restore(&snapshot).unwrap(), Restored::default());
        drop(snapshot);
        assert!(!guest_writes(&space, address));
        assert_eq!(space.write_fault(GuestAddress(address)).unwrap(), WriteFault::Retry);
        assert!(guest_writes(&space, 0x1000), "without a snapshot all pages are writable");
        assert!(space.logs.is_empty());
    }

    #[test]
    fn mappings_go_back_as_well() {
        let mut space = AddressSpace::new(32).unwrap();
        let backing = Backing::new("test", 0x4000).unwrap();
        space.map_shared(range(0x1000, 4), &backing, 0, RW).unwrap();
        space.map(range(0x8000, 2), RW).unwrap();
        space.write(GuestAddress(0x9000), b"p").unwrap();
        let snapshot = space.snapshot().unwrap();
        space.protect(range(0x2000, 1), Permissions::Read).unwrap();
        space.unmap(range(0x8000, 2)).unwrap();
        space.map(range(0x8000, 1), RW).unwrap();
        assert!(guest_writes(&space, 0x8000), "a fresh page needs no saving");
        space.map(range(1 << 32, 1), RW).unwrap();
        let restored = space.restore(&snapshot).unwrap();
        let changed = [range(0x2000, 1), range(0x8000, 1), range(0x9000, 1), range(1 << 32, 1)];
        assert_eq!((restored.ranges, restored.pages), (changed.to_vec(), Vec::new()));
        assert_eq!((byte(&space, 0x8000), byte(&space, 0x9000)), (0, b'p'));
        assert_eq!(space.write_fault(GuestAddress(0x2000)).unwrap(), WriteFault::Retry);
        assert!(guest_writes(&space, 0x2000));
    }

    #[test]
    fn a_chain_goes_back_to_any_of_its_links_in_any_order() {
        let mut space = AddressSpace::new(32).unwrap();
        space.map(range(0x1000, 1), RW).unwrap();
        let mut snapshots = Vec::new();
        for number in 0..4 {
            space.write(GuestAddress(0x1000), &[number]).unwrap();
            snapshots.push((number, space.snapshot().unwrap()));
        }
        for which in [1, 3, 0, 2, 2, 0, 3] {
            let (number, snapshot) = &snapshots[which];
            space.restore(snapshot).unwrap();
            assert_eq!(byte(&space, 0x1000), *number);
        }
        drop((snapshots.remove(3), snapshots.remove(1)));
        for (number, snapshot) in snapshots.iter().rev() {
            space.restore(snapshot).unwrap();
            assert_eq!(byte(&space, 0x1000), *number);
        }
        assert_eq!(space.logs.len(), 2);
    }

    #[test]
    fn private_memory_of_a_dropped_snapshot_is_freed() {
        let mut space = AddressSpace::new(32).unwrap();
        space.map(range(0x1000, 1), RW).unwrap();
        let page = space.page_at(GuestAddress(0x1000)).unwrap();
        let snapshot = space.snapshot().unwrap();
        space.unmap(range(0x1000, 1)).unwrap();
        space.map(range(0x1000, 1), RW).unwrap();
        assert_ne!(space.page_at(GuestAddress(0x1000)), Some(page), "the snapshot has it");
        space.unmap(range(0x1000, 1)).unwrap();
        drop(snapshot);
        space.map(range(0x1000, 1), RW).unwrap();
        assert_eq!(space.page_at(GuestAddress(0x1000)), Some(page));
    }
    #[test]
    fn what_a_dropped_snapshot_saved_serves_the_one_before() {
        let mut space = AddressSpace::new(32).unwrap();
        space.map(range(0x1000, 2), RW).unwrap();
        let first = space.snapshot().unwrap();
        space.write(GuestAddress(0x1000), b"1").unwrap();
        let second = space.snapshot().unwrap();
        space.write(GuestAddress(0x2000), b"2").unwrap();
        drop(second);
        assert_eq!(space.restore(&first).unwrap().pages.len(), 2);
        assert_eq!((byte(&space, 0x1000), byte(&space, 0x2000)), (0, 0));
    }

    #[test]
    fn a_fresh_page_is_clean_after_the_next_snapshot() {
        let mut space = AddressSpace::new(32).unwrap();
        let _first = space.snapshot().unwrap();
        space.map(range(0x1000, 1), RW).unwrap();
        assert!(guest_writes(&space, 0x1000));
        let second = space.snapshot().unwrap();
        assert!(!guest_writes(&space, 0x1000));
        space.write_fault(GuestAddress(0x1000)).unwrap();
        space.write(GuestAddress(0x1000), b"2").unwrap();
        space.restore(&second).unwrap();
        assert_eq!(byte(&space, 0x1000), b'x');
    }

    #[test]
    fn what_was_saved_of_a_page_that_is_gone_is_forgotten() {
        let mut space = AddressSpace::new(32).unwrap();
        let place = range(0x1000, 1);
        space.map(place, RW).unwrap();
        space.write(GuestAddress(0x1000), b"old").unwrap();
        let page = space.page_at(place.start());
        let first = space.snapshot().unwrap();
        space.unmap(place).unwrap();
        let second = space.snapshot().unwrap();
        space.restore(&first).unwrap();
        space.write(GuestAddress(0x1000), b"new").unwrap();
        space.unmap(place).unwrap();
        drop(first);
        space.map(place, RW).unwrap();
        space.restore(&second).unwrap();
        space.map(place, RW).unwrap();
        assert_eq!((space.page_at(place.start()), byte(&space, 0x1000)), (page, 0));
    }
}
