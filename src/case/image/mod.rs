//! Executable images as cases: [`flat`] binaries and static ELF files ([`elf`](fn@elf)). The case
//! that comes out runs bare code from its entry point until `hlt`; there is no operating system
//! behind it, no arguments on the stack and no thread-local storage.
//!
//! Memory is mapped as Linux maps it, with these differences: pages hold nothing but the bytes of
//! their segments, and a page that segments share is allowed what any of them is. Each run of pages
//! with the same permissions becomes one object. The stack is readable and writable, and RSP points
//! 16 bytes below its top.

mod elf;
mod error;
mod layout;

pub use elf::elf;
pub use error::ImageError;

use self::layout::{Memory, Segment};
use super::Case;
use crate::guest::{GuestAddress, Permissions};

/// The stack that a case gets unless more or less is asked for: 1 MiB.
pub const DEFAULT_STACK_SIZE: u64 = 1 << 20;

/// The case that runs `bytes` as code at `base`, from their first byte. Their pages may be read,
/// written and executed. `stack_size` is in bytes and rounded up to whole pages.
pub fn flat(bytes: &[u8], base: GuestAddress, stack_size: u64) -> Result<Case, ImageError> {
    let size = bytes.len() as u64;
    let permissions = Permissions::ReadWriteExecute;
    let segment = Segment { start: base.0, size, bytes, permissions };
    Memory::new(vec![segment])?.into_case(base, stack_size)
}
