//! Programs whose code changes under them: every piece of the input is a scene in which the host or the
//! guest changes code that has run and runs again, or moves, hides or forbids it.

use iced_x86::{Code, Instruction};

use super::choices::Choices;
use super::events::eventful_layout;
use super::family::{Family, Swarm};
use super::layout::{Layout, LayoutKind};
use super::pieces::Pieces;
use super::program::{complete, start};
use super::values::fill_state;
use super::writer::{MOST_CODE, Writer};
use super::{Generator, Program, ProgramKind};
use crate::case::{Case, Event};

/// Bytes of code that a scene has at most, so that the last one ends in the program's page.
const SCENE_BYTES: usize = 400;

/// Makes one program.
pub(super) fn generate(generator: &Generator, pieces: &Pieces) -> Program {
    let mut choices = pieces.head();
    let layout = changing_layout(&mut choices);
    let baseline = !choices.chance(64);
    let swarm = Swarm::draw(&mut choices, generator.families(baseline));
    let mut case = Case::default();
    fill_state(&mut choices, &generator.pool, !baseline, &mut case.state);
    let mut writer = Writer::new(&generator.table, choices, layout, swarm, baseline);
    start(&mut writer, &mut case.state);
    let counted = writer.choices.chance(24);
    let head = writer.choices.clone();
    let mut before_first_event = None;
    for scene in pieces.scenes() {
        if writer.over || writer.length() + SCENE_BYTES > MOST_CODE {
            break;
        }
        before_first_event.get_or_insert(writer.executed.len());
        writer.choices = scene;
        writer.changing_scene(&mut case.events);
    }
    writer.choices = head;
    if let (true, Some(instructions @ 1..)) = (counted, before_first_event) {
        writer.counted(&mut case.events, instructions);
    }
    writer.emit(&Instruction::with(Code::Hlt));
    complete(generator, writer, case, ProgramKind::SelfModifying)
}

/// Code that can be written: in one page, across two, or at a second address too.
fn changing_layout(choices: &mut Choices) -> Layout {
    let plain = eventful_layout(Layout::draw(choices));
    let layout = Layout { code_writable: true, ..plain };
    match choices.byte() {
        0..=111 => layout,
        112..=199 => Layout { kind: LayoutKind::Straddle, ..layout },
        200.. => Layout { code_aliased: true, ..layout },
    }
}

impl Writer<'_, '_> {
    fn changing_scene(&mut self, events: &mut Vec<Event>) {
        match self.choices.byte() {
            0..=71 => self.changed_loop(events),
            72..=119 => self.rewrites_itself(),
            120..=175 => self.changed_callee(events),
            176..=191 => self.counted_loop(events),
            192..=203 => self.aliased_code_once(events),
            204..=213 => self.quiet_units(),
            214..=223 => self.unit_of(Family::Branch),
            224..=227 => self.protected(events),
            228..=231 => self.replaced_page(events),
            232..=235 => self.aliased_data(events),
            236..=239 => self.moved_page(events),
            240..=249 => self.breakpoint(events),
            250..=252 => self.forbidden_code(events),
            253.. => self.moved_code(events),
        }
    }

    /// The code gets a second address where it has none yet.
    fn aliased_code_once(&mut self, events: &mut Vec<Event>) {
        if self.layout.code_aliased { self.changed_loop(events) } else { self.aliased_code(events) }
    }

    fn quiet_units(&mut self) {
        let count = 1 + self.choices.below(3);
        (0..count).for_each(|_| self.quiet_unit());
    }
}
