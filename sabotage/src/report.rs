//! [`Report`]: what is known of each bug, as a table on the terminal, as `target/sabotage.json`, and as
//! `docs/sabotage.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::bug::Bug;
use crate::hunt::{Outcome, Verdict};

/// See the file's head.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Report {
    machine: String,
    bugs: BTreeMap<String, Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    breaks: String,
    invariant: String,
    found_by: String,
    outcome: Outcome,
}

fn file(target: &Path) -> PathBuf {
    target.join("sabotage.json")
}

impl Report {
    /// What earlier runs have noted of bugs that are still there.
    pub(crate) fn read(target: &Path, bugs: &[Bug]) -> Result<Self, String> {
        let mut report = match fs::read(file(target)) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                format!("{}: {error}; remove it to begin anew", file(target).display())
            })?,
            Err(_) => Self { machine: String::new(), bugs: BTreeMap::new() },
        };
        report.machine = machine();
        report.bugs.retain(|name, _| bugs.iter().any(|bug| bug.name() == name));
        Ok(report)
    }

    pub(crate) fn note(&mut self, bug: &Bug, outcome: &Outcome) {
        let entry = Entry {
            breaks: bug.breaks.clone(),
            invariant: bug.invariant.clone(),
            found_by: bug.found_by.clone(),
            outcome: outcome.clone(),
        };
        self.bugs.insert(bug.name().to_owned(), entry);
    }

    pub(crate) fn write(&self, target: &Path) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())? + "\n";
        fs::write(file(target), text).map_err(|error| error.to_string())
    }

    /// Writes `docs/sabotage.md`.
    pub(crate) fn write_document(&self, root: &Path) -> Result<(), String> {
        let outcomes: Vec<Outcome> =
            self.bugs.values().map(|entry| entry.outcome.clone()).collect();
        let mut text = format!("{INTRODUCTION}\nOn {}:\n\n", self.machine);
        // Writing to a string cannot fail.
        let _ = writeln!(text, "`{}`\n\n{TABLE_HEAD}", last_line(&outcomes));
        for (name, entry) in &self.bugs {
            let Entry { breaks, invariant, found_by, outcome } = entry;
            let number = |number: u64| match number {
                0 => "–".to_owned(),
                number => number.to_string(),
            };
            let (cases, instructions) = (number(outcome.cases), number(outcome.instructions));
            let verdict = verdict(outcome);
            let _ = writeln!(
                text,
                "| `{name}` | {breaks} | {invariant} | {verdict} | {found_by} | {cases} | {:.1} | \
                 {instructions} |",
                outcome.seconds
            );
        }
        let path = root.join("docs/sabotage.md");
        fs::write(&path, text).map_err(|error| format!("{path:?}: {error}"))
    }
}

const INTRODUCTION: &str = "\
# Sabotage

Deliberate bugs in translator, memory, regions and run loop, one patch each (`tests/mutants/engine`), and how
long a campaign takes to find them. `make sabotage` applies each to a copy of the project, builds the command
line and runs `tregion fuzz --engines silicon,isolated:jit --seed 1 --seconds 60 --workers 1 --stop-at-first`;
`make sabotage ONLY=name` does so for one. What cases cannot express (several vCPUs, snapshots, hooks, devices) is
found by the test that the row names. This page is made by `make sabotage-document` of
what the last runs have left in the target folder.

*Cases* and *seconds* are those up to the first difference that is not a known one, the search for its culprit
included; *size* is the number of instructions that the smallest case found for it executes. A *hang* is found by
the engine's own watchdog, or because the engine's process gave no answer in its time; a campaign or a test that has
to be stopped from outside has found nothing. Some bugs are in what not all
processors do ([hosts](hosts.md)): their heads say so, and on other hosts they are left out.
";

const TABLE_HEAD: &str = "\
| bug | what is wrong | breaks | verdict | found by | cases | seconds | size |
|---|---|---|---|---|---|---|---|";

pub(crate) fn print_head() {
    println!(
        "{:<44} {:<10} {:>8} {:>8} {:>5}  first difference",
        "bug", "", "cases", "seconds", "size"
    );
}

pub(crate) fn print_line(bug: &Bug, outcome: &Outcome) {
    let Outcome { what, cases, seconds, instructions, .. } = outcome;
    let verdict = verdict(outcome);
    println!(
        "{:<44} {verdict:<10} {cases:>8} {seconds:>8.1} {instructions:>5}  {what}",
        bug.name()
    );
}

fn verdict(outcome: &Outcome) -> &'static str {
    match outcome.verdict {
        Verdict::NotFound => "NOT FOUND",
        Verdict::Found => "found",
        Verdict::Hang => "hang",
    }
}

/// `sabotage: N bugs, K found, H of them by a hang, median S s, worst W s`, the times of those that are found.
pub(crate) fn last_line(outcomes: &[Outcome]) -> String {
    let found = outcomes.iter().filter(|outcome| outcome.is_found());
    let mut times: Vec<f64> = found.map(|outcome| outcome.seconds).collect();
    let hangs = outcomes.iter().filter(|outcome| outcome.verdict == Verdict::Hang).count();
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let worst = times.last().copied().unwrap_or_default();
    format!(
        "sabotage: {} bugs, {} found, {hangs} of them by a hang, median {median:.1} s, worst {worst:.1} s",
        outcomes.len(),
        times.len()
    )
}

/// What the kernel says of the first processor.
pub(crate) fn of_processor(what: &str) -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(what)?.split_once(": "));
    value.map_or("unknown", |(_, value)| value).to_owned()
}

/// The processor's name, and how many there are.
fn machine() -> String {
    let model = of_processor("model name");
    let count = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{model}, {count} logical processors, of which a campaign uses one")
}
