//! `tregion replay` and `tregion minimize`: case files, one after the other.

use std::path::{Path, PathBuf};

use clap::Args;
use tregion::campaign::{header, minimise_finding, side_by_side};
use tregion::case::{Case, text};
use tregion::oracle::judge::{EngineVerdict, Finding, Judge, Verdict};

use super::{Failure, Found, engines};

/// What `replay` is given.
#[derive(Args)]
pub(super) struct ReplayArguments {
    /// Case files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Engines to compare
    #[arg(long, value_delimiter = ',', default_value = REPLAY_ENGINES)]
    engines: Vec<String>,
}

/// What `minimize` is given.
#[derive(Args)]
pub(super) struct MinimizeArguments {
    /// Case file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Engines to compare
    #[arg(long, value_delimiter = ',', default_value = REPLAY_ENGINES)]
    engines: Vec<String>,
    /// Where the smaller case goes; standard output if not given
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
}

const REPLAY_ENGINES: &str =
    if cfg!(feature = "unicorn") { "silicon,unicorn:unfiltered" } else { "silicon,silicon" };

/// Reads a case; an error names the file, the line and the column.
fn read(file: &Path) -> Result<Case, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure(format!("{}: {error}", file.display())))?;
    text::parse(&text).map_err(|error| Failure(format!("{}: {error}", file.display())))
}

pub(super) fn replay(arguments: &ReplayArguments) -> Result<Found, Failure> {
    let mut judge = engines::judge(&engines::judged(&arguments.engines)?)?;
    let mut found = Found::Nothing;
    for file in &arguments.files {
        println!("{}", file.display());
        if let Found::Differences = replay_one(&mut judge, &read(file)?) {
            found = Found::Differences;
        }
    }
    Ok(found)
}

fn replay_one(judge: &mut Judge, case: &Case) -> Found {
    if !case.note.is_empty() {
        println!("  {}", case.note);
    }
    let (silicon, verdicts) = match judge.judge(case) {
        Verdict::Unjudged(unsupported) => {
            println!("  silicon: {unsupported}");
            return Found::Nothing;
        }
        Verdict::Judged { silicon, engines } => (silicon, engines),
    };
    println!("  silicon: {} at {:#x}", silicon.stop, silicon.state.rip);
    let mut found = Found::Nothing;
    for (engine, verdict) in judge.engines.iter().zip(verdicts) {
        match verdict {
            EngineVerdict::Agrees | EngineVerdict::Plausible { .. } => {
                println!("  {}: agrees", engine.name())
            }
            EngineVerdict::Unsupported(unsupported) => {
                println!("  {}: {unsupported}", engine.name());
            }
            EngineVerdict::Differs { outcome, differences, findings } => {
                found = Found::Differences;
                println!("  {}: differs from silicon", engine.name());
                let names = ("silicon", engine.name());
                for line in side_by_side(names, (&silicon, &outcome), &differences).lines() {
                    println!("    {line}");
                }
                for finding in &findings {
                    println!("    because of {}", finding.key);
                    for row in finding.accepted.iter().flatten() {
                        println!("      accepted ({}): {}", row.name, row.reason);
                    }
                }
                if findings.is_empty() {
                    println!("    only in what the manual leaves undefined");
                }
            }
        }
    }
    found
}

/// The first finding that is not explained, or else the first.
fn first_to_explain(mut findings: Vec<Finding>) -> Option<Finding> {
    let first = findings.iter().position(|finding| finding.accepted.is_none()).unwrap_or(0);
    (first < findings.len()).then(|| findings.swap_remove(first))
}

pub(super) fn minimize(arguments: &MinimizeArguments) -> Result<Found, Failure> {
    let mut judge = engines::judge(&engines::judged(&arguments.engines)?)?;
    let case = read(&arguments.file)?;
    let engines = match judge.judge(&case) {
        Verdict::Judged { engines, .. } => engines,
        Verdict::Unjudged(unsupported) => return Err(Failure(format!("silicon: {unsupported}"))),
    };
    let found = engines.into_iter().enumerate().find_map(|(index, verdict)| match verdict {
        EngineVerdict::Differs { findings, .. } => Some((index, first_to_explain(findings)?)),
        _ => None,
    });
    let Some((index, finding)) = found else {
        return Err(Failure("no engine differs from silicon, so there is nothing to keep".into()));
    };
    let engine = judge.engines[index].as_mut();
    let mut small = minimise_finding(&mut judge.silicon, engine, &finding);
    small.note = finding.key.to_string();
    let name = arguments.out.as_deref().unwrap_or(Path::new("FILE")).display();
    let replay = format!("tregion replay {name}");
    let text = header(&mut judge.silicon, engine, &small, &finding, &replay) + &text::print(&small);
    match &arguments.out {
        Some(file) => std::fs::write(file, text)
            .map_err(|error| Failure(format!("{}: {error}", file.display())))?,
        None => print!("{text}"),
    }
    Ok(Found::Differences)
}
