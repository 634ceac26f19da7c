//! Raw programs: random bytes, and random instructions with mutated prefixes and bytes, as code.
//! The state and the memory are those of structured programs.

use std::mem;

use iced_x86::{Code, FlowControl, Instruction, Mnemonic};

use super::build::build;
use super::choices::Choices;
use super::family::{Family, Swarm};
use super::layout::Layout;
use super::program::{complete, start};
use super::refused::{IGNORED_PREFIX, Refusal};
use super::values::fill_state;
use super::writer::Writer;
use super::{Generator, Program, ProgramKind};
use crate::case::Case;
use crate::guest::{decoder, unchecked_decoder};

const PREFIXES: [u8; 20] = [
    0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x40, 0x48, 0x41, 0x44, 0x4f,
    0x45, 0x49, 0x4c, 0x42,
];
pub(super) const HALT: u8 = 0xf4;
const NO_OPERATION: u8 = 0x90;
/// Intel SDM volume 2, section 2.3.11.
const MOST_INSTRUCTION_BYTES: usize = 15;

const BACKWARD: Refusal =
    Refusal { reason: "a backward branch in raw code, which may never come to an end" };

/// Makes one raw program.
pub(super) fn generate(generator: &Generator, mut choices: Choices) -> Program {
    let layout = Layout::draw(&mut choices);
    let swarm = Swarm::draw(&mut choices, generator.families(false));
    let mut case = Case::default();
    fill_state(&mut choices, &generator.pool, true, &mut case.state);
    let mut writer = Writer::new(&generator.table, choices, layout, swarm, false);
    start(&mut writer, &mut case.state);
    let offset = (writer.entry - layout.code) as usize;
    let mut bytes = if writer.choices.chance(64) {
        random_bytes(&mut writer.choices)
    } else {
        mutated_instructions(generator, &mut writer)
    };
    writer.finish();
    let mut refused = Vec::new();
    complete_code(generator, writer.entry, &mut bytes, &mut refused);
    writer.executed.clear();
    writer.refused = refused;
    let mut program = complete(generator, writer, case, ProgramKind::Raw);
    let page = &mut program.case.objects[super::layout::CODE.0].contents;
    page.fill(HALT);
    page[offset..offset + bytes.len()].copy_from_slice(&bytes);
    program
}

fn random_bytes(choices: &mut Choices) -> Vec<u8> {
    let count = 16 + choices.below(48);
    (0..count).map(|_| choices.byte()).collect()
}

/// Random instructions of every form, a quarter of them with something wrong.
fn mutated_instructions(generator: &Generator, writer: &mut Writer) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(256);
    let count = 3 + writer.choices.below(12);
    for _ in 0..count {
        let templates = &generator.table.templates;
        let template = &templates[writer.choices.below(templates.len())];
        if template.family == Family::System && !writer.choices.chance(24) {
            continue;
        }
        let instruction = build(template, writer);
        let start = writer.length();
        if !writer.try_emit(&instruction) {
            continue;
        }
        let mut one = writer.bytes_from(start);
        mutate(&mut writer.choices, &mut one);
        bytes.append(&mut one);
    }
    bytes
}

fn mutate(choices: &mut Choices, bytes: &mut Vec<u8>) {
    match choices.byte() {
        0..=191 => {}
        192..=211 => {
            let prefix = choices.pick(&PREFIXES);
            bytes.insert(0, prefix);
        }
        212..=221 => {
            let place = choices.below(bytes.len() + 1);
            let prefix = choices.pick(&PREFIXES);
            bytes.insert(place, prefix);
        }
        222..=243 => {
            let place = choices.below(bytes.len());
            bytes[place] ^= 1 << choices.below(8);
        }
        _ => {
            let place = choices.below(bytes.len());
            bytes[place] = choices.byte();
        }
    }
}

