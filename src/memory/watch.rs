//! Watches on pages with translated code, and what a host write fault in the window means.
//!
//! Protocol of the caller, under its lock: translate from a page only after
//! [`AddressSpace::watch`]; when a fault finds it [`WriteFault::Watched`], retire the code,
//! [`AddressSpace::unwatch`], let the guest's instruction run again.

use super::error::MapError;
use super::page::{PageId, PageRun};
use super::show::place_of;
use super::space::AddressSpace;
use crate::guest::{GuestAddress, PAGE_SIZE};

/// Writable pages among clean ones each cost two of the host's mappings, of which a process has
/// 65,530 and without which it can allocate nothing. From so many dirty pages on, gaps are closed.
const MOST_ISLANDS: usize = 8192;

/// What a host write fault at a guest address means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// The page could be made writable: run the instruction again.
    Retry,
    /// Code has been translated from this page: retire it, unwatch the page, run the instruction
    /// again.
    Watched(PageId),
    /// The page is trapped: the instruction's access is to be made by the owner.
    Trapped,
    /// The guest may not write there: a page fault of its own.
    Denied,
}

impl AddressSpace {
    /// Write-protects `page` wherever it is mapped or will be, until it is unwatched. If this fails
    /// the page is not watched.
    pub fn watch(&mut self, page: PageId) -> Result<(), MapError> {
        self.forget_dropped_snapshots();
        if !self.watched.insert(page) || !self.none_clean(PageRun::single(page)) {
            return Ok(());
        }
        let places = self.writable_places(std::iter::once(PageRun::single(page)));
        let result = places.into_iter().try_for_each(|place| self.tighten(place));
        if result.is_err() {
            self.watched.remove(&page);
        }
        result
    }

    /// Lets the guest write to `page` again where its permissions allow it.
    pub fn unwatch(&mut self, page: PageId) {
        self.forget_dropped_snapshots();
        let run = PageRun::single(page);
        if !self.watched.remove(&page) || !self.none_clean(run) {
            return;
        }
        for place in self.writable_places(std::iter::once(run)) {
            if let Err(error) = self.open(place) {
                // The next write faults, and `write_fault` tries again.
                tracing::debug!(%place, %error, "left read-only");
            }
        }
    }

    /// Whether `page` is watched.
    #[must_use]
    pub fn is_watched(&self, page: PageId) -> bool {
        self.watched.contains(&page)
    }

    /// The host denied a write to the window's page at `address`: says why, and makes the page
    /// writable if nothing but a snapshot was in the way. An error means that it should be writable
    /// and that the host refuses.
    pub fn write_fault(&mut self, address: GuestAddress) -> Result<WriteFault, MapError> {
        self.forget_dropped_snapshots();
        let found = self.books.find(address).filter(|mapping| mapping.permissions.write());
        let Some(mapping) = found.filter(|_| address.0 < self.window.end()) else {
            return Ok(WriteFault::Denied);
        };
        if self.is_trapped(address) {
            return Ok(WriteFault::Trapped);
        }
        let (mapping, page) = (mapping.clone(), mapping.page_at(address));
        self.save(&mapping.backing, page);
        if self.is_watched(page) {
            return Ok(WriteFault::Watched(page));
        }
        let run = self.run_to_open(page, mapping.run());
        (0..run.count).for_each(|count| self.save(&mapping.backing, run.first.plus(count)));
        let distance = (run.first.index - mapping.run().first.index) * PAGE_SIZE;
        self.open(place_of(run, mapping.range.start().wrapping_add(distance)))?;
        Ok(WriteFault::Retry)
    }

