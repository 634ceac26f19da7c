//! [`decoder`]: machine code as this host's processor reads it.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};

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

/// A decoder that takes prefixes, LOCK above all, where they may not stand.
pub(crate) fn unchecked_decoder(bytes: &[u8]) -> Decoder<'_> {
    Decoder::new(64, bytes, DecoderOptions::NO_INVALID_CHECK)
}

/// Whether it is BT, BTS, BTR or BTC of a register, with LOCK, which an [`unchecked_decoder`] alone knows.
pub(crate) fn locks_register_bit(instruction: &Instruction) -> bool {
    use Mnemonic as M;
    instruction.has_lock_prefix()
        && matches!(instruction.mnemonic(), M::Bt | M::Bts | M::Btr | M::Btc)
        && instruction.op0_kind() == OpKind::Register
}

/// Whether it is a string instruction that is executed as often as RCX says.
pub(crate) fn is_repeated_string(instruction: &Instruction) -> bool {
    instruction.is_string_instruction()
        && (instruction.has_rep_prefix() || instruction.has_repne_prefix())
}

/// Bytes of an instruction's memory operand, as this host's processor accesses it: AMD's load 32 bits for a
/// MOVSXD with a 16-bit operand, Intel's 16 (Intel SDM volume 2B, "MOVSX/MOVSXD"; AMD64 Architecture
/// Programmer's Manual volume 3, "MOVSXD").
pub(crate) fn memory_bytes(instruction: &Instruction) -> usize {
    match instruction.code() {
        Code::Movsxd_r16_rm16 if Vendor::of_this_host() == Vendor::Amd => 4,
        _ => instruction.memory_size().size(),
    }
}

/// Bits that AMD's processors ignore, where Intel's raise #UD, in the bytes from a prefix on, and in which
/// instructions.
struct Ignored {
    prefix: u8,
    /// Bits, by place, and whether they are set; the decoder knows the instruction in which they are not, or
    /// are.
    bits: &'static [(usize, u8, bool)],
    of: fn(&Instruction) -> bool,
}

const EVEX: u8 = 0x62;
const VEX_2: u8 = 0xc5;
const VEX_3: u8 = 0xc4;
/// EVEX.z and EVEX.b, in the third byte behind the prefix.
const ZEROING: u8 = 1 << 7;
const BROADCAST: u8 = 1 << 4;
/// The highest bits of two numbers of registers, in VEX, which has them inverted.
const NOT_R: u8 = 1 << 7;
const NOT_V: u8 = 1 << 6;
const WIDE: u8 = 1 << 7;

const IGNORED: [Ignored; 9] = [
    // There is no memory operand that could be broadcast, and nothing is rounded.
    Ignored { prefix: EVEX, bits: &[(3, BROADCAST, true)], of: has_nothing_to_broadcast },
    Ignored { prefix: EVEX, bits: &[(3, ZEROING, true)], of: has_no_mask },
    // Opmask registers have numbers of three bits.
    Ignored { prefix: VEX_2, bits: &[(1, NOT_R, false)], of: is_of_opmask },
    Ignored { prefix: VEX_2, bits: &[(1, NOT_V, false)], of: is_of_two_opmasks },
    Ignored { prefix: VEX_2, bits: &[(1, NOT_R | NOT_V, false)], of: is_of_two_opmasks },
    Ignored { prefix: VEX_3, bits: &[(1, NOT_R, false)], of: is_of_opmask },
    Ignored { prefix: VEX_3, bits: &[(2, NOT_V, false)], of: is_of_two_opmasks },
    Ignored { prefix: VEX_3, bits: &[(1, NOT_R, false), (2, NOT_V, false)], of: is_of_two_opmasks },
    Ignored { prefix: VEX_3, bits: &[(2, WIDE, false)], of: is_wide_permutation },
];

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
        for &(place, bits, are_set) in ignored.bits {
            let byte = read.get_mut(start + place)?;
            if *byte & bits != if are_set { bits } else { 0 } {
                return None;
            }
            *byte ^= bits;
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

/// Whether there is nothing that a mask could leave out, nor a mask for anything else, and nothing is stored:
/// bytes that are left out of memory cannot be made zero, with or without a mask.
fn has_no_mask(instruction: &Instruction) -> bool {
    if instruction.op0_kind() == OpKind::Memory {
        return false;
    }
    let opmask = (0..instruction.op_count()).any(|operand| instruction.op_register(operand).is_k());
    !opmask && !instruction.code().op_code().can_use_op_mask_register()
}

/// Whether ModRM.reg is an opmask register: what is written, or what is stored.
fn is_of_opmask(instruction: &Instruction) -> bool {
    let stored = instruction.op0_kind() == OpKind::Memory && instruction.op1_register().is_k();
    instruction.op0_register().is_k() || stored
}

fn is_of_two_opmasks(instruction: &Instruction) -> bool {
    [1, 2]
        .into_iter()
        .all(|operand| operand < instruction.op_count() && instruction.op_register(operand).is_k())
}

/// Whether the instruction takes VEX.W for what it has to be.
fn is_wide_permutation(instruction: &Instruction) -> bool {
    matches!(instruction.mnemonic(), Mnemonic::Vpermq | Mnemonic::Vpermpd)
}
