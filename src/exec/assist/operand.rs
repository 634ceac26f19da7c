//! Operands of instructions that the run loop executes.

use iced_x86::{Instruction, OpKind, Register};

use crate::exec::exit::Exit;
use crate::exec::shared::Locked;
use crate::exec::step::not_canonical;
use crate::exec::vcpu::Vcpu;
use crate::guest::GuestAddress;
use crate::translate::is_canonical;

impl Vcpu {
    /// The value of a register, memory or immediate operand of up to eight bytes.
    pub(in crate::exec) fn operand(
        &self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
        operand: u32,
        size: usize,
    ) -> Result<u64, Exit> {
        match instruction.op_kind(operand) {
            OpKind::Register => {
                let register = instruction.op_register(operand);
                Ok(self.register_value(register).unwrap_or_default())
            }
            OpKind::Memory => {
                let address = self.canonical_operand(instruction)?;
                self.load_word(core, address, size)
            }
            _ => Ok(instruction.immediate(operand)),
        }
    }

    /// Stores a value to a register or memory operand.
    pub(in crate::exec) fn set_operand(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
        value: u64,
        size: usize,
    ) -> Result<(), Exit> {
        if instruction.op0_kind() == OpKind::Register {
            self.set_register(instruction.op0_register(), value);
            return Ok(());
        }
        let address = self.canonical_operand(instruction)?;
        self.store_word(core, address, value, size)
    }

    /// The address of the memory operand.
    pub(in crate::exec) fn canonical_operand(
        &self,
        instruction: &Instruction,
    ) -> Result<GuestAddress, Exit> {
        let address = self.operand_address(instruction).unwrap_or_default();
        if is_canonical(address) {
            Ok(GuestAddress(address))
        } else {
            Err(not_canonical(instruction))
        }
    }

    /// Writes a general-purpose register as an instruction does: 32 bits clear the upper half, fewer
    /// leave the rest alone.
    pub(in crate::exec) fn set_register(&mut self, register: Register, value: u64) {
        let number = register.full_register().number();
        let old = self.gpr(number);
        let new = match register.size() {
            8 => value,
            4 => value & 0xffff_ffff,
            2 => old & !0xffff | value & 0xffff,
            _ if (Register::AH..=Register::BH).contains(&register) => {
                old & !0xff00 | (value & 0xff) << 8
            }
            _ => old & !0xff | value & 0xff,
        };
        self.set_gpr(number, new);
    }
}
