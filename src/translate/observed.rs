//! Instructions that move a word to or from memory that somebody looks at: blocks leave the access to the run
//! loop, and go on behind it.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::block::{Leave, Stub};
use super::classify::{Class, class_of};
use super::emit;
use super::known::Known;
use super::loans::Loans;
use super::operand::{
    MOVED, address_registers, explicit_registers, has_high_byte, rename_address, rename_registers,
    set_block_memory,
};
use super::vcpu_block::at;
use super::{Translator, Work};
use crate::guest::memory_bytes;

/// What an instruction does that moves a word between memory and a general-purpose register, or an immediate
/// to memory, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WordMove {
    /// Where a word that is loaded goes to; nothing if one is stored.
    pub to: Option<Register>,
    /// The word's size in memory.
    pub bytes: u8,
    /// It is sign-extended, not zero-extended.
    pub signed: bool,
    /// The instruction's size.
    pub length: u8,
}

impl WordMove {
    /// What `instruction` moves, if that is all that it does.
    #[must_use]
    pub fn of(instruction: &Instruction) -> Option<Self> {
        use Mnemonic as M;
        let moves = matches!(instruction.mnemonic(), M::Mov | M::Movzx | M::Movsx | M::Movsxd);
        if !moves || class_of(instruction) != Class::Plain {
            return None;
        }
        let register = |operand| {
            let register = instruction.op_register(operand);
            (instruction.op_kind(operand) == OpKind::Register).then_some(register)
        };
        let (to, from) = (register(0), register(1));
        let loads = instruction.op1_kind() == OpKind::Memory && to.is_some_and(Register::is_gpr);
        let stores = instruction.op0_kind() == OpKind::Memory && from.is_none_or(Register::is_gpr);
        (loads || stores).then_some(Self {
            to,
            bytes: memory_bytes(instruction) as u8,
            signed: matches!(instruction.mnemonic(), M::Movsx | M::Movsxd),
            length: instruction.len() as u8,
        })
    }

    /// What a register gets of a word that was loaded.
    #[must_use]
    pub fn extended(self, word: u64) -> u64 {
        let above = 64 - 8 * u32::from(self.bytes);
        if self.signed { ((word << above) as i64 >> above) as u64 } else { word }
    }

    /// All of it in a word, for [`super::VcpuBlock::word_move`].
    fn packed(self) -> u64 {
        let to = self.to.unwrap_or(Register::None) as u8;
        u64::from_le_bytes([to, self.bytes, u8::from(self.signed), self.length, 0, 0, 0, 0])
    }

    /// Takes apart what was packed.
    #[must_use]
    pub fn unpacked(word: u64) -> Self {
        let [to, bytes, signed, length, ..] = word.to_le_bytes();
        let to = Register::try_from(usize::from(to)).ok();
        Self { to: to.filter(|to| to.is_gpr()), bytes, signed: signed != 0, length }
    }
}

impl Translator {
    /// Leaves a move to the run loop, which goes on behind the call.
    pub(super) fn observed(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
        word: WordMove,
    ) {
        let started = work.emitter.offset();
        work.emitter.begin(work.done, work.count);
        work.emitter.settle_stack();
        work.record();
        work.announce();
        let (at, emitter) = (work.pc(), &mut work.emitter);
        if word.to.is_none() {
            self.stored_word(emitter, instruction);
        }
        let registers = address_registers(instruction);
        let mut loans = Loans::for_guest(registers);
        let homes = self.fetch(emitter, registers, 0, &mut loans);
        let mut moved = *instruction;
        rename_address(&mut moved, &homes);
        let address = match instruction.memory_segment() {
            Register::FS | Register::GS => {
                self.linear_address(emitter, instruction, &moved, &mut loans).0
            }
            _ => self.effective_address(emitter, instruction, &moved, &mut loans),
        };
        emitter.store(at::OBSERVED, address);
        loans.end(emitter);
        emitter.constant(emit::FREE, word.packed());
        emitter.store(at::WORD_MOVE, emit::FREE);
        emitter.constant(emit::FREE, at.0);
        emitter.store(at::TARGET, emit::FREE);
        emitter.leave(Stub::Observed, Leave::Observed { at });
        self.known = Known::default();
        (work.announces, work.polled, work.started) = (true, false, started);
        work.pass(instruction);
    }

    /// Puts the word that an instruction stores where the run loop finds it.
    fn stored_word(&mut self, emitter: &mut emit::Emitter, instruction: &Instruction) {
        let registers = explicit_registers(instruction);
        let mut loans = Loans::new(registers & !MOVED, has_high_byte(instruction));
        let homes = self.fetch(emitter, registers, 0, &mut loans);
        let mut moved = *instruction;
        rename_registers(&mut moved, &homes);
        set_block_memory(&mut moved, at::WORD);
        self.encode(emitter, &moved);
        loans.end(emitter);
    }
}
