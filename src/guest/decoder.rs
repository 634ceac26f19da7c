//! [`decoder`]: machine code as this host's processor reads it.

use iced_x86::{Decoder, DecoderOptions, Instruction};

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

/// The instruction that this host's processor executes where [`decoder`] gives none, and bytes that are read as
/// that: AMD's processors ignore EVEX.b of an instruction without a memory operand that could broadcast one,
/// EVEX.z of one that takes no mask, and the fourth bit of an opmask register's number, where Intel's raise #UD.
#[must_use]
pub(crate) fn with_ignored_bits(bytes: &[u8], ip: u64) -> Option<(Instruction, Vec<u8>)> {
    const ZEROING: u8 = 1 << 7;
    const BROADCAST: u8 = 1 << 4;
    const NOT_R: u8 = 1 << 7;
    const NOT_HIGH_V: u8 = 1 << 6;
    if Vendor::of_this_host() != Vendor::Amd {
        return None;
    }
    let is_prefix = |byte: &u8| matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67);
    let start = bytes.iter().position(|byte| !is_prefix(byte))?;
    let mut read = bytes.to_vec();
    let is_ignored: fn(&Instruction) -> bool = match &mut read[start..] {
        [0x62, _, _, third, _, modrm, ..] if *modrm >> 6 == 3 && *third & BROADCAST != 0 => {
            *third &= !BROADCAST;
            |known| known.code().op_code().can_broadcast()
        }
        [0x62, _, _, third, ..] if *third & ZEROING != 0 => {
            *third &= !ZEROING;
            |known| !known.code().op_code().can_use_op_mask_register()
        }
        [0xc5, first, ..] => {
            *first |= NOT_R | NOT_HIGH_V;
            has_opmask
        }
        [0xc4, first, second, ..] => {
            *first |= NOT_R;
            *second |= NOT_HIGH_V;
            has_opmask
        }
        _ => return None,
    };
    let known = decoder(&read, ip).decode();
    let exists = !known.is_invalid() && is_ignored(&known);
    read.truncate(known.len());
    exists.then_some((known, read))
}

fn has_opmask(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|operand| instruction.op_register(operand).is_k())
}
