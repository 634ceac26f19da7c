//! What a campaign has found: one [`Cluster`] for each distinct difference, with its smallest case.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};

use super::Plan;
use super::case_file::write_finding;
use crate::case::Case;
use crate::engine::Engine;
use crate::engine::silicon::Silicon;
use crate::oracle::judge::{ClusterKey, EngineVerdict, Finding, judge_outcome};
use crate::oracle::localise::Culprit;
use crate::oracle::minimise::minimise;

/// How often a minimisation may ask.
const MINIMISE_BUDGET: usize = 600;

/// One distinct difference.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// How often it was seen.
    pub count: u64,
    /// Number of the first case that showed it.
    pub first_case: u64,
    /// Names of the rows that explain it, if all of what was seen is explained.
    pub accepted: Option<Vec<&'static str>>,
    /// Hash of its smallest case, which is the name of its file.
    pub hash: String,
    /// That case.
    pub case: Case,
}

/// All clusters of a campaign, shared by its workers.
#[derive(Debug, Default)]
pub struct Findings {
    clusters: Mutex<BTreeMap<(ClusterKey, bool), Option<Cluster>>>,
}

impl Findings {
    /// Notes a finding. The first of its cluster is minimised with `(judge, engine)` and written.
    /// What is explained and what is not are different clusters, so that a known difference never
    /// hides an unknown one.
    pub(super) fn note(
        &self,
        number: u64,
        finding: Finding,
        engines: (&mut Silicon, &mut (dyn Engine + Send)),
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
        let (silicon, engine) = engines;
        let case = minimise_finding(silicon, engine, &finding);
        let hash = case.content_hash();
        if let Some(out) = &plan.out {
            write_finding(out, &hash, &case, silicon, engine, &finding)?;
        }
        let accepted = finding.accepted.map(|rows| rows.iter().map(|row| row.name).collect());
        let cluster = Cluster { count: 1, first_case: number, accepted, hash, case };
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
pub fn minimise_finding(
    silicon: &mut Silicon,
    engine: &mut (dyn Engine + Send),
    finding: &Finding,
) -> Case {
    let same = |found: &Finding| {
        found.key == finding.key && found.accepted.is_some() == finding.accepted.is_some()
    };
    // Where one instruction alone is to blame, a case is small that has nothing else.
    let alone = matches!(finding.divergence.culprit, Culprit::Instruction(_));
    let mut holds = |case: &Case| {
        let Ok(reference) = silicon.run(case) else { return false };
        let Ok(outcome) = engine.run(case) else { return false };
        match judge_outcome(silicon, engine, case, &reference, outcome) {
            EngineVerdict::Differs { findings, .. } => {
                findings.iter().any(same) && (!alone || findings.len() == 1)
            }
            EngineVerdict::Agrees | EngineVerdict::Unsupported(_) => false,
        }
    };
    let case = &finding.divergence.case;
    if !holds(case) {
        // It does not show twice: as found is all there is.
        return case.clone();
    }
    minimise(case, MINIMISE_BUDGET, &mut holds).case
}
