//! [`Judge`]: runs a case on silicon and on every other engine, and says who differs from silicon.

use std::borrow::Cow;
use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use iced_x86::Instruction;

use super::accepted::{Accepted, explain, is_plausible, program};
use super::compare::{ComponentClass, Difference, compare};
use super::localise::{Culprit, Divergence, localise};
use crate::case::{Case, Outcome, Stop};
use crate::engine::silicon::Silicon;
use crate::engine::{Engine, Unsupported};

/// Silicon and the engines that are compared with it.
pub struct Judge {
    /// The judge.
    pub silicon: Silicon,
    /// The judged.
    pub engines: Vec<Box<dyn Engine>>,
    /// What each engine's first runs cost, silicon's first; localising is not in it.
    pub costs: Vec<Cost>,
    /// What the searches for culprits cost.
    pub searches: Cost,
}

/// What an engine's runs cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Cases run.
    pub cases: u64,
    /// Time on the clock that they took.
    pub time: Duration,
}

impl Cost {
    /// Adds what others cost.
    pub fn add(&mut self, more: Self) {
        self.cases += more.cases;
        self.time += more.time;
    }
}

/// What makes two divergences the same finding.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterKey {
    /// Who differs from silicon.
    pub engine: String,
    /// The mnemonic at which the runs part, with `…` before it where it takes more than that one
    /// instruction; `?` where it could not be found.
    pub mnemonic: String,
    /// The first component that differs.
    pub component: ComponentClass,
    /// If that is the stop: both stops, without their numbers, silicon's first.
    pub stops: Option<(String, String)>,
}

impl fmt::Display for ClusterKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {} → {}", self.engine, self.mnemonic, self.component)?;
        match &self.stops {
            Some((left, right)) => write!(formatter, " ({left} / {right})"),
            None => Ok(()),
        }
    }
}

/// One divergence with its place in the order of things.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What makes it the same as another.
    pub key: ClusterKey,
    /// The rows that explain it; absent if something in it is not explained.
    pub accepted: Option<Vec<&'static Accepted>>,
    /// What was found.
    pub divergence: Divergence,
}

/// What one engine made of a case, next to silicon.
#[derive(Clone, Debug)]
pub enum EngineVerdict {
    /// All that both can show is alike.
    Agrees,
    /// It cannot run the case.
    Unsupported(Unsupported),
    /// It differs from silicon.
    Differs {
        /// Its outcome.
        outcome: Box<Outcome>,
        /// In what, at the end of the run.
        differences: Vec<Difference>,
        /// Where it began, and whether that is known. Empty where only undefined results differ.
        findings: Vec<Finding>,
    },
    /// It differs from silicon in components in which its known differences show, and the search for
    /// the culprits was left out: it is made for one such case in [`SEARCH_ONE_IN`].
    Plausible {
        /// In what, at the end of the run.
        differences: Vec<Difference>,
    },
}

/// Of the cases whose differences may well be known ones, one in this many is searched.
pub const SEARCH_ONE_IN: u64 = 16;

/// What came of a case.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// Silicon itself cannot run it.
    Unjudged(Unsupported),
    /// Silicon's outcome, and each engine's verdict in order.
    Judged {
        /// What is right.
        silicon: Box<Outcome>,
        /// What the others say.
        engines: Vec<EngineVerdict>,
    },
}

impl Judge {
    /// Silicon against `engines`.
    #[must_use]
    pub fn new(silicon: Silicon, engines: Vec<Box<dyn Engine>>) -> Self {
        let costs = vec![Cost::default(); 1 + engines.len()];
        Self { silicon, engines, costs, searches: Cost::default() }
    }

    /// Runs `case` everywhere and finds the culprit of every difference.
    pub fn judge(&mut self, case: &Case) -> Verdict {
        self.judge_by(case, |_, _, _, _| false)
    }

    /// The same for campaigns: most runs that differ only as known differences do are not searched.
    pub fn judge_quickly(&mut self, case: &Case) -> Verdict {
        self.judge_by(case, may_skip)
    }

    fn judge_by(&mut self, case: &Case, may_skip: MaySkip) -> Verdict {
        let reference = match timed(&mut self.costs[0], || self.silicon.run(case)) {
            Ok(outcome) => outcome,
            Err(unsupported) => return Verdict::Unjudged(unsupported),
        };
        if let Stop::Lost(loss) = reference.stop {
            return Verdict::Unjudged(Unsupported::new(format!("the judge was lost: {loss}")));
        }
        let (silicon, searches) = (&mut self.silicon, &mut self.searches);
        let engines = self
            .engines
            .iter_mut()
            .zip(&mut self.costs[1..])
            .map(|(engine, cost)| {
                let engine = engine.as_mut();
                match timed(cost, || engine.run_beside(case, reference.stop)) {
                    Ok(outcome) => {
                        let begun = Instant::now();
                        let verdict = verdict(silicon, engine, case, &reference, outcome, may_skip);
                        if matches!(verdict, EngineVerdict::Differs { .. }) {
                            searches.add(Cost { cases: 1, time: begun.elapsed() });
                        }
                        verdict
                    }
                    Err(unsupported) => EngineVerdict::Unsupported(unsupported),
                }
            })
            .collect();
        Verdict::Judged { silicon: Box::new(reference), engines }
    }
}

/// Runs `case` on silicon and on one engine, and finds the culprit of every difference. Says why where
/// silicon cannot run it.
pub fn judge_one(
    silicon: &mut Silicon,
    engine: &mut dyn Engine,
    case: &Case,
) -> Result<EngineVerdict, Unsupported> {
    let reference = silicon.run(case)?;
    if let Stop::Lost(loss) = reference.stop {
        return Err(Unsupported::new(format!("the judge was lost: {loss}")));
    }
    Ok(match engine.run_beside(case, reference.stop) {
        Ok(outcome) => verdict(silicon, engine, case, &reference, outcome, |_, _, _, _| false),
        Err(unsupported) => EngineVerdict::Unsupported(unsupported),
    })
}

