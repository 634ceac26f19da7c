//! A campaign: generate, judge, count, cluster, minimise, until time is up.
//!
//! Cases are numbered; case *i* of a seed is the same everywhere, and shard *k* of *n* takes those
//! with *i* mod *n* = *k* − 1. So campaigns need no coordination: their folders are merged afterwards
//! by what they found ([`merge`]).

mod case_file;
mod findings;
pub mod merge;
mod summary;
mod tally;
mod worker;

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

pub use case_file::{header, side_by_side};
pub use findings::{Cluster, Findings, minimise_finding};
pub use summary::{ClusterRecord, Summary};
pub use tally::Tally;

use crate::generate::{Generator, HostFeatures};
use crate::oracle::Judge;
use worker::Worker;

/// What a campaign does.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Names of the engines beside the judge, for the report.
    pub engines: Vec<String>,
    /// Which cases.
    pub seed: u64,
    /// Which part of them: `(k, n)`, 1 ≤ k ≤ n.
    pub shard: (u64, u64),
    /// How long.
    pub time: Option<Duration>,
    /// How many cases.
    pub cases: Option<u64>,
    /// How many threads.
    pub workers: usize,
    /// Where findings go.
    pub out: Option<PathBuf>,
    /// It ends with the first difference that is not a known one.
    pub stop_at_first: bool,
}

/// Makes a judge with its engines; called once in each worker.
pub type MakeJudge<'a> = &'a (dyn Fn() -> io::Result<Judge> + Sync);

/// What those outside see of a campaign under way.
#[derive(Debug, Default)]
pub struct Progress {
    /// Cases judged.
    pub cases: AtomicU64,
    /// Distinct differences found.
    pub differences: AtomicU64,
    /// Those not in the table of accepted ones.
    pub unexplained: AtomicU64,
    /// Distinct forms run to completion.
    pub forms: AtomicU64,
    /// Set from outside: end in order.
    pub stop: AtomicBool,
}

/// What all workers share.
struct Shared<'a> {
    plan: &'a Plan,
    generator: Generator,
    progress: &'a Progress,
    findings: Findings,
    tally: std::sync::Mutex<Tally>,
    next_case: AtomicU64,
    deadline: Option<Instant>,
}

impl Shared<'_> {
    /// The number of the next case to run, if there is one.
    fn next(&self) -> Option<u64> {
        let late = self.deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if late || self.progress.stop.load(Ordering::Relaxed) {
            return None;
        }
        let number = self.next_case.fetch_add(1, Ordering::Relaxed);
        if self.plan.cases.is_some_and(|cases| number >= cases) {
            return None;
        }
        let (shard, of) = self.plan.shard;
        Some(number * of + shard - 1)
    }
}

/// Runs a campaign to its end.
pub fn run(plan: &Plan, make_judge: MakeJudge<'_>, progress: &Progress) -> io::Result<Summary> {
    if let Some(out) = &plan.out {
        std::fs::create_dir_all(out)?;
    }
    let start = Instant::now();
    let shared = Shared {
        plan,
        generator: Generator::new(&HostFeatures::detect()),
        progress,
        findings: Findings::new(start),
        tally: std::sync::Mutex::default(),
        next_case: AtomicU64::new(0),
        deadline: plan.time.and_then(|time| start.checked_add(time)),
    };
    let results: Vec<io::Result<()>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.workers)
            .map(|index| {
                let shared = &shared;
                scope.spawn(move || {
                    let result = Worker::start(shared, index, make_judge).and_then(Worker::work);
                    if result.is_err() {
                        // The others need not go on: the campaign has failed.
                        shared.progress.stop.store(true, Ordering::Relaxed);
                    }
                    result
                })
            })
            .collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, io::Result<()>>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().map(join).collect()
    });
    let tally = shared.tally.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let clusters = shared.findings.into_clusters();
    let summary = Summary::new(plan, &shared.generator, tally, clusters, start.elapsed());
    if let Some(out) = &plan.out {
        summary.write(out)?;
    }
    // Only now, so that what was found is not lost by what went wrong.
    results.into_iter().collect::<io::Result<()>>()?;
    Ok(summary)
}
