//! [`Hunt`]: a campaign or a test on a program with one bug in it, and what came of it ([`Outcome`]).
//!
//! The engine runs in a process of its own, so that a bug that crashes it is a difference as any other is.
//! So is one that hangs it, if the project's own means say so: the engine's watchdog, the worker's time for an
//! answer, a test's own limit. What is only stopped from here, because it does not end, has found nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tregion_mutants::{Ended, run_within};

use crate::bug::Test;
use crate::workshop::Workshop;

/// How long a campaign looks for a difference.
const TIME: Duration = Duration::from_secs(60);
/// How long it may take to make the case of one small, and to end.
const SLACK: Duration = Duration::from_secs(120);
const LIMIT_TEST: Duration = Duration::from_secs(50);
/// Stops, as a campaign writes them, that mean a hang: the engine's watchdog ended the guest, or the engine's
/// process did not answer in its time.
const HANGS: [&str; 2] = ["time limit", "engine hung"];

/// Whether a bug was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    #[default]
    NotFound,
    Found,
    /// By a guest that ran on, or an engine that gave no answer.
    Hang,
}

fn found_if(fails: bool) -> Verdict {
    if fails { Verdict::Found } else { Verdict::NotFound }
}

/// What is known of a bug.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) verdict: Verdict,
    /// Where it shows, or why it does not.
    pub(crate) what: String,
    /// Cases up to the first that differs; 0 for a test.
    pub(crate) cases: u64,
    /// Until then.
    pub(crate) seconds: f64,
    /// Instructions of the smallest case found; 0 for a test.
    pub(crate) instructions: u64,
}

/// Of a campaign's figures, those that are wanted.
#[derive(Debug, Deserialize)]
struct Summary {
    cases: u64,
    seconds: f64,
    clusters: Vec<Cluster>,
}

#[derive(Debug, Deserialize)]
struct Cluster {
    mnemonic: String,
    component: serde_json::Value,
    stops: Option<(String, String)>,
    accepted: Option<Vec<String>>,
    first_case: u64,
    first_seconds: f64,
    instructions: u64,
}

impl Outcome {
    pub(crate) fn is_found(&self) -> bool {
        self.verdict != Verdict::NotFound
    }

    /// It could not be looked for.
    pub(crate) fn failed(why: String) -> Self {
        Self { what: why, ..Self::default() }
    }
}

/// A folder for what one bug's campaign or test leaves.
#[derive(Debug)]
pub(crate) struct Hunt {
    folder: PathBuf,
}

impl Hunt {
    pub(crate) fn new(workshop: &Workshop, name: &str) -> Self {
        Self { folder: workshop.target.join("sabotage-found").join(name) }
    }

    /// Runs a campaign until the first difference.
    pub(crate) fn campaign(&self, program: &Path) -> Outcome {
        let mut command = Command::new(program);
        command.args(["fuzz", "--engines", "silicon,isolated:jit", "--workers", "1"]);
        command.args(["--stop-at-first", "--seconds", &TIME.as_secs().to_string()]);
        command.arg("--out").arg(&self.folder);
        let limit = TIME + SLACK;
        let Ended { status, seconds } = match self.run(command, limit) {
            Err(why) => return Outcome::failed(why),
            Ok(ended) => ended,
        };
        let Some(status) = status else {
            return Outcome::failed("the campaign does not end".to_owned());
        };
        self.read().unwrap_or_else(|why| Outcome {
            // The judge's process went down with it.
            verdict: found_if(status.code().is_none()),
            what: format!("{status}; {why}"),
            seconds,
            ..Outcome::default()
        })
    }

    fn read(&self) -> Result<Outcome, String> {
        let text = fs::read(self.folder.join("summary.json")).map_err(|error| error.to_string())?;
        let summary: Summary = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        let mut clusters: Vec<&Cluster> =
            summary.clusters.iter().filter(|cluster| cluster.accepted.is_none()).collect();
        clusters.sort_by(|one, other| one.first_seconds.total_cmp(&other.first_seconds));
        Ok(match clusters.first() {
            Some(first) => first.outcome(),
            None => Outcome {
                what: "no difference".to_owned(),
                cases: summary.cases,
                seconds: summary.seconds,
                ..Outcome::default()
            },
        })
    }

    /// Runs a test, which finds the bug if it fails.
    pub(crate) fn test(&self, program: &Path, test: &Test) -> Outcome {
        let mut command = Command::new(program);
        command.args([&test.name, "--exact", "--test-threads=1"]);
        // Those that lie in wait on several threads.
        command.env("TREGION_STRESS_SECONDS", "10");
        let Ended { status, seconds } = match self.run(command, LIMIT_TEST) {
            Err(why) => return Outcome::failed(why),
            Ok(ended) => ended,
        };
        let (fails, what) = match status {
            None => (false, "the test does not end"),
            Some(status) if status.success() => (false, "the test passes"),
            Some(_) => (true, "the test fails"),
        };
        let verdict = found_if(fails);
        Outcome { verdict, what: what.to_owned(), seconds, ..Outcome::default() }
    }

    /// Runs the command in an empty folder of its own.
    fn run(&self, mut command: Command, limit: Duration) -> Result<Ended, String> {
        let _ = fs::remove_dir_all(&self.folder);
        fs::create_dir_all(&self.folder).map_err(|error| format!("{:?}: {error}", self.folder))?;
        run_within(&mut command, limit, &self.folder.join("log"))
    }
}

impl Cluster {
    fn outcome(&self) -> Outcome {
        let component = match &self.component {
            serde_json::Value::String(name) => name.clone(),
            other => other.to_string().replace(['{', '}', '"'], ""),
        };
        let what = match &self.stops {
            Some((silicon, engine)) => format!("{}: {silicon} / {engine}", self.mnemonic),
            None => format!("{}: {component}", self.mnemonic),
        };
        let hangs = self.stops.as_ref().is_some_and(|(_, engine)| HANGS.contains(&engine.as_str()));
        Outcome {
            verdict: if hangs { Verdict::Hang } else { Verdict::Found },
            what,
            cases: self.first_case + 1,
            seconds: self.first_seconds,
            instructions: self.instructions,
        }
    }
}
