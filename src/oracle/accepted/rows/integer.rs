//! Integer instructions with another result or other flags.

use iced_x86::Mnemonic as M;

use super::super::Accepted;
use super::super::Pattern::{self, Mnemonics, Where};
use super::super::conditions::{
    both_complete, class, culprit, is_flag, is_register, is_register_or_flag, is_the_flag,
    is_upper_half, raised, register_operand,
};
use super::super::instructions::has_operand_of;
use super::{FOUND, unicorn};
use crate::case::{ExceptionVector, Loss, Stop};
use crate::guest::Flag;
use crate::oracle::compare::ComponentClass as C;

const STRING_COMPARE: Pattern = Mnemonics(&[
    M::Pcmpestri,
    M::Pcmpestri64,
    M::Pcmpestrm,
    M::Pcmpestrm64,
    M::Vpcmpestri,
    M::Vpcmpestri64,
    M::Vpcmpestrm,
    M::Vpcmpestrm64,
]);

/// Those that may look for a substring.
const STRING_SEARCH: Pattern = Mnemonics(&[
    M::Pcmpestri,
    M::Pcmpestri64,
    M::Pcmpestrm,
    M::Pcmpestrm64,
    M::Pcmpistri,
    M::Pcmpistrm,
    M::Vpcmpestri,
    M::Vpcmpestri64,
    M::Vpcmpestrm,
    M::Vpcmpestrm64,
    M::Vpcmpistri,
    M::Vpcmpistrm,
]);

/// What their immediate says of how to compare.
const EQUAL_ORDERED: u8 = 3;

