//! [`Operand`]: what one operand of a form can be, from iced's [`OpCodeOperandKind`].

use iced_x86::{OpCodeOperandKind, OpKind, Register};

use super::form::OperandForm;

/// What one operand of a form can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operand {
    /// A general-purpose register of this many bytes.
    Gpr(u8),
    /// XMM, YMM or ZMM register, by its bytes.
    Vector(u8),
    /// MMX register.
    Mmx,
    /// Opmask register.
    Opmask,
    /// An even opmask register, which names a pair.
    OpmaskPair,
    /// Segment register.
    Segment,
    /// Control register.
    Control,
    /// Debug register.
    Debug,
    /// ST(i).
    X87,
    /// Always this register.
    Fixed(Register),
    /// Memory by any address.
    Memory,
    /// Memory by a vector of indices, whose bytes are told.
    Vsib(u8),
    /// Memory at a 64-bit address in the instruction.
    Absolute,
    /// Memory that the form itself names (RSI, RDI).
    Implicit(OpKind),
    /// RBX + AL.
    Table,
    /// A number.
    Immediate(OpKind),
    /// Always the number one.
    One,
    /// Where a branch goes.
    Target,
}

impl Operand {
    /// What `kind` is in a form with `operands`; `None` for what 64-bit user code does not have.
    pub(super) fn of(kind: OpCodeOperandKind, operands: OperandForm) -> Option<Self> {
        use OpCodeOperandKind as K;
        let either = |register| match operands {
            OperandForm::Register => register,
            _ => Self::Memory,
        };
        Some(match kind {
            K::mem => Self::Memory,
            K::mem_offs => Self::Absolute,
            K::mem_vsib32x | K::mem_vsib64x => Self::Vsib(16),
            K::mem_vsib32y | K::mem_vsib64y => Self::Vsib(32),
            K::mem_vsib32z | K::mem_vsib64z => Self::Vsib(64),
            K::r8_or_mem => either(Self::Gpr(1)),
            K::r16_or_mem => either(Self::Gpr(2)),
            K::r32_or_mem => either(Self::Gpr(4)),
            K::r64_or_mem => either(Self::Gpr(8)),
            K::mm_or_mem => either(Self::Mmx),
            K::xmm_or_mem => either(Self::Vector(16)),
            K::ymm_or_mem => either(Self::Vector(32)),
            K::zmm_or_mem => either(Self::Vector(64)),
            K::k_or_mem => either(Self::Opmask),
            _ => return Self::of_register(kind).or_else(|| Self::of_other(kind)),
        })
    }

    fn of_register(kind: OpCodeOperandKind) -> Option<Self> {
        use OpCodeOperandKind as K;
        Some(match kind {
            K::r8_reg | K::r8_opcode => Self::Gpr(1),
            K::r16_reg | K::r16_rm | K::r16_opcode | K::r16_reg_mem => Self::Gpr(2),
            K::r32_reg | K::r32_rm | K::r32_opcode | K::r32_vvvv | K::r32_reg_mem => Self::Gpr(4),
            K::r64_reg | K::r64_rm | K::r64_opcode | K::r64_vvvv | K::r64_reg_mem => Self::Gpr(8),
            K::seg_reg => Self::Segment,
            K::k_reg | K::k_rm | K::k_vvvv => Self::Opmask,
            K::kp1_reg => Self::OpmaskPair,
            K::mm_reg | K::mm_rm => Self::Mmx,
            K::xmm_reg | K::xmm_rm | K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 | K::xmmp3_vvvv => {
                Self::Vector(16)
            }
            K::ymm_reg | K::ymm_rm | K::ymm_vvvv | K::ymm_is4 | K::ymm_is5 => Self::Vector(32),
            K::zmm_reg | K::zmm_rm | K::zmm_vvvv | K::zmmp3_vvvv => Self::Vector(64),
            K::cr_reg => Self::Control,
            K::dr_reg => Self::Debug,
            K::sti_opcode => Self::X87,
            _ => return None,
        })
    }

    fn of_other(kind: OpCodeOperandKind) -> Option<Self> {
        use OpCodeOperandKind as K;
        Some(match kind {
            K::es => Self::Fixed(Register::ES),
            K::cs => Self::Fixed(Register::CS),
            K::ss => Self::Fixed(Register::SS),
            K::ds => Self::Fixed(Register::DS),
            K::fs => Self::Fixed(Register::FS),
            K::gs => Self::Fixed(Register::GS),
            K::al => Self::Fixed(Register::AL),
            K::cl => Self::Fixed(Register::CL),
            K::ax => Self::Fixed(Register::AX),
            K::dx => Self::Fixed(Register::DX),
            K::eax => Self::Fixed(Register::EAX),
            K::rax => Self::Fixed(Register::RAX),
            K::st0 => Self::Fixed(Register::ST0),
            K::imm4_m2z | K::imm8 => Self::Immediate(OpKind::Immediate8),
            K::imm8_const_1 => Self::One,
            K::imm8sex16 => Self::Immediate(OpKind::Immediate8to16),
            K::imm8sex32 => Self::Immediate(OpKind::Immediate8to32),
            K::imm8sex64 => Self::Immediate(OpKind::Immediate8to64),
            K::imm16 => Self::Immediate(OpKind::Immediate16),
            K::imm32 => Self::Immediate(OpKind::Immediate32),
            K::imm32sex64 => Self::Immediate(OpKind::Immediate32to64),
            K::imm64 => Self::Immediate(OpKind::Immediate64),
            K::seg_rSI => Self::Implicit(OpKind::MemorySegRSI),
            K::es_rDI => Self::Implicit(OpKind::MemoryESRDI),
            K::seg_rDI => Self::Implicit(OpKind::MemorySegRDI),
            K::seg_rBX_al => Self::Table,
            K::br64_1 | K::br64_4 => Self::Target,
            _ => return None,
        })
    }

    /// Whether the operand is memory of the form's own choice.
    pub(super) fn is_memory(self) -> bool {
        matches!(self, Self::Memory | Self::Vsib(_) | Self::Absolute)
    }
}

/// The operand forms that an opcode has, by the kinds of its operands.
pub(super) fn operand_forms(
    kinds: &[OpCodeOperandKind],
    can_broadcast: bool,
) -> &'static [OperandForm] {
    use OpCodeOperandKind as K;
    let either = |kind: &K| {
        matches!(
            kind,
            K::r8_or_mem
                | K::r16_or_mem
                | K::r32_or_mem
                | K::r64_or_mem
                | K::mm_or_mem
                | K::xmm_or_mem
                | K::ymm_or_mem
                | K::zmm_or_mem
                | K::k_or_mem
        )
    };
    let only_memory = |kind: &K| {
        Operand::of(*kind, OperandForm::Register)
            .is_some_and(|operand| operand.is_memory() || operand == Operand::Table)
    };
    match (kinds.iter().any(either), kinds.iter().any(only_memory)) {
        (true, _) if can_broadcast => {
            &[OperandForm::Register, OperandForm::Memory, OperandForm::Broadcast]
        }
        (true, _) => &[OperandForm::Register, OperandForm::Memory],
        (false, true) => &[OperandForm::Memory],
        (false, false) => &[OperandForm::Register],
    }
}
