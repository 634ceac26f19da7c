//! [`AddressSpace`]: mapping, unmapping, protecting, moving and aliasing.
//!
//! Each change goes: check everything; change the host; change the books. Where the host refuses
//! halfway, what it did is taken back and the books were never touched.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::backing::Backing;
use super::books::{Books, Mapping, span};
use super::error::{MapError, or_lost};
use super::host::Window;
use super::page::PageId;
use super::pool::Pool;
use super::snapshot::Log;
use crate::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions};

/// The addresses that 48-bit linear addresses do not have (Intel SDM volume 1, section 3.3.7.1).
const NOT_CANONICAL: (u64, u64) = (0x0000_8000_0000_0000, 0xffff_7fff_ffff_ffff);

/// The memory of a guest: see the head of `memory/mod.rs`.
///
/// Dropping it frees its window; backings live on where somebody else holds them.
#[derive(Debug)]
pub struct AddressSpace {
    /// First, so that it goes before the memory it shows.
    pub(super) window: Window,
    /// What is mapped. Snapshots share it until it changes.
    pub(super) books: Arc<Books>,
    /// Where private memory comes from.
    pub(super) pool: Pool,
    /// Pages with code translated from them.
    pub(super) watched: BTreeSet<PageId>,
    /// What the snapshots that are alive need to go back, the oldest first.
    pub(super) logs: Vec<Log>,
    /// Where the owner wants to see every access: sorted, disjoint, not adjacent.
    pub(super) traps: Vec<GuestRange>,
    /// A device was mapped at some time.
    pub(super) has_devices: bool,
}