pub(super) const ROWS: &[Accepted] = &[
    unicorn("string-compare-crash", STRING_COMPARE)
    .stops(|stops| matches!(stops.1, Stop::Lost(Loss::Killed { .. })))
    .when(|divergence, _| {
        let gpr = divergence.case.state.gpr;
        [gpr[0], gpr[2]].iter().any(|length| *length as u32 == 0x8000_0000)
    })
    .loses()
    .because(
        "an explicit length of 0x80000000 has no absolute value in 32 bits: memory far outside the \
         registers is read, and the whole process crashes",
        "found by tregion (pcmpxstrx in QEMU's ops_sse.h)",
    ),
    unicorn("string-compare-length", STRING_COMPARE)
    .stops(both_complete)
    .shows(|difference| is_register_or_flag(difference) || class(difference) == C::Xmm)
    .because(
        "explicit lengths are taken wrongly: REX.W is ignored, and lengths beyond the register are \
         compared by sign",
        "found by tregion (pcmpxstrx in QEMU's ops_sse.h)",
    ),
    unicorn("string-compare-at-the-end", STRING_SEARCH)
        .stops(both_complete)
        .shows(|difference| is_register_or_flag(difference) || class(difference) == C::Xmm)
        .when(|divergence, _| {
            culprit(divergence).is_some_and(|code| code.immediate8() >> 2 & 3 == EQUAL_ORDERED)
        })
        .because(
            "looking for a substring, what begins at the end of the second operand and would go on beyond \
             is not found",
            "Intel SDM volume 2B, section 4.1.3",
        ),
    unicorn("divide-overflow-crash", Mnemonics(&[M::Idiv]))
        .stops(|stops| {
            raised(stops.0, ExceptionVector::DE)
                && matches!(stops.1, Stop::Lost(Loss::Killed { signal: libc::SIGFPE }))
        })
        .loses()
        .because(
            "IDIV of the least 32-bit or 64-bit dividend by -1 is divided on the host without a look, and the \
             whole process ends",
            "found by tregion (helper_idivw_AX and helper_idivl_EAX in QEMU's int_helper.c)",
        ),
    unicorn("cmpxchg-zero-extends", Mnemonics(&[M::Cmpxchg]))
        .stops(both_complete)
        .shows(is_upper_half)
        .when(|divergence, _| culprit(divergence).is_some_and(|code| has_operand_of(code, 0, 4)))
        .because(
            "32-bit CMPXCHG clears the upper half of RAX, or of the destination, when it is not \
             written",
            "QEMU issue 508",
        ),
    unicorn("bit-scan-zero", Mnemonics(&[M::Bsf, M::Bsr]))
        .stops(both_complete)
        .shows(is_upper_half)
        .when(|divergence, _| {
            let zero = register_operand(divergence, 1).is_none_or(|source| source == 0);
            zero && culprit(divergence).is_some_and(|code| has_operand_of(code, 0, 4))
        })
        .because(
            "a 32-bit bit scan of zero clears the upper half of the destination, which silicon \
             leaves alone (undefined in older manuals)",
            "Intel SDM volume 2A, BSF: if the source is 0 the destination is unmodified",
        ),
    unicorn("bextr", Mnemonics(&[M::Bextr]))
        .stops(both_complete)
        .shows(is_register_or_flag)
        .because("bounds of start and length are wrong", "QEMU issue 1372"),
    unicorn("blsi-carry", Mnemonics(&[M::Blsi, M::Blsr, M::Blsmsk]))
        .stops(both_complete)
        .shows(|difference| is_the_flag(difference, Flag::CF))
        .because("CF is inverted", "QEMU issues 1370 and 2175"),
    unicorn("bzhi", Mnemonics(&[M::Bzhi]))
        .stops(both_complete)
        .shows(is_register_or_flag)
        .when(|divergence, _| {
            let size = culprit(divergence).map_or(0, |code| code.op0_register().size() as u64 * 8);
            register_operand(divergence, 2).is_some_and(|index| index & 0xff >= size - 1)
        })
        .because(
            "an index of the last bit or beyond gives a wrong result and flags",
            "QEMU issue 1374",
        ),
    unicorn("pdep-pext-32", Mnemonics(&[M::Pdep, M::Pext]))
        .stops(both_complete)
        .shows(is_register)
        .when(|divergence, _| culprit(divergence).is_some_and(|code| has_operand_of(code, 0, 4)))
        .because(
            "the 32-bit forms use 64 bits of the mask",
            "QEMU issue 1374 is of the same family",
        ),
    unicorn("lock-neg-flags", Where(|code| code.mnemonic() == M::Neg && code.has_lock_prefix()))
        .stops(both_complete)
        .shows(is_flag)
        .because("LOCK NEG sets its flags as of another value", FOUND),
    unicorn("double-shift-beyond-operand", Mnemonics(&[M::Shld, M::Shrd]))
        .stops(both_complete)
        .shows(|difference| is_register_or_flag(difference) || class(difference) == C::Memory)
        .when(|divergence, _| {
            let narrow = culprit(divergence).is_some_and(|code| has_operand_of(code, 0, 2));
            narrow && register_operand(divergence, 2).is_none_or(|count| count % 32 > 16)
        })
        .because(
            "a 16-bit double shift by more than 16 bits, which the manuals leave undefined, gives what it gives on \
             Intel's processors; AMD's give something else",
            FOUND,
        ),
    unicorn("bit-field-beyond-quadword", Mnemonics(&[M::Extrq, M::Insertq]))
        .stops(both_complete)
        .shows(|difference| class(difference) == C::Xmm)
        .because(
            "the upper half of the destination, and a field that reaches beyond the lower, which the manual leaves \
             undefined, are not what AMD's processors make of them",
            "AMD64 Architecture Programmer's Manual volume 4, EXTRQ and INSERTQ",
        ),
    unicorn("rotate-carry-whole-turns", Mnemonics(&[M::Rcl, M::Rcr]))
        .stops(both_complete)
        .shows(|difference| is_the_flag(difference, Flag::OF))
        .when(|divergence, _| {
            let narrow = |code| has_operand_of(code, 0, 1) || has_operand_of(code, 0, 2);
            culprit(divergence).is_some_and(narrow)
        })
        .because(
            "a rotation through carry by whole turns leaves OF alone as on Intel's processors; on AMD's, where it is \
             undefined for any count but 1, it changes",
            FOUND,
        ),
];
