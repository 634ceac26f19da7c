//! What is left of a campaign: figures as JSON.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::folder::{FileError, at};
use super::{Ledger, Plan, Samples, Tally};
use crate::concurrent::Counts;
use crate::generate::Generator;
use crate::oracle::compare::ComponentClass;
use crate::oracle::judge::{ClusterKey, Cost};

/// Name of the file in a campaign's folder.
pub(super) const FILE: &str = "summary.json";
/// What the runs of all engines together are called.
pub(super) const ALL: &str = "all";
/// Names of kinds of [`Summary::work`].
pub(super) const SEARCH: &str = "search";
pub(super) const MINIMISE: &str = "minimise";
/// Name of the kind of program that has no structure.
const RAW: &str = "Raw";

/// One distinct difference, as it is kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterRecord {
    /// Who differs from silicon.
    pub engine: String,
    /// At which mnemonic.
    pub mnemonic: String,
    /// In which component first.
    pub component: ComponentClass,
    /// If that is the stop: both stops, silicon's first.
    pub stops: Option<(String, String)>,
    /// How often it was seen.
    pub count: u64,
    /// Rows of the table of accepted differences that explain it; null if it is not explained.
    pub accepted: Option<Vec<String>>,
    /// Hash of its case, whose file is `<hash>.case`. Null if the campaign was cut off while the case was
    /// made small; it has one when the campaign has gone on.
    pub case: Option<String>,
    /// Number of the first case of the seed that showed it.
    pub first_case: u64,
    /// Seconds from the campaign's start until it was first seen.
    #[serde(default)]
    pub first_seconds: f64,
    /// How many different instructions its case executes, `nop` and `hlt` left out.
    #[serde(default)]
    pub instructions: u64,
}

/// Runs of an engine, or all of a campaign.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Runs {
    /// Cases.
    pub cases: u64,
    /// Seconds that they took, summed over the threads that ran them.
    pub seconds: f64,
}

impl Runs {
    fn of(cost: &Cost) -> Self {
        Self { cases: cost.cases, seconds: cost.time.as_secs_f64() }
    }

    fn rate(self) -> f64 {
        if self.seconds > 0.0 { self.cases as f64 / self.seconds } else { 0.0 }
    }
}

/// Figures of a campaign.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Engines, the judge first.
    pub engines: Vec<String>,
    /// Seed.
    pub seed: u64,
    /// Shards that are in it, as `k/n`.
    pub shards: BTreeSet<String>,
    /// Time on the clock, summed over merged campaigns.
    pub seconds: f64,
    /// Cases judged.
    pub cases: u64,
    /// Runs of engines that were compared with silicon's.
    pub compared: u64,
    /// Each engine's runs by themselves, and `all` of it together.
    #[serde(default)]
    pub runs: BTreeMap<String, Runs>,
    /// Cases on which other work was done, and the time that it took: searches for culprits, and making
    /// the examples of distinct differences small.
    #[serde(default)]
    pub work: BTreeMap<String, Runs>,
    /// Cases a second on one core: each engine's runs by themselves, and `all` of it together.
    pub cases_per_second_per_core: BTreeMap<String, f64>,
    /// Distinct differences.
    pub differences: u64,
    /// Distinct differences that the table of accepted ones does not explain.
    pub unexplained: u64,
    /// Distinct mnemonic × operand forms run to completion.
    pub forms: u64,
    /// How many forms the generator can make on this host.
    pub forms_in_reach: u64,
    /// Distinct mnemonics run to completion.
    pub mnemonics: u64,
    /// Cases that ended at their final `hlt`.
    pub reached_end: u64,
    /// Those of them that are structured programs.
    #[serde(default)]
    pub programs_reached_end: u64,
    /// Share of the structured programs that did.
    pub programs_reached_end_share: f64,
    /// What was refused, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Of the cases traced for it, those in which executed code changed and was executed again.
    pub changed_and_rerun: u64,
    /// Cases traced for it.
    pub traced: u64,
    /// Cases in which an engine differed only in what the manual leaves undefined.
    pub only_undefined: u64,
    /// Cases in which an engine differed as its known differences do, and that were not searched for
    /// the culprit.
    pub plausible: u64,
    /// Events applied.
    pub events_applied: u64,
    /// What the host did in them, by kind.
    #[serde(default)]
    pub actions: BTreeMap<String, u64>,
    /// Scenes of two vCPUs in one memory, which are run beside the cases.
    #[serde(default)]
    pub two_vcpus: Counts,
    /// Cases by kind of program.
    pub kinds: BTreeMap<String, u64>,
    /// How silicon's runs ended.
    pub stops: BTreeMap<String, u64>,
    /// The distinct differences.
    pub clusters: Vec<ClusterRecord>,
    /// The forms run to completion and how often.
    pub form_counts: BTreeMap<String, u64>,
    /// The forms in reach that were not.
    #[serde(default)]
    pub forms_not_run: BTreeSet<String>,
    /// Distinct pairs of mnemonics that were executed one behind the other.
    #[serde(default)]
    pub mnemonic_pairs: u64,
    /// How many cases were done after how many seconds; at most some hundred points of time.
    #[serde(default)]
    pub samples: Samples,
    /// Says which generator has made the cases: a hash of the first ones.
    #[serde(default)]
    pub generator: String,
    /// Which cases are done, by their position in the shard. Null if several campaigns were merged.
    #[serde(default)]
    pub ledger: Option<Ledger>,
}

