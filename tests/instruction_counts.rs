//! How many instructions translation and the run loop take, counted one by one and compared with what
//! is recorded in `tests/golden/instruction-counts.toml`: a guard that the host's speed and load do not
//! reach. `make counts-record` records anew. `make profile` tells what the instructions of guest programs are
//! for (`profile`).
//!
//! This program starts itself once for each scenario; the child (`scenarios`) marks where counting
//! begins and ends, and is single-stepped in between (`tracer`). What the kernel does is not counted.
//! The same program counts the same each time; other compilers make another program, hence the tolerances.
#![allow(clippy::unwrap_used, reason = "a test fails where its helper does")]

#[path = "instruction_counts/profile.rs"]
mod profile;
#[path = "instruction_counts/scenarios.rs"]
mod scenarios;
#[path = "instruction_counts/tracer.rs"]
mod tracer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use scenarios::SCENARIOS;
use serde::{Deserialize, Serialize};

/// Goes before a scenario's name in the arguments of a child.
const CHILD: &str = "--scenario=";
/// So much more than recorded is a failure, by the compiler that the record is from and by another; so much
/// less is a reason to record anew, which is only told.
const TOLERANCE: f64 = 0.05;
const OTHER_TOLERANCE: f64 = 0.2;

/// Instructions by scenario, each for one of its rounds.
type Counts = BTreeMap<String, f64>;

/// What is in the file.
#[derive(Deserialize, Serialize)]
struct Record {
    /// What it says of itself.
    compiler: String,
    instructions: Counts,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(name) = arguments.iter().find_map(|argument| argument.strip_prefix(CHILD)) {
        tracer::run_traced(scenarios::named(name));
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|argument| argument == "--list") {
        SCENARIOS.iter().for_each(|scenario| println!("{}: test", scenario.name));
        return ExitCode::SUCCESS;
    }
    if cfg!(debug_assertions) {
        println!("skipped: counts are of builds with optimisation");
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|argument| argument == "--profile") {
        profile::print_all();
        return ExitCode::SUCCESS;
    }
    if arguments.iter().any(|argument| argument == "--record") {
        return record(counted(&[]));
    }
    compared(&counted(&arguments))
}

/// Counts what the arguments name, as the test harness does, or everything.
fn counted(arguments: &[String]) -> Counts {
    let words: Vec<_> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(*word));
    let scenarios = SCENARIOS.iter().filter(|scenario| wanted(scenario.name));
    let count = |scenario: &scenarios::Scenario| {
        let count = tracer::count(&format!("{CHILD}{}", scenario.name));
        (scenario.name.to_owned(), (count as f64 / scenario.rounds as f64 * 10.0).round() / 10.0)
    };
    scenarios.map(count).collect()
}

fn file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/instruction-counts.toml")
}

fn compiler() -> String {
    let said = Command::new("rustc").arg("--version").output();
    said.map_or_else(
        |_| String::new(),
        |said| String::from_utf8_lossy(&said.stdout).trim().to_owned(),
    )
}

fn record(instructions: Counts) -> ExitCode {
    let head = "# Instructions for each round of what tests/instruction_counts/scenarios.rs describes, in a\n\
                # build with optimisation. `make counts-record` writes this.\n";
    let record = Record { compiler: compiler(), instructions };
    let text = format!("{head}{}", toml::to_string(&record).unwrap());
    std::fs::write(file(), &text).unwrap();
    print!("{text}");
    ExitCode::SUCCESS
}

/// Fails if something takes more than recorded, or was never recorded.
fn compared(counts: &Counts) -> ExitCode {
    let recorded: Record = toml::from_str(&std::fs::read_to_string(file()).unwrap()).unwrap();
    let same = recorded.compiler == compiler();
    let tolerance = if same { TOLERANCE } else { OTHER_TOLERANCE };
    println!("{:.0} % more than by {} are tolerated", tolerance * 100.0, recorded.compiler);
    let mut failed = false;
    for (name, count) in counts {
        let recorded = recorded.instructions.get(name).copied();
        let change = recorded.map_or(f64::INFINITY, |recorded| count / recorded - 1.0);
        let verdict = match change {
            more if more > tolerance => "FAILED",
            less if less < -tolerance => "ok; better, `make counts-record` keeps it so",
            _ => "ok",
        };
        failed |= change > tolerance;
        let recorded = recorded.map_or_else(|| "none".to_owned(), |count| format!("{count:.1}"));
        println!("{name:<24} {count:>9.1} instructions, {recorded:>9} recorded: {verdict}");
    }
    if failed {
        println!("if that is meant to be: make counts-record");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
