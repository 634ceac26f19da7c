//! What is left of a campaign: figures as JSON, and a text that says first whether anything was found.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Cluster, Plan, Tally};
use crate::generate::Generator;
use crate::oracle::compare::ComponentClass;
use crate::oracle::judge::ClusterKey;

/// Name of the file in a campaign's folder.
pub(super) const FILE: &str = "summary.json";

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
    /// Hash of its case, whose file is `<hash>.case`.
    pub case: String,
    /// Number of the first case of the seed that showed it.
    pub first_case: u64,
    /// Seconds from the campaign's start until it was first seen.
    #[serde(default)]
    pub first_seconds: f64,
    /// How many different instructions its case executes, `nop` and `hlt` left out.
    #[serde(default)]
    pub instructions: u64,
}

/// Figures of a campaign.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    pub(super) fn new(
        plan: &Plan,
        generator: &Generator,
        tally: Tally,
        clusters: Vec<(ClusterKey, Cluster)>,
        elapsed: Duration,
    ) -> Self {
        let engines: Vec<String> =
            std::iter::once("silicon".to_owned()).chain(plan.engines.iter().cloned()).collect();
        let mut form_counts = BTreeMap::new();
        let mut mnemonics = BTreeSet::new();
        for (form, count) in tally.forms.iter() {
            let form = generator.forms()[usize::from(form.0)];
            *form_counts.entry(form.to_string()).or_default() += count;
            mnemonics.insert(form.code.mnemonic());
        }
        let in_reach: BTreeSet<String> =
            generator.forms().iter().map(ToString::to_string).collect();
        let was_run = |form: &String| form_counts.contains_key(form);
        let forms_not_run = in_reach.iter().filter(|form| !was_run(form)).cloned().collect();
        let clusters: Vec<ClusterRecord> = clusters.into_iter().map(record).collect();
        let raw = tally.kinds.get(&crate::generate::ProgramKind::Raw).copied().unwrap_or(0);
        Self {
            cases_per_second_per_core: rates(plan, &engines, &tally, elapsed),
            engines,
            seed: plan.seed,
            shards: [format!("{}/{}", plan.shard.0, plan.shard.1)].into(),
            seconds: elapsed.as_secs_f64(),
            cases: tally.cases,
            compared: tally.compared,
            differences: clusters.len() as u64,
            unexplained: clusters.iter().filter(|cluster| cluster.accepted.is_none()).count()
                as u64,
            forms: form_counts.len() as u64,
            forms_in_reach: in_reach.len() as u64,
            mnemonics: mnemonics.len() as u64,
            reached_end: tally.reached_end,
            programs_reached_end_share: share(tally.programs_reached_end, tally.cases - raw),
            refused: tally.refused,
            changed_and_rerun: tally.changed_and_rerun,
            traced: tally.traced,
            only_undefined: tally.only_undefined,
            plausible: tally.plausible,
            events_applied: tally.events_applied,
            kinds: tally.kinds.iter().map(|(kind, count)| (format!("{kind:?}"), *count)).collect(),
            stops: tally.stops.by_kind(),
            clusters,
            form_counts,
            forms_not_run,
        }
    }

    /// Writes the figures into a campaign's folder, whole or not at all.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let partial = folder.join(format!("{FILE}.partial"));
        fs::write(&partial, serde_json::to_string_pretty(self)? + "\n")?;
        fs::rename(partial, folder.join(FILE))
    }

    /// Reads the figures of a campaign's folder.
    pub fn read(folder: &Path) -> io::Result<Self> {
        Ok(serde_json::from_str(&fs::read_to_string(folder.join(FILE))?)?)
    }

    /// At most 40 lines for a terminal; the first says whether anything was found.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.verdict();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{} cases in {:.1} s, seed {}, shard {}",
            self.cases,
            self.seconds,
            self.seed,
            self.shards.iter().cloned().collect::<Vec<_>>().join(" ")
        );
        let rates = self.cases_per_second_per_core.iter();
        let rates: Vec<String> = rates.map(|(name, rate)| format!("{name} {rate:.0}")).collect();
        let _ = writeln!(text, "cases/s on one core: {}", rates.join(", "));
        let _ = writeln!(
            text,
            "reached their final hlt: {:.1} % of all, {:.1} % of structured programs",
            100.0 * share(self.reached_end, self.cases),
            100.0 * self.programs_reached_end_share
        );
        let _ = writeln!(
            text,
            "run to completion: {} of {} forms, {} mnemonics",
            self.forms, self.forms_in_reach, self.mnemonics
        );
        let _ = writeln!(
            text,
            "events applied: {}; code changed and run again in {} of {} cases traced for it",
            self.events_applied, self.changed_and_rerun, self.traced
        );
        let _ = writeln!(
            text,
            "differed only in undefined results: {}; as known differences do, not searched: {}",
            self.only_undefined, self.plausible
        );
        let _ = writeln!(text, "stops: {}", most(&self.stops, 8));
        let _ = writeln!(text, "refused: {}", most(&self.refused, 5));
        self.cluster_lines(&mut text);
        text
    }

    fn verdict(&self) -> String {
        match (self.differences, self.unexplained) {
            _ if self.compared == 0 => "NOTHING WAS COMPARED\n".to_owned(),
            (0, _) => "NO DIFFERENCE FOUND\n".to_owned(),
            (known, 0) => format!("NO UNEXPLAINED DIFFERENCE, {known} known ones\n"),
            (all, new) => format!("{new} UNEXPLAINED of {all} distinct differences\n"),
        }
    }

    fn cluster_lines(&self, text: &mut String) {
        let mut clusters: Vec<&ClusterRecord> = self.clusters.iter().collect();
        clusters
            .sort_by_key(|cluster| (cluster.accepted.is_some(), std::cmp::Reverse(cluster.count)));
        for cluster in clusters.iter().take(MAX_CLUSTER_LINES) {
            let known = match &cluster.accepted {
                Some(rows) => format!("accepted: {}", rows.join(", ")),
                None => "UNEXPLAINED".to_owned(),
            };
            let _ = writeln!(
                text,
                "  {:>8} × {}  {}.case  {known}",
                cluster.count,
                cluster.key(),
                cluster.case
            );
        }
        if clusters.len() > MAX_CLUSTER_LINES {
            let _ = writeln!(text, "  … and {} more", clusters.len() - MAX_CLUSTER_LINES);
        }
    }
}

