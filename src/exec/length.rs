//! How long an instruction would be that cannot be executed: of those with more than 15 bytes the
//! processor finds that first, and raises #GP where a shorter one is undefined (Intel SDM volume 2,
//! section 2.3.11; volume 3A, "Interrupt 13").

use crate::guest::{Vendor, decoder};
use crate::translate::is_prefix;

/// Bytes that an instruction has at most.
pub(super) const MOST_BYTES: usize = 15;

/// The length of the instruction that begins with these bytes, for a decoder that takes any number of
/// prefixes. Bytes that are missing do not matter.
pub(super) fn length(bytes: &[u8]) -> usize {
    let prefixes = bytes.iter().take_while(|byte| is_prefix(**byte)).count();
    let (before, rest) = bytes.split_at(prefixes);
    let refused = before.last().is_some_and(|last| (0x40..=0x4f).contains(last));
    let vector = match rest {
        // AMD's decoders read no further.
        [0xc5, ..] if refused && amd() => Some(2),
        [0xc4, ..] if refused && amd() => Some(3),
        [0x62, ..] if refused && amd() => Some(4),
        _ => vector_length(rest),
    };
    prefixes + vector.unwrap_or_else(|| legacy_length(before, rest))
}

fn amd() -> bool {
    Vendor::of_this_host() == Vendor::Amd
}

/// The length without prefixes of an instruction with a VEX or EVEX prefix, whether it exists or not.
fn vector_length(bytes: &[u8]) -> Option<usize> {
    let (head, map) = match bytes {
        [0x62, map, ..] => (4, map & 7),
        [0xc4, map, ..] => (3, map & 0x1f),
        [0xc5, ..] => (2, 1),
        _ => return None,
    };
    let byte = |place: usize| bytes.get(place).copied().unwrap_or(0);
    let (opcode, modrm) = (byte(head), byte(head + 1));
    let has_sib = modrm >> 6 != 3 && modrm & 7 == 4;
    let base = if has_sib { byte(head + 2) & 7 } else { modrm & 7 };
    let displacement = match modrm >> 6 {
        0 if base == 5 => 4,
        1 => 1,
        2 => 4,
        _ => 0,
    };
    let constant = map == 3 || map == 1 && matches!(opcode, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6);
    Some(head + 2 + usize::from(has_sib) + displacement + usize::from(constant))
}

/// The length without prefixes of any other instruction; that of its opcode if it does not exist.
fn legacy_length(prefixes: &[u8], bytes: &[u8]) -> usize {
    // One of each prefix that says something about the length.
    let mut shorter: Vec<u8> =
        [0x66, 0x67, 0xf2, 0xf3].into_iter().filter(|prefix| prefixes.contains(prefix)).collect();
    shorter.extend(prefixes.last().filter(|last| (0x40..=0x4f).contains(*last)));
    let kept = shorter.len();
    shorter.extend_from_slice(bytes);
    shorter.resize(kept + MOST_BYTES, 0);
    let instruction = decoder(&shorter, 0).decode();
    match bytes {
        _ if !instruction.is_invalid() => instruction.len() - kept,
        [0x0f, 0x38 | 0x3a, ..] => 3,
        [0x0f, ..] => 2,
        _ => 1,
    }
}
