//! [`build`]: an instruction from a template and whatever a [`Picker`] picks for its operands.

use iced_x86::{Instruction, OpKind, Register, RoundingControl};

use super::operand::Operand;
use super::template::Template;

/// Picks operands. Each method may be asked several times for one instruction.
pub(super) trait Picker {
    /// Before the first operand.
    fn begin(&mut self, _template: &Template) {}
    /// A general-purpose register of `bytes` bytes.
    fn gpr(&mut self, bytes: u8, written: bool) -> Register;
    /// The number of a vector register, below `count`.
    fn vector(&mut self, count: usize, written: bool) -> u32;
    /// A number below `count`, for every other kind of register.
    fn number(&mut self, count: usize) -> u32;
    /// Fills in the memory operand number `operand`.
    fn memory(&mut self, template: &Template, instruction: &mut Instruction);
    /// Fills in a memory operand with an index vector of `bytes` bytes.
    fn vsib(&mut self, template: &Template, bytes: u8, instruction: &mut Instruction);
    /// An absolute address.
    fn absolute(&mut self, template: &Template) -> u64;
    /// A number of `bits` bits, sign-extended.
    fn immediate(&mut self, bits: u32) -> i64;
    /// Opmask register for masking; zero is none.
    fn mask(&mut self, required: bool) -> u32;
    /// Zeroing, broadcast rounding and other choices of one in `of`.
    fn decorate(&mut self, of: usize) -> bool;
}

/// An instruction of the template's form. Branches go to their own address.
pub(super) fn build<P: Picker>(template: &Template, picker: &mut P) -> Instruction {
    let mut instruction = Instruction::default();
    instruction.set_code(template.code);
    picker.begin(template);
    for index in 0..template.count {
        fill(template, index, picker, &mut instruction);
    }
    if template.unique {
        make_unique(template, &mut instruction);
    }
    if template.evex {
        decorate(template, picker, &mut instruction);
    }
    instruction.set_is_broadcast(template.operand_form == super::form::OperandForm::Broadcast);
    instruction
}

fn fill<P: Picker>(
    template: &Template,
    index: usize,
    picker: &mut P,
    instruction: &mut Instruction,
) {
    let place = index as u32;
    let written = template.written[index];
    let register = match template.operands[index] {
        Operand::Gpr(bytes) => picker.gpr(bytes, written),
        Operand::Vector(bytes) => {
            let number = picker.vector(if template.evex { 32 } else { 16 }, written);
            vector_register(bytes, number)
        }
        Operand::Mmx => Register::MM0 + picker.number(8),
        Operand::Opmask => Register::K0 + picker.number(8),
        Operand::OpmaskPair => Register::K0 + picker.number(4) * 2,
        Operand::Segment => Register::ES + picker.number(6),
        Operand::Control => {
            [Register::CR0, Register::CR2, Register::CR3, Register::CR4, Register::CR8]
                [picker.number(5) as usize]
        }
        Operand::Debug => Register::DR0 + picker.number(8),
        Operand::X87 => Register::ST0 + picker.number(8),
        Operand::Fixed(register) => register,
        other => return fill_other(template, place, other, picker, instruction),
    };
    instruction.set_op_kind(place, OpKind::Register);
    instruction.set_op_register(place, register);
}

fn fill_other<P: Picker>(
    template: &Template,
    place: u32,
    operand: Operand,
    picker: &mut P,
    instruction: &mut Instruction,
) {
    match operand {
        Operand::Memory => {
            instruction.set_op_kind(place, OpKind::Memory);
            picker.memory(template, instruction);
        }
        Operand::Vsib(bytes) => {
            instruction.set_op_kind(place, OpKind::Memory);
            picker.vsib(template, bytes, instruction);
        }
        Operand::Absolute => {
            instruction.set_op_kind(place, OpKind::Memory);
            instruction.set_memory_displ_size(8);
            instruction.set_memory_displacement64(picker.absolute(template));
        }
        Operand::Table => {
            instruction.set_op_kind(place, OpKind::Memory);
            instruction.set_memory_base(Register::RBX);
            instruction.set_memory_index(Register::AL);
        }
        Operand::Implicit(kind) => instruction.set_op_kind(place, kind),
        Operand::Target => {
            instruction.set_op_kind(place, OpKind::NearBranch64);
        }
        Operand::One => set_immediate(instruction, place, OpKind::Immediate8, 1),
        Operand::Immediate(kind) => {
            let value = picker.immediate(immediate_bits(kind));
            set_immediate(instruction, place, kind, value);
        }
        _ => unreachable!("a register operand"),
    }
}

/// The register `number` of `bytes` bytes.
pub(super) fn vector_register(bytes: u8, number: u32) -> Register {
    match bytes {
        16 => Register::XMM0 + number,
        32 => Register::YMM0 + number,
        _ => Register::ZMM0 + number,
    }
}

fn immediate_bits(kind: OpKind) -> u32 {
    match kind {
        OpKind::Immediate16 => 16,
        OpKind::Immediate32 | OpKind::Immediate32to64 => 32,
        OpKind::Immediate64 => 64,
        _ => 8,
    }
}

