//! Segment registers: selectors, bases, and far transfers. The descriptors are those that Linux gives
//! to 64-bit user code: null, 0x2b for data, 0x33 for 64-bit code. A far transfer to any other code
//! segment faults or is not supported.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};

use crate::exec::exit::{Exit, vector};
use crate::exec::shared::Locked;
use crate::exec::step::Undone;
use crate::exec::vcpu::Vcpu;
use crate::guest::{Flag, GuestAddress, Vendor};
use crate::translate::is_canonical;

const USER_DATA: u16 = 0x2b;
const USER_CODE: u16 = 0x33;
const USER_CODE_32: u16 = 0x23;
const SP: usize = 4;

impl Vcpu {
    /// MOV to and from segment registers, LSS, LFS, LGS.
    pub(super) fn segment(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        if instruction.mnemonic() != Mnemonic::Mov {
            return self.far_pointer(core, instruction);
        }
        if instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().is_segment_register()
        {
            let register = instruction.op0_register();
            if register == Register::CS {
                return Err(Exit::exception(vector::UD).into());
            }
            let selector = self.operand(core, instruction, 1, 2)? as u16;
            self.load_selector(register, selector)?;
            self.shadow = register == Register::SS;
        } else {
            let selector = u64::from(self.selector(instruction.op1_register()));
            // Memory takes 16 bits whatever the operand size.
            self.set_operand(core, instruction, selector, 2)?;
        }
        self.pass(instruction);
        Ok(())
    }

    fn far_pointer(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        let size = instruction.op0_register().size();
        let address = self.canonical_operand(instruction)?;
        let offset = self.load_word(core, address, size)?;
        let selector = self.load_word(core, address.wrapping_add(size as u64), 2)? as u16;
        let register = match instruction.mnemonic() {
            Mnemonic::Lss => Register::SS,
            Mnemonic::Lfs => Register::FS,
            _ => Register::GS,
        };
        self.load_selector(register, selector)?;
        self.set_register(instruction.op0_register(), offset);
        self.pass(instruction);
        Ok(())
    }

    pub(super) fn selector(&self, register: Register) -> u16 {
        self.selectors.0[index(register)]
    }

    /// Loads a data segment register.
    pub(super) fn load_selector(&mut self, register: Register, selector: u16) -> Result<(), Exit> {
        let null = selector & !3 == 0;
        let stack = register == Register::SS;
        let allowed = match selector & !3 | 3 {
            _ if null => !stack,
            USER_DATA => !stack || selector & 3 == 3,
            // Readable code will do as data, but not as a stack.
            USER_CODE | USER_CODE_32 => !stack,
            _ => false,
        };
        if !allowed {
            let error = u32::from(selector & !3);
            return Err(Exit::Exception { vector: vector::GP, error, address: None });
        }
        self.selectors.0[index(register)] = selector;
        let block = self.memory.block_mut();
        match register {
            Register::FS => block.fs_base = 0,
            Register::GS => block.gs_base = 0,
            _ => {}
        }
        Ok(())
    }

    /// RDFSBASE and RDGSBASE.
    pub(super) fn read_base(&mut self, instruction: &Instruction) {
        let block = self.memory.block();
        let fs = instruction.mnemonic() == Mnemonic::Rdfsbase;
        let base = if fs { block.fs_base } else { block.gs_base };
        self.set_register(instruction.op0_register(), base);
        self.pass(instruction);
    }

    /// WRFSBASE and WRGSBASE.
    pub(super) fn write_base(&mut self, instruction: &Instruction) -> Result<(), Undone> {
        let base = self.register_value(instruction.op0_register()).unwrap_or_default();
        if !is_canonical(base) {
            return Err(Exit::general_protection().into());
        }
        let block = self.memory.block_mut();
        if instruction.mnemonic() == Mnemonic::Wrfsbase {
            block.fs_base = base;
        } else {
            block.gs_base = base;
        }
        self.pass(instruction);
        Ok(())
    }

    /// Far JMP, CALL and RET, and IRET.
    pub(super) fn far(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        match instruction.mnemonic() {
            Mnemonic::Retf => self.far_return(core, instruction),
            Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => {
                self.interrupt_return(core, instruction)
            }
            _ => self.far_branch(core, instruction),
        }
    }