impl AddressSpace {
    /// An empty address space whose window shows the guest addresses below 2^`window_bits`, with
    /// `window_bits` from 32 to 46.
    pub fn new(window_bits: u32) -> Result<Self, MapError> {
        if !(32..=46).contains(&window_bits) {
            return Err(MapError::WindowBits(window_bits));
        }
        let size = 1 << window_bits;
        let window = Window::reserve(size).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOMEM) => MapError::OutOfMemory { size: size as u64 },
            _ => MapError::Host(error),
        })?;
        Ok(Self {
            window,
            books: Arc::default(),
            pool: Pool::default(),
            watched: BTreeSet::new(),
            logs: Vec::new(),
            traps: Vec::new(),
            has_devices: false,
        })
    }

    /// The host address at which the window shows guest address 0.
    #[must_use]
    pub fn window_start(&self) -> usize {
        self.window.start()
    }

    /// The window shows the guest addresses below 2 to this power.
    #[must_use]
    pub fn window_bits(&self) -> u32 {
        self.window.end().ilog2()
    }

    /// The first guest address above the window.
    #[must_use]
    pub fn window_end(&self) -> u64 {
        self.window.end()
    }

    /// Maps private memory, all zeros, at `range`.
    pub fn map(&mut self, range: GuestRange, permissions: Permissions) -> Result<(), MapError> {
        self.forget_dropped_snapshots();
        self.check_place(range)?;
        self.check_free(range)?;
        let (backing, offset) = self.pool.take(range.size())?;
        let mapping = Mapping { range, permissions, backing, offset };
        self.note_fresh(mapping.run());
        if let Err(error) = self.show(&mapping) {
            self.free_unused(&[mapping]);
            return Err(error);
        }
        self.books_mut().insert(mapping);
        Ok(())
    }

    /// Maps the bytes of `backing` from `offset` on at `range`.
    pub fn map_shared(
        &mut self,
        range: GuestRange,
        backing: &Backing,
        offset: u64,
        permissions: Permissions,
    ) -> Result<(), MapError> {
        self.forget_dropped_snapshots();
        self.check_place(range)?;
        check_inside(range, backing, offset)?;
        self.check_free(range)?;
        let mapping = Mapping { range, permissions, backing: backing.clone(), offset };
        self.has_devices |= backing.is_device();
        self.show(&mapping)?;
        self.books_mut().insert(mapping);
        Ok(())
    }

    /// Unmaps `range`, all of which must be mapped. Private memory that is then mapped nowhere is
    /// gone.
    pub fn unmap(&mut self, range: GuestRange) -> Result<(), MapError> {
        self.forget_dropped_snapshots();
        self.check_mapped(range)?;
        self.hide(range)?;
        let gone = self.books_mut().cut(range);
        self.free_unused(&gone);
        Ok(())
    }

    /// Changes what the guest may do with `range`, all of which must be mapped.
    pub fn protect(&mut self, range: GuestRange, permissions: Permissions) -> Result<(), MapError> {
        self.forget_dropped_snapshots();
        self.check_mapped(range)?;
        self.protect_host(range, permissions)?;
        let books = self.books_mut();
        for mut mapping in books.cut(range) {
            mapping.permissions = permissions;
            books.insert(mapping);
        }
        Ok(())
    }

    /// Moves what is mapped at `source`, all of which must be mapped, to `destination`, which must
    /// be free but for pages of the source itself. Aliases stay where they are.
    pub fn remap(&mut self, source: GuestRange, destination: GuestAddress) -> Result<(), MapError> {
        self.forget_dropped_snapshots();
        let target = self.check_destination(source, destination)?;
        self.check_free_but_for(target, source)?;
        let copies = self.copies(source, target);
        if let Err(error) = self.show_all(&copies) {
            return Err(or_lost(self.show_common(source, target), source, error));
        }
        if let Err(error) = without(source, target).map_or(Ok(()), |left| self.hide(left)) {
            let hidden = without(target, source).map_or(Ok(()), |made| self.hide_anyhow(made));
            let taken_back = hidden.and_then(|()| self.show_common(source, target));
            return Err(or_lost(taken_back, source, error));
        }
        let books = self.books_mut();
        books.cut(source);
        copies.into_iter().for_each(|copy| books.insert(copy));
        Ok(())
    }

    /// Maps the pages of `source`, all of which must be mapped, a second time at `destination`,
    /// which must be free, with the permissions they have.
    pub fn alias(&mut self, source: GuestRange, destination: GuestAddress) -> Result<(), MapError> {
        self.forget_dropped_snapshots();
        let target = self.check_destination(source, destination)?;
        self.check_free(target)?;
        let copies = self.copies(source, target);
        self.show_all(&copies)?;
        let books = self.books_mut();
        copies.into_iter().for_each(|copy| books.insert(copy));
        Ok(())
    }

    pub(super) fn books_mut(&mut self) -> &mut Books {
        Arc::make_mut(&mut self.books)
    }

    /// What is mapped at `source`, as it is to be at `target`.
    fn copies(&self, source: GuestRange, target: GuestRange) -> Vec<Mapping> {
        let distance = target.start().0.wrapping_sub(source.start().0);
        let moved = |part: Mapping| part.at(part.range.start().wrapping_add(distance));
        self.books.parts(source).map(moved).collect()
    }

    /// Shows the part of `source` again that a move to `target` has shown something else at.
    fn show_common(&self, source: GuestRange, target: GuestRange) -> Result<(), MapError> {
        if !source.overlaps(target) {
            return Ok(());
        }
        let parts: Vec<Mapping> = self.books.parts(clip(source, target)).collect();
        self.show_all(&parts)
    }

    fn check_destination(
        &self,
        source: GuestRange,
        destination: GuestAddress,
    ) -> Result<GuestRange, MapError> {
        let target = GuestRange::new(destination, source.size())?;
        self.check_place(target)?;
        self.check_mapped(source)?;
        Ok(target)
    }

    fn check_place(&self, range: GuestRange) -> Result<(), MapError> {
        let (start, last) = (range.start().0, range.last().0);
        if start <= NOT_CANONICAL.1 && last >= NOT_CANONICAL.0 {
            return Err(MapError::NonCanonical { range });
        }
        let end = self.window.end();
        if start < end && last >= end {
            return Err(MapError::StraddlesWindow { range, end });
        }
        Ok(())
    }

    fn check_free(&self, range: GuestRange) -> Result<(), MapError> {
        match self.books.overlapping(range).next() {
            Some(with) => Err(MapError::Overlap { range, with: with.range }),
            None => Ok(()),
        }
    }

    fn check_free_but_for(&self, range: GuestRange, own: GuestRange) -> Result<(), MapError> {
        let foreign = |with: &&Mapping| !own.covers(clip(with.range, range));
        match self.books.overlapping(range).find(foreign) {
            Some(with) => Err(MapError::Overlap { range, with: with.range }),
            None => Ok(()),
        }
    }

    fn check_mapped(&self, range: GuestRange) -> Result<(), MapError> {
        match self.books.first_hole(range) {
            Some(at) => Err(MapError::NotMapped { range, at }),
            None => Ok(()),
        }
    }
}

