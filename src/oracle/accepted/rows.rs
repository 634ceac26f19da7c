//! The rows. Each is as narrow as its reason: at which instructions, and in what.

use iced_x86::Mnemonic as M;

use super::super::compare::ComponentClass as C;
use super::super::compare::Difference;
use super::Accepted;
use super::Pattern::{Mnemonics, Where};
use super::predicates::{
    Stops, any, bits, both_page_faults, class, has_16_byte_memory, has_memory,
    is_branch_with_idle_prefix, is_flag, is_legacy_sse, is_locked, is_mmx, is_test_alias,
    is_vex_vector, is_x87, only_right_is_invalid, raised,
};
use crate::case::{ExceptionVector, Loss, Stop};

const DESIGN: &str = "no alignment, privilege or port model: by design of the emulator";
const SERIES: &str = "QEMU commit 418b0f93d12a, \"target/i386: set SSE FTZ in correct \
                      floating-point state\", and the series around it (2020)";

/// A row about one instruction of Unicorn.
const fn unicorn(
    name: &'static str,
    pattern: super::Pattern,
    covers: fn(Stops, &Difference) -> bool,
    reason: &'static str,
    reference: &'static str,
) -> Accepted {
    Accepted { name, engine: "unicorn", pattern, covers, sequence: false, reason, reference }
}

/// A row about a run of instructions.
const fn in_sequence(row: Accepted) -> Accepted {
    Accepted { sequence: true, ..row }
}