/// What is to be said of an engine's `outcome` next to silicon's. If one of the two ran out of time, both
/// run again first: on a busy host that happens to a guest that does come to an end.
fn verdict(
    silicon: &mut Silicon,
    engine: &mut dyn Engine,
    case: &Case,
    reference: &Outcome,
    outcome: Outcome,
    may_skip: MaySkip,
) -> EngineVerdict {
    let mut runs = (Cow::Borrowed(reference), outcome);
    if (runs.0.stop == Stop::TimeLimit) != (runs.1.stop == Stop::TimeLimit)
        && let Ok((reference, outcome)) = run_both(silicon, engine, case)
    {
        runs = (Cow::Owned(reference), outcome);
    }
    let (reference, outcome) = runs;
    let differences = differences_at_end(silicon, engine, case, &reference, &outcome);
    if may_skip(engine, case, (reference.stop, outcome.stop), &differences) {
        return EngineVerdict::Plausible { differences };
    }
    search(silicon, engine, case, &reference, outcome, differences)
}

/// Whether the search for the culprits of these differences may be left out.
type MaySkip = fn(&dyn Engine, &Case, (Stop, Stop), &[Difference]) -> bool;

fn may_skip(
    engine: &dyn Engine,
    case: &Case,
    stops: (Stop, Stop),
    differences: &[Difference],
) -> bool {
    // Part of the case itself decides, so that a case is treated the same way each time.
    let lot = case.state.gpr.iter().fold(case.state.rip, |lot, word| lot.rotate_left(7) ^ word);
    !differences.is_empty()
        && !mix(lot).is_multiple_of(SEARCH_ONE_IN)
        && is_plausible(engine.name(), &program(case), stops, differences)
}

/// Spreads a word's bits over all of it (Fibonacci hashing).
fn mix(word: u64) -> u64 {
    word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32
}

fn timed<T>(
    cost: &mut Cost,
    run: impl FnOnce() -> Result<T, Unsupported>,
) -> Result<T, Unsupported> {
    let start = Instant::now();
    let result = run();
    if result.is_ok() {
        cost.add(Cost { cases: 1, time: start.elapsed() });
    }
    result
}

fn differences_at_end(
    silicon: &Silicon,
    engine: &dyn Engine,
    case: &Case,
    reference: &Outcome,
    outcome: &Outcome,
) -> Vec<Difference> {
    let visible = silicon.capabilities().visible.common(engine.capabilities().visible);
    compare(case, reference, outcome, visible)
}

/// What silicon and an engine make of a case, if both can run it.
pub fn run_both(
    silicon: &mut Silicon,
    engine: &mut dyn Engine,
    case: &Case,
) -> Result<(Outcome, Outcome), Unsupported> {
    let reference = silicon.run(case)?;
    let outcome = engine.run_beside(case, reference.stop)?;
    Ok((reference, outcome))
}

/// Compares an engine's `outcome` of `case` with silicon's, which is `reference`.
pub fn judge_outcome(
    silicon: &mut Silicon,
    engine: &mut dyn Engine,
    case: &Case,
    reference: &Outcome,
    outcome: Outcome,
) -> EngineVerdict {
    let differences = differences_at_end(silicon, engine, case, reference, &outcome);
    search(silicon, engine, case, reference, outcome, differences)
}

/// Searches the culprits of `differences`, if there are any.
fn search(
    silicon: &mut Silicon,
    engine: &mut dyn Engine,
    case: &Case,
    reference: &Outcome,
    outcome: Outcome,
    differences: Vec<Difference>,
) -> EngineVerdict {
    if differences.is_empty() {
        return EngineVerdict::Agrees;
    }
    let localised = localise(silicon, engine, case, (reference, &outcome), &differences);
    let divergences = match localised {
        Ok(divergences) => divergences,
        Err(unsupported) => return EngineVerdict::Unsupported(unsupported),
    };
    let findings = divergences
        .into_iter()
        .filter(|divergence| !divergence.differences.is_empty())
        .map(|divergence| Finding::new(engine.name(), divergence))
        .collect();
    EngineVerdict::Differs { outcome: Box::new(outcome), differences, findings }
}

impl Finding {
    /// Names of the rows that explain it.
    #[must_use]
    pub fn row_names(&self) -> Option<Vec<&'static str>> {
        Some(self.accepted.as_ref()?.iter().map(|row| row.name).collect())
    }

    /// Puts a divergence of `engine`, which has at least one difference, in its place.
    #[must_use]
    pub fn new(engine: &str, divergence: Divergence) -> Self {
        let accepted = explain(engine, &divergence);
        let mnemonic = match &divergence.culprit {
            Culprit::Instruction(instruction) => mnemonic_name(instruction),
            Culprit::Sequence(instruction) => format!("…{}", mnemonic_name(instruction)),
            Culprit::Unknown => "?".to_owned(),
        };
        let component = divergence.differences[0].component.class();
        let kinds = || (divergence.stops.0.kind(), divergence.stops.1.kind());
        let stops = (component == ComponentClass::Stop).then(kinds);
        let key = ClusterKey { engine: engine.to_owned(), mnemonic, component, stops };
        Self { key, accepted, divergence }
    }
}

fn mnemonic_name(instruction: &Instruction) -> String {
    format!("{:?}", instruction.mnemonic()).to_lowercase()
}
