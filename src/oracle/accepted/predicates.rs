//! What rows are made of: predicates over instructions and over differences.

use iced_x86::{
    Code, CpuidFeature, Encoder, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind,
};

use super::super::compare::{Component, ComponentClass, Difference, Value};
use crate::case::{ExceptionVector, Stop};

/// How both runs stopped, silicon's first.
pub(super) type Stops = (Stop, Stop);

pub(super) fn any(_: Stops, _: &Difference) -> bool {
    true
}

pub(super) fn class(difference: &Difference) -> ComponentClass {
    difference.component.class()
}

pub(super) fn is_flag(difference: &Difference) -> bool {
    matches!(difference.component, Component::Flag(_))
}

/// The page-fault error code or the number that the left side holds, if it is one.
pub(super) fn bits(value: Value) -> Option<u128> {
    match value {
        Value::Bits(bits) => Some(bits),
        Value::Stop(_) | Value::Absent => None,
    }
}

pub(super) fn raised(stop: Stop, wanted: ExceptionVector) -> bool {
    matches!(stop, Stop::Exception { vector, .. } if vector == wanted)
}

/// Whether both runs ended with a page fault.
pub(super) fn both_page_faults(stops: Stops) -> bool {
    raised(stops.0, ExceptionVector::PF) && raised(stops.1, ExceptionVector::PF)
}

/// Whether silicon executes what the other side calls an invalid opcode.
pub(super) fn only_right_is_invalid(stops: Stops) -> bool {
    !raised(stops.0, ExceptionVector::UD) && raised(stops.1, ExceptionVector::UD)
}

fn registers(instruction: &Instruction) -> impl Iterator<Item = iced_x86::Register> {
    (0..instruction.op_count())
        .filter(|&index| instruction.op_kind(index) == OpKind::Register)
        .map(|index| instruction.op_register(index))
}

fn has_mmx(instruction: &Instruction) -> bool {
    registers(instruction).any(|register| register.is_mm())
}

fn has_feature(instruction: &Instruction, wanted: &[CpuidFeature]) -> bool {
    instruction.cpuid_features().iter().any(|feature| wanted.contains(feature))
}

/// A VEX-encoded instruction on vector registers; those on general registers are BMI's.
pub(super) fn is_vex_vector(instruction: &Instruction) -> bool {
    instruction.encoding() == EncodingKind::VEX
        && !has_feature(instruction, &[CpuidFeature::BMI1, CpuidFeature::BMI2])
}

/// An SSE instruction in its legacy encoding, those on MMX registers included.
pub(super) fn is_legacy_sse(instruction: &Instruction) -> bool {
    const SSE: [CpuidFeature; 8] = [
        CpuidFeature::SSE,
        CpuidFeature::SSE2,
        CpuidFeature::SSE3,
        CpuidFeature::SSSE3,
        CpuidFeature::SSE4_1,
        CpuidFeature::SSE4_2,
        CpuidFeature::AES,
        CpuidFeature::PCLMULQDQ,
    ];
    instruction.encoding() == EncodingKind::Legacy && has_feature(instruction, &SSE)
}

pub(super) fn has_16_byte_memory(instruction: &Instruction) -> bool {
    let memory = (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Memory);
    memory && instruction.memory_size().size() >= 16
}

pub(super) fn has_memory(instruction: &Instruction) -> bool {
    instruction.is_string_instruction()
        || instruction.is_stack_instruction()
        || instruction.mnemonic() == Mnemonic::Xlatb
        || (0..instruction.op_count()).any(|index| {
            !matches!(
                instruction.op_kind(index),
                OpKind::Register
                    | OpKind::NearBranch16
                    | OpKind::NearBranch32
                    | OpKind::NearBranch64
                    | OpKind::Immediate8
                    | OpKind::Immediate16
                    | OpKind::Immediate32
                    | OpKind::Immediate64
            )
        })
}

/// An instruction of the x87 unit, the saving and loading of its state apart.
pub(super) fn is_x87(instruction: &Instruction) -> bool {
    has_feature(instruction, &[CpuidFeature::FPU, CpuidFeature::FPU287, CpuidFeature::FPU387])
        || matches!(instruction.mnemonic(), Mnemonic::Fisttp)
        || registers(instruction).any(|register| register.is_st())
}

pub(super) fn is_mmx(instruction: &Instruction) -> bool {
    has_mmx(instruction)
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Emms | Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd
        )
}

/// F6 /1 and F7 /1.
pub(super) fn is_test_alias(instruction: &Instruction) -> bool {
    matches!(
        instruction.code(),
        Code::Test_rm8_imm8_F6r1
            | Code::Test_rm16_imm16_F7r1
            | Code::Test_rm32_imm32_F7r1
            | Code::Test_rm64_imm32_F7r1
    )
}

/// A branch that has a prefix which changes nothing: it can be encoded shorter.
pub(super) fn is_branch_with_idle_prefix(instruction: &Instruction) -> bool {
    if instruction.flow_control() == FlowControl::Next {
        return false;
    }
    let shortest = Encoder::new(64).encode(instruction, instruction.ip());
    shortest.is_ok_and(|length| length < instruction.len())
}

pub(super) fn is_locked(instruction: &Instruction) -> bool {
    instruction.has_lock_prefix()
}
