//! Raw programs: random bytes, and random instructions with mutated prefixes and bytes, as code.
//! The state and the memory are those of structured programs.

use iced_x86::{Code, FlowControl, Instruction};

use super::build::build;
use super::choices::Choices;
use super::family::{Family, Swarm};
use super::layout::Layout;
use super::program::{complete, start};
use super::refused::Refusal;
use super::values::fill_state;
use super::writer::Writer;
use super::{Generator, Program, ProgramKind};
use crate::case::Case;
use crate::guest::decoder;

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
/// refused where decoding from the start, one instruction behind the other, comes to it. What only a
/// branch into the middle of an instruction reaches is left.
pub(super) fn complete_code(
    generator: &Generator,
    entry: u64,
    bytes: &mut Vec<u8>,
    refused: &mut Vec<Refusal>,
) {
    bytes.extend([HALT; MOST_INSTRUCTION_BYTES]);
    let mut instruction = Instruction::default();
    let mut offset = 0;
    while offset < bytes.len() {
        let ip = entry + offset as u64;
        let mut decoder = decoder(&bytes[offset..], ip);
        decoder.decode_out(&mut instruction);
        let length = instruction.len().max(1);
        if let Some(refusal) = refusal(generator, &instruction) {
            refused.push(refusal);
            bytes[offset..offset + length].fill(NO_OPERATION);
        }
        offset += length;
    }
}

fn refusal(generator: &Generator, instruction: &Instruction) -> Option<Refusal> {
    let code = instruction.code();
    if code == Code::INVALID || code == Code::Hlt {
        return None;
    }
    let branch = matches!(
        instruction.flow_control(),
        FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch | FlowControl::Call
    );
    if branch && instruction.near_branch_target() <= instruction.ip() {
        return Some(BACKWARD);
    }
    if code == Code::Int_imm8 && instruction.immediate8() == 0x80 {
        return Some(super::refused::LEGACY_CALL);
    }
    generator.table.refusal(code)
}
