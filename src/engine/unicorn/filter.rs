//! What Unicorn 2.1 lacks wholesale, found by looking at a case's code, so that a campaign counts
//! such cases as not supported and does not report one difference for each.
//!
//! The code is decoded in a line from the entry and from the start of each executable mapping, and
//! so is what events write into executable memory. That is no proof: code can hide behind data.
//! What is missed shows as #UD.
//!
//! A guest can also end the whole process: PCMPESTRI and PCMPESTRM with a length of 0x8000_0000 read
//! far outside the registers (`pcmpxstrx` takes the absolute value, which is negative still), IDIV of the least
//! dividend of 32 or 64 bits by -1 is a division that fails on the host, and LOCK before BT, BTS, BTR or BTC of a
//! register fails an assertion. An engine that shares its process with others refuses those too.

use std::sync::LazyLock;

use iced_x86::{Code, CpuidFeature, Decoder, EncodingKind, Instruction, Mnemonic};

use crate::case::{Action, Case};
use crate::engine::Unsupported;
use crate::guest::{GuestAddress, decoder, locks_register_bit, unchecked_decoder};

/// Bytes of filling that are looked at at once.
const BLOCK: usize = 64;

/// Which cases an engine refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// None: whatever comes of it.
    Nothing,
    /// Those with extensions that Unicorn is known to lack.
    Lacking,
    /// Those, and those with instructions that can end the process.
    LackingAndCrashing,
}

impl Filter {
    /// The first thing in `case` that keeps it from being run.
    #[must_use]
    pub fn refuses(self, case: &Case) -> Option<Unsupported> {
        if self == Self::Nothing {
            return None;
        }
        let entry = GuestAddress(case.state.rip);
        let executable = case.mappings.iter().filter(|mapping| mapping.permissions.execute());
        let starts = executable.clone().map(|mapping| mapping.range.start());
        let writes = case.events.iter().flat_map(|event| &event.actions).filter_map(|action| {
            let Action::Write { address, bytes } = action else { return None };
            let code = executable.clone().any(|mapping| mapping.range.contains(*address));
            code.then_some((*address, bytes.as_slice()))
        });
        // Most programs begin where their mapping begins; those are not to be decoded twice.
        let entries = starts.filter(|start| *start != entry).chain(std::iter::once(entry));
        entries
            .filter_map(|start| Some((start, case.initial_bytes(start)?)))
            .chain(writes)
            .find_map(|(start, bytes)| refused_in(without_zero_tail(bytes), start, self))
            .map(Unsupported::new)
    }
}

fn refused_in(bytes: &[u8], start: GuestAddress, filter: Filter) -> Option<&'static str> {
    let mut decoder = decoder(bytes, start.0);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        let code = instruction.code();
        if let Some(extension) = LACKING[code as usize] {
            return Some(extension);
        }
        if filter == Filter::LackingAndCrashing && crashes(code) {
            return Some("PCMPESTRI, PCMPESTRM and IDIV can crash Unicorn");
        }
        let undecoded = &bytes[decoder.position() - instruction.len()..];
        if filter == Filter::LackingAndCrashing && instruction.is_invalid() && aborts(undecoded) {
            return Some("LOCK before BT and its like of a register ends Unicorn's process");
        }
        if code == Code::Int3 {
            skip_filling(&mut decoder, bytes);
        }
    }
    None
}

/// Moves on to the end of a run of `int3`, with which programs are often filled up.
fn skip_filling(decoder: &mut Decoder<'_>, bytes: &[u8]) {
    let position = decoder.position();
    let filling = filling(&bytes[position..]);
    if decoder.set_position(position + filling).is_ok() {
        decoder.set_ip(decoder.ip() + filling as u64);
    }
}

/// How many bytes of `int3` begin `bytes`.
fn filling(bytes: &[u8]) -> usize {
    // A block at a time, which is a few vector instructions.
    let blocks = bytes.as_chunks::<BLOCK>().0;
    let whole = BLOCK * blocks.iter().take_while(|block| **block == [0xcc; BLOCK]).count();
    whole + bytes[whole..].iter().take_while(|&&byte| byte == 0xcc).count()
}

fn crashes(code: Code) -> bool {
    let divides = matches!(code, Code::Idiv_rm16 | Code::Idiv_rm32);
    divides
        || matches!(
            code.mnemonic(),
            Mnemonic::Pcmpestri
                | Mnemonic::Pcmpestri64
                | Mnemonic::Pcmpestrm
                | Mnemonic::Pcmpestrm64
                | Mnemonic::Vpcmpestri
                | Mnemonic::Vpcmpestri64
                | Mnemonic::Vpcmpestrm
                | Mnemonic::Vpcmpestrm64
        )
}

/// Whether bytes that are no instruction are one with LOCK that fails an assertion.
fn aborts(bytes: &[u8]) -> bool {
    locks_register_bit(&unchecked_decoder(bytes).decode())
}

/// What Unicorn lacks, by the number of the opcode.
static LACKING: LazyLock<Vec<Option<&'static str>>> =
    LazyLock::new(|| Code::values().map(lacking_extension).collect());

