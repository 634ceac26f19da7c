//! x87 arithmetic: values, exception flags, the register stack.

use iced_x86::Mnemonic as M;

use super::super::Accepted;
use super::super::Pattern::{Mnemonics, Where};
use super::super::conditions::{
    X87_CONDITIONS, X87_EXCEPTIONS, X87_STACK_FLAG, X87_TOP, becomes_special, both_complete, class,
    culprit, holds_special, is_flag, is_x87_register, is_x87_status, leaves_pending,
    meets_stack_fault, only_right_page_faults, raised, rounds_specially,
};
use super::super::instructions::{is_mmx, is_x87};
use super::unicorn;
use crate::case::ExceptionVector;
use crate::oracle::compare::ComponentClass as C;

const MYERS: &str = "QEMU's x87 series of 2020 by J. Myers (commits c415f2c5, 374ff4d0, \
                     de44c044 and others)";

pub(super) const ROWS: &[Accepted] = &[
    unicorn("x87-unmasked", Where(|code| is_x87(code) || is_mmx(code)))
        .stops(|stops| raised(stops.0, ExceptionVector::MF))
        .because(
            "pending unmasked x87 exceptions do not raise #MF",
            "Intel SDM volume 1, section 8.6",
        ),
    unicorn("x87-exception-flags", Where(is_x87))
        .stops(both_complete)
        .shows(|difference| is_x87_status(difference, X87_EXCEPTIONS))
        .because("exception flags and C1 of the x87 status word are not kept", MYERS),
    unicorn(
        "x87-condition-codes",
        Mnemonics(&[
            M::Fcom,
            M::Fcomp,
            M::Fcompp,
            M::Fucom,
            M::Fucomp,
            M::Fucompp,
            M::Ficom,
            M::Ficomp,
            M::Ftst,
            M::Fxam,
            M::Fprem,
            M::Fprem1,
            M::Fptan,
            M::Fsin,
            M::Fcos,
            M::Fsincos,
            M::Fsqrt,
            M::Fxtract,
            M::Fdecstp,
            M::Fincstp,
        ]),
    )
    .stops(both_complete)
    .shows(|difference| is_x87_status(difference, X87_EXCEPTIONS | X87_CONDITIONS))
    .because(
        "condition codes of compares, FXAM and partial functions are wrong for special values, \
             and FINCSTP and FDECSTP clear them",
        "QEMU commits 34b9cc07, c415f2c5, de44c044",
    ),
    unicorn("x87-store-tag", Mnemonics(&[M::Fst, M::Fstp, M::Fstpnce]))
        .stops(both_complete)
        .shows(|difference| class(difference) == C::X87Tag)
        .when(|divergence, _| culprit(divergence).is_some_and(|code| code.op0_register().is_st()))
        .because(
            "FST and FSTP to an empty register of the stack do not mark it as in use",
            "Intel SDM volume 2A, FST; volume 1, section 8.1.7",
        ),
    unicorn("x87-stack-fault", Where(is_x87))
        .stops(both_complete)
        .shows(|difference| {
            const STATUS: u128 = X87_EXCEPTIONS | X87_STACK_FLAG | X87_CONDITIONS | X87_TOP;
            is_x87_status(difference, STATUS)
                || is_flag(difference)
                || matches!(class(difference), C::X87Tag | C::X87Register | C::Memory)
        })
        .when(|divergence, _| meets_stack_fault(divergence))
        .because(
            "an empty or full register stack is not noticed: no stack fault, no indefinite value, \
             and the registers move",
            MYERS,
        ),
    unicorn("x87-unmasked-response", Where(is_x87))
        .stops(|stops| both_complete(stops) || only_right_page_faults(stops))
        .shows(|difference| {
            const STATUS: u128 = X87_EXCEPTIONS | X87_STACK_FLAG | X87_CONDITIONS | X87_TOP;
            is_x87_status(difference, STATUS)
                || matches!(
                    class(difference),
                    C::Stop | C::Rip | C::X87Tag | C::X87Register | C::Memory
                )
        })
        .when(|divergence, _| leaves_pending(divergence))
        .because(
            "with an exception unmasked, silicon leaves operands and stack as they were",
            "Intel SDM volume 1, section 8.5",
        ),
    unicorn(
        "x87-transcendental",
        Mnemonics(&[
            M::F2xm1,
            M::Fyl2x,
            M::Fyl2xp1,
            M::Fpatan,
            M::Fptan,
            M::Fsin,
            M::Fcos,
            M::Fsincos,
            M::Fscale,
            M::Fprem,
            M::Fprem1,
            M::Fxtract,
        ]),
    )
    .stops(both_complete)
    .shows(|difference| {
        is_x87_register(difference)
            || is_x87_status(difference, X87_EXCEPTIONS | X87_CONDITIONS | X87_TOP)
            || class(difference) == C::X87Tag
    })
    .because(
        "transcendental functions, FSCALE and FPREM are computed in the host's double precision",
        "QEMU commits 1f18a1e6 (FYL2X), ff57bb7b (FPATAN), de44c044 (FPREM)",
    ),
    unicorn("x87-constants", Mnemonics(&[M::Fldl2t, M::Fldl2e, M::Fldpi, M::Fldlg2, M::Fldln2]))
        .stops(both_complete)
        .shows(is_x87_register)
        .when(|divergence, _| rounds_specially(divergence))
        .because("constants are not rounded as the control word says", MYERS),
    unicorn("x87-compare-flags", Mnemonics(&[M::Fcomi, M::Fcomip, M::Fucomi, M::Fucomip]))
        .stops(both_complete)
        .shows(is_flag)
        .because(
            "OF, SF and AF are not cleared, and a compare with an unsupported value is not \
             unordered",
            "QEMU commit c415f2c5",
        ),
    unicorn("x87-special-values", Where(is_x87))
        .stops(both_complete)
        .shows(is_x87_register)
        .when(|divergence, difference| holds_special(divergence) || becomes_special(difference))
        .because(
            "NaNs, denormals and encodings that are no numbers are not quieted, refused or chosen \
             as silicon does",
            "QEMU commits 7537c2b4, debe78ce, 34b9cc07",
        ),
    unicorn("x87-store", Mnemonics(&[M::Fist, M::Fistp, M::Fisttp, M::Fbstp, M::Fst, M::Fstp]))
        .stops(both_complete)
        .shows(|difference| class(difference) == C::Memory)
        .because(
            "stores of NaNs and of values out of range give other bytes than the indefinite value",
            "QEMU commit 374ff4d0",
        ),
];
