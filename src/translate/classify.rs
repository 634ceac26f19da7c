//! [`Class`]: what the translator does with each opcode. A whitelist: an opcode passes through to the
//! host only if all it needs is in [`PASSED`] and no rule below says otherwise. What is not known is
//! [`Class::Unsupported`].

use std::sync::OnceLock;

use iced_x86::{Code, CpuidFeature, FlowControl, Instruction, Mnemonic, OpCodeOperandKind, OpKind};

use crate::guest::Vendor;

/// How an opcode is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Re-encoded with its registers and its memory operand moved; flags, vectors and x87 are the
    /// host's own.
    Plain,
    /// Like `Plain`, but it stores addresses of instructions and operands, which the run loop puts right
    /// first, or takes from it what it needs for that.
    RevealsPointers,
    /// Computes an address and accesses nothing.
    Lea,
    /// Does nothing, whatever its operands.
    Nop,
    /// Like `Plain`, but its access cannot fault.
    Hint,
    /// MOV with an absolute 64-bit address.
    Absolute,
    /// BT and its like with the bit's number in a register: accesses memory far from its operand.
    BitString,
    /// XLAT: an address made of RBX and AL.
    Table,
    /// MASKMOVQ and MASKMOVDQU: an address in RDI.
    MaskMove,
    /// MOVS, CMPS, STOS, LODS, SCAS.
    String,
    /// PUSH of a general-purpose register, an immediate or memory.
    Push,
    /// POP to a general-purpose register or memory.
    Pop,
    /// PUSHFQ.
    PushFlags,
    /// POPFQ.
    PopFlags,
    /// LEAVE.
    Leave,
    /// JMP to a constant.
    Jump,
    /// Jcc.
    Conditional,
    /// LOOP, LOOPcc, JRCXZ.
    CountedBranch,
    /// CALL of a constant.
    Call,
    /// JMP to a register's or memory's value.
    JumpIndirect,
    /// CALL of a register's or memory's value.
    CallIndirect,
    /// RET.
    Return,
    /// A near branch, call or return with a 16-bit operand, which AMD's processors have.
    NarrowBranch,
    /// RDFSBASE and RDGSBASE.
    ReadBase,
    /// Executed by the run loop.
    Assist,
    /// Raises an invalid-opcode exception.
    Undefined,
    /// Not to be had: not known, or not the guest's to have.
    Unsupported,
}

/// The class of `code`.
#[must_use]
pub fn class(code: Code) -> Class {
    static CLASSES: OnceLock<Vec<Class>> = OnceLock::new();
    CLASSES.get_or_init(|| Code::values().map(classify).collect())[code as usize]
}

/// The class of an instruction, on this host: AMD's processors have no prefetch of a register, where
/// Intel's do nothing (AMD64 Architecture Programmer's Manual volume 3, "PREFETCHx").
#[must_use]
pub fn class_of(instruction: &Instruction) -> Class {
    use Code as C;
    let prefetch = matches!(
        instruction.code(),
        C::Reservednop_rm16_r16_0F0D | C::Reservednop_rm32_r32_0F0D | C::Reservednop_rm64_r64_0F0D
    );
    let register = prefetch && instruction.op0_kind() == OpKind::Register;
    if register && Vendor::of_this_host() == Vendor::Amd {
        return Class::Undefined;
    }
    class(instruction.code())
}

fn classify(code: Code) -> Class {
    if code == Code::INVALID {
        return Class::Undefined;
    }
    if is_narrow_branch(code) {
        return Class::NarrowBranch;
    }
    by_code(code).or_else(|| by_mnemonic(code)).unwrap_or_else(|| by_feature(code))
}

fn by_feature(code: Code) -> Class {
    let info = code.op_code();
    if !info.is_instruction() || !info.mode64() {
        return Class::Unsupported;
    }
    if code.is_privileged() {
        return Class::Assist;
    }
    let passed = code.cpuid_features().iter().all(|feature| PASSED.contains(feature));
    let operands = info.op_kinds();
    let vector_index = operands.iter().any(|kind| {
        use OpCodeOperandKind as K;
        matches!(kind, K::mem_vsib32x | K::mem_vsib64x | K::mem_vsib32y | K::mem_vsib64y)
            || matches!(kind, K::mem_vsib32z | K::mem_vsib64z)
    });
    match (passed, vector_index, code.flow_control()) {
        (true, false, FlowControl::Next) if !code.is_stack_instruction() => Class::Plain,
        (true, true, FlowControl::Next) => Class::Assist,
        _ => Class::Unsupported,
    }
}

