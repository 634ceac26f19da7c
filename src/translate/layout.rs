//! Where emitted code lies: alignment, jumps within it, and what is emitted again or elsewhere.

use super::block::{Relocation, SideEntry};
use super::emit::Emitter;

/// How long everything is at some point.
pub(super) struct Mark {
    code: usize,
    exits: usize,
    relocations: usize,
    side_table: usize,
    x87_opcodes: usize,
    side_exits: usize,
    rsp_ahead: i16,
}

impl Emitter {
    /// No-operations until the next block of sixteen bytes.
    pub(super) fn align(&mut self) {
        self.pad(self.offset().wrapping_neg() % 16);
    }

    /// So many bytes of no-operations.
    fn pad(&mut self, mut missing: u32) {
        const PADDING: [&[u8]; 4] = [&[], &[0x90], &[0x66, 0x90], &[0x0f, 0x1f, 0x00]];
        while missing > 0 {
            let padding = PADDING[missing.min(3) as usize];
            self.bytes(padding);
            missing -= padding.len() as u32;
        }
    }

    /// Goes on with the code of `other`, which was emitted for the same alignment.
    pub(super) fn append(&mut self, other: &Self) {
        let by = self.offset();
        self.ops.ops.extend_from_slice(&other.ops.ops);
        self.exits.extend(other.exits.iter().map(|exit| exit.moved(by)));
        let relocations = other.relocations.iter();
        self.relocations.extend(relocations.map(|it| Relocation { offset: it.offset + by, ..*it }));
        let side_table = other.side_table.iter();
        self.side_table
            .extend(side_table.map(|entry| SideEntry { host: entry.host + by, ..*entry }));
        self.x87_opcodes.extend_from_slice(&other.x87_opcodes);
    }

    /// No-operations until the last four of the next `length` bytes lie in one block of sixteen, as
    /// the processor fetches them, so that they can be changed while it executes them.
    pub(super) fn align_end(&mut self, length: u32) {
        let displacement = (self.offset() + length - 4) % 16;
        self.pad(if displacement > 12 { 16 - displacement } else { 0 });
    }

    /// The same by no-operations at offset `from`, where an instruction begins: those right before a branch
    /// would keep it from being executed as one with what sets its flags.
    pub(super) fn align_end_before(&mut self, from: u32, length: u32) {
        let end = self.offset();
        self.align_end(length);
        let by = self.offset() - end;
        if by == 0 {
            return;
        }
        self.ops.ops[from as usize..].rotate_right(by as usize);
        let behind = |offset: &&mut u32| **offset > from;
        let exits = self.exits.iter_mut().rev().map(|exit| &mut exit.offset);
        exits.take_while(behind).for_each(|offset| *offset += by);
        let relocations = self.relocations.iter_mut().rev().map(|it| &mut it.offset);
        relocations.take_while(behind).for_each(|offset| *offset += by);
        let entries = self.side_table.iter_mut().rev().map(|entry| &mut entry.host);
        entries.take_while(behind).for_each(|offset| *offset += by);
    }

    /// Points the rel32 at `place` at `target`.
    pub(super) fn aim(&mut self, place: u32, target: u32) {
        let distance = target.wrapping_sub(place + 4);
        self.ops.ops[place as usize..place as usize + 4].copy_from_slice(&distance.to_le_bytes());
    }

    /// The present end, to come back to.
    pub(super) fn mark(&self) -> Mark {
        Mark {
            code: self.ops.ops.len(),
            exits: self.exits.len(),
            relocations: self.relocations.len(),
            side_table: self.side_table.len(),
            x87_opcodes: self.x87_opcodes.len(),
            side_exits: self.side_exits.len(),
            rsp_ahead: self.rsp_ahead,
        }
    }

    /// Forgets all that was emitted since.
    pub(super) fn rewind(&mut self, mark: &Mark) {
        self.ops.ops.truncate(mark.code);
        self.exits.truncate(mark.exits);
        self.relocations.truncate(mark.relocations);
        self.side_table.truncate(mark.side_table);
        self.x87_opcodes.truncate(mark.x87_opcodes);
        self.side_exits.truncate(mark.side_exits);
        self.rsp_ahead = mark.rsp_ahead;
    }

    /// Points the rel32 at `place` at the present end.
    pub(super) fn land(&mut self, place: u32) {
        self.aim(place, self.offset());
    }

    /// Points the rel8 at `place` at the present end, which is near enough.
    pub(super) fn land_short(&mut self, place: u32) {
        let distance = self.offset() - (place + 1);
        self.ops.ops[place as usize] =
            i8::try_from(distance).expect("a short jump passes a few instructions") as u8;
    }
}