/// Sets an immediate operand; a second 8-bit one has a place of its own in the encoding.
pub(super) fn set_immediate(instruction: &mut Instruction, place: u32, kind: OpKind, value: i64) {
    let second = kind == OpKind::Immediate8
        && place > 0
        && matches!(instruction.op_kind(place - 1), OpKind::Immediate8 | OpKind::Immediate16);
    let kind = if second { OpKind::Immediate8_2nd } else { kind };
    instruction.set_op_kind(place, kind);
    match kind {
        OpKind::Immediate8 => instruction.set_immediate8(value as u8),
        OpKind::Immediate8_2nd => instruction.set_immediate8_2nd(value as u8),
        OpKind::Immediate16 => instruction.set_immediate16(value as u16),
        OpKind::Immediate32 => instruction.set_immediate32(value as u32),
        OpKind::Immediate64 => instruction.set_immediate64(value as u64),
        OpKind::Immediate8to16 => instruction.set_immediate8to16(i16::from(value as i8)),
        OpKind::Immediate8to32 => instruction.set_immediate8to32(i32::from(value as i8)),
        OpKind::Immediate8to64 => instruction.set_immediate8to64(i64::from(value as i8)),
        _ => instruction.set_immediate32to64(i64::from(value as i32)),
    }
}

/// Moves vector registers apart, the index vector included, where an equal pair is undefined.
fn make_unique(template: &Template, instruction: &mut Instruction) {
    let mut seen = 0u32;
    if let Some(index) = vector_number(instruction.memory_index()) {
        seen |= 1 << index;
    }
    for (place, operand) in template.operands().iter().enumerate() {
        let Operand::Vector(bytes) = operand else { continue };
        let register = instruction.op_register(place as u32);
        let mut number = vector_number(register).unwrap_or(0);
        while seen >> number & 1 != 0 {
            number = (number + 1) % 16;
        }
        seen |= 1 << number;
        instruction.set_op_register(place as u32, vector_register(*bytes, number));
    }
}

/// The number of a vector register.
pub(super) fn vector_number(register: Register) -> Option<u32> {
    register.is_vector_register().then(|| register.number() as u32)
}

fn decorate<P: Picker>(template: &Template, picker: &mut P, instruction: &mut Instruction) {
    if template.mask {
        let mask = picker.mask(template.mask_required);
        if mask != 0 {
            instruction.set_op_mask(Register::K0 + mask);
            instruction.set_zeroing_masking(template.zeroing && picker.decorate(2));
        }
    }
    if template.rounding && picker.decorate(3) {
        let modes = [
            RoundingControl::RoundToNearest,
            RoundingControl::RoundDown,
            RoundingControl::RoundUp,
            RoundingControl::RoundTowardZero,
        ];
        instruction.set_rounding_control(modes[picker.number(4) as usize]);
    } else if template.suppress && !template.rounding && picker.decorate(3) {
        instruction.set_suppress_all_exceptions(true);
    }
}

/// Picks the plainest operands, all different.
#[derive(Debug, Default)]
pub(super) struct SamplePicker {
    taken: u32,
    narrow: bool,
}

impl SamplePicker {
    fn next(&mut self) -> u32 {
        self.taken += 1;
        self.taken
    }
}

impl Picker for SamplePicker {
    fn begin(&mut self, template: &Template) {
        // A 32-bit register that holds an address goes with 32-bit addressing.
        self.narrow = template.code == iced_x86::Code::Movdir64b_r32_m512;
    }

    fn gpr(&mut self, bytes: u8, _: bool) -> Register {
        let bases = [Register::AL, Register::AX, Register::EAX, Register::RAX];
        // From RBX on, RSP to RDI left out.
        let number = [3, 8, 9, 10, 11][self.next() as usize % 5];
        let base = bases[bytes.trailing_zeros() as usize];
        if bytes == 1 { gpr8(number) } else { base + number }
    }

    fn vector(&mut self, _: usize, _: bool) -> u32 {
        self.next()
    }

    fn number(&mut self, count: usize) -> u32 {
        self.next() % count as u32
    }

    fn memory(&mut self, _: &Template, instruction: &mut Instruction) {
        instruction.set_memory_base(if self.narrow { Register::EBX } else { Register::RBX });
    }

    fn vsib(&mut self, _: &Template, bytes: u8, instruction: &mut Instruction) {
        instruction.set_memory_base(Register::RBX);
        instruction.set_memory_index(vector_register(bytes, 7));
    }

    fn absolute(&mut self, _: &Template) -> u64 {
        0x1122_3344_5566_7788
    }

    fn immediate(&mut self, _: u32) -> i64 {
        1
    }

    fn mask(&mut self, required: bool) -> u32 {
        u32::from(required)
    }

    fn decorate(&mut self, _: usize) -> bool {
        false
    }
}

/// The 8-bit register `number`, SPL to DIL rather than AH to BH.
pub(super) fn gpr8(number: u32) -> Register {
    match number {
        0..=3 => Register::AL + number,
        _ => Register::SPL + (number - 4),
    }
}
