//! Guest addresses and page ranges. A guest address is never a bare `u64` in an interface.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes in a guest page.
pub const PAGE_SIZE: u64 = 4096;

/// A linear address in the guest's address space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct GuestAddress(pub u64);

impl GuestAddress {
    /// The address `offset` bytes further on, modulo 2^64.
    #[must_use]
    pub fn wrapping_add(self, offset: u64) -> Self {
        Self(self.0.wrapping_add(offset))
    }

    /// The start of the page that holds this address.
    #[must_use]
    pub fn page_start(self) -> Self {
        Self(self.0 & !(PAGE_SIZE - 1))
    }

    /// Whether the address is a multiple of the page size.
    #[must_use]
    pub fn is_page_aligned(self) -> bool {
        self.0.is_multiple_of(PAGE_SIZE)
    }
}

impl fmt::Display for GuestAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#x}", self.0)
    }
}

impl fmt::Debug for GuestAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// A non-empty run of whole pages that does not wrap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "(GuestAddress, u64)", into = "(GuestAddress, u64)")]
pub struct GuestRange {
    start: GuestAddress,
    size: u64,
}

/// Why a start and a size are not a page range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The start is not a multiple of the page size.
    #[error("the start {0} is not a multiple of the page size 0x1000")]
    StartUnaligned(GuestAddress),
    /// The size is not a multiple of the page size.
    #[error("the size {0:#x} is not a multiple of the page size 0x1000")]
    SizeUnaligned(u64),
    /// The size is zero.
    #[error("the range is empty")]
    Empty,
    /// The range goes past the end of the 64-bit address space.
    #[error("{size:#x} bytes from {start} go past the end of the address space")]
    Wraps {
        /// Where the range starts.
        start: GuestAddress,
        /// Its size in bytes.
        size: u64,
    },
}

impl GuestRange {
    /// The pages `start .. start + size`, both in bytes.
    pub fn new(start: GuestAddress, size: u64) -> Result<Self, RangeError> {
        if !start.is_page_aligned() {
            return Err(RangeError::StartUnaligned(start));
        }
        if !size.is_multiple_of(PAGE_SIZE) {
            return Err(RangeError::SizeUnaligned(size));
        }
        if size == 0 {
            return Err(RangeError::Empty);
        }
        match start.0.checked_add(size - 1) {
            Some(_) => Ok(Self { start, size }),
            None => Err(RangeError::Wraps { start, size }),
        }
    }

    /// The first address.
    #[must_use]
    pub fn start(self) -> GuestAddress {
        self.start
    }

    /// The last address (inclusive, so that a range may touch the end of the address space).
    #[must_use]
    pub fn last(self) -> GuestAddress {
        GuestAddress(self.start.0 + (self.size - 1))
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size(self) -> u64 {
        self.size
    }

    /// Whether `address` lies inside.
    #[must_use]
    pub fn contains(self, address: GuestAddress) -> bool {
        address.0.wrapping_sub(self.start.0) < self.size
    }

    /// Whether all of `other` lies inside.
    #[must_use]
    pub fn covers(self, other: GuestRange) -> bool {
        self.contains(other.start) && self.contains(other.last())
    }

    /// Whether the two share a page.
    #[must_use]
    pub fn overlaps(self, other: GuestRange) -> bool {
        self.start <= other.last() && other.start <= self.last()
    }
}

impl TryFrom<(GuestAddress, u64)> for GuestRange {
    type Error = RangeError;

    fn try_from((start, size): (GuestAddress, u64)) -> Result<Self, RangeError> {
        Self::new(start, size)
    }
}

impl From<GuestRange> for (GuestAddress, u64) {
    fn from(range: GuestRange) -> Self {
        (range.start, range.size)
    }
}

impl fmt::Display for GuestRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}..={}", self.start, self.last())
    }
}

impl fmt::Debug for GuestRange {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, size: u64) -> GuestRange {
        GuestRange::new(GuestAddress(start), size).unwrap()
    }

    #[test]
    fn bad_ranges_say_why() {
        let new = |start, size| GuestRange::new(GuestAddress(start), size);
        assert!(matches!(new(1, PAGE_SIZE), Err(RangeError::StartUnaligned(_))));
        assert_eq!(new(0, 1), Err(RangeError::SizeUnaligned(1)));
        assert_eq!(new(0, 0), Err(RangeError::Empty));
        assert!(matches!(new(!0xfff, 2 * PAGE_SIZE), Err(RangeError::Wraps { .. })));
        assert_eq!(new(!0xfff, PAGE_SIZE).unwrap().last(), GuestAddress(u64::MAX));
    }

    #[test]
    fn overlap_and_cover() {
        let pages = range(0x2000, 0x2000);
        assert!(pages.overlaps(range(0x3000, 0x4000)) && pages.overlaps(range(0, 0x3000)));
        assert!(!pages.overlaps(range(0x4000, 0x1000)) && !pages.overlaps(range(0, 0x2000)));
        assert!(pages.covers(range(0x3000, 0x1000)) && !pages.covers(range(0x3000, 0x2000)));
        assert!(range(!0xfff, PAGE_SIZE).contains(GuestAddress(u64::MAX)));
    }
}
