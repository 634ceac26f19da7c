//! PUSH, POP and their like, spelt out: the guest's RSP is in R15, and memory is the window's. The
//! store or load comes first and RSP changes after it, so that a fault finds everything as it was.
//!
//! R15 is left behind by PUSH, POP, CALL and RET that follow each other, and by what has nothing to do with RSP in
//! between: each of them would wait for the one before (a processor renames its own RSP). How far is in the side
//! table ([`Recovery`](super::Recovery)).

use dynasmrt::{DynasmApi, dynasm};
use iced_x86::{Code, Instruction, OpKind, Register};

use super::block::{Leave, Stub};
use super::emit::{Emitter, FREE, GUEST_RSP, RCX};
use super::loans::Loans;
use super::operand::{
    NeedsAssist, address_registers, explicit_registers, gpr64, number, set_kind, source,
};
use super::vcpu_block::at;
use super::{Translator, Work};
use crate::guest::Flag;

impl Translator {
    /// Probes RSP, unless it is known.
    pub(super) fn probe_stack(&mut self, work: &mut Work<'_>) {
        if self.wants_probe(4) {
            work.emitter.settle_stack();
        }
        self.probe_register(&mut work.emitter, 4, GUEST_RSP, FREE);
    }

    fn move_stack(&mut self, work: &mut Work<'_>, distance: i32) {
        work.emitter.move_stack(distance);
        self.known.moved(4, 4, i64::from(distance));
    }

    pub(super) fn push(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
    ) -> Result<(), NeedsAssist> {
        use Code as C;
        let narrow = matches!(
            instruction.code(),
            C::Push_r16 | C::Push_rm16 | C::Push_imm16 | C::Pushw_imm8
        );
        let bytes: u8 = if narrow { 2 } else { 8 };
        self.probe_stack(work);
        if reads_stack_pointer(instruction) {
            work.emitter.settle_stack();
        }
        let offset = work.emitter.at_stack(-i32::from(bytes));
        match instruction.op0_kind() {
            OpKind::Register => {
                let source = source(&mut work.emitter, number(instruction.op0_register()));
                work.emitter.guest_store(GUEST_RSP, offset, source, bytes);
            }
            OpKind::Memory => {
                let loans = Loans::new(address_registers(instruction), false);
                let code = if narrow { C::Mov_r16_rm16 } else { C::Mov_r64_rm64 };
                self.operand_to_free(&mut work.emitter, instruction, code, loans)?;
                work.emitter.guest_store(GUEST_RSP, offset, FREE, bytes);
            }
            _ => {
                let value = instruction.immediate(0) as i32;
                work.emitter.guest_store_constant(GUEST_RSP, offset, value, bytes);
            }
        }
        self.move_stack(work, -i32::from(bytes));
        Ok(())
    }

    pub(super) fn pop(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
    ) -> Result<(), NeedsAssist> {
        let narrow = matches!(instruction.code(), Code::Pop_r16 | Code::Pop_rm16);
        let bytes: u8 = if narrow { 2 } else { 8 };
        if instruction.op0_kind() == OpKind::Memory {
            return self.pop_memory(work, instruction, bytes);
        }
        let register = number(instruction.op0_register());
        if register == 4 && narrow {
            return Err(NeedsAssist);
        }
        self.probe_stack(work);
        let emitter = &mut work.emitter;
        let offset = emitter.at_stack(0);
        match register {
            4 => {
                emitter.guest_load(GUEST_RSP, GUEST_RSP, offset, 8);
                emitter.forget_stack();
                self.known.forget(4);
                return Ok(());
            }
            14 | 15 => {
                if narrow {
                    emitter.load(FREE, at::gpr(register));
                }
                emitter.guest_load(FREE, GUEST_RSP, offset, bytes);
                emitter.store(at::gpr(register), FREE);
            }
            _ => emitter.guest_load(register, GUEST_RSP, offset, bytes),
        }
        self.known.forget(register);
        self.move_stack(work, i32::from(bytes));
        Ok(())
    }