    fn far_branch(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        let size = match instruction.code() {
            Code::Jmp_m1616 | Code::Call_m1616 => 2,
            Code::Jmp_m1632 | Code::Call_m1632 => 4,
            Code::Jmp_m1664 | Code::Call_m1664 => 8,
            _ => return Err(Exit::Unsupported { what: "a branch with a 16-bit operand" }.into()),
        };
        let address = self.canonical_operand(instruction)?;
        let offset = self.load_word(core, address, size)?;
        let selector = self.load_word(core, address.wrapping_add(size as u64), 2)? as u16;
        code_selector(selector, true)?;
        let before = self.gpr(SP);
        if instruction.mnemonic() == Mnemonic::Call {
            let old = u64::from(self.selectors.0[1]);
            let pushed = self
                .push_word(core, old, size)
                .and_then(|()| self.push_word(core, instruction.next_ip(), size));
            if let Err(exit) = pushed {
                self.set_gpr(SP, before);
                return Err(exit.into());
            }
        }
        if !is_canonical(offset) {
            // What was pushed stays in memory.
            self.set_gpr(SP, before);
            return Err(Exit::general_protection().into());
        }
        self.selectors.0[1] = selector & !3 | 3;
        self.pc = GuestAddress(offset);
        Ok(())
    }

    fn far_return(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        let (size, released) = match instruction.code() {
            Code::Retfw => (2, 0),
            Code::Retfw_imm16 => (2, instruction.immediate16()),
            Code::Retfd => (4, 0),
            Code::Retfd_imm16 => (4, instruction.immediate16()),
            Code::Retfq => (8, 0),
            _ => (8, instruction.immediate16()),
        };
        // The order and the sizes that the processor takes, which show in page faults. AMD's take the whole
        // word, and look at the stack of a caller with another privilege before they refuse it.
        let amd = Vendor::of_this_host() == Vendor::Amd;
        let width = if amd { size } else { 2 };
        let selector = self.load_stack_at(core, size as u64, width)? as u16;
        let offset = self.load_stack(core, size)?;
        if amd && selector & 3 != 3 {
            self.load_stack_at(core, 3 * size as u64 + u64::from(released), size)?;
        }
        code_selector(selector, false)?;
        if !is_canonical(offset) {
            return Err(Exit::general_protection().into());
        }
        let top = self.gpr(SP).wrapping_add(2 * size as u64 + u64::from(released));
        self.set_gpr(SP, top);
        self.selectors.0[1] = selector;
        self.pc = GuestAddress(offset);
        Ok(())
    }

    fn interrupt_return(
        &mut self,
        core: &mut Locked<'_>,
        instruction: &Instruction,
    ) -> Result<(), Undone> {
        let size = match instruction.mnemonic() {
            Mnemonic::Iret => 2,
            Mnemonic::Iretd => 4,
            _ => 8,
        };
        if self.rflags() & Flag::NT.mask() != 0 {
            return Err(Exit::general_protection().into());
        }
        let mut load =
            |vcpu: &Self, place: u64, bytes| vcpu.load_stack_at(core, place * size as u64, bytes);
        // The order and the sizes that the processor takes, which show in page faults. AMD's takes whole words,
        // all of them before it looks at any.
        let amd = Vendor::of_this_host() == Vendor::Amd;
        let width = if amd { size } else { 2 };
        let (rflags, selector) = (load(self, 2, size)?, load(self, 1, width)?);
        let offset = load(self, 0, size)?;
        if amd {
            load(self, 4, size)?;
        }
        code_selector(selector as u16, false)?;
        let (stack, rsp) = (load(self, 4, width)?, load(self, 3, size)?);
        self.load_selector(Register::SS, stack as u16)?;
        if !is_canonical(offset) {
            return Err(Exit::general_protection().into());
        }
        let kept = if size == 2 { self.rflags() & !0xffff } else { 0 };
        self.selectors.0[1] = selector as u16;
        self.set_rflags(rflags | kept);
        self.set_gpr(SP, rsp);
        self.pc = GuestAddress(offset);
        Ok(())
    }
}

/// Whether a far transfer may go there: to 64-bit user code.
fn code_selector(selector: u16, branch: bool) -> Result<(), Exit> {
    let error = u32::from(selector & !3);
    let protection = Exit::Exception { vector: vector::GP, error, address: None };
    match selector & !3 | 3 {
        // A branch may ask for less privilege than it has; a return has to ask for what it gets.
        USER_CODE if branch || selector & 3 == 3 => Ok(()),
        USER_CODE_32 if branch || selector & 3 == 3 => {
            Err(Exit::Unsupported { what: "32-bit code" })
        }
        _ => Err(protection),
    }
}

/// Place of a segment register in [`crate::guest::Selectors`].
fn index(register: Register) -> usize {
    register.number()
}
