//! What the manual leaves undefined after an instruction: flags, as iced-x86 knows them. Such results
//! are compared between engines that run on silicon and left out against all others.

use iced_x86::{Instruction, RflagsBits};

use super::compare::{Component, Difference};
use crate::guest::Flag;

/// The flags that `instruction` leaves undefined, as a mask of RFLAGS.
fn undefined_flags(instruction: &Instruction) -> u64 {
    let bits = instruction.rflags_undefined();
    let known = [
        (RflagsBits::CF, Flag::CF),
        (RflagsBits::PF, Flag::PF),
        (RflagsBits::AF, Flag::AF),
        (RflagsBits::ZF, Flag::ZF),
        (RflagsBits::SF, Flag::SF),
        (RflagsBits::OF, Flag::OF),
    ];
    known.into_iter().filter(|(bit, _)| bits & bit != 0).map(|(_, flag)| flag.mask()).sum()
}

/// Drops from `differences`, which one execution of `instruction` caused, what the manual leaves
/// undefined.
pub(super) fn drop_undefined(instruction: &Instruction, differences: &mut Vec<Difference>) {
    let mask = undefined_flags(instruction);
    differences.retain(|difference| {
        !matches!(difference.component, Component::Flag(flag) if mask & flag.mask() != 0)
    });
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::*;

    #[test]
    fn multiplication_leaves_four_flags_undefined() {
        let imul = Decoder::new(64, &[0x0f, 0xaf, 0xc3], DecoderOptions::NONE).decode();
        let expected: u64 = [Flag::PF, Flag::AF, Flag::ZF, Flag::SF].map(Flag::mask).iter().sum();
        assert_eq!(undefined_flags(&imul), expected);
        let add = Decoder::new(64, &[0x01, 0xc3], DecoderOptions::NONE).decode();
        assert_eq!(undefined_flags(&add), 0);
    }
}
