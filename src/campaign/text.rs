//! A summary as text for a terminal, which says first whether anything was found.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::summary::{ALL, ClusterRecord, MINIMISE, SEARCH, Summary, share};

/// Clusters that are listed, so that all fits a screen.
const MAX_CLUSTER_LINES: usize = 24;

impl Summary {
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
            "run to completion: {} of {} forms, {} mnemonics, {} pairs of them",
            self.forms, self.forms_in_reach, self.mnemonics, self.mnemonic_pairs
        );
        let _ = writeln!(
            text,
            "events applied: {} ({}); code changed and run again in {} of {} cases traced for it",
            self.events_applied,
            most(&self.actions, 7),
            self.changed_and_rerun,
            self.traced
        );
        self.line_of_two_vcpus(&mut text);
        let _ = writeln!(
            text,
            "differed only in undefined results: {}; as known differences do, not searched: {}; \
             searched: {}; made small: {}",
            self.only_undefined,
            self.plausible,
            self.share_of_time(SEARCH),
            self.share_of_time(MINIMISE)
        );
        let _ = writeln!(text, "stops: {}", most(&self.stops, 8));
        let _ = writeln!(text, "refused: {}", most(&self.refused, 5));
        self.cluster_lines(&mut text);
        text
    }

    /// How many cases some work was done on, and in what part of the time.
    fn share_of_time(&self, work: &str) -> String {
        let done = self.work.get(work).copied().unwrap_or_default();
        format!("{} in {:.0} % of the time", done.cases, self.percent_of_time(done.seconds))
    }

    fn percent_of_time(&self, seconds: f64) -> f64 {
        let all = self.runs.get(ALL).map_or(0.0, |all| all.seconds);
        if all > 0.0 { 100.0 * seconds / all } else { 0.0 }
    }

    fn verdict(&self) -> String {
        match (self.differences, self.unexplained) {
            _ if self.compared == 0 => "NOTHING WAS COMPARED\n".to_owned(),
            (0, _) => "NO DIFFERENCE FOUND\n".to_owned(),
            (known, 0) => format!("NO UNEXPLAINED DIFFERENCE, {known} known ones\n"),
            (all, new) => format!("{new} UNEXPLAINED of {all} distinct differences\n"),
        }
    }

    fn line_of_two_vcpus(&self, text: &mut String) {
        let counts = &self.two_vcpus;
        if counts.scenes == 0 {
            return;
        }
        let part = self.percent_of_time(counts.seconds);
        let _ = writeln!(
            text,
            "two vCPUs: {} scenes in {part:.0} % of the time, {} of which ended in several ways; {} rounds: \
             {} overlapped for certain, {} changed code that the other ran",
            counts.scenes,
            counts.scenes_with_several,
            counts.rounds,
            counts.overlapping_rounds,
            counts.changing_rounds
        );
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
            let case = cluster.case.as_ref();
            let case = case.map_or("no case yet".to_owned(), |hash| format!("{hash}.case"));
            let _ = writeln!(text, "  {:>8} × {}  {case}  {known}", cluster.count, cluster.key());
        }
        if clusters.len() > MAX_CLUSTER_LINES {
            let _ = writeln!(text, "  … and {} more", clusters.len() - MAX_CLUSTER_LINES);
        }
    }
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
