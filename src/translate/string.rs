//! Instructions that name their memory without an operand: strings, XLAT, MASKMOV; and bit tests
//! with the number in a register, which reach far from their operand.
//!
//! A segment prefix moves RSI's side of a string instruction into the window. RDI's side has none, so
//! RDI itself is moved and moved back; and so is RSI for a repeated move, which some processors (Zen 4) start
//! 100 ns later, and carry out ten times slower, with a prefix. A repeated instruction that runs out of
//! the window meets the guards first, which nothing is mapped in.
#![allow(clippy::useless_conversion, reason = "`dynasm!` converts numbers of registers")]

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Instruction, OpKind, Register};

use super::emit::{Emitter, FREE};
use super::loans::Loans;
use super::operand::{NeedsAssist, address_registers, explicit_registers, number};
use super::{Translator, Work};
use crate::guest::is_repeated_string;

const RBX: u8 = 3;
const RSI: u8 = 6;
const RDI: u8 = 7;

impl Translator {
    pub(super) fn string(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
    ) -> Result<(), NeedsAssist> {
        let kinds = || instruction.op_kinds();
        let narrow = |kind| matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI);
        let based = matches!(instruction.segment_prefix(), Register::FS | Register::GS);
        let reads_rsi = kinds().any(|kind| kind == OpKind::MemorySegRSI);
        if kinds().any(narrow) || (based && reads_rsi) {
            return Err(NeedsAssist);
        }
        let uses_rdi = kinds().any(|kind| kind == OpKind::MemoryESRDI);
        for (register, used) in [(RSI, reads_rsi), (RDI, uses_rdi)] {
            if used {
                self.probe_register(&mut work.emitter, register, register, FREE);
            }
        }
        let relocated: &[u8] =
            match (uses_rdi, is_repeated_string(instruction) && moves(instruction)) {
                (true, true) => &[RSI, RDI],
                (true, false) => &[RDI],
                (false, _) => &[],
            };
        let prefixed = reads_rsi && !relocated.contains(&RSI);
        let mut moved = *instruction;
        moved.set_segment_prefix(if prefixed { Register::GS } else { Register::None });
        work.emitter.relocated(relocated, |emitter| self.repeated(emitter, &moved));
        self.known.forget_all(1 << 0 | 1 << 1 | 1 << RSI | 1 << RDI);
        Ok(())
    }

    /// A repeated instruction runs as long as it likes once begun, so right before it the vCPU looks
    /// whether it is to leave. (Who asks later interrupts it by a signal.)
    fn repeated(&mut self, emitter: &mut Emitter, moved: &Instruction) {
        if is_repeated_string(moved) {
            emitter.poll();
        }
        self.encode(emitter, moved);
    }

    /// XLAT adds at most 255 to RBX.
    pub(super) fn table(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
    ) -> Result<(), NeedsAssist> {
        if instruction.memory_base() != Register::RBX {
            return Err(NeedsAssist);
        }
        self.implicit_operand(work, instruction, RBX)?;
        self.known.forget(0);
        Ok(())
    }

    pub(super) fn mask_move(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
    ) -> Result<(), NeedsAssist> {
        if !instruction.op_kinds().any(|kind| kind == OpKind::MemorySegRDI) {
            return Err(NeedsAssist);
        }
        self.implicit_operand(work, instruction, RDI)
    }

    fn implicit_operand(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
        base: u8,
    ) -> Result<(), NeedsAssist> {
        if matches!(instruction.segment_prefix(), Register::FS | Register::GS) {
            return Err(NeedsAssist);
        }
        self.probe_register(&mut work.emitter, base, base, FREE);
        let mut moved = *instruction;
        moved.set_segment_prefix(Register::GS);
        self.encode(&mut work.emitter, &moved);
        Ok(())
    }

    /// The word that is accessed is as many words from the operand as the bit's number, a signed
    /// integer, says (Intel SDM volume 2, "BT").
    pub(super) fn bit_string(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
        bytes: &[u8],
    ) -> Result<(), NeedsAssist> {
        if instruction.op0_kind() == OpKind::Register {
            return self.plain(work, instruction, bytes);
        }
        let base = instruction.memory_base();
        let based = matches!(instruction.memory_segment(), Register::FS | Register::GS);
        if !base.is_gpr64() || based {
            return Err(NeedsAssist);
        }
        let registers = explicit_registers(instruction);
        let all = registers | address_registers(instruction);
        let mut loans = Loans::for_guest(all);
        let homes = self.fetch(&mut work.emitter, all, 0, &mut loans);
        let mut moved = *instruction;
        super::operand::rename_registers(&mut moved, &homes);
        let address = loans.take(&mut work.emitter);
        let word = loans.take(&mut work.emitter);
        let count = loans.take(&mut work.emitter);
        self.lea(
            &mut work.emitter,
            instruction,
            super::operand::gpr64(address),
            moved.memory_base(),
            moved.memory_index(),
        );
        let register = instruction.op1_register();
        let bit = homes[usize::from(number(register))];
        let emitter = &mut work.emitter;
        let ops = emitter.assembler();
        match register.size() {
            8 => dynasm!(ops
                ; .arch x64
                ; mov Rd(count), 6
                ; sarx Rq(word), Rq(bit), Rq(count)
                ; lea Rq(address), [Rq(address) + Rq(word) * 8]
            ),
            4 => dynasm!(ops
                ; .arch x64
                ; movsxd Rq(word), Rd(bit)
                ; mov Rd(count), 5
                ; sarx Rq(word), Rq(word), Rq(count)
                ; lea Rq(address), [Rq(address) + Rq(word) * 4]
            ),
            _ => dynasm!(ops
                ; .arch x64
                ; movsx Rq(word), Rw(bit)
                ; mov Rd(count), 4
                ; sarx Rq(word), Rq(word), Rq(count)
                ; lea Rq(address), [Rq(address) + Rq(word) * 2]
            ),
        }
        emitter.probe(self.probe, address, word);
        moved.set_segment_prefix(Register::GS);
        self.encode(&mut work.emitter, &moved);
        loans.end(&mut work.emitter);
        Ok(())
    }
}

/// Whether it is MOVS, with an operand on either side.
fn moves(instruction: &Instruction) -> bool {
    instruction.op0_kind() == OpKind::MemoryESRDI && instruction.op1_kind() == OpKind::MemorySegRSI
}
