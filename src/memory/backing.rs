//! [`Backing`]: memory that address spaces map, in a file that the host maps once.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::MapError;
use super::host::SharedMap;
use super::page::{PageId, PageRun};
use crate::guest::PAGE_SIZE;
use crate::os;

/// A handle of memory of a fixed size, cheap to clone. Several mappings, several address spaces and
/// other processes may show the same bytes.
///
/// Reads and writes here are raw: no snapshot saves what they overwrite, and no watch sees them.
/// Two backings made of one file are strangers: their pages have different identities.
#[derive(Clone, Debug)]
pub struct Backing(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    number: u64,
    size: u64,
    map: SharedMap,
    file: File,
    /// It stands for a device.
    device: bool,
}

/// A page's bytes on the host's side.
pub(super) type PageBytes = [u8; PAGE_SIZE as usize];

impl Backing {
    /// `size` bytes of zeros in a new memfd, whose name shows in `/proc`. Pages cost nothing until
    /// used.
    pub fn new(name: &str, size: u64) -> Result<Self, MapError> {
        check_size(size)?;
        let file = os::memfd(name)?;
        file.set_len(size)?;
        Self::from_file(file, size)
    }

    /// The first `size` bytes of `file`, which must be open for reading and writing and must never
    /// become shorter: an access to what is cut off kills the process.
    pub fn from_file(file: File, size: u64) -> Result<Self, MapError> {
        Self::with_kind(file, size, false)
    }

    /// `size` bytes that stand for a device: where they are mapped, the host gives guests no access,
    /// so that the owner sees each one, and no code.
    pub fn device(size: u64) -> Result<Self, MapError> {
        check_size(size)?;
        let file = os::memfd("tregion-device")?;
        file.set_len(size)?;
        Self::with_kind(file, size, true)
    }

    fn with_kind(file: File, size: u64, device: bool) -> Result<Self, MapError> {
        /// Numbers tell backings apart and order nothing.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        check_size(size)?;
        let length = file.metadata()?.len();
        if length < size {
            return Err(MapError::FileTooShort { size, length });
        }
        let bytes = usize::try_from(size).map_err(|_| MapError::OutOfMemory { size })?;
        let map = SharedMap::new(&file, bytes).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOMEM) => MapError::OutOfMemory { size },
            _ => MapError::Host(error),
        })?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        Ok(Self(Arc::new(Inner { number, size, map, file, device })))
    }

    /// Its size in bytes, a multiple of the page size.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// Copies the bytes from `offset` on. Panics where they lie outside of the backing.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        self.0.map.read(offset, bytes);
    }

    /// Replaces the bytes from `offset` on. Panics where they lie outside of the backing.
    pub fn write(&self, offset: u64, bytes: &[u8]) {
        self.0.map.write(offset, bytes);
    }

    /// Whether both are handles of the same memory.
    #[must_use]
    pub fn is_same(&self, other: &Backing) -> bool {
        self.0.number == other.0.number
    }

    /// Whether it stands for a device.
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.0.device
    }

    /// Whether nobody else has a handle: no mapping, no snapshot.
    pub(crate) fn is_unused(&self) -> bool {
        Arc::strong_count(&self.0) == 1
    }

    pub(super) fn number(&self) -> u64 {
        self.0.number
    }

    pub(super) fn file(&self) -> &File {
        &self.0.file
    }

    pub(super) fn page(&self, offset: u64) -> PageId {
        PageId::new(self.0.number, offset)
    }

    /// All its pages.
    pub(super) fn pages(&self) -> PageRun {
        PageRun { first: self.page(0), count: self.0.size / PAGE_SIZE }
    }

    pub(super) fn append(&self, offset: u64, length: usize, bytes: &mut Vec<u8>) {
        self.0.map.append(offset, length, bytes);
    }

    /// The bytes of the page at `offset`.
    pub(super) fn copy_page(&self, offset: u64) -> Box<PageBytes> {
        let mut bytes = Box::new([0; PAGE_SIZE as usize]);
        self.read(offset, &mut *bytes);
        bytes
    }
}

fn check_size(size: u64) -> Result<(), MapError> {
    if size == 0 || !size.is_multiple_of(PAGE_SIZE) {
        return Err(MapError::BackingSize(size));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_sizes_are_refused() {
        for size in [0, 1, PAGE_SIZE + 1] {
            assert!(matches!(Backing::new("test", size), Err(MapError::BackingSize(_))));
        }
        let file = os::memfd("test").unwrap();
        let error = Backing::from_file(file, PAGE_SIZE).unwrap_err();
        assert!(matches!(error, MapError::FileTooShort { size: PAGE_SIZE, length: 0 }));
        let huge = Backing::new("test", 1 << 62);
        assert!(matches!(huge, Err(MapError::OutOfMemory { .. })), "{huge:?}");
    }

    #[test]
    fn handles_share_their_bytes() {
        let backing = Backing::new("test", PAGE_SIZE).unwrap();
        let other = backing.clone();
        other.write(PAGE_SIZE - 2, b"hi");
        let mut bytes = [0; 2];
        backing.read(PAGE_SIZE - 2, &mut bytes);
        assert_eq!(&bytes, b"hi");
        assert!(backing.is_same(&other));
        assert!(!backing.is_same(&Backing::new("test", PAGE_SIZE).unwrap()));
    }

    #[test]
    #[should_panic(expected = "outside of the backing")]
    fn reads_past_the_end_panic() {
        Backing::new("test", PAGE_SIZE).unwrap().read(PAGE_SIZE - 1, &mut [0; 2]);
    }
}
