//! From "this run differs" to "this instruction differs".
//!
//! Silicon's run is traced. The other engine is run from the same start with an instruction limit,
//! and the limit bisected: equal after *k* − 1 instructions and different after *k* blames the *k*-th.
//! That instruction is then run alone from silicon's state before it: if the difference shows again it
//! is the instruction's own, else it needs what came before (stale code, say) and is told as a
//! difference of the sequence. The search goes on from silicon's state after the culprit until the
//! rest of the run agrees, so one run yields its culprits (the first 64), each from a common state.

use iced_x86::Instruction;

use super::compare::{Difference, compare};
use super::undefined::{drop_still_undefined, drop_undefined, drop_undefined_since};
use crate::case::{
    Case, Event, ExceptionVector, MapModel, ObjectId, Outcome, PageChange, Stop, Trigger,
};
use crate::engine::silicon::{Silicon, Step, Trace};
use crate::engine::{Engine, Unsupported, Visible};
use crate::guest::PAGE_SIZE;

use super::compare::page_of;

/// Instructions of a run that are traced at most; a longer run is not localised.
const MAX_STEPS: u64 = 4096;
/// Culprits after which the search ends.
const MAX_DIVERGENCES: usize = 64;

/// What caused a divergence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Culprit {
    /// This instruction, whatever came before.
    Instruction(Instruction),
    /// This instruction, but only after those before it.
    Sequence(Instruction),
    /// The run could not be traced, or is too long.
    Unknown,
}

impl Culprit {
    /// The instruction at which the runs part.
    #[must_use]
    pub fn instruction(&self) -> Option<&Instruction> {
        match self {
            Self::Instruction(instruction) | Self::Sequence(instruction) => Some(instruction),
            Self::Unknown => None,
        }
    }
}

/// One place where an engine leaves silicon's path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Divergence {
    /// Who is to blame.
    pub culprit: Culprit,
    /// The instructions executed from the common state up to and with the culprit.
    pub executed: Vec<Instruction>,
    /// How both runs stopped right after it, silicon's first.
    pub stops: (Stop, Stop),
    /// What differs right after it, silicon left. Empty where all of it is undefined by the manual.
    pub differences: Vec<Difference>,
    /// A case that shows this divergence from the state before it.
    pub case: Case,
}

/// All divergences of `engine` from silicon in a run of `case` that is known to end with these two
/// outcomes, silicon's first, and so with `differences`. At least one: if the search does not succeed,
/// the culprit is unknown. If the engine refuses what the case executes, which it did not see in the case, that is
/// the result.
pub fn localise(
    silicon: &mut Silicon,
    engine: &mut dyn Engine,
    case: &Case,
    outcomes: (&Outcome, &Outcome),
    differences: &[Difference],
) -> Result<Vec<Divergence>, Unsupported> {
    let stops = (outcomes.0.stop, outcomes.1.stop);
    let unknown = || {
        Ok(vec![Divergence {
            culprit: Culprit::Unknown,
            executed: Vec::new(),
            stops,
            differences: differences.to_vec(),
            case: case.clone(),
        }])
    };
    if !engine.capabilities().counts {
        return unknown();
    }
    let Ok(trace) = silicon.trace(case, MAX_STEPS) else { return unknown() };
    let visible = silicon.capabilities().visible.common(engine.capabilities().visible);
    // Where the steps do not lead to what the run led to, they explain nothing. What the engine does not show may
    // differ: AMD's processors lose the x87 unit's pointers at each step.
    let led_there = compare(case, &trace.outcome, outcomes.0, visible).is_empty();
    if trace.steps.is_empty() || !led_there {
        return unknown();
    }
    let divergences = Search { case, trace: &trace, engine, visible }.all()?;
    if divergences.is_empty() { unknown() } else { Ok(divergences) }
}