fn lacking_extension(code: Code) -> Option<&'static str> {
    let operation = code.op_code();
    match operation.encoding() {
        EncodingKind::EVEX | EncodingKind::MVEX => return Some("AVX-512 (EVEX)"),
        EncodingKind::XOP => return Some("XOP"),
        EncodingKind::D3NOW => return Some("3DNow!"),
        EncodingKind::VEX if operation.l() == 1 => return Some("256-bit VEX"),
        _ => {}
    }
    code.cpuid_features().iter().find_map(|feature| match feature {
        CpuidFeature::AVX2 => Some("AVX2"),
        CpuidFeature::FMA | CpuidFeature::FMA4 => Some("FMA"),
        CpuidFeature::F16C => Some("F16C"),
        CpuidFeature::AVX512F | CpuidFeature::AVX512BW | CpuidFeature::AVX512DQ => {
            Some("AVX-512 (opmask)")
        }
        CpuidFeature::SHA => Some("SHA"),
        CpuidFeature::GFNI => Some("GFNI"),
        CpuidFeature::VAES => Some("VAES"),
        CpuidFeature::XSAVEC | CpuidFeature::XSAVES => Some("XSAVEC"),
        CpuidFeature::RDPID => Some("RDPID"),
        CpuidFeature::MOVDIRI | CpuidFeature::MOVDIR64B => Some("MOVDIRI"),
        CpuidFeature::SERIALIZE => Some("SERIALIZE"),
        CpuidFeature::PTWRITE => Some("PTWRITE"),
        _ => None,
    })
}

/// `bytes` up to the last that is not zero: code is mostly less than the page that it lies in.
fn without_zero_tail(bytes: &[u8]) -> &[u8] {
    let mut end = bytes.len();
    while end >= BLOCK && bytes[end - BLOCK..end] == [0; BLOCK] {
        end -= BLOCK;
    }
    while end > 0 && bytes[end - 1] == 0 {
        end -= 1;
    }
    &bytes[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lacks(code: &[u8]) -> Option<&'static str> {
        refused_in(code, GuestAddress(0x1000), Filter::Lacking)
    }

    #[test]
    fn crashing_instructions_are_refused_on_request() {
        let pcmpestri = [0xcc, 0xcc, 0xcc, 0x66, 0x0f, 0x3a, 0x61, 0xc1, 0];
        assert_eq!(lacks(&pcmpestri), None);
        let start = GuestAddress(0x1000);
        assert!(refused_in(&pcmpestri, start, Filter::LackingAndCrashing).is_some());
        assert!(refused_in(&[0xf7, 0xfb, 0xf4], start, Filter::LackingAndCrashing).is_some());
        assert!(refused_in(&[0xf7, 0xfb, 0xf4], start, Filter::Lacking).is_none());
        assert!(refused_in(&[0x48, 0xf7, 0xfb], start, Filter::LackingAndCrashing).is_none());
        let lock_btr = [0xf0, 0x66, 0x45, 0x0f, 0xb3, 0xd7, 0xf4];
        assert!(refused_in(&lock_btr, start, Filter::Lacking).is_none());
        assert!(refused_in(&lock_btr, start, Filter::LackingAndCrashing).is_some());
        let lock_btr_memory = [0xf0, 0x0f, 0xb3, 0x07, 0xf4];
        assert!(refused_in(&lock_btr_memory, start, Filter::LackingAndCrashing).is_none());
    }

    #[test]
    fn code_behind_filling_is_seen() {
        for length in [1, 63, 64, 65, 100, 128, 1000] {
            let mut code = vec![0xcc; length];
            code.extend([0xc5, 0xfc, 0x58, 0xc1]);
            assert_eq!(lacks(&code), Some("256-bit VEX"), "{length}");
        }
    }

    #[test]
    fn extensions_by_encoding_and_by_feature() {
        assert_eq!(lacks(&[0xc5, 0xfc, 0x58, 0xc1]), Some("256-bit VEX")); // vaddps ymm0,ymm0,ymm1
        assert_eq!(lacks(&[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1]), Some("AVX-512 (EVEX)"));
        assert_eq!(lacks(&[0xc5, 0xf8, 0x90, 0xc9]), Some("AVX-512 (opmask)")); // kmovw k1,k1
        assert_eq!(lacks(&[0x90, 0x0f, 0x38, 0xc8, 0xc1]), Some("SHA")); // sha1nexte
        assert_eq!(lacks(&[0xc4, 0xe2, 0x71, 0x98, 0xc2]), Some("FMA")); // vfmadd132ps xmm
    }

    #[test]
    fn silent_miscomputation_is_let_through() {
        assert_eq!(lacks(&[0xc5, 0xf0, 0x58, 0xc2]), None); // vaddps xmm0,xmm1,xmm2
        assert_eq!(lacks(&[0xc4, 0xe2, 0x78, 0xf3, 0xd8]), None); // blsi
        assert_eq!(lacks(&[0x48, 0xb8, 0xc5, 0xfc, 0x58, 0xc1, 0, 0, 0, 0]), None); // mov rax, imm
    }

    #[test]
    fn zero_tails() {
        for length in [0, 1, 63, 64, 65, 200, 4095, 4096] {
            let mut page = vec![0; 4096];
            if length > 0 {
                page[length - 1] = 1;
            }
            assert_eq!(without_zero_tail(&page).len(), length);
        }
    }
}
