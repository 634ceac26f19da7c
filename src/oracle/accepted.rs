//! The one table of accepted differences. There is no other way to ignore a difference.
//!
//! A row says in which engine, at which instructions, under which conditions and in which components
//! a difference is known, why, and where that is written down. Every row has a case in
//! `corpora/divergence/` that shows it; a test fails for a row that no case exercises.

use iced_x86::{Instruction, Mnemonic};

use super::compare::Difference;
use super::localise::{Culprit, Divergence};
use crate::case::{Case, Stop};
use crate::guest::{GuestAddress, decoder};

mod accesses;
mod conditions;
mod instructions;
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

/// How both runs stopped, silicon's first.
pub type Stops = (Stop, Stop);

/// A difference that is known and has a reason. It covers a difference where all of its conditions
/// hold.
#[derive(Clone, Copy, Debug)]
pub struct Accepted {
    /// A short name, unique in the table.
    pub name: &'static str,
    /// The engine that differs from silicon: the first word of its name.
    pub engine: &'static str,
    /// At which instructions.
    pub pattern: Pattern,
    /// How both runs stopped. A run that was lost or took too long is no row's but one that says
    /// `Accepted::loses`.
    pub stops: fn(Stops) -> bool,
    /// In which components, and with which values.
    pub shows: fn(&Difference) -> bool,
    /// What else has to hold of the divergence: of the state before it and of its operands.
    pub when: fn(&Divergence, &Difference) -> bool,
    /// Whether it needs the instructions before: such rows are about stale code or stale flags, and
    /// their pattern is looked for among all instructions that were executed.
    pub sequence: bool,
    /// Whether it is about an engine that does not come to an end.
    pub loses: bool,
    /// Why it is so and who is right.
    pub reason: &'static str,
    /// Where to read about it.
    pub reference: &'static str,
}

impl Accepted {
    /// The row of this name, if this version has it.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        ACCEPTED.iter().find(|row| row.name == name)
    }

    fn matches(&self, instruction: &Instruction) -> bool {
        match self.pattern {
            Pattern::Mnemonics(mnemonics) => mnemonics.contains(&instruction.mnemonic()),
            Pattern::Where(holds) => holds(instruction),
        }
    }

    /// Whether the row is about the culprit of `divergence`.
    fn is_about(&self, divergence: &Divergence) -> bool {
        match (&divergence.culprit, self.sequence) {
            (Culprit::Instruction(instruction), false) => self.matches(instruction),
            (Culprit::Sequence(_), true) => {
                divergence.executed.iter().any(|instruction| self.matches(instruction))
            }
            _ => false,
        }
    }

    /// Whether runs that stopped so may differ so, the state apart.
    fn allows(&self, stops: Stops, difference: &Difference) -> bool {
        (is_finished(stops.1) || self.loses) && (self.stops)(stops) && (self.shows)(difference)
    }

    fn covers(&self, divergence: &Divergence, difference: &Difference) -> bool {
        self.allows(divergence.stops, difference) && (self.when)(divergence, difference)
    }
}

fn is_finished(stop: Stop) -> bool {
    !matches!(stop, Stop::Lost(_) | Stop::TimeLimit)
}

/// The instructions of a case, decoded in a line from its entry.
#[must_use]
pub fn program(case: &Case) -> Vec<Instruction> {
    let code = case.initial_bytes(GuestAddress(case.state.rip)).unwrap_or_default();
    let mut decoder = decoder(code, case.state.rip);
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
        let row = rows.iter().find(|row| row.covers(divergence, difference))?;
        used.push(row.name);
    }
    Some(rows.into_iter().filter(|row| used.contains(&row.name)).collect())
}

/// Whether every one of `differences`, found at the end of a run of `program`, is one that a row
/// about single instructions allows for one of the program's, whatever the state was there. That is
/// no explanation: it says that there may be one, so that not each such run has to be searched for
/// its culprits.
#[must_use]
pub fn is_plausible(
    engine: &str,
    program: &[Instruction],
    stops: Stops,
    differences: &[Difference],
) -> bool {
    let rows: Vec<&Accepted> = ACCEPTED
        .iter()
        .filter(|row| is_engine(row.engine, engine) && !row.sequence)
        .filter(|row| program.iter().any(|code| row.matches(code)))
        .collect();
    differences.iter().all(|difference| rows.iter().any(|row| row.allows(stops, difference)))
}
