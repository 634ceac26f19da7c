//! [`Canaries`]: host memory of the test's own that no guest may see or change. Its pages hold one
//! word, another for each set; some lie right beside the guest's window, some elsewhere, one lot is
//! in the thread's own storage, within a small displacement of the host's FS base.
#![allow(unsafe_code, reason = "maps pages at places of its choice")]

use std::cell::Cell;
use std::ptr::{self, NonNull};

const WORDS: usize = 16 << 10;
/// Bytes of a run of pages.
const RUN: usize = 256 << 10;

/// A run of pages of our own.
struct Pages(NonNull<u8>);

impl Pages {
    /// Pages at `place`, or wherever the kernel puts them; nothing if something is there.
    fn new(place: Option<u64>, word: u64) -> Option<Self> {
        let fixed = if place.is_some() { libc::MAP_FIXED_NOREPLACE } else { 0 };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
        let place = ptr::without_provenance_mut(place.unwrap_or(0) as usize);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, which replaces none.
        let start = unsafe { libc::mmap(place, RUN, access, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        let mut pages = Self(NonNull::new(start.cast())?);
        pages
            .bytes_mut()
            .chunks_exact_mut(8)
            .for_each(|it| it.copy_from_slice(&word.to_le_bytes()));
        Some(pages)
    }

    fn start(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped by `new` until dropped, and `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), RUN) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_ptr(), RUN) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and nothing borrows it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), RUN) };
    }
}

thread_local! {
    /// As far as displacements reach that are left out of checks.
    static BESIDE_FS_BASE: [Cell<u64>; WORDS] = const { [const { Cell::new(0) }; WORDS] };
}

/// See the file's head.
pub(crate) struct Canaries {
    word: u64,
    pages: Vec<Pages>,
    heap: Vec<Box<[u64]>>,
}

impl Canaries {
    /// Canaries of this word.
    pub(crate) fn new(word: u64) -> Self {
        BESIDE_FS_BASE.with(|words| words.iter().for_each(|it| it.set(word)));
        let heap = (0..16).map(|index| vec![word; 64 << (index % 8)].into()).collect();
        let pages = (0..8).filter_map(|_| Pages::new(None, word)).collect();
        Self { word, pages, heap }
    }

    /// More of them right below one address and from another on.
    pub(crate) fn surround(&mut self, below: u64, above: u64) {
        for place in [below - RUN as u64, above, above + RUN as u64] {
            self.pages.extend(Pages::new(Some(place), self.word));
        }
    }

    /// The first addresses of all of them.
    pub(crate) fn addresses(&self) -> Vec<u64> {
        let pages = self.pages.iter().map(Pages::start);
        let heap = self.heap.iter().map(|words| words.as_ptr() as u64);
        let thread = BESIDE_FS_BASE.with(|words| words.as_ptr() as u64);
        pages.chain(heap).chain([thread]).collect()
    }

    /// Bytes of all of them.
    pub(crate) fn bytes(&self) -> usize {
        let heap: usize = self.heap.iter().map(|words| words.len() * 8).sum();
        self.pages.len() * RUN + heap + WORDS * 8
    }

    /// Where one was changed.
    pub(crate) fn changed(&self) -> Option<u64> {
        let word = self.word.to_le_bytes();
        for pages in &self.pages {
            if let Some(place) = pages.bytes().chunks_exact(8).position(|it| it != word) {
                return Some(pages.start() + place as u64 * 8);
            }
        }
        for words in &self.heap {
            if let Some(place) = words.iter().position(|it| *it != self.word) {
                return Some(words.as_ptr() as u64 + place as u64 * 8);
            }
        }
        BESIDE_FS_BASE.with(|words| {
            let place = words.iter().position(|it| it.get() != self.word)?;
            Some(words.as_ptr() as u64 + place as u64 * 8)
        })
    }

    /// Whether a register's value comes from a canary: all of it, or its low half extended.
    pub(crate) fn is_seen_in(&self, value: u64) -> bool {
        let rotated = |by: u32| self.word.rotate_right(by * 8);
        let high = value >> 32;
        let narrow = high == 0 || high == 0xffff_ffff;
        (0..8).any(|by| value == rotated(by) || (narrow && value as u32 == rotated(by) as u32))
    }

    /// Whether eight bytes of `bytes` in a row come from a canary.
    pub(crate) fn is_seen_in_bytes(&self, bytes: &[u8]) -> bool {
        let rotations: [u64; 8] = std::array::from_fn(|by| self.word.rotate_right(by as u32 * 8));
        // Eight bytes in a row anywhere hold a whole aligned half word of one rotation.
        bytes.chunks_exact(4).enumerate().any(|(index, half)| {
            let half = u32::from_le_bytes(half.try_into().unwrap());
            rotations.iter().any(|word| *word as u32 == half)
                && (index.saturating_sub(1) * 4..=index * 4).any(|at| {
                    let whole = bytes.get(at..at + 8);
                    whole.is_some_and(|it| {
                        rotations.contains(&u64::from_le_bytes(it.try_into().unwrap()))
                    })
                })
        })
    }
}

impl Canaries {
    /// Changes one, as no guest may. Gives its address.
    pub(crate) fn spoil(&mut self) -> u64 {
        let pages = &mut self.pages[3];
        pages.bytes_mut()[0x5002] ^= 1;
        pages.start() + 0x5000
    }
}
