//! What a campaign has found: a cluster for each distinct difference, how often it was [`Seen`], and an
//! example of it, made small.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iced_x86::Mnemonic;

use super::ClusterRecord;
use super::case_file::write_finding;
use super::folder::{FileError, Folder};
use crate::case::Case;
use crate::engine::Engine;
use crate::engine::silicon::Silicon;
use crate::guest::{GuestAddress, decoder};
use crate::oracle::judge::{ClusterKey, EngineVerdict, Finding, judge_outcome, run_both};
use crate::oracle::localise::{Culprit, Divergence, differences_of};
use crate::oracle::minimise::minimise;

/// How often a minimisation may ask, …
const MINIMISE_BUDGET: usize = 600;
/// … and how long it may take: an engine that hangs is slow to answer.
pub const MINIMISE_TIME: Duration = Duration::from_secs(20);
/// The same for what is known, which need not be shown by the smallest case.
const MINIMISE_KNOWN_TIME: Duration = Duration::from_millis(300);
/// Instructions of a smallest case that are looked at.
const MOST_STEPS: u64 = 4096;

/// What makes a finding the same as another. What is explained and what is not are different clusters,
/// so that a known difference never hides an unknown one.
pub type FindingKey = (ClusterKey, bool);

/// What was seen of a cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// How often.
    pub count: u64,
    /// Number of the first case that showed it.
    pub first_case: u64,
    /// Seconds from the campaign's start until one was seen.
    pub first_seconds: f64,
    /// Names of the rows that explain the first, if it is explained.
    pub accepted: Option<Vec<&'static str>>,
}

impl Seen {
    /// Adds what another worker saw.
    pub(super) fn add(&mut self, other: Self) {
        self.count += other.count;
        self.first_seconds = self.first_seconds.min(other.first_seconds);
        if other.first_case < self.first_case {
            self.first_case = other.first_case;
            self.accepted = other.accepted;
        }
    }
}

/// The case that a cluster is shown by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Example {
    /// Its hash, which is the name of its file.
    pub hash: String,
    /// How many different instructions it executes on silicon, `nop` and `hlt` left out.
    pub instructions: u64,
}

/// The examples of all clusters of a campaign, shared by its workers. How often each was seen is counted
/// in the workers' tallies, with the cases that showed it.
#[derive(Debug, Default)]
pub(super) struct Findings(Mutex<BTreeMap<FindingKey, Option<Example>>>);

impl Findings {
    /// Those that an earlier part of the campaign has left.
    pub(super) fn known(clusters: &[ClusterRecord]) -> Self {
        let known = clusters.iter().filter_map(|cluster| {
            let hash = cluster.case.clone()?;
            let example = Example { hash, instructions: cluster.instructions };
            Some(((cluster.key(), cluster.accepted.is_some()), Some(example)))
        });
        Self(Mutex::new(known.collect()))
    }

    /// Makes sure that a finding's cluster has an example: the first one is minimised with
    /// `(judge, engine)` and written. Whether this is the first one.
    pub(super) fn note(
        &self,
        finding: &Finding,
        engines: (&mut Silicon, &mut dyn Engine),
        folder: Option<&Folder>,
    ) -> Result<bool, FileError> {
        let key = (finding.key.clone(), finding.accepted.is_some());
        self.first_of(key, || {
            let (silicon, engine) = engines;
            let known = finding.accepted.is_some();
            let time = if known { MINIMISE_KNOWN_TIME } else { MINIMISE_TIME };
            let case = minimise_finding(silicon, engine, finding, time);
            let instructions = executed(silicon, &case) as u64;
            let hash = case.content_hash();
            if let Some(folder) = folder {
                write_finding(folder, &hash, &case, silicon, engine, finding)?;
            }
            Ok(Example { hash, instructions })
        })
    }

    /// Makes sure that a finding's cluster has an example: that of the first one is made by `make`.
    /// Whether this is the first one.
    pub(super) fn first_of(
        &self,
        key: FindingKey,
        make: impl FnOnce() -> Result<Example, FileError>,
    ) -> Result<bool, FileError> {
        match self.lock().entry(key.clone()) {
            // There is one, or another worker is at it.
            Entry::Occupied(_) => return Ok(false),
            Entry::Vacant(place) => drop(place.insert(None)),
        }
        let example = make()?;
        self.lock().insert(key, Some(example));
        Ok(true)
    }

