//! [`CaseMemory`]: the bytes of a case's objects in one memfd, which an engine maps wherever the case
//! wants them, so that all aliases are the same memory and the host always sees it.
//!
//! Objects lie one behind the other from offset 0, so cases of one shape have one layout, and an
//! engine that keeps its mappings from case to case has nothing to change. The guest of a run that
//! is under way writes to this memory from elsewhere; all methods are to be called between runs.
#![allow(unsafe_code, reason = "maps a memfd that guests write to from outside Rust's view")]

use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use memmap2::{MmapOptions, MmapRaw};
use std::fs::File;
use std::io;

use crate::case::{Action, Case, Event, MAX_BYTES, MapModel, ObjectId, PageChange};
use crate::guest::{GuestAddress, PAGE_SIZE};
use crate::os::memfd;

/// Bytes in the memfd: the most that the objects of a valid case have. Pages cost nothing until used.
pub(crate) const CAPACITY: u64 = MAX_BYTES as u64;

/// See the file's head.
#[derive(Debug)]
pub(crate) struct CaseMemory {
    file: File,
    map: MmapRaw,
    /// Where each object of the loaded case begins.
    offsets: Vec<u64>,
}

impl CaseMemory {
    pub(crate) fn new() -> io::Result<Self> {
        let file = memfd("tregion-case")?;
        file.set_len(CAPACITY)?;
        let map = MmapOptions::new().len(CAPACITY as usize).map_raw(&file)?;
        Ok(Self { file, map, offsets: Vec::new() })
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
            self.bytes_mut(next, object.contents.len()).copy_from_slice(&object.contents);
            next += object.contents.len() as u64;
        }
    }

    /// Where `offset` of an object of the loaded case lies in the memfd.
    pub(crate) fn position(&self, object: ObjectId, offset: u64) -> u64 {
        self.offsets[object.0] + offset
    }

    /// Writes bytes at a guest address; all of them are mapped in `map`.
    pub(crate) fn write(&mut self, map: &MapModel, address: GuestAddress, bytes: &[u8]) {
        for (run, position) in self.runs(map, address, bytes.len()) {
            let length = run.len();
            self.bytes_mut(position, length).copy_from_slice(&bytes[run]);
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
        let code = self.read(map, address, 15);
        // Nearly always the plain one-byte form.
        if code.first() == Some(&0xf4) {
            return Some(1);
        }
        let instruction = Decoder::with_ip(64, &code, address.0, DecoderOptions::NONE).decode();
        (instruction.mnemonic() == Mnemonic::Hlt).then_some(instruction.len() as u64)
    }

    /// Reads up to `length` bytes at a guest address, fewer where what is mapped ends before.
    pub(crate) fn read(&self, map: &MapModel, address: GuestAddress, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length);
        for (run, position) in self.runs(map, address, length) {
            bytes.extend_from_slice(self.bytes(position, run.len()));
        }
        bytes
    }

    /// The pages of the loaded `case` that are not as they were at its start.
    pub(crate) fn changes(&self, case: &Case) -> Vec<PageChange> {
        let page_size = PAGE_SIZE as usize;
        let mut changes = Vec::new();
        for (index, object) in case.objects.iter().enumerate() {
            let now = self.bytes(self.offsets[index], object.contents.len());
            if now == object.contents {
                continue;
            }
            let pages = now.chunks(page_size).zip(object.contents.chunks(page_size)).enumerate();
            changes.extend(pages.filter(|(_, (now, before))| now != before).map(
                |(page, (now, _))| PageChange {
                    object: ObjectId(index),
                    page,
                    contents: now.to_vec(),
                },
            ));
        }
        changes
    }

    /// The parts of `address .. address + length` that lie in one mapping each, up to the first hole:
    /// their place in the range and their position in the memfd.
    fn runs(
        &self,
        map: &MapModel,
        address: GuestAddress,
        length: usize,
    ) -> Vec<(std::ops::Range<usize>, u64)> {
        let mut runs = Vec::new();
        let mut done = 0;
        while done < length {
            let Some(next) = address.0.checked_add(done as u64).map(GuestAddress) else { break };
            let Some(mapping) = map.find(next) else { break };
            let room = mapping.range.last().0 - next.0;
            let size =
                (length - done).min(usize::try_from(room).unwrap_or(usize::MAX).saturating_add(1));
            let offset = mapping.offset + (next.0 - mapping.range.start().0);
            runs.push((done..done + size, self.position(mapping.object, offset)));
            done += size;
        }
        runs
    }

    fn bytes(&self, position: u64, length: usize) -> &[u8] {
        assert!(position + length as u64 <= CAPACITY, "a valid case fits into its memory");
        // SAFETY: in bounds as just asserted; no guest runs while the slice lives, since every
        // engine borrows its memory only between runs.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().add(position as usize), length) }
    }

    fn bytes_mut(&mut self, position: u64, length: usize) -> &mut [u8] {
        assert!(position + length as u64 <= CAPACITY, "a valid case fits into its memory");
        // SAFETY: as in `bytes`, and `self` is borrowed exclusively.
        unsafe {
            std::slice::from_raw_parts_mut(self.map.as_mut_ptr().add(position as usize), length)
        }
    }
}
