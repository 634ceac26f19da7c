//! The one table of accepted differences. There is no other way to ignore a difference.
//!
//! A row says in which engine, at which instructions and in which components a difference is known,
//! why, and where that is written down. Every row has a case in `corpora/divergence/` that shows it; a
//! test fails for a row that no case exercises.

use iced_x86::{Instruction, Mnemonic};

use super::compare::{ComponentClass, Difference};
use super::localise::{Culprit, Divergence};

mod rows;

pub use rows::ACCEPTED;

/// Which instructions a row is about.
#[derive(Clone, Copy, Debug)]
pub enum Pattern {
    /// These mnemonics.
    Mnemonics(&'static [Mnemonic]),
    /// Instructions for which this holds.
    Where(fn(&Instruction) -> bool),
}

/// A difference that is known and has a reason.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    /// A short name, unique in the table.
    pub name: &'static str,
    /// The engine that differs from silicon: the first word of its name.
    pub engine: &'static str,
    /// At which instructions.
    pub pattern: Pattern,
    /// In which components, as a predicate over each difference.
    pub components: fn(&Difference) -> bool,
    /// Whether it needs the instructions before: such rows are about stale code.
    pub sequence: bool,
    /// Why it is so and who is right.
    pub reason: &'static str,
    /// Where to read about it.
    pub reference: &'static str,
}

impl Accepted {
    fn covers_instruction(&self, culprit: &Culprit) -> bool {
        let (instruction, sequence) = match culprit {
            Culprit::Instruction(instruction) => (instruction, false),
            Culprit::Sequence(instruction) => (instruction, true),
            Culprit::Unknown => return false,
        };
        sequence == self.sequence
            && match self.pattern {
                Pattern::Mnemonics(mnemonics) => mnemonics.contains(&instruction.mnemonic()),
                Pattern::Where(holds) => holds(instruction),
            }
    }
}

/// Whether `engine` names the engine of a row: `unicorn`, or another one of its kind (`unicorn#2`).
fn is_engine(row: &str, engine: &str) -> bool {
    engine.split(['#', ':']).any(|part| part == row)
}

/// The rows that together explain every difference of `divergence`; none if one is not explained.
#[must_use]
pub fn explain(engine: &str, divergence: &Divergence) -> Option<Vec<&'static Accepted>> {
    let rows: Vec<&Accepted> = ACCEPTED
        .iter()
        .filter(|row| is_engine(row.engine, engine) && row.covers_instruction(&divergence.culprit))
        .collect();
    let mut used: Vec<&'static str> = Vec::new();
    for difference in &divergence.differences {
        let row = rows.iter().find(|row| (row.components)(difference))?;
        used.push(row.name);
    }
    Some(rows.into_iter().filter(|row| used.contains(&row.name)).collect())
}

/// Whether a difference is in one of these classes.
#[must_use]
pub fn is_in(difference: &Difference, classes: &[ComponentClass]) -> bool {
    classes.contains(&difference.component.class())
}
