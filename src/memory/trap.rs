//! Traps: pages that the host gives no access to, whatever the guest may do with them, so that each
//! of the guest's accesses faults and its owner can look at it.
//!
//! Two kinds: ranges of guest addresses that the owner asks for, and, wherever it is mapped, memory
//! that stands for a device ([`Backing::device`](super::Backing::device)). The books know the
//! guest's permissions as for any other page.

use std::io;

use super::books::span;
use super::error::{MapError, or_lost};
use super::host::Protection;
use super::space::AddressSpace;
use crate::guest::{GuestAddress, GuestRange};

impl AddressSpace {
    /// From now on the pages of `ranges`, mapped or not, are trapped, and those that were before are
    /// not. If this fails, nothing has changed.
    pub fn set_traps(&mut self, ranges: &[GuestRange]) -> Result<(), MapError> {
        self.forget_dropped_snapshots();
        let new = merged(ranges.to_vec());
        let old = std::mem::replace(&mut self.traps, new);
        let Err(error) = self.show_traps(&old) else { return Ok(()) };
        let new = std::mem::replace(&mut self.traps, old);
        let whole = new.first().zip(new.last());
        let taken_back = self.show_traps(&new);
        match whole {
            Some((first, last)) => {
                Err(or_lost(taken_back, span(first.start(), last.last()), error))
            }
            None => Err(error),
        }
    }

    /// Whether the host denies access to the page at `address` although the guest may have it.
    #[must_use]
    pub fn is_trapped(&self, address: GuestAddress) -> bool {
        let after = self.traps.partition_point(|trap| trap.start() <= address);
        let asked_for = after > 0 && self.traps[after - 1].contains(address);
        let found = || self.books.find(address).is_some_and(|found| found.backing.is_device());
        asked_for || (self.has_devices && found())
    }

    /// Whether anything may be trapped.
    #[must_use]
    pub fn has_traps(&self) -> bool {
        self.has_devices || !self.traps.is_empty()
    }

    /// Protects `size` bytes of the window at `at`, all of which are mapped; what is trapped there
    /// stays without access.
    pub(super) fn allow(&self, (at, size): (u64, u64), protection: Protection) -> io::Result<()> {
        let whole = span(GuestAddress(at), GuestAddress(at + (size - 1)));
        let mut next = at;
        for trapped in self.trapped(whole) {
            let start = trapped.start().0;
            if start > next {
                self.window.protect((next, start - next), protection)?;
            }
            self.window.protect((start, trapped.size()), Protection::None)?;
            next = start + trapped.size();
        }
        if next < at + size {
            self.window.protect((next, at + size - next), protection)
        } else {
            Ok(())
        }
    }

    /// Whether a page of `range` is trapped.
    pub(super) fn has_trapped(&self, range: GuestRange) -> bool {
        !self.trapped(range).is_empty()
    }

    /// The trapped parts of `range`, in order.
    fn trapped(&self, range: GuestRange) -> Vec<GuestRange> {
        let asked_for = self.traps.iter().filter(|trap| trap.overlaps(range));
        let clip = |trap: &GuestRange| {
            span(trap.start().max(range.start()), trap.last().min(range.last()))
        };
        let mut parts: Vec<GuestRange> = asked_for.map(clip).collect();
        if self.has_devices {
            let devices = self.books.parts(range).filter(|part| part.backing.is_device());
            parts.extend(devices.map(|part| part.range));
        }
        merged(parts)
    }

    /// Protects what is mapped where traps are or `were` as it should be now.
    fn show_traps(&self, were: &[GuestRange]) -> Result<(), MapError> {
        let removed = were.iter().filter(|range| !self.traps.contains(range));
        let added = self.traps.iter().filter(|range| !were.contains(range));
        for range in removed.chain(added) {
            for part in self.books.parts(*range) {
                self.protect_mapping(&part)?;
            }
        }
        Ok(())
    }
}

