//! [`Store`]: what is kept of a region's blocks beside their code in its place, one list of each kind for
//! all of them, so that a block costs no allocation of its own.

use std::ops::Range;

use crate::translate::{Exit, Extended, Relocation, SideEntry, TranslatedBlock, X87Opcode};

/// Bytes of a list that is worth keeping for another region.
const MOST_KEPT: usize = 1 << 16;

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct Store {
    code: Vec<u8>,
    exits: Vec<Exit>,
    relocations: Vec<Relocation>,
    side_table: Vec<SideEntry>,
    x87_opcodes: Vec<X87Opcode>,
    sources: Vec<u8>,
}

/// Where in the lists a block is.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    code: Range<u32>,
    exits: Range<u32>,
    relocations: Range<u32>,
    side_table: Range<u32>,
    x87_opcodes: Range<u32>,
    source: Range<u32>,
    guest_bytes: u32,
    instructions: u16,
    ends_early: bool,
    extended: Extended,
}

impl Stored {
    /// Bytes of host code.
    pub(crate) fn code_bytes(&self) -> usize {
        self.code.len()
    }
}

impl Store {
    /// Keeps a block, and the guest code that it was translated from: nothing, if nobody is to look for
    /// it.
    pub(crate) fn add(&mut self, block: &TranslatedBlock<'_>, source: &[u8]) -> Stored {
        Stored {
            code: append(&mut self.code, block.code),
            exits: append(&mut self.exits, block.exits),
            relocations: append(&mut self.relocations, block.relocations),
            side_table: append(&mut self.side_table, block.side_table),
            x87_opcodes: append(&mut self.x87_opcodes, block.x87_opcodes),
            source: append(&mut self.sources, source),
            guest_bytes: block.guest_bytes,
            instructions: block.instructions,
            ends_early: block.ends_early,
            extended: block.extended,
        }
    }

    /// A block as it was translated, without what its place in the arena has changed in its code.
    pub(crate) fn block(&self, stored: &Stored) -> TranslatedBlock<'_> {
        TranslatedBlock {
            code: part(&self.code, &stored.code),
            exits: part(&self.exits, &stored.exits),
            relocations: part(&self.relocations, &stored.relocations),
            side_table: part(&self.side_table, &stored.side_table),
            x87_opcodes: part(&self.x87_opcodes, &stored.x87_opcodes),
            guest_bytes: stored.guest_bytes,
            instructions: stored.instructions,
            truncated: false,
            ends_early: stored.ends_early,
            extended: stored.extended,
        }
    }

    /// The guest code that it was translated from.
    pub(crate) fn source(&self, stored: &Stored) -> &[u8] {
        part(&self.sources, &stored.source)
    }

    /// Forgets all, and keeps the memory for other blocks if that is little.
    pub(crate) fn clear(&mut self) {
        clear(&mut self.code);
        clear(&mut self.exits);
        clear(&mut self.relocations);
        clear(&mut self.side_table);
        clear(&mut self.x87_opcodes);
        clear(&mut self.sources);
    }
}

fn append<T: Copy>(list: &mut Vec<T>, more: &[T]) -> Range<u32> {
    let start = list.len() as u32;
    list.extend_from_slice(more);
    start..list.len() as u32
}

fn part<'a, T>(list: &'a [T], range: &Range<u32>) -> &'a [T] {
    &list[range.start as usize..range.end as usize]
}

fn clear<T>(list: &mut Vec<T>) {
    list.clear();
    list.shrink_to(MOST_KEPT / size_of::<T>());
}
