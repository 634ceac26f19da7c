//! How long an instruction would be that cannot be executed: of those with more than 15 bytes the
//! processor finds that first, and raises #GP where a shorter one is undefined (Intel SDM volume 2,
//! section 2.3.11; volume 3A, "Interrupt 13"); and one that goes on in a page that cannot be executed is a
//! page fault.

use iced_x86::{Code, Instruction};

use crate::guest::{Vendor, decoder};
use crate::translate::is_prefix;

/// Bytes that an instruction has at most.
pub(super) const MOST_BYTES: usize = 15;

/// Whether all of an instruction is there, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    Within,
    /// It goes on behind the bytes that are there, or behind the most that there can be.
    Beyond,
}

impl Extent {
    /// Of the instruction that begins with these bytes, which was decoded as `instruction`, or was `truncated`. What
    /// is no instruction AMD's processors read to its end like any other; of Intel's that is only known if it is
    /// longer than 15 bytes.
    pub(super) fn of(bytes: &[u8], instruction: &Instruction, truncated: bool) -> Self {
        let amd = Vendor::of_this_host() == Vendor::Amd;
        let elsewhere = matches!(
            instruction.code(),
            Code::Ud1_r16_rm16 | Code::Ud1_r32_rm32 | Code::Ud1_r64_rm64 | Code::Vmread_rm64_r64
        );
        let full = bytes.len() == MOST_BYTES;
        let beyond = if amd && elsewhere || instruction.is_invalid() && (amd || full) {
            length(bytes) > bytes.len()
        } else {
            truncated && !full
        };
        if beyond { Self::Beyond } else { Self::Within }
    }
}

/// The length of the instruction that begins with these bytes, for a decoder that takes any number of
/// prefixes. Bytes that are missing do not matter.
fn length(bytes: &[u8]) -> usize {
    let prefixes = bytes.iter().take_while(|byte| is_prefix(**byte)).count();
    let (before, rest) = bytes.split_at(prefixes);
    let amd = Vendor::of_this_host() == Vendor::Amd;
    let vector = if amd { zen::vector_length(before, rest) } else { vector_length(rest) };
    prefixes + vector.unwrap_or_else(|| legacy_length(before, rest, amd))
}

/// The length without prefixes of an instruction with a VEX or EVEX prefix, whether it exists or not.
fn vector_length(bytes: &[u8]) -> Option<usize> {
    let (head, map) = match bytes {
        [0x62, map, ..] => (4, map & 7),
        [0xc4, map, ..] => (3, map & 0x1f),
        [0xc5, ..] => (2, 1),
        _ => return None,
    };
    let opcode = bytes.get(head).copied().unwrap_or(0);
    let constant = map == 3 || map == 1 && matches!(opcode, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6);
    Some(head + 1 + operand_length(bytes, head + 1) + usize::from(constant))
}

/// The length of a ModRM byte at `place` and what it brings with it.
fn operand_length(bytes: &[u8], place: usize) -> usize {
    let byte = |place: usize| bytes.get(place).copied().unwrap_or(0);
    let modrm = byte(place);
    let has_sib = modrm >> 6 != 3 && modrm & 7 == 4;
    let base = if has_sib { byte(place + 1) & 7 } else { modrm & 7 };
    let displacement = match modrm >> 6 {
        0 if base == 5 => 4,
        1 => 1,
        2 => 4,
        _ => 0,
    };
    1 + usize::from(has_sib) + displacement
}

/// The length without prefixes of any other instruction; on Intel's processors that of its opcode if it does not
/// exist.
fn legacy_length(prefixes: &[u8], bytes: &[u8], amd: bool) -> usize {
    // One of each prefix that says something about the length.
    let mut shorter: Vec<u8> =
        [0x66, 0x67, 0xf2, 0xf3].into_iter().filter(|prefix| prefixes.contains(prefix)).collect();
    shorter.extend(prefixes.last().filter(|last| is_rex(**last)));
    let kept = shorter.len();
    shorter.extend_from_slice(bytes);
    shorter.resize(kept + MOST_BYTES, 0);
    let instruction = decoder(&shorter, 0).decode();
    match bytes {
        // Two have no operand there, and one has two constants.
        [0x0f, 0x78 | 0xb9 | 0xff, ..] if amd => zen::legacy_length(prefixes, bytes),
        _ if !instruction.is_invalid() => instruction.len() - kept,
        _ if amd => zen::legacy_length(prefixes, bytes),
        [0x0f, 0x38 | 0x3a, ..] => 3,
        [0x0f, ..] => 2,
        _ => 1,
    }
}

