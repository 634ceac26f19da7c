//! Why an address space could not be changed or accessed.

use std::io;

use crate::guest::{GuestAddress, GuestRange, RangeError};

/// Why a change to an address space was refused. Nothing has changed then, but for
/// [`MapError::Lost`].
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The destination of a move or of an alias is not a page range.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// The window cannot be that large.
    #[error("a window of 2^{0} bytes is not possible, 2^32 to 2^46 are")]
    WindowBits(u32),
    /// The size of a backing is zero or not a multiple of the page size.
    #[error("the size {0:#x} of a backing is not a positive multiple of the page size 0x1000")]
    BackingSize(u64),
    /// The file of a backing is shorter than the backing.
    #[error("a backing of {size:#x} bytes needs a file as long, this one has {length:#x}")]
    FileTooShort {
        /// Bytes the backing should have.
        size: u64,
        /// Bytes the file has.
        length: u64,
    },
    /// Something is mapped there already.
    #[error("{range} overlaps with the mapping {with}")]
    Overlap {
        /// What should have been free.
        range: GuestRange,
        /// The first mapping in it.
        with: GuestRange,
    },
    /// Not all of it is mapped.
    #[error("{range} is not mapped at {at}")]
    NotMapped {
        /// What should have been mapped.
        range: GuestRange,
        /// The first address that is not.
        at: GuestAddress,
    },
    /// The offset into a backing is not a multiple of the page size.
    #[error(
        "{range} cannot map a backing from {offset:#x}, not a multiple of the page size 0x1000"
    )]
    OffsetUnaligned {
        /// What should have been mapped.
        range: GuestRange,
        /// The offset.
        offset: u64,
    },
    /// The backing ends before the mapping would.
    #[error("{range} from offset {offset:#x} goes past the end of its backing of {size:#x} bytes")]
    OutsideBacking {
        /// What should have been mapped.
        range: GuestRange,
        /// Where in the backing it should have begun.
        offset: u64,
        /// Bytes the backing has.
        size: u64,
    },
    /// One part lies in the window and the other above it.
    #[error("{range} straddles the end of the window at {end:#x}")]
    StraddlesWindow {
        /// What should have been mapped.
        range: GuestRange,
        /// The first address above the window.
        end: u64,
    },
    /// It touches addresses that no processor with 48-bit linear addresses has.
    #[error("{range} has addresses that are not canonical")]
    NonCanonical {
        /// What should have been mapped.
        range: GuestRange,
    },
    /// The host has no room for so many bytes.
    #[error("the host has no room for {size:#x} bytes")]
    OutOfMemory {
        /// Bytes wanted.
        size: u64,
    },
    /// The host's limit `vm.max_map_count` is reached.
    #[error("the host allows no further mapping for {range} (see /proc/sys/vm/max_map_count)")]
    TooManyMappings {
        /// What should have been changed.
        range: GuestRange,
    },
    /// The snapshot is of another address space.
    #[error("the snapshot is of another address space")]
    ForeignSnapshot,
    /// The host refused for another reason.
    #[error("the host refuses: {0}")]
    Host(#[from] io::Error),
    /// The host refused halfway, and then refused to go back as well: in `range` the window and the
    /// books may differ, and the address space is of no further use.
    #[error("the window's {range} is out of step with the books: {source}")]
    Lost {
        /// What was being changed.
        range: GuestRange,
        /// Why it could not be put back.
        source: Box<MapError>,
    },
}

impl MapError {
    /// The host refused to change the window's pages of `range`.
    pub(super) fn refused(range: GuestRange, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOMEM) => Self::TooManyMappings { range },
            _ => Self::Host(error),
        }
    }
}

/// The `error` that a change of `range` ended in, if taking it back went well.
pub(super) fn or_lost(
    taken_back: Result<(), MapError>,
    range: GuestRange,
    error: MapError,
) -> MapError {
    match taken_back {
        Ok(()) => error,
        Err(source) => MapError::Lost { range, source: Box::new(source) },
    }
}

/// An access of the host to guest memory of which not every byte is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nothing is mapped at {address}")]
pub struct AccessError {
    /// The first address of the access that is not mapped. Zero where it runs past the end of the
    /// address space.
    pub address: GuestAddress,
}
