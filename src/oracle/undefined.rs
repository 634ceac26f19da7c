//! What the manual leaves undefined after an instruction: flags, as iced-x86 knows them. Such results
//! are compared between engines that run on silicon and left out against all others.

use iced_x86::{Instruction, Mnemonic, Register, RflagsBits};

use super::compare::{Component, Difference};
use crate::guest::{Flag, is_repeated_string};

/// The flags that `instruction` leaves undefined, as a mask of RFLAGS.
fn undefined_flags(instruction: &Instruction) -> u64 {
    mask_of(instruction.rflags_undefined())
}

/// What iced-x86 numbers in its own way, as a mask of RFLAGS.
fn mask_of(bits: u32) -> u64 {
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

/// The flags that `instruction` gives a value whatever the operands are, as a mask of RFLAGS: none if it may be
/// repeated no time at all, or shift by nothing.
pub(super) fn defined_flags(instruction: &Instruction) -> u64 {
    if is_repeated_string(instruction) || shifts_by_cl(instruction) {
        return 0;
    }
    mask_of(instruction.rflags_modified() & !instruction.rflags_undefined())
}

fn shifts_by_cl(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    let shifts = matches!(
        instruction.mnemonic(),
        M::Rol | M::Ror | M::Rcl | M::Rcr | M::Sal | M::Shl | M::Shr | M::Sar | M::Shld | M::Shrd
    );
    shifts && instruction.op_register(instruction.op_count() - 1) == Register::CL
}

/// Drops from `differences`, which these instructions caused together, the flags that one of them left
/// undefined and none after it defined. If one of them reads such a flag, everything that follows may
/// differ, and all is dropped.
pub(super) fn drop_undefined_since(
    instructions: impl Iterator<Item = Instruction>,
    differences: &mut Vec<Difference>,
) {
    let mut mask = 0;
    for instruction in instructions {
        if mask & mask_of(instruction.rflags_read()) != 0 {
            differences.clear();
            return;
        }
        mask = mask & !defined_flags(&instruction) | undefined_flags(&instruction);
    }
    drop_flags(mask, differences);
}

/// Drops from `differences`, which these instructions caused together, the flags that one of them left
/// undefined and none after it defined. What those of them made that read such a flag is known to be alike.
pub(super) fn drop_still_undefined(
    instructions: impl Iterator<Item = Instruction>,
    differences: &mut Vec<Difference>,
) {
    let undefined = instructions.fold(0, |mask, instruction| {
        mask & !defined_flags(&instruction) | undefined_flags(&instruction)
    });
    drop_flags(undefined, differences);
}

/// Drops from `differences`, which one execution of `instruction` caused, what the manual leaves
/// undefined.
pub(super) fn drop_undefined(instruction: &Instruction, differences: &mut Vec<Difference>) {
    drop_flags(undefined_flags(instruction), differences);
}

fn drop_flags(mask: u64, differences: &mut Vec<Difference>) {
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

    #[test]
    fn undefined_flags_stay_so_until_they_are_defined() {
        let differ = |flag| Difference {
            component: Component::Flag(flag),
            left: crate::oracle::Value::Bits(1),
            right: crate::oracle::Value::Bits(0),
        };
        let code = [0x0f, 0xaf, 0xc3, 0x90, 0x48, 0xff, 0xc0];
        let all: Vec<Instruction> =
            Decoder::new(64, &code, DecoderOptions::NONE).into_iter().collect();
        let mut kept = vec![differ(Flag::AF), differ(Flag::CF)];
        drop_undefined_since(all[..2].iter().copied(), &mut kept);
        assert_eq!(kept, [differ(Flag::CF)], "imul leaves AF undefined, nop does not define it");
        let mut kept = vec![differ(Flag::AF), differ(Flag::CF)];
        drop_still_undefined(all[..2].iter().copied(), &mut kept);
        assert_eq!(kept, [differ(Flag::CF)]);
        let mut kept = vec![differ(Flag::AF)];
        drop_still_undefined(all.iter().copied(), &mut kept);
        assert_eq!(kept, [differ(Flag::AF)]);
        drop_undefined_since(all.into_iter(), &mut kept);
        assert_eq!(kept, [differ(Flag::AF)], "inc defines AF");
        // A shift by CL may shift by nothing, one by a constant does not.
        for (shift, expected) in [([0xd3, 0xe8, 0x90], 0), ([0xc1, 0xe8, 0x01], 1)] {
            let code: Vec<u8> = [0x0f, 0xaf, 0xc3].into_iter().chain(shift).collect();
            let mut kept = vec![differ(Flag::PF)];
            let decoder = Decoder::new(64, &code, DecoderOptions::NONE);
            drop_undefined_since(decoder.into_iter(), &mut kept);
            assert_eq!(kept.len(), expected);
        }
        let code = [0x0f, 0xaf, 0xc3, 0x74, 0x00];
        let mut kept = vec![differ(Flag::CF)];
        let decoder = Decoder::new(64, &code, DecoderOptions::NONE);
        drop_undefined_since(decoder.into_iter(), &mut kept);
        assert_eq!(kept, [], "je reads the ZF that imul left undefined");
    }
}
