//! The host's own access to guest memory, and questions to the books.

use std::ops::Range;
use std::sync::Arc;

use super::books::Mapping;
use super::error::AccessError;
use super::page::{PageId, PageRun};
use super::space::AddressSpace;
use crate::guest::{GuestAddress, GuestRange, PAGE_SIZE, Permissions};

impl AddressSpace {
    /// Copies the bytes at `address`, whatever the guest may do with them. All must be mapped; on
    /// an error the contents of `bytes` are unspecified.
    pub fn read(&self, address: GuestAddress, bytes: &mut [u8]) -> Result<(), AccessError> {
        self.pieces(address, bytes.len(), |mapping, offset, piece| {
            mapping.backing.read(offset, &mut bytes[piece]);
        })
    }

    /// Replaces the bytes at `address`, whatever the guest may do with them: all of them, or none
    /// if not all are mapped. Watches are not consulted; code that may have been translated from
    /// them is the caller's business.
    pub fn write(&mut self, address: GuestAddress, bytes: &[u8]) -> Result<(), AccessError> {
        self.forget_dropped_snapshots();
        self.pieces(address, bytes.len(), |_, _, _| ())?;
        if !self.logs.is_empty() {
            self.save_all(address, bytes.len())?;
        }
        self.pieces(address, bytes.len(), |mapping, offset, piece| {
            mapping.backing.write(offset, &bytes[piece]);
        })
    }

    /// The mapping that holds `address`.
    #[must_use]
    pub fn find(&self, address: GuestAddress) -> Option<Mapping> {
        self.books.find(address).cloned()
    }

    /// Everything that is mapped, in order of address. Mappings that continue each other are one.
    pub fn regions(&self) -> impl Iterator<Item = Mapping> {
        self.books.iter().cloned()
    }

    /// What the guest may do at `address`, if something is mapped there.
    #[must_use]
    pub fn permissions_at(&self, address: GuestAddress) -> Option<Permissions> {
        Some(self.books.find(address)?.permissions)
    }

    /// Appends the bytes from `address` on to `bytes`: at most `most`, and only as far as pages
    /// that the guest may execute follow each other.
    pub fn fetch(&self, address: GuestAddress, most: usize, bytes: &mut Vec<u8>) {
        let (mut next, mut wanted) = (Some(address), most);
        while let Some(at) = next.filter(|_| wanted > 0) {
            let executable =
                |found: &&Mapping| found.permissions.execute() && !found.backing.is_device();
            let Some(mapping) = self.books.find(at).filter(executable) else { return };
            let length = room(mapping.range, at).min(wanted);
            mapping.backing.append(mapping.offset_of(at), length, bytes);
            wanted -= length;
            next = at.0.checked_add(length as u64).map(GuestAddress);
        }
    }

    /// The page at `address`, if something is mapped there.
    #[must_use]
    pub fn page_at(&self, address: GuestAddress) -> Option<PageId> {
        Some(self.books.find(address)?.page_at(address))
    }

    /// The address of every guest page that maps `page`, in order.
    #[must_use]
    pub fn addresses_of(&self, page: PageId) -> Vec<GuestAddress> {
        let places = self.books.places(PageRun::single(page));
        let mut addresses: Vec<GuestAddress> = places.map(|(_, address)| address).collect();
        addresses.sort_unstable();
        addresses
    }

    /// Saves every page of an access for the snapshots that need it. All of it is mapped.
    fn save_all(&mut self, address: GuestAddress, length: usize) -> Result<(), AccessError> {
        let books = Arc::clone(&self.books);
        let mut next = address;
        let last = address.wrapping_add((length as u64).saturating_sub(1));
        while length > 0 && next <= last {
            let mapping = books.find(next).ok_or(AccessError { address: next })?;
            self.save(&mapping.backing, mapping.page_at(next));
            match next.page_start().0.checked_add(PAGE_SIZE) {
                Some(following) => next = GuestAddress(following),
                None => break,
            }
        }
        Ok(())
    }

    /// Calls `visit` for each part of the access that lies in one mapping, with the offset in its
    /// backing and the part's place in the access, up to the first hole.
    fn pieces(
        &self,
        address: GuestAddress,
        length: usize,
        mut visit: impl FnMut(&Mapping, u64, Range<usize>),
    ) -> Result<(), AccessError> {
        let mut done = 0;
        while done < length {
            let at = address.0.checked_add(done as u64).map(GuestAddress);
            let at = at.ok_or(AccessError { address: GuestAddress(0) })?;
            let mapping = self.books.find(at).ok_or(AccessError { address: at })?;
            let size = room(mapping.range, at).min(length - done);
            visit(mapping, mapping.offset_of(at), done..done + size);
            done += size;
        }
        Ok(())
    }
}

/// Bytes of `range` from `address` on.
fn room(range: GuestRange, address: GuestAddress) -> usize {
    let behind = range.last().0 - address.0;
    usize::try_from(behind).unwrap_or(usize::MAX).saturating_add(1)
}
