//! [`decoder`]: machine code as this host's processor reads it.

use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind};

use super::Vendor;

/// A decoder of 64-bit code at `ip`, as this host's processor reads it.
#[must_use]
pub fn decoder(bytes: &[u8], ip: u64) -> Decoder<'_> {
    decoder_of(Vendor::of_this_host(), bytes, ip)
}

/// The same for any processor. AMD's take a 16-bit operand in near branches with the prefix 66, and no
/// 64-bit offset in far pointers, where Intel's do otherwise (AMD64 Architecture Programmer's Manual volume
/// 3, "Operand-Size Override Prefix" and the instructions).
#[must_use]
pub(crate) fn decoder_of(vendor: Vendor, bytes: &[u8], ip: u64) -> Decoder<'_> {
    let options = match vendor {
        Vendor::Amd => DecoderOptions::AMD,
        Vendor::Intel => DecoderOptions::NONE,
    };
    Decoder::with_ip(64, bytes, ip, options)
}

/// Bits that AMD's processors ignore, where Intel's raise #UD, in the bytes from a prefix on, and in which
/// instructions.
struct Ignored {
    prefix: u8,
    /// What the bytes behind it are to be, by (place, bits that are cleared, bits that are set).
    changes: &'static [(usize, u8, u8)],
    of: fn(&Instruction) -> bool,
}

const ZEROING: u8 = 1 << 7;
const BROADCAST: u8 = 1 << 4;
const NOT_R: u8 = 1 << 7;
const NOT_HIGH_V: u8 = 1 << 6;

const IGNORED: [Ignored; 5] = [
    // There is no memory operand that could be broadcast, and nothing is rounded.
    Ignored { prefix: EVEX, changes: &[(3, BROADCAST, 0)], of: has_nothing_to_broadcast },
    // There is nothing that a mask could leave out.
    Ignored { prefix: EVEX, changes: &[(3, ZEROING, 0)], of: is_to_general_register },
    Ignored { prefix: EVEX, changes: &[(3, ZEROING | BROADCAST, 0)], of: is_to_general_register },
    // Opmask registers have numbers of three bits.
    Ignored { prefix: VEX_2, changes: &[(1, 0, NOT_R | NOT_HIGH_V)], of: has_opmask },
    Ignored { prefix: VEX_3, changes: &[(1, 0, NOT_R), (2, 0, NOT_HIGH_V)], of: has_opmask },
];

const EVEX: u8 = 0x62;
const VEX_2: u8 = 0xc5;
const VEX_3: u8 = 0xc4;

/// The instruction that this host's processor executes where [`decoder`] gives none, and bytes that are read as
/// that: without what it ignores.
#[must_use]
pub(crate) fn with_ignored_bits(bytes: &[u8], ip: u64) -> Option<(Instruction, Vec<u8>)> {
    if Vendor::of_this_host() != Vendor::Amd {
        return None;
    }
    let is_prefix = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67);
    let start = bytes.iter().position(|byte| !is_prefix(byte))?;
    let candidates = IGNORED.iter().filter(|ignored| ignored.prefix == bytes[start]);
    candidates.into_iter().find_map(|ignored| {
        let mut read = bytes.to_vec();
        for (place, cleared, set) in ignored.changes {
            let byte = read.get_mut(start + place)?;
            *byte = *byte & !cleared | set;
        }
        let known = decoder(&read, ip).decode();
        read.truncate(known.len());
        (!known.is_invalid() && (ignored.of)(&known)).then_some((known, read))
    })
}

fn has_nothing_to_broadcast(instruction: &Instruction) -> bool {
    let registers =
        (0..instruction.op_count()).all(|operand| instruction.op_kind(operand) != OpKind::Memory);
    registers && instruction.code().op_code().can_broadcast()
}

fn is_to_general_register(instruction: &Instruction) -> bool {
    instruction.op0_register().is_gpr()
}

fn has_opmask(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| instruction.op_register(operand).is_k())
}
