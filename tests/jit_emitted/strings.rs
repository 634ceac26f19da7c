//! The part of the checker that judges string instructions, whose registers are the host's addresses meanwhile.

use iced_x86::{Code, Instruction, OpKind, Register};

use crate::checker::Checker;
use crate::fields;
use crate::symbolic::Origin;

pub(crate) const RSI: usize = 6;
pub(crate) const RDI: usize = 7;

impl Checker<'_> {
    /// The word that RSI or RDI leads to, while it is an address of the host's.
    pub(crate) fn relocated_string(
        &mut self,
        index: usize,
        instruction: &Instruction,
        register: usize,
    ) {
        self.figures.strings += 1;
        let entry = self.block.side_entry(instruction.ip() as u32);
        let recovered = entry.is_some_and(|entry| entry.recovery.relocated >> register & 1 != 0);
        if !self.is_relocated(index, register) || !recovered {
            return self.complain(instruction, "a register is not moved before and back behind it");
        }
        if register == RSI && instruction.memory_segment() == Register::GS {
            return self.complain(instruction, "an address of the host's with the window's base");
        }
        let window = self.symbols.of(Origin::Slot(fields::WINDOW));
        let guest = self.state.registers[register].plus(&window, u64::MAX);
        self.covered(instruction, &guest);
    }

    /// Whether this is a string instruction between moving RDI, or RSI and RDI, and moving them back, and
    /// this register is among them; a repeated one has a poll before it.
    pub(crate) fn is_relocated(&self, index: usize, register: usize) -> bool {
        let code = |at: usize| self.code.get(at).copied().unwrap_or_default();
        if !code(index).op_kinds().any(|kind| kind == OpKind::MemoryESRDI) {
            return false;
        }
        let load = |at, slot| {
            self.loaded_slot(&code(at)) == Some(slot) && code(at).op0_register() == Register::R14
        };
        let before = if is_repeated(&code(index)) { 2 } else { 0 };
        [&[RDI][..], &[RSI, RDI]].into_iter().any(|registers| {
            let moved = |first: usize, slot| {
                let mut all = registers.iter().enumerate();
                load(first, slot) && all.all(|(n, &it)| relocated(&code(first + 1 + n)) == Some(it))
            };
            index.checked_sub(before + registers.len() + 1).is_some_and(|first| {
                registers.contains(&register)
                    && moved(first, fields::WINDOW)
                    && moved(index + 1, fields::MINUS_WINDOW)
            })
        })
    }
}

pub(crate) fn is_repeated(instruction: &Instruction) -> bool {
    instruction.is_string_instruction()
        && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
}

/// `lea rdi, [rdi + r14]` or the same of RSI: whose it is.
fn relocated(instruction: &Instruction) -> Option<usize> {
    let base = instruction.memory_base();
    let moves = instruction.code() == Code::Lea_r64_m
        && instruction.op0_register() == base
        && matches!(base, Register::RSI | Register::RDI)
        && instruction.memory_index() == Register::R14
        && instruction.memory_index_scale() == 1
        && instruction.memory_displacement64() == 0;
    moves.then(|| base.number())
}

pub(crate) fn is_relocation(instruction: &Instruction) -> bool {
    relocated(instruction).is_some()
}
