//! The room for unsafe code of this folder: [`Window`], a range of host addresses whose pages show
//! guest memory, and [`SharedMap`], a file mapped once for the host's own reads and writes.
//!
//! A window is reserved whole, with guards on both sides, and its pages are only ever replaced in
//! place, so no other mapping of the process can come to lie in the guest's reach. No page of it is
//! ever executable on the host. Both are written by guests from outside Rust's view: bytes are
//! copied by pointer, and no reference to them exists.
#![allow(unsafe_code, reason = "maps memory that guests access from outside Rust's view")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;

use memmap2::{MmapOptions, MmapRaw};

/// Bytes without access on either side of a window, for what adds to an address without a check.
pub const GUARD_BYTES: usize = 64 << 30;

/// What the host allows on a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Protection {
    None,
    Read,
    ReadWrite,
}

impl Protection {
    fn bits(self) -> libc::c_int {
        match self {
            Self::None => libc::PROT_NONE,
            Self::Read => libc::PROT_READ,
            Self::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

/// See the file's head. Offsets and sizes are multiples of the page size and inside of the window;
/// anything else is a broken invariant and panics.
#[derive(Debug)]
pub(super) struct Window {
    /// Host address of the first byte behind the lower guard.
    start: usize,
    size: usize,
}

impl Window {
    /// Reserves `size` bytes between guards, all without access.
    pub(super) fn reserve(size: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let whole = size + 2 * GUARD_BYTES;
        // SAFETY: the kernel chooses an unused range; no existing mapping changes.
        let base = unsafe { libc::mmap(ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { start: base as usize + GUARD_BYTES, size })
    }

    /// The host address of guest address 0.
    pub(super) fn start(&self) -> usize {
        self.start
    }

    /// Guest addresses that have a page here: all below it.
    pub(super) fn end(&self) -> u64 {
        self.size as u64
    }

    /// Shows `size` bytes of `file` from `offset` at `at`, in place of what was there.
    pub(super) fn map(
        &self,
        (at, size): (u64, u64),
        (file, offset): (&File, u64),
        protection: Protection,
    ) -> io::Result<()> {
        let flags = libc::MAP_SHARED | libc::MAP_FIXED;
        self.replace((at, size), protection, flags, (file.as_raw_fd(), offset))
    }

    /// Takes all access from `size` bytes at `at` and lets go of what was there.
    pub(super) fn clear(&self, (at, size): (u64, u64)) -> io::Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        self.replace((at, size), Protection::None, flags, (-1, 0))
    }

    /// Changes what the host allows on `size` bytes at `at`.
    pub(super) fn protect(&self, (at, size): (u64, u64), protection: Protection) -> io::Result<()> {
        let (address, length) = self.host_range(at, size);
        // SAFETY: the range lies in our reservation, of which no Rust reference exists.
        match unsafe { libc::mprotect(address, length, protection.bits()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn replace(
        &self,
        (at, size): (u64, u64),
        protection: Protection,
        flags: libc::c_int,
        (descriptor, offset): (libc::c_int, u64),
    ) -> io::Result<()> {
        let (address, length) = self.host_range(at, size);
        let offset = offset.cast_signed();
        let protection = protection.bits();
        // SAFETY: the range lies in our reservation, of which no Rust reference exists, so what is
        // replaced is ours.
        let mapped = unsafe { libc::mmap(address, length, protection, flags, descriptor, offset) };
        if mapped == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn host_range(&self, at: u64, size: u64) -> (*mut libc::c_void, usize) {
        let end = at.checked_add(size).expect("a range in the window does not wrap");
        assert!(end <= self.end() && size > 0, "{size:#x} bytes at {at:#x} are not in the window");
        (ptr::without_provenance_mut(self.start + at as usize), size as usize)
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let (base, whole) = (self.start - GUARD_BYTES, self.size + 2 * GUARD_BYTES);
        // SAFETY: exactly the range reserved in `reserve`, and nobody uses it any more.
        let result = unsafe { libc::munmap(ptr::without_provenance_mut(base), whole) };
        debug_assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
}

/// A file mapped whole for reading and writing.
#[derive(Debug)]
pub(super) struct SharedMap(MmapRaw);

impl SharedMap {
    /// Maps the first `size` bytes of `file`, which the file must keep as long as the map lives.
    pub(super) fn new(file: &File, size: usize) -> io::Result<Self> {
        Ok(Self(MmapOptions::new().len(size).map_raw(file)?))
    }

    /// Copies the bytes from `offset` on. Panics if there are not as many.
    pub(super) fn read(&self, offset: u64, bytes: &mut [u8]) {
        let source = self.at(offset, bytes.len());
        // SAFETY: `at` checked the bounds, and `bytes` is memory of Rust's, so they do not overlap.
        unsafe { ptr::copy_nonoverlapping(source, bytes.as_mut_ptr(), bytes.len()) }
    }

    /// Appends `length` bytes from `offset` on to `bytes`. Panics if there are not as many.
    pub(super) fn append(&self, offset: u64, length: usize, bytes: &mut Vec<u8>) {
        let source = self.at(offset, length);
        bytes.reserve(length);
        let end = bytes.len();
        // SAFETY: `at` checked the source's bounds; `reserve` made room for `length` bytes behind
        // the vector's end, which the copy initialises.
        unsafe {
            ptr::copy_nonoverlapping(source, bytes.as_mut_ptr().add(end), length);
            bytes.set_len(end + length);
        }
    }

    /// Replaces the bytes from `offset` on. Panics if there are not as many.
    pub(super) fn write(&self, offset: u64, bytes: &[u8]) {
        let destination = self.at(offset, bytes.len());
        // SAFETY: as in `read`.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), destination, bytes.len()) }
    }

    fn at(&self, offset: u64, length: usize) -> *mut u8 {
        let end = offset.checked_add(length as u64);
        let inside = end.is_some_and(|end| end <= self.0.len() as u64);
        assert!(inside, "{length:#x} bytes at {offset:#x} are outside of the backing");
        // SAFETY: inside of the mapping as just asserted.
        unsafe { self.0.as_mut_ptr().add(offset as usize) }
    }
}

/// Access to the window as a guest has it, with the kernel as a witness in place of a signal.
#[cfg(test)]
pub(super) mod probe {
    use std::ptr;

    /// Reads as a guest would; `None` where it would fault.
    pub(in super::super) fn read(address: usize, bytes: &mut [u8]) -> Option<()> {
        let (local, remote) = vectors(address, bytes.as_mut_ptr(), bytes.len());
        // SAFETY: the kernel checks the remote address, and the local one is a slice.
        let done = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
        (done == bytes.len().cast_signed()).then_some(())
    }

    /// Writes as a guest would; `None` where it would fault.
    pub(in super::super) fn write(address: usize, bytes: &[u8]) -> Option<()> {
        let (local, remote) = vectors(address, bytes.as_ptr().cast_mut(), bytes.len());
        // SAFETY: as in `read`; a window holds no memory of Rust's.
        let done = unsafe { libc::process_vm_writev(libc::getpid(), &local, 1, &remote, 1, 0) };
        (done == bytes.len().cast_signed()).then_some(())
    }

    fn vectors(address: usize, local: *mut u8, length: usize) -> (libc::iovec, libc::iovec) {
        let remote = ptr::without_provenance_mut(address);
        (
            libc::iovec { iov_base: local.cast(), iov_len: length },
            libc::iovec { iov_base: remote, iov_len: length },
        )
    }
}
