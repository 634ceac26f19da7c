//! Making the window show what the books say: the only file that decides on host protections.
//!
//! A page that the guest may write is first shown read-only where it may have to be (watched, or
//! clean), and then made writable around what is watched. At no time can a guest on another thread
//! write to a page that is watched or clean.

use super::books::{Mapping, span};
use super::error::{MapError, or_lost};
use super::host::Protection;
use super::page::PageRun;
use super::space::AddressSpace;
use crate::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions};

/// What the host allows on a page of these permissions that is neither watched nor clean.
fn protection_of(permissions: Permissions) -> Protection {
    match permissions {
        Permissions::None => Protection::None,
        Permissions::Read | Permissions::ReadExecute => Protection::Read,
        Permissions::ReadWrite | Permissions::ReadWriteExecute => Protection::ReadWrite,
    }
}

impl AddressSpace {
    /// Shows `mapping` in the window, in place of what is there.
    pub(super) fn show(&self, mapping: &Mapping) -> Result<(), MapError> {
        let Some(place) = self.visible(mapping.range) else { return Ok(()) };
        let wanted = protection_of(mapping.permissions);
        let safe = if self.is_plain(mapping) { wanted } else { wanted.min(Protection::Read) };
        let refused = |error| MapError::refused(mapping.range, error);
        let file = (mapping.backing.file(), mapping.offset);
        if mapping.backing.is_device() {
            return self.window.map(place, file, Protection::None).map_err(refused);
        }
        let trapped = self.has_trapped(mapping.range);
        let at_first = if trapped { Protection::None } else { safe };
        self.window.map(place, file, at_first).map_err(refused)?;
        if trapped && let Err(error) = self.allow(place, safe) {
            return Err(or_lost(self.hide_anyhow(mapping.range), mapping.range, refused(error)));
        }
        if safe != wanted {
            self.loosen(mapping);
        }
        Ok(())
    }

    /// Shows all of `mappings`, or none.
    pub(super) fn show_all(&self, mappings: &[Mapping]) -> Result<(), MapError> {
        for (done, mapping) in mappings.iter().enumerate() {
            if let Err(error) = self.show(mapping) {
                let mut shown = mappings[..done].iter();
                let hidden = shown.try_for_each(|shown| self.hide_anyhow(shown.range));
                return Err(or_lost(hidden, mapping.range, error));
            }
        }
        Ok(())
    }

    /// Shows nothing at `range`.
    pub(super) fn hide(&self, range: GuestRange) -> Result<(), MapError> {
        let Some(place) = self.visible(range) else { return Ok(()) };
        self.window.clear(place).map_err(|error| MapError::refused(range, error))
    }

    /// Shows nothing at `range`, to take back what was shown there and nowhere else. Where the host
    /// has reached its limit, it can still take the access away.
    pub(super) fn hide_anyhow(&self, range: GuestRange) -> Result<(), MapError> {
        let Some(place) = self.visible(range) else { return Ok(()) };
        let hidden = self.hide(range);
        hidden.or_else(|error| self.window.protect(place, Protection::None).map_err(|_| error))
    }

    /// Gives `range`, all of which is mapped, the protection for `permissions`.
    pub(super) fn protect_host(
        &self,
        range: GuestRange,
        permissions: Permissions,
    ) -> Result<(), MapError> {
        let Some(place) = self.visible(range) else { return Ok(()) };
        let wanted = protection_of(permissions);
        let plain = wanted != Protection::ReadWrite || self.all_plain(range);
        let safe = if plain { wanted } else { Protection::Read };
        if let Err(error) = self.allow(place, safe) {
            let taken_back = self.protect_as_booked(range);
            return Err(or_lost(taken_back, range, MapError::refused(range, error)));
        }
        if !plain {
            let parts = self.books.parts(range);
            parts.for_each(|part| self.loosen(&Mapping { permissions, ..part }));
        }
        Ok(())
    }