/// Whether the last instruction of a run that stopped so was executed: one that faults changes no
/// flags, undefined ones included.
fn completes(stop: Stop) -> bool {
    const TRAPS: [ExceptionVector; 2] = [ExceptionVector::DB, ExceptionVector::BP];
    !matches!(stop, Stop::Exception { vector, .. } if !TRAPS.contains(&vector))
}

/// The differences between two outcomes of one execution of `instruction`, silicon's left, without
/// those that are undefined between these engines.
pub fn differences_of(
    silicon: &Silicon,
    engine: &dyn Engine,
    instruction: &Instruction,
    case: &Case,
    outcomes: (&Outcome, &Outcome),
) -> Vec<Difference> {
    let visible = silicon.capabilities().visible.common(engine.capabilities().visible);
    let mut differences = compare(case, outcomes.0, outcomes.1, visible);
    if !engine.capabilities().runs_on_silicon && completes(outcomes.0.stop) {
        drop_undefined(instruction, &mut differences);
    }
    differences
}

/// One run of the engine next to silicon.
struct Probe {
    stops: (Stop, Stop),
    differences: Vec<Difference>,
    case: Case,
}

impl Probe {
    fn divergence(self, culprit: Culprit, executed: Vec<Instruction>) -> Divergence {
        Divergence {
            culprit,
            executed,
            stops: self.stops,
            differences: self.differences,
            case: self.case,
        }
    }
}

struct Search<'a> {
    case: &'a Case,
    trace: &'a Trace,
    engine: &'a mut dyn Engine,
    visible: Visible,
}

impl Search<'_> {
    /// All divergences, up to the first that the engine cannot be asked about; an error if there is none
    /// before that.
    fn all(&mut self) -> Result<Vec<Divergence>, Unsupported> {
        let mut divergences = Vec::new();
        let mut start = 0;
        while start < self.trace.steps.len() && divergences.len() < MAX_DIVERGENCES {
            match self.next_after(start) {
                Ok(Some((divergence, next))) => {
                    divergences.push(divergence);
                    start = next;
                }
                Err(unsupported) if divergences.is_empty() => return Err(unsupported),
                Ok(None) | Err(_) => break,
            }
        }
        Ok(divergences)
    }

    /// The first divergence at or after `start`, and the instruction behind it.
    fn next_after(&mut self, start: usize) -> Result<Option<(Divergence, usize)>, Unsupported> {
        let Some(culprit) = self.first_after(start)? else { return Ok(None) };
        Ok(Some((self.examine(start, culprit)?, culprit + 1)))
    }

    /// The number of an instruction at or after `start` such that the engine, started at `start`,
    /// agrees before it and differs after it.
    fn first_after(&mut self, start: usize) -> Result<Option<usize>, Unsupported> {
        let (mut equal, mut different) = (start, self.trace.steps.len());
        if self.unlimited(start)?.differences.is_empty() {
            return Ok(None);
        }
        while different - equal > 1 {
            let middle = equal + (different - equal) / 2;
            if self.limited(start, middle)?.differences.is_empty() {
                equal = middle;
            } else {
                different = middle;
            }
        }
        Ok(Some(equal))
    }

    fn examine(&mut self, start: usize, culprit: usize) -> Result<Divergence, Unsupported> {
        let instruction = self.trace.steps[culprit].instruction();
        let masked = !self.engine.capabilities().runs_on_silicon;
        let mut alone = self.limited(culprit, culprit + 1)?;
        if !alone.differences.is_empty() {
            if masked && completes(alone.stops.0) {
                drop_undefined(&instruction, &mut alone.differences);
            }
            return Ok(alone.divergence(Culprit::Instruction(instruction), vec![instruction]));
        }
        let executed: Vec<Instruction> =
            self.trace.steps[start..=culprit].iter().map(Step::instruction).collect();
        let last = culprit + 1 == self.trace.steps.len();
        let faults = last && !completes(self.trace.outcome.stop);
        let done = executed[..executed.len() - usize::from(faults)].iter().copied();
        let mut together = self.limited(start, culprit + 1)?;
        if !together.differences.is_empty() {
            if masked {
                // Flags were alike before the culprit, undefined ones included: where a run was stopped to look.
                drop_still_undefined(done, &mut together.differences);
            }
        } else {
            // It takes a run without a limit, which is not stopped after each instruction.
            together = self.unlimited(start)?;
            if masked {
                drop_undefined_since(done, &mut together.differences);
            }
        }
        Ok(together.divergence(Culprit::Sequence(instruction), executed))
    }

    /// The engine, started at instruction `start` and limited to end before `end`, against silicon.
    fn limited(&mut self, start: usize, end: usize) -> Result<Probe, Unsupported> {
        let case = suffix(self.case, &self.trace.steps[start], Some((end - start) as u64));
        self.probe(start, end, case)
    }

    /// The engine, started at instruction `start`, to the end of the run, against silicon.
    fn unlimited(&mut self, start: usize) -> Result<Probe, Unsupported> {
        let limit = self.case.limit.map(|limit| limit - start as u64);
        let case = suffix(self.case, &self.trace.steps[start], limit);
        self.probe(start, self.trace.steps.len(), case)
    }

    fn probe(&mut self, start: usize, end: usize, case: Case) -> Result<Probe, Unsupported> {
        let expected = self.expected(start, end, &case);
        let mut outcome = self.engine.run_beside(&case, expected.stop)?;
        outcome.events_applied += self.trace.steps[start].events_applied;
        let differences = compare(&case, &expected, &outcome, self.visible);
        Ok(Probe { stops: (expected.stop, outcome.stop), differences, case })
    }

    /// What silicon shows before instruction `end`, as an outcome of `suffix`.
    fn expected(&self, start: usize, end: usize, suffix: &Case) -> Outcome {
        let base = &self.trace.steps[start].memory;
        match self.trace.steps.get(end) {
            Some(step) => Outcome {
                stop: Stop::Limit,
                events_applied: step.events_applied,
                state: step.state.clone(),
                memory: rebase(self.case, base, &step.memory, suffix),
            },
            None => Outcome {
                memory: rebase(self.case, base, &self.trace.outcome.memory, suffix),
                ..self.trace.outcome.clone()
            },
        }
    }
}

