//! What is stored and loaded of the x87 unit, and MMX, which shares its registers.

use iced_x86::Mnemonic as M;

use super::super::Accepted;
use super::super::Pattern::{Mnemonics, Where};
use super::super::conditions::{
    X87_TOP, both_complete, class, differs_within, is_x87_register, is_x87_status, numbers,
};
use super::super::instructions::is_mmx;
use super::unicorn;
use crate::oracle::compare::ComponentClass as C;

/// Sign and exponent of an x87 register, above the 64 bits of an MMX register.
const EXPONENT: u128 = 0xffff << 64;

pub(super) const ROWS: &[Accepted] = &[
    unicorn("mmx-exponent", Where(is_mmx))
        .shows(|difference| {
            is_x87_register(difference)
                && differs_within(difference, EXPONENT)
                && numbers(difference).is_some_and(|(left, _)| left & EXPONENT == EXPONENT)
        })
        .because("MMX writes do not set the exponent to FFFF", "QEMU issue 4105"),
    unicorn("mmx-stack", Where(is_mmx))
        .shows(|difference| {
            is_x87_status(difference, X87_TOP)
                || matches!(class(difference), C::X87Tag | C::X87Register)
        })
        .because(
            "some MMX instructions leave top and tags of the x87 unit alone, or change them \
             although they fault",
            "Intel SDM volume 1, section 9.6.2: top becomes 0 and all tags valid",
        ),
    unicorn("x87-environment", Mnemonics(&[M::Fnstenv, M::Fnsave, M::Fxsave, M::Fxsave64]))
        .stops(both_complete)
        .shows(|difference| class(difference) == C::Memory)
        .because(
            "pointers, reserved words and the MXCSR mask are stored as zeros",
            "QEMU issue 4105 and commit c415f2c5",
        ),
    unicorn(
        "x87-environment-load",
        Mnemonics(&[
            M::Fldenv,
            M::Frstor,
            M::Fxrstor,
            M::Fxrstor64,
            M::Fldcw,
            M::Fnstenv,
            M::Fnsave,
        ]),
    )
    .stops(both_complete)
    .shows(|difference| {
        matches!(
            class(difference),
            C::X87Control | C::X87Status | C::X87Tag | C::X87Register | C::Mxcsr
        )
    })
    .because(
        "control and status words are loaded and masked in another way",
        "QEMU issue 4105 and commit c415f2c5",
    ),
];
