//! [`Extended`]: how much of the extended state (x87, vectors, masks) an instruction needs in the processor. A
//! vCPU whose code needs less than all need not load and save all of it on its way in and out.

use std::sync::OnceLock;

use iced_x86::{Code, CpuidFeature, EncodingKind, OpCodeOperandKind, OpCodeTableKind};

/// Each level has what those before it have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Extended {
    /// Nothing: general-purpose registers and flags are enough.
    #[default]
    Nothing,
    /// XMM0 to XMM15 and MXCSR, by instructions that leave the rest of those registers alone.
    Sse,
    /// Everything.
    All,
}

/// What instructions of this opcode need. What is not known to need less needs all.
#[must_use]
pub fn extended(code: Code) -> Extended {
    static LEVELS: OnceLock<Vec<Extended>> = OnceLock::new();
    LEVELS.get_or_init(|| Code::values().map(level).collect())[code as usize]
}

fn level(code: Code) -> Extended {
    if code == Code::INVALID {
        return Extended::Nothing;
    }
    let features = code.cpuid_features();
    let has_only = |known: &[CpuidFeature]| features.iter().all(|feature| known.contains(feature));
    let legacy = code.encoding() == EncodingKind::Legacy;
    let vex = code.encoding() == EncodingKind::VEX;
    if (legacy || vex) && has_only(GENERAL) && !is_x87(code) {
        Extended::Nothing
    } else if legacy && has_only(SSE) && !is_x87(code) && !has_mmx(code) {
        Extended::Sse
    } else {
        Extended::All
    }
}

/// Whether it is one of the opcodes D8 to DF, or WAIT.
fn is_x87(code: Code) -> bool {
    let info = code.op_code();
    let first = if info.op_code_len() == 1 { info.op_code() } else { info.op_code() >> 8 };
    info.table() == OpCodeTableKind::Normal && matches!(first, 0x9b | 0xd8..=0xdf)
}

fn has_mmx(code: Code) -> bool {
    use OpCodeOperandKind as K;
    let kinds = code.op_code().op_kinds();
    kinds.iter().any(|kind| matches!(kind, K::mm_reg | K::mm_rm | K::mm_or_mem))
}

#[rustfmt::skip]
const GENERAL: &[CpuidFeature] = {
    use CpuidFeature as F;
    &[
        F::INTEL8086, F::INTEL8086_ONLY, F::INTEL186, F::INTEL286, F::INTEL386, F::INTEL486, F::X64, F::CMOV,
        F::CX8, F::CMPXCHG16B, F::CLFSH, F::CLFLUSHOPT, F::CLWB, F::MULTIBYTENOP, F::PAUSE, F::TSC, F::RDTSCP,
        F::RDPID, F::RDRAND, F::RDSEED, F::CPUID, F::SYSCALL, F::MOVBE, F::POPCNT, F::LZCNT, F::BMI1, F::BMI2,
        F::TBM, F::ADX, F::FSGSBASE, F::PREFETCHW, F::MOVDIRI, F::SERIALIZE, F::CET_IBT, F::MSR, F::SEP,
        F::CMPCCXADD, F::RAO_INT, F::CLDEMOTE, F::PREFETCHITI,
    ]
};

#[rustfmt::skip]
const SSE: &[CpuidFeature] = {
    use CpuidFeature as F;
    &[
        F::SSE, F::SSE2, F::SSE3, F::SSSE3, F::SSE4_1, F::SSE4_2, F::SSE4A, F::AES, F::PCLMULQDQ, F::X64,
    ]
};

#[cfg(test)]
mod tests {
    use iced_x86::{Instruction, InstructionInfoFactory, Register};

    use super::*;

    fn needed(register: Register) -> Extended {
        match register {
            _ if register.is_xmm() && register.number() < 16 => Extended::Sse,
            _ if register.is_vector_register() || register.is_k() => Extended::All,
            _ if register.is_mm() || register.is_st() || register.is_tmm() => Extended::All,
            _ => Extended::Nothing,
        }
    }

    #[test]
    fn whatever_names_a_register_needs_it() {
        use OpCodeOperandKind as K;
        let mut factory = InstructionInfoFactory::new();
        let mut seen = [0; 3];
        for code in Code::values() {
            let info = code.op_code();
            if !info.is_instruction() || !info.mode64() {
                continue;
            }
            let mut instruction = Instruction::default();
            instruction.set_code(code);
            // Registers that the opcode itself names.
            let implied = factory.info(&instruction).used_registers().to_vec();
            let implied = implied.into_iter().map(|used| needed(used.register())).max();
            let named = info.op_kinds().iter().map(|kind| match kind {
                K::xmm_reg | K::xmm_rm | K::xmm_or_mem => Extended::Sse,
                K::mm_reg | K::mm_rm | K::mm_or_mem | K::st0 | K::sti_opcode => Extended::All,
                K::xmm_vvvv | K::xmm_is4 | K::xmm_is5 | K::xmmp3_vvvv => Extended::All,
                K::ymm_reg | K::ymm_rm | K::ymm_or_mem | K::ymm_vvvv => Extended::All,
                K::zmm_reg | K::zmm_rm | K::zmm_or_mem | K::zmm_vvvv => Extended::All,
                K::k_reg | K::k_rm | K::k_or_mem | K::k_vvvv => Extended::All,
                _ => Extended::Nothing,
            });
            let fpu = code.cpuid_features().iter().any(|feature| {
                matches!(feature, CpuidFeature::FPU | CpuidFeature::MMX | CpuidFeature::FXSR)
                    || matches!(feature, CpuidFeature::AVX | CpuidFeature::AVX512F)
            });
            let x87 = info.instruction_string().starts_with('F') && info.op_code() > 0xd7;
            let least = if fpu || x87 { Extended::All } else { Extended::Nothing };
            let least = named.chain(implied).fold(least, Extended::max);
            assert!(extended(code) >= least, "{code:?} needs {least:?}");
            seen[extended(code) as usize] += 1;
        }
        assert!(seen.into_iter().all(|count| count > 100), "{seen:?}");
    }
}