    /// The pages of `mapping` that are to become writable because `page` is: it alone, or, where
    /// there are [`MOST_ISLANDS`], all up to the next one that already is.
    fn run_to_open(&self, page: PageId, mapping: PageRun) -> PageRun {
        let alone = PageRun::single(page);
        if self.dirty_count() < MOST_ISLANDS {
            return alone;
        }
        let (below, above) = self.dirty_neighbours(page, mapping);
        let downwards = below.and_then(|below| PageRun::between(below.plus(1), page.plus(1)));
        let upwards = above.and_then(|above| PageRun::between(page, above));
        let runs = downwards.into_iter().chain(upwards).filter(|run| !self.has_watched(*run));
        runs.min_by_key(|run| run.count).unwrap_or(alone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{GuestRange, Permissions};
    use crate::memory::Backing;
    use crate::memory::host::probe;

    const RW: Permissions = Permissions::ReadWrite;

    fn range(start: u64, pages: u64) -> GuestRange {
        GuestRange::new(GuestAddress(start), pages * PAGE_SIZE).unwrap()
    }

    #[test]
    fn what_is_not_the_hosts_doing_is_the_guests() {
        let mut space = AddressSpace::new(32).unwrap();
        space.map(range(0x1000, 1), Permissions::Read).unwrap();
        space.map(range(1 << 32, 1), RW).unwrap();
        for address in [0, 0x1000, 0x2000, 1 << 32] {
            let fault = space.write_fault(GuestAddress(address)).unwrap();
            assert_eq!(fault, WriteFault::Denied);
        }
    }

    #[test]
    fn an_unwatched_page_is_clean_no_more_if_it_was_written_to() {
        let mut space = AddressSpace::new(32).unwrap();
        space.map(range(0x1000, 1), RW).unwrap();
        let page = space.page_at(GuestAddress(0x1000)).unwrap();
        let snapshot = space.snapshot().unwrap();
        space.watch(page).unwrap();
        let fault = space.write_fault(GuestAddress(0x1000)).unwrap();
        assert_eq!(fault, WriteFault::Watched(page));
        space.unwatch(page);
        probe::write(space.window_start() + 0x1000, b"x").unwrap();
        assert_eq!(space.restore(&snapshot).unwrap().pages, [page]);
    }

    /// The limit is the process's, so other tests must not run beside.
    #[test]
    fn at_the_hosts_limit_of_mappings() {
        let own = std::env::current_exe().unwrap();
        let name = "memory::watch::tests::at_the_limit_in_a_process_of_its_own";
        let arguments = ["--exact", name, "--ignored"];
        let output = std::process::Command::new(own).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }

    #[test]
    #[ignore = "uses up the mappings of its process"]
    fn at_the_limit_in_a_process_of_its_own() {
        let limit = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
        let limit: u64 = limit.trim().parse().unwrap();
        let mut space = AddressSpace::new(40).unwrap();
        let backing = Backing::new("test", PAGE_SIZE).unwrap();
        space.map(range(0, 2 * limit), RW).unwrap();
        // At the limit the allocator gets nothing from the system: it lives on what it has.
        let (room, _pin) = (vec![Box::new([1_u8; 1000]); 40_000], Box::new([1_u8; 1000]));
        drop(room);
        let untouched = range((2 * limit - 1000) * PAGE_SIZE, 1);
        let change = |space: &mut AddressSpace, kind: usize, number: u64| {
            let near = range((4 * limit / 3 + 10 * kind as u64 + 2 * number) * PAGE_SIZE, 1);
            let far = range((1 << 39) + 2 * number * PAGE_SIZE, 1);
            match kind {
                0 => space.protect(range(2 * number * PAGE_SIZE, 1), Permissions::Read),
                1 => space.map_shared(far, &backing, 0, RW),
                2 => space.alias(untouched, far.start()),
                3 => space.unmap(near),
                _ => space.watch(space.page_at(near.start()).unwrap()),
            }
        };
        for (kind, most) in [(0, limit), (1, 4), (2, 4), (3, 4), (4, 4)] {
            let mut errors = (0..most).filter_map(|number| {
                let before = (space.books.len(), space.watched.len());
                let error = change(&mut space, kind, number).err()?;
                assert_eq!((space.books.len(), space.watched.len()), before);
                Some(error)
            });
            let error = errors.next().expect("the limit is reached");
            assert!(matches!(error, MapError::TooManyMappings { .. }), "{error}");
        }
        space.unmap(range(0, limit)).unwrap();
        space.map_shared(range((1 << 39) + 100 * PAGE_SIZE, 1), &backing, 0, RW).unwrap();
    }

    #[test]
    fn scattered_dirty_pages_do_not_use_up_the_hosts_mappings() {
        let mut space = AddressSpace::new(32).unwrap();
        let written = 2 * MOST_ISLANDS as u64;
        space.map(range(0, 3 * written), RW).unwrap();
        let snapshot = space.snapshot().unwrap();
        for address in (0..written).map(|number| number * 3 * PAGE_SIZE) {
            let host = space.window_start() + address as usize;
            if probe::write(host, b"x").is_none() {
                let fault = space.write_fault(GuestAddress(address)).unwrap();
                assert_eq!(fault, WriteFault::Retry);
                probe::write(host, b"x").unwrap();
            }
        }
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let of_pool = maps.lines().filter(|line| line.contains("/memfd:tregion-memory")).count();
        assert!(of_pool < 2 * MOST_ISLANDS + 1000, "{of_pool}");
        assert_eq!(space.restore(&snapshot).unwrap().pages.len() as u64, written);
    }
}
