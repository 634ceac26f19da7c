//! A campaign: generate, judge, count, cluster, minimise, until time is up.
//!
//! Cases are numbered; case *i* of a seed is the same everywhere, and shard *k* of *n* takes those
//! with *i* mod *n* = *k* − 1. So campaigns need no coordination: their folders are merged afterwards
//! by what they found ([`merge`]).
//!
//! A campaign with a folder keeps its figures there all the time, with a note of which cases they are
//! of. Killed at any moment, it goes on from there when it is run again, and no case is counted twice
//! or left out.

mod books;
mod case_file;
mod findings;
mod folder;
mod ledger;
pub mod merge;
mod pairs;
mod resume;
mod samples;
mod summary;
mod tally;
mod text;
mod two_vcpus;
mod worker;

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

pub use case_file::{header, side_by_side};
pub use findings::{FindingKey, MINIMISE_TIME, Seen, minimise_finding};
pub use folder::FileError;
pub use ledger::Ledger;
pub use pairs::MnemonicPairs;
pub use samples::{Sample, Samples};
pub use summary::{ClusterRecord, Runs, Summary};
pub use tally::Tally;

use crate::generate::{Generator, HostFeatures};
use crate::oracle::Judge;
use books::{Books, Keeper};
use findings::Findings;
use folder::Folder;
use ledger::Leases;
use summary::Names;
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
    /// How long, from now on.
    pub time: Option<Duration>,
    /// How many cases, those of earlier parts of the campaign included.
    pub cases: Option<u64>,
    /// How many threads.
    pub workers: usize,
    /// Where findings and figures go, and are taken from to go on.
    pub out: Option<PathBuf>,
    /// How often the folder's figures are written while it runs: what is lost by a kill is run again.
    pub save_every: Duration,
    /// It ends with the first difference that is not a known one.
    pub stop_at_first: bool,
}

impl Plan {
    /// Often enough, and too seldom to cost anything.
    pub const SAVE_EVERY: Duration = Duration::from_secs(5);

    /// The number of the case at a position of the shard.
    fn number(&self, position: u64) -> u64 {
        let (shard, of) = self.shard;
        position * of + shard - 1
    }
}

/// Makes a judge with its engines; called once in each worker.
pub type MakeJudge<'a> = &'a (dyn Fn() -> io::Result<Judge> + Sync);

/// Why a campaign cannot be begun, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum CampaignError {
    /// A file or folder of it cannot be read or written. What was in the folder is there still.
    #[error(transparent)]
    File(#[from] FileError),
    /// Its folder holds something else.
    #[error("{} holds {what}: another folder is needed", folder.display())]
    Other {
        /// The folder.
        folder: PathBuf,
        /// What it holds.
        what: String,
    },
    /// Another process works in its folder.
    #[error("{}: another campaign is at work there", .0.display())]
    InUse(PathBuf),
    /// An engine cannot be had.
    #[error(transparent)]
    Engine(#[from] io::Error),
}

/// What those outside see of a campaign under way.
#[derive(Debug, Default)]
pub struct Progress {
    /// Cases judged, those of earlier parts of the campaign included.
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

/// A campaign that can begin, or go on: its folder is open, and what is there is of the same plan.
#[derive(Debug)]
pub struct Campaign<'a> {
    plan: &'a Plan,
    generator: Generator,
    fingerprint: String,
    folder: Option<Folder>,
    earlier: Option<Summary>,
    pairs: MnemonicPairs,
}

/// What all workers share.
struct Shared<'a> {
    plan: &'a Plan,
    generator: Generator,
    folder: Option<&'a Folder>,
    progress: &'a Progress,
    findings: Findings,
    books: Mutex<Books>,
    start: Instant,
    /// Seconds that earlier parts of the campaign have taken.
    seconds_before: f64,
    deadline: Option<Instant>,
}

impl Shared<'_> {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Positions for a worker to work on, if there are any left.
    fn lease(&self, worker: usize) -> Option<Range<u64>> {
        if self.is_over(Instant::now()) {
            return None;
        }
        let (_, of) = self.plan.shard;
        let end = self.plan.cases.unwrap_or(u64::MAX / of);
        self.books().leases.take(worker, end)
    }

    fn is_over(&self, now: Instant) -> bool {
        let late = self.deadline.is_some_and(|deadline| now >= deadline);
        late || self.progress.stop.load(Ordering::Relaxed)
    }

    /// Seconds that the campaign has taken until now.
    fn seconds(&self) -> f64 {
        self.seconds_before + self.start.elapsed().as_secs_f64()
    }
}

