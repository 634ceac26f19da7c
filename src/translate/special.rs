//! Prefetches, MOV with an absolute address, and the bases of segments: none of them is its own translation.

use iced_x86::{Code, Instruction, OpKind, Register};

use super::emit;
use super::loans::Loans;
use super::operand::{self, NeedsAssist, number, set_kind};
use super::vcpu_block::at;
use super::{Translator, Work};

impl Translator {
    /// An access that cannot fault needs no probe.
    pub(super) fn hint(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
        _bytes: &[u8],
    ) -> Result<(), NeedsAssist> {
        // It changes nothing that a guest can see, and whether it helps is the host's guess: near
        // addresses are worth it, the others are left out.
        let base = instruction.memory_base();
        let simple = base.is_gpr64()
            && instruction.memory_index() == Register::None
            && ![4, 14, 15].contains(&number(base))
            && !matches!(instruction.memory_segment(), Register::FS | Register::GS);
        if simple {
            let mut moved = *instruction;
            moved.set_segment_prefix(Register::GS);
            self.encode(&mut work.emitter, &moved);
        }
        Ok(())
    }

    /// MOV between the accumulator and an absolute address, by the forms that take a register.
    pub(super) fn absolute(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
    ) -> Result<(), NeedsAssist> {
        use Code as C;
        let (code, store, register) = match instruction.code() {
            C::Mov_AL_moffs8 => (C::Mov_r8_rm8, false, Register::AL),
            C::Mov_AX_moffs16 => (C::Mov_r16_rm16, false, Register::AX),
            C::Mov_EAX_moffs32 => (C::Mov_r32_rm32, false, Register::EAX),
            C::Mov_RAX_moffs64 => (C::Mov_r64_rm64, false, Register::RAX),
            C::Mov_moffs8_AL => (C::Mov_rm8_r8, true, Register::AL),
            C::Mov_moffs16_AX => (C::Mov_rm16_r16, true, Register::AX),
            C::Mov_moffs32_EAX => (C::Mov_rm32_r32, true, Register::EAX),
            _ => (C::Mov_rm64_r64, true, Register::RAX),
        };
        let address = instruction.memory_displacement64();
        let based = matches!(instruction.memory_segment(), Register::FS | Register::GS);
        if based || address >= 1 << self.window_bits {
            return Err(NeedsAssist);
        }
        let mut loans = Loans::new(1, false);
        let home = loans.take(&mut work.emitter);
        work.emitter.constant(home, address);
        let mut moved = Instruction::default();
        moved.set_code(code);
        let (of_register, of_memory) = if store { (1, 0) } else { (0, 1) };
        set_kind(&mut moved, of_register, OpKind::Register);
        moved.set_op_register(of_register, register);
        set_kind(&mut moved, of_memory, OpKind::Memory);
        moved.set_memory_base(operand::gpr64(home));
        moved.set_segment_prefix(Register::GS);
        self.encode(&mut work.emitter, &moved);
        loans.end(&mut work.emitter);
        self.known.forget(0);
        Ok(())
    }

    pub(super) fn read_base(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
    ) -> Result<(), NeedsAssist> {
        use iced_x86::Mnemonic as M;
        let fs = instruction.mnemonic() == M::Rdfsbase;
        let register = instruction.op0_register();
        let guest = number(register);
        let home = match guest {
            4 => emit::GUEST_RSP,
            14 | 15 => emit::FREE,
            other => other,
        };
        work.emitter.load(home, if fs { at::FS_BASE } else { at::GS_BASE });
        if register.is_gpr32() {
            work.emitter.zero_extend(home);
        }
        if home == emit::FREE {
            work.emitter.store(at::gpr(guest), home);
        }
        self.known.forget(guest);
        Ok(())
    }
}
