//! Near transfers of control.

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind};

use crate::exec::exit::Exit;
use crate::exec::shared::Locked;
use crate::exec::step::Undone;
use crate::exec::vcpu::Vcpu;
use crate::guest::{Flag, GuestAddress, Vendor};
use crate::translate::{Class, class, counted_branch, is_canonical};

impl Vcpu {
    pub(super) fn control(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        let taken = match class(instruction.code()) {
            Class::Conditional => self.condition(instruction.condition_code()),
            Class::CountedBranch => self.count_down(instruction)?,
            _ => true,
        };
        if !taken {
            self.pass(instruction);
            return Ok(());
        }
        match class(instruction.code()) {
            Class::Call | Class::CallIndirect => {
                let target = self.raw_target(core, instruction)?;
                if !is_canonical(target) && Vendor::of_this_host() == Vendor::Amd {
                    self.check_push(core, 8)?;
                    return Err(Exit::general_protection().into());
                }
                let top = self.gpr(4);
                self.push_word(core, instruction.next_ip(), 8)?;
                if !is_canonical(target) {
                    // What was pushed stays in memory.
                    self.set_gpr(4, top);
                    return Err(Exit::general_protection().into());
                }
                self.pc = GuestAddress(target);
            }
            Class::Return => {
                let target = self.load_stack(core, 8)?;
                if !is_canonical(target) {
                    return Err(Exit::general_protection().into());
                }
                let released = match instruction.code() {
                    Code::Retnq_imm16 => u64::from(instruction.immediate16()),
                    _ => 0,
                };
                self.set_gpr(4, self.gpr(4).wrapping_add(8 + released));
                self.pc = GuestAddress(target);
            }
            _ => self.pc = self.target(core, instruction)?,
        }
        Ok(())
    }

    /// A transfer whose target, and what a call pushes, is cut to 16 bits (AMD64 Architecture
    /// Programmer's Manual volume 3, "JMP (Near)", "CALL (Near)", "RET (Near)").
    pub(super) fn narrow_branch(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        use Mnemonic as M;
        let taken = match instruction.mnemonic() {
            M::Loop | M::Loope | M::Loopne | M::Jrcxz | M::Jecxz => self.count_down(instruction)?,
            _ => self.condition(instruction.condition_code()),
        };
        if !taken {
            self.pass(instruction);
            return Ok(());
        }
        let target = match instruction.op0_kind() {
            _ if instruction.mnemonic() == M::Ret => self.load_stack(core, 2)?,
            OpKind::NearBranch16 => u64::from(instruction.near_branch16()),
            _ => self.operand(core, instruction, 0, 2)?,
        };
        match instruction.mnemonic() {
            M::Call => self.push_word(core, instruction.next_ip() & 0xffff, 2)?,
            M::Ret => {
                let released = match instruction.code() {
                    Code::Retnw_imm16 => u64::from(instruction.immediate16()),
                    _ => 0,
                };
                self.set_gpr(4, self.gpr(4).wrapping_add(2 + released));
            }
            _ => {}
        }
        self.pc = GuestAddress(target & 0xffff);
        Ok(())
    }

    /// Where a branch goes.
    fn target(
        &self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<GuestAddress, Exit> {
        let target = self.raw_target(core, instruction)?;
        if is_canonical(target) {
            Ok(GuestAddress(target))
        } else {
            Err(Exit::general_protection())
        }
    }

    fn raw_target(&self, core: &mut Locked<'_>, instruction: &Instruction) -> Result<u64, Exit> {
        match class(instruction.code()) {
            Class::JumpIndirect | Class::CallIndirect => self.operand(core, instruction, 0, 8),
            _ => Ok(instruction.near_branch_target()),
        }
    }

    fn condition(&self, condition: ConditionCode) -> bool {
        use ConditionCode as C;
        let rflags = self.rflags();
        let is = |flag: Flag| rflags & flag.mask() != 0;
        let less = is(Flag::SF) != is(Flag::OF);
        match condition {
            C::None => true,
            C::o => is(Flag::OF),
            C::no => !is(Flag::OF),
            C::b => is(Flag::CF),
            C::ae => !is(Flag::CF),
            C::e => is(Flag::ZF),
            C::ne => !is(Flag::ZF),
            C::be => is(Flag::CF) || is(Flag::ZF),
            C::a => !is(Flag::CF) && !is(Flag::ZF),
            C::s => is(Flag::SF),
            C::ns => !is(Flag::SF),
            C::p => is(Flag::PF),
            C::np => !is(Flag::PF),
            C::l => less,
            C::ge => !less,
            C::le => less || is(Flag::ZF),
            C::g => !less && !is(Flag::ZF),
        }
    }

    /// Counts RCX down if the instruction does; whether it branches.
    fn count_down(&mut self, instruction: &Instruction) -> Result<bool, Exit> {
        let narrow = instruction.code().op_code().address_size() == 32;
        let mask = if narrow { 0xffff_ffff } else { u64::MAX };
        let before = self.gpr(1) & mask;
        let zero = self.rflags() & Flag::ZF.mask() != 0;
        let counts = !matches!(instruction.mnemonic(), Mnemonic::Jrcxz | Mnemonic::Jecxz);
        let now = before.wrapping_sub(u64::from(counts)) & mask;
        let taken = match counted_branch(instruction) {
            Mnemonic::Loop => now != 0,
            Mnemonic::Loope => now != 0 && zero,
            Mnemonic::Loopne => now != 0 && !zero,
            _ => now == 0,
        };
        if taken && !is_canonical(instruction.near_branch_target()) {
            return Err(Exit::general_protection());
        }
        if counts {
            self.set_gpr(1, now);
        }
        Ok(taken)
    }
}
