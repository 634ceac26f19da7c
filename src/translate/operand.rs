//! Registers and memory operands of one guest instruction, moved to where they are on the host.
//!
//! Guest registers are in the host registers of the same name, but for three: RSP is in R15, and R14
//! and R15 are in the vCPU's block and are fetched into borrowed registers. A memory operand gets
//! the window's segment and, before it, a probe of its address unless the address is known to be
//! near one that was probed.

use iced_x86::{Code, CpuidFeature, Instruction, MemoryOperand, Mnemonic, OpKind, Register};

use super::Translator;
use super::emit::{Emitter, FREE, GUEST_RSP};
use super::known::Wanted;
use super::loans::Loans;
use super::probed::address_of;
use super::vcpu_block::at;

/// A guest instruction that takes the run loop's help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NeedsAssist;

/// The guest's general-purpose registers among an instruction's operands, by number.
pub(super) fn explicit_registers(instruction: &Instruction) -> u16 {
    let operands = (0..instruction.op_count())
        .filter(|&operand| instruction.op_kind(operand) == OpKind::Register)
        .map(|operand| instruction.op_register(operand))
        .filter(|register| register.is_gpr());
    operands.fold(0, |mask, register| mask | 1 << number(register))
}

/// The registers of its memory operand.
pub(super) fn address_registers(instruction: &Instruction) -> u16 {
    let of = |register: Register| if register.is_gpr() { 1 << number(register) } else { 0 };
    of(instruction.memory_base()) | of(instruction.memory_index())
}

pub(super) fn has_memory(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| kind == OpKind::Memory)
}

/// Whether an instruction with a memory operand is one of the x87 unit.
fn is_x87(instruction: &Instruction) -> bool {
    use CpuidFeature as F;
    let features = instruction.cpuid_features();
    features.iter().any(|feature| matches!(feature, F::FPU | F::FPU287 | F::FPU387 | F::SSE3))
}

pub(super) fn has_high_byte(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| {
        instruction.op_kind(operand) == OpKind::Register
            && is_high(instruction.op_register(operand))
    })
}

fn is_high(register: Register) -> bool {
    (Register::AH..=Register::BH).contains(&register)
}

/// Encoding number of a general-purpose register; that of the whole register for AH and its like.
pub(super) fn number(register: Register) -> u8 {
    register.full_register().number() as u8
}

/// The register of the same size with another number.
fn renumbered(register: Register, number: u8) -> Register {
    let first = if register.is_gpr64() {
        Register::RAX
    } else if register.is_gpr32() {
        Register::EAX
    } else if register.is_gpr16() {
        Register::AX
    } else {
        Register::AL
    };
    // In the list of byte registers AH to BH stand between BL and SPL.
    let skip = if first == Register::AL && number >= 4 { 4 } else { 0 };
    first + (u32::from(number) + skip)
}

pub(super) fn gpr64(number: u8) -> Register {
    Register::RAX + u32::from(number)
}

pub(super) fn gpr32(number: u8) -> Register {
    Register::EAX + u32::from(number)
}

/// Guest registers that are not in the host register of their number.
pub(super) const MOVED: u16 = 1 << 4 | 1 << 14 | 1 << 15;

impl Translator {
    /// Emits a guest instruction with its operands moved. What it leaves in R14 is lost.
    pub(super) fn moved(
        &mut self,
        emitter: &mut Emitter,
        instruction: &Instruction,
        bytes: &[u8],
    ) -> Result<(), NeedsAssist> {
        let registers = explicit_registers(instruction);
        let memory = has_memory(instruction);
        let address = if memory { address_registers(instruction) } else { 0 };
        let slot = memory && self.slot.is_some();
        let untouched = (registers | address) & MOVED == 0 && !slot && verbatim(bytes);
        if untouched && !memory {
            emitter.bytes(bytes);
            return Ok(());
        }
        if memory {
            self.probe_operand(emitter, instruction);
        }
        let near = untouched && bytes.len() < 15 && instruction.memory_base().is_gpr64();
        let mut loans = Loans::new((registers | address) & !MOVED, has_high_byte(instruction));
        if near {
            emitter.bytes(&[0x65]);
            emitter.bytes(bytes);
        } else {
            let unread = overwritten(instruction);
            let homes = self.fetch(emitter, registers | address, unread, &mut loans);
            let mut moved = *instruction;
            rename_registers(&mut moved, &homes);
            if memory {
                self.move_operand(emitter, instruction, &mut moved, &mut loans)?;
            }
            let start = emitter.offset();
            self.encode(emitter, &moved);
            if memory && is_x87(instruction) {
                let segment = instruction.memory_segment();
                let based = matches!(segment, Register::FS | Register::GS) && self.slot.is_none();
                emitter.note_x87(bytes, start, based.then_some(segment));
            }
            if registers & MOVED != 0 {
                put_back(emitter, self.written(instruction), &homes);
            }
        }
        loans.end(emitter);
        Ok(())
    }