    /// How many there are, and how many of them are not explained.
    pub(super) fn counts(&self) -> (u64, u64) {
        let examples = self.lock();
        let unexplained = examples.keys().filter(|(_, explained)| !explained).count();
        (examples.len() as u64, unexplained as u64)
    }

    /// What is kept of clusters of which so much was seen. One whose first case is still being made small
    /// has no case yet.
    pub(super) fn records(&self, seen: &BTreeMap<FindingKey, Seen>) -> Vec<ClusterRecord> {
        let examples = self.lock();
        let record = |(key, seen): (&FindingKey, &Seen)| {
            let example = examples.get(key).cloned().flatten();
            let names = |rows: &Vec<&str>| rows.iter().map(|row| (*row).to_owned()).collect();
            ClusterRecord {
                engine: key.0.engine.clone(),
                mnemonic: key.0.mnemonic.clone(),
                component: key.0.component,
                stops: key.0.stops.clone(),
                count: seen.count,
                accepted: seen.accepted.as_ref().map(names),
                instructions: example.as_ref().map_or(0, |example| example.instructions),
                case: example.map(|example| example.hash),
                first_case: seen.first_case,
                first_seconds: seen.first_seconds,
            }
        };
        seen.iter().map(record).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<FindingKey, Option<Example>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The smallest case found in this time that shows the same finding.
pub fn minimise_finding(
    silicon: &mut Silicon,
    engine: &mut dyn Engine,
    finding: &Finding,
    time: Duration,
) -> Case {
    let case = &finding.divergence.case;
    let mut holds: Box<dyn FnMut(&Case) -> bool> = match &finding.divergence.culprit {
        Culprit::Instruction(instruction) => {
            let mnemonic = instruction.mnemonic();
            Box::new(move |case| shows_alone(silicon, engine, finding, mnemonic, case))
        }
        Culprit::Sequence(_) | Culprit::Unknown => {
            Box::new(|case| shows_in_sequence(silicon, engine, finding, case))
        }
    };
    if !holds(case) {
        // It does not show twice: as found is all there is.
        return case.clone();
    }
    let start = Instant::now();
    minimise(case, MINIMISE_BUDGET, &mut |case| start.elapsed() < time && holds(case)).case
}

/// How many different instructions `case` executes, `nop` and `hlt` left out.
fn executed(silicon: &mut Silicon, case: &Case) -> usize {
    let mut places = HashSet::new();
    let stepped = silicon.step_through(case, MOST_STEPS, |instruction, _| {
        if !matches!(instruction.mnemonic(), Mnemonic::Nop | Mnemonic::Hlt) {
            places.insert(instruction.ip());
        }
    });
    // What silicon cannot step through, it executes all the same.
    stepped.map_or(1, |()| places.len().max(1))
}

/// Whether `case`, which executes one instruction, shows `finding`: no search for a culprit is needed.
fn shows_alone(
    silicon: &mut Silicon,
    engine: &mut dyn Engine,
    finding: &Finding,
    mnemonic: Mnemonic,
    case: &Case,
) -> bool {
    let rip = GuestAddress(case.state.rip);
    let code = case.initial_bytes(rip).unwrap_or_default();
    let instruction = decoder(code, rip.0).decode();
    if instruction.mnemonic() != mnemonic {
        return false;
    }
    let Ok((left, right)) = run_both(silicon, engine, case) else { return false };
    let differences = differences_of(silicon, engine, &instruction, case, (&left, &right));
    if differences.is_empty() {
        return false;
    }
    let culprit = Culprit::Instruction(instruction);
    let executed = vec![instruction];
    let divergence = Divergence {
        culprit,
        executed,
        stops: (left.stop, right.stop),
        differences,
        case: case.clone(),
    };
    is_same(&Finding::new(engine.name(), divergence), finding)
}

fn shows_in_sequence(
    silicon: &mut Silicon,
    engine: &mut dyn Engine,
    finding: &Finding,
    case: &Case,
) -> bool {
    let Ok((reference, outcome)) = run_both(silicon, engine, case) else { return false };
    match judge_outcome(silicon, engine, case, &reference, outcome) {
        EngineVerdict::Differs { findings, .. } => {
            findings.iter().any(|found| is_same(found, finding))
        }
        _ => false,
    }
}

fn is_same(found: &Finding, wanted: &Finding) -> bool {
    found.key == wanted.key && found.row_names() == wanted.row_names()
}