    /// Gives what is shown of `mapping` the protection it should have.
    pub(super) fn protect_mapping(&self, mapping: &Mapping) -> Result<(), MapError> {
        let Some(place) = self.visible(mapping.range) else { return Ok(()) };
        let wanted = protection_of(mapping.permissions);
        let safe = if self.is_plain(mapping) { wanted } else { wanted.min(Protection::Read) };
        let result = self.allow(place, safe);
        result.map_err(|error| MapError::refused(mapping.range, error))?;
        if safe != wanted {
            self.loosen(mapping);
        }
        Ok(())
    }

    /// Makes `range`, all of which is mapped and may be written, read-only. It stays so until
    /// [`Self::write_fault`].
    pub(super) fn tighten(&self, range: GuestRange) -> Result<(), MapError> {
        let Some(place) = self.visible(range) else { return Ok(()) };
        self.allow(place, Protection::Read).map_err(|error| MapError::refused(range, error))
    }

    /// Makes `range`, all of which may be written and is neither watched nor clean, writable.
    pub(super) fn open(&self, range: GuestRange) -> Result<(), MapError> {
        let Some(place) = self.visible(range) else { return Ok(()) };
        self.allow(place, Protection::ReadWrite).map_err(|error| MapError::refused(range, error))
    }

    /// Makes what can be writable in `mapping` so, as far as the host allows: what it refuses stays
    /// read-only until [`Self::write_fault`], which says so then.
    pub(super) fn loosen(&self, mapping: &Mapping) {
        if !mapping.permissions.write() || !self.none_clean(mapping.run()) {
            return;
        }
        for run in self.unwatched(mapping.run()) {
            let distance = (run.first.index - mapping.run().first.index) * PAGE_SIZE;
            let place = place_of(run, mapping.range.start().wrapping_add(distance));
            if let Err(error) = self.open(place) {
                tracing::debug!(%place, %error, "left read-only");
                return;
            }
        }
    }

    /// The places in the window where `run` is shown and may be written, adjacent ones as one.
    pub(super) fn writable_places(&self, runs: impl Iterator<Item = PageRun>) -> Vec<GuestRange> {
        let mut places: Vec<GuestRange> = runs
            .flat_map(|run| self.books.places(run))
            .filter(|&(_, start)| self.is_writable_in_window(start))
            .map(|(run, start)| place_of(run, start))
            .collect();
        places.sort_unstable();
        places.dedup_by(|next, before| {
            let adjacent = before.last().wrapping_add(1) == next.start();
            if adjacent {
                *before = span(before.start(), next.last());
            }
            adjacent
        });
        places
    }

    fn is_writable_in_window(&self, address: GuestAddress) -> bool {
        address.0 < self.window.end()
            && self.books.find(address).is_some_and(|mapping| mapping.permissions.write())
    }

    fn protect_as_booked(&self, range: GuestRange) -> Result<(), MapError> {
        self.books.parts(range).try_for_each(|part| self.protect_mapping(&part))
    }

    /// The part of `range` in the window, as start and size.
    fn visible(&self, range: GuestRange) -> Option<(u64, u64)> {
        let room = self.window.end().checked_sub(range.start().0).filter(|&room| room > 0)?;
        Some((range.start().0, range.size().min(room)))
    }

    fn all_plain(&self, range: GuestRange) -> bool {
        self.logs.is_empty()
            && (self.watched.is_empty() || self.books.parts(range).all(|part| self.is_plain(&part)))
    }

    /// Whether no page of `mapping` is watched or clean.
    fn is_plain(&self, mapping: &Mapping) -> bool {
        self.none_clean(mapping.run()) && !self.has_watched(mapping.run())
    }

    pub(super) fn has_watched(&self, run: PageRun) -> bool {
        !self.watched.is_empty() && self.watched.range(run.first..run.end()).next().is_some()
    }