    /// A place for each of the guest's `registers`, with its value but for those that are `unread`: where they
    /// all are.
    pub(super) fn fetch(
        &self,
        emitter: &mut Emitter,
        registers: u16,
        unread: u16,
        loans: &mut Loans,
    ) -> Homes {
        let mut homes: Homes = std::array::from_fn(|number| number as u8);
        for number in [14, 15] {
            if registers >> number & 1 != 0 {
                let home = loans.take_operand(emitter);
                homes[usize::from(number)] = home;
                if unread >> number & 1 == 0 {
                    emitter.load(home, at::gpr(number));
                }
            }
        }
        homes[4] = GUEST_RSP;
        if registers >> 4 & 1 != 0 && loans.no_rex {
            homes[4] = loans.take_operand(emitter);
            emitter.copy(homes[4], GUEST_RSP);
        }
        homes
    }

    /// Emits `moved`, an instruction of ours with host registers and the memory operand of `guest`, which is
    /// probed.
    pub(super) fn move_memory_only(
        &mut self,
        emitter: &mut Emitter,
        guest: &Instruction,
        mut moved: Instruction,
        mut loans: Loans,
    ) -> Result<(), NeedsAssist> {
        let homes = self.fetch(emitter, address_registers(guest), 0, &mut loans);
        rename_address(&mut moved, &homes);
        self.move_operand(emitter, guest, &mut moved, &mut loans)?;
        self.encode(emitter, &moved);
        loans.end(emitter);
        Ok(())
    }

    /// Emits LEA.
    pub(super) fn load_address(
        &mut self,
        emitter: &mut Emitter,
        instruction: &Instruction,
        bytes: &[u8],
    ) {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let constant = instruction.is_ip_rel_memory_operand()
            || (base == Register::None && index == Register::None);
        let registers = explicit_registers(instruction) | address_registers(instruction);
        if !constant && registers & MOVED == 0 && verbatim(bytes) {
            return emitter.bytes(bytes);
        }
        let mut loans = Loans::for_guest(registers);
        let homes = self.fetch(emitter, registers, overwritten(instruction), &mut loans);
        let mut moved = *instruction;
        // It would be ignored.
        moved.set_segment_prefix(Register::None);
        rename_registers(&mut moved, &homes);
        if constant {
            let register = moved.op0_register();
            let address = instruction.memory_displacement64();
            let made = match register.size() {
                8 => Instruction::with2(Code::Mov_r64_imm64, register, address),
                4 => Instruction::with2(Code::Mov_r32_imm32, register, address as u32),
                _ => Instruction::with2(Code::Mov_r16_imm16, register, u32::from(address as u16)),
            };
            moved = made.expect("MOV takes any register and constant");
        }
        self.encode(emitter, &moved);
        put_back(emitter, explicit_registers(instruction), &homes);
        loans.end(emitter);
    }

