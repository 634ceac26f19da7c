//! Structured programs: a state, a memory and ten to thirty instructions that work on both, with
//! loops, branches, calls and events between them, and a final `hlt`.

use iced_x86::{Code, Instruction};

use super::choices::Choices;
use super::events::{eventful_layout, self_modifying_layout};
use super::family::{Family, Swarm};
use super::layout::{CODE, CONSTANTS, Layout, LayoutKind};
use super::values::fill_state;
use super::writer::{Known, MOST_CODE, Writer};
use super::{Generator, Program, ProgramKind};
use crate::case::{Case, Event};
use crate::guest::{PAGE_SIZE, State};

/// RSP at the start, in the middle of the stack page.
const STACK_TOP: u64 = 0x800;

/// Makes one structured program.
pub(super) fn generate(generator: &Generator, mut choices: Choices) -> Program {
    let kind = match choices.byte() {
        0..=220 => ProgramKind::Plain,
        221..=246 => ProgramKind::Eventful,
        _ => ProgramKind::SelfModifying,
    };
    let mut layout = Layout::draw(&mut choices);
    match kind {
        ProgramKind::Eventful => layout = eventful_layout(layout),
        ProgramKind::SelfModifying => layout = self_modifying_layout(&mut choices, layout),
        _ => {}
    }
    let baseline = !choices.chance(124);
    let swarm = Swarm::draw(&mut choices, generator.families(baseline));
    let mut case = Case::default();
    fill_state(&mut choices, &generator.pool, !baseline, &mut case.state);
    let mut writer = Writer::new(&generator.table, choices, layout, swarm, baseline);
    start(&mut writer, &mut case.state);
    body(&mut writer, kind, &mut case.events);
    writer.emit(&Instruction::with(Code::Hlt));
    complete(generator, writer, case, kind)
}

/// Chooses the entry and the registers with known values, in the writer and in the state.
pub(super) fn start(writer: &mut Writer, state: &mut State) {
    let layout = writer.layout;
    writer.entry = layout.code
        + match layout.kind {
            LayoutKind::Straddle => PAGE_SIZE - 1 - writer.choices.below(220) as u64,
            _ => writer.choices.below(0x200) as u64,
        };
    writer.alias_live = layout.kind == LayoutKind::Alias;
    state.rip = writer.entry;
    let first = writer.choices.below(9) as u8;
    // Registers that few instructions use of themselves.
    let registers = [3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
    let known = |offset: u8| registers[usize::from(first + offset)];
    let near = layout.data() + 0x300 + writer.choices.below(8) as u64 * 8;
    let far = layout.data() + PAGE_SIZE + writer.choices.below(16) as u64 * 8;
    let index = writer.choices.pick(&[0, 1, 2, 3, 4, 8, 16, u64::MAX, u64::MAX - 7, 32]);
    writer.pointers =
        [Known { register: known(0), value: near }, Known { register: known(1), value: far }];
    writer.index = Known { register: known(2), value: index };
    writer.index_vector = 8 + writer.choices.below(8) as u32;
    let careless = writer.choices.chance(10);
    for known in [writer.pointers[0], writer.pointers[1], writer.index] {
        state.gpr[usize::from(known.register)] = known.value;
        if !careless {
            writer.pinned |= 1 << known.register;
        }
    }
    // Now and then the stack ends soon.
    let top =
        if writer.choices.rarely(700) { writer.choices.below(8) as u64 * 4 } else { STACK_TOP };
    state.gpr[4] = layout.stack() + top;
    state.fs_base = layout.data() + 0x200;
    state.gs_base = layout.data() + 0x800;
    writer.segment_bases = [state.fs_base, state.gs_base];
    let vector = &mut state.vector[writer.index_vector as usize];
    let lanes = if writer.baseline { 2 } else { 8 };
    for lane in &mut vector[..lanes] {
        *lane = (writer.choices.byte() as i8 >> 2) as i64 as u64;
    }
}

fn body(writer: &mut Writer, kind: ProgramKind, events: &mut Vec<Event>) {
    let count = 8 + writer.choices.below(14);
    let scenes = if kind == ProgramKind::Plain { 0 } else { 1 + writer.choices.below(2) };
    let every = count / (scenes + 1);
    let mut before_first_event = None;
    for number in 1..=count {
        step(writer);
        if writer.length() > MOST_CODE {
            break;
        }
        if scenes > 0 && number % every == 0 && number / every <= scenes {
            before_first_event.get_or_insert(writer.executed.len());
            match kind {
                ProgramKind::Eventful => writer.scene(events),
                _ => writer.rewrites_itself(),
            }
        }
    }
    if let (ProgramKind::Eventful, Some(instructions)) = (kind, before_first_event)
        && writer.choices.chance(32)
    {
        writer.counted(events, instructions);
    }
}

/// An instruction or a structure.
fn step(writer: &mut Writer) {
    match writer.choices.byte() {
        0..=209 => writer.unit(),
        210..=223 => writer.bounded_loop(),
        224..=239 => writer.unit_of(Family::Branch),
        240..=247 => writer.push_and_pop(),
        _ => writer.unit_of(Family::Conditional),
    }
}

/// Puts the code and all other memory in place.
pub(super) fn complete(
    generator: &Generator,
    mut writer: Writer,
    mut case: Case,
    kind: ProgramKind,
) -> Program {
    let layout = writer.layout;
    let code = writer.finish();
    let contents = |length| generator.pool.bytes(&mut writer.choices, length);
    case.objects = layout.objects(FILLER, contents);
    case.mappings = layout.mappings();
    let constants = &mut case.objects[CONSTANTS.0].contents;
    for (place, slot) in constants.chunks_exact_mut(8).zip(&writer.slots) {
        place.copy_from_slice(&slot.to_le_bytes());
    }
    let page = &mut case.objects[CODE.0].contents;
    let offset = (writer.entry - layout.code) as usize;
    let length = code.len().min(page.len() - offset);
    page[offset..offset + length].copy_from_slice(&code[..length]);
    Program {
        case,
        always_executed: std::mem::take(&mut writer.executed),
        refused: std::mem::take(&mut writer.refused),
        kind,
        layout: layout.kind,
        baseline: writer.baseline,
    }
}

/// `int3`: a program that leaves its path is seen at once.
const FILLER: u8 = 0xcc;
