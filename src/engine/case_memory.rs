//! [`CaseMemory`]: the bytes of a case's objects in one memfd, which an engine maps wherever the case
//! wants them, so that all aliases are the same memory and the host always sees it.
//!
//! Objects lie one behind the other from offset 0, each from a multiple of [`SLOT`], so that cases
//! whose objects differ by a page still have one layout, and an engine that keeps its mappings from
//! case to case has nothing to change. The guest of a run that is under way writes to this memory
//! from elsewhere; all methods are to be called between runs.
#![allow(unsafe_code, reason = "maps a memfd that guests write to from outside Rust's view")]

use iced_x86::Mnemonic;
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io;

use crate::case::{Action, Case, Event, MAX_BYTES, MapModel, ObjectId, PageChange};
use crate::guest::{GuestAddress, PAGE_SIZE, decoder};
use crate::os::memfd;

/// What the place of each object is a multiple of.
const SLOT: u64 = 4 * PAGE_SIZE;

/// Bytes in the memfd: the most that the objects of a valid case need, which is when each has one
/// page. Pages cost nothing until used.
const CAPACITY: u64 = MAX_BYTES as u64 / PAGE_SIZE * SLOT;

/// See the file's head.
#[derive(Debug)]
pub(crate) struct CaseMemory {
    file: File,
    window: Window,
    /// Where each object of the loaded case begins.
    offsets: Vec<u64>,
}

/// The memfd as this process sees it.
#[derive(Debug)]
struct Window(MmapRaw);

impl CaseMemory {
    pub(crate) fn new() -> io::Result<Self> {
        let file = memfd("tregion-case")?;
        file.set_len(CAPACITY)?;
        let window = Window(MmapOptions::new().len(CAPACITY as usize).map_raw(&file)?);
        Ok(Self { file, window, offsets: Vec::new() })
    }

    /// The memfd, to be mapped elsewhere.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Puts the objects of `case` in place with their contents at the start.
    pub(crate) fn load(&mut self, case: &Case) {
        self.offsets.clear();
        let mut next = 0;
        for object in &case.objects {
            self.offsets.push(next);
            self.window.bytes_mut(next, object.contents.len()).copy_from_slice(&object.contents);
            next = (next + object.contents.len() as u64).next_multiple_of(SLOT);
        }
    }

    /// Where `offset` of an object of the loaded case lies in the memfd.
    pub(crate) fn position(&self, object: ObjectId, offset: u64) -> u64 {
        self.offsets[object.0] + offset
    }

    /// Writes bytes at a guest address; all of them are mapped in `map`.
    pub(crate) fn write(&mut self, map: &MapModel, address: GuestAddress, bytes: &[u8]) {
        for (run, position) in runs(&self.offsets, map, address, bytes.len()) {
            self.window.bytes_mut(position, run.len()).copy_from_slice(&bytes[run]);
        }
    }

    /// Carries out the actions of an event of a valid case, on `map` and on the bytes.
    pub(crate) fn apply(&mut self, map: &mut MapModel, event: &Event) {
        for action in &event.actions {
            if let Action::Write { address, bytes } = action {
                self.write(map, *address, bytes);
            }
            map.apply(action).expect("the actions of a valid case can be carried out");
        }
    }

    /// The length of the instruction at `address` if it is `hlt`, which faults in user mode.
    pub(crate) fn halt_length(&self, map: &MapModel, address: GuestAddress) -> Option<u64> {
        // Nearly always the plain one-byte form.
        if self.byte(map, address) == Some(0xf4) {
            return Some(1);
        }
        let code = self.read(map, address, 15);
        let instruction = decoder(&code, address.0).decode();
        (instruction.mnemonic() == Mnemonic::Hlt).then_some(instruction.len() as u64)
    }

    /// Reads up to `length` bytes at a guest address, fewer where what is mapped ends before.
    pub(crate) fn read(&self, map: &MapModel, address: GuestAddress, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        for (run, position) in runs(&self.offsets, map, address, length) {
            bytes.extend_from_slice(self.window.bytes(position, run.len()));
        }
        bytes
    }

    /// The byte at a guest address, if it is mapped.
    fn byte(&self, map: &MapModel, address: GuestAddress) -> Option<u8> {
        let (object, offset) = map.resolve(address)?;
        Some(self.window.bytes(self.position(object, offset), 1)[0])
    }

    /// The pages of the loaded `case` that are not as they were at its start.
    pub(crate) fn changes(&self, case: &Case) -> Vec<PageChange> {
        const PAGE: usize = PAGE_SIZE as usize;
        let mut changes = Vec::new();
        for (index, object) in case.objects.iter().enumerate() {
            let now = self.window.bytes(self.offsets[index], object.contents.len());
            let (now, before) = (now.as_chunks::<PAGE>().0, object.contents.as_chunks::<PAGE>().0);
            let changed = now.iter().zip(before).enumerate().filter(|(_, (now, was))| now != was);
            changes.extend(changed.map(|(page, (now, _))| PageChange {
                object: ObjectId(index),
                page,
                contents: now.to_vec(),
            }));
        }
        changes
    }
}

/// The parts of `address .. address + length` that lie in one mapping each, up to the first hole:
/// their place in the range and their position in the memfd.
fn runs<'a>(
    offsets: &'a [u64],
    map: &'a MapModel,
    address: GuestAddress,
    length: usize,
) -> impl Iterator<Item = (std::ops::Range<usize>, u64)> + 'a {
    let mut done = 0;
    std::iter::from_fn(move || {
        let next = address.0.checked_add(done as u64).filter(|_| done < length)?;
        let mapping = map.find(GuestAddress(next))?;
        let room = usize::try_from(mapping.range.last().0 - next).unwrap_or(usize::MAX);
        let size = (length - done).min(room.saturating_add(1));
        let offset = mapping.offset + (next - mapping.range.start().0);
        done += size;
        Some((done - size..done, offsets[mapping.object.0] + offset))
    })
}

impl Window {
    fn bytes(&self, position: u64, length: usize) -> &[u8] {
        assert!(position + length as u64 <= CAPACITY, "a valid case fits into its memory");
        // SAFETY: in bounds as just asserted; no guest runs while the slice lives, since every
        // engine borrows its memory only between runs.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().add(position as usize), length) }
    }

    fn bytes_mut(&mut self, position: u64, length: usize) -> &mut [u8] {
        assert!(position + length as u64 <= CAPACITY, "a valid case fits into its memory");
        // SAFETY: as in `bytes`, and `self` is borrowed exclusively.
        unsafe {
            std::slice::from_raw_parts_mut(self.0.as_mut_ptr().add(position as usize), length)
        }
    }
}