const MAX_CLUSTER_LINES: usize = 24;

fn record((key, cluster): (ClusterKey, Cluster)) -> ClusterRecord {
    ClusterRecord {
        engine: key.engine,
        mnemonic: key.mnemonic,
        component: key.component,
        stops: key.stops,
        count: cluster.count,
        accepted: cluster.accepted.map(|rows| rows.into_iter().map(str::to_owned).collect()),
        case: cluster.hash,
        first_case: cluster.first_case,
        first_seconds: cluster.first_seen.as_secs_f64(),
        instructions: cluster.instructions as u64,
    }
}

fn rates(
    plan: &Plan,
    engines: &[String],
    tally: &Tally,
    elapsed: Duration,
) -> BTreeMap<String, f64> {
    let mut rates: BTreeMap<String, f64> = engines
        .iter()
        .zip(&tally.costs)
        .map(|(name, cost)| (name.clone(), share_of_time(cost.cases, cost.time)))
        .collect();
    let all = share_of_time(tally.cases, elapsed * u32::try_from(plan.workers).unwrap_or(1));
    rates.insert("all".to_owned(), all);
    rates
}

fn share_of_time(cases: u64, time: Duration) -> f64 {
    if time.is_zero() { 0.0 } else { cases as f64 / time.as_secs_f64() }
}

/// `part` of `whole`, zero of nothing.
pub(super) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The `count` largest entries, as text.
fn most(counts: &BTreeMap<String, u64>, count: usize) -> String {
    let mut entries: Vec<_> = counts.iter().collect();
    entries.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let shown: Vec<String> =
        entries.iter().take(count).map(|(name, count)| format!("{name} {count}")).collect();
    let more = entries.len().saturating_sub(count);
    let tail = if more > 0 { format!(", … {more} more") } else { String::new() };
    if shown.is_empty() { "nothing".to_owned() } else { shown.join(", ") + &tail }
}