    /// An operand with RSP as its base has it after the increment (Intel SDM volume 2, "POP").
    fn pop_memory(
        &mut self,
        work: &mut Work<'_>,
        instruction: &Instruction,
        bytes: u8,
    ) -> Result<(), NeedsAssist> {
        let mut operand = *instruction;
        if matches!(operand.memory_base(), Register::RSP | Register::ESP) {
            let displacement = operand.memory_displacement64().wrapping_add(u64::from(bytes));
            if i32::try_from(displacement as i64).is_err() {
                return Err(NeedsAssist);
            }
            operand.set_memory_displacement64(displacement);
            operand.set_memory_displ_size(8);
            if operand.memory_base() == Register::ESP {
                return Err(NeedsAssist);
            }
        }
        work.emitter.settle_stack();
        self.probe_stack(work);
        self.probe_operand(&mut work.emitter, &operand);
        work.emitter.guest_load(FREE, GUEST_RSP, 0, bytes);
        let code = if bytes == 2 { Code::Mov_rm16_r16 } else { Code::Mov_rm64_r64 };
        let mut moved = operand;
        moved.set_code(code);
        set_kind(&mut moved, 1, OpKind::Register);
        moved.set_op1_register(if bytes == 2 { Register::R14W } else { Register::R14 });
        let loans = Loans::without_free(address_registers(instruction));
        self.move_memory_only(&mut work.emitter, &operand, moved, loans)?;
        self.move_stack(work, i32::from(bytes));
        Ok(())
    }

    /// The host's flags are the guest's, TF apart, which is clear whenever this code runs.
    pub(super) fn push_flags(&mut self, work: &mut Work<'_>) -> Result<(), NeedsAssist> {
        self.probe_stack(work);
        dynasm!(work.emitter.assembler(); .arch x64; pushfq; pop r14);
        work.emitter.guest_store(GUEST_RSP, -8, FREE, 8);
        self.move_stack(work, -8);
        Ok(())
    }

    /// Leaves to the run loop what would set TF.
    pub(super) fn pop_flags(&mut self, work: &mut Work<'_>) -> Result<(), NeedsAssist> {
        self.probe_stack(work);
        let at = work.pc();
        let emitter = &mut work.emitter;
        emitter.guest_load(FREE, GUEST_RSP, 0, 8);
        emitter.spill(0, RCX);
        emitter.constant(RCX, Flag::TF.mask());
        dynasm!(emitter.assembler(); .arch x64; pext rcx, r14, rcx; .u8 0xe3; .u8 0);
        let clear = emitter.offset() - 1;
        emitter.load(RCX, at::spill(0));
        emitter.leave(Stub::Next, Leave::Assist { at });
        emitter.land_short(clear);
        emitter.restore(0);
        dynasm!(emitter.assembler(); .arch x64; push r14; popfq);
        self.move_stack(work, 8);
        Ok(())
    }

    pub(super) fn leave_frame(&mut self, work: &mut Work<'_>) -> Result<(), NeedsAssist> {
        const RBP: u8 = 5;
        self.probe_register(&mut work.emitter, RBP, RBP, FREE);
        let emitter = &mut work.emitter;
        emitter.guest_load(FREE, RBP, 0, 8);
        emitter.lea(GUEST_RSP, RBP, 8);
        emitter.copy(RBP, FREE);
        self.known.moved(4, RBP, 8);
        self.known.forget(RBP);
        Ok(())
    }

    /// R14 ← memory operand, by `code`, a MOV to a register. What `loans` holds is given back.
    pub(super) fn operand_to_free(
        &mut self,
        emitter: &mut Emitter,
        instruction: &Instruction,
        code: Code,
        loans: Loans,
    ) -> Result<(), NeedsAssist> {
        let mut moved = *instruction;
        moved.set_code(code);
        set_kind(&mut moved, 1, OpKind::Memory);
        set_kind(&mut moved, 0, OpKind::Register);
        let narrow = code == Code::Mov_r16_rm16;
        self.probe_operand(emitter, instruction);
        moved.set_op0_register(if narrow { Register::R14W } else { gpr64(FREE) });
        self.move_memory_only(emitter, instruction, moved, loans)
    }
}

/// Whether one of the registers that an instruction names is RSP, by itself or in an address.
pub(super) fn reads_stack_pointer(instruction: &Instruction) -> bool {
    (explicit_registers(instruction) | address_registers(instruction)) >> 4 & 1 != 0
}
