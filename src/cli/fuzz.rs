//! `tregion fuzz`: a campaign with a progress display.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use tregion::campaign::{Campaign, Plan, Progress};

use super::output::{print, write};
use super::{Failure, Found, engines};

/// What `fuzz` is given.
#[derive(Args)]
pub(super) struct Arguments {
    /// Engines to compare; `silicon` is the judge and has to be among them
    #[arg(long, value_delimiter = ',', default_value = DEFAULT_ENGINES)]
    engines: Vec<String>,
    /// Seconds to run, from now on
    #[arg(long, default_value_t = 60, conflicts_with = "cases")]
    seconds: u64,
    /// Cases to run in all, instead of a time
    #[arg(long)]
    cases: Option<u64>,
    /// Which cases: the same seed makes the same cases
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads; as many as there are CPUs if not given
    #[arg(long)]
    workers: Option<usize>,
    /// Part K of N of the seed's cases
    #[arg(long, value_name = "K/N", default_value = "1/1", value_parser = shard)]
    shard: (u64, u64),
    /// End with the first difference that is not a known one
    #[arg(long)]
    stop_at_first: bool,
    /// Folder for the cases of differences and for summary.json; a campaign that is there goes on
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// File for the figures as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

const DEFAULT_ENGINES: &str =
    if cfg!(feature = "unicorn") { "silicon,jit,unicorn" } else { "silicon,jit" };

/// More threads than any machine has CPUs.
const MAX_WORKERS: usize = 4096;

fn shard(text: &str) -> Result<(u64, u64), String> {
    let expected = || format!("`{text}` is not K/N with 1 ≤ K ≤ N");
    let (part, of) = text.split_once('/').ok_or_else(expected)?;
    let (part, of) = (part.parse(), of.parse());
    match (part, of) {
        (Ok(part), Ok(of)) if 1 <= part && part <= of => Ok((part, of)),
        _ => Err(expected()),
    }
}

pub(super) fn run(arguments: &Arguments) -> Result<Found, Failure> {
    let names = engines::judged(&arguments.engines)?;
    let workers = match arguments.workers {
        Some(workers) if !(1..=MAX_WORKERS).contains(&workers) => {
            return Err(Failure(format!("a campaign has 1 to {MAX_WORKERS} workers")));
        }
        Some(workers) => workers,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let plan = Plan {
        engines: names.iter().enumerate().map(|(i, name)| engines::title(name, i + 1)).collect(),
        seed: arguments.seed,
        shard: arguments.shard,
        time: arguments.cases.is_none().then(|| Duration::from_secs(arguments.seconds)),
        cases: arguments.cases,
        workers,
        out: arguments.out.clone(),
        save_every: Plan::SAVE_EVERY,
        stop_at_first: arguments.stop_at_first,
    };
    let campaign = Campaign::open(&plan)?;
    if let (Some(earlier), Some(out)) = (campaign.earlier(), &plan.out) {
        let (cases, seconds) = (earlier.cases, earlier.seconds);
        eprintln!("{}: going on behind {cases} cases in {seconds:.0} s", out.display());
    }
    let cases_before = campaign.earlier().map_or(0, |earlier| earlier.cases);
    let progress = Arc::new(Progress::default());
    let stopped = Arc::clone(&progress);
    ctrlc::set_handler(move || stopped.stop.store(true, Ordering::Relaxed))?;
    let done = AtomicBool::new(false);
    let summary = std::thread::scope(|scope| {
        scope.spawn(|| show(&plan, &progress, cases_before, &done));
        let _ended = SetOnDrop(&done);
        campaign.run(&|| engines::judge(&names), &progress)
    })?;
    if let Some(file) = &arguments.json {
        write(file, serde_json::to_string_pretty(&summary)? + "\n")?;
    }
    print(&summary.text())?;
    if summary.compared == 0 {
        return Err(Failure("no case could be compared".to_owned()));
    }
    if let (Some(out), true) = (&plan.out, summary.differences > 0) {
        print(&format!("replay with: tregion replay {}/*.case\n", out.display()))?;
    }
    Ok(if summary.differences > 0 { Found::Differences } else { Found::Nothing })
}

/// Ends the display whatever way the campaign ends.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Draws the progress of a campaign that had come to `cases_before`, until `done`.
fn show(plan: &Plan, progress: &Progress, cases_before: u64, done: &AtomicBool) {
    let length = plan.cases.or(plan.time.map(|time| time.as_secs()));
    let bar = length.map_or_else(ProgressBar::no_length, ProgressBar::new);
    let style = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let start = Instant::now();
    while !done.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(100));
        let cases = progress.cases.load(Ordering::Relaxed).max(cases_before);
        bar.set_position(if plan.cases.is_some() { cases } else { start.elapsed().as_secs() });
        bar.set_message(format!(
            "{cases} cases, {:.0}/s, {} differences ({} unexplained), {} forms",
            (cases - cases_before) as f64 / start.elapsed().as_secs_f64(),
            progress.differences.load(Ordering::Relaxed),
            progress.unexplained.load(Ordering::Relaxed),
            progress.forms.load(Ordering::Relaxed),
        ));
    }
    bar.finish_and_clear();
}