fn is_rex(byte: u8) -> bool {
    (0x40..=0x4f).contains(&byte)
}

/// As Zen 4 reads what is no instruction: with the operands that its opcode has in any mode, or in a legacy map,
/// if it has any. Measured for all opcodes with all register fields; `tests/encodings.rs` tries them.
mod zen {
    use super::{is_rex, operand_length};

    /// The length without prefixes of an instruction with a VEX, EVEX or XOP prefix. Behind a REX prefix there is
    /// none.
    pub(super) fn vector_length(prefixes: &[u8], bytes: &[u8]) -> Option<usize> {
        if prefixes.last().is_some_and(|last| is_rex(*last)) {
            return None;
        }
        let evex = bytes.first() == Some(&0x62);
        let (head, map) = match bytes {
            [0x62, map, ..] => (4, map & 3),
            [0xc4, map, ..] => (3, map & 0x1f),
            [0xc5, ..] => (2, 1),
            // POP has no other register field than 0 (AMD64 Architecture Programmer's Manual volume 3, "XOP
            // Prefix"). Only XOP's map 10 has constants.
            [0x8f, map, ..] if map & 0x38 != 0 => {
                let constant = if map & 0x1f == 10 { 4 } else { 0 };
                return Some(4 + operand_length(bytes, 4) + constant);
            }
            _ => return None,
        };
        let opcode = bytes.get(head).copied().unwrap_or(0);
        let behind = head + 1;
        Some(match map {
            1 => behind + second_map(opcode, evex, operand_length(bytes, behind)),
            3 => behind + operand_length(bytes, behind) + 1,
            _ => behind + operand_length(bytes, behind),
        })
    }

    /// The length without prefixes of any other.
    pub(super) fn legacy_length(prefixes: &[u8], bytes: &[u8]) -> usize {
        let wide = prefixes.last().is_some_and(|rex| rex & 0xf8 == 0x48);
        let word = if prefixes.contains(&0x66) && !wide { 2 } else { 4 };
        let operand = |place| place + operand_length(bytes, place);
        match bytes {
            [0x0f, 0x38, ..] => operand(3),
            [0x0f, 0x3a, ..] => operand(3) + 1,
            [0x0f, opcode, ..] => 2 + second_map(*opcode, false, operand_length(bytes, 2)),
            [0x06 | 0x07 | 0x0e | 0x16 | 0x17 | 0x1e | 0x1f | 0x27 | 0x2f | 0x37 | 0x3f, ..] => 1,
            [0x60 | 0x61 | 0xce | 0xd6, ..] => 1,
            [0xd4 | 0xd5, ..] => 2,
            // Far pointers.
            [0x9a | 0xea, ..] => 1 + word + 2,
            [0x82 | 0xc6, ..] => operand(1) + 1,
            [0xc7, ..] => operand(1) + word,
            _ => operand(1),
        }
    }

    /// The length of what follows an opcode of the second map, where an operand has so much.
    fn second_map(opcode: u8, evex: bool, operand: usize) -> usize {
        match opcode {
            0x78..=0x7b if evex => operand,
            0x04..=0x0c | 0x0e | 0x24..=0x27 | 0x30..=0x3f | 0x77 | 0x7a | 0x7b => 0,
            0xa0..=0xa2 | 0xa6..=0xaa | 0xb9 | 0xc8..=0xcf | 0xff => 0,
            // Moves to and from control and debug registers, whose operands are registers whatever the mode says.
            0x20..=0x23 => 1,
            0x80..=0x8f => 4,
            0x0f | 0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 => operand + 1,
            0x78 => operand + 2,
            _ => operand,
        }
    }
}
