//! What a campaign has found: one [`Cluster`] for each distinct difference, with its smallest case.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use iced_x86::{Decoder, DecoderOptions, Mnemonic};

use super::Plan;
use super::case_file::write_finding;
use crate::case::Case;
use crate::engine::Engine;
use crate::engine::silicon::Silicon;
use crate::guest::GuestAddress;
use crate::oracle::judge::{ClusterKey, EngineVerdict, Finding, judge_outcome};
use crate::oracle::localise::{Culprit, Divergence, differences_of};
use crate::oracle::minimise::minimise;

/// How often a minimisation may ask, …
const MINIMISE_BUDGET: usize = 600;
/// … and how long it may take: an engine that hangs is slow to answer.
const MINIMISE_TIME: Duration = Duration::from_secs(20);
/// Instructions of a smallest case that are looked at.
const MOST_STEPS: u64 = 4096;

/// One distinct difference.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// How often it was seen.
    pub count: u64,
    /// Number of the first case that showed it.
    pub first_case: u64,
    /// When it was first seen, from the campaign's start on.
    pub first_seen: Duration,
    /// Names of the rows that explain it, if all of what was seen is explained.
    pub accepted: Option<Vec<&'static str>>,
    /// Hash of its smallest case, which is the name of its file.
    pub hash: String,
    /// That case.
    pub case: Case,
    /// How many different instructions it executes on silicon, `nop` and `hlt` left out.
    pub instructions: usize,
}

/// All clusters of a campaign, shared by its workers.
#[derive(Debug)]
pub struct Findings {
    start: Instant,
    clusters: Mutex<BTreeMap<(ClusterKey, bool), Option<Cluster>>>,
}

impl Findings {
    /// None yet, in a campaign that began at `start`.
    pub(super) fn new(start: Instant) -> Self {
        Self { start, clusters: Mutex::default() }
    }

    /// Notes a finding. The first of its cluster is minimised with `(judge, engine)` and written.
    /// What is explained and what is not are different clusters, so that a known difference never
    /// hides an unknown one.
    pub(super) fn note(
        &self,
        number: u64,
        finding: Finding,
        engines: (&mut Silicon, &mut dyn Engine),
        plan: &Plan,
    ) -> io::Result<()> {
        let key = (finding.key.clone(), finding.accepted.is_some());
        {
            let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
            match clusters.get_mut(&key) {
                Some(Some(cluster)) => {
                    cluster.count += 1;
                    return Ok(());
                }
                // Another worker is at it.
                Some(None) => return Ok(()),
                None => drop(clusters.insert(key.clone(), None)),
            }
        }
        let first_seen = self.start.elapsed();
        let (silicon, engine) = engines;
        let case = minimise_finding(silicon, engine, &finding);
        let instructions = executed(silicon, &case);
        let hash = case.content_hash();
        if let Some(out) = &plan.out {
            write_finding(out, &hash, &case, silicon, engine, &finding)?;
        }
        let accepted = finding.row_names();
        let cluster = Cluster {
            count: 1,
            first_case: number,
            first_seen,
            accepted,
            hash,
            case,
            instructions,
        };
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        clusters.insert(key, Some(cluster));
        Ok(())
    }

    /// How many there are, and how many of them are not explained.
    pub(super) fn counts(&self) -> (u64, u64) {
        let clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let unexplained = clusters.keys().filter(|(_, explained)| !explained).count();
        (clusters.len() as u64, unexplained as u64)
    }

    pub(super) fn into_clusters(self) -> Vec<(ClusterKey, Cluster)> {
        let clusters = self.clusters.into_inner().unwrap_or_else(PoisonError::into_inner);
        let finished = |((key, _), cluster): (_, Option<Cluster>)| Some((key, cluster?));
        clusters.into_iter().filter_map(finished).collect()
    }
}

/// The smallest case found that shows the same finding.
pub fn minimise_finding(silicon: &mut Silicon, engine: &mut dyn Engine, finding: &Finding) -> Case {
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
    minimise(case, MINIMISE_BUDGET, &mut |case| start.elapsed() < MINIMISE_TIME && holds(case)).case
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
    let instruction = Decoder::with_ip(64, code, rip.0, DecoderOptions::NONE).decode();
    if instruction.mnemonic() != mnemonic {
        return false;
    }
    let (Ok(left), Ok(right)) = (silicon.run(case), engine.run(case)) else { return false };
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
        case: Case::default(),
    };
    is_same(&Finding::new(engine.name(), divergence), finding)
}

fn shows_in_sequence(
    silicon: &mut Silicon,
    engine: &mut dyn Engine,
    finding: &Finding,
    case: &Case,
) -> bool {
    let (Ok(reference), Ok(outcome)) = (silicon.run(case), engine.run(case)) else { return false };
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