    /// Rewrites the memory operand of `moved`, whose registers are renamed already and which is probed, for
    /// the window.
    fn move_operand(
        &mut self,
        emitter: &mut Emitter,
        guest: &Instruction,
        moved: &mut Instruction,
        loans: &mut Loans,
    ) -> Result<(), NeedsAssist> {
        if let Some(slot) = self.slot {
            set_block_memory(moved, at::SLOT + slot as i32);
            return Ok(());
        }
        let segment = guest.memory_segment();
        let based = matches!(segment, Register::FS | Register::GS);
        let (base, index) = (moved.memory_base(), moved.memory_index());
        let constant =
            guest.is_ip_rel_memory_operand() || (base == Register::None && index == Register::None);
        if based {
            let (linear, scratch) = self.linear_address(emitter, guest, moved, loans);
            emitter.probe(self.probe, linear, scratch);
            set_memory(moved, gpr64(linear), 0, 0);
        } else if constant {
            let address = guest.memory_displacement64();
            if address >= 1 << self.window_bits {
                return Err(NeedsAssist);
            }
            if address < 1 << 31 {
                set_memory(moved, Register::None, address as i64, 8);
            } else {
                let register = loans.take_operand(emitter);
                emitter.constant(register, address);
                set_memory(moved, gpr64(register), 0, 0);
            }
        }
        moved.set_segment_prefix(Register::GS);
        Ok(())
    }

    /// Probes a 64-bit address of base, index and displacement, as far as it is not known to be near the
    /// window. Uses R14, before registers are fetched for the instruction itself, so that none has to make
    /// room.
    pub(super) fn probe_operand(&mut self, emitter: &mut Emitter, guest: &Instruction) {
        if self.slot.is_some() {
            return;
        }
        let Some(address) = address_of(guest) else { return };
        match self.known.wants(address) {
            Wanted::Nothing => {}
            Wanted::Register(register) => {
                let home = source(emitter, register);
                self.probe_register(emitter, register, home, FREE);
            }
            Wanted::Address => {
                let registers = address_registers(guest);
                let mut loans = Loans::for_guest(registers);
                let mut moved = *guest;
                rename_address(&mut moved, &self.fetch(emitter, registers, 0, &mut loans));
                self.lea(emitter, guest, gpr64(FREE), moved.memory_base(), moved.memory_index());
                emitter.probe(self.probe, FREE, FREE);
                loans.end(emitter);
                self.known.note(address);
            }
        }
    }

    /// The linear address of an operand of FS or GS, in a borrowed register; and another such register.
    pub(super) fn linear_address(
        &mut self,
        emitter: &mut Emitter,
        guest: &Instruction,
        moved: &Instruction,
        loans: &mut Loans,
    ) -> (u8, u8) {
        let linear = self.effective_address(emitter, guest, moved, loans);
        let scratch = loans.take(emitter);
        let fs = guest.memory_segment() == Register::FS;
        emitter.load(scratch, if fs { at::FS_BASE } else { at::GS_BASE });
        emitter.add(linear, linear, scratch);
        (linear, scratch)
    }

    /// The effective address of an operand, in a borrowed register.
    pub(super) fn effective_address(
        &mut self,
        emitter: &mut Emitter,
        guest: &Instruction,
        moved: &Instruction,
        loans: &mut Loans,
    ) -> u8 {
        let linear = loans.take_operand(emitter);
        let (base, index) = (moved.memory_base(), moved.memory_index());
        if guest.is_ip_rel_memory_operand() || (base == Register::None && index == Register::None) {
            emitter.constant(linear, guest.memory_displacement64());
        } else {
            let narrow = base.is_gpr32() || index.is_gpr32();
            let register = if narrow { gpr32(linear) } else { gpr64(linear) };
            self.lea(emitter, guest, register, base, index);
        }
        linear
    }

    /// `register ←` the effective address of an operand with other registers.
    pub(super) fn lea(
        &mut self,
        emitter: &mut Emitter,
        guest: &Instruction,
        register: Register,
        base: Register,
        index: Register,
    ) {
        let operand = MemoryOperand::new(
            base,
            index,
            guest.memory_index_scale(),
            guest.memory_displacement64() as i32 as i64,
            if base.is_gpr32() || index.is_gpr32() { 4 } else { 8 },
            false,
            Register::None,
        );
        let code = if register.is_gpr32() { Code::Lea_r32_m } else { Code::Lea_r64_m };
        let lea = Instruction::with2(code, register, operand).expect("LEA takes any address");
        self.encode(emitter, &lea);
    }

    /// Encodes an instruction of ours.
    pub(super) fn encode(&mut self, emitter: &mut Emitter, instruction: &Instruction) {
        self.encoder.encode(instruction, 0).unwrap_or_else(|error| {
            panic!("{instruction:?} was made of an instruction that decodes, but: {error}")
        });
        let buffer = self.encoder.take_buffer();
        emitter.bytes(&buffer);
        let mut buffer = buffer;
        buffer.clear();
        self.encoder.set_buffer(buffer);
    }
}