fn check_inside(range: GuestRange, backing: &Backing, offset: u64) -> Result<(), MapError> {
    let size = backing.size();
    if !offset.is_multiple_of(PAGE_SIZE) {
        return Err(MapError::OffsetUnaligned { range, offset });
    }
    match offset.checked_add(range.size()) {
        Some(end) if end <= size => Ok(()),
        _ => Err(MapError::OutsideBacking { range, offset, size }),
    }
}

/// The part of `range` inside of `other`, with which it overlaps.
fn clip(range: GuestRange, other: GuestRange) -> GuestRange {
    span(range.start().max(other.start()), range.last().min(other.last()))
}

/// The part of `range` outside of `other`, which is as large.
fn without(range: GuestRange, other: GuestRange) -> Option<GuestRange> {
    if !range.overlaps(other) {
        return Some(range);
    }
    match range.start().cmp(&other.start()) {
        Ordering::Equal => None,
        Ordering::Less => Some(span(range.start(), GuestAddress(other.start().0 - 1))),
        Ordering::Greater => Some(span(other.last().wrapping_add(1), range.last())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::AccessError;

    const RW: Permissions = Permissions::ReadWrite;

    fn range(start: u64, pages: u64) -> GuestRange {
        GuestRange::new(GuestAddress(start), pages * PAGE_SIZE).unwrap()
    }

    fn with_three_pages() -> (AddressSpace, Backing) {
        let mut space = AddressSpace::new(32).unwrap();
        let backing = Backing::new("test", 8 * PAGE_SIZE).unwrap();
        space.map_shared(range(0x1000, 3), &backing, 0x1000, RW).unwrap();
        (space, backing)
    }

    fn ranges(space: &AddressSpace) -> Vec<GuestRange> {
        space.regions().map(|mapping| mapping.range).collect()
    }

    /// What `call` is refused with. Nothing may have changed.
    fn refusal<T: std::fmt::Debug>(
        space: &mut AddressSpace,
        call: impl FnOnce(&mut AddressSpace) -> Result<T, MapError>,
    ) -> MapError {
        let before = ranges(space);
        let error = call(space).unwrap_err();
        assert_eq!(ranges(space), before);
        error
    }

    macro_rules! refused {
        ($space:ident, $call:expr, $pattern:pat $(if $guard:expr)?) => {{
            let error = refusal(&mut $space, $call);
            assert!(matches!(error, $pattern $(if $guard)?), "{error}");
        }};
    }

    #[test]
    fn windows_have_a_least_and_a_greatest_size() {
        for bits in [0, 31, 47, 64] {
            let error = AddressSpace::new(bits).unwrap_err();
            assert!(matches!(error, MapError::WindowBits(refused) if refused == bits));
        }
        for bits in [32, 46] {
            let space = AddressSpace::new(bits).unwrap();
            assert_eq!((space.window_bits(), space.window_end()), (bits, 1 << bits));
        }
    }

    #[test]
    fn every_refusal_says_why_and_changes_nothing() {
        let (mut space, backing) = with_three_pages();
        refused!(space, |s| s.map(range(0x3000, 2), RW), MapError::Overlap { .. });
        refused!(space, |s| s.map_shared(range(0, 2), &backing, 0, RW), MapError::Overlap { .. });
        refused!(
            space,
            |s| s.alias(range(0x1000, 2), GuestAddress(0x2000)),
            MapError::Overlap { .. }
        );
        refused!(
            space,
            |s| s.remap(range(0x1000, 1), GuestAddress(0x3000)),
            MapError::Overlap { .. }
        );
        let hole = GuestAddress(0x4000);
        refused!(space, |s| s.unmap(range(0x3000, 2)), MapError::NotMapped { at, .. } if at == hole);
        refused!(space, |s| s.protect(range(0x3000, 9), RW), MapError::NotMapped { at, .. } if at == hole);
        refused!(space, |s| s.remap(range(0x3000, 2), hole), MapError::NotMapped { .. });
        refused!(space, |s| s.alias(range(0x5000, 2), hole), MapError::NotMapped { .. });
        refused!(
            space,
            |s| s.map_shared(range(0x8000, 1), &backing, 1, RW),
            MapError::OffsetUnaligned { .. }
        );
        refused!(
            space,
            |s| s.map_shared(range(0x8000, 9), &backing, 0, RW),
            MapError::OutsideBacking { .. }
        );
        refused!(
            space,
            |s| s.map_shared(range(0x8000, 1), &backing, !0xfff, RW),
            MapError::OutsideBacking { .. }
        );
        let end = space.window_end();
        refused!(space, |s| s.map(range(end - 0x1000, 2), RW), MapError::StraddlesWindow { .. });
        refused!(
            space,
            |s| s.alias(range(0x1000, 2), GuestAddress(end - 0x1000)),
            MapError::StraddlesWindow { .. }
        );
        for start in [0x7fff_ffff_f000, 0x8000_0000_0000, 0xffff_7fff_ffff_f000] {
            refused!(space, |s| s.map(range(start, 2), RW), MapError::NonCanonical { .. });
        }
        refused!(space, |s| s.remap(range(0x1000, 2), GuestAddress(!0xfff)), MapError::Range(_));
        refused!(space, |s| s.alias(range(0x1000, 2), GuestAddress(0x123)), MapError::Range(_));
        let foreign = AddressSpace::new(32).unwrap().snapshot().unwrap();
        refused!(space, |s| s.restore(&foreign), MapError::ForeignSnapshot);
    }

    #[test]
    fn memory_the_host_cannot_have_is_refused() {
        let mut space = AddressSpace::new(46).unwrap();
        let most = GuestRange::new(GuestAddress(0), 1 << 46).unwrap();
        refused!(space, |s| s.map(most, RW), MapError::OutOfMemory { size } if size == 1 << 46);
        let huge = GuestRange::new(GuestAddress(0), 1 << 40).unwrap();
        space.map(huge, RW).unwrap();
        space.write(GuestAddress(0x12_3456_7890), b"sparse").unwrap();
    }

    #[test]
    fn a_move_may_overlap_with_itself() {
        for (to, hole) in [(0x2000, 0x1000), (0, 0x2000)] {
            let (mut space, _backing) = with_three_pages();
            space.write(GuestAddress(0x1000), b"one").unwrap();
            space.write(GuestAddress(0x2000), b"two").unwrap();
            space.unmap(range(0x3000, 1)).unwrap();
            space.remap(range(0x1000, 2), GuestAddress(to)).unwrap();
            assert_eq!(ranges(&space), [range(to, 2)]);
            let mut bytes = [0; 3];
            space.read(GuestAddress(to + 0x1000), &mut bytes).unwrap();
            assert_eq!(&bytes, b"two");
            assert_eq!(space.find(GuestAddress(hole)).is_some(), to == hole);
        }
    }

    #[test]
    fn private_memory_is_zeros_again_after_it_was_freed() {
        let mut space = AddressSpace::new(32).unwrap();
        let place = range(0x1000, 4);
        space.map(place, RW).unwrap();
        space.write(GuestAddress(0x2000), &[1; 100]).unwrap();
        let page = space.page_at(GuestAddress(0x2000)).unwrap();
        space.alias(range(0x2000, 1), GuestAddress(0x1_0000)).unwrap();
        space.unmap(place).unwrap();
        let mut bytes = [0; 100];
        space.read(GuestAddress(0x1_0000), &mut bytes).unwrap();
        assert_eq!(bytes, [1; 100], "an alias keeps its page");
        space.watch(page).unwrap();
        space.unmap(range(0x1_0000, 1)).unwrap();
        assert!(!space.is_watched(page), "a page that is gone is not watched");
        space.map(place, RW).unwrap();
        space.read(GuestAddress(0x2000), &mut bytes).unwrap();
        assert_eq!((space.page_at(GuestAddress(0x2000)), bytes), (Some(page), [0; 100]));
    }

    #[test]
    fn above_the_window_there_are_only_books() {
        let mut space = AddressSpace::new(32).unwrap();
        let top = range(0xffff_ffff_ffff_e000, 2);
        space.map(top, Permissions::ReadExecute).unwrap();
        space.write(GuestAddress(u64::MAX - 1), b"\x0f\x05").unwrap();
        let mut bytes = Vec::new();
        space.fetch(GuestAddress(u64::MAX - 1), 15, &mut bytes);
        assert_eq!(bytes, b"\x0f\x05");
        let error = space.read(GuestAddress(u64::MAX), &mut [0; 2]).unwrap_err();
        assert_eq!(error, AccessError { address: GuestAddress(0) });
        space.alias(top, GuestAddress(0x1000)).unwrap();
        space.remap(top, GuestAddress(1 << 32)).unwrap();
        assert_eq!(ranges(&space), [range(0x1000, 2), range(1 << 32, 2)]);
    }

    #[test]
    fn an_address_space_goes_to_other_threads() {
        fn is_send<T: Send>() {}
        is_send::<AddressSpace>();
        is_send::<crate::memory::Snapshot>();
    }
}
