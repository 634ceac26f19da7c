//! [`Evidence`]: a cluster with its case, run once more on silicon, on the engine that differs and on the
//! JIT; [`Witnesses`] are the engines.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use super::MakeEngine;
use super::timeline::Timeline;
use crate::campaign::{ClusterRecord, Summary};
use crate::case::{Case, Outcome, text};
use crate::concurrent::is_scene;
use crate::engine::Engine;
use crate::engine::jit::Jit;
use crate::engine::silicon::{Silicon, Step};
use crate::oracle::{Difference, compare};

/// Instructions that are traced at most; a case that was made small has few.
const MOST_STEPS: u64 = 256;

/// What can be shown of a cluster.
pub(super) struct Evidence<'a> {
    pub cluster: &'a ClusterRecord,
    /// Its case and what came of it, or why there is none.
    pub exhibit: Result<Exhibit, String>,
}

/// A case that was run again.
pub(super) struct Exhibit {
    pub case: Case,
    /// What the file says above the case: how it looked when it was found.
    pub notes: Vec<String>,
    /// What silicon executed, in order.
    pub steps: Vec<Step>,
    /// Both ends of the run, or why they cannot be had here.
    pub comparison: Result<Comparison, String>,
    /// What the JIT did with it.
    pub timeline: Result<Timeline, String>,
}

/// How a case ended on silicon and on the other engine.
pub(super) struct Comparison {
    pub silicon: Outcome,
    pub engine: Outcome,
    pub differences: Vec<Difference>,
}

/// Clusters as they are read: what is not explained first, then what was seen most.
pub(super) fn in_order(summary: &Summary) -> Vec<&ClusterRecord> {
    let mut clusters: Vec<_> = summary.clusters.iter().collect();
    clusters.sort_by_key(|cluster| (cluster.accepted.is_some(), Reverse(cluster.count)));
    clusters
}

/// See the file's head.
pub(super) struct Witnesses<'a> {
    silicon: Silicon,
    make_engine: MakeEngine<'a>,
    engines: BTreeMap<String, Result<Box<dyn Engine>, String>>,
}

impl<'a> Witnesses<'a> {
    pub(super) fn new(make_engine: MakeEngine<'a>) -> io::Result<Self> {
        Ok(Self { silicon: Silicon::new()?, make_engine, engines: BTreeMap::new() })
    }

    /// Runs the case of a cluster.
    pub(super) fn hear<'c>(&mut self, folder: &Path, cluster: &'c ClusterRecord) -> Evidence<'c> {
        let exhibit = read_case(folder, cluster).map(|(case, notes)| {
            let trace = self.silicon.trace(&case, MOST_STEPS);
            let steps = trace.map(|trace| trace.steps).unwrap_or_default();
            let comparison = self.compare(&case, &cluster.engine);
            let timeline = timeline(&case, &steps);
            Exhibit { case, notes, steps, comparison, timeline }
        });
        Evidence { cluster, exhibit }
    }

    fn compare(&mut self, case: &Case, name: &str) -> Result<Comparison, String> {
        let make = || (self.make_engine)(name).map_err(|error| error.to_string());
        let engine = self.engines.entry(name.to_owned()).or_insert_with(make);
        let engine = engine.as_mut().map_err(|why| why.clone())?;
        let silicon = self.silicon.run(case).map_err(|why| format!("silicon: {why}"))?;
        let outcome = engine.run(case).map_err(|why| format!("{name}: {why}"))?;
        let visible = self.silicon.capabilities().visible.common(engine.capabilities().visible);
        let differences = compare(case, &silicon, &outcome, visible);
        Ok(Comparison { silicon, engine: outcome, differences })
    }
}

/// Runs `case` on a JIT of its own, which has no code of other cases to take over.
fn timeline(case: &Case, steps: &[Step]) -> Result<Timeline, String> {
    let mut jit = Jit::new().map_err(|error| error.to_string())?;
    jit.note_progress(true);
    jit.run(case).map_err(|why| why.to_string())?;
    Ok(Timeline::new(case, jit.progress(), steps))
}

fn read_case(folder: &Path, cluster: &ClusterRecord) -> Result<(Case, Vec<String>), String> {
    let hash =
        cluster.case.as_ref().ok_or("the campaign was cut off while its case was made small")?;
    let path = folder.join(format!("{hash}.case"));
    let file = fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    if is_scene(&file) {
        return Err(format!("it has two vCPUs; `tregion replay {}` runs it again", path.display()));
    }
    let case = text::parse(&file).map_err(|error| format!("{}: {error}", path.display()))?;
    let notes = file.lines().map_while(|line| line.strip_prefix('#'));
    Ok((case, notes.map(|line| line.strip_prefix(' ').unwrap_or(line).to_owned()).collect()))
}