/// Where each guest register is.
pub(super) type Homes = [u8; 16];

pub(super) fn rename_registers(instruction: &mut Instruction, homes: &Homes) {
    for operand in 0..instruction.op_count() {
        if instruction.op_kind(operand) == OpKind::Register {
            let register = instruction.op_register(operand);
            if register.is_gpr() && !is_high(register) {
                let home = homes[usize::from(number(register))];
                instruction.set_op_register(operand, renumbered(register, home));
            }
        }
    }
    rename_address(instruction, homes);
}

pub(super) fn rename_address(instruction: &mut Instruction, homes: &Homes) {
    if instruction.memory_base().is_gpr() {
        let base = instruction.memory_base();
        instruction.set_memory_base(renumbered(base, homes[usize::from(number(base))]));
    }
    if instruction.memory_index().is_gpr() {
        let index = instruction.memory_index();
        instruction.set_memory_index(renumbered(index, homes[usize::from(number(index))]));
    }
}

fn set_memory(instruction: &mut Instruction, base: Register, displacement: i64, size: u32) {
    instruction.set_memory_base(base);
    instruction.set_memory_index(Register::None);
    instruction.set_memory_index_scale(1);
    instruction.set_memory_displacement64(displacement as u64);
    instruction.set_memory_displ_size(size);
}

/// Makes the memory operand a field of the vCPU's block.
pub(super) fn set_block_memory(instruction: &mut Instruction, offset: i32) {
    set_memory(instruction, Register::RSP, i64::from(offset), 8);
    instruction.set_segment_prefix(Register::None);
}

/// The register that an instruction of those that mostly do writes as a whole, whatever was there.
fn overwritten(instruction: &Instruction) -> u16 {
    use Mnemonic as M;
    let moves = matches!(instruction.mnemonic(), M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Lea);
    let register = instruction.op0_register();
    let whole =
        instruction.op0_kind() == OpKind::Register && (register.is_gpr32() || register.is_gpr64());
    let read = match instruction.op1_kind() {
        OpKind::Register => 1 << number(instruction.op1_register()),
        _ => address_registers(instruction),
    };
    if moves && whole { 1 << number(register) & !read } else { 0 }
}

/// The host register that holds guest register `register`, fetched if need be.
pub(super) fn source(emitter: &mut Emitter, register: u8) -> u8 {
    match register {
        4 => GUEST_RSP,
        14 | 15 => {
            emitter.load(FREE, at::gpr(register));
            FREE
        }
        other => other,
    }
}

/// Stores what the instruction may have written to registers that are elsewhere.
fn put_back(emitter: &mut Emitter, written: u16, homes: &Homes) {
    for number in [14, 15] {
        if written >> number & 1 != 0 {
            emitter.store(at::gpr(number), homes[usize::from(number)]);
        }
    }
    if written >> 4 & 1 != 0 && homes[4] != GUEST_RSP {
        emitter.copy(GUEST_RSP, homes[4]);
    }
}

/// Whether an instruction's prefixes are in the one order that needs no thought: at most one of each
/// group, none of a segment, and at most one REX, right before the opcode.
fn verbatim(bytes: &[u8]) -> bool {
    let mut seen = 0u8;
    let mut bytes = bytes.iter();
    loop {
        let group = match bytes.next() {
            Some(0x66) => 1,
            Some(0x67) => 2,
            Some(0xf0 | 0xf2 | 0xf3) => 4,
            Some(0x40..=0x4f) => return bytes.next().is_some_and(|byte| !is_prefix(*byte)),
            Some(byte) => return !is_prefix(*byte),
            None => return false,
        };
        if seen & group != 0 {
            return false;
        }
        seen |= group;
    }
}

/// Whether a byte is a legacy prefix or REX.
pub(crate) fn is_prefix(byte: u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
}

/// Sets the kind of an operand whose index is known to be valid.
pub(super) fn set_kind(instruction: &mut Instruction, operand: u32, kind: OpKind) {
    instruction.set_op_kind(operand, kind);
}