/// Every accepted difference.
pub static ACCEPTED: &[Accepted] = &[
    // ---- encodings and decoding -------------------------------------------------------------
    unicorn(
        "vex-runs-as-sse",
        Where(is_vex_vector),
        any,
        "VEX.128 instructions run as two-operand legacy SSE: the second source and the zeroing of \
         the upper half are ignored, or they are invalid",
        "Unicorn issue 1656, pull request 1658",
    ),
    unicorn(
        "test-alias",
        Where(is_test_alias),
        any,
        "F6 /1 and F7 /1 are TEST on every processor; here they are invalid",
        "QEMU issue 3580",
    ),
    unicorn(
        "operand-size-branch",
        Where(is_branch_with_idle_prefix),
        |_, difference| {
            matches!(
                class(difference),
                C::Stop | C::Rip | C::Gpr | C::Memory | C::FaultAddress | C::ErrorCode
            )
        },
        "a near branch with an operand-size prefix is taken with 16 bits; Intel ignores the prefix",
        "Intel SDM volume 2A, CALL: in 64-bit mode the operand size is 64 bits",
    ),
    unicorn(
        "reserved-nop",
        Mnemonics(&[M::Reservednop, M::Nop, M::Prefetchw, M::Prefetchwt1, M::Cldemote]),
        |stops, _| only_right_is_invalid(stops),
        "reserved NOPs (0F 0D, 0F 18–1F) are invalid opcodes",
        "Intel SDM volume 2B, table A-3: 0F 19–0F 1F are reserved NOPs",
    ),
    unicorn(
        "compare-predicate",
        Mnemonics(&[M::Cmpps, M::Cmppd, M::Cmpss, M::Cmpsd]),
        |stops, _| only_right_is_invalid(stops),
        "legacy CMPxx with an immediate above 7 is an invalid opcode; silicon takes three bits",
        "Intel SDM volume 2A, CMPPS: bits 7:3 of the immediate are reserved",
    ),
    unicorn(
        "cache-line-writeback",
        Mnemonics(&[M::Clflushopt, M::Clwb]),
        |stops, _| only_right_is_invalid(stops),
        "CLFLUSHOPT and CLWB are not in the processor model that is emulated",
        "Unicorn, CPU models before ICELAKE_SERVER",
    ),
    unicorn(
        "lock-on-anything",
        Where(|instruction| instruction.is_invalid()),
        any,
        "encodings that silicon refuses (LOCK where it may not be, among others) are executed",
        "Intel SDM volume 2A, LOCK: #UD with other instructions",
    ),
    unicorn(
        "rorx-rip-relative",
        Mnemonics(&[M::Rorx]),
        |_, difference| matches!(class(difference), C::Gpr | C::Stop | C::FaultAddress),
        "the address of a RIP-relative operand of RORX is one too high or too low: its immediate \
         byte is not counted",
        "found by tregion",
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
        ]),
        |stops, _| !raised(stops.0, ExceptionVector::PF) && raised(stops.1, ExceptionVector::PF),
        "more bytes of the memory operand are read than there are: a fault at the end of a page",
        "found by tregion",
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
        ]),
        |stops, _| raised(stops.0, ExceptionVector::GP) && raised(stops.1, ExceptionVector::UD),
        "privileged instructions are invalid in user mode instead of #GP",
        "Intel SDM volume 2B, SYSRET: #GP(0) if CPL is not 0",
    ),
    unicorn(
        "return-immediate",
        Mnemonics(&[M::Ret]),
        |_, difference| class(difference) == C::Gpr,
        "the immediate of RET is sign-extended; it is unsigned",
        "Intel SDM volume 2B, RET: SP ← SP + SRC",
    ),
    unicorn(
        "lahf-sahf-rex",
        Mnemonics(&[M::Lahf, M::Sahf]),
        |_, difference| is_flag(difference) || class(difference) == C::Gpr,
        "with a REX prefix SPL is used in the place of AH",
        "QEMU issue 130",
    ),
    // ---- exceptions -------------------------------------------------------------------------
    unicorn(
        "non-canonical",
        Where(|instruction| {
            has_memory(instruction) || instruction.flow_control() != iced_x86::FlowControl::Next
        }),
        |stops, _| {
            let stack = raised(stops.0, ExceptionVector::SS);
            if stack && raised(stops.1, ExceptionVector::GP) {
                return true;
            }
            (stack || raised(stops.0, ExceptionVector::GP))
                && (raised(stops.1, ExceptionVector::PF) || stops.1 == Stop::Limit)
        },
        "an access to a non-canonical address is a page fault, not #GP or #SS",
        "Intel SDM volume 1, section 3.3.7.1",
    ),
    unicorn(
        "alignment-16",
        Where(|instruction| has_16_byte_memory(instruction) && is_legacy_sse(instruction)),
        |stops, _| raised(stops.0, ExceptionVector::GP),
        "legacy SSE with a misaligned 16-byte operand does not fault",
        "QEMU issue 217",
    ),
    unicorn(
        "save-area-alignment",
        Mnemonics(&[M::Fxsave, M::Fxsave64, M::Fxrstor, M::Fxrstor64, M::Cmpxchg16b, M::Movdir64b]),
        |stops, _| raised(stops.0, ExceptionVector::GP),
        "a misaligned save area or 16-byte operand does not fault",
        "Intel SDM volume 2A, FXSAVE and CMPXCHG16B: #GP(0)",
    ),
    unicorn(
        "alignment-check",
        Where(has_memory),
        |stops, _| raised(stops.0, ExceptionVector::AC),
        "EFLAGS.AC is ignored: no #AC",
        DESIGN,
    ),
    unicorn(
        "sse-exceptions",
        Where(is_legacy_sse),
        |stops, _| raised(stops.0, ExceptionVector::XM),
        "unmasked SSE exceptions do not raise #XM",
        "QEMU issue 215",
    ),
    unicorn(
        "read-modify-write-error-code",
        Where(has_memory),
        |_, difference| {
            let both = (bits(difference.left), bits(difference.right));
            class(difference) == C::ErrorCode
                && matches!(both, (Some(left), Some(right)) if left & 2 != 0 && right & 2 == 0)
        },
        "an instruction that reads and writes its operand faults as a read; silicon looks for \
         write access first",
        "found by tregion",
    ),
    unicorn(
        "partial-store",
        Where(has_memory),
        |stops, difference| {
            both_page_faults(stops) && matches!(class(difference), C::Memory | C::FaultAddress)
        },
        "a store that ends in a page that cannot be written has stored its first bytes, and may \
         report another byte's address",
        "Unicorn's split accesses; Intel SDM volume 3A, section 6.5: faults are precise",
    ),
    unicorn(
        "commits-before-fault",
        Mnemonics(&[
            M::Scasb,
            M::Scasw,
            M::Scasd,
            M::Scasq,
            M::Cmpsb,
            M::Cmpsw,
            M::Cmpsd,
            M::Cmpsq,
            M::Rcl,
            M::Rcr,
            M::Rol,
            M::Ror,
            M::Shld,
            M::Shrd,
            M::Cmpxchg8b,
            M::Cmpxchg16b,
            M::Enter,
            M::Cmpxchg,
            M::Xadd,
            M::Popf,
            M::Popfq,
        ]),
        |stops, difference| {
            both_page_faults(stops)
                && (is_flag(difference) || matches!(class(difference), C::Rip | C::Gpr | C::Stop))
        },
        "flags, registers or RIP are changed although the instruction faults",
        "QEMU commit e7bbb7cb, \"target/i386: fix flags written back before a fault\" (one of them)",
    ),
    unicorn(
        "goes-on-after-fault",
        Mnemonics(&[
            M::Fnsave,
            M::Fnstenv,
            M::Fxsave,
            M::Fxsave64,
            M::Fstp,
            M::Fbstp,
            M::Fbld,
            M::Fld,
            M::Fldenv,
            M::Frstor,
            M::Fxrstor,
            M::Fxrstor64,
        ]),
        |stops, difference| {
            raised(stops.0, ExceptionVector::PF)
                && (raised(stops.1, ExceptionVector::PF) || stops.1 == Stop::Limit)
                && matches!(
                    class(difference),
                    C::Rip
                        | C::FaultAddress
                        | C::X87Status
                        | C::X87Tag
                        | C::X87Register
                        | C::Stop
                        | C::X87Control
                        | C::Mxcsr
                        | C::Xmm
                )
        },
        "an access in several parts goes on behind the part that faults, and so does the \
         instruction: the last address is reported, RIP and the x87 stack have moved",
        "found by tregion",
    ),
    unicorn(
        "enter-probe",
        Mnemonics(&[M::Enter]),
        |stops, _| raised(stops.0, ExceptionVector::PF) && !raised(stops.1, ExceptionVector::PF),
        "ENTER does not look whether the new top of stack can be written",
        "Intel SDM volume 2A, ENTER: #PF if a write using the final value of the stack pointer would",
    ),
    unicorn(
        "clflush-does-not-fault",
        Mnemonics(&[M::Clflush]),
        |stops, _| raised(stops.0, ExceptionVector::PF),
        "CLFLUSH of an address that is not mapped does not fault",
        "Intel SDM volume 2A, CLFLUSH: #PF(fault-code)",
    ),
    unicorn(
        "waitpkg-is-executed",
        Mnemonics(&[M::Tpause, M::Umwait, M::Umonitor]),
        |stops, _| raised(stops.0, ExceptionVector::UD),
        "TPAUSE, UMWAIT and UMONITOR, which neither processor has, run as another instruction",
        "found by tregion",
    ),
    unicorn(
        "port-access",
        Mnemonics(&[M::In, M::Out, M::Insb, M::Insw, M::Insd, M::Outsb, M::Outsw, M::Outsd]),
        any,
        "port instructions do nothing; in user mode they fault",
        DESIGN,
    ),
    unicorn(
        "int1-is-invalid",
        Mnemonics(&[M::Int1]),
        any,
        "INT1 (F1) is an invalid opcode; silicon raises #DB",
        "Intel SDM volume 2A, INT n/INTO/INT3/INT1",
    ),
    unicorn(
        "software-interrupt",
        Mnemonics(&[M::Int]),
        any,
        "`int n` reports exception n, behind the instruction; under an operating system it is \
         #GP(8n+2) unless its gate is for user code",
        DESIGN,
    ),
    // ---- integer ----------------------------------------------------------------------------
    unicorn(
        "cmpxchg-zero-extends",
        Mnemonics(&[M::Cmpxchg]),
        |_, difference| class(difference) == C::Gpr,
        "32-bit CMPXCHG clears the upper half of RAX, or of the destination, when it is not written",
        "QEMU issue 508",
    ),
    unicorn(
        "bit-scan-zero",
        Mnemonics(&[M::Bsf, M::Bsr]),
        |_, difference| class(difference) == C::Gpr,
        "a 32-bit bit scan of zero clears the upper half of the destination, which silicon leaves \
         alone (undefined in older manuals)",
        "Intel SDM volume 2A, BSF: if the source is 0 the destination is unmodified",
    ),
    unicorn(
        "bextr",
        Mnemonics(&[M::Bextr]),
        |_, difference| class(difference) == C::Gpr || is_flag(difference),
        "bounds of start and length are wrong",
        "QEMU issue 1372",
    ),
    unicorn(
        "blsi-carry",
        Mnemonics(&[M::Blsi, M::Blsr, M::Blsmsk]),
        |_, difference| is_flag(difference),
        "CF is inverted",
        "QEMU issues 1370 and 2175",
    ),
    unicorn(
        "bzhi",
        Mnemonics(&[M::Bzhi]),
        |_, difference| class(difference) == C::Gpr || is_flag(difference),
        "an index beyond the operand's size gives a wrong result and flags",
        "QEMU issue 1374",
    ),
    unicorn(
        "pdep-pext-32",
        Mnemonics(&[M::Pdep, M::Pext]),
        |_, difference| class(difference) == C::Gpr,
        "the 32-bit forms use 64 bits of the mask",
        "QEMU issue 1374 is of the same family",
    ),
    unicorn(
        "double-shift-16",
        Mnemonics(&[M::Shld, M::Shrd]),
        |_, difference| is_flag(difference) || matches!(class(difference), C::Gpr | C::Memory),
        "16-bit double shifts by more than 16 differ; the manual leaves them undefined",
        "Intel SDM volume 2B, SHLD: result undefined if the count is above the operand size",
    ),
    unicorn(
        "rotate-through-carry",
        Mnemonics(&[M::Rcl, M::Rcr]),
        |_, difference| is_flag(difference),
        "flags of rotates by a count of more than the operand's size differ",
        "Intel SDM volume 2B, RCL/RCR: OF is undefined for counts other than 1",
    ),
    unicorn(
        "lock-neg-flags",
        Where(|instruction| instruction.mnemonic() == M::Neg && is_locked(instruction)),
        |_, difference| is_flag(difference),
        "LOCK NEG sets its flags as of another value",
        "found by tregion",
    ),
    unicorn(
        "string-compare",
        Mnemonics(&[
            M::Pcmpestri,
            M::Pcmpestri64,
            M::Pcmpestrm,
            M::Pcmpestrm64,
            M::Pcmpistri,
            M::Pcmpistrm,
        ]),
        |stops, difference| {
            matches!(class(difference), C::Gpr | C::Xmm)
                || is_flag(difference)
                || matches!(stops.1, Stop::Lost(Loss::Killed { .. }))
        },
        "explicit lengths are taken wrongly: REX.W is ignored, and a length of 0x80000000 reads \
         outside the registers and crashes the process",
        "found by tregion (pcmpxstrx in QEMU's ops_sse.h)",
    ),
    // ---- SSE --------------------------------------------------------------------------------
    unicorn(
        "mxcsr-status",
        Where(is_legacy_sse),
        |_, difference| class(difference) == C::Mxcsr,
        "exceptions of SSE arithmetic are not noted in MXCSR",
        "QEMU issue 215",
    ),
    unicorn(
        "flush-to-zero",
        Where(is_legacy_sse),
        |stops, difference| {
            !raised(stops.0, ExceptionVector::GP)
                && matches!(class(difference), C::Xmm | C::X87Register)
        },
        "MXCSR.FTZ set by a guest has no effect, and of NaN operands the wrong one may be passed on",
        SERIES,
    ),
    unicorn(
        "reciprocals",
        Mnemonics(&[M::Rcpps, M::Rcpss, M::Rsqrtps, M::Rsqrtss]),
        |_, difference| class(difference) == C::Xmm,
        "approximations are computed exactly; both are within the error that the manual allows",
        "Intel SDM volume 2B, RCPPS: |relative error| ≤ 1.5 · 2^-12",
    ),
    unicorn(
        "horizontal-overlap",
        Mnemonics(&[
            M::Phaddw,
            M::Phaddd,
            M::Phaddsw,
            M::Phsubw,
            M::Phsubd,
            M::Phsubsw,
            M::Haddps,
            M::Haddpd,
            M::Hsubps,
            M::Hsubpd,
        ]),
        |_, difference| matches!(class(difference), C::Xmm | C::X87Register),
        "with one register as both operands the result is read where it was already written",
        "found by tregion",
    ),
    // ---- MMX and x87 ------------------------------------------------------------------------
    unicorn(
        "mmx-state",
        Where(is_mmx),
        |_, difference| matches!(class(difference), C::X87Register | C::X87Status | C::X87Tag),
        "MMX writes do not set the exponent to FFFF; some leave top and tags of the x87 unit alone, \
         or change them although they fault",
        "QEMU issue 4105",
    ),
    unicorn(
        "x87-status",
        Where(is_x87),
        |_, difference| class(difference) == C::X87Status,
        "exception flags, condition codes, C1 and stack faults of the x87 unit are not kept",
        "QEMU's x87 series of 2020 by J. Myers (commits c415f2c5, 374ff4d0, de44c044 and others)",
    ),
    unicorn(
        "x87-stack-fault",
        Where(is_x87),
        |_, difference| matches!(class(difference), C::X87Tag | C::X87Register),
        "an empty or full register stack is not noticed; values, tags and precision differ, and \
         transcendental functions are computed in double precision",
        "QEMU commits 1f18a1e6, ff57bb7b, de44c044",
    ),
    unicorn(
        "x87-compare-flags",
        Mnemonics(&[M::Fcomi, M::Fcomip, M::Fucomi, M::Fucomip]),
        |_, difference| is_flag(difference),
        "a compare with an empty register or an unsupported value is not unordered, and OF, SF, AF \
         are not cleared",
        "QEMU commit c415f2c5",
    ),
    unicorn(
        "x87-store",
        Where(is_x87),
        |_, difference| class(difference) == C::Memory,
        "stores of empty registers, NaNs and values out of range give other bytes than the \
         indefinite value",
        "QEMU commit 374ff4d0",
    ),
    unicorn(
        "x87-unmasked",
        Where(|instruction| is_x87(instruction) || is_mmx(instruction)),
        |stops, _| raised(stops.0, ExceptionVector::MF),
        "pending unmasked x87 exceptions do not raise #MF",
        "Intel SDM volume 1, section 8.6",
    ),
    unicorn(
        "x87-environment",
        Mnemonics(&[
            M::Fnstenv,
            M::Fnsave,
            M::Fxsave,
            M::Fxsave64,
            M::Fldenv,
            M::Frstor,
            M::Fxrstor,
            M::Fxrstor64,
            M::Fstenv,
            M::Fsave,
        ]),
        |_, difference| {
            matches!(
                class(difference),
                C::Memory | C::X87Control | C::X87Status | C::X87Tag | C::X87Register | C::Mxcsr
            )
        },
        "pointers, reserved words and the MXCSR mask are stored as zeros; control words are loaded \
         and masked in another way",
        "QEMU issue 4105 and commit c415f2c5",
    ),
    // ---- sequences --------------------------------------------------------------------------
    in_sequence(unicorn(
        "compare-exchange-loses-flags",
        Mnemonics(&[M::Cmpxchg8b, M::Cmpxchg16b]),
        any,
        "CMPXCHG8B and CMPXCHG16B take the flags that they leave alone from an unfinished \
         computation: any bit of RFLAGS may be wrong after them, TF included, and branches go astray",
        "found by tregion",
    )),
    in_sequence(unicorn(
        "loop-loses-flags",
        Mnemonics(&[M::Loop, M::Loope, M::Loopne]),
        any,
        "LOOP, LOOPE and LOOPNE take the flags that they leave alone from an unfinished computation",
        "found by tregion",
    )),
    in_sequence(unicorn(
        "own-code-write-loses-flags",
        Where(has_memory),
        |_, difference| is_flag(difference) || class(difference) == C::Memory,
        "a store that hits the running block goes on with flags as of an earlier instruction",
        "found by tregion",
    )),
];