fn by_code(code: Code) -> Option<Class> {
    use Code as C;
    Some(match code {
        C::Push_r16
        | C::Push_r64
        | C::Push_rm16
        | C::Push_rm64
        | C::Push_imm16
        | C::Pushw_imm8
        | C::Pushq_imm8
        | C::Pushq_imm32 => Class::Push,
        C::Pop_r16 | C::Pop_r64 | C::Pop_rm16 | C::Pop_rm64 => Class::Pop,
        C::Pushfq => Class::PushFlags,
        C::Popfq => Class::PopFlags,
        C::Leaveq => Class::Leave,
        C::Jmp_rel8_64 | C::Jmp_rel32_64 => Class::Jump,
        C::Call_rel32_64 => Class::Call,
        C::Jmp_rm64 => Class::JumpIndirect,
        C::Call_rm64 => Class::CallIndirect,
        C::Retnq | C::Retnq_imm16 => Class::Return,
        C::Mov_AL_moffs8
        | C::Mov_AX_moffs16
        | C::Mov_EAX_moffs32
        | C::Mov_RAX_moffs64
        | C::Mov_moffs8_AL
        | C::Mov_moffs16_AX
        | C::Mov_moffs32_EAX
        | C::Mov_moffs64_RAX => Class::Absolute,
        C::Bt_rm16_r16
        | C::Bt_rm32_r32
        | C::Bt_rm64_r64
        | C::Bts_rm16_r16
        | C::Bts_rm32_r32
        | C::Bts_rm64_r64
        | C::Btr_rm16_r16
        | C::Btr_rm32_r32
        | C::Btr_rm64_r64
        | C::Btc_rm16_r16
        | C::Btc_rm32_r32
        | C::Btc_rm64_r64 => Class::BitString,
        C::Mov_rm16_Sreg
        | C::Mov_r32m16_Sreg
        | C::Mov_r64m16_Sreg
        | C::Mov_Sreg_rm16
        | C::Mov_Sreg_r32m16
        | C::Mov_Sreg_r64m16 => Class::Assist,
        _ => return None,
    })
}

fn by_mnemonic(code: Code) -> Option<Class> {
    use Mnemonic as M;
    let mnemonic = code.mnemonic();
    if code.is_jcc_short_or_near() && code.op_code().is_instruction() {
        return Some(if near64(code) { Class::Conditional } else { Class::Unsupported });
    }
    Some(match mnemonic {
        M::Lea => Class::Lea,
        M::Prefetchit0 | M::Prefetchit1 => Class::Nop,
        M::Nop | M::Reservednop | M::Endbr32 | M::Endbr64 | M::Rdsspd | M::Rdsspq => Class::Nop,
        M::Prefetch | M::Prefetchw | M::Prefetchwt1 | M::Prefetchnta | M::Prefetcht0 => Class::Hint,
        M::Prefetcht1 | M::Prefetcht2 | M::Cldemote => Class::Hint,
        M::Xlatb => Class::Table,
        M::Maskmovq | M::Maskmovdqu | M::Vmaskmovdqu => Class::MaskMove,
        M::Movsb | M::Movsw | M::Movsq | M::Stosb | M::Stosw | M::Stosd | M::Stosq => Class::String,
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq | M::Scasb | M::Scasw | M::Scasd => Class::String,
        M::Scasq | M::Cmpsb | M::Cmpsw | M::Cmpsq => Class::String,
        M::Movsd | M::Cmpsd if code.is_string_instruction() => Class::String,
        M::Loop | M::Loope | M::Loopne | M::Jrcxz | M::Jecxz => {
            if near64(code) {
                Class::CountedBranch
            } else {
                Class::Unsupported
            }
        }
        M::Rdfsbase | M::Rdgsbase => Class::ReadBase,
        // FNCLEX clears what tells that the address of the last operand was noted just now.
        M::Fnstenv | M::Fnsave | M::Fxsave | M::Fxsave64 | M::Fnclex => Class::RevealsPointers,
        M::Ud0 | M::Ud1 | M::Ud2 => Class::Undefined,
        M::Int | M::Int1 | M::Int3 | M::Syscall | M::Hlt | M::Cpuid | M::Enter => Class::Assist,
        M::Jmp | M::Call | M::Ret | M::Retf | M::Iret | M::Iretd | M::Iretq => Class::Assist,
        M::Push | M::Pop | M::Pushf | M::Pushfq | M::Popf | M::Popfq | M::Leave => Class::Assist,
        M::Lss | M::Lfs | M::Lgs | M::Wrfsbase | M::Wrgsbase => Class::Assist,
        M::Xsave | M::Xsave64 | M::Xsaveopt | M::Xsaveopt64 | M::Xsavec | M::Xsavec64 => {
            Class::Assist
        }
        M::Xgetbv | M::Xrstor | M::Xrstor64 | M::Rdpkru | M::Wrpkru | M::Movdir64b => Class::Assist,
        M::Xbegin | M::Xend | M::Xabort | M::Xtest => Class::Assist,
        M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd => Class::Assist,
        M::Sysexit | M::Sysret | M::Sysexitq | M::Sysretq | M::Rdpmc => Class::Assist,
        M::Sysenter => Class::Unsupported,
        M::Clzero | M::Monitor | M::Mwait | M::Monitorx | M::Mwaitx | M::Umonitor => {
            Class::Unsupported
        }
        _ => return None,
    })
}

