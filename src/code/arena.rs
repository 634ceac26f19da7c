//! [`Arena`]: host memory for code. One memfd, mapped twice: writable at one address, executable at
//! another, never both at one. It is cut into chunks of one size ([`Chunks`]), so that nothing can
//! fragment, and begins with a prelude of code that every block can reach.
#![allow(unsafe_code, reason = "maps memory that is executed, and writes to it")]

use std::io;

use memmap2::{MmapOptions, MmapRaw};

use super::chunks::{Census, ChunkId, Chunks, Serialise};
use crate::os::{memfd, serialise_cores};

/// Bytes of a chunk, which is more than any block has.
pub(crate) const CHUNK_BYTES: usize = 16 << 10;

impl ChunkId {
    /// Offset in the arena of its first byte.
    pub(crate) fn start(self) -> usize {
        self.0 as usize * CHUNK_BYTES
    }
}

/// See the file's head.
#[derive(Debug)]
pub(crate) struct Arena {
    writable: MmapRaw,
    executable: MmapRaw,
    chunks: Chunks<Cores>,
}

/// Every core that runs a thread of this process.
#[derive(Debug)]
struct Cores;

impl Serialise for Cores {
    fn serialise(&self) {
        serialise_cores();
    }
}

// SAFETY: the mappings belong to the arena alone; only `&mut self` writes.
unsafe impl Send for Arena {}

impl Arena {
    /// An arena of `bytes` bytes, which begins with `prelude`. So many chunks, the prelude's too, are
    /// nobody's to take.
    pub(crate) fn new(bytes: usize, prelude: &[u8], reserved: u32) -> io::Result<Self> {
        assert!(
            prelude.len() <= reserved as usize * CHUNK_BYTES,
            "the prelude's place is reserved"
        );
        let chunks = bytes / CHUNK_BYTES;
        let size = chunks * CHUNK_BYTES;
        let file = memfd("tregion-code")?;
        file.set_len(size as u64)?;
        let writable = MmapOptions::new().len(size).map_raw(&file)?;
        // SAFETY: the file is ours alone and keeps its size; what is executed in it is what `write`
        // puts there.
        let executable = unsafe { MmapOptions::new().len(size).map_exec(&file)? };
        let executable = MmapRaw::from(executable);
        let chunks = Chunks::new(Cores, chunks as u32, reserved);
        let mut arena = Self { writable, executable, chunks };
        arena.write(0, prelude);
        Ok(arena)
    }

    /// A chunk that nobody uses, if there is one left.
    pub(crate) fn take(&mut self) -> Option<ChunkId> {
        self.chunks.take()
    }

    /// Gives a chunk back that no vCPU can be in.
    pub(crate) fn give_back(&mut self, chunk: ChunkId) {
        self.chunks.give_back(chunk);
    }

    /// How many chunks are in use, and how many can be taken.
    pub(crate) fn census(&self) -> Census {
        self.chunks.census()
    }

    /// Writes code at `offset`.
    pub(crate) fn write(&mut self, offset: usize, code: &[u8]) {
        assert!(offset + code.len() <= self.writable.len(), "code goes into the arena");
        // SAFETY: in bounds; the mapping is writable and nothing in Rust borrows it.
        unsafe {
            let place = self.writable.as_mut_ptr().add(offset);
            std::ptr::copy_nonoverlapping(code.as_ptr(), place, code.len());
        }
    }

    /// Writes four bytes of one block of sixteen at once: a vCPU that executes them meanwhile sees the
    /// old or the new ones.
    pub(crate) fn patch(&mut self, offset: usize, word: u32) {
        assert!(offset % 16 <= 12 && offset + 4 <= self.writable.len(), "a word of one block");
        // SAFETY: in bounds, of a mapping that is only ever accessed through pointers. One store.
        unsafe {
            let place = self.writable.as_mut_ptr().add(offset).cast::<u32>();
            place.write_unaligned(word);
        }
    }

    /// Writes five bytes at the start of an aligned word, at once: a vCPU that executes them as one
    /// instruction meanwhile executes the old one or the new one.
    pub(crate) fn patch_entry(&mut self, offset: usize, code: [u8; 5]) {
        assert!(offset.is_multiple_of(8) && offset + 8 <= self.writable.len(), "an aligned word");
        // SAFETY: in bounds and aligned, of a mapping that is only ever accessed through pointers. One
        // store; the three bytes that it does not change have nobody else who writes them.
        unsafe {
            let place = self.writable.as_mut_ptr().add(offset).cast::<u64>();
            let mut word = place.read().to_le_bytes();
            word[..5].copy_from_slice(&code);
            place.write_volatile(u64::from_le_bytes(word));
        }
    }

    /// The host address at which `offset` is executed.
    pub(crate) fn address(&self, offset: usize) -> u64 {
        self.executable.as_ptr() as u64 + offset as u64
    }

    /// The offset that is executed at `address`, if that is in the arena.
    pub(crate) fn offset(&self, address: u64) -> Option<usize> {
        let offset = address.wrapping_sub(self.executable.as_ptr() as u64);
        (offset < self.executable.len() as u64).then_some(offset as usize)
    }

    /// Host addresses that are executed, first and behind the last.
    pub(crate) fn executable_range(&self) -> (u64, u64) {
        (self.address(0), self.address(self.executable.len()))
    }
}