/// The pages of all `ranges`, each once, in order.
fn merged(mut ranges: Vec<GuestRange>) -> Vec<GuestRange> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, before| {
        let touches = before.last().0.checked_add(1).is_none_or(|end| next.start().0 <= end);
        if touches {
            *before = span(before.start(), before.last().max(next.last()));
        }
        touches
    });
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{PAGE_SIZE, Permissions};
    use crate::memory::host::probe;
    use crate::memory::{Backing, WriteFault};

    const RW: Permissions = Permissions::ReadWrite;

    fn range(start: u64, pages: u64) -> GuestRange {
        GuestRange::new(GuestAddress(start), pages * PAGE_SIZE).unwrap()
    }

    fn allowed(space: &AddressSpace, address: u64) -> (bool, bool) {
        let host = space.window_start() + address as usize;
        let mut byte = [0];
        (probe::read(host, &mut byte).is_some(), probe::write(host, &byte).is_some())
    }

    #[test]
    fn overlapping_ranges_are_one() {
        let ranges = vec![range(0x5000, 1), range(0x1000, 2), range(0x2000, 2), range(0x4000, 1)];
        assert_eq!(merged(ranges), [range(0x1000, 5)]);
    }

    #[test]
    fn a_trap_holds_through_every_change_until_it_is_lifted() {
        let mut space = AddressSpace::new(32).unwrap();
        space.map(range(0x1000, 3), RW).unwrap();
        space.set_traps(&[range(0x2000, 1), range(0x9000, 1)]).unwrap();
        let pages = |space: &AddressSpace| [0x1000, 0x2000, 0x3000].map(|at| allowed(space, at));
        let (all, none) = ((true, true), (false, false));
        assert_eq!(pages(&space), [all, none, all]);
        space.protect(range(0x1000, 3), Permissions::Read).unwrap();
        assert_eq!(pages(&space), [(true, false), none, (true, false)]);
        space.protect(range(0x1000, 3), RW).unwrap();
        let page = space.page_at(GuestAddress(0x2000)).unwrap();
        space.watch(page).unwrap();
        space.unwatch(page);
        drop(space.snapshot().unwrap());
        space.forget_dropped_snapshots();
        assert_eq!(pages(&space), [all, none, all]);
        let fault = space.write_fault(GuestAddress(0x2000)).unwrap();
        assert_eq!(fault, WriteFault::Trapped);
        space.alias(range(0x2000, 1), GuestAddress(0x8000)).unwrap();
        space.remap(range(0x1000, 1), GuestAddress(0x9000)).unwrap();
        assert_eq!((allowed(&space, 0x8000), allowed(&space, 0x9000)), (all, none));
        space.set_traps(&[]).unwrap();
        assert_eq!((allowed(&space, 0x2000), allowed(&space, 0x9000)), (all, all));
    }

    #[test]
    fn a_device_is_trapped_wherever_it_is() {
        let mut space = AddressSpace::new(32).unwrap();
        let device = Backing::device(2 * PAGE_SIZE).unwrap();
        space.map_shared(range(0x1000, 2), &device, 0, RW).unwrap();
        space.alias(range(0x2000, 1), GuestAddress(0x8000)).unwrap();
        let snapshot = space.snapshot().unwrap();
        space.remap(range(0x1000, 1), GuestAddress(0x5000)).unwrap();
        space.protect(range(0x2000, 1), Permissions::ReadWriteExecute).unwrap();
        for address in [0x2000, 0x5000, 0x8000] {
            assert!(space.is_trapped(GuestAddress(address)));
            assert_eq!(allowed(&space, address), (false, false));
        }
        let mut bytes = Vec::new();
        space.fetch(GuestAddress(0x2000), 15, &mut bytes);
        assert!(bytes.is_empty(), "a device has no code");
        space.restore(&snapshot).unwrap();
        assert!(space.is_trapped(GuestAddress(0x1000)));
        assert_eq!(allowed(&space, 0x1000), (false, false));
    }
}
