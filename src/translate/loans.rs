//! [`Loans`]: host registers lent to one instruction.

use super::emit::{Emitter, FREE};
use super::operand::MOVED;

/// Host registers lent to one instruction.
pub(super) struct Loans {
    /// Host registers that the instruction itself uses.
    used: u16,
    /// It has AH, CH, DH or BH, so no register that needs REX can stand beside.
    pub(super) no_rex: bool,
    free_taken: bool,
    spills: usize,
}

impl Loans {
    /// A loan for an instruction with these explicit registers.
    pub(super) fn new(used: u16, no_rex: bool) -> Self {
        Self { used, no_rex, free_taken: false, spills: 0 }
    }

    /// A loan for an instruction whose guest registers are these.
    pub(super) fn for_guest(registers: u16) -> Self {
        Self::new(registers & !MOVED, false)
    }

    /// A loan for an instruction that uses R14 as it is.
    pub(super) fn without_free(registers: u16) -> Self {
        Self { free_taken: true, ..Self::for_guest(registers) }
    }

    /// A register for anything but the instruction's own operands.
    pub(super) fn take(&mut self, emitter: &mut Emitter) -> u8 {
        if !self.free_taken {
            self.free_taken = true;
            return FREE;
        }
        self.take_one_of(emitter, &[13, 12, 11, 10, 9, 8])
    }

    /// A register that may be an operand of the instruction.
    pub(super) fn take_operand(&mut self, emitter: &mut Emitter) -> u8 {
        if self.no_rex { self.take_one_of(emitter, &[7, 6, 5, 3]) } else { self.take(emitter) }
    }

    fn take_one_of(&mut self, emitter: &mut Emitter, candidates: &[u8]) -> u8 {
        let register = *candidates
            .iter()
            .find(|register| self.used >> **register & 1 == 0)
            .expect("an instruction has at most four registers");
        self.used |= 1 << register;
        emitter.spill(self.spills, register);
        self.spills += 1;
        register
    }

    /// Gives everything back.
    pub(super) fn end(self, emitter: &mut Emitter) {
        for slot in 0..self.spills {
            emitter.restore(slot);
        }
    }
}
