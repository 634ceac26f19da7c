//! `tregion replay` and `tregion minimize`: case files, one after the other.

use std::path::{Path, PathBuf};

use clap::Args;
use tregion::campaign::{MINIMISE_TIME, header, minimise_finding, side_by_side};
use tregion::case::{Case, Outcome, text};
use tregion::concurrent::{self, Watcher};
use tregion::oracle::judge::{EngineVerdict, Finding, Judge, Verdict};

use super::output::{print, write_or_print};
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
    if cfg!(feature = "unicorn") { "silicon,jit,unicorn:unfiltered" } else { "silicon,jit" };

/// How often a scene of two vCPUs is run, in batches.
const SCENE_BATCHES: u64 = 64;

/// Names the file in an error.
fn in_file<E: std::fmt::Display>(file: &Path) -> impl Fn(E) -> Failure {
    move |error| Failure(format!("{}: {error}", file.display()))
}

fn read_text(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file).map_err(in_file(file))
}

/// Reads a case; an error names the file, the line and the column.
fn read(file: &Path) -> Result<Case, Failure> {
    let text = read_text(file)?;
    if concurrent::is_scene(&text) {
        return Err(in_file(file)("two vCPUs are made small when they are found, and not again"));
    }
    text::parse(&text).map_err(in_file(file))
}

pub(super) fn replay(arguments: &ReplayArguments) -> Result<Found, Failure> {
    let mut judge = engines::judge(&engines::judged(&arguments.engines)?)?;
    let mut found = Found::Nothing;
    let mut compared = 0;
    for file in &arguments.files {
        let text = read_text(file)?;
        let replayed = if concurrent::is_scene(&text) {
            let scene = concurrent::parse(&text).map_err(in_file(file))?;
            let has_jit = judge.engines.iter().any(|engine| engine.name() == "jit");
            if has_jit { replay_scene(&scene)? } else { Replayed::of_no_jit() }
        } else {
            replay_one(&mut judge, &text::parse(&text).map_err(in_file(file))?)
        };
        print(&format!("{}\n{}", file.display(), replayed.text))?;
        compared += replayed.compared;
        if replayed.differs {
            found = Found::Differences;
        }
    }
    if compared == 0 {
        return Err(Failure("nothing could be compared, for the reasons above".to_owned()));
    }
    Ok(found)
}

/// What came of one case.
#[derive(Default)]
struct Replayed {
    text: String,
    /// Engines compared with silicon.
    compared: usize,
    differs: bool,
}

impl Replayed {
    fn of_no_jit() -> Self {
        let text = "  two vCPUs at once is what `jit` alone can be asked\n".to_owned();
        Self { text, ..Self::default() }
    }
}

/// Runs two vCPUs at once, and shows an outcome that cannot be.
fn replay_scene(scene: &concurrent::Scene) -> Result<Replayed, Failure> {
    let mut watcher = Watcher::new(0)?;
    let difference = watcher.check(scene, SCENE_BATCHES)?;
    let counts = watcher.counts;
    if counts.scenes == 0 {
        let text = "  there are too many outcomes to find them all\n".to_owned();
        return Ok(Replayed { text, ..Replayed::default() });
    }
    let mut text = format!(
        "  two vCPUs: {} rounds, {} overlapped for certain\n",
        counts.rounds, counts.overlapping_rounds
    );
    match &difference {
        None => text += "  jit: each outcome is in the set\n",
        Some(difference) => {
            text += "  jit: an outcome that cannot be\n";
            difference.lines().iter().for_each(|line| text += &format!("    {line}\n"));
        }
    }
    Ok(Replayed { text, compared: 1, differs: difference.is_some() })
}

fn replay_one(judge: &mut Judge, case: &Case) -> Replayed {
    let mut replayed = Replayed::default();
    if !case.note.is_empty() {
        replayed.text += &format!("  {}\n", case.note);
    }
    let (silicon, verdicts) = match judge.judge(case) {
        Verdict::Unjudged(unsupported) => {
            replayed.text += &format!("  silicon: {unsupported}\n");
            return replayed;
        }
        Verdict::Judged { silicon, engines } => (silicon, engines),
    };
    replayed.text += &format!("  silicon: {} at {:#x}\n", silicon.stop, silicon.state.rip);
    for (engine, verdict) in judge.engines.iter().zip(&verdicts) {
        replayed.text += &verdict_text(engine.name(), &silicon, verdict);
        replayed.compared += usize::from(!matches!(verdict, EngineVerdict::Unsupported(_)));
        replayed.differs |= matches!(verdict, EngineVerdict::Differs { .. });
    }
    replayed
}

/// What one engine made of a case, next to silicon.
fn verdict_text(name: &str, silicon: &Outcome, verdict: &EngineVerdict) -> String {
    let (outcome, differences, findings) = match verdict {
        EngineVerdict::Agrees => return format!("  {name}: agrees\n"),
        EngineVerdict::Unsupported(unsupported) => return format!("  {name}: {unsupported}\n"),
        EngineVerdict::Plausible { .. } => return format!("  {name}: differs as known\n"),
        EngineVerdict::Differs { outcome, differences, findings } => {
            (outcome, differences, findings)
        }
    };
    let mut text = format!("  {name}: differs from silicon\n");
    for line in side_by_side(("silicon", name), (silicon, outcome), differences).lines() {
        text += &format!("    {line}\n");
    }
    for finding in findings {
        text += &format!("    because of {}\n", finding.key);
        for row in finding.accepted.iter().flatten() {
            text += &format!("      accepted ({}): {}\n", row.name, row.reason);
        }
    }
    if findings.is_empty() {
        text += "    only in what the manual leaves undefined\n";
    }
    text
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
    let mut small = minimise_finding(&mut judge.silicon, engine, &finding, MINIMISE_TIME);
    small.note = finding.key.to_string();
    let name = arguments.out.as_deref().unwrap_or(Path::new("FILE")).display();
    let replay = format!("tregion replay {name}");
    let text = header(&mut judge.silicon, engine, &small, &finding, &replay) + &text::print(&small);
    write_or_print(arguments.out.as_deref(), text)?;
    Ok(Found::Differences)
}