/// Whether a near branch is one whose target is cut to 16 bits, which Intel's decoder never gives.
fn is_narrow_branch(code: Code) -> bool {
    use Mnemonic as M;
    let info = code.op_code();
    let near = code.is_jcc_short_or_near()
        || code.is_jmp_short_or_near()
        || code.is_jmp_near_indirect()
        || code.is_call_near()
        || code.is_call_near_indirect()
        || matches!(code.mnemonic(), M::Ret | M::Jrcxz | M::Jecxz | M::Loop | M::Loope | M::Loopne);
    near && info.operand_size() == 16 && info.amd_decoder64() && !info.intel_decoder64()
}

/// Whether a branch is one that a 64-bit decoder takes for its own.
fn near64(code: Code) -> bool {
    code.op_code().intel_decoder64() && !matches!(code.op_code().operand_size(), 16 | 32)
}

/// The instruction sets whose members pass through, if nothing above says otherwise. 3DNow! is not
/// among them: no processor of today has it, and what encodes and decodes here disagree about REX.
#[rustfmt::skip]
const PASSED: &[CpuidFeature] = {
    use CpuidFeature as F;
    &[
        F::INTEL8086, F::INTEL186, F::INTEL286, F::INTEL386, F::INTEL486, F::X64, F::FPU, F::FPU287,
        F::FPU387, F::CMOV, F::CX8, F::MMX, F::SSE, F::SSE2, F::FXSR, F::CLFSH, F::MULTIBYTENOP,
        F::PAUSE, F::TSC, F::RDTSCP, F::RDPID, F::RDRAND, F::RDSEED, F::CPUID, F::SSE3, F::SSSE3,
        F::SSE4_1, F::SSE4_2, F::SSE4A, F::PCLMULQDQ, F::FMA, F::FMA4, F::XOP, F::TBM, F::CMPXCHG16B,
        F::MOVBE, F::POPCNT, F::AES, F::AVX, F::F16C, F::BMI1, F::BMI2, F::LZCNT, F::AVX2, F::ADX,
        F::AVX512F, F::AVX512DQ, F::AVX512_IFMA, F::AVX512PF, F::AVX512ER, F::AVX512CD, F::AVX512BW,
        F::AVX512VL, F::AVX512_VBMI, F::AVX512_VBMI2, F::AVX512_VNNI, F::AVX512_BITALG,
        F::AVX512_VPOPCNTDQ, F::AVX512_4VNNIW, F::AVX512_4FMAPS, F::AVX512_VP2INTERSECT,
        F::AVX512_BF16, F::AVX512_FP16, F::AVX_VNNI, F::AVX_IFMA, F::AVX_VNNI_INT8,
        F::AVX_VNNI_INT16, F::AVX_NE_CONVERT, F::CLFLUSHOPT, F::CLWB, F::SHA, F::SHA512, F::SM3,
        F::SM4, F::GFNI, F::VAES, F::VPCLMULQDQ, F::MOVDIRI, F::SERIALIZE, F::PREFETCHW, F::RAO_INT,
        F::CMPCCXADD, F::XSAVE,
    ]
};
