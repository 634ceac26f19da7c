//! The generator of random guest programs: bytes become choices, choices become a [`Case`] that
//! means something. It knows cases and the guest, no engine and no verdict; the same bytes give
//! the same case, and bytes that run out give simple ones.
//!
//! What can be generated is every form that iced encodes for 64-bit user code and the host
//! executes, but for one table of refusals, each with a reason.

mod build;
mod changing;
mod choices;
mod control;
mod events;
mod family;
mod form;
mod layout;
mod literal;
mod operand;
mod pick;
mod pieces;
mod program;
mod raw;
mod refused;
mod scenes;
mod special;
mod table;
mod template;
#[cfg(test)]
mod tests;
mod values;
mod writer;

use std::collections::BTreeMap;

use arbitrary::Unstructured;
use iced_x86::Code;

pub use crate::guest::HostFeatures;
pub use choices::choices;
pub use family::Family;
pub use form::{Form, FormId, OperandForm, instruction_form};
pub use layout::LayoutKind;
pub use literal::MOST_LITERAL;
pub use pieces::{MOST_PIECES, PIECE_BYTES};
pub use refused::Refusal;

use crate::case::Case;

/// What kind of program it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProgramKind {
    /// Instructions alone.
    Plain,
    /// The host changes memory, or stops the guest, on the way.
    Eventful,
    /// The guest rewrites its own code.
    SelfModifying,
    /// Random bytes and mutated instructions.
    Raw,
}

/// A generated case and what is known about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    /// The case itself.
    pub case: Case,
    /// Forms of instructions that have been executed if the run came to the program's last
    /// instruction. A form may be there several times.
    pub always_executed: Vec<FormId>,
    /// What was about to be generated and was refused.
    pub refused: Vec<Refusal>,
    /// What kind of program it is.
    pub kind: ProgramKind,
    /// Where its memory lies.
    pub layout: LayoutKind,
    /// It only has instructions that every x86-64 emulator of the last decade has: no VEX, no EVEX.
    pub baseline: bool,
}

/// Everything that is the same for all programs: the forms in reach and values to draw from.
#[derive(Debug)]
pub struct Generator {
    table: table::FormTable,
    pool: values::Pool,
    families: [Vec<Family>; 2],
}

impl Generator {
    /// A generator of programs for a host with `features`.
    #[must_use]
    pub fn new(features: &HostFeatures) -> Self {
        let table = table::FormTable::new(features);
        let families = [table.families(false), table.families(true)];
        Self { table, pool: values::Pool::new(), families }
    }

    /// A program with structure.
    pub fn program(&self, choices: &mut Unstructured<'_>) -> Program {
        program::generate(self, choices::Choices::new(choices))
    }

    /// A program whose code changes under it. Its input is records of [`PIECE_BYTES`], at most
    /// [`MOST_PIECES`]: the first for the state and the memory, each other for a scene. To drop, repeat or
    /// swap records does the same to scenes.
    pub fn changing(&self, records: &[u8]) -> Program {
        changing::generate(self, &pieces::Pieces::new(records))
    }

    /// A program of random bytes and mutated instructions.
    pub fn raw(&self, choices: &mut Unstructured<'_>) -> Program {
        raw::generate(self, choices::Choices::new(choices))
    }

    /// The case whose program is `bytes`, at most [`MOST_LITERAL`] of them, but for refused instructions.
    #[must_use]
    pub fn literal(&self, bytes: &[u8]) -> Case {
        literal::generate(self, bytes)
    }

    /// The bytes for which [`Self::literal`] gives `case`, if there are any; its note does not matter.
    #[must_use]
    pub fn literal_bytes(&self, case: &Case) -> Option<Vec<u8>> {
        literal::bytes_of(self, case)
    }

    /// All forms in reach, by the index that is their [`FormId`].
    #[must_use]
    pub fn forms(&self) -> &[Form] {
        &self.table.forms
    }

    /// The family of a form.
    #[must_use]
    pub fn family(&self, form: FormId) -> Family {
        self.table.templates[usize::from(form.0)].family
    }

    /// The number of a form, if it is in reach.
    #[must_use]
    pub fn form_id(&self, form: Form) -> Option<FormId> {
        self.table.id_of(form)
    }

    /// What is never generated although the host has it, by reason.
    #[must_use]
    pub fn refused_forms(&self) -> &BTreeMap<&'static str, Vec<Code>> {
        &self.table.refused
    }

    fn families(&self, baseline: bool) -> &[Family] {
        &self.families[usize::from(baseline)]
    }
}