/// The rest of `case` as it stands at `step`, with another limit.
#[must_use]
pub fn suffix(case: &Case, step: &Step, limit: Option<u64>) -> Case {
    let mut map = MapModel::initial(case);
    for event in &case.events[..step.events_applied] {
        for action in &event.actions {
            map.apply(action).expect("the actions of a valid case can be carried out");
        }
    }
    let mut objects = case.objects.clone();
    for change in step.memory.iter() {
        let start = change.page * PAGE_SIZE as usize;
        objects[change.object.0].contents[start..start + change.contents.len()]
            .copy_from_slice(&change.contents);
    }
    let mut events = case.events[step.events_applied..].to_vec();
    if let Some(Event { trigger: Trigger::Count(count), .. }) = events.first_mut() {
        *count -= step.executed_in_leg;
    }
    Case {
        mode: case.mode,
        note: case.note.clone(),
        state: step.state.clone(),
        objects,
        mappings: map.mappings().to_vec(),
        events,
        limit,
    }
}

/// Turns `changes`, counted from the start of `case`, into changes from the start of `suffix`, whose
/// memory is `case`'s with the changes `base`.
fn rebase(
    case: &Case,
    base: &[PageChange],
    changes: &[PageChange],
    suffix: &Case,
) -> Vec<PageChange> {
    let mut pages: Vec<(ObjectId, usize)> =
        base.iter().chain(changes).map(|change| (change.object, change.page)).collect();
    pages.sort_unstable();
    pages.dedup();
    pages
        .into_iter()
        .filter_map(|(object, page)| {
            let now = page_of(case, changes, object, page);
            (now != page_of(suffix, &[], object, page)).then(|| PageChange {
                object,
                page,
                contents: now.to_vec(),
            })
        })
        .collect()
}
