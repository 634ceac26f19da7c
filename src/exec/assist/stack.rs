//! PUSH, POP and their like.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::exec::access::Access;
use crate::exec::exit::{Exit, vector};
use crate::exec::shared::Locked;
use crate::exec::step::Undone;
use crate::exec::vcpu::Vcpu;
use crate::guest::GuestAddress;
use crate::translate::is_canonical;

/// RSP and RBP.
const SP: usize = 4;
const BP: usize = 5;

impl Vcpu {
    pub(super) fn stack(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        let size = instruction.stack_pointer_increment().unsigned_abs() as usize;
        match instruction.mnemonic() {
            Mnemonic::Push => {
                let value = match instruction.op0_kind() {
                    OpKind::Register if instruction.op0_register().is_segment_register() => {
                        u64::from(self.selector(instruction.op0_register()))
                    }
                    _ => self.operand(core, instruction, 0, size)?,
                };
                self.push_word(core, value, size)?;
            }
            Mnemonic::Pop => return self.pop(core, instruction, size),
            Mnemonic::Pushf | Mnemonic::Pushfq => self.push_word(core, self.rflags(), size)?,
            Mnemonic::Popf | Mnemonic::Popfq => {
                let value = self.load_stack(core, size)?;
                let kept = if size == 2 { self.rflags() & !0xffff } else { 0 };
                self.set_rflags(value | kept);
                self.set_gpr(SP, self.gpr(SP).wrapping_add(size as u64));
            }
            Mnemonic::Leave => self.leave(core, instruction)?,
            _ => self.enter_frame(core, instruction)?,
        }
        self.pass(instruction);
        Ok(())
    }

    /// Pushes the low `size` bytes of a value.
    pub(super) fn push_word(
        &mut self,
        core: &mut Locked<'_>,
        value: u64,
        size: usize,
    ) -> Result<(), Exit> {
        let top = self.gpr(SP).wrapping_sub(size as u64);
        stack_address(top)?;
        self.store_word(core, GuestAddress(top), value, size)?;
        self.set_gpr(SP, top);
        Ok(())
    }

    /// Whether [`Self::push_word`] would fault.
    pub(super) fn check_push(&self, core: &mut Locked<'_>, size: usize) -> Result<(), Exit> {
        let top = self.gpr(SP).wrapping_sub(size as u64);
        stack_address(top)?;
        self.check_alignment(GuestAddress(top), size)?;
        self.check(core, GuestAddress(top), size, Access::Write)
    }

    /// The word on top of the stack, which stays there.
    pub(super) fn load_stack(&self, core: &mut Locked<'_>, size: usize) -> Result<u64, Exit> {
        self.load_stack_at(core, 0, size)
    }

    /// A word `offset` bytes above the top of the stack.
    pub(super) fn load_stack_at(
        &self,
        core: &mut Locked<'_>,
        offset: u64,
        size: usize,
    ) -> Result<u64, Exit> {
        let address = self.gpr(SP).wrapping_add(offset);
        stack_address(address)?;
        self.load_word(core, GuestAddress(address), size)
    }

    fn pop(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
        size: usize,
    ) -> Result<(), Undone> {
        let value = self.load_stack(core, size)?;
        let before = self.gpr(SP);
        // An operand with RSP as its base has it after the increment.
        self.set_gpr(SP, before.wrapping_add(size as u64));
        let segment = instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().is_segment_register();
        let result = if segment {
            self.load_selector(instruction.op0_register(), value as u16)
        } else {
            self.set_operand(core, instruction, value, size)
        };
        if let Err(exit) = result {
            self.set_gpr(SP, before);
            return Err(exit.into());
        }
        self.pass(instruction);
        Ok(())
    }

    fn leave(&mut self, core: &mut Locked<'_>, instruction: &Instruction) -> Result<(), Exit> {
        let size: u64 = if instruction.code() == Code::Leavew { 2 } else { 8 };
        let frame = self.gpr(BP);
        stack_address(frame)?;
        let value = self.load_word(core, GuestAddress(frame), size as usize)?;
        self.set_gpr(SP, frame.wrapping_add(size));
        self.set_register(if size == 2 { Register::BP } else { Register::RBP }, value);
        Ok(())
    }

    /// ENTER (Intel SDM volume 2). What was pushed before a fault stays in memory.
    fn enter_frame(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Exit> {
        let size: u64 = if instruction.code() == Code::Enterw_imm16_imm8 { 2 } else { 8 };
        let level = u64::from(instruction.immediate8_2nd() % 32);
        let base = self.gpr(BP);
        let frame = self.gpr(SP).wrapping_sub(size);
        let mut top = frame;
        self.store_stack(core, top, base, size)?;
        for index in 1..level {
            let source = base.wrapping_sub(index * size);
            stack_address(source)?;
            let value = self.load_word(core, GuestAddress(source), size as usize)?;
            top = top.wrapping_sub(size);
            self.store_stack(core, top, value, size)?;
        }
        if level > 0 {
            top = top.wrapping_sub(size);
            self.store_stack(core, top, frame, size)?;
        }
        let last = top.wrapping_sub(u64::from(instruction.immediate16()));
        stack_address(last)?;
        // The processor sees whether it could write where the stack ends.
        self.check_alignment(GuestAddress(last), size as usize)?;
        self.check(core, GuestAddress(last), size as usize, Access::Write)?;
        self.set_register(if size == 2 { Register::BP } else { Register::RBP }, frame);
        self.set_gpr(SP, last);
        Ok(())
    }

    fn store_stack(
        &mut self,
        core: &mut Locked<'_>,
        place: u64,
        value: u64,
        size: u64,
    ) -> Result<(), Exit> {
        stack_address(place)?;
        self.store_word(core, GuestAddress(place), value, size as usize)
    }
}

/// A stack access to an address that is not canonical is a stack fault.
fn stack_address(address: u64) -> Result<(), Exit> {
    if is_canonical(address) { Ok(()) } else { Err(Exit::exception(vector::SS)) }
}
