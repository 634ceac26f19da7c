//! Encodings: what is taken for another instruction, or for none.

use iced_x86::{Code, EncodingKind, Mnemonic as M};

use super::super::Accepted;
use super::super::Pattern::{Mnemonics, Where};
use super::super::accesses::some_access;
use super::super::conditions::{
    X87_TOP, both_complete, both_invalid, class, culprit, has_prefix, is_flag, is_register,
    is_register_or_flag, is_vector, is_x87_status, leads_to_locked_bit, only_left_is_invalid,
    only_left_is_too_long, only_right_is_invalid, only_right_page_faults, raised, starts_with,
};
use super::super::instructions::{
    has_mandatory_prefix, has_memory, is_branch_with_idle_prefix,
    is_rip_relative_with_uncounted_immediate, is_test_alias, is_vex_vector,
};
use super::{DESIGN, FOUND, unicorn};
use crate::case::{ExceptionVector, Loss, Stop};
use crate::oracle::compare::ComponentClass as C;

pub(super) const ROWS: &[Accepted] = &[
    unicorn("rip-relative-immediate", Where(is_rip_relative_with_uncounted_immediate)).because(
        "the immediate byte of RORX, SHLD, SHRD and of F6 /1 is not counted in the address of a \
         RIP-relative operand, which is one too low: another byte is read or written",
        FOUND,
    ),
    unicorn("vex-invalid", Where(is_vex_vector)).stops(only_right_is_invalid).because(
        "some VEX.128 instructions are invalid opcodes; the rest run as legacy SSE",
        "Unicorn issue 1656, pull request 1658",
    ),
    unicorn("vex-runs-as-sse", Where(is_vex_vector)).stops(both_complete).shows(is_vector).because(
        "VEX.128 instructions run as two-operand legacy SSE: the second source and the zeroing \
             of the upper half are ignored",
        "Unicorn issue 1656, pull request 1658",
    ),
    unicorn("evex-invalid", Where(|code| code.encoding() == EncodingKind::EVEX))
        .stops(only_right_is_invalid)
        .because(
            "AVX-512 is not there at all; cases with it are not run where it can be seen in their \
             code",
            "Unicorn issue 1656",
        ),
    unicorn("evex-idle-bits", Where(|instruction| instruction.is_invalid()))
        .stops(only_right_is_invalid)
        .when(|divergence, _| [0x62, 0xc4, 0xc5].iter().any(|&byte| starts_with(divergence, byte)))
        .because(
            "AVX-512 is not there at all, with bits that AMD's processors ignore neither",
            "Unicorn issue 1656",
        ),
    unicorn("vex-idle-bits", Where(|instruction| instruction.is_invalid()))
        .stops(both_complete)
        .when(|divergence, _| [0xc4, 0xc5].iter().any(|&byte| starts_with(divergence, byte)))
        .because(
            "opmask instructions run as the legacy instruction of their opcode, CMOVcc or SETcc; so do those with \
             bits that AMD's processors ignore",
            FOUND,
        ),
    unicorn("vzeroupper-is-emms", Mnemonics(&[M::Vzeroupper, M::Vzeroall]))
        .stops(both_complete)
        .shows(|difference| class(difference) == C::X87Tag || is_vector(difference))
        .because(
            "VZEROUPPER and VZEROALL run as EMMS, whose opcode they have: tags are reset, and no register \
             becomes zero",
            FOUND,
        ),
    unicorn("segment-prefix-order", Where(has_memory))
        .when(|divergence, _| {
            let idle = [0x26, 0x2e, 0x36, 0x3e].iter().any(|&byte| has_prefix(divergence, byte));
            idle && (has_prefix(divergence, 0x64) || has_prefix(divergence, 0x65))
        })
        .because(
            "a prefix of ES, CS, SS or DS behind one of FS or GS takes its base away; in 64-bit mode it \
             is ignored",
            "AMD64 Architecture Programmer's Manual volume 3, section 1.2.4",
        ),
    unicorn("mandatory-prefix-order", Where(has_mandatory_prefix))
        .when(|divergence, _| {
            let has = |prefix| has_prefix(divergence, prefix);
            has(0x66) && (has(0xf2) || has(0xf3)) || has(0xf2) && has(0xf3)
        })
        .because(
            "of several prefixes that choose an SSE instruction, ADCX or ADOX, 66 or the first one is taken; on \
             silicon F2 and F3 come before 66, and the last of the two counts",
            "Intel SDM volume 2D, appendix A.2.3; measured",
        ),
    unicorn("rex-extends-group", Mnemonics(&[M::Mov]))
        .stops(only_right_is_invalid)
        .when(|divergence, _| {
            culprit(divergence).is_some_and(|code| {
                matches!(
                    code.code(),
                    Code::Mov_rm8_imm8
                        | Code::Mov_rm16_imm16
                        | Code::Mov_rm32_imm32
                        | Code::Mov_rm64_imm32
                )
            })
        })
        .because(
            "C6 and C7 with REX.R are invalid opcodes: the bit is taken for part of the group's number",
            "Intel SDM volume 2A, section 2.2.1.2: REX.R extends a register, not an opcode",
        ),
    unicorn("trap-lost-at-pause", Mnemonics(&[M::Pause]))
        .stops(|stops| raised(stops.0, ExceptionVector::DB) && !raised(stops.1, ExceptionVector::DB))
        .because("there is no #DB behind PAUSE with TF set", FOUND),
    unicorn("loop-prefix", Mnemonics(&[M::Loope, M::Loopne]))
        .shows(|difference| matches!(class(difference), C::Rip | C::Stop))
        .when(|divergence, _| has_prefix(divergence, 0xf2) || has_prefix(divergence, 0xf3))
        .because(
            "AMD's processors take LOOPE with F2 for LOOPNE, and LOOPNE with F3 for LOOPE",
            FOUND,
        ),
    unicorn("transactions-are-ignored", Mnemonics(&[M::Xabort, M::Xbegin]))
        .stops(only_left_is_invalid)
        .because(
            "XABORT and XBEGIN, which a processor without RTM has not, do nothing or jump",
            "Intel SDM volume 2D, XABORT: #UD if CPUID.(EAX=7, ECX=0):EBX.RTM is 0",
        ),
    unicorn("popcnt-operand-size", Mnemonics(&[M::Popcnt]))
        .stops(both_complete)
        .shows(is_register_or_flag)
        .when(|divergence, _| has_prefix(divergence, 0x66))
        .because(
            "POPCNT with both 66 and REX.W counts 16 bits; REX.W comes first",
            "Intel SDM volume 2A, section 2.2.1.2",
        ),
    unicorn("test-alias", Where(is_test_alias)).stops(only_right_is_invalid).because(
        "F6 /1 and F7 /1 are TEST on every processor; here they are invalid",
        "QEMU issue 3580",
    ),
    unicorn("operand-size-branch", Where(is_branch_with_idle_prefix))
        .shows(|difference| {
            matches!(
                class(difference),
                C::Stop | C::Rip | C::Gpr | C::Memory | C::FaultAddress | C::ErrorCode
            )
        })
        .when(|divergence, _| has_prefix(divergence, 0x66))
        .because(
            "a near branch with an operand-size prefix is taken with 16 bits; Intel ignores the \
             prefix",
            "Intel SDM volume 2A, CALL: in 64-bit mode the operand size is 64 bits",
        ),
    unicorn(
        "reserved-nop",
        Mnemonics(&[M::Reservednop, M::Nop, M::Prefetchw, M::Prefetchwt1, M::Cldemote]),
    )
    .stops(only_right_is_invalid)
    .because(
        "reserved NOPs (0F 0D, 0F 18–1F) are invalid opcodes",
        "Intel SDM volume 2B, table A-3: 0F 19–0F 1F are reserved NOPs",
    ),
    unicorn("compare-predicate", Mnemonics(&[M::Cmpps, M::Cmppd, M::Cmpss, M::Cmpsd]))
        .stops(only_right_is_invalid)
        .when(|divergence, _| culprit(divergence).is_some_and(|code| code.immediate8() > 7))
        .because(
            "legacy CMPxx with an immediate above 7 is an invalid opcode; silicon takes three bits",
            "Intel SDM volume 2A, CMPPS: bits 7:3 of the immediate are reserved",
        ),
    unicorn("cache-line-writeback", Mnemonics(&[M::Clflushopt, M::Clwb]))
        .stops(only_right_is_invalid)
        .because(
            "CLFLUSHOPT and CLWB are not in the processor model that is emulated",
            "Unicorn, CPU models before ICELAKE_SERVER",
        ),
    unicorn("lock-on-anything", Where(|instruction| instruction.is_invalid()))
        .stops(only_left_is_invalid)
        .when(|divergence, _| has_prefix(divergence, 0xf0))
        .because(
            "LOCK is taken where it may not stand, and the instruction executed",
            "Intel SDM volume 2A, LOCK: #UD with other instructions",
        ),
    unicorn("lock-aborts", Where(|instruction| instruction.is_invalid()))
        .stops(|stops| matches!(stops.1, Stop::Lost(Loss::Killed { .. })))
        .when(|divergence, _| has_prefix(divergence, 0xf0))
        .loses()
        .because(
            "LOCK before BT, BTS, BTR or BTC of a register ends the whole process by an assertion",
            FOUND,
        ),
    unicorn("lock-aborts-ahead", Where(|_| true))
        .in_sequence()
        .stops(|stops| matches!(stops.1, Stop::Lost(Loss::Killed { .. })))
        .when(|divergence, _| leads_to_locked_bit(divergence))
        .loses()
        .because(
            "the same ends the process when it is translated, together with what comes before it",
            FOUND,
        ),
    unicorn("invalid-is-executed", Where(|instruction| instruction.is_invalid()))
        .stops(|stops| only_left_is_invalid(stops) || only_left_is_too_long(stops))
        .when(|divergence, _| !has_prefix(divergence, 0xf0))
        .because(
            "encodings that silicon refuses, by #GP if they have more than 15 bytes, are executed",
            "Intel SDM volume 2D, appendix A: opcode maps",
        ),
    unicorn("invalid-enters-mmx", Where(|instruction| instruction.is_invalid()))
        .stops(both_invalid)
        .shows(|difference| {
            is_x87_status(difference, X87_TOP)
                || matches!(class(difference), C::X87Tag | C::X87Register)
        })
        .because(
            "an invalid opcode among those of MMX resets top and tags of the x87 unit before it \
             faults",
            FOUND,
        ),
    unicorn("invalid-loses-flags", Where(|instruction| instruction.is_invalid()))
        .stops(both_invalid)
        .shows(|difference| is_flag(difference) || class(difference) == C::OtherFlags)
        .when(|divergence, _| starts_with(divergence, 0xc4))
        .because(
            "an encoding among those of BMI that is invalid makes up flags, from nothing, before it faults, bits \
             included that are fixed",
            FOUND,
        ),
    unicorn("waitpkg-is-executed", Mnemonics(&[M::Tpause, M::Umwait, M::Umonitor]))
        .stops(only_left_is_invalid)
        .because(
            "TPAUSE, UMWAIT and UMONITOR, which neither processor has, run as another instruction",
            FOUND,
        ),
    unicorn(
        "load-too-wide",
        Mnemonics(&[
            M::Movsxd,
            M::Punpckldq,
            M::Punpcklbw,
            M::Punpcklwd,
            M::Roundss,
            M::Roundsd,
            M::Cvtps2pi,
            M::Cvttps2pi,
            M::Cvtdq2pd,
            M::Cvtps2pd,
            M::Pmovsxbw,
            M::Pmovzxbw,
            M::Vroundss,
            M::Vroundsd,
            M::Vcvtdq2pd,
            M::Vcvtps2pd,
            M::Vpmovsxbw,
            M::Vpmovzxbw,
        ]),
    )
    .stops(only_right_page_faults)
    .when(|divergence, _| {
        some_access(divergence, |access| !access.crosses_page() && access.would_cross_page(16))
    })
    .because(
        "more bytes of the memory operand are read than there are: a fault at the end of a page",
        FOUND,
    ),
    unicorn(
        "privileged-is-invalid",
        Mnemonics(&[
            M::Sysretq,
            M::Sysret,
            M::Sysexit,
            M::Sysexitq,
            M::Invpcid,
            M::Xsetbv,
            M::Swapgs,
            M::Rdpmc,
        ]),
    )
    .stops(|stops| raised(stops.0, ExceptionVector::GP) && raised(stops.1, ExceptionVector::UD))
    .because(
        "privileged instructions are invalid in user mode instead of #GP",
        "Intel SDM volume 2B, SYSRET: #GP(0) if CPL is not 0",
    ),
    unicorn("return-immediate", Mnemonics(&[M::Ret]))
        .stops(both_complete)
        .shows(is_register)
        .when(|divergence, _| {
            culprit(divergence)
                .is_some_and(|code| code.op_count() == 1 && code.immediate16() >= 0x8000)
        })
        .because(
            "the immediate of RET is sign-extended; it is unsigned",
            "Intel SDM volume 2B, RET: SP ← SP + SRC",
        ),
    unicorn("lahf-sahf-rex", Mnemonics(&[M::Lahf, M::Sahf]))
        .stops(both_complete)
        .shows(is_register_or_flag)
        .when(|divergence, _| culprit(divergence).is_some_and(|code| code.len() > 1))
        .because("with a REX prefix SPL is used in the place of AH", "QEMU issue 130"),
    unicorn("int1-is-invalid", Mnemonics(&[M::Int1]))
        .stops(|stops| raised(stops.0, ExceptionVector::DB) && raised(stops.1, ExceptionVector::UD))
        .because(
            "INT1 (F1) is an invalid opcode; silicon raises #DB",
            "Intel SDM volume 2A, INT n/INTO/INT3/INT1",
        ),
    unicorn("software-interrupt", Mnemonics(&[M::Int]))
        .stops(|stops| raised(stops.0, ExceptionVector::GP))
        .because(
            "`int n` reports exception n, behind the instruction; under an operating system it is \
             #GP(8n+2) unless its gate is for user code",
            DESIGN,
        ),
    unicorn(
        "port-access",
        Mnemonics(&[M::In, M::Out, M::Insb, M::Insw, M::Insd, M::Outsb, M::Outsw, M::Outsd]),
    )
    .stops(|stops| raised(stops.0, ExceptionVector::GP))
    .because("port instructions do nothing or access memory; in user mode they fault", DESIGN),
];
