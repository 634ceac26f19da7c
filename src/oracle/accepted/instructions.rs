//! Predicates over instructions, of which rows are made.

use iced_x86::{
    Code, CpuidFeature, Encoder, EncodingKind, FlowControl, Instruction, Mnemonic, OpKind,
};

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

/// An instruction in a legacy encoding that a prefix chooses.
pub(super) fn has_mandatory_prefix(instruction: &Instruction) -> bool {
    is_legacy_sse(instruction) || has_feature(instruction, &[CpuidFeature::ADX])
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

/// Whether it has a memory operand of 16 bytes that has to be aligned.
pub(super) fn has_aligned_16_byte_memory(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let moves = matches!(
        instruction.mnemonic(),
        M::Vmovaps
            | M::Vmovapd
            | M::Vmovdqa
            | M::Vmovntps
            | M::Vmovntpd
            | M::Vmovntdq
            | M::Vmovntdqa
    );
    let vex = moves && instruction.encoding() == EncodingKind::VEX;
    has_16_byte_memory(instruction) && (is_legacy_sse(instruction) || vex)
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

/// SSE instructions that compute with floating-point numbers or convert them: those that can set a
/// flag in MXCSR. Their integer relatives and plain moves cannot.
pub(super) fn is_sse_arithmetic(instruction: &Instruction) -> bool {
    const STEMS: [&str; 24] = [
        "add", "sub", "mul", "div", "sqrt", "min", "max", "cmp", "comis", "ucomis", "cvt", "round",
        "dpp", "hadd", "hsub", "fmadd", "fmsub", "fnmadd", "fnmsub", "rcp", "rsqrt", "addsub",
        "mulp", "muls",
    ];
    let name = format!("{:?}", instruction.mnemonic()).to_lowercase();
    let name = name.strip_prefix('v').unwrap_or(&name);
    let is_sse = is_legacy_sse(instruction) || is_vex_vector(instruction);
    is_sse
        && !instruction.is_string_instruction()
        && STEMS.iter().any(|stem| name.starts_with(stem))
}

/// Whether the operand at `index` is a general-purpose register or memory of `bytes` bytes.
pub(super) fn has_operand_of(instruction: &Instruction, index: u32, bytes: usize) -> bool {
    match instruction.op_kind(index) {
        OpKind::Register => instruction.op_register(index).size() == bytes,
        OpKind::Memory => instruction.memory_size().size() == bytes,
        _ => false,
    }
}

/// An instruction whose first two operands are the same register.
pub(super) fn overlaps_itself(instruction: &Instruction) -> bool {
    instruction.op_count() >= 2
        && instruction.op0_kind() == OpKind::Register
        && instruction.op1_kind() == OpKind::Register
        && instruction.op0_register() == instruction.op1_register()
}

/// RIP-relative operands of instructions with an immediate byte that Unicorn does not count.
pub(super) fn is_rip_relative_with_uncounted_immediate(instruction: &Instruction) -> bool {
    let last = instruction.op_count().saturating_sub(1);
    let double_shift = matches!(instruction.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd)
        && instruction.op_kind(last) == OpKind::Immediate8;
    let concerned =
        double_shift || instruction.mnemonic() == Mnemonic::Rorx || is_test_alias(instruction);
    concerned && instruction.is_ip_rel_memory_operand()
}
