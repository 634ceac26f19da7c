//! Scenes that are run and judged: [`Watcher`] has a stage and counts, a [`Difference`] is an outcome outside of
//! the set, and [`smaller`] makes its scene small.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::model::{TooMany, one_behind_the_other, outcomes};
use super::op::Op;
use super::scene::{Outcome, Scene};
use super::stage::{Round, Stage};
use crate::exec::MachineError;

/// How long a scene is made small.
const SMALLER_TIME: Duration = Duration::from_secs(10);
/// Batches in which a smaller scene has to show it.
const SMALLER_BATCHES: u64 = 32;

/// What was run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Scenes.
    pub scenes: u64,
    /// Scenes whose set is too large to be found; they were not run.
    pub too_large: u64,
    /// How often the two vCPUs ran at the same time.
    pub rounds: u64,
    /// Rounds of scenes in which code is changed that the other vCPU runs.
    pub changing_rounds: u64,
    /// Rounds with an outcome that is not there if one vCPU runs behind the other: in these they overlapped.
    pub overlapping_rounds: u64,
    /// Scenes that have shown more than one outcome.
    pub scenes_with_several: u64,
    /// Seconds that all this took, summed over the campaign's threads.
    pub seconds: f64,
}

impl Counts {
    /// Adds others to these.
    pub fn add(&mut self, other: &Self) {
        self.scenes += other.scenes;
        self.too_large += other.too_large;
        self.rounds += other.rounds;
        self.changing_rounds += other.changing_rounds;
        self.overlapping_rounds += other.overlapping_rounds;
        self.scenes_with_several += other.scenes_with_several;
        self.seconds += other.seconds;
    }
}

/// A round whose outcome is not in the set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What came of it.
    pub round: Round,
    /// How many outcomes there may be.
    pub allowed: usize,
    /// Of those, the one that differs from it in the fewest places.
    pub nearest: Option<Outcome>,
}

/// See the file's head.
pub struct Watcher {
    cpu: usize,
    stage: Stage,
    /// What was run so far.
    pub counts: Counts,
}

impl Watcher {
    /// One whose vCPUs run on this CPU and the next ([`Stage::new`]).
    pub fn new(cpu: usize) -> Result<Self, MachineError> {
        Ok(Self { cpu, stage: Stage::new(cpu)?, counts: Counts::default() })
    }

    /// Runs a scene in so many batches and gives the first outcome that is not in its set.
    pub fn check(
        &mut self,
        scene: &Scene,
        batches: u64,
    ) -> Result<Option<Difference>, MachineError> {
        let start = Instant::now();
        let result = match outcomes(scene) {
            Ok(allowed) => self.check_against(scene, &allowed, batches),
            Err(TooMany) => {
                self.counts.too_large += 1;
                Ok(None)
            }
        };
        self.counts.seconds += start.elapsed().as_secs_f64();
        result
    }

    /// The same with this set.
    pub(super) fn check_against(
        &mut self,
        scene: &Scene,
        allowed: &HashSet<Outcome>,
        batches: u64,
    ) -> Result<Option<Difference>, MachineError> {
        let in_turn = one_behind_the_other(scene);
        let mut seen = BTreeSet::new();
        self.counts.scenes += 1;
        let mut difference = None;
        for batch in 0..batches {
            for round in self.stage.run(scene, batch) {
                self.counts.rounds += 1;
                self.counts.changing_rounds += u64::from(scene.changes_code());
                match &round {
                    Round::Over(outcome) if allowed.contains(&**outcome) => {
                        let overlaps = !in_turn.contains(&**outcome);
                        self.counts.overlapping_rounds += u64::from(overlaps);
                        seen.insert(**outcome);
                    }
                    _ => {
                        difference.get_or_insert_with(|| Difference::new(round, allowed));
                    }
                }
            }
            if let Some(Difference { round, .. }) = &difference {
                if matches!(round, Round::Lost(_)) {
                    self.stage = Stage::new(self.cpu)?;
                }
                break;
            }
        }
        self.counts.scenes_with_several += u64::from(seen.len() > 1);
        Ok(difference)
    }
}

impl Difference {
    fn new(round: Round, allowed: &HashSet<Outcome>) -> Self {
        let nearest = match &round {
            Round::Over(outcome) => {
                let far = |other: &&Outcome| (differing(outcome, other).len(), **other);
                allowed.iter().min_by_key(far).copied()
            }
            Round::Lost(_) => None,
        };
        Self { round, allowed: allowed.len(), nearest }
    }

    /// What happened, in lines.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "no order of the instructions gives it; {} outcomes may be",
            self.allowed
        )];
        match (&self.round, &self.nearest) {
            (Round::Lost(why), _) => lines.push(format!("no end: {why}")),
            (Round::Over(outcome), Some(nearest)) => {
                lines.push("what was seen, and in the outcome nearest to it:".to_owned());
                let rows = differing(outcome, nearest).into_iter();
                lines.extend(rows.map(|(name, seen, may_be)| {
                    format!("  {name:<22} {seen:#018x} {may_be:#018x}")
                }));
            }
            (Round::Over(_), None) => {}
        }
        lines
    }
}

/// Where two outcomes differ: what it is called, and both values.
fn differing(one: &Outcome, other: &Outcome) -> Vec<(String, u64, u64)> {
    const NAMES: [&str; 6] = ["rax", "rdx", "rbx", "rsi", "r12", "r13"];
    let mut rows = Vec::new();
    let mut compare = |name: String, one: u64, other: u64| {
        if one != other {
            rows.push((name, one, other));
        }
    };
    for vcpu in [0, 1] {
        for (index, name) in NAMES.iter().enumerate() {
            let (one, other) = (one.registers[vcpu][index], other.registers[vcpu][index]);
            compare(format!("{name} of vCPU {vcpu}"), one, other);
        }
    }
    for (index, (one, other)) in one.words.into_iter().zip(other.words).enumerate() {
        compare(format!("word {index}"), one, other);
    }
    for vcpu in [0, 1] {
        let slots = one.programs[vcpu].into_iter().zip(other.programs[vcpu]);
        for (index, (one, other)) in slots.enumerate() {
            compare(format!("slot {index} of vCPU {vcpu}"), one, other);
        }
    }
    rows
}

/// The scene with fewer instructions, as long as it shows a difference, and that difference.
pub fn smaller(
    watcher: &mut Watcher,
    scene: &Scene,
    difference: Difference,
) -> Result<(Scene, Difference), MachineError> {
    let start = Instant::now();
    let (mut scene, mut difference) = (scene.clone(), difference);
    for vcpu in [0, 1] {
        for place in (0..scene.vcpus[vcpu].code.len()).rev() {
            let mut tried = scene.clone();
            if place + 1 == tried.vcpus[vcpu].code.len() {
                tried.vcpus[vcpu].code.pop();
            } else {
                tried.vcpus[vcpu].code[place] = Op::Nothing;
            }
            if tried.unsound().is_some() || start.elapsed() > SMALLER_TIME {
                continue;
            }
            if let Some(found) = watcher.check(&tried, SMALLER_BATCHES)? {
                (scene, difference) = (tried, found);
            }
        }
    }
    Ok((scene, difference))
}
