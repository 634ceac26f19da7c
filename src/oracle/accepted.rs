//! The one table of accepted differences. There is no other way to ignore a difference.
//!
//! A row says in which engine, at which instructions and in which components a difference is known,
//! why, and where that is written down. Every row has a case in `corpora/divergence/` that shows it; a
//! test fails for a row that no case exercises.

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

use super::compare::Difference;
use super::localise::{Culprit, Divergence};
use crate::case::{Case, Stop};
use crate::guest::GuestAddress;

mod predicates;
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
    /// Which of the divergence's differences, as a predicate over how both runs stopped (silicon's
    /// first) and each difference.
    pub covers: fn((Stop, Stop), &Difference) -> bool,
    /// Whether it needs the instructions before: such rows are about stale code.
    pub sequence: bool,
    /// Why it is so and who is right.
    pub reason: &'static str,
    /// Where to read about it.
    pub reference: &'static str,
}

impl Accepted {
    fn matches(&self, instruction: &Instruction) -> bool {
        match self.pattern {
            Pattern::Mnemonics(mnemonics) => mnemonics.contains(&instruction.mnemonic()),
            Pattern::Where(holds) => holds(instruction),
        }
    }

    /// Whether the row is about the culprit of `divergence`; a row about sequences is, if one of the
    /// instructions of its case is.
    fn is_about(&self, divergence: &Divergence) -> bool {
        match (&divergence.culprit, self.sequence) {
            (Culprit::Instruction(instruction), false) => self.matches(instruction),
            (Culprit::Sequence(_), true) => {
                program(&divergence.case).iter().any(|instruction| self.matches(instruction))
            }
            _ => false,
        }
    }
}

/// The instructions of a case, decoded in a line from its entry.
#[must_use]
pub fn program(case: &Case) -> Vec<Instruction> {
    let code = case.initial_bytes(GuestAddress(case.state.rip)).unwrap_or_default();
    let mut decoder = Decoder::with_ip(64, code, case.state.rip, DecoderOptions::NONE);
    let is_filling = |instruction: &Instruction| {
        instruction.mnemonic() == Mnemonic::Int3 || instruction.is_invalid()
    };
    decoder.iter().take(MAX_PROGRAM).take_while(|instruction| !is_filling(instruction)).collect()
}

/// Instructions of a program that are looked at.
const MAX_PROGRAM: usize = 256;

/// Whether `engine` names the engine of a row: `unicorn`, or another one of its kind (`unicorn#2`).
fn is_engine(row: &str, engine: &str) -> bool {
    engine.split(['#', ':']).any(|part| part == row)
}

/// The rows that together explain every difference of `divergence`; none if one is not explained.
#[must_use]
pub fn explain(engine: &str, divergence: &Divergence) -> Option<Vec<&'static Accepted>> {
    let rows: Vec<&Accepted> = ACCEPTED
        .iter()
        .filter(|row| is_engine(row.engine, engine) && row.is_about(divergence))
        .collect();
    let mut used: Vec<&'static str> = Vec::new();
    for difference in &divergence.differences {
        let row = rows.iter().find(|row| (row.covers)(divergence.stops, difference))?;
        used.push(row.name);
    }
    Some(rows.into_iter().filter(|row| used.contains(&row.name)).collect())
}

/// Whether every one of `differences`, found at the end of a run of `program`, is in a component that
/// a row allows for one of the program's instructions. That is no explanation: it says that there
/// may be one, so that not each such run has to be searched for its culprits.
#[must_use]
pub fn is_plausible(
    engine: &str,
    program: &[Instruction],
    stops: (Stop, Stop),
    differences: &[Difference],
) -> bool {
    let rows: Vec<&Accepted> = ACCEPTED
        .iter()
        .filter(|row| is_engine(row.engine, engine) && program.iter().any(|code| row.matches(code)))
        .collect();
    differences.iter().all(|difference| rows.iter().any(|row| (row.covers)(stops, difference)))
}