/// Ends code with halts, enough that its last instruction is whole, and replaces by no-ops whatever is
/// refused where decoding comes to it: from the start, one instruction behind the other, and from where each
/// branch goes, which may be the middle of an instruction. What only an indirect branch or a changed byte
/// leads to is left.
pub(super) fn complete_code(
    generator: &Generator,
    entry: u64,
    bytes: &mut Vec<u8>,
    refused: &mut Vec<Refusal>,
) {
    bytes.extend([HALT; MOST_INSTRUCTION_BYTES]);
    // A no-op in the place of one instruction may change another that shares its bytes.
    loop {
        let before = refused.len();
        replace_refused(generator, entry, bytes, refused);
        if refused.len() == before {
            return;
        }
    }
}

fn replace_refused(
    generator: &Generator,
    entry: u64,
    bytes: &mut [u8],
    refused: &mut Vec<Refusal>,
) {
    let mut instruction = Instruction::default();
    let mut seen = vec![false; bytes.len()];
    let mut starts = vec![0];
    while let Some(start) = starts.pop() {
        let mut offset = start;
        while offset < bytes.len() && !mem::replace(&mut seen[offset], true) {
            let ip = entry + offset as u64;
            decoder(&bytes[offset..], ip).decode_out(&mut instruction);
            let end = offset + instruction.len().max(1);
            if let Some(refusal) = refusal(generator, &instruction, &bytes[offset..end]) {
                refused.push(refusal);
                bytes[offset..end].fill(NO_OPERATION);
            } else if is_branch(&instruction) {
                starts.push(instruction.near_branch_target().wrapping_sub(entry) as usize);
            }
            offset = end;
        }
    }
}

fn refusal(generator: &Generator, instruction: &Instruction, bytes: &[u8]) -> Option<Refusal> {
    let code = instruction.code();
    if code == Code::INVALID {
        return ignores_prefix(bytes).then_some(IGNORED_PREFIX);
    }
    if code == Code::Hlt {
        return None;
    }
    if is_branch(instruction) && instruction.near_branch_target() <= instruction.ip() {
        return Some(BACKWARD);
    }
    if code == Code::Int_imm8 && instruction.immediate8() == 0x80 {
        return Some(super::refused::LEGACY_CALL);
    }
    generator.table.refusal(code)
}

/// Whether silicon may execute an invalid instruction: `lock verw` of memory (some microcode of Zen 4), or a hypercall
/// with a prefix, which KVM takes for one without.
fn ignores_prefix(bytes: &[u8]) -> bool {
    let without = unchecked_decoder(bytes).decode();
    let hypercall = matches!(bytes, [.., 0x0f, 0x01, 0xc1 | 0xd9]);
    hypercall || (without.mnemonic() == Mnemonic::Verw && without.has_lock_prefix())
}

fn is_branch(instruction: &Instruction) -> bool {
    matches!(
        instruction.flow_control(),
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::HostFeatures;

    #[test]
    fn what_a_branch_leads_to_in_the_middle_of_an_instruction_is_refused_too() {
        let generator = Generator::new(&HostFeatures::detect());
        let completed = |code: &[u8]| {
            let mut bytes = code.to_vec();
            complete_code(&generator, 0x1000, &mut bytes, &mut Vec::new());
            bytes.truncate(code.len());
            bytes
        };
        // rex.w loop, from whose prefix on it is a loop to itself
        assert_eq!(completed(&[0x4a, 0x64, 0xe2, 0xfd]), [0x4a, 0x90, 0x90, 0x90]);
        // jmp into mov ecx, imm32, which is rdtsc from there on
        let hidden = [0xeb, 0x01, 0xb9, 0x0f, 0x31, 0x90, 0x90];
        assert_eq!(completed(&hidden), [0xeb, 0x01, 0xb9, 0x90, 0x90, 0x90, 0x90]);
        let harmless = [0xeb, 0x01, 0xb9, 0x0f, 0x0b, 0x90, 0x90];
        assert_eq!(completed(&harmless), harmless);
    }
}