/// Runs a campaign to its end, from where it was if its folder has a part of it.
pub fn run(
    plan: &Plan,
    make_judge: MakeJudge<'_>,
    progress: &Progress,
) -> Result<Summary, CampaignError> {
    Campaign::open(plan)?.run(make_judge, progress)
}

impl<'a> Campaign<'a> {
    /// Opens the plan's folder, which nobody else may then work in.
    pub fn open(plan: &'a Plan) -> Result<Self, CampaignError> {
        let generator = Generator::new(&HostFeatures::detect());
        let fingerprint = resume::fingerprint(&generator, plan);
        let (mut earlier, mut pairs) = (None, MnemonicPairs::default());
        let mut folder = None;
        if let Some(out) = &plan.out {
            let open = Folder::open(out)?.ok_or_else(|| CampaignError::InUse(out.clone()))?;
            earlier = resume::earlier(&open, plan, &fingerprint)?;
            if earlier.is_some() {
                pairs = MnemonicPairs::read(out)?;
            }
            folder = Some(open);
        }
        Ok(Self { plan, generator, fingerprint, folder, earlier, pairs })
    }

    /// What earlier parts of the campaign have left.
    #[must_use]
    pub fn earlier(&self) -> Option<&Summary> {
        self.earlier.as_ref()
    }

    /// Runs the campaign until its plan, or who watches its progress, ends it.
    pub fn run(
        self,
        make_judge: MakeJudge<'_>,
        progress: &Progress,
    ) -> Result<Summary, CampaignError> {
        let (plan, start) = (self.plan, Instant::now());
        let earlier = self.earlier.as_ref();
        let cases_before = earlier.map_or(0, |earlier| earlier.cases);
        progress.cases.store(cases_before, Ordering::Relaxed);
        let leases = Leases::new(earlier.and_then(|it| it.ledger.clone()).unwrap_or_default());
        let names = Names::new(&self.generator, self.fingerprint);
        let shared = Shared {
            plan,
            generator: self.generator,
            folder: self.folder.as_ref(),
            progress,
            findings: Findings::known(earlier.map_or(&[], |earlier| &earlier.clusters)),
            books: Mutex::new(Books {
                leases,
                tally: Tally::default(),
                pairs: self.pairs,
                cases_before,
            }),
            start,
            seconds_before: earlier.map_or(0.0, |earlier| earlier.seconds),
            deadline: plan.time.and_then(|time| start.checked_add(time)),
        };
        let samples = Samples::default();
        let mut keeper = Keeper { shared: &shared, names, earlier: self.earlier, samples };
        let worked = work(&shared, make_judge, &mut keeper);
        // First what was found is written, so that it is not lost by what went wrong.
        let summary = keeper.save();
        worked?;
        Ok(summary?)
    }
}

/// Has workers work and the keeper write until all is done or something goes wrong.
fn work(
    shared: &Shared<'_>,
    make_judge: MakeJudge<'_>,
    keeper: &mut Keeper<'_>,
) -> Result<(), CampaignError> {
    std::thread::scope(|scope| {
        let (working, ended) = mpsc::channel::<()>();
        let start = |index| {
            let working = working.clone();
            scope.spawn(move || {
                let _working = working;
                let result = Worker::start(shared, index, make_judge)
                    .map_err(CampaignError::from)
                    .and_then(|worker| Ok(worker.work()?));
                stop_if_failed(shared, result)
            })
        };
        let workers: Vec<_> = (0..shared.plan.workers).map(start).collect();
        drop(working);
        let kept = stop_if_failed(shared, keeper.keep(&ended).map_err(CampaignError::from));
        let mut results: Vec<_> = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        results.push(kept);
        results.into_iter().collect()
    })
}

/// Where one part has failed the others need not go on: the campaign has.
fn stop_if_failed<T>(
    shared: &Shared<'_>,
    result: Result<T, CampaignError>,
) -> Result<T, CampaignError> {
    if result.is_err() {
        shared.progress.stop.store(true, Ordering::Relaxed);
    }
    result
}
