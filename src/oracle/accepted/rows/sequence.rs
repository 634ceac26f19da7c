//! What takes more than one instruction: stale flags and stale code.

use iced_x86::{Instruction, Mnemonic as M};

use super::super::Accepted;
use super::super::Pattern::{Mnemonics, Where};
use super::super::conditions::{
    both_complete, both_page_faults, can_write_code, class, is_flag, maker_of_flag,
};
use super::super::instructions::has_memory;
use super::{FOUND, unicorn};
use crate::oracle::compare::ComponentClass as C;
use crate::oracle::localise::Divergence;

pub(super) const ROWS: &[Accepted] = &[
    unicorn("compare-exchange-loses-flags", Mnemonics(&[M::Cmpxchg8b, M::Cmpxchg16b]))
        .in_sequence()
        .because(
            "CMPXCHG8B and CMPXCHG16B take the flags that they leave alone from an unfinished \
             computation: any bit of RFLAGS may be wrong after them, TF included, and branches go \
             astray",
            FOUND,
        ),
    unicorn("loop-loses-flags", Mnemonics(&[M::Loop, M::Loope, M::Loopne])).in_sequence().because(
        "LOOP, LOOPE and LOOPNE take the flags that they leave alone from an unfinished \
         computation",
        FOUND,
    ),
    unicorn("own-code-write-loses-flags", Where(has_memory))
        .in_sequence()
        .when(|divergence, difference| {
            let lost = is_flag(difference) || class(difference) == C::Memory;
            can_write_code(divergence) && (lost || may_come_from_flags(divergence))
        })
        .because(
            "a store that hits the running block goes on with flags as of an earlier instruction, and so \
             does what reads them behind it",
            FOUND,
        ),
    unicorn("flags-read-before-fault", Where(|code| has_memory(code) && code.rflags_read() != 0))
        .in_sequence()
        .stops(both_page_faults)
        .shows(is_flag)
        .because(
            "an instruction that reads flags has them made up before its access; at its page fault they \
             are made up once more, from what is left of their operands",
            FOUND,
        ),
    unicorn("x87-compare-flags-carried", Where(|_| true))
        .in_sequence()
        .stops(both_complete)
        .when(|divergence, difference| {
            let last = maker_of_flag(divergence, difference);
            last.is_some_and(|code| {
                matches!(code.mnemonic(), M::Fcomi | M::Fcomip | M::Fucomi | M::Fucomip)
            })
        })
        .because(
            "a comparison that does not clear OF, SF and AF leaves them as undefined as they were before",
            "QEMU commit c415f2c5",
        ),
    unicorn("x87-pointers", Where(is_environment_store))
        .in_sequence()
        .stops(both_complete)
        .shows(|difference| class(difference) == C::Memory)
        .when(|divergence, _| divergence.executed.last().is_some_and(is_environment_store))
        .because(
            "the pointers to the last x87 instruction and its operand are not kept up, and stored \
             as they were",
            "Intel SDM volume 1, section 8.1.8; QEMU issue 4105",
        ),
    unicorn("counting-loses-flags", Where(|_| true))
        .in_sequence()
        .shows(|difference| is_flag(difference) || class(difference) == C::Memory)
        .when(|divergence, difference| {
            let pushes = divergence.executed.last().is_some_and(pushes_flags);
            divergence.case.limit.is_some() && (is_flag(difference) || pushes)
        })
        .because(
            "with a code hook, which counting instructions takes, flags of arithmetic can be lost \
             before an instruction that faults, reads or pushes them; without the limit they are right",
            FOUND,
        ),
];

/// Whether flags that a store lost are read behind it: by what was executed, or, where they differ still, by what may
/// be executed yet.
fn may_come_from_flags(divergence: &Divergence) -> bool {
    let executed = &divergence.executed;
    let mut behind = executed.iter().skip_while(|code| !has_memory(code)).skip(1);
    let goes_on = |limit| limit > executed.len() as u64;
    behind.any(|code| code.rflags_read() != 0)
        || divergence.case.limit.is_none_or(goes_on) && divergence.differences.iter().any(is_flag)
}

fn pushes_flags(code: &Instruction) -> bool {
    matches!(code.mnemonic(), M::Pushf | M::Pushfq)
}

fn is_environment_store(code: &Instruction) -> bool {
    matches!(code.mnemonic(), M::Fnsave | M::Fnstenv | M::Fxsave | M::Fxsave64)
}