/// What is the same in all summaries of a campaign.
pub(super) struct Names {
    /// By the number of the form.
    forms: Vec<String>,
    in_reach: BTreeSet<String>,
    generator: String,
}

impl Names {
    pub(super) fn new(generator: &Generator, fingerprint: String) -> Self {
        let forms: Vec<String> = generator.forms().iter().map(ToString::to_string).collect();
        Self { in_reach: forms.iter().cloned().collect(), forms, generator: fingerprint }
    }
}

/// What was done in one go.
pub(super) struct Part {
    pub tally: Tally,
    pub clusters: Vec<ClusterRecord>,
    pub elapsed: Duration,
    pub samples: Samples,
}

impl ClusterRecord {
    /// What makes it the same as a cluster of another campaign.
    #[must_use]
    pub fn key(&self) -> ClusterKey {
        ClusterKey {
            engine: self.engine.clone(),
            mnemonic: self.mnemonic.clone(),
            component: self.component,
            stops: self.stops.clone(),
        }
    }
}

impl Summary {
    /// Figures of a plan of which nothing has been done.
    pub(super) fn of_nothing(plan: &Plan, generator: &str) -> Self {
        let judge = std::iter::once("silicon".to_owned());
        Self {
            engines: judge.chain(plan.engines.iter().cloned()).collect(),
            seed: plan.seed,
            shards: [shard_name(plan.shard)].into(),
            generator: generator.to_owned(),
            ..Self::default()
        }
    }

    pub(super) fn new(plan: &Plan, names: &Names, part: Part) -> Self {
        let Part { tally, clusters, elapsed, samples } = part;
        let mut form_counts = BTreeMap::new();
        for (form, count) in tally.forms.iter() {
            *form_counts.entry(names.forms[usize::from(form.0)].clone()).or_default() += count;
        }
        let was_run = |form: &String| form_counts.contains_key(form);
        let forms_not_run = names.in_reach.iter().filter(|form| !was_run(form)).cloned().collect();
        let nothing = Self::of_nothing(plan, &names.generator);
        let mut runs: BTreeMap<String, Runs> = nothing
            .engines
            .iter()
            .zip(&tally.costs)
            .map(|(name, cost)| (name.clone(), Runs::of(cost)))
            .collect();
        let seconds = elapsed.as_secs_f64();
        let all = Runs { cases: tally.cases, seconds: seconds * plan.workers as f64 };
        runs.insert(ALL.to_owned(), all);
        let work = [(SEARCH, tally.searches), (MINIMISE, tally.minimising)];
        Self {
            runs,
            work: work.map(|(name, cost)| (name.to_owned(), Runs::of(&cost))).into(),
            seconds,
            samples,
            cases: tally.cases,
            compared: tally.compared,
            forms_in_reach: names.in_reach.len() as u64,
            reached_end: tally.reached_end,
            programs_reached_end: tally.programs_reached_end,
            refused: tally.refused,
            changed_and_rerun: tally.changed_and_rerun,
            traced: tally.traced,
            only_undefined: tally.only_undefined,
            plausible: tally.plausible,
            events_applied: tally.events_applied,
            actions: owned(tally.actions),
            two_vcpus: tally.two_vcpus,
            kinds: tally.kinds.iter().map(|(kind, count)| (format!("{kind:?}"), *count)).collect(),
            stops: tally.stops.by_kind(),
            clusters,
            form_counts,
            forms_not_run,
            ..nothing
        }
        .derived()
    }

    /// With those figures that follow from the others.
    pub(super) fn derived(mut self) -> Self {
        let rate = |(name, runs): (&String, &Runs)| (name.clone(), runs.rate());
        self.cases_per_second_per_core = self.runs.iter().map(rate).collect();
        let raw = self.kinds.get(RAW).copied().unwrap_or(0);
        self.programs_reached_end_share =
            share(self.programs_reached_end, self.cases.saturating_sub(raw));
        self.forms = self.form_counts.len() as u64;
        // The first word of a form is its mnemonic.
        let mnemonics = self.form_counts.keys().filter_map(|form| form.split(' ').next());
        self.mnemonics = mnemonics.collect::<BTreeSet<_>>().len() as u64;
        self.differences = self.clusters.len() as u64;
        let unexplained = self.clusters.iter().filter(|cluster| cluster.accepted.is_none());
        self.unexplained = unexplained.count() as u64;
        self
    }

    /// Reads the figures of a campaign's folder.
    pub fn read(folder: &Path) -> Result<Self, FileError> {
        let path = folder.join(FILE);
        let text = fs::read_to_string(&path).map_err(at(&path))?;
        serde_json::from_str(&text).map_err(|error| at(&path)(error.into()))
    }
}

fn owned(counts: BTreeMap<&str, u64>) -> BTreeMap<String, u64> {
    counts.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

/// How a shard is written.
pub(super) fn shard_name((part, of): (u64, u64)) -> String {
    format!("{part}/{of}")
}

/// `part` of `whole`, zero of nothing.
pub(super) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
