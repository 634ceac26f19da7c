//! [`ImageError`]: why an image cannot be made a case.

use crate::case::Invalid;
use crate::guest::GuestAddress;

/// Why an image cannot be made a case.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// The file does not begin as an ELF file does.
    #[error("not an ELF file")]
    NotElf,
    /// A part of the file that should be there is not, or is not where it has to be.
    #[error("malformed ELF file: {0}")]
    Malformed(String),
    /// An ELF file for 32-bit or big-endian machines.
    #[error("not a 64-bit little-endian ELF file")]
    WrongClass,
    /// An ELF file for another machine.
    #[error("an ELF file for machine {0}, not for x86-64 (62)")]
    WrongMachine(u16),
    /// An ELF file of a type that cannot be run: an object file, say, or a core file.
    #[error("an ELF file of type {0}, neither an executable (2) nor position-independent (3)")]
    WrongType(u16),
    /// The program is linked dynamically.
    #[error("the program needs the dynamic linker, link it with -static or -static-pie")]
    Dynamic,
    /// A relocation that is neither relative nor left to the program.
    #[error("relocations of type {0} are not supported")]
    Relocation(u32),
    /// Packed relative relocations.
    #[error("packed relocations are not supported, link with -z nopack-relative-relocs")]
    PackedRelocations,
    /// There is nothing to map.
    #[error("the image is empty")]
    Empty,
    /// A segment has more bytes in the file than in memory.
    #[error("the segment at {0} has more bytes in the file than in memory")]
    SegmentSize(GuestAddress),
    /// A segment goes past the end of the address space.
    #[error("the segment at {0} goes past the end of the address space")]
    Wraps(GuestAddress),
    /// Two segments share bytes.
    #[error("the segments at {0} and {1} overlap")]
    Overlap(GuestAddress, GuestAddress),
    /// A segment may be written or executed but not read, which page tables cannot express.
    #[error("the segment at {0} may be written or executed, but not read")]
    Unreadable(GuestAddress),
    /// The image is larger than a case may be.
    #[error("the image and its stack have more than {0:#x} bytes")]
    TooLarge(u64),
    /// There is no stack.
    #[error("the size of the stack is zero")]
    NoStack,
    /// The entry point is not in a page that may be executed.
    #[error("the entry point {0} is not in a page that may be executed")]
    Entry(GuestAddress),
    /// The image breaks another rule for cases.
    #[error(transparent)]
    Invalid(#[from] Invalid),
}
