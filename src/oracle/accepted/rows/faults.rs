//! Exceptions: which, when, and what has been changed before.

use iced_x86::{FlowControl, Mnemonic as M};

use super::super::Accepted;
use super::super::Pattern::{Mnemonics, Where};
use super::super::accesses::{is_canonical, some_access};
use super::super::conditions::{
    accesses_across_pages, accesses_misaligned, both_page_faults, class, culprit, is_flag,
    meets_non_canonical, numbers, only_left_is_protection, only_left_page_faults, raised,
    register_operand, state, stores_across_pages, unlike,
};
use super::super::instructions::{
    has_aligned_16_byte_memory, has_memory, is_legacy_sse, is_vex_vector,
};
use super::{DESIGN, FOUND, unicorn};
use crate::case::{ExceptionVector, Stop};
use crate::guest::Vendor;
use crate::oracle::compare::Component;
use crate::oracle::compare::ComponentClass as C;

/// RFLAGS.AC.
const ALIGNMENT_CHECK: u64 = 1 << 18;

pub(super) const ROWS: &[Accepted] = &[
    unicorn(
        "non-canonical",
        Where(|code| has_memory(code) || code.flow_control() != FlowControl::Next),
    )
    .stops(|stops| {
        let stack = raised(stops.0, ExceptionVector::SS);
        let protection = stack || raised(stops.0, ExceptionVector::GP);
        stack && raised(stops.1, ExceptionVector::GP)
            || protection && (raised(stops.1, ExceptionVector::PF) || stops.1 == Stop::Limit)
            || protection && raised(stops.1, ExceptionVector::DB)
    })
    .when(|divergence, _| meets_non_canonical(divergence))
    .because(
        "an access to a non-canonical address is a page fault, not #GP or #SS; a branch to one is \
         taken and faults there, or traps",
        "Intel SDM volume 1, section 3.3.7.1",
    ),
    unicorn("alignment-16", Where(has_aligned_16_byte_memory))
        .stops(only_left_is_protection)
        .when(|divergence, _| accesses_misaligned(divergence))
        .because(
            "legacy SSE with a misaligned 16-byte operand does not fault, nor do the aligned moves of AVX",
            "QEMU issue 217",
        ),
    unicorn("segment-base-non-canonical", Mnemonics(&[M::Wrfsbase, M::Wrgsbase]))
        .stops(only_left_is_protection)
        .when(|divergence, _| {
            register_operand(divergence, 0).is_some_and(|base| !is_canonical(base))
        })
        .because(
            "WRFSBASE and WRGSBASE take bases that are not canonical, instead of #GP",
            "Intel SDM volume 2D, WRFSBASE/WRGSBASE",
        ),
    unicorn("mxcsr-reserved", Mnemonics(&[M::Fxrstor, M::Fxrstor64, M::Ldmxcsr, M::Vldmxcsr]))
        .stops(only_left_is_protection)
        .when(|divergence, _| {
            unlike(divergence, Component::Mxcsr)
                .and_then(numbers)
                .is_some_and(|(_, right)| right & !0xffff != 0)
        })
        .because(
            "reserved bits of MXCSR are loaded instead of #GP",
            "Intel SDM volume 1, section 10.2.3",
        ),
    unicorn("alignment-check", Where(has_memory))
        .stops(|stops| raised(stops.0, ExceptionVector::AC))
        .when(|divergence, _| state(divergence).rflags & ALIGNMENT_CHECK != 0)
        .because("EFLAGS.AC is ignored: no #AC", DESIGN),
    unicorn("read-modify-write-error-code", Where(has_memory))
        .stops(both_page_faults)
        .shows(|difference| {
            let write = |bits: u128| bits & 2 != 0;
            class(difference) == C::ErrorCode
                && numbers(difference).is_some_and(|(left, right)| write(left) && !write(right))
        })
        .when(|divergence, _| some_access(divergence, |access| access.reads_and_writes()))
        .because(
            "an instruction that reads and writes its operand faults as a read; silicon looks for \
             write access first",
            FOUND,
        ),
    unicorn("partial-store", Where(has_memory))
        .stops(both_page_faults)
        .shows(|difference| class(difference) == C::Memory)
        .when(|divergence, _| stores_across_pages(divergence))
        .because(
            "a store that ends in a page that cannot be written has stored its first bytes",
            "Unicorn's split accesses; Intel SDM volume 3A, section 6.5: faults are precise",
        ),
    unicorn("partial-load", Where(|code| is_legacy_sse(code) || is_vex_vector(code)))
        .stops(both_page_faults)
        .shows(|difference| class(difference) == C::Xmm)
        .when(|divergence, _| accesses_across_pages(divergence))
        .because(
            "a load that ends in a page that cannot be read has loaded its first half, by VEX instructions that \
             run as SSE too",
            "Intel SDM volume 3A, section 6.5: faults are precise",
        ),
    unicorn("split-fault-address", Where(has_memory))
        .stops(both_page_faults)
        .shows(|difference| class(difference) == C::FaultAddress)
        .when(|divergence, _| accesses_across_pages(divergence))
        .because(
            "of an access across two pages another byte's address is reported",
            "Unicorn's split accesses; Intel SDM volume 3A, section 4.7",
        ),
    unicorn("repe-cmpsb-order", Mnemonics(&[M::Cmpsb]))
        .stops(both_page_faults)
        .shows(|difference| {
            matches!(class(difference), C::Stop | C::FaultAddress | C::ErrorCode)
        })
        .when(|divergence, _| {
            Vendor::of_this_host() == Vendor::Amd
                && culprit(divergence).is_some_and(|code| code.has_repe_prefix())
        })
        .because(
            "where neither operand can be read, the fault is RDI's side's, as on Intel's processors; AMD's look \
             at RSI's side first",
            "found by tregion; silicon (AMD EPYC, Zen 4)",
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
    )
    .stops(both_page_faults)
    .shows(|difference| is_flag(difference) || matches!(class(difference), C::Rip | C::Gpr))
    .because(
        "flags, registers or RIP are changed although the instruction faults",
        "QEMU commit e7bbb7cb, \"target/i386: fix flags written back before a fault\" (one of \
         them)",
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
            M::Maskmovdqu,
            M::Vmaskmovdqu,
            M::Maskmovq,
            M::Fxrstor,
            M::Fxrstor64,
            M::Cmpxchg16b,
        ]),
    )
    .stops(|stops| {
        raised(stops.0, ExceptionVector::PF)
            && (raised(stops.1, ExceptionVector::PF) || stops.1 == Stop::Limit)
    })
    .shows(|difference| {
        matches!(
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
    })
    .because(
        "an access in several parts goes on behind the part that faults, and so does the \
         instruction: the last address is reported, RIP and the x87 stack have moved",
        FOUND,
    ),
    unicorn("enter-probe", Mnemonics(&[M::Enter])).stops(only_left_page_faults).because(
        "ENTER does not look whether the new top of stack can be written",
        "Intel SDM volume 2A, ENTER: #PF if a write using the final value of the stack pointer \
         would",
    ),
    unicorn("clflush-does-not-fault", Mnemonics(&[M::Clflush]))
        .stops(only_left_page_faults)
        .because(
            "CLFLUSH of an address that is not mapped does not fault",
            "Intel SDM volume 2A, CLFLUSH: #PF(fault-code)",
        ),
];