    /// The runs between the watched pages of `run`.
    fn unwatched(&self, run: PageRun) -> Vec<PageRun> {
        let mut runs = Vec::new();
        let mut from = run.first;
        for &page in self.watched.range(run.first..run.end()) {
            runs.extend(PageRun::between(from, page));
            from = page.plus(1);
        }
        runs.extend(PageRun::between(from, run.end()));
        runs
    }
}

/// Where `run` lies if its first page is at `start`.
pub(super) fn place_of(run: PageRun, start: GuestAddress) -> GuestRange {
    span(start, start.wrapping_add(run.count * PAGE_SIZE - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::host::probe;
    use crate::memory::{Backing, WriteFault};
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn range(start: u64, pages: u64) -> GuestRange {
        GuestRange::new(GuestAddress(start), pages * PAGE_SIZE).unwrap()
    }

    /// Whether a guest could read and write at `address` just now.
    fn allowed(space: &AddressSpace, address: u64) -> (bool, bool) {
        let host = space.window_start() + address as usize;
        let mut byte = [0];
        let reads = probe::read(host, &mut byte).is_some();
        (reads, probe::write(host, &byte).is_some())
    }

    #[test]
    fn the_host_grants_what_the_guest_has() {
        let mut space = AddressSpace::new(33).unwrap();
        let last_page = space.window_end() - 0x1000;
        let backing = Backing::new("test", PAGE_SIZE).unwrap();
        for start in [0, 0x1000, last_page] {
            assert_eq!(allowed(&space, start), (false, false));
            for first in Permissions::ALL {
                space.map_shared(range(start, 1), &backing, 0, first).unwrap();
                assert_eq!(allowed(&space, start), (first.read(), first.write()));
                for second in Permissions::ALL {
                    space.protect(range(start, 1), second).unwrap();
                    assert_eq!(allowed(&space, start), (second.read(), second.write()));
                }
                space.unmap(range(start, 1)).unwrap();
                assert_eq!(allowed(&space, start), (false, false));
            }
        }
        let guards = [0_u64.wrapping_sub(1), 0_u64.wrapping_sub(32 << 30), last_page + 0x1000];
        for guard in guards {
            let host = space.window_start().wrapping_add(guard as usize);
            assert!(probe::read(host, &mut [0]).is_none());
        }
    }

    #[test]
    fn aliases_are_the_same_memory_to_the_guest() {
        let mut space = AddressSpace::new(32).unwrap();
        space.map(range(0x1000, 2), Permissions::ReadWrite).unwrap();
        space.alias(range(0x2000, 1), GuestAddress(0x9000)).unwrap();
        space.remap(range(0x1000, 2), GuestAddress(0x5_0000)).unwrap();
        let start = space.window_start();
        probe::write(start + 0x9004, b"guest").unwrap();
        let mut bytes = [0; 5];
        probe::read(start + 0x5_1004, &mut bytes).unwrap();
        assert_eq!(&bytes, b"guest");
        space.read(GuestAddress(0x5_1004), &mut bytes).unwrap();
        assert_eq!(&bytes, b"guest");
        assert_eq!(allowed(&space, 0x1000), (false, false));
    }

    #[test]
    fn a_watch_holds_at_every_alias_and_in_every_change() {
        let mut space = AddressSpace::new(32).unwrap();
        let all = Permissions::ReadWriteExecute;
        space.map(range(0x1000, 3), all).unwrap();
        space.alias(range(0x1000, 3), GuestAddress(0x1_0000)).unwrap();
        let page = space.page_at(GuestAddress(0x2000)).unwrap();
        space.watch(page).unwrap();
        space.watch(page).unwrap();
        let writable = |space: &AddressSpace, start: u64| {
            [0, 0x1000, 0x2000].map(|offset| allowed(space, start + offset).1)
        };
        for start in [0x1000, 0x1_0000] {
            assert_eq!(writable(&space, start), [true, false, true]);
            space.protect(range(start, 3), Permissions::Read).unwrap();
            space.protect(range(start, 3), all).unwrap();
            assert_eq!(writable(&space, start), [true, false, true]);
        }
        space.remap(range(0x1000, 3), GuestAddress(0x2_0000)).unwrap();
        space.alias(range(0x2_0000, 3), GuestAddress(0x3_0000)).unwrap();
        for start in [0x1_0000, 0x2_0000, 0x3_0000] {
            assert_eq!(writable(&space, start), [true, false, true]);
        }
        let fault = space.write_fault(GuestAddress(0x3_1234)).unwrap();
        assert_eq!(fault, WriteFault::Watched(page));
        space.unwatch(page);
        for start in [0x1_0000, 0x2_0000, 0x3_0000] {
            assert_eq!(writable(&space, start), [true, true, true]);
        }
        assert_eq!(space.write_fault(GuestAddress(0x1000)).unwrap(), WriteFault::Denied);
    }

    #[test]
    fn a_guest_on_another_thread_never_gets_past_a_watch() {
        let mut space = AddressSpace::new(32).unwrap();
        let all = Permissions::ReadWriteExecute;
        space.map(range(0x1000, 3), all).unwrap();
        let page = space.page_at(GuestAddress(0x2000)).unwrap();
        space.watch(page).unwrap();
        let start = space.window_start();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    for address in [0x2000, 0x1_1000, 0x2_1000] {
                        assert!(probe::write(start + address, b"!").is_none());
                    }
                }
            });
            for _ in 0..2000 {
                space.protect(range(0x1000, 3), Permissions::Read).unwrap();
                space.protect(range(0x1000, 3), all).unwrap();
                space.alias(range(0x1000, 3), GuestAddress(0x1_0000)).unwrap();
                space.remap(range(0x1_0000, 3), GuestAddress(0x2_0000)).unwrap();
                space.unmap(range(0x2_0000, 3)).unwrap();
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn dropping_it_frees_maps_and_descriptors() {
        let mut space = AddressSpace::new(32).unwrap();
        let backing = Backing::new("test", PAGE_SIZE).unwrap();
        space.map_shared(range(0x1000, 1), &backing, 0, Permissions::ReadWriteExecute).unwrap();
        space.map(range(0x2000, 1), Permissions::ReadExecute).unwrap();
        let private = space.find(GuestAddress(0x2000)).unwrap().backing;
        let inodes = [&backing, &private].map(|b| b.file().metadata().unwrap().ino());
        let window = space.window_start()..space.window_start() + (1 << 32);
        let lines = maps_of(&window);
        assert_eq!(lines.len(), 3, "{lines:?}");
        let executable = |line: &String| line.split(' ').nth(1).unwrap().contains('x');
        assert!(!lines.iter().any(executable), "{lines:?}");
        assert_eq!(users_of(&inodes), (4, 2), "each file is shown once and mapped once whole");
        drop((space, backing, private));
        assert!(maps_of(&window).iter().all(|line| !line.contains("memfd:")));
        assert_eq!(users_of(&inodes), (0, 0));
    }

    fn maps_of(window: &std::ops::Range<usize>) -> Vec<String> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let starts = |line: &&str| {
            let start = line.split('-').next().unwrap();
            window.contains(&usize::from_str_radix(start, 16).unwrap())
        };
        maps.lines().filter(starts).map(str::to_owned).collect()
    }

    /// How many maps and how many descriptors of this process have one of these files.
    fn users_of(inodes: &[u64]) -> (usize, usize) {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let inode = |line: &str| line.split_whitespace().nth(4).unwrap().parse().unwrap();
        let maps = maps.lines().filter(|line| line.contains("/memfd:"));
        let maps = maps.filter(|line| inodes.contains(&inode(line))).count();
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
        let files = descriptors.filter_map(|entry| std::fs::metadata(entry.ok()?.path()).ok());
        let is_ours = |file: &std::fs::Metadata| file.nlink() == 0 && inodes.contains(&file.ino());
        (maps, files.filter(is_ours).count())
    }
}
